"""The modules of `unfold` and `fold`, as torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tritonconv.columns import fold, unfold
from tritonconv.layers import traced


class Unfold(nn.Unfold):
    """`torch.nn.Unfold` on `tritonconv.unfold`: torch's arguments and repr, and tuples of 1 or 3 ints for other ranks.

    input [N, C, *size] or [C, *size] -> [N, C * prod(kernel_size), L] or without N. It has no parameters. Raises what the
    function raises when it is called.

    >>> import torch, tritonconv
    >>> tritonconv.nn.Unfold(3, padding=1)(torch.ones(2, 4, 5, 5)).shape
    torch.Size([2, 36, 25])
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if isinstance(input, torch.fx.Proxy):
            made: Any = traced(self, input)
            return made
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(nn.Fold):
    """`torch.nn.Fold` on `tritonconv.fold`: torch's arguments and repr, and tuples of 1 or 3 ints for other ranks.

    input [N, C * prod(kernel_size), L] or without N -> [N, C, *output_size] or without N. It has no parameters. Raises what the
    function raises when it is called.

    >>> import torch, tritonconv
    >>> tritonconv.nn.Fold((5, 5), 3, padding=1)(torch.ones(2, 36, 25)).shape
    torch.Size([2, 4, 5, 5])
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if isinstance(input, torch.fx.Proxy):
            made: Any = traced(self, input)
            return made
        return fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
