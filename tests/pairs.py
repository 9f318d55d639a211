"""Pairs of a depthwise and a pointwise convolution, and what they should answer: torch's in float64.

The tolerance of y is `oracle`'s with one term more: what lies between is rounded to the dtype, each by a unit of its size.
"""

import torch
import torch.nn.functional as F
from oracle import uses_tf32

import tritonconv
from bench.tolerance import C_LIMIT, TF32_INPUT_UNIT, UNIT
from tritonconv.epilogue import ACTIVATIONS

NAMES = (None, *ACTIVATIONS)
SLOPE = 0.2


def act(name, z):
    return ACTIVATIONS[name].forward(z, SLOPE) if name else z


class Example:
    """Tensors of a call. `layout`: how x, the residual and what arrives as dy lie."""

    def __init__(
        self,
        x=(2, 6, 9, 7),
        filters=5,
        kernel=(3, 3),
        dtype=torch.float64,
        layout="last",
        device="cpu",
        residual=False,
        biased=True,
        seed=0,
        **window,
    ):
        self.random, self.device, self.dtype, self.layout, self.window = (
            torch.Generator().manual_seed(seed),
            device,
            dtype,
            layout,
            window,
        )
        self.x = self.laid(self.values(*x))
        self.w1, self.w2 = self.values(x[1], 1, *kernel), self.values(filters, x[1], 1, 1)
        self.b1, self.b2 = (self.values(x[1]), self.values(filters)) if biased else (None, None)
        self.shape = self.exact(None, None).shape
        self.residual = self.laid(self.values(*self.shape)) if residual else None

    def values(self, *shape):
        return torch.randn(shape, generator=self.random, dtype=torch.float64).to(self.dtype).to(self.device)

    def laid(self, t):
        if self.layout == "last":
            return t.to(memory_format=torch.channels_last)
        if self.layout == "sliced":
            wide = t.new_zeros((*t.shape[:2], t.shape[2] + 3, 2 * t.shape[3]))
            view = wide[:, :, 1 : 1 + t.shape[2], ::2]
            return view.copy_(t)
        if self.layout == "expanded":
            return t[:1].expand_as(t)
        return t.contiguous()

    @property
    def tensors(self):
        given = (self.x, self.w1, self.w2, self.b1, self.b2, getattr(self, "residual", None))
        return dict(
            zip(
                ("input", "depthwise_weight", "pointwise_weight", "depthwise_bias", "pointwise_bias", "residual"),
                given,
                strict=True,
            )
        )

    def ours(self, between=None, after=None, plan="fused", tensors=None):
        given = self.tensors if tensors is None else tensors
        return tritonconv.depthwise_separable_conv2d(
            **given, **self.window, activation=between, pointwise_activation=after, negative_slope=SLOPE, plan=plan
        )

    def exact(self, between, after, change=lambda t: t, tensors=None, rounded=False):
        x, w1, w2, b1, b2, residual = (
            None if t is None else change(t if tensors is not None else t.detach().cpu().double())
            for t in (tensors or self.tensors).values()
        )
        z = act(between, F.conv2d(x, w1, b1, groups=x.shape[1], **self.window))
        z = z.to(self.dtype).double() if rounded else z
        y = F.conv2d(z, w2, b2)
        return act(after, y if residual is None else y + residual)

    def tolerance(self, between, after, y):
        """One rounding of y; of z, and of the sums, times the steepest slope."""
        between_sizes = self.exact(None, None, torch.abs)  # |z| before activations of slope 1.5, bias included
        unit, wide = UNIT[self.dtype], UNIT[torch.float64 if self.dtype == torch.float64 else torch.float32]
        unit += TF32_INPUT_UNIT if uses_tf32(self.dtype, self.device) else 0.0  # of both factors of the second product
        terms = self.w1[0].numel() + self.x.shape[1] + 2
        return unit * y.abs() + 1.5 * 1.5 * (unit + C_LIMIT * wide * terms**0.5) * (between_sizes + 3)


def assert_close(example, between=None, after=None, plan="fused"):
    got = example.ours(between, after, plan)
    want = example.exact(between, after)
    assert got.shape == want.shape and got.dtype == example.dtype
    error = (got.detach().cpu().double() - want).abs()
    assert bool((error <= example.tolerance(between, after, want)).all()), f"off by {error.max()}"
    return got
