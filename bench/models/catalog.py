"""The models, how each is built without weights, and the small input on which it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from bench.models import small
from costmodel.networks.models import imported


class Entry(NamedTuple):
    """A model: `build()` makes it, `input` is the shape of its input, `call(model, x)` runs it."""

    build: Callable[[], nn.Module]
    input: tuple[int, ...]
    call: Callable[[nn.Module, torch.Tensor], Any] = lambda model, x: model(x)


def _torchvision(name: str, **given: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        where, _, function = name.rpartition(".")
        imported("torchvision")  # it may lack operators that no model here needs
        module = imported(f"torchvision.models{'.' * bool(where)}{where}")
        model: nn.Module = getattr(module, function)(weights=None, **given)
        return model

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        imported("torchvision")
        model: nn.Module = imported("timm").create_model(name, pretrained=False, num_classes=10)
        return model

    return build


def _diffusers(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        imported("torchvision")
        model: nn.Module = getattr(imported("diffusers"), name)(**config)
        return model

    return build


def _sample(model: Any, x: torch.Tensor) -> Any:
    return model(x).sample


def _at_a_time(model: Any, x: torch.Tensor) -> Any:
    return model(x, torch.tensor([3])).sample


def _with_text(model: Any, x: torch.Tensor) -> Any:
    return model(x, torch.tensor([3]), torch.ones(1, 2, 8, dtype=x.dtype)).sample


def _out(model: Any, x: torch.Tensor) -> Any:
    return model(x)["out"]


def _backbone(name: str) -> Callable[[], nn.Module]:
    build = _torchvision(name, weights_backbone=None)
    return lambda: cast(nn.Module, build().backbone)


_IMAGE = (1, 3, 32, 32)
_WITHOUT = {name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")}
_CLASSES = """alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet0_5 mobilenet_v2
mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 vgg11
vit_b_32 wide_resnet50_2 swin_t maxvit_t""".split()
_SIZES = {"alexnet": 64, "densenet121": 64, "squeezenet1_1": 64, "inception_v3": 75, "vit_b_32": 224, "maxvit_t": 224}
_CLIP = (1, 3, 4, 16, 16)
_TIMM = """nf_resnet26 resnetv2_50x1_bit tf_efficientnet_b0 resnet26d seresnet18 skresnet18 resnest14d ecaresnet26t gernet_s
regnetx_002 regnety_002 repvgg_a0 mobilenetv3_small_050 mobilenetv4_conv_small tinynet_e lcnet_050 ghostnet_050 hardcorenas_a
mixnet_s fbnetc_100 efficientvit_b0 convnext_atto convnextv2_atto poolformer_s12 rexnet_100 dla34 darknet17 hrnet_w18_small
dpn48b vovnet39a mobileone_s0 fastvit_t8 nfnet_f0 cspresnet50 xception41 inception_next_tiny""".split()
_CAUSAL = {
    "base_dim": 4, "z_dim": 2, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True],
    "latents_mean": [0.0] * 2, "latents_std": [1.0] * 2,
}  # fmt: skip
_DOWN, _UP = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2

MODELS: dict[str, Entry] = {
    "small/vocoder": Entry(small.Vocoder, (1, 8, 6)),
    "small/unet": Entry(small.UNet, (1, 3, 8, 8)),
    "small/densenet": Entry(small.densenet, (1, 3, 16, 16)),
    "small/convnext": Entry(small.convnext, (1, 3, 16, 16)),
    "small/mobilenet": Entry(small.mobilenet, (1, 3, 16, 16)),
    "small/shufflenet": Entry(small.shufflenet, (1, 3, 16, 16)),
    **{f"torchvision/{name}": Entry(_torchvision(name, **_WITHOUT.get(name, {})), (1, 3, *(_SIZES.get(name, 32),) * 2))
       for name in _CLASSES},
    **{f"torchvision/{name}": Entry(_torchvision(f"video.{name}"), _CLIP) for name in ("r3d_18", "mc3_18", "r2plus1d_18")},
    **{f"torchvision/{name}": Entry(_torchvision(f"segmentation.{name}", weights_backbone=None), _IMAGE, _out)
       for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")},
    **{f"torchvision/{name} backbone": Entry(_backbone(f"detection.{name}"), _IMAGE)
       for name in ("fasterrcnn_mobilenet_v3_large_fpn", "ssdlite320_mobilenet_v3_large")},
    **{f"timm/{name}": Entry(_timm(name), _IMAGE) for name in _TIMM},
    "diffusers/UNet2DModel": Entry(_diffusers("UNet2DModel", sample_size=8, in_channels=3, out_channels=3,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, down_block_types=_DOWN, up_block_types=_UP),
        (1, 3, 8, 8), _at_a_time),
    "diffusers/UNet2DConditionModel": Entry(_diffusers("UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        (1, 4, 8, 8), _with_text),
    "diffusers/AutoencoderKL": Entry(_diffusers("AutoencoderKL", block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2), (1, 3, 8, 8), _sample),
    "diffusers/AutoencoderKLWan": Entry(_diffusers("AutoencoderKLWan", **_CAUSAL), (1, 3, 5, 8, 8), _sample),
    "diffusers/AutoencoderKLQwenImage": Entry(_diffusers("AutoencoderKLQwenImage", **_CAUSAL), (1, 3, 1, 8, 8), _sample),
    "diffusers/AutoencoderKLCogVideoX": Entry(_diffusers("AutoencoderKLCogVideoX", block_out_channels=(4, 4),
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2, latent_channels=2,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=2), (1, 3, 5, 8, 8), _sample),
}  # fmt: skip
