"""Compiled code, executed on the CPU: every family, pass, type, layout and kind of epilogue once on sm_80 and on sm_90.

A chosen part of what `make compiled` runs, small enough for `make test`: compiling is what costs. No GPU is needed, and no
process with TRITON_INTERPRET.
"""

import chunks
import deformed
import epilogues
import padded
import pytest
import torch
import unfolded
from cases import Case
from pairs import Example as Pair
from pairs import assert_close as assert_pair_close
from sequences import Example as Sequence
from sequences import assert_close as assert_close_in_size

from bench.tolerance import C_LIMIT, UNIT, Expected
from bench.work import Work, float32_in
from costmodel.device import DEVICES
from costmodel.families.copied import PREFIX
from costmodel.problem import Pass
from costmodel.reports.notation import parse
from costmodel.tiling import Plan

pytest.importorskip("numba", reason="compiled code is not run: the executor needs numba")
pytestmark = pytest.mark.compiled

ARCHS = (80, 90)
#: These take what sm_80 compiles to; a sample of their own code runs too.
COUSINS = (86, 89, 120)
GPU = {arch: next(device for device in DEVICES.values() if device.capability == arch) for arch in (*ARCHS, *COUSINS)}
#: layer, plan, arithmetic, layout, architectures.
PLANS = [
    ("conv2d n2 c24 9x7 -> 40 k3x3 p1,1", "fprop:gather:64x32x32:w4:s3", "float16", "channels_last", ARCHS),
    ("conv2d n2 c24 9x7 -> 40 k3x3 p1,1", "fprop:gather:32x16x16:w4:s3:split2", "bfloat16", "contiguous", ARCHS),
    ("conv2d n1 c16 9x8 -> 24 k3x3 s2x2 p1,1", "dgrad:gather:64x16x32:w4:s3", "bfloat16", "channels_last", ARCHS),
    ("conv2d n2 c32 8x6 -> 32 k3x3 p1,1 g2", "wgrad:gather:16x32x32:w4:s3:split2", "float16", "channels_last", ARCHS),
    ("conv1d n2 c24 17 -> 16 k3 p1", "fprop:gather:64x16x16:w4:s3", "float32", "contiguous", ARCHS),
    ("conv3d n1 c16 4x5x3 -> 16 k3x2x2 p1,0,1", "fprop:gather:32x32x32:w4:s4", "tf32", "channels_last", ARCHS),
    ("conv2d n1 c16 6x5 -> 16 k3x3 p1,1", "fprop:gather:32x32x32:w4:s4:x3", "float32", "channels_last", ARCHS),
    ("conv2d n1 c16 5x6 -> 16 k3x3 s2x1 p1,1", "wgrad:gather:32x32x32:w4:s3", "tf32", "contiguous", ARCHS),
    ("conv2d n1 c8 5x6 -> 16 k3x3 p1,1", "dgrad:gather:32x16x16:w4:s2", "float64", "channels_last", ARCHS),
    ("conv2d n2 c40 5x6 -> 24 k1x1", "fprop:patch:32x32x16:w4:s4:split3", "float16", "channels_last", ARCHS),
    ("conv2d n2 c24 8x8 -> 16 k2x2 s2x2", "dgrad:patch:32x32x16:w4:s3", "float32", "contiguous", ARCHS),
    ("conv2d n2 c32 4x4 -> 32 k1x1", "wgrad:patch:32x32x16:w4:s4:split2", "bfloat16", "channels_last", ARCHS),
    ("conv2d n1 c3 9x10 -> 16 k5x5 s2x2 p2,2", "fprop:gather:64x16x32:w4:s4:fold", "float16", "channels_last", ARCHS),
    ("conv2d n1 c16 6x6 -> 16 k3x3 p1,1 g4", "fprop:gather:32x16x16:w4:s4:merge4", "float16", "channels_last", ARCHS),
    ("conv2d n2 c8 9x7 -> 8 k3x3 p1,1 g8", "fprop:depthwise:4x8x4:w4:s3:rows3", "float16", "channels_last", ARCHS),
    ("conv2d n2 c5 9x7 -> 5 k3x3 s2x2 p1,1 g5", "dgrad:depthwise:4x8x4:w4:s3:rows3", "float32", "contiguous", ARCHS),
    ("conv2d n2 c8 9x7 -> 8 k3x3 p1,1 g8", "wgrad:depthwise:4x8x4:w4:s3:rows3", "bfloat16", "channels_last", ARCHS),
    ("conv1d n1 c6 40 -> 6 k9 p4 g6", "fprop:depthwise:4x8x4:w4:s3:taps1x3", "float64", "contiguous", ARCHS),
    ("conv2d n2 c2 24x32 -> 2 k13x13 p6,6 g2", "fprop:band:16x32x64:w4:s4:step1x1x2x16:rows4", "float16", "contiguous", ARCHS),
    ("conv2d n2 c2 24x32 -> 2 k13x13 p6,6 g2", "wgrad:band:32x64x16:w4:s4:step1x1x2x16:rows4", "bfloat16", "contiguous", ARCHS),
    ("conv2d n2 c24 9x7 -> 40 k3x3 p1,2:1 circular", "fprop:padded:64x32x16:w4:s3", "float16", "channels_last", ARCHS),
    ("conv2d n2 c20 5x7 -> 24 k3x2 s2x1 p1:2,1 reflect", "dgrad:padded:32x32x16:w4:s3", "bfloat16", "contiguous", ARCHS),
    (
        "conv2d n2 c24 6x5 -> 16 k3x3 p1 zeros,replicate",
        "wgrad:padded:16x32x32:w4:s3:split2",
        "float16",
        "channels_last",
        ARCHS,
    ),
    ("conv3d n1 c20 3x4x5 -> 8 k2x2x3 p1 reflect", "fprop:padded:32x16x16:w4:s3:split2", "float32", "contiguous", ARCHS),
    ("conv2d n2 c32 9x7 -> 48 k3x3 p1,1", "fprop:tma:64x64x32:w4:s3", "float16", "channels_last", (90,)),
    ("conv2d n1 c16 8x6 -> 32 k3x3 p1,1", "fprop:tma:64x32x16:w4:s3", "tf32", "channels_last", (90,)),
    ("conv2d n1 c32 8x8 -> 32 k3x3 s2x2 p1,1", "dgrad:tma:64x32x32:w4:s3", "bfloat16", "channels_last", (90,)),
    ("conv2d n2 c32 8x8 -> 64 k3x3 p1,1", "wgrad:tma:64x32x32:w4:s3:split2", "float16", "channels_last", (90,)),
    ("conv2d n2 c32 9x7 -> 48 k3x3 p1 reflect", "fprop:copied-tma:64x64x32:w4:s3", "float16", "channels_last", (90,)),
    ("conv2d n2 c32 9x7 -> 48 k3x3 p1 zeros,circular", "wgrad:copied-tma:64x32x32:w4:s3", "bfloat16", "contiguous", (90,)),
    ("conv2d n2 c32 9x7 -> 32 k3x3 p2 replicate", "dgrad:copied-tma:64x32x32:w4:s3", "bfloat16", "channels_last", (90,)),
    ("conv2d n1 c16 6x5 -> 16 k3x3 p2:1,1 replicate", "dgrad:copied-gather:32x16x16:w4:s3", "float32", "contiguous", ARCHS),
]
EACH = [pytest.param(arch, *row, id=f"sm_{arch}-{row[1]}-{row[2]}") for *row, archs in PLANS for arch in archs]
EACH += [
    pytest.param(arch, *row, id=f"sm_{arch}-{row[1]}-{row[2]}", marks=pytest.mark.slow)
    for *row, archs in PLANS
    for arch in COUSINS
    if archs == ARCHS
]
HALF = {"padding": 1, "dtype": "float16", "x": "channels_last", "w": "channels_last"}
DEEP = Case("conv2d", (2, 32, 6, 5), (32, 32, 3, 3), **HALF)
ROWS = Case("conv2d", (2, 16, 6, 5), (16, 16, 1, 1), dtype="bfloat16")
SEPARATE = Case("conv2d", (2, 8, 6, 7), (8, 1, 3, 3), groups=8, padding=1, x="channels_last")
LARGE = Case("conv2d", (1, 2, 16, 16), (2, 1, 13, 13), groups=2, padding=6, dtype="float16")
#: Each kind of epilogue on each family that has one: case, plan, activation, what is added.
FOLLOWED = [
    (DEEP, "fprop:gather:32x32x32:w4:s3", "relu", ("scale", "shift"), ARCHS),
    (ROWS, "fprop:patch:32x16x16:w4:s3", "gelu", ("residual",), ARCHS),
    (SEPARATE, "fprop:depthwise:4x8x4:w4:s3:rows3", "silu", ("scale", "residual"), ARCHS),
    (LARGE, "fprop:band:16x32x64:w4:s4:step1x1x2x16:rows4", "leaky_relu", ("shift",), ARCHS),
    (DEEP, "fprop:tma:64x32x32:w4:s3", "hardswish", ("residual",), (90,)),
]
AFTER = [pytest.param(arch, *row, id=f"sm_{arch}-{row[1]}-{row[2]}") for *row, archs in FOLLOWED for arch in archs]


