"""The deformable convolution by torch's operators, for CPU tensors outside Triton's interpreter, with its gradients.

Half precision is computed in float32. CUDA tensors never come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from costmodel.deform import Deformation
from tritonconv.deform.backward import allocated
from tritonconv.layout import allocate
from tritonconv.prepared import wide

Maybe = torch.Tensor | None
Needs = Sequence[bool]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Places(NamedTuple):
    """The positions of samples. Tensors are [N, D, T, P Q], where T counts the taps; or there are four, one for each pixel
    around a position."""

    shares: tuple[torch.Tensor, torch.Tensor]  # how far a place lies behind its first row and column
    pixels: tuple[torch.Tensor, ...]  # numbers of pixels of an image
    exist: tuple[torch.Tensor, ...]
    live: torch.Tensor  # the place is not outside

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        h, w = (torch.where(self.live, share, 0) for share in self.shares)
        return (1 - h) * (1 - w), (1 - h) * w, h * (1 - w), h * w


def _axis(deformation: Deformation, offset: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the pixel at or before each coordinate, the rest) along one axis, as `kernels.deform.coordinate` finds them."""
    problem = deformation.problem
    taps = torch.arange(problem.kernel_size[axis]) * problem.dilation[axis]
    outputs = torch.arange(problem.output_size[axis]) * problem.stride[axis] - problem.padding[axis][0]
    grid = taps.view(-1, 1, 1, 1) + outputs.view(1, 1, -1, 1)  # [tap, 1, output, 1]
    grid = (grid if axis == 0 else grid.permute(1, 0, 3, 2)).expand(*problem.kernel_size, *problem.output_size)
    whole = offset.floor()
    far = float(1 << 30)
    low = grid.reshape(1, 1, problem.taps, -1) + whole.nan_to_num(0, far, -far).clamp(-far, far).long()
    return torch.where(offset.isnan(), 0, low), offset - whole


def places(deformation: Deformation, offset: torch.Tensor, border: bool = True) -> Places:
    """Where every tap samples. `border`: a place at -1 is outside, as it is for all but the gradient of the offset."""
    problem = deformation.problem
    offsets = offset.reshape(problem.batch, deformation.offset_groups, problem.taps, 2, -1)
    size = problem.input_size
    (h, share_h), (w, share_w) = (_axis(deformation, offsets[:, :, :, axis], axis) for axis in (0, 1))
    live = torch.ones_like(h, dtype=torch.bool)
    for low, share, n in ((h, share_h, size[0]), (w, share_w, size[1])):
        live &= (low < n) & ((low >= 0) | ((low == -1) & (share != 0 if border else True)))
    around = [(i, j) for i in (h, h + 1) for j in (w, w + 1)]
    exist = tuple(live & (i >= 0) & (i < size[0]) & (j >= 0) & (j < size[1]) for i, j in around)
    pixels = tuple(torch.where(e, i * size[1] + j, 0) for e, (i, j) in zip(exist, around, strict=True))
    return Places((share_h, share_w), pixels, exist, live)


def corner(deformation: Deformation, images: torch.Tensor, at: Places, i: int) -> torch.Tensor:
    """[N, D, channels of a group, T, P Q] the values of one pixel around each place, 0 where there is none."""
    problem = deformation.problem
    flat = images.reshape(problem.batch, deformation.offset_groups, deformation.shared, 1, -1).expand(
        -1, -1, -1, problem.taps, -1
    )
    index = at.pixels[i].unsqueeze(2).expand(-1, -1, deformation.shared, -1, -1)
    return torch.where(at.exist[i].unsqueeze(2), flat.gather(-1, index), 0)


def samples(deformation: Deformation, images: torch.Tensor, at: Places) -> torch.Tensor:
    """[N, D, channels of a group, T, P Q], without mask."""
    return sum(w.unsqueeze(2) * corner(deformation, images, at, i) for i, w in enumerate(at.weights))  # type: ignore[return-value]


def _columns(deformation: Deformation, sampled: torch.Tensor, mask: Maybe) -> torch.Tensor:
    """[N, G, channels of a weight group * T, P Q], the mask multiplied in."""
    problem = deformation.problem
    if mask is not None:
        sampled = sampled * mask.reshape(problem.batch, deformation.offset_groups, 1, problem.taps, -1)
    return sampled.reshape(problem.batch, problem.groups, problem.channels_per_group * problem.taps, -1)


