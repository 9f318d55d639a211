"""wgmma: products of a warpgroup that are issued, committed and waited for.

Each warp computes its 16 of the 64 rows at the wait, from shared memory as it then is; an operand that was written after
the issue is a fault. Until then the accumulators' registers hold "not a number".
"""

from bench.executor.engine.faults import fatal, fault
from bench.executor.engine.shared import proxy_read, shared_place
from bench.executor.engine.tma import swizzled
from bench.executor.layout import (
    ACC_ROW,
    ACC_SLOT,
    ACC_USERS,
    ACCUMULATOR,
    ACCUMULATOR_BYTES,
    ACCUMULATOR_COUNT,
    ACCUMULATOR_VALUES,
    ACCUMULATORS,
    AGENTS,
    CHECK,
    CLOCKS,
    CODE,
    COUNT,
    EXTRA,
    EXTRAS,
    FLAG,
    HALVES,
    IMM,
    P_A,
    P_ACCUMULATOR,
    P_B,
    P_CLOCK,
    P_GROUP,
    P_PROXY,
    P_REGISTERS,
    P_ROW,
    P_SCALE,
    PRODUCT,
    PRODUCT_FIRST,
    PRODUCT_GROUP,
    PRODUCT_NEXT,
    PRODUCT_QUEUE,
    PRODUCTS,
    PROXY_CLOCKS,
    REGISTER_BYTES,
    REGISTERS,
    ROW,
    SCRATCH,
    WARP,
    WARP_STATES,
    A,
    B,
    C,
    Kind,
)
from bench.executor.native import copy, f32, i64, routine, u8, u16, u32

MISUSE, CAPACITY = int(Kind.WGMMA), int(Kind.CAPACITY)
PARTIAL, OVERLAP, MANY = range(3)
LEFT, RIGHT, SUM, RAW = 65536, 65536 + 4096, 65536 + 4096 + 32768, 65536 - 64
LEFT_MAJOR, RIGHT_MAJOR, FROM_REGISTERS = 4, 8, 16  # of a row's flag, above the type: an operand lies along M or N