@pytest.fixture
def executor(arch):
    """The executor of an architecture as Triton's device, and the kernels on CPU tensors."""
    from bench.executor import driver
    from tritonconv import host

    installed = driver.install(arch)
    host.use(GPU[arch])
    yield installed
    host.use(None)
    driver.uninstall()


@pytest.fixture
def executed(executor):
    """The names of the kernels that ran; the test fails where none did."""
    names = []
    executor.listeners.append(lambda launched: names.append(launched.program.name))
    yield names
    assert names, "no compiled kernel ran"


@pytest.mark.parametrize("arch, layer, plan, arithmetic, layout", EACH)
def test_a_plan(arch, layer, plan, arithmetic, layout, executed):
    from bench.compiled.chosen import Chosen
    from bench.compiled.plans import ARITHMETICS, error_of

    dtype, precision = ARITHMETICS[arithmetic]
    problem, forced = parse(layer).problem, Plan.parse(plan)
    work = Work(problem, forced.which, dtype, precision, layout)
    with float32_in(precision):
        assert error_of(Chosen(work, forced, forced.which == Pass.FPROP, arch, ""), GPU[arch]) <= 1
    twice = (("depthwise", Pass.WGRAD), ("padded", Pass.DGRAD))
    copied = forced.family.startswith(PREFIX)
    two_stages = forced.split > 1 or forced.family == "band" or copied or (forced.family, forced.which) in twice
    assert len(executed) == 1 + two_stages


