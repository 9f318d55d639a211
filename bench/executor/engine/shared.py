"""Shared memory: bounds, bytes that nobody wrote, and races, by granules of 2 bytes (1 where a kernel moves single bytes).

Each granule knows who wrote it last and at which time of that warp's clock, and when each warp read it last. An access is
in order where the warp's vector clock has reached those times. Most accesses are decided by eras, which count the barriers
that all warps passed: what happened in an earlier era is in order for everyone.
"""

from bench.executor.engine.faults import fault
from bench.executor.layout import (
    AGENTS,
    CLOCK_BITS,
    CLOCK_MASK,
    CLOCKS,
    ERA,
    FLIGHT,
    GRANULES,
    IN_FLIGHT,
    MEMORY,
    READ,
    READERS,
    SHARED,
    SHARED_BASE,
    SHIFT,
    WARPS,
    WRITER,
    WRITTEN,
    Kind,
)
from bench.executor.native import fill, i64, inline, routine, u8, u32

SHARED_BOUNDS, MISALIGNED, UNINITIALISED = int(Kind.SHARED_BOUNDS), int(Kind.MISALIGNED), int(Kind.UNINITIALISED)
READ_RACE, OVERWRITE_RACE, WRITE_RACE = int(Kind.READ_RACE), int(Kind.OVERWRITE_RACE), int(Kind.WRITE_RACE)
FLYING, PROXY = int(Kind.IN_FLIGHT), int(Kind.PROXY)


@routine("int64(S,int64,int64,int64,int64,int64,int64)")
def shared_place(state, address, size, align, row, warp, lane):
    """The host address of shared bytes, 0 where they lie outside. `align`: what the address is to be a multiple of."""
    offset = address - SHARED_BASE
    if offset < 0 or offset + size > state[SHARED]:
        fault(state, SHARED_BOUNDS, row, warp, lane, offset, -1, size)
        return 0
    if address & (align - 1):
        fault(state, MISALIGNED, row, warp, lane, address, -1, align)
        return 0
    return state[MEMORY] + offset


@routine("int64(S,int64,int64,int64,int64,int64)")
def shared_read(state, address, size, row, warp, lane):
    """Check and note a read by a warp."""
    shift = state[SHIFT]
    first = (address - SHARED_BASE) >> shift
    count = ((address - SHARED_BASE + size - 1) >> shift) - first + 1
    written, read = u32(state[WRITTEN] + 4 * first), u32(state[READ] + 4 * first)
    readers = u32(state[READERS] + 4 * (warp * state[GRANULES] + first))
    clocks = i64(state[CLOCKS] + warp * AGENTS * 8)
    now, era = clocks[warp], state[ERA]
    settled = True
    for k in range(count):
        settled &= (written[k] >= 1) & (written[k] < era)
        read[k] = era
        readers[k] = now
    if settled:
        return 0
    writer = u32(state[WRITER] + 4 * first)
    for k in range(count):
        where = SHARED_BASE + ((first + k) << shift)
        if written[k] == 0:
            fault(state, UNINITIALISED, row, warp, lane, where, -1, 0)
        elif written[k] == IN_FLIGHT:
            fault(state, FLYING, row, warp, lane, where, -1, i64(state[FLIGHT])[first + k])
        else:
            agent = writer[k] >> CLOCK_BITS
            if (writer[k] & CLOCK_MASK) > clocks[agent]:
                fault(state, READ_RACE, row, warp, lane, where, agent, 0)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def shared_write(state, address, size, row, warp, lane):
    """Checks a write by a warp against earlier writes and reads; `shared_written` records it. Returns 1 where another warp
    wrote the bytes without order, which is a fault only where the values differ.
    """
    shift = state[SHIFT]
    first = (address - SHARED_BASE) >> shift
    count = ((address - SHARED_BASE + size - 1) >> shift) - first + 1
    written, read = u32(state[WRITTEN] + 4 * first), u32(state[READ] + 4 * first)
    era = state[ERA]
    settled = True
    for k in range(count):
        settled &= (written[k] < era) & (read[k] < era)
    if settled:
        return 0
    clocks = i64(state[CLOCKS] + warp * AGENTS * 8)
    writer = u32(state[WRITER] + 4 * first)
    collides = 0
    for k in range(count):
        where = SHARED_BASE + ((first + k) << shift)
        if written[k] == IN_FLIGHT:
            fault(state, FLYING, row, warp, lane, where, -1, i64(state[FLIGHT])[first + k])
        elif written[k] > 0 and (writer[k] & CLOCK_MASK) > clocks[writer[k] >> CLOCK_BITS]:
            collides = 1
        if read[k] >= era:
            for other in range(state[WARPS]):
                if u32(state[READERS] + 4 * other * state[GRANULES])[first + k] > clocks[other]:
                    fault(state, OVERWRITE_RACE, row, warp, lane, where, other, 0)
    return collides


