"""Input gradient of a convolution, which is also the forward pass of a transposed one."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, finish, rounded, store_transposed
from tritonconv.kernels.gather import gather_gemm
from tritonconv.kernels.index import fold_taps, inside_of, pixels_of, strides, tile_of, unpack, wide, window_bits
from tritonconv.kernels.reduce import share_of, store_share


@triton.jit
def axis_phase(
    number, low, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr, INDEX: tl.constexpr
):
    """(residue, first tap, taps, base) of phase `number` of one axis: `ConvProblem.axis_phases`, on the device."""
    number = number.to(INDEX)
    first = number % STEP
    u = number // STEP
    residue = ((first * DILATION + u - low) % STRIDE + STRIDE) % STRIDE
    taps = tl.where(u == 0, (KERNEL - first + STEP - 1) // STEP, 0).to(tl.int32)
    base = (residue + low - first * DILATION - u) // STRIDE  # an exact division where the phase has taps
    return residue, first, taps, base


@triton.jit
def placed(
    ptr,
    packed,  # Strides
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    image,  # of the tile
    first,  # channel of the group
    n,  # [BLOCK_M] relative to image
    pixel,  # (d, h, w) [BLOCK_M], counted in strides
    corner,  # (d, h, w) of the phase's first pixel
    c,  # [BLOCK_N] relative to first
    tap,  # (t, r, s) [BLOCK_N], where PATCH
    STRIDE: tl.constexpr,
    RANK: tl.constexpr,
    PATCH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(pointer to channel `first` of the image, [BLOCK_M] and [BLOCK_N] offsets) of dx, or of a tensor of its shape."""
    s_n, s_c, s_d, s_h, s_w = strides(packed, ALIGN, UNIT, INDEX)
    base = ptr + image * wide(packed.outer, ALIGN, UNIT == 0)
    base += first * wide(packed.channel, ALIGN, UNIT == 1)
    # The offset is the sum of one per row and one per column, which keeps few registers alive.
    row = n * s_n + pixel[2] * (STRIDE[2] * s_w)
    column = c * s_c
    if PATCH:
        column += tap[2] * s_w
    else:
        base += corner[2] * s_w
    if RANK >= 2:
        row += pixel[1] * (STRIDE[1] * s_h)
        if PATCH:
            column += tap[1] * s_h
        else:
            base += corner[1] * s_h
    if RANK >= 3:
        row += pixel[0] * (STRIDE[0] * s_d)
        if PATCH:
            column += tap[0] * s_d
        else:
            base += corner[0] * s_d
    return base, row, column


