"""A depthwise convolution and the pointwise one after it in one kernel: the result between them stays on the chip."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import activated, finish, per_channel, rounded
from tritonconv.kernels.index import inside_bits, outer_product, pixels_of, strides, unpack, wide
from tritonconv.kernels.window import highest, holds, tap_offsets


@triton.constexpr_function
def tap_at(DOWN, ACROSS, output, u, v, COLUMNS, R, S):
    """The tap, r * S + s, at which an output of a strip meets pixel (u, v) of its window, -1 where it does not.

    DOWN, ACROSS: `tap_offsets` of the strip's rows and columns.
    """
    down = DOWN[output // COLUMNS * R : (output // COLUMNS + 1) * R]
    across = ACROSS[output % COLUMNS * S : (output % COLUMNS + 1) * S]
    return down.index(u) * S + across.index(v) if u in down and v in across else -1


@triton.jit
def interleaved(parts, COUNT: tl.constexpr):
    """COUNT tiles [M, N] as one [M * COUNT, N]: row m * COUNT + i is row m of part i."""
    if COUNT == 1:
        return parts[0]
    else:
        evens = ()
        odds = ()
        for i in tl.static_range(COUNT // 2):
            evens = evens + (parts[2 * i],)
            odds = odds + (parts[2 * i + 1],)
        even = interleaved(evens, COUNT // 2)
        pairs = tl.join(even, interleaved(odds, COUNT // 2))  # [M, N, 2]
        return tl.reshape(tl.permute(pairs, (0, 2, 1)), (even.shape[0] * 2, even.shape[1]))


@triton.jit
def placed(ptr, packed, ALIGN: tl.constexpr, UNIT: tl.constexpr, image, filters, pixel, INDEX: tl.constexpr):
    """Pointers [BLOCK_N, BLOCK_M] to filters of pixels (n, p, q) [BLOCK_M] of y, or of a tensor of its shape."""
    y_n, y_k, _, y_p, y_q = strides(packed, ALIGN, UNIT, INDEX)
    base = ptr + image * wide(packed.outer, ALIGN, UNIT == 0)
    return base + (filters[:, None] * y_k + (pixel[0] * y_n + pixel[1] * y_p + pixel[2] * y_q)[None, :])


@triton.jit
def separable_kernel(
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    y_ptr,
    x_strides,  # Strides of x [N, C, 1, H, W]
    w1_strides,  # Strides of w1 [C, 1, 1, R, S]
    w2_strides,  # Strides of w2 [K, C, 1, 1, 1]
    y_strides,  # Strides of y [N, K, 1, P, Q]
    sizes,  # Sizes: of the depthwise convolution, but for k and b, which are the pointwise one's
    b1_stride,  # packed
    KERNEL: tl.constexpr,  # (R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    W1_ALIGN: tl.constexpr,
    W1_UNIT: tl.constexpr,
    W2_ALIGN: tl.constexpr,
    W2_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    EVEN_C: tl.constexpr,
    HAS_B1: tl.constexpr,
    HAS_B2: tl.constexpr,
    BETWEEN: tl.constexpr,  # the activation between the two convolutions
    ACTIVATION: tl.constexpr,  # the activation after the second
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,  # output pixels of a strip
    COLUMNS: tl.constexpr,
    STRIPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    fused=None,  # Fused, of which the residual alone is taken
    R_ALIGN: tl.constexpr = 1,
    R_UNIT: tl.constexpr = -1,
):
    """y[n, k, p, q] = act(b2[k] + residual + sum over c of w2[k, c] * z[n, c, p, q]),
    z[n, c, p, q] = between(b1[c] + sum over r, s of w1[c, r, s] * x[n, c, p*s_h - low_h + r*d_h, q*s_w - low_w + s*d_w])

    z is rounded to the operands' type, as if it had been in memory. A program writes one tile of y, [STRIPS strips of ROWS x
    COLUMNS pixels, BLOCK_N filters], and makes z for it BLOCK_C channels at a time. A thread has whole strips: a pixel of x is
    loaded and converted once for all outputs of the strip that it meets.
    """
    R: tl.constexpr = KERNEL[0]
    S: tl.constexpr = KERNEL[1]
    OUT: tl.constexpr = ROWS * COLUMNS
    BLOCK_M: tl.constexpr = STRIPS * OUT
    DOWN: tl.constexpr = tap_offsets(ROWS, R, STRIDE[0], DILATION[0], 0, 0, False)
    ACROSS: tl.constexpr = tap_offsets(COLUMNS, S, STRIDE[1], DILATION[1], 0, 0, False)
    HEIGHT: tl.constexpr = 1 + highest(DOWN)  # of a strip's window on x
    WIDTH: tl.constexpr = 1 + highest(ACROSS)
    TOGETHER: tl.constexpr = HEIGHT * WIDTH <= 32  # which pixels of it exist: one word, or one for rows and one for columns
    x_n, x_c, _, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    w1_k, _, _, w1_r, w1_s = strides(w1_strides, W1_ALIGN, W1_UNIT, INDEX)
    w2_k, w2_c, _, _, _ = strides(w2_strides, W2_ALIGN, W2_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    tiles_n = tl.cdiv(filters, BLOCK_N)
    pid_m = tl.program_id(0) // tiles_n  # the tiles of the same pixels run together, so x stays in L2
    pid_n = tl.program_id(0) % tiles_n
    strips_h = tl.cdiv(unpack(sizes.p), ROWS)
    strips_w = tl.cdiv(unpack(sizes.q), COLUMNS)
    image, n, _, i, j = pixels_of(pid_m, 1, strips_h, strips_w, STRIPS, 2, INDEX)
    exists = n < unpack(sizes.n) - image  # [STRIPS]
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    filter_exists = offs_n < filters  # [BLOCK_N]
    offs_c = tl.arange(0, BLOCK_C)

    h0 = i * (ROWS * STRIDE[0]) - unpack(sizes.low_h)  # [STRIPS] the window's first pixel
    w0 = j * (COLUMNS * STRIDE[1]) - unpack(sizes.low_w)
    in_rows = inside_bits(h0, 1, unpack(sizes.h), HEIGHT)
    in_columns = tl.where(exists, inside_bits(w0, 1, unpack(sizes.w), WIDTH), 0)
    if TOGETHER:
        in_columns = outer_product(in_rows, in_columns, HEIGHT, WIDTH)
    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    x_ptrs = x_base + ((n * x_n + h0 * x_h + w0 * x_w)[:, None] + offs_c[None, :] * x_c)
    w1_ptrs = w1_ptr + offs_c * w1_k
    w2_ptrs = w2_ptr + (offs_n[:, None] * w2_k + offs_c[None, :] * w2_c)

    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    for c in range(0, tl.maximum(channels, 1), BLOCK_C):
        lanes = offs_c < channels - c
        w2_mask = filter_exists[:, None]
        if not EVEN_C:
            w2_mask = w2_mask & lanes[None, :]
        w2 = tl.load(w2_ptrs + c * w2_c, mask=w2_mask, other=0.0)
        start = tl.zeros((1, BLOCK_C), ACC)
        if HAS_B1:
            start = per_channel(b1_ptr, b1_stride, c + offs_c, lanes, ACC, INDEX)[None, :]
        weights = ()  # [R * S] of [1, BLOCK_C]
        made = ()  # [OUT] of [STRIPS, BLOCK_C]
        for _o in tl.static_range(OUT):
            made = made + (tl.zeros((STRIPS, BLOCK_C), ACC) + start,)
        # always the strides; the compiler, which cannot know that, would else keep a pointer to each pixel of a window
        down = tl.where(c < channels, x_h, 0)
        across = tl.where(c < channels, x_w, 0)
        row = x_ptrs
        for u in tl.static_range(HEIGHT):
            at = row
            row += down
            if u % DILATION[0] == 0 and u // DILATION[0] < R:  # the first row of pixels that meets a row of the filter
                for s in tl.static_range(S):
                    w1_at = w1_ptrs + (c * w1_k + u // DILATION[0] * w1_r + s * w1_s)
                    w1 = tl.load(w1_at) if EVEN_C else tl.load(w1_at, mask=lanes, other=0.0)
                    weights = weights + (w1.to(ACC)[None, :],)
            for v in tl.static_range(WIDTH):
                if holds(DOWN, u) and holds(ACROSS, v):
                    if TOGETHER:
                        ok = ((in_columns >> (u * WIDTH + v)) & 1) != 0
                    else:
                        ok = (((in_rows >> u) & (in_columns >> v)) & 1) != 0
                    mask = ok[:, None]
                    if not EVEN_C:
                        mask = mask & lanes[None, :]
                    pixel = tl.load(at, mask=mask, other=0.0).to(ACC)
                    added = ()
                    for o in tl.static_range(OUT):
                        if tap_at(DOWN, ACROSS, o, u, v, COLUMNS, R, S) >= 0:
                            added = added + (made[o] + pixel * weights[tap_at(DOWN, ACROSS, o, u, v, COLUMNS, R, S)],)
                        else:
                            added = added + (made[o],)
                    made = added
                at += across
        x_ptrs += BLOCK_C * x_c
        between = ()
        for o in tl.static_range(OUT):
            between = between + (rounded(activated(made[o], BETWEEN, SLOPE), x_ptr.dtype.element_ty, UPCAST),)
        z = tl.trans(interleaved(between, OUT))  # [BLOCK_C, BLOCK_M]
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            z = z.to(tl.float32)
            w2 = w2.to(tl.float32)
        acc = tl.dot(w2, z, acc, input_precision=PRECISION, out_dtype=acc.dtype)

    inner = tl.arange(0, OUT)[None, :]
    p = i[:, None] * ROWS + inner // COLUMNS  # [STRIPS, OUT]
    q = j[:, None] * COLUMNS + inner % COLUMNS
    rows = exists[:, None] & (p < unpack(sizes.p)) & (q < unpack(sizes.q))
    mask = filter_exists[:, None] & tl.reshape(rows, (BLOCK_M,))[None, :]
    n = tl.reshape(tl.broadcast_to(n[:, None], (STRIPS, OUT)), (BLOCK_M,))
    pixel = (n, tl.reshape(p, (BLOCK_M,)), tl.reshape(q, (BLOCK_M,)))
    r_ptrs = None
    if fused.residual is not None:
        r_ptrs = placed(fused.residual, fused.residual_strides, R_ALIGN, R_UNIT, image, offs_n, pixel, INDEX)
    acc = finish(
        acc,
        offs_n[:, None],
        filter_exists[:, None],
        b2_ptr,
        sizes.b,
        r_ptrs,
        None,
        mask,
        fused,
        HAS_B2,
        ACTIVATION,
        SLOPE,
        UPCAST,
        INDEX,
    )
    y = rounded(acc, y_ptr.dtype.element_ty, UPCAST)
    tl.store(placed(y_ptr, y_strides, Y_ALIGN, Y_UNIT, image, offs_n, pixel, INDEX), y, mask=mask)