@routine("int64(S,int64,int64,int64,int64,int64,int64,int64)")
def write_race(state, target, source, size, address, row, warp, lane):
    """Records a fault where two warps write different values to the same bytes without order."""
    old, new = u8(target), u8(source)
    shift = state[SHIFT]
    clocks = i64(state[CLOCKS] + warp * AGENTS * 8)
    for k in range(size):
        granule = (address + k - SHARED_BASE) >> shift
        last = u32(state[WRITER])[granule]
        if old[k] != new[k] and (last & CLOCK_MASK) > clocks[last >> CLOCK_BITS]:
            fault(state, WRITE_RACE, row, warp, lane, address + k, last >> CLOCK_BITS, 0)
            return 0
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def shared_written(state, address, size, agent, clock, stamp):
    """Records that `agent` wrote bytes at its time `clock`; `stamp` is the era, or LATE."""
    shift = state[SHIFT]
    first = (address - SHARED_BASE) >> shift
    count = ((address - SHARED_BASE + size - 1) >> shift) - first + 1
    written, writer = u32(state[WRITTEN] + 4 * first), u32(state[WRITER] + 4 * first)
    mark = (agent << CLOCK_BITS) | clock
    for k in range(count):
        written[k] = stamp
        writer[k] = mark
    return 0


@routine("int64(S,int64,int64,int64)")
def shared_flight(state, address, size, row):
    """Records that bytes belong to an asynchronous copy, which a row issued, until it lands."""
    shift = state[SHIFT]
    first = (address - SHARED_BASE) >> shift
    count = ((address - SHARED_BASE + size - 1) >> shift) - first + 1
    fill(state[WRITTEN] + 4 * first, 255, 4 * count)
    flight = i64(state[FLIGHT] + 8 * first)
    for k in range(count):
        flight[k] = row
    return 0


@routine("int64(S,int64,int64,int64,int64,int64,int64)")
def proxy_read(state, address, size, row, warp, clocks_at, proxy_at):
    """Check bytes that the asynchronous proxy read for a warp: it sees what the warp knew when it issued the operation.

    Generic writes must also lie before a `fence.proxy.async`; a later write is one that the operation may have missed.
    """
    shift = state[SHIFT]
    first = (address - SHARED_BASE) >> shift
    count = ((address - SHARED_BASE + size - 1) >> shift) - first + 1
    written, read, writer = u32(state[WRITTEN] + 4 * first), u32(state[READ] + 4 * first), u32(state[WRITER] + 4 * first)
    readers = u32(state[READERS] + 4 * (warp * state[GRANULES] + first))
    clocks, proxy = i64(clocks_at), i64(proxy_at)
    now, era = i64(state[CLOCKS] + warp * AGENTS * 8)[warp], state[ERA]
    last = writer[0]
    uniform = written[0] != 0 and written[0] != IN_FLIGHT
    for k in range(count):
        uniform &= (writer[k] == last) & (written[k] == written[0])
        read[k] = era
        readers[k] = now
    for k in range(count):
        where = SHARED_BASE + ((first + k) << shift)
        agent, clock = writer[k] >> CLOCK_BITS, writer[k] & CLOCK_MASK
        if written[k] == 0:
            fault(state, UNINITIALISED, row, warp, 0, where, -1, 0)
        elif written[k] == IN_FLIGHT:
            fault(state, FLYING, row, warp, 0, where, -1, i64(state[FLIGHT])[first + k])
        elif clock > clocks[agent]:
            fault(state, READ_RACE, row, warp, 0, where, agent, 1)
        elif agent < 32 and clock > proxy[agent]:
            fault(state, PROXY, row, warp, 0, where, agent, 0)
        if uniform:
            break
    return 0


@inline
def whole_shared(state, mask, addresses, size):
    """Whether a request of lanes lies in shared memory, each access at a multiple of its size."""
    address = i64(addresses)
    low, high, together = 1 << 62, 0, 0
    for lane in range(32):
        if (mask >> lane) & 1:
            low = min(low, address[lane])
            high = max(high, address[lane])
            together |= address[lane]
    return low >= SHARED_BASE and high + size <= SHARED_BASE + state[SHARED] and together & (size - 1) == 0


@inline
def settled_read(state, address, size, warp):
    """Note a read where earlier eras decide that it is in order; False where `shared_read` has to look closer."""
    shift = state[SHIFT]
    first = (address - SHARED_BASE) >> shift
    count = ((address - SHARED_BASE + size - 1) >> shift) - first + 1
    written, read = u32(state[WRITTEN] + 4 * first), u32(state[READ] + 4 * first)
    readers = u32(state[READERS] + 4 * (warp * state[GRANULES] + first))
    now, era = i64(state[CLOCKS] + warp * AGENTS * 8)[warp], state[ERA]
    settled = True
    for k in range(count):
        settled &= (written[k] >= 1) & (written[k] < era)
    if settled:
        for k in range(count):
            read[k] = era
            readers[k] = now
    return settled
