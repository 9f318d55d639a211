"""The TMA kernels compiled, on a GPU that has TMA, held against torch in float64: every tile, every kind of descriptor.

What the interpreter cannot show is here first: whether the driver takes the descriptors, and whether copies and tensor cores
wait for each other (a race would differ from run to run).
"""

from __future__ import annotations

import dataclasses
import functools

import oracle
import pytest
import torch
from cases import Case
from gpu import RESULT, check, expected, fp32_precision, on, run_pass
from test_tma import CASES, LAST, TRANSPOSED, WGRAD

import tritonconv
from costmodel.families.tma import menu
from costmodel.problem import Pass
from costmodel.tiling import Plan, Tile

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("share_of_the_cores", "settled"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] not in (9, 10), reason="the GPU has no TMA"
    ),
]
#: Where a group's channels are 16.
NARROW = "64x64x16:w4:s4"


def plans(case: Case) -> list[Plan]:
    """Forced plans: fprop, dgrad, wgrad."""
    narrow = case.weight[1] == 16 or (case.transposed and case.groups > 1)
    words = [f"{which}:tma:{NARROW}" if narrow else f"{which}:tma:128x64x32:w4:s4" for which in ("fprop", "dgrad")]
    return [*map(Plan.parse, words), Plan.parse(WGRAD)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_small(name: str, dtype: str, device: str, fenced, launches) -> None:
    """The interpreter's cases, compiled."""
    case = dataclasses.replace(CASES[name], dtype=dtype)
    oracle.check(case, device, plan=plans(case))
    assert launches()["tma fprop"] == launches()["tma dgrad"] == launches()["tma wgrad"] == 1


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "permuted", "expanded"])
@pytest.mark.parametrize("name", ["3x3", "rest_of_channels", "stride_2", "groups", "line", "space"])
def test_a_weight_gradient_takes_any_dy(name: str, layout: str, device: str, fenced, launches) -> None:
    oracle.check(dataclasses.replace(CASES[name], g=layout), device, plan=Plan.parse(WGRAD))
    assert launches()["tma wgrad"] == 1


@pytest.mark.parametrize("name", TRANSPOSED)
def test_small_transposed(name: str, device: str, fenced, launches) -> None:
    case = TRANSPOSED[name]
    oracle.check(case, device, plan=plans(case)[1])
    assert launches()["tma dgrad"] == 1


LAYERS = {
    "3x3": Case("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "deep": Case("conv2d", (8, 512, 7, 7), (512, 512, 3, 3), padding=1),
    "pointwise": Case("conv2d", (4, 256, 28, 28), (128, 256, 1, 1)),
    "stride_2": Case("conv2d", (8, 128, 56, 56), (128, 128, 3, 3), stride=2, padding=1),
    "pointwise_stride_2": Case("conv2d", (4, 256, 56, 56), (512, 256, 1, 1), stride=2),
    "dilated": Case("conv2d", (2, 256, 33, 33), (256, 256, 3, 3), dilation=12, padding=12),
    "rests": Case("conv2d", (3, 72, 27, 31), (104, 72, 5, 3), padding=(2, 0)),
    "groups": Case("conv2d", (4, 256, 28, 28), (256, 64, 3, 3), groups=4, padding=1),
    "line": Case("conv1d", (4, 80, 3000), (384, 80, 3), padding=1),
    "line_stride_2": Case("conv1d", (4, 384, 3000), (384, 384, 3), stride=2, padding=1),
    "space": Case("conv3d", (2, 64, 8, 28, 28), (64, 64, 3, 3, 3), padding=1),
    "transposed": Case("conv_transpose2d", (8, 256, 16, 16), (256, 128, 4, 4), stride=2, padding=1),
    "transposed_space": Case("conv_transpose3d", (2, 64, 8, 14, 14), (64, 32, 2, 2, 2), stride=2),
}
TILES = ("128x64x64:w4:s4", "256x128x32:w8:s4")
#: What goes with each of them.
WGRAD_TILES = {TILES[0]: "128x64x64:w4:s4:split3", TILES[1]: "128x256x64:w8:s4"}


@pytest.mark.parametrize("packed", [False, True], ids=["channels-last", "packed"])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, tile: str, packed: bool, device: str, fenced, launches) -> None:
    """Results that leave as boxes, and contiguous ones that threads store."""
    case = dataclasses.replace(LAYERS[name], **({"dtype": "float16"} if packed else LAST))
    packs = ":pack-a:pack-b" if packed else ""
    words = {which: f"{which}:tma:{tile}{packs}" for which in ("fprop", "dgrad")}
    words["wgrad"] = f"wgrad:tma:{WGRAD_TILES[tile]}{':pack-b' if packed else ''}"
    if case.transposed:
        del words["fprop"]
    if name == "transposed_space":  # its x, the gradient of the result, has three strides
        del words["wgrad"]
    check(case, device, plan=[Plan.parse(text) for text in words.values()])
    assert {name.split()[1] for name in launches() if name.startswith("tma ")} == set(words)


