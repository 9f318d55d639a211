"""The short convolutions of state-space models: pad, depthwise convolution, bias, SiLU."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

import torch
from torch.nn import functional

import tritonconv
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.workloads import Workload, load
from costmodel import causal
from costmodel.device import Device

SUITES = ("mamba1_conv1d", "mamba2_conv1d", "issue_192902_shortconv")


def by_torch(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The call as a user of torch writes it: x [B, C, L], w [C, K], b [C]."""
    padded = functional.pad(x, (w.shape[1] - 1, 0))
    return functional.silu(functional.conv1d(padded, w.unsqueeze(1), b, groups=w.shape[0]))


def by_us(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    y = tritonconv.causal_conv1d(x, w, b, "silu")
    assert isinstance(y, torch.Tensor)
    return y


def by_package(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The call by the package causal-conv1d."""
    y: torch.Tensor = importlib.import_module("causal_conv1d").causal_conv1d_fn(x, w, b, activation="silu")
    return y


def chain_of(layer: Workload, dtype: torch.dtype, device: Device, channels_last: bool) -> Chain:
    """The chain of a layer of the workloads, in the layout [B, L, C] where `channels_last`, else [B, C, L]."""
    batch, channels, (taps,) = layer.batch, layer.in_channels, layer.kernel
    length = layer.size[0] - (0 if layer.padding[0] else taps - 1)  # a layer without padding was traced with a padded input
    strides = (channels * length, 1, channels) if channels_last else (channels * length, length, 1)
    inputs = (
        Input((batch, channels, length), strides),
        Input((channels, taps), (taps, 1), taps**-0.5),
        Input((channels,), (1,)),
    )
    ways: dict[str, Way] = {TORCH: by_torch, OURS: by_us}
    if importlib.util.find_spec("causal_conv1d") is not None and 2 <= taps <= 4:
        ways["causal-conv1d"] = by_package
    compulsory = causal.compulsory(causal.problem_of(batch, channels, length, taps), dtype.itemsize)
    predicted = causal.forecast(batch, channels, length, taps, device, dtype=str(dtype).removeprefix("torch."))
    layout = "BLC" if channels_last else "BCL"
    name = f"{layer.layer} {batch}x{channels}x{length} {layout}"
    return Chain(layer.suite, name.strip(), dtype, inputs, compulsory, ways, {OURS: predicted.seconds})


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    """Every layer in both layouts."""
    for suite in SUITES:
        for layer in load(suite):
            for channels_last in (True, False):
                yield chain_of(layer, dtype, device, channels_last)