FAR = [
    row
    for row in EACH
    if row.values[0] in ARCHS
    and row.values[2].split(":")[1] in ("gather", "tma", "depthwise", "padded")
    and row.values[3] == "float16"
]


@pytest.mark.parametrize("arch, layer, plan, arithmetic, layout", FAR)
def test_64_bit_offsets(arch, layer, plan, arithmetic, layout, executed):
    """The code that tensors of more than 2^31 elements take; coordinates of boxes stay in 32 bits."""
    from bench.compiled.chosen import Chosen, far
    from bench.compiled.plans import error_of

    forced = Plan.parse(plan)
    work = Work(parse(layer).problem, forced.which, arithmetic, layout=layout)
    with far():
        assert error_of(Chosen(work, forced, False, arch, "", True), GPU[arch]) <= 1


ORDERLY = [row for row in EACH if row.values[0] in ARCHS and (":split" in row.values[2] or "wgrad:depthwise" in row.values[2])]


@pytest.mark.parametrize("arch, layer, plan, arithmetic, layout", ORDERLY)
def test_the_same_bits_in_any_order_of_warps(arch, layer, plan, arithmetic, layout, executed, executor):
    """Partial sums too. Programs meet in no byte, which every launch is checked for, so that their order cannot matter."""
    from bench.compiled.plans import ARITHMETICS
    from tritonconv import launch

    dtype, precision = ARITHMETICS[arithmetic]
    problem, forced = parse(layer).problem, Plan.parse(plan)
    work, found = Work(problem, forced.which, dtype, precision, layout), []
    ((a, b),) = work.inputs(1, "cpu")
    for executor.seed in range(4):
        with float32_in(precision):
            out = launch.allocate(work.shapes[2], a, b).fill_(torch.nan)
            found.append(launch.execute(forced.which, problem, a, b, out, None, plan))
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("arch, case, plan, activation, extras", AFTER)
def test_what_follows_in_the_same_kernel(arch, case, plan, activation, extras, executed):
    tensors = epilogues.operands(case, extras)
    y = epilogues.fused(case, tensors, activation=activation, plan=Plan.parse(plan))
    epilogues.assert_forward(case, tensors, y, activation)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("last, dtype", [(True, torch.float16), (False, torch.float32)], ids=["channels-last", "contiguous"])
