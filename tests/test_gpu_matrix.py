"""The kernels compiled, at real sizes, in every dtype, layout and tile, held against torch in float64 on the GPU."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cases
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from gpu import GEOMETRIES, RESULT, check, expected, fp32_precision, on, run_pass, shrunken

import tritonconv
from costmodel.families.gemm import MENU
from costmodel.problem import Pass
from costmodel.tiling import Plan, Tile

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("share_of_the_cores", "settled")]

# --- the same matrix at real sizes ------------------------------------------------------------------------------------
#: dtype, float32 precision and layout; None takes turns from one geometry to the next.
COLUMNS = (
    ("float16", "ieee", "channels_last"),
    ("float16", "ieee", "contiguous"),
    ("bfloat16", "ieee", None),
    ("float32", "ieee", None),
    ("float32", "tf32", None),
    ("float64", "ieee", None),
)


def matrix() -> Iterator[tuple[str, Case, str]]:
    for i, (name, case) in enumerate(GEOMETRIES.items()):
        for j, (dtype, precision, layout) in enumerate(COLUMNS):
            layout = layout or ("channels_last", "contiguous")[(i + j) % 2]
            numbers = "tf32" if precision == "tf32" else dtype
            laid_out = dataclasses.replace(case, dtype=dtype, x=layout, w=layout, g=layout)
            yield f"{name}-{numbers}-{layout}", laid_out, precision


MATRIX = list(matrix())


@pytest.mark.parametrize("case, precision", [row[1:] for row in MATRIX], ids=[row[0] for row in MATRIX])
def test_matrix(case: Case, precision: str, device: str, fenced, launched) -> None:
    with fp32_precision(precision):
        check(shrunken(case, device), device)
    assert set(launched()) >= {"fprop", "dgrad", "wgrad"}


@pytest.mark.parametrize("g", cases.LAYOUTS)
@pytest.mark.parametrize("name", ["resnet_stride_2", "odd", "dcgan_transposed", "whisper_1d"])
def test_gradients_arrive_in_any_layout(name: str, g: str, device: str, fenced, launched) -> None:
    """Expanded is what `y.sum().backward()` sends; sliced and permuted gradients have no unit stride to rely on."""
    case = dataclasses.replace(GEOMETRIES[name], dtype="float16", x="channels_last", g=g)
    check(shrunken(case, device), device)


@pytest.mark.parametrize("layouts", [("sliced", "permuted"), ("expanded", "sliced"), ("permuted", "expanded")])
@pytest.mark.parametrize("name", ["resnet_3x3", "unet_transposed", "resnext_grouped"])
def test_inputs_in_any_layout(name: str, layouts: tuple[str, str], device: str, fenced, launched) -> None:
    case = dataclasses.replace(GEOMETRIES[name], dtype="bfloat16", x=layouts[0], w=layouts[1])
    check(shrunken(case, device), device)


def test_gradient_of_a_sum(device: str, launched) -> None:
    case = shrunken(dataclasses.replace(GEOMETRIES["resnet_stride_2"], dtype="float32"), device)
    with fp32_precision("ieee"):
        x, w, b = (t.requires_grad_() for t in case.tensors(device))
        y = tritonconv.conv2d(x, w, b, **case.arguments)
        y.sum().backward()
    want = expected("conv2d", x, w, b, torch.ones_like(y), **case.arguments)
    got = {"output": y.detach(), "input": x.grad, "weight": w.grad, "bias": b.grad}
    oracle.assert_close(got, want, oracle.repro(case))


def test_fresh_memory_is_nan(device: str) -> None:
    """The poison that the other tests rely on reaches the memory of this device, in each way the library allocates."""
    assert torch.empty(3, 5, device=device).isnan().all()
    assert torch.empty_strided((3, 5), (1, 3), dtype=torch.float16, device=device).isnan().all()


COVER = cases.pairwise()


@pytest.mark.parametrize("case", COVER, ids=[f"{i}-{case.function}-{case.dtype}" for i, case in enumerate(COVER)])
def test_pairwise(case: Case, device: str, fenced, launched) -> None:
    """The interpreter's cases, compiled."""
    with fp32_precision("ieee"):
        oracle.check(case, device)


