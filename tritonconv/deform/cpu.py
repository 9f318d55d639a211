"""The deformable convolution by torch's operators, for CPU tensors outside Triton's interpreter, with its gradients.

Half precision is computed in float32. CUDA tensors never come here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from costmodel.deform import Deformation
from tritonconv.layout import allocate
from tritonconv.prepared import wide

Maybe = torch.Tensor | None


class Places(NamedTuple):
    """Where taps sample: tensors [N, D, T, P Q], T the taps, or four of them, one for each pixel around a place."""

    shares: tuple[torch.Tensor, torch.Tensor]  # how far a place lies behind its first row and column
    pixels: tuple[torch.Tensor, ...]  # numbers of pixels of an image
    exist: tuple[torch.Tensor, ...]
    live: torch.Tensor  # the place is not outside

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        h, w = (torch.where(self.live, share, 0) for share in self.shares)
        return (1 - h) * (1 - w), (1 - h) * w, h * (1 - w), h * w


def _axis(of: Deformation, offset: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the pixel at or before each coordinate, the rest) along one axis, as `kernels.deform.coordinate` finds them."""
    problem = of.problem
    taps = torch.arange(problem.kernel_size[axis]) * problem.dilation[axis]
    outputs = torch.arange(problem.output_size[axis]) * problem.stride[axis] - problem.padding[axis][0]
    grid = taps.view(-1, 1, 1, 1) + outputs.view(1, 1, -1, 1)  # [tap, 1, output, 1]
    grid = (grid if axis == 0 else grid.permute(1, 0, 3, 2)).expand(*problem.kernel_size, *problem.output_size)
    whole = offset.floor()
    far = float(1 << 30)
    low = grid.reshape(1, 1, problem.taps, -1) + whole.nan_to_num(0, far, -far).clamp(-far, far).long()
    return torch.where(offset.isnan(), 0, low), offset - whole


def places(of: Deformation, offset: torch.Tensor, border: bool = True) -> Places:
    """Where every tap samples. `border`: a place at -1 is outside, as it is for all but the gradient of the offset."""
    problem = of.problem
    each = offset.reshape(problem.batch, of.offset_groups, problem.taps, 2, -1)
    size = problem.input_size
    (h, share_h), (w, share_w) = (_axis(of, each[:, :, :, axis], axis) for axis in (0, 1))
    live = torch.ones_like(h, dtype=torch.bool)
    for low, share, n in ((h, share_h, size[0]), (w, share_w, size[1])):
        live &= (low < n) & ((low >= 0) | ((low == -1) & (share != 0 if border else True)))
    around = [(i, j) for i in (h, h + 1) for j in (w, w + 1)]
    exist = tuple(live & (i >= 0) & (i < size[0]) & (j >= 0) & (j < size[1]) for i, j in around)
    pixels = tuple(torch.where(e, i * size[1] + j, 0) for e, (i, j) in zip(exist, around, strict=True))
    return Places((share_h, share_w), pixels, exist, live)


def corner(of: Deformation, images: torch.Tensor, at: Places, i: int) -> torch.Tensor:
    """[N, D, channels of a group, T, P Q] the values of one pixel around each place, 0 where there is none."""
    problem = of.problem
    flat = images.reshape(problem.batch, of.offset_groups, of.shared, 1, -1).expand(-1, -1, -1, problem.taps, -1)
    index = at.pixels[i].unsqueeze(2).expand(-1, -1, of.shared, -1, -1)
    return torch.where(at.exist[i].unsqueeze(2), flat.gather(-1, index), 0)


def samples(of: Deformation, images: torch.Tensor, at: Places) -> torch.Tensor:
    """[N, D, channels of a group, T, P Q], without mask."""
    return sum(w.unsqueeze(2) * corner(of, images, at, i) for i, w in enumerate(at.weights))  # type: ignore[return-value]


def _columns(of: Deformation, sampled: torch.Tensor, mask: Maybe) -> torch.Tensor:
    """[N, G, channels of a weight group * T, P Q], the mask multiplied in."""
    problem = of.problem
    if mask is not None:
        sampled = sampled * mask.reshape(problem.batch, of.offset_groups, 1, problem.taps, -1)
    return sampled.reshape(problem.batch, problem.groups, problem.channels_per_group * problem.taps, -1)


def _widened(*tensors: Maybe, dtype: torch.dtype) -> list[Maybe]:
    return [None if t is None else t.to(wide(dtype)) for t in tensors]


def forward(
    of: Deformation, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, b: Maybe, mask: Maybe, forced: str = ""
) -> torch.Tensor:
    problem = of.problem
    y = allocate(problem.output_shape, x, w)
    if not y.numel():
        return y
    images, moved, weight, bias, factors = _widened(x, offset, w, b, mask, dtype=x.dtype)
    assert images is not None and moved is not None and weight is not None
    columns = _columns(of, samples(of, images, places(of, moved)), factors)
    made = torch.matmul(weight.reshape(problem.groups, problem.filters_per_group, -1), columns).reshape(y.shape)
    return y.copy_(made if bias is None else made + bias.view(-1, 1, 1))