def test_causal(arch, last, dtype, executed):
    """Forward with a state, all gradients, and one token."""
    import tritonconv

    example = Sequence("state", 2, 8, 24, 4, last, dtype)
    found, want = example.library("silu"), example.by_definition("silu")
    unit = 2.0**-8 if dtype == torch.float16 else 1e-5
    assert_close_in_size(found, want, unit)
    state = example.state.clone()
    out = tritonconv.causal_conv1d_update(example.x[..., 0].contiguous(), state, example.w, example.b, "silu")
    assert bool(((out - want["out"][..., 0]).abs() <= unit * want["out"].abs().max()).all())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name, dtype", [("wan, cached", torch.float16), ("upsample", torch.bfloat16)])
def test_video(arch, name, dtype, executed):
    import tritonconv

    shape, weight, cached, window = chunks.CALLS[name]
    x, w, b, cache = chunks.tensors(shape, weight, cached, dtype=dtype)
    y, _ = tritonconv.causal_conv3d(x, w, b, cache=cache, **window)
    chunks.assert_close(y, chunks.by_definition(x, w, b, cache=cache, **window), 2 * torch.finfo(dtype).eps)


PLAN = "fprop:video:16x16x16:w4:s3"


@pytest.mark.parametrize(
    "arch, norm, dtype",
    [
        (80, "group", torch.bfloat16),
        (90, "rms", torch.float16),
        pytest.param(90, "group", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(80, "rms", torch.float16, marks=pytest.mark.slow),
    ],
)
def test_video_with_a_prologue(arch, norm, dtype, executed):
    """Statistics, then both ways, which convolve values that are off by one rounding of x's dtype; a residual, a border."""
    import tritonconv

    x, w, b, cache = chunks.tensors((1, 24, 2, 3, 4), (16, 24, 2, 3, 3), 1, dtype=dtype)
    residual = torch.randn(1, 16, 2, 3, 4).to(dtype)
    if norm == "group":
        prologue = tritonconv.group_norm_prologue(x, 3, activation="silu")
        normal = torch.nn.functional.group_norm(x.double(), 3)
    else:
        prologue = tritonconv.rms_norm_prologue(x, activation="silu")
        normal = x.double() * (x.double().square().mean(1, True) + 1e-6).rsqrt()
    known = torch.nn.functional.silu(normal)

    def padded(x, w, cache):
        line = torch.cat([cache, x], 2)
        return torch.nn.functional.conv3d(torch.nn.functional.pad(line, (1, 1, 1, 1, 0, 0), "replicate"), w)

    exact = padded(known, w.double(), cache.double()) + b.double().view(-1, 1, 1, 1) + residual.double()
    sums = padded(known.abs(), w.abs().double(), cache.abs().double())
    added = sums + b.abs().double().view(-1, 1, 1, 1) + residual.abs().double()
    want = Expected(exact, added, torch.full_like(exact, 24 * 18.0))
    room = want.rounding(dtype) + C_LIMIT * want.accumulation(dtype) + UNIT[dtype] * sums
    for plan in (PLAN, f"{PLAN}:apart"):
        given = {"prologue": prologue, "residual": residual, "padding_mode": "replicate", "plan": plan}
        y, after = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, **given)
        assert bool((want.difference(y) <= room).all())
        assert bool(((after - known[:, :, -1:]).abs() <= 1.01 * UNIT[dtype] * known.abs().max()).all())
    statistics = ["moments_kernel", "group_kernel"] if norm == "group" else ["square_kernel"]
    assert executed == [*statistics, "video_kernel", "apply_kernel", "video_kernel"]


