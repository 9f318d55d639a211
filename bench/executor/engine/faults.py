"""Record a fault: one entry for each kind and row, with how often it came."""

from bench.executor.layout import (
    ABORT,
    F_ADDRESS,
    F_COUNT,
    F_INFO,
    F_KIND,
    F_LANE,
    F_OTHER,
    F_PROGRAM,
    F_ROW,
    F_WARP,
    FAULT,
    FAULTS,
    MAX_FAULTS,
    N_FAULTS,
    PROGRAM,
)
from bench.executor.native import i64, routine


@routine("int64(S,int64,int64,int64,int64,int64,int64,int64)")
def fault(state, kind, row, warp, lane, address, other, info):
    """Records a fault. `other` is the second party (a warp, agent or program), `info` a number that the text explains."""
    for k in range(state[N_FAULTS]):
        known = i64(state[FAULTS] + k * FAULT * 8)
        if known[F_KIND] == kind and known[F_ROW] == row:
            known[F_COUNT] += 1
            return 0
    if state[N_FAULTS] >= MAX_FAULTS:
        return 0
    new = i64(state[FAULTS] + state[N_FAULTS] * FAULT * 8)
    new[F_KIND] = kind
    new[F_ROW] = row
    new[F_PROGRAM] = state[PROGRAM]
    new[F_WARP] = warp
    new[F_LANE] = lane
    new[F_ADDRESS] = address
    new[F_OTHER] = other
    new[F_INFO] = info
    new[F_COUNT] = 1
    state[N_FAULTS] += 1
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def fatal(state, kind, row, warp, address, info):
    """Records a fault after which results would have no meaning, so that the launch stops."""
    fault(state, kind, row, warp, 0, address, -1, info)
    state[ABORT] = 1
    return 0
