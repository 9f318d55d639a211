"""Kernels broken on purpose, one line at a time, and the tests that should notice. `mutations` runs them."""

from dataclasses import dataclass

import deform_mutants
import padded_mutants
import prologue_mutants
import unfold_mutants

TESTS = ("tests/test_paths.py",)
TMA = ("tests/test_tma.py", "-k", "test_every_kind or test_phases or test_an_epilogue")
TMA_WGRAD = ("tests/test_tma_wgrad.py", "-k", "test_dy_may or test_a_forced or test_what_is_finite or test_a_nan")
DEPTHWISE = ("tests/test_depthwise.py",)
DEPTHWISE_GROUPS = ("tests/test_depthwise_groups.py",)
ON_DEPTHWISE = ("tests/test_fused.py", "-k", "test_depthwise_kernels or test_depthwise_taps")
TOGETHER = ("tests/test_fused.py", "-k", "test_depthwise_columns")
CAUSAL = ("tests/test_causal.py", "-k", "definition or single_tokens or shorter or behind_the_last")
VIDEO = ("tests/test_video.py", "-k", "test_the_definition or test_tiles_that_end_inside")
FUSED = (
    "tests/test_fused.py",
    "tests/test_fused_gradients.py",
    "-k",
    "test_each_part_alone or test_second_derivative or test_small_tiles",
)
BAND = ("tests/test_band.py", "-k", "test_every_kind and (rows_of_23 or stripes or even_same or transposed)")
BAND_FUSED = ("tests/test_band.py", "-k", "epilogue_in")
SEPARABLE = ("tests/test_separable.py", "-k", "every_shape or by_hand or rounded or anyhow or every_plan")


@dataclass(frozen=True)
class Mutation:
    """Replace the only `old` in tritonconv/kernels/`file` by `new`."""

    kernel: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TESTS


