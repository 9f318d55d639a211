"""Windows as columns and back, by the loops of `tritonconv.reference`: what every test of them holds the library against."""

import math

import torch

import tritonconv
from bench.tolerance import UNIT
from tritonconv import reference

#: image [N, C, *size], kernel, and the rest of the window.
CALLS = {
    "2-D": ((2, 3, 4, 5), (3, 2), {"padding": (1, 0)}),
    "1-D": ((1, 2, 7), (3,), {"padding": 1, "stride": 2}),
    "3-D": ((1, 2, 3, 2, 4), (2, 1, 2), {"padding": (0, 1, 1), "stride": (1, 2, 1)}),
    "kernel < stride": ((1, 2, 7, 6), (2, 1), {"stride": (3, 2)}),
    "stride and dilation share a divisor": ((1, 1, 9, 8), (3, 2), {"stride": (4, 2), "dilation": (2, 2), "padding": (1, 0)}),
    "stride and dilation share none": ((1, 1, 8, 9), (3, 2), {"stride": (3, 2), "dilation": (2, 3), "padding": (2, 1)}),
    "patches": ((1, 3, 4, 6), (2, 3), {"stride": (2, 3)}),
    "padding beyond the kernel": ((1, 2, 2, 3), (1, 2), {"padding": 3}),
    "empty batch": ((0, 2, 4, 4), (2, 2), {}),
}


def image(shape, dtype=torch.float64, device="cpu", seed=0):
    """Values that `dtype` holds, none of them zero."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (made + made.sign()).to(dtype).to(device)


def columns(shape, kernel, window, dtype=torch.float64, device="cpu", seed=1):
    """Columns for an image of a shape."""
    count = math.prod(reference.output_size(shape[2:], kernel, **window))
    return image((shape[0], shape[1] * math.prod(kernel), count), dtype, device, seed)


def unfolded(x, kernel, window):
    """The columns by the loop, in x's dtype: elements are copied."""
    return reference.flatten_regions(x.cpu(), kernel, **window).transpose(1, 2)


def assert_folded(y, size, kernel, window, got):
    """Holds an image against the loop in float64: within a rounding of the result, and one of the accumulator per term."""
    given, terms = y.detach().double().cpu().transpose(1, 2), math.prod(kernel)
    want, room = (reference.fold_regions(t, size, kernel, **window) for t in (given, given.abs()))
    inner = UNIT[torch.float64 if y.dtype == torch.float64 else torch.float32]
    assert got.shape == want.shape and got.dtype == y.dtype and got.is_contiguous()
    off = (got.detach().double().cpu() - want).abs()
    assert bool((off <= (UNIT[y.dtype] + terms * inner) * room).all()), f"off by {float(off.max()):.3g}"


def check(name, dtype=torch.float64, device="cpu", laid=lambda t: t, **plans):
    """Both functions on the tensors of a call; `laid` lays out what they read."""
    shape, kernel, window = CALLS[name]
    x, y = laid(image(shape, dtype, device)), laid(columns(shape, kernel, window, dtype, device))
    got = tritonconv.unfold(x, kernel, **window, plan=plans.get("unfold"))
    assert got.is_contiguous() and torch.equal(got.cpu(), unfolded(x, kernel, window))
    assert_folded(y, shape[2:], kernel, window, tritonconv.fold(y, shape[2:], kernel, **window, plan=plans.get("fold")))
