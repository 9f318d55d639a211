"""TMA: boxes of tensors to shared memory and back.

A load is issued and belongs to its mbarrier; it lands when a warp asks that mbarrier a second time. A store reads shared
memory when its group is waited for; what is written there in between is a fault.
"""

from bench.executor.engine.faults import fatal, fault
from bench.executor.engine.shared import proxy_read, shared_flight, shared_place, shared_write, shared_written
from bench.executor.engine.tensors import global_place
from bench.executor.layout import (
    AGENT_CLOCKS,
    AGENTS,
    B_AGENT,
    B_BYTES,
    B_NOW,
    B_NOW_PROXY,
    B_PENDING,
    CHECK,
    CLOCKS,
    CODE,
    COUNT,
    COUNTERS,
    COUNTS,
    ERA,
    EXTRA,
    EXTRAS,
    IMM,
    LATE,
    LOAD,
    LOAD_COUNT,
    LOADS,
    M_ADDRESS,
    M_BOX,
    M_NAN,
    M_OFFSET,
    M_RANK,
    M_SHAPE,
    M_SIZE,
    M_STRIDES,
    M_SWIZZLE,
    MAP,
    MAPS,
    N_BYTES,
    N_IDEAL,
    N_LINES,
    N_MAPS,
    N_SECTORS,
    N_WAVES,
    PARAMETERS,
    PROXY_CLOCKS,
    ROW,
    S_CLOCK,
    S_GROUP,
    S_LANE,
    S_MAP,
    S_PROXY,
    S_ROW,
    S_SOURCE,
    S_X,
    SIZE,
    STORE,
    STORE_FIRST,
    STORE_GROUP,
    STORE_NEXT,
    STORE_QUEUE,
    STORES,
    T_BARRIER,
    T_MAP,
    T_ROW,
    T_TARGET,
    T_USED,
    T_WARP,
    T_X,
    WARP,
    WARP_STATES,
    A,
    B,
    D,
    Kind,
)
from bench.executor.native import copy, fill, i32, i64, routine, u32

TMA, CAPACITY, WRITE_RACE = int(Kind.TMA), int(Kind.CAPACITY), int(Kind.WRITE_RACE)
NO_MAP, BAD_RANK, BAD_TARGET = range(3)


@routine("int64(S,int64)")
def find_map(state, address):
    """The address of the entry for the descriptor at a parameter's address, or 0 where there is none."""
    for k in range(state[N_MAPS]):
        entry = state[MAPS] + k * MAP * 8
        if state[PARAMETERS] + i64(entry)[M_OFFSET] == address:
            return entry
    return 0


@routine("int64(S,int64)")
def box_bytes(state, box):
    tensor = i64(box)
    size = tensor[M_SIZE]
    for axis in range(tensor[M_RANK]):
        size *= tensor[M_BOX + axis]
    return size


@routine("int64(int64,int64)")
def swizzled(address, mode):
    """The address of swizzled bytes: address bits 4 to 4 + mode - 1 are XORed with bits 7 and up. mode: 0, 1, 2, 3 for 0, 32,
    64, 128."""
    return address ^ (((address >> 7) & ((1 << mode) - 1)) << 4)


@routine("int64(S,int64,int64,int64)")
def row_offset(state, box, coordinates, number):
    """The start of row `number` of a box, in bytes from the tensor's first element, or -1 where it is outside the tensor."""
    tensor, at = i64(box), i64(coordinates)
    offset, inside, rest = 0, True, number
    for axis in range(1, tensor[M_RANK]):
        x = at[axis] + rest % tensor[M_BOX + axis]
        rest //= tensor[M_BOX + axis]
        if x < 0 or x >= tensor[M_SHAPE + axis]:
            inside = False
        offset += x * tensor[M_STRIDES + axis]
    return offset if inside else -1


