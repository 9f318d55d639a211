"""Convolution whose padding repeats pixels of the image, forward and weight gradient; forward also with a prologue of x.

The source of a tap is found by index arithmetic (`kernels.modes`), so nothing is copied. No fixed step leads from the source of
one tap to that of the next, unlike in `kernels.gather`: it is computed from the tap's coordinate, once a tap in fprop.
"""

import triton
import triton.language as tl

from tritonconv.kernels.boxes import first_box, next_box
from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, finish, rounded, store_transposed
from tritonconv.kernels.fprop import placed
from tritonconv.kernels.index import inside_of, load_inside, pixels_of, strides, tile_of, unpack, wide
from tritonconv.kernels.modes import sources_of
from tritonconv.kernels.padded_prologue import prepared_rows
from tritonconv.kernels.reduce import share_of, store_share
from tritonconv.kernels.wgrad import new_pixels, store_filters


@triton.jit
def padded_fprop_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    x_strides,  # Strides of x [N, C, D, H, W]
    w_strides,  # Strides of w [K, C / G, T, R, S]
    y_strides,  # Strides of y [N, K, O, P, Q]
    sizes,  # Sizes
    shared,  # reduce.Shared, in which case y is the workspace of partial sums; None where one program sums all channels
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    MODE_D: tl.constexpr,  # what stands in the padding of an axis
    MODE_H: tl.constexpr,
    MODE_W: tl.constexpr,
    RANK: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    ROW_ALIGN: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
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
    CLAMP: tl.constexpr = False,  # masked addresses lie inside of the tensors (`kernels.index.load_inside`)
    PROLOGUE: tl.constexpr = False,  # whether there is one: Triton 3.6 does not compare a tuple that holds a None
    prologue=None,  # kernels.prologue.Prologue of x, with values per image; those of zeros in the padding stay 0
    X_ACTIVATION: tl.constexpr = "",  # of the prologue
    X_SLOPE: tl.constexpr = 0.0,
    ONE_IMAGE: tl.constexpr = False,  # the rows of every tile have the same values per channel
):
    """y[n, k, o, p, q] = b[k] + sum over c, t, r, s of w[k, c, t, r, s] * x[n, c, d, h, w], with d, h, w the pixels that stand
    at o*s_d - low_d + t*d_d, p*s_h - low_h + r*d_h and q*s_w - low_w + s*d_w, and x with its prologue

    GEMM axes: m = (n, o, p, q), n = k, k = (t, r, s, c). One program writes one [BLOCK_M, BLOCK_N] tile of y.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    x_n, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    w_k, w_c, w_t, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    size_q = unpack(sizes.q) * ROW_ALIGN
    size = (unpack(sizes.d), unpack(sizes.h), unpack(sizes.w))
    pid_m, pid_n, rest = tile_of(tl.program_id(0), unpack(sizes.tiles), tl.cdiv(filters, BLOCK_N), GROUP_M)
    group = rest
    if shared is not None:
        group = rest % unpack(shared.groups)
    image, n, o, p, q = pixels_of(pid_m, unpack(sizes.o), unpack(sizes.p), size_q, BLOCK_M, RANK, INDEX)
    rows = n < unpack(sizes.n) - image  # [BLOCK_M]
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = offs_n < filters  # [BLOCK_N]
    offs_k = tl.arange(0, BLOCK_K)

    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    x_base += group * channels * wide(x_strides.channel, X_ALIGN, X_UNIT == 1)
    w_base = w_ptr + group * filters * wide(w_strides.outer, W_ALIGN, W_UNIT == 0)
    first_channel = group * channels
    if shared is not None:
        part = rest // unpack(shared.groups)
        first_channel += part * unpack(shared.depth) * BLOCK_K
        x_base, w_base, channels = share_of(part, shared, x_base, w_base, channels, x_c, w_c, BLOCK_K)
    # The coordinates of tap 0
    w0 = q * STRIDE[2] - unpack(sizes.low_w)  # [BLOCK_M]
    h0 = p * STRIDE[1] - unpack(sizes.low_h)
    d0 = o * STRIDE[0] - unpack(sizes.low_d)
    step = (x_n, x_d, x_h, x_w)
    x_columns = (offs_k * x_c)[None, :]
    x_inside = inside_of(offs_k, C_ALIGN, (1, 1, 1), True, x_c, 0)[None, :]
    w_offset = offs_n[None, :] * w_k + offs_k[:, None] * w_c
    w_inside = inside_of(offs_k, C_ALIGN, (1, 1, 1), True, w_c, 0)[:, None]

    # One flat loop, channels fastest; see `kernels.gather.gather_gemm`.
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    trips = TAPS * tl.cdiv(channels, BLOCK_K)
    zero = tl.full((), 0, INDEX)  # a tap's number times its step may take 64 bits where the offsets do
    t = 0
    r = 0
    s = 0
    c = 0
    offset, ok = sources_of(rows, n, (d0, h0, w0), size, step, MODE_D, MODE_H, MODE_W, RANK)
    area = size[0].to(INDEX) * size[1] * size[2]
    dense = (area, size[1].to(INDEX) * size[2], size[2], 1)  # steps of rstd
    pixel = offset
    if PROLOGUE:
        if prologue.rstd is not None:
            pixel, _ = sources_of(rows, n, (d0, h0, w0), size, dense, MODE_D, MODE_H, MODE_W, RANK)
    for i in range(0, tl.maximum(trips, 1)):
        live = i < trips
        x_mask = ok[:, None]
        w_move = (zero + t) * w_t + (zero + r) * w_r + (zero + s) * w_s + c * w_c
        if EVEN_K and EVEN_N:
            if CLAMP:
                w_move = tl.where(live, w_move, 0)
            w = tl.load(w_base + (w_offset + w_move))
        else:
            w_mask = columns[None, :]
            if not EVEN_K:
                w_mask = w_mask & (offs_k < channels - c)[:, None]
            w = load_inside(w_base + w_offset, w_move, w_mask, (w_base, w_offset, w_inside), live, CLAMP)
        if not EVEN_K:
            x_mask = x_mask & (offs_k < channels - c)[None, :]
        x_offset = offset[:, None] + x_columns
        x = load_inside(x_base + x_offset, c * x_c, x_mask, (x_base, x_offset, x_inside), live, CLAMP)
        if PROLOGUE:
            x = prepared_rows(
                x,
                x_mask,
                prologue,
                image,
                n,
                rows,
                ok,
                pixel,
                area,
                c + offs_k,
                offs_k < channels - c,
                first_channel,
                live,
                C_ALIGN,
                ONE_IMAGE,
                X_ACTIVATION,
                X_SLOPE,
                ACC,
                UPCAST,
                CLAMP,
            )
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=ACC)
        c += BLOCK_K
        # After the last channel comes the next tap along s, then r, then t.
        wrap = c >= channels
        c = tl.where(wrap, 0, c)
        s += tl.where(wrap, 1, 0)
        if RANK >= 2:
            wrap = s >= KERNEL[2]
            s = tl.where(wrap, 0, s)
            r += tl.where(wrap, 1, 0)
        if RANK >= 3:
            wrap = r >= KERNEL[1]
            r = tl.where(wrap, 0, r)
            t += tl.where(wrap, 1, 0)
        if c == 0:  # another tap
            at = (d0 + (zero + t) * DILATION[0], h0 + (zero + r) * DILATION[1], w0 + (zero + s) * DILATION[2])
            offset, ok = sources_of(rows, n, at, size, step, MODE_D, MODE_H, MODE_W, RANK)
            if PROLOGUE:
                if prologue.rstd is not None:
                    pixel, _ = sources_of(rows, n, at, size, dense, MODE_D, MODE_H, MODE_W, RANK)

    first = group * filters
    if shared is not None:
        total = filters * unpack(shared.groups)
        store_share(acc, y_ptr, part, 0, pid_m, first + offs_n, columns, total, shared, BLOCK_M)
        return
    acc = add_bias(acc, b_ptr, (first + offs_n) * unpack(sizes.b).to(INDEX), columns, HAS_BIAS and not FUSED)
    mask = rows[:, None] & columns[None, :]
    if FUSED:
        r_ptrs = None
        z_ptrs = None
        if fused.residual is not None:
            base, row, move = placed(
                fused.residual, fused.residual_strides, R_ALIGN, R_UNIT, image, first, n, (o, p, q), RANK, INDEX
            )
            r_ptrs = base + (row[:, None] + offs_n[None, :] * move)
        if fused.z is not None:
            base, row, move = placed(fused.z, y_strides, Y_ALIGN, Y_UNIT, image, first, n, (o, p, q), RANK, INDEX)
            z_ptrs = base + (row[:, None] + offs_n[None, :] * move)
        acc = finish(
            acc,
            (first + offs_n)[None, :],
            columns[None, :],
            b_ptr,
            sizes.b,
            r_ptrs,
            z_ptrs,
            mask,
            fused,
            HAS_BIAS,
            ACTIVATION,
            SLOPE,
            UPCAST,
            INDEX,
            TRANSPOSED and R_UNIT != 1,
            TRANSPOSED and Y_UNIT != 1,
        )
    base, row, move = placed(y_ptr, y_strides, Y_ALIGN, Y_UNIT, image, first, n, (o, p, q), RANK, INDEX)
    y = rounded(acc, y_ptr.dtype.element_ty, UPCAST)
    if Y_UNIT == 1 or not TRANSPOSED:
        tl.store(base + (row[:, None] + offs_n[None, :] * move), y, mask=mask)
    else:
        store_transposed(base + (row[:, None] + offs_n[None, :] * move), y, mask)


@triton.jit
def padded_wgrad_kernel(
    dy_ptr,
    x_ptr,
    dw_ptr,  # dw, or with SPLIT the workspace [splits, K, T, R, S, C / G] in the accumulator's type
    dy_strides,  # Strides of dy [N, K, O, P, Q]
    x_strides,  # Strides of x [N, C, D, H, W]
    dw_strides,  # Strides of dw [K, C / G, T, R, S]
    sizes,  # Sizes; tiles = reduction steps of one split
    groups,  # packed
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    MODE_D: tl.constexpr,  # what stands in the padding of an axis
    MODE_H: tl.constexpr,
    MODE_W: tl.constexpr,
    RANK: tl.constexpr,
    DY_ALIGN: tl.constexpr,
    DY_UNIT: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    DW_ALIGN: tl.constexpr,
    DW_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    SPLIT: tl.constexpr,  # whether partial sums go to a workspace
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,  # output pixels of one reduction step: (n, o, p, q), powers of two
    CLAMP: tl.constexpr = False,  # masked addresses lie inside of the tensors (`kernels.index.load_inside`)
):
    """dw[k, c, t, r, s] = sum over n, o, p, q of dy[n, k, o, p, q] * x[n, c, d, h, w], with d, h, w as in
    `padded_fprop_kernel`

    GEMM axes: m = k, n = c of one tap, k = output pixels. The pixels are walked in boxes of STEP with carried scalars, so the
    loop holds no division. The sources in x of a box are found at each step, since its padding may begin anywhere in it.
    """
    BOX_O: tl.constexpr = STEP[1]
    BOX_P: tl.constexpr = STEP[2]
    BOX_Q: tl.constexpr = STEP[3]
    BLOCK_K: tl.constexpr = STEP[0] * BOX_O * BOX_P * BOX_Q
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    y_n, y_k, y_o, y_p, y_q = strides(dy_strides, DY_ALIGN, DY_UNIT, INDEX)
    x_n, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    size = (unpack(sizes.d), unpack(sizes.h), unpack(sizes.w))
    size_n, size_o, size_p, size_q = unpack(sizes.n), unpack(sizes.o), unpack(sizes.p), unpack(sizes.q)

    # program -> (m tile, n tile, tap, group, split), m fastest: neighbours share the x tile
    tiles_m = tl.cdiv(filters, BLOCK_M)
    tiles_n = tl.cdiv(channels, BLOCK_N)
    pid = tl.program_id(0)
    pid_m = pid % tiles_m
    pid = pid // tiles_m
    pid_n = pid % tiles_n
    pid = pid // tiles_n
    tap = pid % TAPS
    pid = pid // TAPS
    n_groups = unpack(groups)
    group = pid % n_groups
    split = pid // n_groups
    s = tap % KERNEL[2]
    r = (tap // KERNEL[2]) % KERNEL[1]
    t = tap // (KERNEL[2] * KERNEL[1])

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    filters_mask = offs_m < filters  # [BLOCK_M]
    columns = offs_n < channels  # [BLOCK_N]

    # The box: pixel i of a step is (n0 + i_n, o0 + i_o, p0 + i_p, q0 + i_q)
    i = tl.arange(0, BLOCK_K)
    i_q = i % BOX_Q
    i_p = (i // BOX_Q) % BOX_P
    i_o = (i // (BOX_Q * BOX_P)) % BOX_O
    i_n = i // (BOX_Q * BOX_P * BOX_O)
    dy_offset = i_n * y_n + i_q * y_q
    if RANK >= 2:
        dy_offset += i_p * y_p
    if RANK >= 3:
        dy_offset += i_o * y_o
    w_shift = s.to(INDEX) * DILATION[2] - unpack(sizes.low_w)
    h_shift = r.to(INDEX) * DILATION[1] - unpack(sizes.low_h)
    d_shift = t.to(INDEX) * DILATION[0] - unpack(sizes.low_d)
    dy_base = dy_ptr + group * filters * wide(dy_strides.channel, DY_ALIGN, DY_UNIT == 1)
    dy_place = (offs_m * y_k)[:, None] + dy_offset[None, :]  # [BLOCK_M, BLOCK_K]
    dy_inside = ((offs_m % K_ALIGN) * y_k)[:, None]
    if DY_UNIT == 4:
        dy_inside = (i_q % DY_ALIGN)[None, :]
    x_base = x_ptr + group * channels * wide(x_strides.channel, X_ALIGN, X_UNIT == 1)
    x_columns = (offs_n * x_c)[None, :]
    x_inside = inside_of(offs_n, C_ALIGN, (1, 1, 1), True, x_c, x_w)[None, :]

    steps = unpack(sizes.tiles)
    n0, o0, p0, q0 = first_box(split * steps, (size_o, size_p, size_q), STEP, RANK)

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, tl.maximum(steps, 1)):
        live = step < steps
        q1, pixels = new_pixels(q0, i_q, size_q, BOX_Q, False)
        pixels = pixels & (i_n < size_n - n0)  # [BLOCK_K]
        dy_start = n0.to(INDEX) * y_n + q1 * y_q
        if RANK >= 2:
            p1, fresh = new_pixels(p0, i_p, size_p, BOX_P, False)
            pixels = pixels & fresh
            dy_start += p1 * y_p
        if RANK >= 3:
            o1, fresh = new_pixels(o0, i_o, size_o, BOX_O, False)
            pixels = pixels & fresh
            dy_start += o1 * y_o
        at = (
            (o0 + i_o).to(INDEX) * STRIDE[0] + d_shift,
            (p0 + i_p).to(INDEX) * STRIDE[1] + h_shift,
            (q0 + i_q).to(INDEX) * STRIDE[2] + w_shift,
        )
        x_offset, x_pixels = sources_of(pixels, i_n, at, size, (x_n, x_d, x_h, x_w), MODE_D, MODE_H, MODE_W, RANK)
        dy_mask = pixels[None, :]
        if not EVEN_M:
            dy_mask = dy_mask & filters_mask[:, None]
        dy = load_inside(dy_base + dy_place, dy_start, dy_mask, (dy_base, dy_place, dy_inside), live, CLAMP)
        x_mask = x_pixels[:, None]
        if not EVEN_N:
            x_mask = x_mask & columns[None, :]
        x_place = x_offset[:, None] + x_columns
        x = load_inside(x_base + x_place, n0.to(INDEX) * x_n, x_mask, (x_base, x_place, x_inside), live, CLAMP)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            dy = dy.to(tl.float32)
            x = x.to(tl.float32)
        acc = tl.dot(dy, x, acc, input_precision=PRECISION, out_dtype=ACC)
        n0, o0, p0, q0 = next_box(n0, o0, p0, q0, (size_o, size_p, size_q), STEP, RANK)

    mask = filters_mask[:, None] & columns[None, :]
    store_filters(
        acc,
        dw_ptr,
        dw_strides,
        DW_ALIGN,
        DW_UNIT,
        (split, n_groups, group, filters, channels),
        offs_m,
        offs_n,
        (t, r, s),
        mask,
        KERNEL,
        INDEX,
        SPLIT,
        UPCAST,
    )
