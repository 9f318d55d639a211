"""A kernel family that is added here and nowhere else, as CONTRIBUTING says how; and that nobody else names a family."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

import costmodel
import tritonconv
from bench.compiled.chosen import reach
from costmodel.algebra import ceil_div, product
from costmodel.device import find_device
from costmodel.families import families
from costmodel.families.protocol import Counted, Family
from costmodel.fingerprints import is_current
from costmodel.legality import refusal
from costmodel.plan import candidates, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan, Tile, channels_last, itemsize, plan_option
from costmodel.timing import Prediction, from_dram, overhead, traffic
from tritonconv.describe import describe
from tritonconv.families import launchers
from tritonconv.families.protocol import Launcher
from tritonconv.steps import Launch, Step

# ---- a family -------------------------------------------------------------------------------------------------------


@triton.jit
def toy_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    sizes,  # of y
    x_strides,
    w_strides,
    y_strides,
    C,
    R: tl.constexpr,
    S: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One output per lane."""
    images, filters, rows, columns = sizes
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    q, p = lane % columns, lane // columns % rows
    k, n = lane // (columns * rows) % filters, lane // (columns * rows * filters)
    inside = n < images
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(C * R * S):
        c, r, s = i // (R * S), i // S % R, i % S
        pixel = x_ptr + n * x_strides[0] + c * x_strides[1] + (p + r) * x_strides[2] + (q + s) * x_strides[3]
        tap = w_ptr + k * w_strides[0] + c * w_strides[1] + r * w_strides[2] + s * w_strides[3]
        acc += tl.load(pixel, inside, 0.0).to(tl.float32) * tl.load(tap, inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        acc += tl.load(b_ptr + k, inside, 0.0).to(tl.float32)
    place = y_ptr + n * y_strides[0] + k * y_strides[1] + p * y_strides[2] + q * y_strides[3]
    tl.store(place, acc.to(y_ptr.dtype.element_ty), inside)


@dataclass(frozen=True)
class ToyPlan(Plan):
    """`block_m` outputs per program; `label` changes nothing."""

    label: int = plan_option("label", 0)


class Toy(Family):
    name, plan, narrow = "toy", ToyPlan, True
    kernels = ()
    samples = {"any": ConvProblem.conv((2, 2, 9, 9), (4, 2, 3, 3), (1, 1), (0, 0), (1, 1))}  # noqa: RUF012

    def refusal(self, call, plan, device):
        problem = call.problem
        plain = {*problem.stride, *problem.dilation} == {1} and not any(map(any, problem.padding)) and problem.groups == 1
        if call.which != Pass.FPROP or problem.rank != 2 or not plain or call.epilogue:
            return "it serves fprop in 2-D with neither padding, steps nor groups"
        return "" if plan.block_n == plan.block_k == 1 else f"its tiles are n x 1 x 1, got {plan.tile}"

    def candidates(self, call, device):
        plan = ToyPlan(call.which, "toy", 128, 1, 1, 4, 1)
        return [] if self.refusal(call, plan, device) else [plan]

    def predict(self, call, plan, device):
        constants, moved = device.calibration("toy"), traffic(call).compulsory
        seconds = overhead(1, device, constants) + from_dram(moved, device, constants)
        return Prediction(seconds, launched(call.problem, plan), 1.0, 1.0, moved, "DRAM")

    def counted(self, call, plan):
        return Counted(launched(call.problem, plan) * plan.block_m * call.problem.in_channels * call.problem.taps, 0, 1)

    def compiled(self, which, kind):
        return [("any", Tile(128, 1, 1, 4, 1))] if which == Pass.FPROP and kind == "half" else []


class ToyLauncher(Launcher):
    name, title = "toy", "one output per lane"

    def launch(self, plan, call, a, b, out, bias_stride, fused, upcast):
        problem = call.problem
        (r, s), sizes = problem.kernel_size, (problem.batch, problem.out_channels, *problem.output_size)
        constants = {"R": r, "S": s, "HAS_BIAS": bias_stride is not None, "BLOCK": plan.block_m}
        constants |= {"num_warps": plan.num_warps, "num_stages": plan.num_stages}
        arguments = (sizes, a[1], b[1], out[1], problem.in_channels)
        return Launch(plan, Step(toy_kernel, launched(problem, plan), constants, arguments, ("a", "b", "bias", "out")))

    def words(self, call, plan):
        return [f"  {launched(call.problem, plan)} programs of {plan.block_m} outputs"]


def launched(problem, plan):
    return ceil_div(product(problem.output_shape), plan.block_m)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(families(), "toy", Toy())
    monkeypatch.setitem(launchers(), "toy", ToyLauncher())


# ---- what serves it -------------------------------------------------------------------------------------------------

WORDS = "fprop:toy:64x1x1:w4:s1:label7"
PROBLEM = ConvProblem.conv((2, 2, 6, 7), (3, 2, 3, 3), (1, 1), (0, 0), (1, 1))


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in (PROBLEM.input_shape, PROBLEM.weight_shape, (3,))]


def test_it_is_nowhere_else():
    with pytest.raises(ValueError, match="there is no family 'toy'"):
        Plan.parse(WORDS)


