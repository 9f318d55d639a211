"""ld and st of global and shared memory. Lanes take turns, and each accesses a vector of up to 4 elements."""

from bench.executor.engine.counts import count_global, count_shared
from bench.executor.engine.shared import (
    settled_read,
    shared_place,
    shared_read,
    shared_write,
    shared_written,
    whole_shared,
    write_race,
)
from bench.executor.engine.tensors import global_place, mark_read, mark_write, whole_request
from bench.executor.layout import (
    AGENTS,
    CHECK,
    CLOCKS,
    CODE,
    COUNT,
    ERA,
    FLAG,
    IMM,
    MEMORY,
    R_BASE,
    R_HOST,
    ROW,
    SCRATCH,
    SHARED_BASE,
    SIZE,
    D,
    E,
)
from bench.executor.native import copy, i32, i64, inline, routine, u8, u16, u32

#: Scratch: the addresses of lanes, the bytes of one access.
ADDRESSES, BYTES = 32768, 33280


@routine("int64(int64,int64,int64,int64,int64)")
def put_element(registers, slot, lane, at, kind):
    """Writes bytes at an address to a lane's register. `kind`: size, or its negative for a sign, + 16 where 32 bits are
    filled."""
    if kind == 4:
        u32(registers + slot)[lane] = u32(at)[0]
    elif kind == 8:
        i64(registers + slot)[lane] = i64(at)[0]
    elif kind == 2:
        u32(registers + slot)[lane] = u16(at)[0]
    elif kind == 1:
        u32(registers + slot)[lane] = u8(at)[0]
    else:
        value = i64(at)[0] & 255
        wide = 8
        if kind == -2 or kind == -18:
            value = i64(at)[0] & 65535
            wide = 16
        value = (value ^ (1 << (wide - 1))) - (1 << (wide - 1))
        if kind < -16:
            i32(registers + slot)[lane] = value
        else:
            u32(registers + slot)[lane] = value & 65535
    return 0


@inline
def take(registers, where, lane, at):
    """Writes the elements of an access, at host address `at`, to a lane's registers. The row at `where` describes the
    access."""
    row = i64(where)
    kind, count = row[FLAG], row[COUNT]
    if kind == 4:
        for k in range(count):
            u32(registers + row[D + k])[lane] = u32(at + 4 * k)[0]
    elif kind == 8:
        for k in range(count):
            i64(registers + row[D + k])[lane] = i64(at + 8 * k)[0]
    elif kind == 2:
        for k in range(count):
            u32(registers + row[D + k])[lane] = u16(at + 2 * k)[0]
    else:
        for k in range(count):
            u32(registers + row[D + k])[lane] = u8(at + k)[0]


