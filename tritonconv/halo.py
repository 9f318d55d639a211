"""Exchanges the rows beside a slab where an image is split into slabs, one per process.

This module works on local tensors, and a process's rank in the group is the place of its slab. It does not serve torch's
convolution of DTensors that are sharded along their space; `tritonconv.sharding` redistributes those first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def exchange(x: torch.Tensor, low: int, high: int, *, dim: int = 2, group: Any = None) -> torch.Tensor:
    """x [..., n, ...] with the last `low` rows of the slab before it in front and the first `high` of the one behind it at its
    end, along `dim`: [..., low + n + high, ...]. The first and the last process get zeros there.

    Every process of the group calls it, with the same numbers. A convolution of the result without padding along `dim` gives
    this process's slab of the whole image's convolution, where low is the padding of that convolution, high is
    (kernel - 1) * dilation - padding - stride + 1, and the stride divides each slab's n. x has derivatives of any order, which
    are exchanged likewise.

    Raises TypeError for what is no tensor, ValueError for negative numbers and for a slab of fewer rows than a neighbour takes
    of it, in the process whose slab it is: the others then wait in vain.

    >>> import torch, torch.distributed as dist, tritonconv.halo
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> tritonconv.halo.exchange(torch.ones(1, 2, 4, 3), 1, 1).shape
    torch.Size([1, 2, 6, 3])
    >>> dist.destroy_process_group()
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"exchange(): argument 'x' must be a Tensor, got {type(x).__name__}")
    for name, rows in (("low", low), ("high", high)):
        if not isinstance(rows, int) or rows < 0:
            raise ValueError(f"exchange(): {name} must be an int of at least 0, got {rows!r}")
    if not -x.dim() <= dim < x.dim() or x.shape[dim] < max(low, high):
        raise ValueError(
            f"exchange(): expected x of at least {max(low, high)} rows along dim {dim}, which its neighbours take, got x "
            f"{list(x.shape)}"
        )
    exchanged: torch.Tensor = _Exchange.apply(x, low, high, dim, group)
    return exchanged


def _moved(to_next: torch.Tensor, to_last: torch.Tensor, group: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(from the process before, from the one behind), of the shapes of what they were sent; zeros where there is none."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    to_next, to_last = to_next.contiguous(), to_last.contiguous()
    from_last, from_next = torch.zeros_like(to_next), torch.zeros_like(to_last)
    steps = []
    for peer, sent, got in ((rank - 1, to_last, from_last), (rank + 1, to_next, from_next)):
        if 0 <= peer < size:
            other = dist.get_global_rank(group, peer) if group is not None else peer
            steps += [dist.P2POp(dist.isend, sent, other, group)] * bool(sent.numel())
            steps += [dist.P2POp(dist.irecv, got, other, group)] * bool(got.numel())
    for work in dist.batch_isend_irecv(steps) if steps else ():
        work.wait()
    return from_last, from_next


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: int, high: int, dim: int, group: Any) -> torch.Tensor:
        ctx.given = low, high, dim, group
        n = x.shape[dim]
        before, behind = _moved(x.narrow(dim, n - low, low), x.narrow(dim, 0, high), group)
        return torch.cat([before, x, behind], dim)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return _Return.apply(dy, *ctx.given), None, None, None, None


class _Return(torch.autograd.Function):
    """The transpose of the exchange: rows of neighbours go back to them and are added there."""

    @staticmethod
    def forward(ctx: Any, dy: torch.Tensor, low: int, high: int, dim: int, group: Any) -> torch.Tensor:
        ctx.given = low, high, dim, group
        n = dy.shape[dim] - low - high
        to_last, kept, to_next = dy.split([low, n, high], dim)
        dx = kept.clone()
        from_last, from_next = _moved(to_next, to_last, group)  # `high` rows for the front, `low` rows for the end
        dx.narrow(dim, 0, high).add_(from_last)
        dx.narrow(dim, n - low, low).add_(from_next)
        return dx

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> Any:
        return _Exchange.apply(ddx, *ctx.given), None, None, None, None
