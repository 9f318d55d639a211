"""cp.async: bytes belong to the copy from its issue until a wait; they are read and land at the wait."""

from bench.executor.engine.counts import count_global, wavefronts
from bench.executor.engine.faults import fatal, fault
from bench.executor.engine.shared import shared_flight, shared_place, shared_write, shared_written
from bench.executor.engine.tensors import find_region, global_place
from bench.executor.layout import (
    AGENTS,
    CHECK,
    CLOCKS,
    CODE,
    COPIES,
    COPY,
    COPY_FIRST,
    COPY_GROUP,
    COPY_NEXT,
    COPY_QUEUE,
    COPY_SIZES,
    COPY_SOURCES,
    COPY_TARGETS,
    COUNTERS,
    COUNTS,
    ERA,
    EXTRA,
    FLAG,
    IMM,
    MEMORY,
    N_OUTSIDE,
    N_WAVES,
    Q_GROUP,
    Q_MASK,
    Q_ROW,
    ROW,
    SHARED_BASE,
    SIZE,
    WARP,
    WARP_STATES,
    A,
    B,
    D,
    Kind,
)
from bench.executor.native import copy, fill, i64, routine, u32

CAPACITY, MISALIGNED = int(Kind.CAPACITY), int(Kind.MISALIGNED)


@routine("int64(S,int64,int64,int64,int64,int64)")
def copy_issue(state, n, warp, mask, registers, predicates):
    """Put a copy into the warp's queue. A masked lane (source size 0) writes zeros; its address is counted, not read."""
    row = i64(state[CODE] + n * ROW * 8)
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    if me[COPY_NEXT] - me[COPY_FIRST] >= COPY_QUEUE:
        fatal(state, CAPACITY, n, warp, 0, COPY_QUEUE)
        return 2
    size = row[SIZE]
    entry = i64(state[COPIES] + (warp * COPY_QUEUE + me[COPY_NEXT] % COPY_QUEUE) * COPY * 8)
    me[COPY_NEXT] += 1
    target, source = u32(registers + row[D]), i64(registers + row[A])
    counts = i64(state[COUNTERS] + n * COUNTS * 8)
    kept = 0
    for lane in range(32):
        entry[COPY_TARGETS + lane] = target[lane] + row[IMM]
        entry[COPY_SOURCES + lane] = source[lane] + row[EXTRA]
        read = size
        if row[FLAG]:
            read = min(size, u32(registers + row[B])[lane])
        entry[COPY_SIZES + lane] = read
        if (mask >> lane) & 1:
            address = entry[COPY_TARGETS + lane]
            if read == 0 and find_region(state, entry[COPY_SOURCES + lane], size) < 0:
                counts[N_OUTSIDE] += 1
            if read != 0 and entry[COPY_SOURCES + lane] & (size - 1):
                fault(state, MISALIGNED, n, warp, lane, entry[COPY_SOURCES + lane], -1, size)
            if shared_place(state, address, size, size, n, warp, lane) != 0:
                kept |= 1 << lane
                if state[CHECK]:
                    shared_write(state, address, size, n, warp, lane)
                    shared_flight(state, address, size, n)
    entry[Q_ROW] = n
    entry[Q_GROUP] = me[COPY_GROUP]
    entry[Q_MASK] = kept
    where = state[COPIES] + (warp * COPY_QUEUE + (me[COPY_NEXT] - 1) % COPY_QUEUE) * COPY * 8
    count_global(state, n, mask, where + 8 * COPY_SOURCES, where + 8 * COPY_SIZES, size)
    counts[N_WAVES] += wavefronts(state, mask, where + 8 * COPY_TARGETS, size)
    return 0


@routine("int64(S,int64,int64)")
def copy_land(state, warp, pending):
    """Lands all groups except the last `pending`."""
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    clock = i64(state[CLOCKS] + warp * AGENTS * 8)[warp]
    while me[COPY_FIRST] < me[COPY_NEXT]:
        entry = i64(state[COPIES] + (warp * COPY_QUEUE + me[COPY_FIRST] % COPY_QUEUE) * COPY * 8)
        if entry[Q_GROUP] >= me[COPY_GROUP] - pending:
            break
        me[COPY_FIRST] += 1
        row = entry[Q_ROW]
        size = i64(state[CODE] + row * ROW * 8)[SIZE]
        place_of = state[MEMORY] - SHARED_BASE
        for lane in range(32):
            if (entry[Q_MASK] >> lane) & 1:
                target, read = entry[COPY_TARGETS + lane], entry[COPY_SIZES + lane]
                place = place_of + target  # within shared memory, or it would not have been issued
                fill(place, 0, size)
                if read > 0:
                    source = global_place(state, entry[COPY_SOURCES + lane], read, 1, 0, row, warp, lane)
                    if source != 0:
                        copy(place, source, read)
                    else:
                        fill(place, 255, read)
                if state[CHECK]:
                    shared_written(state, target, size, warp, clock, state[ERA])
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def copy_commit(state, n, warp, mask, registers, predicates):
    i64(state[WARP_STATES] + warp * WARP * 8)[COPY_GROUP] += 1
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def copy_wait(state, n, warp, mask, registers, predicates):
    """Executes wait_group, whose number is the immediate, or wait_all (flag), which commits first."""
    row = i64(state[CODE] + n * ROW * 8)
    if row[FLAG]:
        i64(state[WARP_STATES] + warp * WARP * 8)[COPY_GROUP] += 1
    copy_land(state, warp, row[IMM])
    return 0
