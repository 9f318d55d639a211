"""Fixed lists of layers to measure: the goals that releases are held against, and a sample of everything.

Both are drawn only from the first rows of `shapes.jsonl`, so that rows added at its end change neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from bench.work import Line, Work, pass_of_layer
from bench.workloads import Workload, parse, rows
from costmodel.problem import Pass

Layer = TypeVar("Layer")

#: The number of rows of `shapes.jsonl` when the lists were made.
DRAWN_FROM = 1057
SAMPLE_SIZE = 100
SAMPLE_SEED = 0
FORWARD = (Pass.FPROP,)
BACKWARD = (Pass.DGRAD, Pass.WGRAD)
BOTH = (*FORWARD, *BACKWARD)


def layout_of(layer_rank: int) -> str:
    """The layout of a network's tensors. torch has no channels-last format for 1-D."""
    return "contiguous" if layer_rank == 1 else "channels_last"


def line_of(
    layer: Workload, which: Pass, dtype: str, precision: str = "ieee", layout: str = "", goal: Goal | None = None
) -> Line:
    """A layer's forward (fprop), input gradient or weight gradient as a line."""
    work = Work(
        layer.problem(),
        pass_of_layer(which, layer.transposed),
        dtype,
        precision if dtype == "float32" else "ieee",
        layout or layout_of(len(layer.size)),
        layer.transposed,
    )
    if goal is None:
        return Line(work, layer.suite, layer.layer)
    return Line(work, layer.suite, layer.layer, goal.group, goal.ratio, goal.floor)


@dataclass(frozen=True)
class Goal:
    """Layers for which the time of torch's fastest setting over ours should have the geometric mean `ratio`.

    No row in which torch takes more than 20 us may be below `floor`. Of each suite's layers that are `wanted`, `per_suite` are
    taken, evenly spread.
    """

    group: str
    ratio: float
    floor: float
    passes: tuple[Pass, ...]
    suites: tuple[str, ...]
    wanted: Callable[[Workload], bool]
    per_suite: int
    dtype: str = "bfloat16"
    precision: str = "ieee"
    layout: str = ""  # the default is that of `layout_of`

    def layers(self) -> list[Workload]:
        return list(
            chain.from_iterable(
                spread([w for w in _suite_layers(suite) if self.wanted(w)], self.per_suite) for suite in self.suites
            )
        )

    def lines(self) -> list[Line]:
        shape = self.dtype, self.precision, self.layout
        return [line_of(w, which, *shape, self) for which in self.passes for w in self.layers()]


def spread(layers: list[Layer], count: int) -> list[Layer]:
    """`count` of the layers, the first and the last among them; all of them where there are no more."""
    if len(layers) <= count or count < 2:
        return layers[:count]
    return [layers[i * (len(layers) - 1) // (count - 1)] for i in range(count)]


def _drawn() -> list[Workload]:
    return [parse(row) for row in rows()[:DRAWN_FROM]]


def _suite_layers(suite: str) -> list[Workload]:
    layers = [w for w in _drawn() if w.suite == suite]
    if not layers:
        raise ValueError(f"no workload is of the suite {suite!r}")
    return layers


def _dense(w: Workload) -> bool:
    return w.kind in ("dense", "pointwise") and set(w.kernel) <= {1, 3} and w.problem().flops > 1e9


def _bottom(w: Workload) -> bool:
    """Whether a layer has no more output pixels than one tile of 64 per multiprocessor of an H100."""
    return w.kind == "dense" and w.problem().gemm(Pass.FPROP).m <= 132 * 64


def _kinds(*kinds: str) -> Callable[[Workload], bool]:
    return lambda w: w.kind in kinds


def _large(w: Workload) -> bool:
    return min(w.kernel) >= 13


_2D = ("resnet50", "vgg16", "sd15_unet", "sdxl_vae_decoder", "unet_2d_nnunet")
_MAMBA = ("mamba1_conv1d", "mamba2_conv1d", "conformer_dwconv1d")
_DEPTHWISE = (
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "replknet31b_train",
    "replknet31b_deploy",
    "replknet_dw_sweep",
    "x3d_m_dw3d",
    *_MAMBA,
)

GOALS = (
    Goal("depthwise forward", 3.0, 0.9, FORWARD, _DEPTHWISE, _kinds("depthwise"), 2),
    Goal("large depthwise filters", 5.0, 0.9, BOTH, ("replknet_dw_sweep",), _large, 4, layout="contiguous"),
    Goal("dense 2-D forward", 1.0, 0.8, FORWARD, _2D, _dense, 3),
    Goal("narrow groups forward", 2.0, 0.9, FORWARD, ("resnext50_32x4d", "hifigan_msd_train"), _kinds("grouped"), 3),
    Goal("dense 3-D", 1.1, 0.8, BOTH, ("r3d_18", "nnunet_3d_fullres", "wan21_vae_decode", "wan21_vae_encode"), _dense, 2),
    Goal("dilated", 1.3, 0.9, BOTH, ("deeplabv3_resnet50", "hifigan_v1_train"), _kinds("dilated"), 2),
    Goal("transposed", 1.3, 0.9, BOTH, ("dcgan_generator", "hifigan_v1_train"), _kinds("transposed"), 2),
    Goal("few output pixels", 1.3, 0.9, BOTH, ("unet_2d_nnunet", "nnunet_3d_fullres"), _bottom, 2),
    Goal("patches", 1.5, 0.9, BOTH, ("vit_b_16_patchify", "qwen2vl_patch_embed", "patchify_k_eq_s"), _kinds("patchify"), 2),
    Goal("1-D", 1.5, 0.9, BOTH, ("whisper_stem",), _kinds("dense"), 3),
    Goal("few channels", 1.5, 0.9, BOTH, ("resnet50", "sdxl_vae_decoder", "nnunet_3d_fullres"), _kinds("few_channels"), 2),
    Goal("depthwise backward", 3.0, 0.9, BACKWARD, _DEPTHWISE, _kinds("depthwise"), 2),
    Goal("dense 2-D backward", 1.0, 0.75, BACKWARD, _2D, _dense, 3),
    Goal("narrow groups backward", 2.0, 0.9, BACKWARD, ("resnext50_32x4d", "hifigan_msd_train"), _kinds("grouped"), 3),
    Goal("float32 in tf32", 1.0, 0.75, BOTH, ("resnet50", "sd15_unet"), _dense, 2, "float32", "tf32"),
)


def goals() -> list[Line]:
    """The layers that represent the goals. The first line of every group comes first, then the second ones, and so on, so that
    a run that is cut short has seen every group."""
    groups = [goal.lines() for goal in GOALS]
    return [lines[i] for i in range(max(map(len, groups))) for lines in groups if i < len(lines)]


def sample(count: int = SAMPLE_SIZE, seed: int = SAMPLE_SEED) -> list[Line]:
    """`count` layers of all suites in bfloat16, forward or backward. A hash of the seed and a layer's row orders them."""
    drawn: list[tuple[bytes, Line]] = []
    for layer in _drawn():
        if layer.op.startswith("conv"):
            digest = hashlib.sha256(f"{seed} {layer}".encode()).digest()
            drawn.append((digest, line_of(layer, BOTH[digest[0] % 3], "bfloat16")))
    return [line for _, line in sorted(drawn, key=lambda pair: pair[0])[:count]]


LISTS: dict[str, Callable[[], list[Line]]] = {"goals": goals, "sample": sample}