@triton.jit
def dgrad_kernel(
    dy_ptr,
    w_ptr,
    b_ptr,
    dx_ptr,
    dy_strides,  # Strides of dy [N, K, O, P, Q]
    w_strides,  # Strides of w [K, C / G, T, R, S]
    dx_strides,  # Strides of dx [N, C, D, H, W]
    sizes,  # Sizes
    groups,  # packed
    shared,  # reduce.Shared, in which case dx is the workspace of partial sums; None where one program sums all filters
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,  # taps between neighbouring taps of a phase: stride / gcd(stride, dilation)
    DELTA: tl.constexpr,  # output pixels between these taps: dilation / gcd(stride, dilation)
    COUNTS: tl.constexpr,  # most taps of a phase: ceil(kernel / step)
    EMPTY: tl.constexpr,  # some phase has no tap
    RANK: tl.constexpr,
    PATCH: tl.constexpr,  # windows tile the input: a plain GEMM
    BOUNDS: tl.constexpr,  # how a tap outside dy is found: "bits", "range"
    DY_ALIGN: tl.constexpr,
    DY_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    DX_ALIGN: tl.constexpr,
    DX_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    ROW_ALIGN: tl.constexpr,  # divides a row of dx; of dy too, where PATCH
    W_FOLD: tl.constexpr,  # the patch axis runs (t, r, s, c) instead of (c, t, r, s)
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
    """dx[n, c, d, h, w] = b[c] + sum over k and the (t, o), (r, p), (s, q) with d = o*s_d - low_d + t*d_d, ... of
    w[k, c, t, r, s] * dy[n, k, o, p, q]

    The pixels of one stride phase (d, h, w all congruent modulo the stride) meet the same taps, so a phase is a stride-1
    gather, and no work is spent on the zeros that striding inserts. All phases run in one launch, those with most taps first;
    a phase without taps still writes its pixels (the bias). GEMM axes: m = pixels of the phase, n = c, k = (taps of the phase,
    k). PATCH has one phase: m = patches and n = (c, t, r, s), the whole patch.
    """
    y_n, y_k, y_o, y_p, y_q = strides(dy_strides, DY_ALIGN, DY_UNIT, INDEX)
    w_k, w_c, w_t, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    size_d = unpack(sizes.d).to(INDEX)
    size_h = unpack(sizes.h).to(INDEX)
    size_w = unpack(sizes.w).to(INDEX) * ROW_ALIGN
    n_total = unpack(sizes.n)
    columns_total = channels
    if PATCH:
        columns_total = channels * (KERNEL[0] * KERNEL[1] * KERNEL[2])
    pid_m, pid_n, rest = tile_of(tl.program_id(0), unpack(sizes.tiles), tl.cdiv(columns_total, BLOCK_N), GROUP_M)
    n_groups = unpack(groups)
    group = rest % n_groups
    phase = rest // n_groups
    image, n, i_d, i_h, i_w = pixels_of(
        pid_m, tl.cdiv(size_d, STRIDE[0]), tl.cdiv(size_h, STRIDE[1]), tl.cdiv(size_w, STRIDE[2]), BLOCK_M, RANK, INDEX
    )
    exists = n < n_total - image  # [BLOCK_M]
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = offs_n < columns_total  # [BLOCK_N]

    dy_base = dy_ptr + image * wide(dy_strides.outer, DY_ALIGN, DY_UNIT == 0)
    dy_base += group * filters * wide(dy_strides.channel, DY_ALIGN, DY_UNIT == 1)
    w_base = w_ptr + group * filters * wide(w_strides.outer, W_ALIGN, W_UNIT == 0)
    if shared is not None:
        PHASES: tl.constexpr = 1 if PATCH else STRIDE[0] * STRIDE[1] * STRIDE[2]
        part = phase // PHASES
        phase = phase % PHASES
        dy_base, w_base, filters = share_of(part, shared, dy_base, w_base, filters, y_k, w_k, BLOCK_K)
    size = (unpack(sizes.o), unpack(sizes.p), unpack(sizes.q) * (ROW_ALIGN if PATCH else 1))

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    offs_k = tl.arange(0, BLOCK_K)
    c, t, r, s = fold_taps(offs_n, channels, KERNEL, W_FOLD)  # [BLOCK_N] where PATCH
    if PATCH:
        rows = exists & (i_w < size[2])
        offset = n * y_n + i_w * y_q
        if RANK >= 2:
            rows = rows & (i_h < size[1])
            offset += i_h * y_p
        if RANK >= 3:
            rows = rows & (i_d < size[0])
            offset += i_d * y_o
        dy_kept = None
        w_kept = None
        if CLAMP:
            place = c * w_c + t * w_t + r * w_r + s * w_s
            w_inside = inside_of(offs_n, C_ALIGN, KERNEL, W_FOLD, w_c, w_s)
            dy_kept = (dy_base, offset[:, None] + offs_k[None, :] * y_k, ((offs_k % K_ALIGN) * y_k)[None, :])
            w_kept = (w_base, place[None, :] + offs_k[:, None] * w_k, w_inside[None, :])
        acc = gather_gemm(
            acc,
            a_ptrs=dy_base + (offset[:, None] + offs_k[None, :] * y_k),
            b_ptrs=w_base + ((c * w_c + t * w_t + r * w_r + s * w_s)[None, :] + offs_k[:, None] * w_k),
            rows=rows,
            columns=columns,
            bits=tl.zeros((BLOCK_M,), tl.int32),
            start=(i_d, i_h, i_w),
            size=size,
            step=(0, 0, 0),
            counts=(1, 1, 1),
            a_step=(y_o, y_p, y_q, y_k),
            b_step=(w_t, w_r, w_s, w_k),
            channels=filters,
            COUNTS=(1, 1, 1),
            BOUNDS="none",
            RANK=1,
            EVEN_K=EVEN_K,
            EVEN_N=EVEN_N,
            BLOCK_K=BLOCK_K,
            INDEX=INDEX,
            PRECISION=PRECISION,
            UPCAST=UPCAST,
            a_kept=dy_kept,
            b_kept=w_kept,
            CLAMP=CLAMP,
        )
    else:
        number_w = phase % STRIDE[2]
        number_h = (phase // STRIDE[2]) % STRIDE[1]
        number_d = phase // (STRIDE[2] * STRIDE[1])
        w_0, first_s, taps_s, base_q = axis_phase(
            number_w, unpack(sizes.low_w), KERNEL[2], STRIDE[2], DILATION[2], STEP[2], INDEX
        )
        h_0, first_r, taps_r, base_p = axis_phase(
            number_h, unpack(sizes.low_h), KERNEL[1], STRIDE[1], DILATION[1], STEP[1], INDEX
        )
        d_0, first_t, taps_t, base_o = axis_phase(
            number_d, unpack(sizes.low_d), KERNEL[0], STRIDE[0], DILATION[0], STEP[0], INDEX
        )
        q = i_w + base_q  # [BLOCK_M] coordinate of the phase's first tap
        p = i_h + base_p
        o = i_d + base_o
        offset = n * y_n + q * y_q
        w_first = first_s * w_s
        if RANK >= 2:
            offset += p * y_p
            w_first += first_r * w_r
        if RANK >= 3:
            offset += o * y_o
            w_first += first_t * w_t
        rows = exists
        used_columns = columns
        if EMPTY:
            has_taps = taps_t * taps_r * taps_s > 0
            rows = tl.where(has_taps, rows, False)  # Triton 3.9's interpreter takes no block & scalar
            used_columns = tl.where(has_taps, used_columns, False)
        step = (-DELTA[0], -DELTA[1], -DELTA[2])
        bits = tl.zeros((BLOCK_M,), tl.int32)
        if BOUNDS == "bits":
            bits = window_bits(rows, (o, p, q), step, size, COUNTS, RANK)
        dy_kept = None
        w_kept = None
        if CLAMP:
            w_offset = w_first + (offs_n[None, :] * w_c + offs_k[:, None] * w_k)
            dy_kept = (dy_base, offset[:, None] + offs_k[None, :] * y_k, ((offs_k % K_ALIGN) * y_k)[None, :])
            w_kept = (w_base, w_offset, ((offs_n % C_ALIGN) * w_c)[None, :])
        acc = gather_gemm(
            acc,
            a_ptrs=dy_base + (offset[:, None] + offs_k[None, :] * y_k),
            b_ptrs=w_base + w_first + (offs_n[None, :] * w_c + offs_k[:, None] * w_k),
            rows=rows,
            columns=used_columns,
            bits=bits,
            start=(o, p, q),
            size=size,
            step=step,
            counts=(taps_t, taps_r, taps_s),
            a_step=(y_o * step[0], y_p * step[1], y_q * step[2], y_k),
            b_step=(w_t * STEP[0], w_r * STEP[1], w_s * STEP[2], w_k),
            channels=filters,
            COUNTS=COUNTS,
            BOUNDS=BOUNDS,
            RANK=RANK,
            EVEN_K=EVEN_K,
            EVEN_N=EVEN_N,
            BLOCK_K=BLOCK_K,
            INDEX=INDEX,
            PRECISION=PRECISION,
            UPCAST=UPCAST,
            a_kept=dy_kept,
            b_kept=w_kept,
            CLAMP=CLAMP,
        )
        c = offs_n
    first = group * channels
    if shared is not None:
        plane = part * (STRIDE[0] * STRIDE[1] * STRIDE[2])
        tap = 0
        if PATCH:
            tap = (t * STRIDE[1] + r) * STRIDE[2] + s
        else:
            plane += (d_0 * STRIDE[1] + h_0) * STRIDE[2] + w_0
        store_share(acc, dx_ptr, plane, tap, pid_m, first + c, columns, channels * n_groups, shared, BLOCK_M)
        return
    acc = add_bias(acc, b_ptr, (first + c) * unpack(sizes.b).to(INDEX), columns, HAS_BIAS and not FUSED)
    pixel = (i_d, i_h, i_w)
    corner = (0, 0, 0)
    tap = (t, r, s)
    if not PATCH:
        corner = (d_0, h_0, w_0)
    dx_base, dx_row, dx_column = placed(
        dx_ptr, dx_strides, DX_ALIGN, DX_UNIT, image, first, n, pixel, corner, c, tap, STRIDE, RANK, PATCH, INDEX
    )
    if PATCH:
        mask = exists[:, None] & columns[None, :] & ((i_w * STRIDE[2])[:, None] + s[None, :] < size_w)
        if RANK >= 2:
            mask = mask & ((i_h * STRIDE[1])[:, None] + r[None, :] < size_h)
        if RANK >= 3:
            mask = mask & ((i_d * STRIDE[0])[:, None] + t[None, :] < size_d)
    else:
        exists = exists & (i_w * STRIDE[2] + w_0 < size_w)
        if RANK >= 2:
            exists = exists & (i_h * STRIDE[1] + h_0 < size_h)
        if RANK >= 3:
            exists = exists & (i_d * STRIDE[0] + d_0 < size_d)
        mask = exists[:, None] & columns[None, :]
    if FUSED:
        r_ptrs = None
        z_ptrs = None
        if fused.residual is not None:
            base, row, column = placed(
                fused.residual,
                fused.residual_strides,
                R_ALIGN,
                R_UNIT,
                image,
                first,
                n,
                pixel,
                corner,
                c,
                tap,
                STRIDE,
                RANK,
                PATCH,
                INDEX,
            )
            r_ptrs = base + (row[:, None] + column[None, :])
        if fused.z is not None:
            base, row, column = placed(
                fused.z, dx_strides, DX_ALIGN, DX_UNIT, image, first, n, pixel, corner, c, tap, STRIDE, RANK, PATCH, INDEX
            )
            z_ptrs = base + (row[:, None] + column[None, :])
        acc = finish(
            acc,
            (first + c)[None, :],
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
            TRANSPOSED and DX_UNIT != 1,
        )
    dx = rounded(acc, dx_ptr.dtype.element_ty, UPCAST)
    if DX_UNIT == 1 or not TRANSPOSED:
        tl.store(dx_base + (dx_row[:, None] + dx_column[None, :]), dx, mask=mask)
    else:
        store_transposed(dx_base + (dx_row[:, None] + dx_column[None, :]), dx, mask)