@routine("int64(int64,int64,int64,int64,int64)")
def operand_address(descriptor, line, k, along, element):
    """The shared address of an element of an operand: `line` of M or N, `k`; `along`: M or N lie in memory order, not K."""
    start, leading, stride = (descriptor & 0x3FFF) << 4, ((descriptor >> 16) & 0x3FFF) << 4, ((descriptor >> 32) & 0x3FFF) << 4
    mode = (descriptor >> 62) & 3
    if mode == 0:
        if along:
            at = (line * element >> 4) * stride + (k >> 3) * leading + (k & 7) * 16 + ((line * element) & 15)
        else:
            at = (line >> 3) * stride + (line & 7) * 16 + (k * element >> 4) * leading + ((k * element) & 15)
        return start + at
    width = 256 >> mode
    if along:
        at = (line * element // width) * leading + line * element % width + (k >> 3) * stride + (k & 7) * width
    else:
        at = (line >> 3) * stride + (line & 7) * width + k * element
    return swizzled(start + at, 4 - mode)


@routine("int64(S,int64,int64,int64,int64,int64,int64,int64,int64)")
def read_operand(state, at, left, first, lines, columns, into, warp, n):
    """Writes an operand's lines as float32 to `into`: [lines, depth] of the left one, [depth, columns] of the right one."""
    row, entry = i64(state[CODE] + n * ROW * 8), i64(at)
    kind = row[FLAG] & 3
    descriptor = entry[P_A] if left else entry[P_B]
    along = row[FLAG] & (LEFT_MAJOR if left else RIGHT_MAJOR)
    element = 4 if kind == 2 else 2
    depth, per = 32 // element, 16 // element
    raw, raw_half, raw_word = u8(state[SCRATCH] + RAW), u16(state[SCRATCH] + RAW), u32(state[SCRATCH] + RAW)
    out, out_word, halves = f32(into), u32(into), f32(state[HALVES])
    line_step, k_step = (per, 1) if along else (1, per)
    for line in range(0, lines, line_step):
        for k in range(0, depth, k_step):
            address = operand_address(descriptor, first + line, k, along, element)
            place = shared_place(state, address, 16, 16, n, warp, 0)
            if place != 0:
                copy(state[SCRATCH] + RAW, place, 16)
                if state[CHECK]:
                    proxy_read(state, address, 16, n, warp, at + 8 * P_CLOCK, at + 8 * P_PROXY)
            else:
                for b in range(16):
                    raw[b] = 255
            for i in range(per):
                this_line, this_k = (line + i, k) if along else (line, k + i)
                target = this_line * depth + this_k if left else this_k * columns + this_line
                if kind == 2:
                    out_word[target] = raw_word[i] & 0xFFFFE000
                elif kind == 1:
                    out_word[target] = raw_half[i] << 16
                else:
                    out[target] = halves[raw_half[i]]
    return 0


@routine("int64(S,int64,int64)")
def left_from_registers(state, at, n):
    """Writes the left operand from registers, which hold fragments of 16 rows."""
    kind = i64(state[CODE] + n * ROW * 8)[FLAG] & 3
    left, left_word, halves = f32(state[SCRATCH] + LEFT), u32(state[SCRATCH] + LEFT), f32(state[HALVES])
    depth, step = (8, 4) if kind == 2 else (16, 8)
    for i in range(4):
        value = u32(at + 8 * P_REGISTERS + 128 * i)
        for lane in range(32):
            to = ((lane >> 2) + (i & 1) * 8) * depth + (i >> 1) * step
            if kind == 2:
                left_word[to + (lane & 3)] = value[lane] & 0xFFFFE000
            elif kind == 1:
                left_word[to + 2 * (lane & 3)] = value[lane] << 16
                left_word[to + 2 * (lane & 3) + 1] = value[lane] & 0xFFFF0000
            else:
                left[to + 2 * (lane & 3)] = halves[value[lane] & 65535]
                left[to + 2 * (lane & 3) + 1] = halves[value[lane] >> 16]
    return 0


@routine("int64(S,int64,int64)")
def multiply(state, at, warp):
    """Computes a product and adds it to its accumulators' values."""
    entry = i64(at)
    n = entry[P_ROW]
    row = i64(state[CODE] + n * ROW * 8)
    columns = row[COUNT]
    depth = 8 if row[FLAG] & 3 == 2 else 16
    if row[FLAG] & FROM_REGISTERS:
        left_from_registers(state, at, n)
    else:
        read_operand(state, at, 1, (warp & 3) * 16, 16, columns, state[SCRATCH] + LEFT, warp, n)
    read_operand(state, at, 0, 0, columns, columns, state[SCRATCH] + RIGHT, warp, n)
    left, right, total = f32(state[SCRATCH] + LEFT), f32(state[SCRATCH] + RIGHT), f32(state[SCRATCH] + SUM)
    values = f32(state[ACCUMULATOR_VALUES] + (warp * ACCUMULATOR_COUNT + entry[P_ACCUMULATOR]) * ACCUMULATOR_BYTES)
    for i in range(columns // 2):
        for lane in range(32):
            to = ((lane >> 2) + ((i >> 1) & 1) * 8) * columns + 8 * (i >> 2) + 2 * (lane & 3) + (i & 1)
            total[to] = values[i * 32 + lane] if entry[P_SCALE] else 0.0
    for m in range(16):
        for k in range(depth):
            factor = left[m * depth + k]
            for column in range(columns):
                total[m * columns + column] += factor * right[k * columns + column]
    for i in range(columns // 2):
        for lane in range(32):
            at_sum = ((lane >> 2) + ((i >> 1) & 1) * 8) * columns + 8 * (i >> 2) + 2 * (lane & 3) + (i & 1)
            values[i * 32 + lane] = total[at_sum]
    return 0


@routine("int64(S,int64,int64,int64)")
def accumulator_of(state, n, warp, registers):
    """The set of accumulators to which a product adds. A new set takes the values of its registers, which then hold NaN."""
    row = i64(state[CODE] + n * ROW * 8)
    slots, count = i64(state[EXTRAS] + row[EXTRA] * 8), row[COUNT] // 2
    free = -1
    for k in range(ACCUMULATOR_COUNT):
        known = i64(state[ACCUMULATORS] + (warp * ACCUMULATOR_COUNT + k) * ACCUMULATOR * 8)
        if known[ACC_USERS] == 0:
            free = k
            continue
        other = i64(state[CODE] + known[ACC_ROW] * ROW * 8)
        theirs = i64(state[EXTRAS] + other[EXTRA] * 8)
        same = other[COUNT] == row[COUNT]
        shared = 0
        for i in range(count):
            for j in range(other[COUNT] // 2):
                if slots[i] == theirs[j]:
                    shared += 1
                    same = same and i == j
        if shared == count and same:
            return k
        if shared > 0:
            fault(state, MISUSE, n, warp, 0, 0, -1, OVERLAP)
    if free < 0:
        return -1
    new = i64(state[ACCUMULATORS] + (warp * ACCUMULATOR_COUNT + free) * ACCUMULATOR * 8)
    new[ACC_SLOT], new[ACC_ROW] = slots[0], n
    values = state[ACCUMULATOR_VALUES] + (warp * ACCUMULATOR_COUNT + free) * ACCUMULATOR_BYTES
    for i in range(count):
        copy(values + 128 * i, registers + slots[i], 128)
        held = u32(registers + slots[i])
        for lane in range(32):
            held[lane] = 0x7FC0DEAD
    return free


@routine("int64(S,int64,int64,int64,int64,int64)")
def wgmma(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    if mask != 0xFFFFFFFF:
        fault(state, MISUSE, n, warp, 0, mask, -1, PARTIAL)
    if me[PRODUCT_NEXT] - me[PRODUCT_FIRST] >= PRODUCT_QUEUE:
        fatal(state, CAPACITY, n, warp, 0, PRODUCT_QUEUE)
        return 2
    which = accumulator_of(state, n, warp, registers)
    if which < 0:
        fatal(state, MISUSE, n, warp, 0, MANY)
        return 2
    at = state[PRODUCTS] + (warp * PRODUCT_QUEUE + me[PRODUCT_NEXT] % PRODUCT_QUEUE) * PRODUCT * 8
    me[PRODUCT_NEXT] += 1
    entry = i64(at)
    entry[P_ROW], entry[P_GROUP], entry[P_ACCUMULATOR] = n, me[PRODUCT_GROUP], which
    i64(state[ACCUMULATORS] + (warp * ACCUMULATOR_COUNT + which) * ACCUMULATOR * 8)[ACC_USERS] += 1
    entry[P_SCALE] = u32(predicates + row[C])[0] & 1
    entry[P_B] = i64(registers + row[B])[0]
    if row[FLAG] & FROM_REGISTERS:
        slots = i64(state[EXTRAS] + row[EXTRA] * 8)
        for i in range(4):
            copy(at + 8 * P_REGISTERS + 128 * i, registers + slots[row[COUNT] // 2 + i], 128)
    else:
        entry[P_A] = i64(registers + row[A])[0]
    copy(at + 8 * P_CLOCK, state[CLOCKS] + warp * AGENTS * 8, 8 * AGENTS)
    copy(at + 8 * P_PROXY, state[PROXY_CLOCKS] + warp * AGENTS * 8, 8 * AGENTS)
    i64(state[CLOCKS] + warp * AGENTS * 8)[warp] += 1
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def wgmma_commit(state, n, warp, mask, registers, predicates):
    i64(state[WARP_STATES] + warp * WARP * 8)[PRODUCT_GROUP] += 1
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def wgmma_wait(state, n, warp, mask, registers, predicates):
    """Computes all groups except the last few. Accumulators that no other product adds to return to their registers."""
    row = i64(state[CODE] + n * ROW * 8)
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    while me[PRODUCT_FIRST] < me[PRODUCT_NEXT]:
        at = state[PRODUCTS] + (warp * PRODUCT_QUEUE + me[PRODUCT_FIRST] % PRODUCT_QUEUE) * PRODUCT * 8
        entry = i64(at)
        if entry[P_GROUP] >= me[PRODUCT_GROUP] - row[IMM]:
            break
        me[PRODUCT_FIRST] += 1
        multiply(state, at, warp)
        which = warp * ACCUMULATOR_COUNT + entry[P_ACCUMULATOR]
        held = i64(state[ACCUMULATORS] + which * ACCUMULATOR * 8)
        held[ACC_USERS] -= 1
        if held[ACC_USERS] == 0:
            product = i64(state[CODE] + entry[P_ROW] * ROW * 8)
            slots = i64(state[EXTRAS] + product[EXTRA] * 8)
            mine = state[REGISTERS] + warp * state[REGISTER_BYTES]
            for i in range(product[COUNT] // 2):
                copy(mine + slots[i], state[ACCUMULATOR_VALUES] + which * ACCUMULATOR_BYTES + 128 * i, 128)
    return 0