@routine("int64(S,int64,int64,int64,int64,int64)")
def load_global(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    count, element, kind = row[COUNT], row[SIZE], row[FLAG]
    size = count * element
    source, address = i64(registers + row[E]), i64(state[SCRATCH] + ADDRESSES)
    for lane in range(32):
        address[lane] = source[lane] + row[IMM]
    count_global(state, n, mask, state[SCRATCH] + ADDRESSES, 0, size)
    entry = whole_request(state, mask, state[SCRATCH] + ADDRESSES, size, 0)
    if entry != 0 and kind > 0:
        to_host = i64(entry)[R_HOST] - i64(entry)[R_BASE]
        for lane in range(32):
            if (mask >> lane) & 1:
                if state[CHECK] and mark_read(state, entry, address[lane], size):
                    global_place(state, address[lane], size, size, 0, n, warp, lane)
                take(registers, state[CODE] + n * ROW * 8, lane, address[lane] + to_host)
        return 0
    ones = i64(state[SCRATCH] + BYTES)
    ones[0] = -1
    ones[1] = -1
    for lane in range(32):
        if (mask >> lane) & 1:
            place = global_place(state, address[lane], size, size, 0, n, warp, lane)
            for k in range(count):
                at = state[SCRATCH] + BYTES
                if place != 0:
                    at = place + k * element
                if kind < 0:  # a narrow element: eight bytes are read of the scratch, not of the tensor
                    if place != 0:
                        copy(state[SCRATCH] + BYTES, at, element)
                    at = state[SCRATCH] + BYTES
                put_element(registers, row[D + k], lane, at, kind)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def store_global(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    count, element = row[COUNT], row[SIZE]
    size = count * element
    target, address = i64(registers + row[E]), i64(state[SCRATCH] + ADDRESSES)
    for lane in range(32):
        address[lane] = target[lane] + row[IMM]
    count_global(state, n, mask, state[SCRATCH] + ADDRESSES, 0, size)
    stride = max(element, 4)
    entry = whole_request(state, mask, state[SCRATCH] + ADDRESSES, size, 1)
    for lane in range(32):
        if (mask >> lane) & 1:
            if entry != 0 and not (state[CHECK] and mark_write(state, entry, address[lane], size)):
                place = address[lane] + i64(entry)[R_HOST] - i64(entry)[R_BASE]
            else:
                place = global_place(state, address[lane], size, size, 1, n, warp, lane)
            if place != 0:
                for k in range(count):
                    copy(place + k * element, registers + row[D + k] + lane * stride, element)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def load_shared(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    count, element, kind = row[COUNT], row[SIZE], row[FLAG]
    size = count * element
    source, address = u32(registers + row[E]), i64(state[SCRATCH] + ADDRESSES)
    for lane in range(32):
        address[lane] = source[lane] + row[IMM]
    count_shared(state, n, mask, state[SCRATCH] + ADDRESSES, size)
    if kind > 0 and whole_shared(state, mask, state[SCRATCH] + ADDRESSES, size):
        to_host = state[MEMORY] - SHARED_BASE
        for lane in range(32):
            if (mask >> lane) & 1:
                if state[CHECK] and not settled_read(state, address[lane], size, warp):
                    shared_read(state, address[lane], size, n, warp, lane)
                take(registers, state[CODE] + n * ROW * 8, lane, address[lane] + to_host)
        return 0
    ones = i64(state[SCRATCH] + BYTES)
    for lane in range(32):
        if (mask >> lane) & 1:
            place = shared_place(state, address[lane], size, size, n, warp, lane)
            if place != 0 and state[CHECK]:
                shared_read(state, address[lane], size, n, warp, lane)
            for k in range(count):
                at = place + k * element
                if place == 0 or kind < 0:
                    ones[0] = -1
                    if place != 0:
                        copy(state[SCRATCH] + BYTES, at, element)
                    at = state[SCRATCH] + BYTES
                put_element(registers, row[D + k], lane, at, kind)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64,int64)")
def write_shared(state, address, source, size, n, warp, lane):
    """Checks and records a warp's generic write of the bytes at `source`."""
    place = shared_place(state, address, size, size, n, warp, lane)
    if place == 0:
        return 0
    if state[CHECK]:
        if shared_write(state, address, size, n, warp, lane) != 0:
            write_race(state, place, source, size, address, n, warp, lane)
        shared_written(state, address, size, warp, i64(state[CLOCKS] + warp * AGENTS * 8)[warp], state[ERA])
    copy(place, source, size)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def store_shared(state, n, warp, mask, registers, predicates):
    row = i64(state[CODE] + n * ROW * 8)
    count, element = row[COUNT], row[SIZE]
    size = count * element
    target, address = u32(registers + row[E]), i64(state[SCRATCH] + ADDRESSES)
    for lane in range(32):
        address[lane] = target[lane] + row[IMM]
    count_shared(state, n, mask, state[SCRATCH] + ADDRESSES, size)
    stride = max(element, 4)
    for lane in range(32):
        if (mask >> lane) & 1:
            for k in range(count):
                copy(state[SCRATCH] + BYTES + k * element, registers + row[D + k] + lane * stride, element)
            write_shared(state, address[lane], state[SCRATCH] + BYTES, size, n, warp, lane)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def load_matrix(state, n, warp, mask, registers, predicates):
    """ldmatrix: 8 x 8 elements of 16 bits, each row's address from one lane, to registers by fragments."""
    row = i64(state[CODE] + n * ROW * 8)
    source, address = u32(registers + row[E]), i64(state[SCRATCH] + ADDRESSES)
    matrices = u16(state[SCRATCH] + BYTES)
    for lane in range(32):
        address[lane] = source[lane] + row[IMM]
    for matrix in range(row[COUNT]):
        count_shared(state, n, 0xFF << (8 * matrix), state[SCRATCH] + ADDRESSES, 16)
        for k in range(8):
            lane = 8 * matrix + k
            place = shared_place(state, address[lane], 16, 16, n, warp, lane)
            words = i64(state[SCRATCH] + BYTES + lane * 16)
            words[0] = -1
            words[1] = -1
            if place != 0:
                if state[CHECK] and not settled_read(state, address[lane], 16, warp):
                    shared_read(state, address[lane], 16, n, warp, lane)
                copy(state[SCRATCH] + BYTES + lane * 16, place, 16)
    for matrix in range(row[COUNT]):
        target = u32(registers + row[D + matrix])
        for lane in range(32):
            first, second = lane >> 2, 2 * (lane & 3)
            if row[FLAG]:
                low, high = matrices[matrix * 64 + second * 8 + first], matrices[matrix * 64 + (second + 1) * 8 + first]
            else:
                low, high = matrices[matrix * 64 + first * 8 + second], matrices[matrix * 64 + first * 8 + second + 1]
            target[lane] = low | (high << 16)
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def store_matrix(state, n, warp, mask, registers, predicates):
    """stmatrix: writes what ldmatrix reads, in the same layout."""
    row = i64(state[CODE] + n * ROW * 8)
    target, address = u32(registers + row[E]), i64(state[SCRATCH] + ADDRESSES)
    matrix_bytes = state[SCRATCH] + BYTES
    elements = u16(matrix_bytes)
    for lane in range(32):
        address[lane] = target[lane] + row[IMM]
    for matrix in range(row[COUNT]):
        count_shared(state, n, 0xFF << (8 * matrix), state[SCRATCH] + ADDRESSES, 16)
        value = u32(registers + row[D + matrix])
        for lane in range(32):
            first, second = lane >> 2, 2 * (lane & 3)
            for half in range(2):
                bits = (value[lane] >> (16 * half)) & 65535
                if row[FLAG]:
                    elements[(second + half) * 8 + first] = bits
                else:
                    elements[first * 8 + second + half] = bits
        for k in range(8):
            lane = 8 * matrix + k
            write_shared(state, address[lane], matrix_bytes + 16 * k, 16, n, warp, lane)
    return 0
