"""mbarriers: arrivals, expected bytes, phases, and who may know what once a phase is over."""

from bench.executor.engine.faults import fatal, fault
from bench.executor.engine.shared import shared_place, shared_write, shared_written
from bench.executor.engine.tma import land_loads, pending_loads
from bench.executor.layout import (
    AGENTS,
    B_ADDRESS,
    B_AGENT,
    B_ASKED,
    B_BYTES,
    B_CLOCK,
    B_DONE,
    B_DONE_PROXY,
    B_EXPECTED,
    B_NOW,
    B_NOW_PROXY,
    B_PENDING,
    B_PHASE,
    B_WARP,
    CHECK,
    CLOCKS,
    CODE,
    ERA,
    FAILED,
    FLAG,
    IMM,
    MBARRIER,
    MBARRIER_COUNT,
    MBARRIERS,
    N_MBARRIERS,
    PROXY_CLOCKS,
    ROW,
    WARP,
    WARP_STATES,
    A,
    B,
    D,
    Kind,
)
from bench.executor.native import copy, fill, i64, lowest, routine, u32

MISUSE, CAPACITY = int(Kind.MBARRIER), int(Kind.CAPACITY)
MISSING, TOO_MANY, UNTOLD, THERE, FLYING = range(5)


@routine("int64(S,int64)")
def find_mbarrier(state, address):
    """Where the mbarrier at a shared address is kept, 0 for none."""
    for k in range(MBARRIER_COUNT):
        entry = state[MBARRIERS] + k * MBARRIER * 8
        if i64(entry)[B_ADDRESS] == address:
            return entry
    return 0


@routine("int64(S,int64,int64)")
def join(state, into, other):
    """Adds to the vector clock `into` everything that the clock `other` knows."""
    mine, theirs = i64(into), i64(other)
    for agent in range(AGENTS):
        mine[agent] = max(mine[agent], theirs[agent])
    return 0


@routine("int64(S,int64)")
def complete(state, entry):
    """Ends the phase if no arrival and no byte is awaited any more."""
    barrier = i64(entry)
    if barrier[B_PENDING] == 0 and barrier[B_BYTES] == 0:
        barrier[B_PHASE] ^= 1
        barrier[B_PENDING] = barrier[B_EXPECTED]
        barrier[B_ASKED] = 0
        copy(entry + 8 * B_DONE, entry + 8 * B_NOW, 16 * AGENTS)
    return 0


@routine("int64(S,int64,int64,int64,int64)")
def touch(state, address, n, warp, lane):
    """Records that a warp writes an mbarrier's eight bytes."""
    place = shared_place(state, address, 8, 8, n, warp, lane)
    if place != 0 and state[CHECK]:
        shared_write(state, address, 8, n, warp, lane)
        shared_written(state, address, 8, warp, i64(state[CLOCKS] + warp * AGENTS * 8)[warp], state[ERA])
    return place