@functools.cache
def operands(channels: int, dtype: str, device: str) -> tuple:
    """Operands that every tile shares, and what they should give."""
    case = Case("conv2d", (4, channels, 21, 19), (channels, channels, 3, 3), bias=False, padding=1, **LAST | {"dtype": dtype})
    x, w, dy, problem = on(device, case)
    return x, w, dy, problem, expected("conv2d", x, w, None, dy, **case.arguments), oracle.repro(case)


def tiles():
    for kind, passes in (("half", tuple(Pass)), ("tf32", (Pass.FPROP,))):
        for which in passes:
            for tile in menu(which, kind):
                for channels in (160, 256):
                    yield kind, which, channels, tile


@pytest.mark.parametrize("kind, which, channels, tile", list(tiles()))
def test_every_tile(kind: str, which: Pass, channels: int, tile: Tile, device: str, fenced, launches) -> None:
    """160 channels leave a rest in most tiles, 256 in none; and ten runs give the same bits."""
    dtype = "float16" if kind == "half" else "float32"
    x, w, dy, problem, want, repro = operands(channels, dtype, device)
    plan, name = Plan(which, "tma", *tile, split=3 if which == Pass.WGRAD else 1), RESULT[which]
    with fp32_precision("tf32"):
        first = run_pass(which, problem, x, w, dy, str(plan))
        for _ in range(9):
            assert torch.equal(run_pass(which, problem, x, w, dy, str(plan)), first)
    assert launches()[f"tma {which}"] == 10
    oracle.assert_close({name: first}, {name: want[name]}, f"plan {plan}\n{repro}", kind == "tf32")


@pytest.mark.parametrize(
    "name, text",
    [
        ("3x3", f"fprop:tma:{TILES[1]}"),
        ("stride_2", f"fprop:tma:{TILES[1]}"),
        ("transposed", f"dgrad:tma:{TILES[1]}"),
        ("space", f"fprop:tma:{TILES[1]}"),
        ("3x3", "wgrad:tma:128x256x64:w8:s4:split5"),
        ("stride_2", "wgrad:tma:64x64x64:w4:s4:split7"),
    ],
)
def test_the_same_bits_every_time(name: str, text: str, device: str, launches) -> None:
    """Under load too: another stream keeps the copy engines and the L2 cache busy."""
    case, plan = dataclasses.replace(LAYERS[name], **LAST), Plan.parse(text)
    x, w, b = case.tensors(device)
    w.requires_grad_(plan.which == Pass.WGRAD)

    def result() -> torch.Tensor:
        y = getattr(tritonconv, case.function)(x, w, b, **case.arguments, plan=plan)
        return torch.autograd.grad(y, w, case.gradient(y))[0] if w.requires_grad else y

    first = result()
    noise, beside = torch.randn(1 << 25, device=device), torch.cuda.Stream()
    for i in range(200):
        if i % 2:
            with torch.cuda.stream(beside):
                noise.mul_(1.0)
        assert torch.equal(result(), first)
    torch.cuda.synchronize()


def test_a_chosen_plan_is_one_that_runs(device: str, launches) -> None:
    """What is chosen for a large layer on this GPU; a misaligned view of it is served by another kernel."""
    case = dataclasses.replace(LAYERS["stride_2"], **LAST)
    check(case, device)
    x, w, b = case.tensors(device)
    room = torch.zeros(x.numel() + 8, dtype=x.dtype, device=device)
    odd = room.as_strided(x.shape, x.stride(), 1).copy_(x)
    got, want = (tritonconv.conv2d(t, w, b, **case.arguments) for t in (odd, x))
    torch.testing.assert_close(got, want)
    plan = tritonconv.explain(tritonconv.conv2d, odd, w, b, **case.arguments).plans["fprop"]
    assert plan.family != "tma"