def test_it_computes(toy, tensors, launches):
    x, w, b = tensors
    y = tritonconv.conv2d(x.requires_grad_(), w, b, plan=Plan.parse(WORDS))
    torch.testing.assert_close(y, F.conv2d(x, w, b))
    assert launches() == {"fprop": 1, "toy fprop": 1}
    y.sum().backward()  # by the kernels that the library chooses
    assert launches()["dgrad"] == 1


def test_it_is_explained(toy, tensors):
    plan = Plan.parse(WORDS)
    found = tritonconv.explain(tritonconv.conv2d, *tensors, plan=plan)
    assert found.plans["fprop"] == plan and found.plans["dgrad"].family != "toy"
    lines = str(found).splitlines()
    at = lines.index("fprop: one output per lane")
    assert lines[at + 1 : at + 3] == [f"  plan {plan}", "  2 programs of 64 outputs"]
    assert any("forced by plan=" in line for line in lines)


def test_it_is_predicted_counted_and_chosen(toy):
    call, h200 = channels_last(PROBLEM, Pass.FPROP, "float16"), find_device("h200")
    found = costmodel.predict(PROBLEM, "fprop", WORDS, "h200", dtype="float16")
    assert found.tiles == 2 and found.bound == "DRAM" and found.bytes == PROBLEM.bytes(itemsize("float16"))
    assert costmodel.cost(PROBLEM, "fprop", WORDS).issued_macs == 2 * 64 * 2 * 9
    own = [plan for plan in candidates(call, h200) if plan.family == "toy"]
    assert own and select(call, h200) == own[0]  # nothing else takes as little as DRAM alone
    assert select(channels_last(PROBLEM, Pass.DGRAD, "float16"), h200).family != "toy"
    assert not is_current("toy", "0" * 16)


@pytest.mark.parametrize(
    "problem, words, says",
    [
        (PROBLEM, "fprop:toy:64x2x1:w4:s1", "its tiles are n x 1 x 1"),
        (ConvProblem.conv((2, 2, 6, 7), (3, 2, 3, 3), (2, 1), (0, 0), (1, 1)), WORDS, "it serves fprop in 2-D"),
        (PROBLEM, "fprop:toy:64x1x1:w3:s1", "warps must be a power of two"),
    ],
)
def test_what_it_does_not_serve(toy, problem, words, says):
    assert says in refusal(Call(problem, Pass.FPROP, "float32"), Plan.parse(words))
    with pytest.raises(ValueError, match=f"cannot run fprop of .*{says}"):
        costmodel.predict(problem, "fprop", words, "h200")


def test_words_of_another_family_are_none_of_its(toy):
    with pytest.raises(ValueError, match="family 'toy' knows no merge, got 2"):
        Plan.parse("fprop:toy:64x1x1:merge2")
    with pytest.raises(ValueError, match="family 'gather' knows no label, got 7"):
        Plan.parse("fprop:gather:64x64x32:label7")


def test_the_audit_lists_it(toy):
    from bench.audit import menu

    assert [row.key for row in menu((90,)) if row.family == "toy"] == ["fprop:toy:half:any:128x1x1:w4:s1:sm90"]
    assert __name__ in [module.__name__ for module in reach()]


@pytest.mark.aot
def test_the_audit_compiles_it(toy):
    from bench.audit import compile_row, menu

    (row,) = (row for row in menu((90,)) if row.family == "toy")
    found = compile_row(row)
    assert found.registers > 0 and not found.spills and found.trip.classes["fma"]


# ---- nobody names a family ------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
#: Whose own files these are: the families, the registry among them, and functions, whose plans and kernels are theirs.
OWN = ("families", "kernels", "causal", "video", "separable", "data", "library", "formulas", "compare")
#: In bench what is about families one by one, or about depthwise layers: tables of what is tried, a page of one family.
TABLES = ("gpu/convolutions.py", "gpu/bits.py", "band.py", "compiled/counts.py", "compiled/suite.py", "sass.py")
TABLES += ("compared.py", "workloads/lists.py", "padded.py")


def named(path):
    """Where a file has the name of a family as a string, docstrings aside. Words of a plan are data."""
    tree = ast.parse(path.read_text())
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and n.body and isinstance(n.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            if node.value in families():
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"


@pytest.mark.parametrize("package", ["costmodel", "tritonconv", "bench"])
def test_no_family_is_named_outside_its_files(package):
    found = []
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT / package)
        if not {*parts.parts, parts.stem} & {*OWN} and str(parts) not in TABLES:
            found += named(path)
    assert not found


def test_tensors_are_described_as_the_family_that_may_run_them_asks(monkeypatch):
    """Depthwise weights [K, 1, R, S] are read along their taps; without a family that says so their channel is contiguous."""
    weight, image = ((8, 1, 3, 3), (9, 9, 3, 1)), ((1, 8, 5, 5), (200, 25, 5, 1))
    depthwise = ConvProblem.conv(image[0], weight[0], (1, 1), (1, 1), (1, 1), 8)
    assert describe(depthwise, Pass.FPROP, image, weight, image)[1].unit == 4
    for launcher in launchers().values():
        monkeypatch.setattr(type(launcher), "describes", lambda self, problem: None)
    assert describe(depthwise, Pass.FPROP, image, weight, image)[1].unit == 1
