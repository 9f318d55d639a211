"""Forward convolution as an implicit GEMM."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, finish, rounded, store_transposed
from tritonconv.kernels.gather import gather_gemm, patch_gemm
from tritonconv.kernels.index import inside_of, pixels_of, strides, tile_of, unpack, wide, window_bits
from tritonconv.kernels.reduce import share_of, store_share


@triton.jit
def placed(
    ptr,
    packed,  # Strides
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    image,  # of the tile
    first,  # filter of the group
    n,  # [BLOCK_M] relative to image
    pixel,  # (o, p, q) [BLOCK_M]
    RANK: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(pointer to filter `first` of the image, [BLOCK_M] offsets, step per filter) of y, or of a tensor of y's shape."""
    y_n, y_k, y_o, y_p, y_q = strides(packed, ALIGN, UNIT, INDEX)
    base = ptr + image * wide(packed.outer, ALIGN, UNIT == 0)
    base += first * wide(packed.channel, ALIGN, UNIT == 1)
    offset = n * y_n + pixel[2] * y_q
    if RANK >= 2:
        offset += pixel[1] * y_p
    if RANK >= 3:
        offset += pixel[0] * y_o
    return base, offset, y_k


@triton.jit
def fprop_kernel(
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
    RANK: tl.constexpr,
    PATCH: tl.constexpr,  # windows tile the input: a plain GEMM
    BOUNDS: tl.constexpr,  # how a tap outside the input is found: "none", "bits", "range"
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
):
    """y[n, k, o, p, q] = b[k] + sum over c, t, r, s of w[k, c, t, r, s] * x[n, c, o*s_d - low_d + t*d_d, p*.., q*..]

    GEMM axes: m = (n, o, p, q), n = k, k = (t, r, s, c). One program writes one [BLOCK_M, BLOCK_N] tile of y.
    """
    x_n, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    w_k, w_c, w_t, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    size_q = unpack(sizes.q) * ROW_ALIGN
    pid_m, pid_n, rest = tile_of(tl.program_id(0), unpack(sizes.tiles), tl.cdiv(filters, BLOCK_N), GROUP_M)
    group = rest
    if shared is not None:
        group = rest % unpack(shared.groups)
    image, n, o, p, q = pixels_of(pid_m, unpack(sizes.o), unpack(sizes.p), size_q, BLOCK_M, RANK, INDEX)
    rows = n < unpack(sizes.n) - image  # [BLOCK_M]
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = offs_n < filters  # [BLOCK_N]

    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    x_base += group * channels * wide(x_strides.channel, X_ALIGN, X_UNIT == 1)
    w_base = w_ptr + group * filters * wide(w_strides.outer, W_ALIGN, W_UNIT == 0)
    if shared is not None:
        part = rest // unpack(shared.groups)
        x_base, w_base, channels = share_of(part, shared, x_base, w_base, channels, x_c, w_c, BLOCK_K)
    # The coordinate of tap 0. Patches have no padding, and a constant 0 keeps the alignment of their rows known.
    w0 = q * STRIDE[2] - (0 if PATCH else unpack(sizes.low_w))  # [BLOCK_M]
    offset = n * x_n + w0 * x_w
    h0 = w0
    d0 = w0
    if RANK >= 2:
        h0 = p * STRIDE[1] - (0 if PATCH else unpack(sizes.low_h))
        offset += h0 * x_h
    if RANK >= 3:
        d0 = o * STRIDE[0] - (0 if PATCH else unpack(sizes.low_d))
        offset += d0 * x_d

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if PATCH and KERNEL[0] * KERNEL[1] * KERNEL[2] > 1:
        acc = patch_gemm(
            acc,
            x_base + offset,
            w_base + offs_n * w_k,
            rows,
            columns,
            (x_d, x_h, x_w, x_c),
            (w_t, w_r, w_s, w_c),
            channels,
            KERNEL,
            X_UNIT == 1,
            EVEN_K,
            BLOCK_K,
            PRECISION,
            UPCAST,
            (x_base, offset),
            (w_base, offs_n * w_k),
            C_ALIGN,
            CLAMP,
        )
    else:
        size = (unpack(sizes.d), unpack(sizes.h), unpack(sizes.w))
        bits = tl.zeros((BLOCK_M,), tl.int32)
        if BOUNDS == "bits":
            bits = window_bits(rows, (d0, h0, w0), DILATION, size, KERNEL, RANK)
        offs_k = tl.arange(0, BLOCK_K)
        x_kept = None
        w_kept = None
        if CLAMP:
            x_inside = inside_of(offs_k, C_ALIGN, (1, 1, 1), True, x_c, 0)[None, :]
            w_inside = inside_of(offs_k, C_ALIGN, (1, 1, 1), True, w_c, 0)[:, None]
            x_kept = (x_base, offset[:, None] + offs_k[None, :] * x_c, x_inside)
            w_kept = (w_base, offs_n[None, :] * w_k + offs_k[:, None] * w_c, w_inside)
        acc = gather_gemm(
            acc,
            a_ptrs=x_base + (offset[:, None] + offs_k[None, :] * x_c),
            b_ptrs=w_base + (offs_n[None, :] * w_k + offs_k[:, None] * w_c),
            rows=rows,
            columns=columns,
            bits=bits,
            start=(d0, h0, w0),
            size=size,
            step=DILATION,
            counts=KERNEL,
            a_step=(x_d * DILATION[0], x_h * DILATION[1], x_w * DILATION[2], x_c),
            b_step=(w_t, w_r, w_s, w_c),
            channels=channels,
            COUNTS=KERNEL,
            BOUNDS=BOUNDS,
            RANK=RANK,
            EVEN_K=EVEN_K,
            EVEN_N=EVEN_N,
            BLOCK_K=BLOCK_K,
            INDEX=INDEX,
            PRECISION=PRECISION,
            UPCAST=UPCAST,
            a_kept=x_kept,
            b_kept=w_kept,
            CLAMP=CLAMP,
        )

    first = group * filters
    if shared is not None:
        total = filters * unpack(shared.groups)
        store_share(acc, y_ptr, part, 0, pid_m, first + offs_n, columns, total, shared, BLOCK_M)
        return
    acc = add_bias(acc, b_ptr, (first + offs_n) * unpack(sizes.b).to(INDEX), columns, HAS_BIAS and not FUSED)
    if FUSED:
        r_ptrs = None
        z_ptrs = None
        if fused.residual is not None:
            base, row, step = placed(
                fused.residual, fused.residual_strides, R_ALIGN, R_UNIT, image, first, n, (o, p, q), RANK, INDEX
            )
            r_ptrs = base + (row[:, None] + offs_n[None, :] * step)
        if fused.z is not None:
            base, row, step = placed(fused.z, y_strides, Y_ALIGN, Y_UNIT, image, first, n, (o, p, q), RANK, INDEX)
            z_ptrs = base + (row[:, None] + offs_n[None, :] * step)
        mask = rows[:, None] & columns[None, :]
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
    base, row, step = placed(y_ptr, y_strides, Y_ALIGN, Y_UNIT, image, first, n, (o, p, q), RANK, INDEX)
    y = rounded(acc, y_ptr.dtype.element_ty, UPCAST)
    if Y_UNIT == 1 or not TRANSPOSED:
        tl.store(base + (row[:, None] + offs_n[None, :] * step), y, mask=rows[:, None] & columns[None, :])
    else:
        store_transposed(base + (row[:, None] + offs_n[None, :] * step), y, rows[:, None] & columns[None, :])