def _widened(*tensors: Maybe, dtype: torch.dtype) -> list[Maybe]:
    return [None if t is None else t.to(wide(dtype)) for t in tensors]


def forward(
    deformation: Deformation, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, b: Maybe, mask: Maybe, forced: str = ""
) -> torch.Tensor:
    problem = deformation.problem
    y = allocate(problem.output_shape, x, w)
    if not y.numel():
        return y
    images, moved, weight, bias, factors = _widened(x, offset, w, b, mask, dtype=x.dtype)
    assert images is not None and moved is not None and weight is not None
    columns = _columns(deformation, samples(deformation, images, places(deformation, moved)), factors)
    result = torch.matmul(weight.reshape(problem.groups, problem.filters_per_group, -1), columns).reshape(y.shape)
    return y.copy_(result if bias is None else result + bias.view(-1, 1, 1))


def backward(
    deformation: Deformation,
    dy: torch.Tensor,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    mask: Maybe,
    needs: Needs,
    forced: str = "",
) -> Four:
    """(dx, doffset, dw, dmask), those that `needs` asks for."""
    parts = allocated(x, offset, w, mask, needs)
    if not deformation.pixels:
        for tensor in parts:
            tensor.zero_()
        return parts
    problem = deformation.problem
    g, images, moved, weight, factors = _widened(dy, x, offset, w, mask, dtype=x.dtype)
    assert g is not None and images is not None and moved is not None and weight is not None
    g = g.reshape(problem.batch, problem.groups, problem.filters_per_group, -1)
    at = places(deformation, moved)
    gradients: list[Maybe] = [None] * 4
    if needs[2]:
        columns = _columns(deformation, samples(deformation, images, at), factors)
        gradients[2] = torch.matmul(g, columns.transpose(-1, -2)).sum(0)
    if needs[0] or needs[1] or needs[3]:
        flat = weight.reshape(problem.groups, problem.filters_per_group, -1)
        grid = (problem.batch, deformation.offset_groups, deformation.shared, problem.taps, -1)
        columns = torch.matmul(flat.transpose(-1, -2), g).reshape(grid)
        factor = None if factors is None else factors.reshape(*grid[:2], problem.taps, -1)
        if needs[0]:
            gradients[0] = _scattered(deformation, columns, at, factor)
        if needs[1] or needs[3]:
            gradients[1], gradients[3] = _of_places(deformation, images, columns, places(deformation, moved, False), factor)
    for tensor, value in zip(parts, gradients, strict=True):
        if tensor.numel() and value is not None:
            tensor.copy_(value.reshape(tensor.shape))
    return parts


def _scattered(deformation: Deformation, columns: torch.Tensor, at: Places, factor: Maybe) -> torch.Tensor:
    """The gradient of the images: each sample's, to the four pixels that it is made of."""
    problem = deformation.problem
    pixels = problem.input_size[0] * problem.input_size[1]
    image = columns.new_zeros((problem.batch, deformation.offset_groups, deformation.shared, pixels))
    for share, pixel, exists in zip(at.weights, at.pixels, at.exist, strict=True):
        counts = exists & (share > 0)  # which a NaN is not
        share = share if factor is None else share * factor
        terms = torch.where(counts.unsqueeze(2), share.unsqueeze(2) * columns, 0)
        index = pixel.unsqueeze(2).expand_as(terms)
        image.scatter_add_(-1, index.flatten(3), terms.flatten(3))
    return image


def _of_places(
    deformation: Deformation, images: torch.Tensor, columns: torch.Tensor, at: Places, factor: Maybe
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of offset [N, D, T, 2, P Q] and mask [N, D, T, P Q]."""
    a, b, c, d = (
        (torch.where(e.unsqueeze(2), columns, 0) * corner(deformation, images, at, i)).sum(2) for i, e in enumerate(at.exist)
    )
    h, w = (torch.where(at.live, share, 0) for share in at.shares)
    by_h = (1 - w) * (c - a) + w * (d - b) + (h - h)  # NaN where the place is none, whichever coordinate is
    by_w = (1 - h) * (b - a) + h * (d - c) + (w - w)
    sampled = sum(share * s for share, s in zip(at.weights, (a, b, c, d), strict=True))
    moved = torch.stack([by_h, by_w], 3)
    return moved if factor is None else moved * factor.unsqueeze(3), sampled  # type: ignore[return-value]
