"""The lines of the kernels of `unfold` and `fold` that `mutants` breaks: what, file, old, new, and the tests that notice."""

UNFOLD = ("tests/test_unfold.py", "-k", "every_shape or anyhow or forced or 64_bits")
FILE = "unfold.py"

ROWS = [
    ("unfold, an off-by-one start", FILE, "w = w * STRIDE[2] - ", "w = w * STRIDE[2] + 1 - ", UNFOLD),
    ("unfold, rows beside the image read", FILE, "live = live & inside(h + r, size_h)", "live = live & exists", UNFOLD),
    ("unfold, a share that starts late", FILE, "begin = share * unpack(sizes.taps)", "begin = share * TAPS", UNFOLD),
    ("unfold, another tap's row", FILE, "(y_place + tap * y_c), value", "(y_place + begin * y_c), value", UNFOLD),
    ("unfold, padding that is not zero", FILE, "other=0.0)\n        tl.store", "other=1.0)\n        tl.store", UNFOLD),
    ("fold, the first tap for all", FILE, "PERIOD * INVERSE % PERIOD", "PERIOD % PERIOD", UNFOLD),
    ("fold, taps beyond the kernel", FILE, "(place < size) & (tap < TAPS)", "(place < size)", UNFOLD),
    ("fold, places between two", FILE, "live = live & (begin % STRIDE == 0)", "live = live & (begin >= 0)", UNFOLD),
    ("fold, one tap alone", FILE, "acc += tl.load(", "acc = tl.load(", UNFOLD),
    ("fold, the first row of taps for all", FILE, "tap += r * KERNEL[2]", "tap += 0 * r", UNFOLD),
    ("both, the first block of channels for all", FILE, "block % blocks * BLOCK_N, ", "block % blocks * 0, ", UNFOLD),
]
