"""Deformable convolutions by their formula, in float64: what every test of them holds the library against.

y[n, k, p, q] = b[k] + sum over c, r, s of w[k, c, r, s] * mask * sample(x[n, c], h, w), with h = p * stride - padding +
r * dilation + offset, and sample(x, h, w) = sum over pixels (i, j) of max(0, 1 - |h - i|) * max(0, 1 - |w - j|) * x[i, j]. That
is the formula of Dai et al. 2017 (arXiv:1703.06211), equations 2 to 4, and shares no code with the library.
"""

from typing import NamedTuple

import pytest
import torch

import tritonconv
from bench.tolerance import UNIT


class Tensors(NamedTuple):
    input: torch.Tensor
    offset: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    mask: torch.Tensor | None


def tensors(
    shape=(2, 6, 5, 6),
    filters=4,
    kernel=(3, 3),
    groups=1,
    offset_groups=1,
    masked=True,
    biased=True,
    reach=2.0,
    dtype=torch.float64,
    device="cpu",
    seed=0,
    **window,
):
    """Tensors of a call, of values that `dtype` holds, with offsets of `reach` pixels on average."""
    random = torch.Generator().manual_seed(seed)

    def values(*sizes, scale=1.0):
        return (scale * torch.randn(sizes, generator=random, dtype=torch.float64)).to(dtype).to(device)

    x, w = values(*shape), values(filters, shape[1] // groups, *kernel)
    stride, padding, dilation = (pair(window.get(name, default)) for name, default in WINDOW)
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    taps = kernel[0] * kernel[1] * offset_groups
    offset = values(shape[0], 2 * taps, *out, scale=reach)
    offset += 0.25 * (offset == offset.floor())  # whole ones, of which the formula has no derivative: half precision has many
    mask = values(shape[0], taps, *out) if masked else None
    return Tensors(x, offset, w, values(filters) if biased else None, mask)


WINDOW = (("stride", 1), ("padding", 0), ("dilation", 1))


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def by_formula(of, stride=1, padding=0, dilation=1):
    """The result in float64, with torch's derivatives: every pixel against every place."""
    x, offset, w, b, mask = (None if t is None else t.double().cpu() for t in of)
    (n, c, height, width), (filters, per_group, r, s) = x.shape, w.shape
    (p, q), taps = offset.shape[2:], r * s
    d = offset.shape[1] // (2 * taps)
    tents = []
    for axis, size in ((0, height), (1, width)):
        grid = torch.arange((p, q)[axis]) * pair(stride)[axis] - pair(padding)[axis]
        tap = torch.arange((r, s)[axis]) * pair(dilation)[axis]
        start = (tap.view(-1, 1, 1, 1) + grid.view(1, 1, -1, 1)) if axis == 0 else (tap.view(1, -1, 1, 1) + grid)
        place = start + offset.view(n, d, r, s, 2, p, q)[:, :, :, :, axis]  # [n, d, r, s, p, q]
        tents.append((1 - (place.unsqueeze(-1) - torch.arange(size)).abs()).clamp(min=0))
    images = x.view(n, d, c // d, height, width)
    sampled = torch.einsum("ndrspqh,ndrspqw,ndchw->ndcrspq", *tents, images)
    if mask is not None:
        sampled = sampled * mask.view(n, d, 1, r, s, p, q)
    groups = c // per_group
    columns = sampled.reshape(n, groups, per_group, r, s, p, q)
    y = torch.einsum("gkcrs,ngcrspq->ngkpq", w.view(groups, -1, per_group, r, s), columns).reshape(n, filters, p, q)
    return y if b is None else y + b.view(-1, 1, 1)


def room(of, dtype, **window):
    """How far a result in `dtype` may be from the formula: a rounding of each sample and of the result, and of each term of the
    sums and of the interpolation one of the accumulator. Offsets are exact in all dtypes, and so are the places."""
    sized = Tensors(*(t if t is None or name == "offset" else t.double().abs() for name, t in of._asdict().items()))
    terms = of.weight[0].numel() + 8
    unit, inner = UNIT[dtype], UNIT[torch.float64 if dtype == torch.float64 else torch.float32]
    return (2 * unit + terms * inner) * by_formula(sized, **window) + torch.finfo(torch.float64).tiny


def assert_close(of, got, dtype=None, **window):
    dtype = dtype or of.input.dtype
    want = by_formula(of, **window)
    assert got.shape == want.shape and got.dtype == dtype
    off = (got.detach().double().cpu() - want).abs() / room(of, dtype, **window)
    assert bool((off <= 1).all()), f"{float(off.max()):.3g} times the room"


def ours(of, plan=None, **window):
    return tritonconv.deform_conv2d(*of[:4], mask=of.mask, plan=plan, **window)


def gradients(call, of, into=None):
    """(gradients, dy): of all tensors that there are, for a gradient dy that differs everywhere, rounded to the dtype."""
    leaves = Tensors(*(None if t is None else t.detach().clone().requires_grad_() for t in of))
    y = call(leaves)
    dy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape) if into is None else into
    given = [t for t in leaves if t is not None]
    dy = dy.to(of.input.dtype).double()
    return torch.autograd.grad(y, given, dy.to(y.dtype).to(y.device)), dy


def assert_all_close(of, got, want, tolerance):
    """Fails where a gradient is off by more than `tolerance` of its largest element."""
    names = [name for name, t in of._asdict().items() if t is not None]
    for name, mine, exact in zip(names, got, want, strict=True):
        assert mine.dtype == getattr(of, name).dtype and mine.shape == exact.shape
        off = float((mine.double().cpu() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))
        assert off <= tolerance, f"{name}: {off:.3g} of the largest"


def torchvision_ops():
    """`torchvision.ops`; the test is skipped where the package is not there, or is built for another torch."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not load: {error}")
    if not torchvision.extension._has_ops():
        pytest.skip("torchvision has no operators for this torch")
    return torchvision.ops
