"""Modules on the kernels: torch's six convolutions under torch's names, lazy ones, causal ones, a deformable one, blocks;
and windows as columns."""

from tritonconv.blocks import (
    CausalConv1d,
    CausalConv3d,
    ConvBnAct1d,
    ConvBnAct2d,
    ConvBnAct3d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
)
from tritonconv.columns.module import Fold, Unfold
from tritonconv.deform.module import DeformConv2d
from tritonconv.layers import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    DepthwiseSeparableConv2d,
)

__all__ = [
    "CausalConv1d",
    "CausalConv3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvBnAct1d",
    "ConvBnAct2d",
    "ConvBnAct3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DeformConv2d",
    "DepthwiseSeparableConv2d",
    "Fold",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "Unfold",
]
