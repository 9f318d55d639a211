"""Small models that no library has: a vocoder in the form of HiFi-GAN, a U-Net that magnifies by transposed layers, and
torchvision's classes with few channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from costmodel.networks.models import imported


class Vocoder(nn.Module):
    """A mel spectrogram [N, 8, T] to a wave [N, 1, 4 T]: transposed layers and dilated residual blocks, all weight-normed."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv1d(8, width, 7, padding=3))
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for step in range(2):
            here = width >> step
            self.ups.append(weight_norm(nn.ConvTranspose1d(here, here // 2, 4, 2, 1)))
            layers = [weight_norm(nn.Conv1d(here // 2, here // 2, 3, padding=d, dilation=d)) for d in (1, 3)]
            self.blocks.append(nn.ModuleList(layers))
        self.last = weight_norm(nn.Conv1d(width >> 2, 1, 7, padding=3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            for layer in block:  # type: ignore[attr-defined]
                x = x + layer(F.leaky_relu(x, 0.1))
        return torch.tanh(self.last(F.leaky_relu(x)))


def _pair(inner: int, outer: int) -> nn.Sequential:
    parts = [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Conv2d(outer, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """A U-Net from [N, 3, H, W] to [N, 2, H, W], with H and W multiples of 4."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.c = _pair(3, width), _pair(width, 2 * width), _pair(2 * width, 4 * width)
        self.up_b, self.up_a = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.d, self.e = _pair(4 * width, 2 * width), _pair(2 * width, width)
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        y = self.up_b(self.c(F.max_pool2d(b, 2)))
        y = self.up_a(self.d(torch.cat([y, b], 1)))
        result: torch.Tensor = self.last(self.e(torch.cat([y, a], 1)))
        return result


def densenet() -> nn.Module:
    model: nn.Module = _from_torchvision("densenet").DenseNet(4, (2, 2), 8, num_classes=3)
    return model


def convnext() -> nn.Module:
    module = _from_torchvision("convnext")
    block = module.CNBlockConfig
    model: nn.Module = module.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=3)
    return model


def mobilenet() -> nn.Module:
    setting = [[1, 8, 1, 1], [6, 8, 2, 2]]
    model: nn.Module = _from_torchvision("mobilenetv2").MobileNetV2(3, 0.25, setting)
    return model


def shufflenet() -> nn.Module:
    model: nn.Module = _from_torchvision("shufflenetv2").ShuffleNetV2([1, 1, 1], [8, 16, 32, 64, 64], 3)
    return model


def _from_torchvision(name: str) -> Any:
    imported("torchvision")  # it may lack operators that no model here needs
    return imported(f"torchvision.models.{name}")
