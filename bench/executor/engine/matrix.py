"""mma.sync: copies a warp's fragments to dense tiles, multiplies, and copies the result back. Half and tf32 products are added
in float32, in the order of k."""

from bench.executor.layout import CODE, COUNT, EXTRA, EXTRAS, FLAG, HALVES, ROW, SCRATCH, SIZE
from bench.executor.native import f32, f64, i64, routine, u32

#: Scratch: the tiles, far above what other routines use.
LEFT, RIGHT, SUM = 65536, 65536 + 4096, 65536 + 8192
HALF, BRAIN, TF32 = 0, 1, 2


@routine("int64(S,int64,int64,int64,int64,int64)")
def product(state, n, warp, mask, registers, predicates):
    """m16n8k16 and m16n8k8 of float16 and bfloat16, m16n8k8 and m16n8k4 of tf32. `flag`: the type, `count`: k."""
    row = i64(state[CODE] + n * ROW * 8)
    slots = i64(state[EXTRAS] + row[EXTRA] * 8)
    depth, kind = row[COUNT], row[FLAG]
    left, right, total = f32(state[SCRATCH] + LEFT), f32(state[SCRATCH] + RIGHT), f32(state[SCRATCH] + SUM)
    left_bits, right_bits = u32(state[SCRATCH] + LEFT), u32(state[SCRATCH] + RIGHT)
    halves = f32(state[HALVES])
    step = 4 if kind == TF32 else 8  # the columns that one register of each lane spans
    for i in range(2 * (depth // step)):
        value = u32(registers + slots[4 + i])
        for lane in range(32):
            at = ((lane >> 2) + (i & 1) * 8) * depth + (i >> 1) * step
            if kind == TF32:
                left_bits[at + (lane & 3)] = value[lane] & 0xFFFFE000
            elif kind == BRAIN:
                left_bits[at + 2 * (lane & 3)] = value[lane] << 16
                left_bits[at + 2 * (lane & 3) + 1] = value[lane] & 0xFFFF0000
            else:
                left[at + 2 * (lane & 3)] = halves[value[lane] & 65535]
                left[at + 2 * (lane & 3) + 1] = halves[value[lane] >> 16]
    for i in range(depth // step):
        value = u32(registers + slots[4 + 2 * (depth // step) + i])
        for lane in range(32):
            k, column = i * step, lane >> 2
            if kind == TF32:
                right_bits[(k + (lane & 3)) * 8 + column] = value[lane] & 0xFFFFE000
            elif kind == BRAIN:
                right_bits[(k + 2 * (lane & 3)) * 8 + column] = value[lane] << 16
                right_bits[(k + 2 * (lane & 3) + 1) * 8 + column] = value[lane] & 0xFFFF0000
            else:
                right[(k + 2 * (lane & 3)) * 8 + column] = halves[value[lane] & 65535]
                right[(k + 2 * (lane & 3) + 1) * 8 + column] = halves[value[lane] >> 16]
    for i in range(4):
        value = f32(registers + slots[4 + 3 * (depth // step) + i])
        for lane in range(32):
            total[((lane >> 2) + (i >> 1) * 8) * 8 + 2 * (lane & 3) + (i & 1)] = value[lane]
    for m in range(16):
        at = m * 8
        s0, s1, s2, s3 = total[at], total[at + 1], total[at + 2], total[at + 3]
        s4, s5, s6, s7 = total[at + 4], total[at + 5], total[at + 6], total[at + 7]
        for k in range(depth):
            factor, r = left[m * depth + k], k * 8
            s0, s1, s2, s3 = (
                s0 + factor * right[r],
                s1 + factor * right[r + 1],
                s2 + factor * right[r + 2],
                s3 + factor * right[r + 3],
            )
            s4, s5, s6, s7 = (
                s4 + factor * right[r + 4],
                s5 + factor * right[r + 5],
                s6 + factor * right[r + 6],
                s7 + factor * right[r + 7],
            )
        total[at], total[at + 1], total[at + 2], total[at + 3] = s0, s1, s2, s3
        total[at + 4], total[at + 5], total[at + 6], total[at + 7] = s4, s5, s6, s7
    for i in range(4):
        value = f32(registers + slots[i])
        for lane in range(32):
            value[lane] = total[((lane >> 2) + (i >> 1) * 8) * 8 + 2 * (lane & 3) + (i & 1)]
    return 0


@routine("int64(S,int64,int64,int64,int64,int64)")
def product_double(state, n, warp, mask, registers, predicates):
    """m8n8k4 and m16n8k4, k8, k16 of float64. `size`: m, `count`: k."""
    row = i64(state[CODE] + n * ROW * 8)
    slots = i64(state[EXTRAS] + row[EXTRA] * 8)
    height, depth = row[SIZE], row[COUNT]
    left, right, total = f64(state[SCRATCH] + LEFT), f64(state[SCRATCH] + RIGHT), f64(state[SCRATCH] + SUM)
    sums, blocks = height // 4, height // 8
    at = sums
    for i in range(blocks * depth // 4):
        value = f64(registers + slots[at + i])
        for lane in range(32):
            left[((lane >> 2) + (i % blocks) * 8) * depth + (i // blocks) * 4 + (lane & 3)] = value[lane]
    at += blocks * depth // 4
    for i in range(depth // 4):
        value = f64(registers + slots[at + i])
        for lane in range(32):
            right[(i * 4 + (lane & 3)) * 8 + (lane >> 2)] = value[lane]
    at += depth // 4
    for i in range(sums):
        value = f64(registers + slots[at + i])
        for lane in range(32):
            total[((lane >> 2) + (i >> 1) * 8) * 8 + 2 * (lane & 3) + (i & 1)] = value[lane]
    for m in range(height):
        for k in range(depth):
            factor = left[m * depth + k]
            for column in range(8):
                total[m * 8 + column] += factor * right[k * 8 + column]
    for i in range(sums):
        value = f64(registers + slots[i])
        for lane in range(32):
            value[lane] = total[((lane >> 2) + (i >> 1) * 8) * 8 + 2 * (lane & 3) + (i & 1)]
    return 0