@pytest.mark.parametrize("case", cases.EDGES.values(), ids=cases.EDGES)
def test_edge(case: Case, device: str, fenced, launches) -> None:
    with fp32_precision("ieee"):
        oracle.check(case, device)
    assert bool(launches()) == (0 not in case.input)


# --- compute-sanitizer ------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parent / "sanitize.py"
SANITIZER_ERROR = 86  # its exit status where it finds something


def sanitizer() -> str | None:
    """The program, where a CUDA toolkit has it."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(root) / folder for root in roots if root for folder in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(map(str, places)))


@pytest.mark.parametrize("planted", [False, True], ids=["clean", "planted"])
def test_compute_sanitizer(planted: bool, device: str) -> None:
    """memcheck finds nothing in small runs of every kernel, and does find a write past a result that is too short."""
    program = sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [program, "--tool", "memcheck", "--target-processes", "application-only"]
    command += ["--error-exitcode", str(SANITIZER_ERROR), sys.executable, str(SCRIPT), *["--plant"] * planted]
    root = SCRIPT.parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    said = done.stdout + done.stderr
    if "Device not supported" in said:
        pytest.skip("compute-sanitizer does not support this device here")
    if planted:
        assert done.returncode != 0 and "Invalid __global__ write" in said, said[-4000:]
    else:
        assert done.returncode == 0 and "ERROR SUMMARY: 0 errors" in said and "all right" in said, said[-4000:]


# --- every tile of the menu -------------------------------------------------------------------------------------------

NUMBERS = {"half": ("float16", "ieee"), "tf32": ("float32", "tf32"), "fp32": ("float32", "ieee"), "fp64": ("float64", "ieee")}


def tiles() -> Iterator[tuple[str, str, int, Pass, Tile]]:
    """(arithmetic, family, channels, pass, tile): 160 channels leave a rest in most tiles, 256 in none."""
    for kind, row in MENU.items():
        for tile, which in itertools.product(row, Pass):
            yield kind, "gather", 160, which, tile
            if tile.warps == 8:
                yield kind, "gather", 256, which, tile
            if kind == "half":
                yield kind, "patch", 160, which, tile


@functools.cache
def tile_case(kind: str, family: str, channels: int, device: str) -> tuple:
    """Operands of a case that every tile shares, and what they should give."""
    dtype, _ = NUMBERS[kind]
    if device == "cpu":
        channels //= 8
    kernel = 1 if family == "patch" else 3
    images = (4, channels, 21, 19) if device == "cuda" else (1, channels, 5, 4)
    case = Case(
        "conv2d", images, (channels, channels, kernel, kernel), bias=False, padding=kernel // 2, dtype=dtype,
        x="channels_last", w="channels_last", g="channels_last",
    )  # fmt: skip
    x, w, dy, problem = on(device, case)
    return x, w, dy, problem, expected("conv2d", x, w, None, dy, **case.arguments), oracle.repro(case)


@pytest.mark.parametrize(
    "kind, family, channels, which, tile",
    [pytest.param(*row, id=f"{row[3]}-{row[0]}-{row[1]}-{row[2]}-{'x'.join(map(str, row[4]))}") for row in tiles()],
)
def test_every_tile(kind: str, family: str, channels: int, which: Pass, tile: Tile, device: str, fenced, launched) -> None:
    x, w, dy, problem, want, repro = tile_case(kind, family, channels, device)
    plan = Plan(which, family, *tile, split=3 if which == Pass.WGRAD else 1)
    with fp32_precision(NUMBERS[kind][1]):
        got = run_pass(which, problem, x, w, dy, str(plan))
    name = RESULT[which]
    assert which in launched()
    oracle.assert_close({name: got}, {name: want[name]}, f"plan {plan}\n{repro}", kind == "tf32")


PACKED = [
    "fprop:gather:128x64x32:w4:s4:pack-a:pack-b",
    "dgrad:gather:64x64x32:w4:s4:pack-a",
    "dgrad:gather:64x64x32:w4:s4:pack-b",
    "fprop:gather:64x64x16:w4:s4:split2:pack-a",
    "dgrad:gather:64x64x16:w4:s4:split2:pack-a",
    "wgrad:gather:64x64x32:w4:s4:split7:pack-a:pack-b",
    "wgrad:gather:64x64x32:w4:s4:group1:step1x1x4x8",
]


@pytest.mark.parametrize("text", PACKED)
def test_a_forced_plan(text: str, device: str, fenced, launched) -> None:
    """Packed operands, an odd number of splits, a given box."""
    case = dataclasses.replace(GEOMETRIES["resnet_stride_2"], dtype="float16")
    if device == "cpu":
        text = re.sub(":split[0-9]+", ":split2" if text.startswith("wgrad") else "", text)
    check(shrunken(case, device), device, plan=Plan.parse(text))


# --- float32 precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tf32_and_ieee(layout: str, device: str, launched) -> None:
    """Read at each call: ieee errs as float32 does, tf32 visibly more, and ieee again gives the first bits again."""
    case = dataclasses.replace(GEOMETRIES["resnet_3x3"], bias=True, x=layout, w=layout, g=layout)
    case = shrunken(case, device)
    x, w, b = case.tensors(device)
    rounds = []
    for precision in ("ieee", "tf32", "ieee"):
        with fp32_precision(precision):
            rounds.append(oracle.run(tritonconv.conv2d, x, w, b, case.gradient, **case.arguments))
    ieee, tf32, again = rounds
    want = expected("conv2d", x, w, b, case.gradient(ieee["output"]), **case.arguments)
    oracle.assert_close(ieee, want, oracle.repro(case))
    oracle.assert_close(tf32, want, oracle.repro(case), tf32=True)
    for name in RESULT.values():
        assert torch.equal(ieee[name], again[name])
        errors = [float((got[name].cpu().double() - want[name].value).abs().max()) for got in (ieee, tf32)]
        if device == "cuda":  # the interpreter computes both alike
            assert errors[1] > 8 * errors[0], f"{name}: ieee errs by {errors[0]:.3g}, tf32 by {errors[1]:.3g}"


def test_three_tf32_products_err_little_more_than_ieee(device: str, launched) -> None:
    case = shrunken(dataclasses.replace(GEOMETRIES["resnet_3x3"], bias=True), device)
    x, w, b = case.tensors(device)
    want = F.conv2d(x.double(), w.double(), None if b is None else b.double(), **case.arguments)
    errors = []
    with fp32_precision("ieee"):
        for plan in (None, Plan.parse("fprop:gather:64x64x32:w4:s3:x3")):
            errors.append(float((tritonconv.conv2d(x, w, b, **case.arguments, plan=plan).double() - want).abs().max()))
    assert errors[1] < 8 * errors[0]


def test_autocast(device: str, launched) -> None:
    """As torch's convolutions: float32 is cast, the result has the region's dtype, gradients come back in float32."""
    for function, dtype in itertools.product(("conv2d", "conv_transpose2d"), (torch.float16, torch.bfloat16)):
        name = {"conv2d": "resnet_stride_2", "conv_transpose2d": "dcgan_transposed"}[function]
        case = shrunken(GEOMETRIES[name], device)
        x, w, b = case.tensors(device)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        with torch.autocast(device, dtype=dtype):
            y = getattr(tritonconv, function)(*leaves, **case.arguments)
            assert y.dtype == getattr(F, function)(x, w, b, **case.arguments).dtype == dtype
        g = case.gradient(y).to(dtype)
        y.backward(g)
        got = {"output": y.detach()}
        for role, leaf in zip(("input", "weight", "bias"), leaves, strict=True):
            assert leaf.grad.dtype == torch.float32
            got[role] = leaf.grad.to(dtype)
            assert torch.equal(got[role].float(), leaf.grad), "the gradient was not rounded to the region's dtype"
        want = expected(function, *(t.to(dtype) for t in (x, w, b)), g, **case.arguments)
        oracle.assert_close(got, want, oracle.repro(case))


def test_autocast_leaves_float64_alone(device: str, launched) -> None:
    case = shrunken(dataclasses.replace(GEOMETRIES["resnet_expand"], dtype="float64"), device)
    x, w, b = case.tensors(device)
    with torch.autocast(device, dtype=torch.float16):
        assert tritonconv.conv2d(x, w, b).dtype == F.conv2d(x, w, b).dtype == torch.float64