@routine("int64(S,int64,int64,int64)")
def count_box(state, n, box, coordinates):
    """Counts the sectors, lines, wavefronts and bytes of a box."""
    tensor, at = i64(box), i64(coordinates)
    counts = i64(state[COUNTERS] + n * COUNTS * 8)
    size = box_bytes(state, box)
    counts[N_BYTES] += size
    counts[N_WAVES] += size // 128
    counts[N_IDEAL] += size // 128
    low = max(at[0], 0)
    high = min(at[0] + tensor[M_BOX], tensor[M_SHAPE])
    rows = size // (tensor[M_SIZE] * tensor[M_BOX])
    if high > low:
        for number in range(rows):
            offset = row_offset(state, box, coordinates, number)
            if offset >= 0:
                first = (tensor[M_ADDRESS] + offset + low * tensor[M_SIZE]) >> 5
                last = (tensor[M_ADDRESS] + offset + high * tensor[M_SIZE] - 1) >> 5
                counts[N_SECTORS] += last - first + 1
                counts[N_LINES] += (last >> 2) - (first >> 2) + 1
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def tma_load(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        target = u32(registers + row[D])[lane] + row[IMM]
        box = find_map(state, i64(registers + row[A])[lane])
        if box == 0:
            fault(state, TMA, n, warp, lane, i64(registers + row[A])[lane], -1, NO_MAP)
            continue
        if i64(box)[M_RANK] != row[COUNT]:
            fault(state, TMA, n, warp, lane, i64(box)[M_RANK], -1, BAD_RANK)
            continue
        size = box_bytes(state, box)
        if target & 127:
            fault(state, TMA, n, warp, lane, target, -1, BAD_TARGET)
            continue
        if shared_place(state, target, size, 1, n, warp, lane) == 0:
            continue
        slot = 0
        while slot < LOAD_COUNT and i64(state[LOADS] + slot * LOAD * 8)[T_USED]:
            slot += 1
        if slot == LOAD_COUNT:
            fatal(state, CAPACITY, n, warp, target, LOAD_COUNT)
            return 2
        load = i64(state[LOADS] + slot * LOAD * 8)
        load[T_USED], load[T_MAP], load[T_TARGET], load[T_ROW], load[T_WARP] = 1, box, target, n, warp
        load[T_BARRIER] = u32(registers + row[B])[lane] + row[SIZE]
        for axis in range(row[COUNT]):
            load[T_X + axis] = i32(registers + i64(state[EXTRAS] + row[EXTRA] * 8)[axis])[lane]
        count_box(state, n, box, state[LOADS] + (slot * LOAD + T_X) * 8)
        if state[CHECK]:
            if shared_write(state, target, size, n, warp, lane) != 0:
                fault(state, WRITE_RACE, n, warp, lane, target, -1, 0)
            shared_flight(state, target, size, n)
    return 0


@routine("int64(S,int64)")
def pending_loads(state, barrier):
    """Bytes that are on their way to an mbarrier."""
    size = 0
    for slot in range(LOAD_COUNT):
        load = i64(state[LOADS] + slot * LOAD * 8)
        if load[T_USED] and load[T_BARRIER] == barrier:
            size += box_bytes(state, load[T_MAP])
    return size


@routine("int64(S,int64)")
def land_box(state, slot):
    """The bytes of a load arrive."""
    load = i64(state[LOADS] + slot * LOAD * 8)
    tensor = i64(load[T_MAP])
    coordinates = state[LOADS] + (slot * LOAD + T_X) * 8
    element, width, swizzle = tensor[M_SIZE], tensor[M_BOX], tensor[M_SWIZZLE]
    rows = box_bytes(state, load[T_MAP]) // (element * width)
    outside = 255 if tensor[M_NAN] else 0
    n, warp = load[T_ROW], load[T_WARP]
    step = max(16 // element, 1)
    for number in range(rows):
        offset = row_offset(state, load[T_MAP], coordinates, number)
        start = load[T_TARGET] + number * width * element
        first = 0
        while first < width:
            x = load[T_X] + first
            whole = offset >= 0 and x >= 0 and x + step <= tensor[M_SHAPE] and first + step <= width
            whole = whole and ((start + first * element) & 15) == 0
            count = step if whole else 1
            place = shared_place(state, swizzled(start + first * element, swizzle), count * element, 1, n, warp, 0)
            if place != 0:
                if whole or (offset >= 0 and x >= 0 and x < tensor[M_SHAPE]):
                    source = global_place(state, tensor[M_ADDRESS] + offset + x * element, count * element, 1, 0, n, warp, 0)
                    if source != 0:
                        copy(place, source, count * element)
                    else:
                        fill(place, 255, count * element)
                else:
                    fill(place, outside, element)
            first += count
    load[T_USED] = 0
    return 0


@routine("int64(S,int64,int64)")
def land_loads(state, address, entry):
    """Lands all loads of an mbarrier. At the next barrier their bytes are in order for everyone only if that ends the phase."""
    barrier = i64(entry)
    arriving = pending_loads(state, address)
    if arriving == 0:
        return 0
    stamp = LATE
    if barrier[B_PENDING] == 0 and barrier[B_BYTES] == arriving:
        stamp = state[ERA]
    agent = barrier[B_AGENT]
    i64(state[AGENT_CLOCKS])[agent] += 1
    clock = i64(state[AGENT_CLOCKS])[agent]
    for slot in range(LOAD_COUNT):
        load = i64(state[LOADS] + slot * LOAD * 8)
        if load[T_USED] and load[T_BARRIER] == address:
            size = box_bytes(state, load[T_MAP])
            land_box(state, slot)
            if state[CHECK]:
                shared_written(state, load[T_TARGET], size, agent, clock, stamp)
    barrier[B_BYTES] -= arriving
    barrier[B_NOW + agent] = clock
    barrier[B_NOW_PROXY + agent] = clock
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def tma_store(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        source = u32(registers + row[D])[lane] + row[IMM]
        box = find_map(state, i64(registers + row[A])[lane])
        if box == 0:
            fault(state, TMA, n, warp, lane, i64(registers + row[A])[lane], -1, NO_MAP)
            continue
        if i64(box)[M_RANK] != row[COUNT]:
            fault(state, TMA, n, warp, lane, i64(box)[M_RANK], -1, BAD_RANK)
            continue
        if source & 127:
            fault(state, TMA, n, warp, lane, source, -1, BAD_TARGET)
            continue
        if shared_place(state, source, box_bytes(state, box), 1, n, warp, lane) == 0:
            continue
        if me[STORE_NEXT] - me[STORE_FIRST] >= STORE_QUEUE:
            fatal(state, CAPACITY, n, warp, source, STORE_QUEUE)
            return 2
        at = state[STORES] + (warp * STORE_QUEUE + me[STORE_NEXT] % STORE_QUEUE) * STORE * 8
        me[STORE_NEXT] += 1
        entry = i64(at)
        entry[S_ROW], entry[S_GROUP], entry[S_MAP], entry[S_SOURCE], entry[S_LANE] = n, me[STORE_GROUP], box, source, lane
        for axis in range(row[COUNT]):
            entry[S_X + axis] = i32(registers + i64(state[EXTRAS] + row[EXTRA] * 8)[axis])[lane]
        copy(at + 8 * S_CLOCK, state[CLOCKS] + warp * AGENTS * 8, 8 * AGENTS)
        copy(at + 8 * S_PROXY, state[PROXY_CLOCKS] + warp * AGENTS * 8, 8 * AGENTS)
        i64(state[CLOCKS] + warp * AGENTS * 8)[warp] += 1
        count_box(state, n, box, at + 8 * S_X)
    return 0


@routine("int64(S,int64,int64)")
def leave_box(state, at, warp):
    """Copies the bytes of a store out of shared memory."""
    entry = i64(at)
    tensor = i64(entry[S_MAP])
    n, lane = entry[S_ROW], entry[S_LANE]
    element, width, swizzle = tensor[M_SIZE], tensor[M_BOX], tensor[M_SWIZZLE]
    size = box_bytes(state, entry[S_MAP])
    if state[CHECK]:
        proxy_read(state, entry[S_SOURCE], size, n, warp, at + 8 * S_CLOCK, at + 8 * S_PROXY)
    for number in range(size // (element * width)):
        offset = row_offset(state, entry[S_MAP], at + 8 * S_X, number)
        if offset >= 0:
            for first in range(width):
                x = entry[S_X] + first
                if x >= 0 and x < tensor[M_SHAPE]:
                    source = swizzled(entry[S_SOURCE] + (number * width + first) * element, swizzle)
                    place = shared_place(state, source, element, 1, n, warp, lane)
                    target = global_place(state, tensor[M_ADDRESS] + offset + x * element, element, 1, 1, n, warp, lane)
                    if place != 0 and target != 0:
                        copy(target, place, element)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def tma_commit(state, n, warp, mask, registers, predicates):
    i64(state[WARP_STATES] + warp * WARP * 8)[STORE_GROUP] += 1
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def tma_wait(state, n, warp, mask, registers, predicates):
    """cp.async.bulk.wait_group: waits until all groups except the last few have read shared memory and written the tensor."""
    row = i64(state[CODE] + n * ROW * 8)
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    while me[STORE_FIRST] < me[STORE_NEXT]:
        at = state[STORES] + (warp * STORE_QUEUE + me[STORE_FIRST] % STORE_QUEUE) * STORE * 8
        if i64(at)[S_GROUP] >= me[STORE_GROUP] - row[IMM]:
            break
        me[STORE_FIRST] += 1
        leave_box(state, at, warp)
    return 0