@pytest.mark.parametrize(
    "arch, norm, mode, tile",
    [
        (80, "group", "zeros", "64x16x16:w4:s3"),
        (90, "rms", "circular", "64x32x32:w4:s3"),
        pytest.param(90, "group", "reflect", "16x16x16:w4:s3:split2", marks=pytest.mark.slow),
        pytest.param(80, "rms", "zeros", "16x16x16:w4:s3", marks=pytest.mark.slow),
    ],
)
def test_a_convolution_with_a_prologue(arch, norm, mode, tile, executed):
    """Together and apart, of tiles that span images or not (16 results each), with a residual, called twice."""
    import tritonconv

    torch.manual_seed(0)
    dtype = torch.bfloat16 if norm == "group" else torch.float16
    x, residual = (torch.randn(3, 24, 4, 4).to(dtype).to(memory_format=torch.channels_last) for _ in range(2))
    w, b = torch.randn(24, 24, 3, 3).to(dtype).to(memory_format=torch.channels_last), torch.randn(24).to(dtype)
    if norm == "group":
        prologue = tritonconv.group_norm_prologue(x, 3, activation="silu")
        normal = torch.nn.functional.group_norm(x.double(), 3)
    else:
        prologue = tritonconv.rms_norm_prologue(x, activation="silu")
        normal = x.double() * (x.double().square().mean(1, True) + 1e-6).rsqrt()
    known, window = torch.nn.functional.silu(normal), {"padding": ((1, 1),) * 2, "padding_mode": mode}
    sums = padded.by_pad(known.abs(), w.abs().double(), **window)
    exact = padded.by_pad(known, w.double(), b.double(), **window) + residual.double()
    added = sums + b.abs().double().view(-1, 1, 1) + residual.abs().double()
    want = Expected(exact, added, torch.full_like(exact, 24 * 9.0))
    room = want.rounding(dtype) + C_LIMIT * want.accumulation(dtype) + UNIT[dtype] * sums
    executed.clear()
    for plan in (f"fprop:padded:{tile}:together", f"fprop:{'gather' if mode == 'zeros' else 'padded'}:{tile}"):
        for _ in range(2):
            y = tritonconv.conv2d_fused(x, w, b, prologue=prologue, residual=residual, plan=plan, **window)
            assert bool((want.difference(y) <= room).all())
    assert executed.count("padded_fprop_kernel") == (2 if mode == "zeros" else 4) and executed.count("apply_kernel") == 2


