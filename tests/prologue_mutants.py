"""The lines of the video kernel's newer parts that `mutants` breaks: what, file, old, new, and the tests that notice."""

PROLOGUE = ("tests/test_prologue.py", "-k", "test_the_definition or test_groups")
STATISTICS = ("tests/test_statistics.py", "-k", "large_mean")
SUMS = ("tests/test_packed.py", "-k", "summed_taps")

ROWS = [
    ("a prologue of the cache", "prologue.py", "of_x = frame >= 0", "of_x = frame >= -9", PROLOGUE),
    ("a prologue of zeros", "prologue.py", "tl.where(of_x, mask, False), z", "of_x & (c >= 0)[None, :], z", PROLOGUE),
    (
        "values of another channel",
        "prologue.py",
        "scale = load_inside(at + c, 0",
        "scale = load_inside(at + c * 0, 0",
        PROLOGUE,
    ),
    ("a raw frame kept", "frames.py", "value = tl.where(of_x, ", "value = tl.where(of_x & False, ", PROLOGUE),
    ("a mean without its correction", "statistics.py", "fix = tl.sum(off, 0) / more", "fix = 0 * tl.sum(off, 0)", STATISTICS),
    ("another parity's sums", "video.py", "w_ptr += (parity_p * 2", "w_ptr += (parity_p * 1", SUMS),
    ("a group's filters", "video.py", "offs_n += group * filters", "offs_n += 0 * filters", PROLOGUE),
]