MUTATIONS = [
    Mutation("fprop", "an off-by-one tap", "fprop.py", "w0 = q * STRIDE[2] - ", "w0 = q * STRIDE[2] + 1 - "),
    Mutation(
        "fprop",
        "a dropped mask",
        "fprop.py",
        "bits = window_bits(rows, (d0, h0, w0)",
        "bits = -1 + 0 * window_bits(rows, (d0, h0, w0)",
    ),
    Mutation("fprop", "a wrong group offset", "fprop.py", "x_base += group * channels", "x_base += 0 * channels"),
    Mutation("fprop", "a skipped share of the reduction", "gather.py", "trips = counts[0]", "trips = -1 + counts[0]"),
    Mutation("fprop", "a missing bias", "fprop.py", "HAS_BIAS and not FUSED)", "False)"),
    Mutation("dgrad", "an off-by-one tap", "dgrad.py", "base = (residue + low", "base = 1 + (residue + low"),
    Mutation(
        "dgrad",
        "a dropped mask",
        "dgrad.py",
        "bits = window_bits(rows, (o, p, q)",
        "bits = -1 + 0 * window_bits(rows, (o, p, q)",
    ),
    Mutation("dgrad", "a wrong group offset", "dgrad.py", "dy_base += group * filters", "dy_base += 0 * filters"),
    Mutation("dgrad", "a skipped phase", "dgrad.py", "taps = tl.where(u == 0, (KERNEL", "taps = tl.where(u == 0, 0 * (KERNEL"),
    Mutation("dgrad", "a missing bias", "dgrad.py", "HAS_BIAS and not FUSED)", "False)"),
    Mutation(
        "wgrad", "an off-by-one tap", "wgrad.py", "w_shift = 0 if PATCH else tap_s", "w_shift = 0 if PATCH else 1 + tap_s"
    ),
    Mutation("wgrad", "a dropped mask", "wgrad.py", "x_mask = x_pixels[:, None]", "x_mask = (i_q >= 0)[:, None]"),
    Mutation("wgrad", "a wrong group offset", "wgrad.py", "x_base = x + group * channels", "x_base = x + 0 * channels"),
    Mutation(
        "reduce",
        "a skipped share",
        "reduce.py",
        "for _ in range(1, unpack(results.shares))",
        "for _ in range(2, unpack(results.shares))",
    ),
    Mutation("reduce", "a share that starts late", "reduce.py", "start = part * depth", "start = part * depth + 1"),
    Mutation(
        "reduce",
        "shares that overwrite each other",
        "reduce.py",
        "(plane.to(tl.int64) * pixels + start)",
        "(0 * pixels + start)",
    ),
    Mutation("reduce", "channels that alignment does not divide", "reduce.py", "(results.c) * C_ALIGN", "(results.c)"),
    Mutation("reduce", "a missing bias", "reduce.py", "columns, HAS_BIAS)", "columns, False)"),
    Mutation("wgrad", "a split that starts late", "wgrad.py", "first_box(split * steps", "first_box(split * steps + 1"),
    Mutation("epilogue", "no rounding where the interpreter truncates", "epilogue.py", "bits += 0x7FFF", "bits += 0 * 0x7FFF"),
    Mutation(
        "slide", "an off-by-one tap", "window.py", "j * STRIDE + tap * DILATION", "j * STRIDE + tap * DILATION + 1", DEPTHWISE
    ),
    Mutation("slide", "a wrong phase of dgrad", "window.py", "reached = j + PHASE", "reached = j - PHASE", DEPTHWISE),
    Mutation("slide", "a dropped mask", "depthwise.py", "row_ok = inside(h, unpack(sizes.in_h))", "row_ok = h == h", DEPTHWISE),
    Mutation("slide", "a wrong multiplier", "depthwise.py", "(channel // PER_GROUP) * (SUMMED", "channel * (SUMMED", DEPTHWISE),
    Mutation(
        "slide",
        "unfinished rows stored",
        "depthwise.py",
        "row_ok = (p + e_out >= first * OUT_H)",
        "row_ok = (p + e_out >= 0)",
        DEPTHWISE,
    ),
    Mutation("slide", "a missing bias", "window.py", "if HAS_BIAS:", "if False:", DEPTHWISE),
    Mutation("slide", "columns of the first store again", "window.py", "row[j * WIDTH : (j", "row[0 : (0", TOGETHER),
    Mutation("slide", "columns stored too near", "window.py", "tl.store(ptrs + j * WIDTH", "tl.store(ptrs + j", TOGETHER),
    Mutation("slide", "a residual too near", "window.py", "r_ptrs + j * WIDTH", "r_ptrs + j", TOGETHER),
    Mutation("slide", "z too near", "window.py", "z_ptrs + j * WIDTH", "z_ptrs + j", TOGETHER),
    Mutation("taps", "a skipped rest of a filter row", "depthwise_taps.py", "if S % CHUNK > 0", "if S % CHUNK > S", DEPTHWISE),
    Mutation(
        "taps", "a row too few", "depthwise_taps.py", "end = tl.minimum(KERNEL, ", "end = tl.minimum(KERNEL - 1, ", DEPTHWISE
    ),
    Mutation(
        "taps",
        "a wrong first tap of dgrad",
        "depthwise_taps.py",
        "% STRIDE == 0, j, first)",
        "% STRIDE == 1, j, first)",
        DEPTHWISE,
    ),
    Mutation("taps", "a multiplier not summed", "depthwise_taps.py", "range(0, SUMMED)", "range(0, 1)", DEPTHWISE),
    Mutation("taps", "channels of another group", "depthwise_taps.py", "(channel // PER_GROUP)", "channel", DEPTHWISE_GROUPS),
    Mutation(
        "slide",
        "a channel not summed",
        "depthwise.py",
        "for c in tl.static_range(SUMMED)",
        "for c in tl.static_range(1)",
        DEPTHWISE_GROUPS,
    ),
    Mutation(
        "slide",
        "one channel for all of a group",
        "window.py",
        "ptrs + i * channel_step",
        "ptrs + 0 * channel_step",
        DEPTHWISE_GROUPS,
    ),
    Mutation(
        "slide", "one channel of a load for all", "window.py", "pixels[v * SUMMED + i]", "pixels[v * SUMMED]", DEPTHWISE_GROUPS
    ),
    Mutation(
        "slide",
        "weights of another channel",
        "window.py",
        "(channel % PER_GROUP) * w_c",
        "(channel % 1) * w_c",
        DEPTHWISE_GROUPS,
    ),
    Mutation(
        "strip",
        "x of another channel",
        "depthwise_wgrad.py",
        "channel += pair % PER_FILTER",
        "channel += pair % 1",
        DEPTHWISE_GROUPS,
    ),
    Mutation(
        "strip", "dy of another filter", "depthwise_wgrad.py", "(pair // PER_FILTER) * y_k", "pair * y_k", DEPTHWISE_GROUPS
    ),
    Mutation(
        "strip",
        "a sum for another channel",
        "depthwise_wgrad.py",
        "(pair % PER_FILTER) * w_c",
        "(pair % 1) * w_c",
        DEPTHWISE_GROUPS,
    ),
    Mutation(
        "strip",
        "a row of dy taken twice",
        "depthwise_wgrad.py",
        "y_ok = y_ok & (i < end)",
        "y_ok = y_ok & (i < size_p)",
        DEPTHWISE,
    ),
    Mutation("strip", "an off-by-one row", "depthwise_wgrad.py", "(LAG - ROWS[r] // IN_H)", "(ROWS[r] // IN_H)", DEPTHWISE),
    Mutation("strip", "a skipped run", "depthwise_wgrad.py", "run = begin + step", "run = begin + step * 2", DEPTHWISE),
    Mutation(
        "strip",
        "a skipped part",
        "depthwise_wgrad.py",
        "range(0, parts, BLOCK_PARTS)",
        "range(0, parts - 1, BLOCK_PARTS)",
        DEPTHWISE,
    ),
    Mutation("slide", "a tap that is not scaled", "depthwise.py", "weight * scale", "weight * 1.0", ON_DEPTHWISE),
    Mutation("slide", "a residual of another row", "depthwise.py", "(p + e_out) * r_h", "(p + e_out + 1) * r_h", ON_DEPTHWISE),
    Mutation("taps", "sums that are not scaled", "depthwise_taps.py", "acc[j] * scale", "acc[j] * 1.0", ON_DEPTHWISE),
    Mutation("tma", "an off-by-one tap", "boxes.py", "i_w = floor_div(at[2]", "i_w = 1 + floor_div(at[2]", TMA),
    Mutation("tma", "a wrong padding sign", "tma.py", "(-low[0], -low[1], -low[2])", "(-low[0], low[1], -low[2])", TMA),
    Mutation("tma", "columns of another phase", "boxes.py", "STRIDE[2]) * fold", "STRIDE[2]) * 0", TMA),
    Mutation("tma", "rows of another phase", "boxes.py", "at[1] - i_h * STRIDE[1], corner", "0, corner", TMA),
    Mutation("tma", "a quotient rounded towards zero", "boxes.py", "(value + DIVISOR * 1048576)", "(value + 1048576)", TMA),
    Mutation("tma", "a step of dgrad the wrong way", "tma.py", "-DELTA[1]", "DELTA[1]", TMA),
    Mutation("tma", "a dropped phase", "tma.py", "i_w = i_w * STRIDE[2] + w_0", "i_w = i_w * STRIDE[2]", TMA),
    Mutation(
        "tma", "dy where a phase has no tap", "tma.py", "tl.where(has_taps, image, unpack(sizes.n))", "image + 0 * phase", TMA
    ),
    Mutation("tma", "weights where a phase has no tap", "tma.py", "tl.where(has_taps, row, n_groups * filters)", "row", TMA),
    Mutation("tma", "a skipped share of the reduction", "tma.py", "trips = counts[0]", "trips = -1 + counts[0]", TMA),
    Mutation(
        "tma",
        "weights of another row of taps",
        "tma.py",
        "w_step[1] - counts[2] * w_step[2], 0",
        "w_step[1] - w_step[2], 0",
        TMA,
    ),
    Mutation("tma", "another group's channels", "tma.py", "channel=group * channels", "channel=0", TMA),
    Mutation("tma", "filters of another group", "tma.py", "group * filters + first_n", "first_n", TMA),
    Mutation("tma", "boxes as wide as they are high", "tma.py", "tl.cdiv(size[1], BOX[2])", "tl.cdiv(size[1], BOX[3])", TMA),
    Mutation("tma", "a pixel of another row", "tma.py", "(m // BOX[3]) % BOX[2]", "(m // BOX[3]) % BOX[3]", TMA),
    Mutation("tma", "images beyond the last", "tma.py", "(n < unpack(sizes.n) - image)", "(n >= 0)", TMA),
    Mutation("tma", "columns beyond the last", "tma.py", "(v < bound[2] - i_w)", "(v >= 0)", TMA),
    Mutation("tma", "a box a row too low", "tma.py", "out.store([image, i_h, i_w", "out.store([image, i_h + 1, i_w", TMA),
    Mutation("tma", "a missing bias", "tma.py", "elif HAS_BIAS:", "elif False:", TMA),
    Mutation("tma", "a residual of another image", "tma.py", "image * wide(packed.outer", "0 * wide(packed.outer", TMA),
    Mutation(
        "boxed wgrad",
        "a box a row too low",
        "wgrad.py",
        "tl.cast(h_shift, tl.int32)",
        "tl.cast(h_shift + 1, tl.int32)",
        TMA_WGRAD,
    ),
    Mutation("boxed wgrad", "columns of another phase", "wgrad.py", "x_w.to(tl.int32)", "0", TMA_WGRAD),
    Mutation(
        "boxed wgrad", "another group's channels", "wgrad.py", "channel = group * channels", "channel = 0 * channels", TMA_WGRAD
    ),
    Mutation("boxed wgrad", "channels of another tile", "wgrad.py", "channels + pid_n * BLOCK_N", "channels", TMA_WGRAD),
    Mutation("boxed wgrad", "x of a box that is not shifted", "wgrad.py", "(o1, p1, q1)", "(o0, p0, q0)", TMA_WGRAD),
    Mutation("boxed wgrad", "pixels counted twice", "wgrad.py", "mask = i >= start - first", "mask = i >= 0", TMA_WGRAD),
    Mutation(
        "boxed wgrad",
        "columns past the last",
        "wgrad.py",
        "i_q, size_q, BOX_Q, BOXED)",
        "i_q, size_q, BOX_Q, False)",
        TMA_WGRAD,
    ),
    Mutation(
        "boxed wgrad", "rows past the last", "wgrad.py", "i_p, size_p, BOX_P, BOXED)", "i_p, size_p, BOX_P, False)", TMA_WGRAD
    ),
    Mutation(
        "boxed wgrad",
        "a split that starts late",
        "wgrad.py",
        "first_box(split * steps",
        "first_box(split * steps + 1",
        TMA_WGRAD,
    ),
    Mutation("boxed wgrad", "images past the last", "wgrad.py", "(i_n < size_n - n0) & fresh", "fresh", TMA_WGRAD),
    Mutation("epilogue", "a bias that is not scaled", "epilogue.py", "added *= scale", "added *= 1.0", FUSED),
    Mutation(
        "epilogue",
        "a shift of another channel",
        "epilogue.py",
        "fused.shift_stride, channel",
        "fused.shift_stride, 0 * channel",
        FUSED,
    ),
    Mutation(
        "epilogue",
        "z kept after the activation",
        "epilogue.py",
        "tl.store(z_ptrs, rounded(acc, z_ptrs",
        "tl.store(z_ptrs, rounded(activated(acc, ACTIVATION, SLOPE), z_ptrs",
        FUSED,
    ),
    Mutation(
        "epilogue",
        "a sigmoid of the wrong sign",
        "epilogue.py",
        "tl.where(z >= 0.0, 1.0, e)",
        "tl.where(z < 0.0, 1.0, e)",
        FUSED,
    ),
    Mutation(
        "epilogue", "a residual of another group", "dgrad.py", "base += first * wide(packed", "base += 0 * wide(packed", FUSED
    ),
    Mutation(
        "epilogue", "a residual of another image", "fprop.py", "base = ptr + image * wide", "base = ptr + 0 * wide", FUSED
    ),
    Mutation("causal", "an off-by-one tap", "causal.py", "weights[TAPS - 1 - d]", "weights[d]", CAUSAL),
    Mutation(
        "causal", "a state one column late", "causal.py", "(column + v) * step, mask", "(column + v - 1) * step, mask", CAUSAL
    ),
    Mutation(
        "causal", "another sequence's columns", "causal.py", "ids[j + TAPS - 1 - d] == ids[j + TAPS - 1]", "d == d", CAUSAL
    ),
    Mutation("causal", "starts without their state", "causal.py", "if changes > 0:", "if changes > 1:", CAUSAL),
    Mutation(
        "causal",
        "another sequence's state",
        "causal.py",
        "state = own.to(tl.int64) *",
        "state = 0 * own.to(tl.int64) *",
        CAUSAL,
    ),
    Mutation("causal", "columns of nobody kept", "causal.py", ">= 0, made[j], 0.0)", ">= -1, made[j], 0.0)", CAUSAL),
    Mutation(
        "causal", "the derivative of another z", "causal_backward.py", "(1.0 + z * (1.0 - s))", "(1.0 - z * (1.0 - s))", CAUSAL
    ),
    Mutation(
        "causal",
        "a gradient from another sequence",
        "causal_backward.py",
        "ids[j + d + TAPS - 1] == ids[j + TAPS - 1]",
        "d == d",
        CAUSAL,
    ),
    Mutation(
        "causal",
        "the final state's gradient lost",
        "causal_backward.py",
        "reached = (place >= 0) &",
        "reached = (place > 0) &",
        CAUSAL,
    ),
    Mutation(
        "causal",
        "a part that overwrites another",
        "causal_backward.py",
        "part.to(tl.int64) * ((TAPS",
        "0 * part.to(tl.int64) * ((TAPS",
        CAUSAL,
    ),
    Mutation(
        "causal",
        "a short sequence forgets",
        "causal_state.py",
        "value = tl.where(u < 0, before, value)",
        "value = value",
        CAUSAL,
    ),
    Mutation(
        "causal",
        "a state's gradient one tap off",
        "causal_state.py",
        "weights[i - t] * dz[t]",
        "weights[i - t + 1] * dz[t]",
        CAUSAL,
    ),
    Mutation(
        "causal",
        "a state that is not handed on",
        "causal_state.py",
        "mask=tl.where(i >= length, lanes",
        "mask=tl.where(i > length, lanes",
        CAUSAL,
    ),
    Mutation(
        "causal", "a ring read from its wrong end", "causal_state.py", "(had + (STATE - (TAPS - 1) + i))", "(had + i)", CAUSAL
    ),
    Mutation(
        "causal", "tokens of nobody", "causal_state.py", "acc = tl.where(entry >= 0,", "acc = tl.where(entry >= -1,", CAUSAL
    ),
    Mutation("video", "a frame too early", "video.py", "o * STRIDE[0] - unpack(sizes.front)", "o * STRIDE[0]", VIDEO),
    Mutation("video", "x taken for the cache", "frames.py", "tl.where(left_t <= 0, jump, 0)", "0", VIDEO),
    Mutation("video", "a tap too long in the cache", "frames.py", "left_t == 1, over", "left_t == 0, over", VIDEO),
    Mutation("video", "weights of another frame", "frames.py", "w_ptrs += first * TAPS", "w_ptrs += 0 * TAPS", VIDEO),
    Mutation("video", "a rest of the channels skipped", "frames.py", "tap_size - back * C_ALIGN, B", "BLOCK_K, B", VIDEO),
    Mutation("video", "the cache of another image", "video.py", "cache_n + (offset", "0 + (offset", VIDEO),
    Mutation("video", "a dropped mask", "video.py", "bits = window_bits(", "bits = -1 + 0 * window_bits(", VIDEO),
    Mutation("video", "a row of another parity", "frames.py", "h = (corner[0] + r", "h = (1 + corner[0] + r", VIDEO),
    Mutation("video", "pixels of one parity", "video.py", "parity_q = place % UP", "parity_q = 0 * place", VIDEO),
    Mutation("video", "a frame kept twice", "frames.py", "kept + place % kept", "kept + 0 * place", VIDEO),
    Mutation("band", "an off-by-one tap", "band.py", "moved = -q - GAP", "moved = 1 - q - GAP", BAND),
    Mutation("band", "taps that are not reversed", "band.py", "s = S - 1 - s", "s = s + 0", BAND),
    Mutation("band", "a window cut too short", "band.py", "low - last_p * BOX[0], 0)", "low - first_p * BOX[0], 0)", BAND),
    Mutation("band", "columns of the row before", "band.py", "& (j + c >= 0) &", "&", BAND),
    Mutation("band", "a missing bias", "band.py", "if HAS_BIAS and not FUSED:", "if False:", BAND),
    Mutation("band", "one row of the residual", "band.py", "* r_n + y_row.to(INDEX) * r_h", "* r_n + 0 * r_h", BAND_FUSED),
    Mutation("band", "a diagonal summed twice", "band_wgrad.py", "down = down < ROWS", "down = down <= ROWS", BAND),
    Mutation("band", "a share that starts late", "band_wgrad.py", "first = share * trips", "first = share * trips + 1", BAND),
    Mutation("band", "a tile to the left", "band_wgrad.py", "moved // COLUMNS - 1", "moved // COLUMNS", BAND),
    Mutation("band", "images beyond the last", "band_wgrad.py", "n, images) < images", "n, images) >= 0", BAND),
    Mutation("separable", "an off-by-one window", "separable.py", "STRIDE[1]) - unpack", "STRIDE[1]) + 1 - unpack", SEPARABLE),
    Mutation("separable", "a dropped mask", "separable.py", "ok = ((in_columns >> (u", "ok = ((-1 >> (u", SEPARABLE),
    Mutation(
        "separable",
        "rows of a wide window unmasked",
        "separable.py",
        "((in_rows >> u) &",
        "((-1 >> u) &",
        SEPARABLE,
    ),
    Mutation(
        "separable", "outputs of a strip mixed up", "separable.py", "evens + (parts[2 * i],)", "evens + (parts[i],)", SEPARABLE
    ),
    Mutation("separable", "the weights of one tap for all", "separable.py", "down.index(u) * S", "0 * S", SEPARABLE),
    Mutation("separable", "channels not summed", "separable.py", "x_ptrs += BLOCK_C", "x_ptrs += 0", SEPARABLE),
    Mutation(
        "separable",
        "nothing rounded between",
        "separable.py",
        "rounded(activated(made[o]",
        "tl.cast(activated(made[o]",
        SEPARABLE,
    ),
    Mutation(
        "separable",
        "the last filters' weights unmasked",
        "separable.py",
        "w2_mask = w2_mask & lanes",
        "w2_mask = w2_mask | lanes",
        SEPARABLE,
    ),
    Mutation(
        "separable",
        "the last column not stored",
        "separable.py",
        "(q < unpack(sizes.q))",
        "(q + 1 < unpack(sizes.q))",
        SEPARABLE,
    ),
    Mutation("separable", "another image's pixels", "separable.py", "n * x_n + h0", "0 * x_n + h0", SEPARABLE),
]
MUTATIONS += [Mutation("deform", *row) for row in deform_mutants.ROWS]
MUTATIONS += [Mutation("unfold", *row) for row in unfold_mutants.ROWS]
MUTATIONS += [Mutation("padded", *row) for row in padded_mutants.ROWS]
MUTATIONS += [Mutation("video", *row) for row in prologue_mutants.ROWS]
