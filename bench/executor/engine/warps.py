"""Instructions by which the lanes of a warp exchange values (shfl, redux, vote, elect), and the barrier of a program's
warps."""

from bench.executor.engine.faults import fault
from bench.executor.layout import (
    BARRIER,
    BARRIER_WARPS,
    CODE,
    COUNT,
    FLAG,
    IMM,
    LIVE,
    NONE,
    ROW,
    SCRATCH,
    SIZE,
    STATUS,
    WARP,
    WARP_STATES,
    A,
    B,
    C,
    D,
    E,
    Kind,
)
from bench.executor.native import i32, i64, lowest, routine, u32

DIVERGED, BAD_BARRIER = int(Kind.DIVERGED), int(Kind.BARRIER)
ADD, LEAST, MOST, AND, OR, XOR = range(6)
ANY, ALL, UNIFORM, BALLOT = range(4)


@routine("int64(S,int64,int64,int64,int64)")
def members(state, expected, mask, n, warp):
    """Records a fault unless exactly the lanes that a `.sync` instruction names execute it."""
    if expected & ~mask & 0xFFFFFFFF:
        fault(state, DIVERGED, n, warp, lowest(expected & ~mask), expected & 0xFFFFFFFF, -1, mask)
    elif mask & ~expected:
        fault(state, DIVERGED, n, warp, lowest(mask & ~expected), expected & 0xFFFFFFFF, -1, mask)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def shuffle(state, n, warp, mask, registers, predicates):
    """`size`: 0 idx, 1 bfly, 2 up, 3 down; `flag`: whether there is a predicate target, its place in `imm`."""
    row = i64(state[CODE] + n * ROW * 8)
    value, by, clamp, masks = u32(registers + row[A]), u32(registers + row[B]), u32(registers + row[C]), u32(registers + row[E])
    target = u32(registers + row[D])
    members(state, masks[lowest(mask)], mask, n, warp)
    results = u32(state[SCRATCH])
    in_range = 0
    for lane in range(32):
        segment, limit, step = (clamp[lane] >> 8) & 31, clamp[lane] & 31, by[lane] & 31
        last, start = (lane & segment) | (limit & ~segment), lane & segment
        if row[SIZE] == 0:
            source = start | (step & ~segment)
            inside = source <= last
        elif row[SIZE] == 1:
            source = lane ^ step
            inside = source <= last
        elif row[SIZE] == 2:
            source = lane - step
            inside = source >= last
        else:
            source = lane + step
            inside = source <= last
        if not inside:
            source = lane
        elif (mask >> lane) & 1:
            in_range |= 1 << lane
            if not (mask >> source) & 1:
                fault(state, DIVERGED, n, warp, lane, masks[lane], source, mask)
        results[lane] = value[source & 31]
    for lane in range(32):
        if (mask >> lane) & 1:
            target[lane] = results[lane]
    if row[FLAG]:
        place = u32(predicates + row[IMM])
        place[0] = (place[0] & ~mask) | in_range
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def reduce_lanes(state, n, warp, mask, registers, predicates):
    """redux.sync; `size`: the operation, `flag`: signed."""
    row = i64(state[CODE] + n * ROW * 8)
    value, target = u32(registers + row[A]), u32(registers + row[D])
    members(state, u32(registers + row[B])[lowest(mask)], mask, n, warp)
    result, first = 0, True
    for lane in range(32):
        if (mask >> lane) & 1:
            x = 0
            if row[FLAG]:
                x += i32(registers + row[A])[lane]
            else:
                x += value[lane]
            if first:
                result = x
            elif row[SIZE] == ADD:
                result += x
            elif row[SIZE] == LEAST:
                result = min(result, x)
            elif row[SIZE] == MOST:
                result = max(result, x)
            elif row[SIZE] == AND:
                result &= x
            elif row[SIZE] == OR:
                result |= x
            else:
                result ^= x
            first = False
    for lane in range(32):
        if (mask >> lane) & 1:
            target[lane] = result & 0xFFFFFFFF
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def vote(state, n, warp, mask, registers, predicates):
    """vote.sync of a predicate (`a`, inverted with `flag`) into a predicate, or a register for a ballot; `size`: which."""
    row = i64(state[CODE] + n * ROW * 8)
    members(state, u32(registers + row[B])[lowest(mask)], mask, n, warp)
    votes = u32(predicates + row[A])[0] & mask
    if row[SIZE] == BALLOT:
        target = u32(registers + row[D])
        for lane in range(32):
            if (mask >> lane) & 1:
                target[lane] = votes
        return 0
    if row[SIZE] == ANY:
        true = votes != 0
    elif row[SIZE] == ALL:
        true = votes == mask
    else:
        true = votes == 0 or votes == mask
    place = u32(predicates + row[D])
    place[0] = (place[0] & ~mask) | (mask if true else 0)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def elect(state, n, warp, mask, registers, predicates):
    """Elects the lowest lane: writes its number where there is a target (`flag`), and a predicate that holds for it alone."""
    row = i64(state[CODE] + n * ROW * 8)
    members(state, u32(registers + row[B])[lowest(mask)], mask, n, warp)
    leader = lowest(mask)
    if row[FLAG]:
        target = u32(registers + row[D])
        for lane in range(32):
            if (mask >> lane) & 1:
                target[lane] = leader
    place = u32(predicates + row[A])
    place[0] = (place[0] & ~mask) | (1 << leader)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def active(state, n, warp, mask, registers, predicates):
    """activemask."""
    target = u32(registers + i64(state[CODE] + n * ROW * 8)[D])
    for lane in range(32):
        if (mask >> lane) & 1:
            target[lane] = mask
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def warp_barrier(state, n, warp, mask, registers, predicates):
    """bar.warp.sync."""
    row = i64(state[CODE] + n * ROW * 8)
    expected = u32(registers + row[A])[lowest(mask)]
    members(state, expected & i64(state[WARP_STATES] + warp * WARP * 8)[LIVE], mask, n, warp)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def barrier(state, n, warp, mask, registers, predicates):
    """bar.sync: the whole warp arrives and waits. `a` or the immediate is the number of the barrier; `count`: its threads, 0
    for all."""
    row = i64(state[CODE] + n * ROW * 8)
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    if mask != me[LIVE]:
        fault(state, DIVERGED, n, warp, lowest(me[LIVE] & ~mask), me[LIVE], -1, mask)
    me[BARRIER] = row[IMM]
    if row[A] != NONE:
        me[BARRIER] = u32(registers + row[A])[lowest(mask)]
    if me[BARRIER] >= 16 or row[COUNT] % 32 != 0:
        fault(state, BAD_BARRIER, n, warp, 0, me[BARRIER], -1, row[COUNT])
    me[BARRIER_WARPS] = row[COUNT] // 32
    me[STATUS] = 1
    return 1
