"""A call of the causal convolution of video: the frames that it sees and keeps, and the bytes that it moves. Plain arithmetic,
standard library only.

The known frames are those of the cache followed by those of x. A result sees the frames up to its own; up to `front` of them
come before the first known frame. All geometry is `ConvProblem`'s: it convolves the known frames with `front` as low padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from costmodel.algebra import product
from costmodel.problem import ConvProblem
from costmodel.prologue import Prologue

#: What stands for the frames before the first known one: zeros, that frame repeated, or nothing (windows begin with it).
TIME_PADDING = ("zeros", "replicate", "valid")
#: What stands beyond the border of a frame.
MODES = ("zeros", "replicate", "reflect", "circular")


@dataclass(frozen=True)
class Chunk:
    """A call: the convolution of its known frames, of which `cached` come from the cache. The height and width of `problem` are
    those after `upsample`. `replicate`: frames before the first known one repeat it; otherwise they are zero. `prologue` is
    applied to the frames of x, not to those of the cache. `summed`: taps of magnified frames that see the same pixel are one,
    with the sum of their weights. `mode`: what stands beyond the border in height and width, as `padding_mode` of torch."""

    problem: ConvProblem
    cached: Any = 0
    upsample: int = 1
    replicate: bool = False
    valid: bool = False
    prologue: Prologue | None = None
    residual: bool = False
    summed: bool = False
    mode: str = "zeros"

    @classmethod
    def of(
        cls,
        x: Sequence[Any],
        weight: Sequence[Any],
        cached: Any = 0,
        stride: Sequence[Any] = (1, 1, 1),
        padding: Sequence[Any] = (0, 0, 0, 0),
        dilation: Sequence[Any] = (1, 1, 1),
        upsample: int = 1,
        time_padding: str = "zeros",
        groups: Any = 1,
        mode: str = "zeros",
    ) -> Chunk:
        """The call for x [N, C, T, H, W], weight [K, C / groups, t, r, s]; `padding` is (low, high) of height, then of
        width."""
        batch, channels, frames, height, width = x
        valid = time_padding == "valid"
        front = 0 if valid else dilation[0] * (weight[2] - 1) - cached
        known = (batch, channels, cached + frames, height * upsample, width * upsample)
        pads = ((front, 0), (padding[0], padding[1]), (padding[2], padding[3]))
        problem = ConvProblem.conv(known, weight, stride, pads, dilation, groups, checked=False)
        return cls(problem, cached, upsample, time_padding == "replicate", valid, mode=mode)

    def with_summed_taps(self) -> Chunk:
        """The call with `summed`, where a frame is magnified and its taps are neighbours, an odd number along either axis, so
        that results of either parity see as many pixels."""
        _, r, s = self.problem.kernel_size
        fits = (
            self.upsample == 2
            and self.mode in ("zeros", "replicate")
            and self.problem.dilation[1:] == (1, 1)
            and r % 2 == s % 2 == 1
            and r * s > 1
        )
        return replace(self, summed=True) if fits else self

    @property
    def window(self) -> tuple[Any, ...]:
        """The taps (t, r, s) that are multiplied."""
        t, r, s = self.problem.kernel_size
        return (t, (r + 1) // 2, (s + 1) // 2) if self.summed else (t, r, s)

    @property
    def weights(self) -> Any:
        """Elements of the weights that are read: with summed taps, those of four parities."""
        return self.problem.out_channels * self.depth * product(self.window) * (4 if self.summed else 1)

    @property
    def depth(self) -> Any:
        """Channels of a group."""
        return self.problem.in_channels // self.problem.groups

    @property
    def reach(self) -> Any:
        """The number of frames before its own that a result sees."""
        return self.problem.effective_kernel[0] - 1

    @property
    def front(self) -> Any:
        return self.problem.padding[0][0]

    @property
    def known(self) -> Any:
        return self.problem.input_size[0]

    @cached_property
    def spatial(self) -> ConvProblem:
        """The same convolution without padding in time: the frames before the known ones are written out, and in another mode
        than "zeros" the padding of a frame too."""
        problem = self.problem
        if self.mode != "zeros":
            return replace(problem, input_size=(self.front + self.known, *problem.padded_size[1:]), padding=((0, 0),) * 3)
        size = (self.front + self.known, *problem.input_size[1:])
        return replace(problem, input_size=size, padding=((0, 0), *problem.padding[1:]))

    @cached_property
    def differentiated(self) -> ConvProblem:
        """The convolution whose gradients are taken: `spatial` where the first frame is repeated, else that of the known frames
        alone. The zero frames before them stay padding."""
        if self.replicate:
            return self.spatial
        size = (self.known, *self.spatial.input_size[1:])
        return replace(self.spatial, input_size=size, padding=((self.front, 0), *self.spatial.padding[1:]))

    @property
    def flops(self) -> Any:
        """Dense FLOP (2 * MAC), including those on frames that are padding; the bias is not counted."""
        return 0 if self.output_shape[2] == 0 else self.problem.flops

    @property
    def frame(self) -> tuple[Any, Any]:
        """Height and width of a frame of x."""
        _, height, width = self.problem.input_size
        return height // self.upsample, width // self.upsample

    @property
    def output_shape(self) -> tuple[Any, ...]:
        """[N, K, O, P, Q]; O is 0 where a valid call knows fewer frames than a window sees."""
        shape = self.problem.output_shape
        if self.valid and self.known <= self.reach:
            return (*shape[:2], 0, *shape[3:])
        return shape

    @property
    def kept(self) -> Any:
        """Frames of the next cache: as many as a window reaches back, or in a valid call those from the first frame of the next
        window on.

        It is negative where the next window begins behind x.
        """
        return self.known - self.output_shape[2] * self.problem.stride[0] if self.valid else self.reach

    @property
    def next_shape(self) -> tuple[Any, ...]:
        return (self.problem.batch, self.problem.in_channels, self.kept, *self.frame)

    @cached_property
    def live_taps(self) -> int:
        """Taps in time that the kernel computes, summed over the frames of the result; taps on zero frames are left out."""
        if self.output_shape[2] == 0:
            return 0
        every = self.problem.kernel_size[0] * self.problem.output_size[0]
        return int(every if self.replicate else self.problem.valid_pairs[0])

    def __str__(self) -> str:
        parts = [str(self.problem), f"{self.cached} of {self.known} frames cached"]
        parts += ["magnified by 2"] * (self.upsample > 1) + ["taps summed"] * self.summed
        parts += [f"padded by {self.mode!r}"] * (self.mode != "zeros")
        parts += [] if self.prologue is None else [f"normalised first ({self.prologue})"]
        return ", ".join(parts + ["the first frame replicated"] * self.replicate)


def elements(chunk: Chunk) -> dict[str, int]:
    """Elements of each tensor of a call; "x" and "cache" as stored, before `upsample`."""
    results = product(chunk.output_shape)
    batch, channels = chunk.problem.batch, chunk.problem.in_channels
    frame = batch * channels * product(chunk.frame)
    return {
        "x": frame * (chunk.known - chunk.cached),
        "cache": frame * chunk.cached,
        "weight": product(chunk.problem.weight_shape),
        "y": results,
        "residual": results * chunk.residual,
        "next": frame * chunk.kept,
    }


def compulsory(chunk: Chunk, size: int) -> int:
    """Bytes that a call moves at least: each tensor once. The frames of x that the next cache takes are read from L2 again."""
    return size * sum(elements(chunk).values())


def chain(chunk: Chunk, size: int) -> dict[str, int]:
    """Bytes moved by each of the operators that users write instead: torch.cat, F.interpolate, F.pad, conv3d, its bias,
    clone."""
    held, problem = elements(chunk), chunk.problem
    known, u = held["x"] + held["cache"], chunk.upsample**2
    padded = problem.batch * problem.in_channels * product(problem.padded_size)
    moved = {"cat": 2 * known if chunk.cached else 0, "interpolate": known * (1 + u) if u > 1 else 0}
    moved["pad"] = known * u + padded if padded != known * u else 0
    moved |= {
        "conv3d": padded + held["weight"] + held["y"],
        "bias": 2 * held["y"],
        "add": 3 * held["residual"],
        "clone": 2 * held["next"],
    }
    return {name: size * count for name, count in moved.items() if count}
