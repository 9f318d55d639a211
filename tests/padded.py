"""Convolutions with padding modes by torch's `pad` and convolution, in float64: what their tests hold the library against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import oracle
import torch
import torch.nn.functional as F

import tritonconv
from bench.tolerance import Expected
from bench.work import written_out

MODES = ("reflect", "replicate", "circular")


@dataclass(frozen=True)
class Padded:
    """A layer: x [N, C, *size], weight [K, C / groups, *kernel], and its window with (low, high) and a mode per axis."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: tuple[str, ...] | str
    stride: tuple[int, ...] | int = 1
    dilation: tuple[int, ...] | int = 1
    groups: int = 1
    channels: int = 3
    filters: int = 4
    batch: int = 2

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def window(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names} | {"padding_mode": self.mode}

    def tensors(self, dtype: torch.dtype = torch.float64, device: str = "cpu", last: bool = False) -> tuple[torch.Tensor, ...]:
        """x, w and b of values that `dtype` holds; with `last`, channels-last."""
        random = torch.Generator().manual_seed(0)

        def values(*shape: int) -> torch.Tensor:
            made = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).to(device)
            if last and len(shape) > 3:
                made = made.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
            return made

        x = values(self.batch, self.channels, *self.size)
        return x, values(self.filters, self.channels // self.groups, *self.kernel), values(self.filters)

    def ours(self, x: torch.Tensor, w: torch.Tensor, b: Any = None, **further: Any) -> torch.Tensor:
        """`further`: a plan, or another padding."""
        return getattr(tritonconv, f"conv{self.rank}d")(x, w, b, **(self.window | further))


#: Every mode and rank; two axes of different modes; uneven sides; padding to torch's limit of a mode; strides, dilation and
#: groups; one channel per group.
LAYERS = {
    "1d": Padded((5,), (3,), ((2, 1),), "circular", stride=2),
    "1d reflected": Padded((4,), (3,), ((3, 3),), "reflect"),
    "1d of one pixel": Padded((1,), (2,), ((3, 2),), "replicate"),
    "1d around": Padded((3,), (5,), ((3, 3),), "circular", dilation=2),
    "reflect": Padded((4, 5), (3, 2), ((1, 1), (2, 0)), "reflect"),
    "replicate": Padded((3, 4), (3, 3), ((1, 2), (4, 3)), "replicate", stride=(2, 1)),
    "circular": Padded((4, 3), (3, 3), ((1, 1), (1, 3)), "circular", dilation=(1, 2)),
    "weather": Padded((4, 6), (3, 3), ((1, 1), (1, 1)), ("zeros", "circular")),
    "mixed": Padded((4, 5), (2, 3), ((3, 1), (1, 2)), ("reflect", "replicate"), groups=2, channels=4),
    "strided": Padded((5, 6), (2, 2), ((1, 0), (0, 1)), ("circular", "reflect"), stride=3),
    "depthwise": Padded((4, 4), (3, 3), ((1, 1), (1, 1)), "circular", groups=3, channels=3, filters=6),
    "3d": Padded((3, 3, 4), (2, 3, 2), ((1, 0), (1, 1), (2, 1)), ("circular", "reflect", "zeros"), channels=2, filters=2),
    "3d replicated": Padded((2, 3, 3), (2, 2, 3), ((2, 1), (0, 1), (1, 1)), "replicate", stride=(1, 2, 1), channels=1),
}


def by_pad(x: torch.Tensor, w: torch.Tensor, b: Any = None, *, padding: Any, padding_mode: Any, **window: Any) -> torch.Tensor:
    modes = (padding_mode,) * len(padding) if isinstance(padding_mode, str) else padding_mode
    return getattr(F, f"conv{x.dim() - 2}d")(written_out(x, padding, modes), w, b, **window)


def expected(layer: Padded, x: torch.Tensor, w: torch.Tensor, b: Any, g: torch.Tensor) -> dict[str, Expected]:
    """The exact result and gradients for the gradient g, with what the tolerance is derived from."""
    tensors = [None if t is None else t.detach().cpu().double() for t in (x, w, b, g)]

    def over(change: Any) -> oracle.Results:
        x64, w64, b64, g64 = (None if t is None else change(t).contiguous() for t in tensors)
        return oracle.run(by_pad, x64, w64, b64, g64, **layer.window)

    value, magnitude, terms = over(torch.clone), over(torch.abs), over(torch.ones_like)
    return {name: Expected(value[name], magnitude[name], terms[name]) for name in value}


def check(layer: Padded, x: torch.Tensor, w: torch.Tensor, b: Any, **further: Any) -> None:
    """Holds the result and the gradients of a call against torch's."""

    def gradient(y: torch.Tensor) -> torch.Tensor:
        return torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype).to(y.device)

    got = oracle.run(layer.ours, x, w, b, gradient, **further)
    want = expected(layer, x, w, b, gradient(got["output"]))
    assert all(result.dtype == x.dtype for result in got.values())
    oracle.assert_close(got, want, str(layer), oracle.uses_tf32(x.dtype, str(x.device)))
