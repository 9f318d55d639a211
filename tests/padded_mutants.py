"""Padding modes broken on purpose: rows of `mutants.Mutation` without the kernel's name."""

TESTS = ("tests/test_padded.py", "-k", "results_and_gradients or plans or beyond")
MODES, KERNELS = "modes.py", "padded.py"
COPIES = ("tests/test_copied.py", "-k", "the_copy_and_its_transpose")
PROLOGUES = ("tests/test_conv_prologue.py", "-k", "test_the_definition or epilogue_behind or tiles_of_one or any_layout")
BEFORE = "padded_prologue.py"

ROWS = (
    ("a fold behind the last pixel", MODES, "    last = size - 1", "    last = size", TESTS),
    ("no way round from below", MODES, "coordinate < 0, coordinate + size,", "coordinate < 0, coordinate,", TESTS),
    ("no way round from above", MODES, "coordinate >= size, coordinate - size,", "coordinate >= size, coordinate,", TESTS),
    (
        "the last pixel but one repeated",
        MODES,
        "tl.minimum(coordinate, size - 1), 0)",
        "tl.minimum(coordinate, size - 2), 0)",
        TESTS,
    ),
    ("a dropped mask", MODES, "mask = mask & inside(coordinate, size)", "mask = mask", TESTS),
    ("an image that is not added", MODES, "        count = 3", "        count = 2", TESTS),
    ("a pixel on the fold added twice", MODES, "pixel >= 0, pixel != place)", "pixel >= 0, pixel >= 0)", TESTS),
    ("repeated pixels of one end", MODES, "1 + low + tl.maximum(high, 0)", "1 + low", TESTS),
    ("a crop that is not made", MODES, "there = (place >= -low) & (place < size + high)", "there = place >= -low", TESTS),
    ("sources of the first tap for all", KERNELS, "if c == 0:  # another tap", "if c < 0:  # another tap", TESTS),
    ("a tap along another axis", KERNELS, "h0 + (zero + r) * DILATION[1]", "h0 + (zero + s) * DILATION[1]", TESTS),
    ("an off-by-one tap of wgrad", KERNELS, "w_shift = s.to(INDEX)", "w_shift = 1 + s.to(INDEX)", TESTS),
    ("boxes that stay at the first image", KERNELS, "n0.to(INDEX) * x_n, x_mask", "0 * n0.to(INDEX) * x_n, x_mask", TESTS),
    (
        "padding that begins elsewhere",
        "padded_fold.py",
        "at = (at_d + low_d, at_h + low_h, at_w + low_w)",
        "at = (at_d + low_d, at_h + low_h, at_w)",
        TESTS,
    ),
    ("a copy whose padding begins elsewhere", "padded_copy.py", "mapped(w - unpack(low[2])", "mapped(w", COPIES),
    ("a copy with the size of another axis", "padded_copy.py", "unpack(size[1]), MODE_H", "unpack(size[2]), MODE_H", COPIES),
    ("a wrong group", KERNELS, "x_base += group * channels", "x_base += 0 * channels", TESTS),
    ("a prologue of zeros in the padding", BEFORE, "return tl.where(mask, z, x)", "return z", PROLOGUES),
    (
        "values of the first image for all",
        BEFORE,
        "offset = (n.to(tl.int64) * step)",
        "offset = (n.to(tl.int64) * 0)",
        PROLOGUES,
    ),
    ("values of another image", BEFORE, "base = ptr + image * step + first_channel", "base = ptr + first_channel", PROLOGUES),
    (
        "values of the first group for all",
        KERNELS,
        "first_channel = group * channels",
        "first_channel = 0 * channels",
        PROLOGUES,
    ),
    ("values of the first share for all", KERNELS, "first_channel += part * unpack", "first_channel += 0 * unpack", PROLOGUES),
    (
        "a pixel's value of the first tap for all",
        KERNELS,
        "pixel, _ = sources_of(rows, n, at,",
        "pixel, _ = sources_of(rows, n, (d0, h0, w0),",
        PROLOGUES,
    ),
)
