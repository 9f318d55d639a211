"""Global memory: which tensor an address lies in, and whether two programs meet on a byte."""

from bench.executor.engine.faults import fault
from bench.executor.layout import (
    CHECK,
    GLOBAL_SHIFT,
    HINT,
    N_REGIONS,
    PROGRAM,
    R_BASE,
    R_HOST,
    R_OWN,
    R_OWNER,
    R_READABLE,
    R_READER,
    R_SIZE,
    R_WRITABLE,
    REGION,
    REGIONS,
    Kind,
)
from bench.executor.native import i64, inline, routine, u8, u32

OUT_OF_BOUNDS, MISALIGNED, READ_ONLY = int(Kind.OUT_OF_BOUNDS), int(Kind.MISALIGNED), int(Kind.READ_ONLY)
PROGRAM_RACE, HOLE = int(Kind.PROGRAM_RACE), int(Kind.HOLE)
MANY = 0x7FFFFFFF


@routine("int64(S,int64,int64)")
def find_region(state, address, size):
    """The number of the region that holds the bytes, or -1 where none does."""
    hint = state[HINT]
    for k in range(-1, state[N_REGIONS]):
        number = hint if k < 0 else k
        if number < state[N_REGIONS]:
            region = i64(state[REGIONS] + number * REGION * 8)
            offset = address - region[R_BASE]
            if offset >= 0 and offset + size <= region[R_SIZE]:
                state[HINT] = number
                return number
    return -1


@routine("int64(S,int64,int64,int64,int64,int64,int64,int64)")
def global_place(state, address, size, align, write, row, warp, lane):
    """The host address of global bytes, 0 where the access is not allowed. `align`: what the address is a multiple of."""
    number = find_region(state, address, size)
    if number < 0:
        fault(state, OUT_OF_BOUNDS, row, warp, lane, address, write, size)
        return 0
    if address & (align - 1):
        fault(state, MISALIGNED, row, warp, lane, address, -1, align)
        return 0
    region = i64(state[REGIONS] + number * REGION * 8)
    offset = address - region[R_BASE]
    for which in range(1 + write):
        allowed = region[R_OWN] if which == 1 else region[R_READABLE]
        if allowed:
            inside = u8(allowed + offset)
            for k in range(size):
                if inside[k] == 0:
                    fault(state, HOLE, row, warp, lane, address + k, number, write)
                    return 0
    if write and not region[R_WRITABLE]:
        fault(state, READ_ONLY, row, warp, lane, address, number, size)
        return 0
    if state[CHECK]:
        shift, me = state[GLOBAL_SHIFT], state[PROGRAM] + 1
        first = offset >> shift
        count = ((offset + size - 1) >> shift) - first + 1
        owner, reader = u32(region[R_OWNER] + 4 * first), u32(region[R_READER] + 4 * first)
        for k in range(count):
            if owner[k] != 0 and owner[k] != me:
                fault(state, PROGRAM_RACE, row, warp, lane, address + (k << shift), owner[k] - 1, 1)
            if write:
                if reader[k] != 0 and reader[k] != me:
                    fault(state, PROGRAM_RACE, row, warp, lane, address + (k << shift), reader[k] - 1, 0)
                owner[k] = me
            elif reader[k] == 0:
                reader[k] = me
            elif reader[k] != me:
                reader[k] = MANY
    return region[R_HOST] + offset


@inline
def span_of(state, mask, addresses, size):
    """(lowest address, end, all addresses ORed) of a request of lanes. `addresses` points to 32 int64."""
    address = i64(addresses)
    low, high, together = 1 << 62, 0, 0
    for lane in range(32):
        if (mask >> lane) & 1:
            low = min(low, address[lane])
            high = max(high, address[lane])
            together |= address[lane]
    return low, high + size, together


@routine("int64(S,int64,int64,int64,int64)")
def whole_request(state, mask, addresses, size, write):
    """The address of the entry of the region that holds a whole request of lanes and that all of them may use; 0 for none."""
    low, end, together = span_of(state, mask, addresses, size)
    if together & (size - 1) or end - low > 1 << 40:
        return 0
    number = find_region(state, low, end - low)
    if number < 0:
        return 0
    entry = state[REGIONS] + number * REGION * 8
    region = i64(entry)
    if region[R_READABLE] or (write and (region[R_OWN] or not region[R_WRITABLE])):
        return 0
    return entry


@inline
def mark_read(state, entry, address, size):
    """Records a program's read of bytes. Returns whether another program wrote one of them."""
    region = i64(entry)
    shift, me = state[GLOBAL_SHIFT], state[PROGRAM] + 1
    offset = address - region[R_BASE]
    first = offset >> shift
    owner, reader = u32(region[R_OWNER] + 4 * first), u32(region[R_READER] + 4 * first)
    clash = False
    for k in range(((offset + size - 1) >> shift) - first + 1):
        clash |= (owner[k] != 0) & (owner[k] != me)
        reader[k] = me if reader[k] == 0 or reader[k] == me else MANY
    return clash


@inline
def mark_write(state, entry, address, size):
    """Records a program's write of bytes. Returns whether another program wrote or read one of them; such a write is not
    recorded."""
    region = i64(entry)
    shift, me = state[GLOBAL_SHIFT], state[PROGRAM] + 1
    offset = address - region[R_BASE]
    first = offset >> shift
    owner, reader = u32(region[R_OWNER] + 4 * first), u32(region[R_READER] + 4 * first)
    count = ((offset + size - 1) >> shift) - first + 1
    clash = False
    for k in range(count):
        clash |= ((owner[k] != 0) & (owner[k] != me)) | ((reader[k] != 0) & (reader[k] != me))
    if not clash:
        for k in range(count):
            owner[k] = me
    return clash
