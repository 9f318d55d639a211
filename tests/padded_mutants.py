"""Padding modes broken on purpose: rows of `mutants.Mutation` without the kernel's name."""

TESTS = ("tests/test_padded.py", "-k", "results_and_gradients or plans or beyond")
MODES, KERNELS = "modes.py", "padded.py"

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
        "pixel = pixel * row_w + (at_w + low_w)",
        "pixel = pixel * row_w + at_w",
        TESTS,
    ),
    ("a wrong group", KERNELS, "x_base += group * channels", "x_base += 0 * channels", TESTS),
)
