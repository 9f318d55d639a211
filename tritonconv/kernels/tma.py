"""Forward convolution and input gradient whose operands arrive as boxes: TMA copies them, so no thread computes an address.

The product is laid out [channels of the result, pixels]: only the second operand of a warpgroup MMA may be a reshaped box of
shared memory (the first would go through registers), so the pixels, whose box has many axes, must be the second.
"""

import triton
import triton.language as tl

from tritonconv.kernels.boxes import load_pixels
from tritonconv.kernels.dgrad import axis_phase
from tritonconv.kernels.epilogue import finish, per_channel, rounded
from tritonconv.kernels.index import strides, tile_of, unpack, wide


@triton.jit
def box_gemm(
    acc,  # [BLOCK_N, BLOCK_M]
    a,  # descriptor of the activations, as `load_pixels` takes it
    w,  # descriptor of w [K, (*kernel, C / G)]
    image,
    corner,  # (d, h, w) of the box
    first,  # (d, h, w) coordinate that tap 0 adds
    step,  # (d, h, w) coordinate step per tap
    counts,  # (t, r, s) taps
    channel,  # of a, the group's first
    fold,  # elements per column that is folded into a's channels (`load_pixels`)
    row,  # row of w where the weights of tap 0 begin
    column,  # column of w where they begin
    w_step,  # (t, r, s) columns from tap to tap
    depth,  # channels of a that a group sums over
    STRIDE: tl.constexpr,
    RANK: tl.constexpr,
    DGRAD: tl.constexpr,  # the sum runs over filters
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """acc[n, m] += sum over taps and channels of w[tap, n, c] * a[m shifted by tap, c]

    One flat loop, channels fastest. The trip count is at least 1, which keeps Triton 3.6 from waiting after every tensor-core
    instruction.
    """
    trips = counts[0] * counts[1] * counts[2] * tl.cdiv(depth, BLOCK_K)
    t = 0
    r = 0
    s = 0
    c = 0
    tap = 0  # columns of w
    for _ in range(0, tl.maximum(trips, 1)):
        at = (first[0] + t * step[0], first[1] + r * step[1], first[2] + s * step[2])
        pixels = load_pixels(a, image, at, channel + c, fold, corner, STRIDE, RANK).reshape(BLOCK_M, BLOCK_K)
        if DGRAD:
            weights = w.load([row + c, column + tap]).T
        else:
            weights = w.load([row, column + tap + c])
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            pixels = pixels.to(tl.float32)
            weights = weights.to(tl.float32)
        acc = tl.dot(weights, pixels.T, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        c += BLOCK_K
        # past the last channel, the next tap along s, then r, then t
        wrap = c >= depth
        c = tl.where(wrap, 0, c)
        s += tl.where(wrap, 1, 0)
        tap += tl.where(wrap, w_step[2], 0)
        if RANK >= 2:
            wrap = s >= counts[2]
            s = tl.where(wrap, 0, s)
            r += tl.where(wrap, 1, 0)
            tap += tl.where(wrap, w_step[1] - counts[2] * w_step[2], 0)
        if RANK >= 3:
            wrap = r >= counts[1]
            r = tl.where(wrap, 0, r)
            t += tl.where(wrap, 1, 0)
            tap += tl.where(wrap, w_step[0] - counts[1] * w_step[1], 0)
    return acc


@triton.jit
def placed(
    ptr,
    packed,  # Strides
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    image,
    channel,  # first of the tile
    corner,  # (d, h, w) of the tile's first pixel
    pixel,  # (n, d, h, w) [BLOCK_M], relative to it
    RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    INDEX: tl.constexpr,
):
    """[BLOCK_N, BLOCK_M] pointers into the result, or into a tensor of its shape."""
    s_n, s_c, s_d, s_h, s_w = strides(packed, ALIGN, UNIT, INDEX)
    base = ptr + image * wide(packed.outer, ALIGN, UNIT == 0) + channel * wide(packed.channel, ALIGN, UNIT == 1)
    base += corner[2] * wide(packed.width, ALIGN, UNIT == 4)
    offset = pixel[0] * s_n + pixel[3] * s_w
    if RANK >= 2:
        base += corner[1] * wide(packed.height, ALIGN, False)
        offset += pixel[2] * s_h
    if RANK >= 3:
        base += corner[0] * wide(packed.depth, ALIGN, False)
        offset += pixel[1] * s_d
    return base + (offset[None, :] + tl.arange(0, BLOCK_N)[:, None] * s_c)


@triton.jit
def tma_kernel(
    a,  # descriptor of x, or of dy for DGRAD
    w,  # descriptor of w [K, (*kernel, C / G)]
    b_ptr,
    out,  # y or dx: a pointer, or with STORE a descriptor
    out_strides,  # Strides of out
    sizes,  # Sizes
    groups,  # packed
    fold,  # packed
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,  # dgrad: as in `dgrad_kernel`
    DELTA: tl.constexpr,
    EMPTY: tl.constexpr,
    RANK: tl.constexpr,
    DGRAD: tl.constexpr,
    BOX: tl.constexpr,  # (n, d, h, w) pixels of the result, BLOCK_M together; dgrad: of a phase
    STORE: tl.constexpr,  # TMA stores the result as a box too
    OUT_ALIGN: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    fused=None,  # Fused
    FUSED: tl.constexpr = False,
    ACTIVATION: tl.constexpr = "",
    SLOPE: tl.constexpr = 0.0,
    R_ALIGN: tl.constexpr = 1,
    R_UNIT: tl.constexpr = -1,
):
    """y[n, k, o, p, q] as `fprop_kernel`, or dx[n, c, d, h, w] as `dgrad_kernel` (DGRAD), from boxes.

    A program writes BLOCK_N channels of one box of BLOCK_M pixels. Both passes walk over the taps with stride 1: fprop's
    stride is in its descriptor, and a phase of dgrad has none. Padding and dilation are coordinates. Boxes may reach beyond the
    tensors, where everything is zero; the sum over the channels of one group may not reach into the next
    (`costmodel.families.tma`).
    """
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    low = (unpack(sizes.low_d), unpack(sizes.low_h), unpack(sizes.low_w))
    bound = (unpack(sizes.o), unpack(sizes.p), unpack(sizes.q))
    size = bound
    results = filters
    depth = channels
    if DGRAD:
        bound = (unpack(sizes.d), unpack(sizes.h), unpack(sizes.w))
        size = (tl.cdiv(bound[0], STRIDE[0]), tl.cdiv(bound[1], STRIDE[1]), tl.cdiv(bound[2], STRIDE[2]))
        results = channels
        depth = filters
    pid_m, pid_n, rest = tile_of(tl.program_id(0), unpack(sizes.tiles), tl.cdiv(results, BLOCK_N), GROUP_M)
    n_groups = unpack(groups)
    group = rest % n_groups
    phase = rest // n_groups
    tiles_w = tl.cdiv(size[2], BOX[3])
    tiles_h = tl.cdiv(size[1], BOX[2])
    tiles_d = tl.cdiv(size[0], BOX[1])
    i_w = (pid_m % tiles_w) * BOX[3]
    pid_m = pid_m // tiles_w
    i_h = (pid_m % tiles_h) * BOX[2]
    pid_m = pid_m // tiles_h
    i_d = (pid_m % tiles_d) * BOX[1]
    image = (pid_m // tiles_d) * BOX[0]
    first_n = pid_n * BLOCK_N  # of the group's channels

    w_r = KERNEL[2] * channels
    w_t = KERNEL[1] * w_r

    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    if DGRAD:
        h_0, first_r, taps_r, base_p = axis_phase(
            (phase // STRIDE[2]) % STRIDE[1], low[1], KERNEL[1], STRIDE[1], DILATION[1], STEP[1], tl.int32
        )
        w_0, first_s, taps_s, base_q = axis_phase(
            phase % STRIDE[2], low[2], KERNEL[2], STRIDE[2], DILATION[2], STEP[2], tl.int32
        )
        d_0, first_t, taps_t, base_o = axis_phase(
            phase // (STRIDE[2] * STRIDE[1]), low[0], KERNEL[0], STRIDE[0], DILATION[0], STEP[0], tl.int32
        )
        step = (-DELTA[0], -DELTA[1], -DELTA[2])
        from_image = image
        row = group * filters
        if EMPTY:  # without taps the one trip is outside both tensors, where all is zero
            has_taps = taps_t * taps_r * taps_s > 0
            from_image = tl.where(has_taps, image, unpack(sizes.n))
            row = tl.where(has_taps, row, n_groups * filters)
        acc = box_gemm(
            acc,
            a=a,
            w=w,
            image=from_image,
            corner=(i_d, i_h, i_w),
            first=(base_o, base_p, base_q),
            step=step,
            counts=(taps_t, taps_r, taps_s),
            channel=group * filters,
            fold=0,
            row=row,
            column=((first_t * KERNEL[1] + first_r) * KERNEL[2] + first_s) * channels + first_n,
            w_step=(STEP[0] * w_t, STEP[1] * w_r, STEP[2] * channels),
            depth=depth,
            STRIDE=(1, 1, 1),
            RANK=RANK,
            DGRAD=True,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            PRECISION=PRECISION,
            UPCAST=UPCAST,
        )
        i_d = i_d * STRIDE[0] + d_0
        i_h = i_h * STRIDE[1] + h_0
        i_w = i_w * STRIDE[2] + w_0
    else:
        acc = box_gemm(
            acc,
            a=a,
            w=w,
            image=image,
            corner=(i_d, i_h, i_w),
            first=(-low[0], -low[1], -low[2]),
            step=DILATION,
            counts=KERNEL,
            channel=group * channels,
            fold=unpack(fold),
            row=group * filters + first_n,
            column=0,
            w_step=(w_t, w_r, channels),
            depth=depth,
            STRIDE=STRIDE,
            RANK=RANK,
            DGRAD=False,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            PRECISION=PRECISION,
            UPCAST=UPCAST,
        )

    first = group * results + first_n
    exists = (first_n + tl.arange(0, BLOCK_N) < results)[:, None]  # [BLOCK_N, 1]
    channel = (first + tl.arange(0, BLOCK_N))[:, None]
    m = tl.arange(0, BLOCK_M)
    n = m // (BOX[1] * BOX[2] * BOX[3])
    d = (m // (BOX[2] * BOX[3])) % BOX[1]
    h = (m // BOX[3]) % BOX[2]
    v = m % BOX[3]
    if DGRAD:
        d *= STRIDE[0]
        h *= STRIDE[1]
        v *= STRIDE[2]
    rows = (n < unpack(sizes.n) - image) & (v < bound[2] - i_w)  # [BLOCK_M]
    if RANK >= 2:
        rows = rows & (h < bound[1] - i_h)
    if RANK >= 3:
        rows = rows & (d < bound[0] - i_d)
    mask = exists & rows[None, :]
    corner = (i_d, i_h, i_w)
    pixel = (n, d, h, v)
    if FUSED:
        r_ptrs = None
        z_ptrs = None
        if fused.residual is not None:
            r_ptrs = placed(
                fused.residual, fused.residual_strides, R_ALIGN, R_UNIT, image, first, corner, pixel, RANK, BLOCK_N, INDEX
            )
        if fused.z is not None:
            z_ptrs = placed(fused.z, out_strides, OUT_ALIGN, OUT_UNIT, image, first, corner, pixel, RANK, BLOCK_N, INDEX)
        acc = finish(
            acc, channel, exists, b_ptr, sizes.b, r_ptrs, z_ptrs, mask, fused, HAS_BIAS, ACTIVATION, SLOPE, UPCAST, INDEX
        )
    elif HAS_BIAS:
        acc += per_channel(b_ptr, sizes.b, channel, exists, ACC, INDEX)
    y = rounded(acc, out.dtype if STORE else out.dtype.element_ty, UPCAST)
    if not STORE:
        tl.store(placed(out, out_strides, OUT_ALIGN, OUT_UNIT, image, first, corner, pixel, RANK, BLOCK_N, INDEX), y, mask=mask)
    elif RANK == 1:
        out.store([image, i_w, first], y.T.reshape(BOX[0], BOX[3], BLOCK_N))
    elif RANK == 2:
        out.store([image, i_h, i_w, first], y.T.reshape(BOX[0], BOX[2], BOX[3], BLOCK_N))
    else:
        out.store([image, i_d, i_h, i_w, first], y.T.reshape(BOX[0], BOX[1], BOX[2], BOX[3], BLOCK_N))
