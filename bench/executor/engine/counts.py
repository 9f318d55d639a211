"""Counts the sectors, lines and wavefronts of shared memory that a memory instruction takes."""

from bench.executor.layout import COUNTERS, COUNTS, N_BYTES, N_IDEAL, N_LINES, N_SECTORS, N_WAVES, SCRATCH
from bench.executor.native import i64, popcount, routine

#: Where in the scratch memory the sectors of a request lie, and the words of a wavefront.
SECTORS, BANKS = 0, 4096


@routine("int64(S,int64,int64,int64,int64,int64)")
def count_global(state, row, mask, addresses, sizes, size):
    """Counts bytes, sectors and lines of a request of lanes. `addresses` and `sizes` point to 32 int64; where `sizes` is 0
    every lane has `size` bytes."""
    counts = i64(state[COUNTERS] + row * COUNTS * 8)
    address = i64(addresses)
    sectors = i64(state[SCRATCH] + SECTORS)
    distinct, requested = 0, 0
    for lane in range(32):
        if (mask >> lane) & 1:
            bytes_here = size
            if sizes != 0:
                bytes_here = i64(sizes)[lane]
            if bytes_here == 0:
                continue
            requested += bytes_here
            for sector in range(address[lane] >> 5, ((address[lane] + bytes_here - 1) >> 5) + 1):
                if distinct > 0 and sectors[distinct - 1] == sector:
                    continue
                known = False
                for k in range(distinct - 1, -1, -1):
                    if sectors[k] == sector:
                        known = True
                        break
                if not known:
                    sectors[distinct] = sector
                    distinct += 1
    lines = 0
    for k in range(distinct):
        line = sectors[k] >> 2
        known = False
        for earlier in range(k - 1, -1, -1):
            if sectors[earlier] >> 2 == line:
                known = True
                break
        if not known:
            lines += 1
    counts[N_SECTORS] += distinct
    counts[N_LINES] += lines
    counts[N_BYTES] += requested
    return 0


@routine("int64(S,int64,int64,int64)")
def wavefronts(state, mask, addresses, size):
    """How often shared memory is accessed for a request of lanes: 32 lanes of up to 4 bytes at a time, 16 of 8, 8 of 16.

    What an aligned access of `size` bytes takes is a unit; units that share banks and are not the same one take turns.
    """
    address = i64(addresses)
    units, seen = i64(state[SCRATCH] + BANKS), i64(state[SCRATCH] + BANKS + 32 * 32 * 8)
    shift = 2
    if size == 8:
        shift = 3
    elif size == 16:
        shift = 4
    groups = 128 >> shift
    total = 0
    for start in range(0, 32, groups):
        here = (mask >> start) & ((1 << groups) - 1)
        if here == 0:
            continue
        for group in range(groups):
            seen[group] = 0
        waves = 1
        for lane in range(groups):
            if (here >> lane) & 1:
                unit = address[start + lane] >> shift
                group = unit & (groups - 1)
                known = False
                for k in range(seen[group]):
                    if units[group * 32 + k] == unit:
                        known = True
                        break
                if not known:
                    units[group * 32 + seen[group]] = unit
                    seen[group] += 1
                    waves = max(waves, seen[group])
        total += waves
    return total


@routine("int64(S,int64,int64,int64,int64)")
def count_shared(state, row, mask, addresses, size):
    """Count wavefronts, the ideal number of them, and bytes of a request to shared memory."""
    counts = i64(state[COUNTERS] + row * COUNTS * 8)
    lanes = popcount(mask)
    counts[N_WAVES] += wavefronts(state, mask, addresses, size)
    counts[N_IDEAL] += (lanes * size + 127) // 128
    counts[N_BYTES] += lanes * size
    return 0