@pytest.mark.parametrize("arch", [80, pytest.param(90, marks=pytest.mark.slow)])
def test_video_of_summed_taps_groups_and_shares(arch, executed):
    import tritonconv

    x, w, b, _ = chunks.tensors((1, 16, 1, 3, 4), (16, 16, 1, 3, 3), dtype=torch.float32)
    with float32_in("ieee"):
        y, _ = tritonconv.causal_conv3d(x, w, b, padding=1, upsample=2)
        chunks.assert_close(y, chunks.by_definition(x, w, b, padding=1, upsample=2), 1e-5)
        plan = "fprop:video:16x16x16:w4:s3:split2"
        deep, filters = torch.cat([x, -x], 1), torch.cat([w, w.flip(2)], 1)
        shared, _ = tritonconv.causal_conv3d(deep, filters, b, padding=1, plan=plan)
        chunks.assert_close(shared, chunks.by_definition(deep, filters, b, padding=1), 1e-5)
        y, _ = tritonconv.causal_conv3d(x, w[:, :8], b, padding=1, groups=2)
    want = torch.nn.functional.conv3d(x.double(), w[:, :8].double(), b.double(), padding=(0, 1, 1), groups=2)
    chunks.assert_close(y, want, 1e-5)
    assert executed == ["video_kernel", "video_kernel", "reduce_kernel", "video_kernel"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("between, after, dtype", [("relu6", "relu", torch.float16), (None, None, torch.float32)])
def test_separable(arch, between, after, dtype, executed):
    with float32_in("ieee"):
        example = Pair((2, 16, 9, 7), 24, dtype=dtype, padding=1, residual=True)
        assert_pair_close(example, between, after)
    assert executed == ["separable_kernel"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name, dtype", [("mixed", torch.float32), ("weather", torch.bfloat16)])
def test_padded(arch, name, dtype, executed):
    """Forward with an epilogue, and all gradients of the plain function, by the plans that a GPU takes."""
    import tritonconv

    layer = padded.LAYERS[name]
    with float32_in("ieee"):
        x, w, b = layer.tensors(dtype, last=dtype == torch.bfloat16)
        padded.check(layer, x, w, b)
        residual = layer.ours(x, w, b)
        y = tritonconv.conv2d_fused(x, w, b, **layer.window, residual=residual, activation="relu")
    exact = padded.by_pad(x.double(), w.double(), b.double(), **layer.window) + residual.double()
    torch.testing.assert_close(y.double(), exact.relu(), rtol=2 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    assert set(executed) - {"reduce_kernel"} == {
        "padded_fprop_kernel", "padded_wgrad_kernel", "dgrad_kernel", "padded_fold_kernel"
    }  # fmt: skip


#: Channels that fill loads of 16 bytes, with groups of both kinds; and three, whose loads bring one each.
DEFORMED = {
    "even": {"shape": (1, 32, 5, 6), "filters": 16, "kernel": (3, 1), "groups": 2, "offset_groups": 2, "padding": (1, 0)},
    "three": {"shape": (2, 3, 4, 5), "filters": 5, "kernel": (1, 2), "stride": (1, 2), "masked": False},
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name, dtype", [("even", torch.bfloat16), ("three", torch.float32)])
def test_deform(arch, name, dtype, executed):
    """Forward and all gradients, of contiguous tensors, by the plans that a GPU takes."""
    call = DEFORMED[name]
    window = {key: call[key] for key in ("stride", "padding") if key in call}
    with float32_in("ieee"):
        of = deformed.tensors(**call, dtype=dtype)
        got, dy = deformed.gradients(lambda t: deformed.ours(t, **window), of)
        y = deformed.ours(of, **window)
    deformed.assert_close(of, y, **window)
    exact = deformed.Tensors(*(None if t is None else t.double() for t in of))
    want, _ = deformed.gradients(lambda t: deformed.by_formula(t, **window), exact, dy)
    deformed.assert_all_close(of, got, want, 8 * torch.finfo(dtype).eps)
    kernels = ["deform_kernel", "weights_kernel", "columns_kernel", "targets_kernel", "scatter_kernel"]
    assert [name for name in executed if name != "reduce_kernel"] == [*kernels, "deform_kernel"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name, dtype, laid", [("2-D", torch.bfloat16, True), ("kernel < stride", torch.float32, False)])
def test_unfold(arch, name, dtype, laid, executed):
    """Both ways, of channels-last and of contiguous tensors, by the plans that a GPU takes."""

    def last(t):
        return t.transpose(1, -1).contiguous().transpose(1, -1) if laid else t

    unfolded.check(name, dtype, laid=last)
    assert executed == ["unfold_kernel", "fold_kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90])
def test_every_family_behind_a_copy(arch, executed):
    """The items of the GPU's first stage, under the plans of an H200."""
    from bench.gpu.convolutions import copied_items

    with float32_in("ieee"):
        for item in copied_items():
            given = item.inputs("cpu")
            assert item.judge(given, item.call(*given)) <= 1, item.name