@routine("int64(S,int64,int64,int64,int64,int64)")
def mbarrier_init(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    lane = lowest(mask)
    address = u32(registers + row[A])[lane] + row[IMM]
    if touch(state, address, n, warp, lane) == 0:
        return 0
    if find_mbarrier(state, address) != 0:
        fault(state, MISUSE, n, warp, lane, address, -1, THERE)
        return 0
    entry = find_mbarrier(state, -1)
    if entry == 0:
        fatal(state, CAPACITY, n, warp, address, MBARRIER_COUNT)
        return 2
    fill(entry, 0, 8 * MBARRIER)
    barrier = i64(entry)
    barrier[B_ADDRESS] = address
    barrier[B_EXPECTED] = barrier[B_PENDING] = u32(registers + row[B])[lane] + 0
    barrier[B_AGENT] = 32 + state[N_MBARRIERS] % 32
    state[N_MBARRIERS] += 1
    barrier[B_WARP], barrier[B_CLOCK] = warp, i64(state[CLOCKS] + warp * AGENTS * 8)[warp]
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def mbarrier_invalidate(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    lane = lowest(mask)
    address = u32(registers + row[A])[lane] + row[IMM]
    entry = find_mbarrier(state, address)
    if entry == 0:
        fault(state, MISUSE, n, warp, lane, address, -1, MISSING)
        return 0
    if pending_loads(state, address) != 0:
        fault(state, MISUSE, n, warp, lane, address, -1, FLYING)
    touch(state, address, n, warp, lane)
    i64(entry)[B_ADDRESS] = -1
    return 0


@routine("int64(S,int64,int64,int64,int64)")
def known_mbarrier(state, address, n, warp, lane):
    """The entry of an mbarrier that a warp names, with the checks of its life; 0 for none."""
    entry = find_mbarrier(state, address)
    if entry == 0:
        fault(state, MISUSE, n, warp, lane, address, -1, MISSING)
    else:
        barrier = i64(entry)
        if i64(state[CLOCKS] + warp * AGENTS * 8)[barrier[B_WARP]] < barrier[B_CLOCK]:
            fault(state, MISUSE, n, warp, lane, address, barrier[B_WARP], UNTOLD)
    return entry


@routine("int64(S,int64,int64,int64,int64,int64)")
def mbarrier_arrive(state, n, warp, mask, registers, predicates):
    """arrive (`b`: how often), or arrive.expect_tx (`flag`; `b`: bytes)."""
    row = i64(state[CODE] + n * ROW * 8)
    clocks = state[CLOCKS] + warp * AGENTS * 8
    for lane in range(32):
        if (mask >> lane) & 1:
            entry = known_mbarrier(state, u32(registers + row[A])[lane] + row[IMM], n, warp, lane)
            if entry == 0:
                continue
            barrier = i64(entry)
            amount = u32(registers + row[B])[lane] + 0
            join(state, entry + 8 * B_NOW, clocks)
            join(state, entry + 8 * B_NOW_PROXY, state[PROXY_CLOCKS] + warp * AGENTS * 8)
            i64(clocks)[warp] += 1
            arrivals = amount
            if row[FLAG]:
                barrier[B_BYTES] += amount
                arrivals = 1
            if barrier[B_PENDING] < arrivals:
                fault(state, MISUSE, n, warp, lane, barrier[B_ADDRESS], -1, TOO_MANY)
                continue
            barrier[B_PENDING] -= arrivals
            complete(state, entry)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def mbarrier_wait(state, n, warp, mask, registers, predicates):
    """try_wait.parity. A warp's first question about a phase comes too early; at the second, the copies have landed."""
    row = i64(state[CODE] + n * ROW * 8)
    lane = lowest(mask)
    address, parity = u32(registers + row[A])[lane] + row[IMM], u32(registers + row[B])[lane] & 1
    entry = known_mbarrier(state, address, n, warp, lane)
    answer = u32(predicates + row[D])
    if entry == 0:
        answer[0] |= mask
        return 0
    barrier = i64(entry)
    if barrier[B_PHASE] == parity:
        if not (barrier[B_ASKED] >> warp) & 1:
            barrier[B_ASKED] |= 1 << warp
        else:
            land_loads(state, address, entry)
            complete(state, entry)
    if barrier[B_PHASE] == parity:
        answer[0] &= ~mask
        i64(state[WARP_STATES] + warp * WARP * 8)[FAILED] += 1
        return 1
    answer[0] |= mask
    join(state, state[CLOCKS] + warp * AGENTS * 8, entry + 8 * B_DONE)
    join(state, state[PROXY_CLOCKS] + warp * AGENTS * 8, entry + 8 * B_DONE_PROXY)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def fence_proxy(state, n, warp, mask, registers, predicates):
    """fence.proxy.async: the asynchronous proxy sees what this warp knows to be written."""
    copy(state[PROXY_CLOCKS] + warp * AGENTS * 8, state[CLOCKS] + warp * AGENTS * 8, 8 * AGENTS)
    return 0
