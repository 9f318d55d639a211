"""The gradients of the deformable convolution: against torch's of the formula in float64, their bits, and as an op of torch."""

import pytest
import torch
from deformed import Tensors, assert_all_close, by_formula, gradients, ours, tensors, torchvision_ops
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from costmodel import deform_backward as model
from costmodel.tiling import Plan
from tritonconv import host

OPS = torch.ops.tritonconv
NAN = float("nan")
CALLS = {
    "modulated": {"kernel": (1, 2), "padding": 1},
    "version 1": {"kernel": (2, 1), "masked": False, "biased": False, "reach": 0.5},
    "offset groups": {"kernel": (1, 1), "offset_groups": 3, "padding": (1, 0)},
    "groups that share no boundary": {"kernel": (1, 1), "groups": 2, "offset_groups": 3},
    "kernel < stride": {"kernel": (2, 1), "stride": (3, 2), "dilation": (2, 1)},
}
SHAPE = (2, 6, 3, 4)


def window_of(call):
    return {k: v for k, v in call.items() if k in ("stride", "padding", "dilation")}


@pytest.mark.parametrize("name", CALLS)
def test_every_shape(name, device, launches):
    of, window = tensors(SHAPE, **CALLS[name], device=device), window_of(CALLS[name])
    got, _ = gradients(lambda t: ours(t, **window), of)
    counted = launches()
    want, _ = gradients(lambda t: by_formula(t, **window), of)
    assert_all_close(of, got, want, 1e-13)
    assert [counted[f"deform {part}"] for part in ("columns", "targets", "scatter", "weights")] == [1] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_dtype(dtype, device):
    """Products of one rounding each in the dtype, sums in float32: the error of a sum is below twice its largest term's."""
    of = tensors((1, 4, 3, 3), kernel=(1, 2), dtype=dtype, device=device)
    got, dy = gradients(ours, of, torch.linspace(-1, 2, 4 * 3 * 2).view(1, 4, 3, 2).to(dtype).double())
    want, _ = gradients(by_formula, Tensors(*(t.double() for t in of)), dy)
    assert_all_close(of, got, want, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("wanted", Tensors._fields)
def test_one_gradient_alone(wanted, device, launches):
    of = tensors(SHAPE, kernel=(1, 1), device=device)
    leaf = getattr(of, wanted).detach().requires_grad_()
    (got,) = torch.autograd.grad(ours(of._replace(**{wanted: leaf})).sum(), leaf)
    other = leaf.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad(by_formula(of._replace(**{wanted: other})).sum(), other)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    counted = launches()
    parts = {"input": "columns targets scatter", "offset": "columns", "mask": "columns", "weight": "weights", "bias": ""}
    assert {name for name in counted if name.startswith("deform ")} == {f"deform {p}" for p in parts[wanted].split()}


@pytest.mark.filterwarnings("ignore:invalid value")
def test_whole_offsets_and_places_at_the_border(device):
    """Where a place is on a pixel, the offset's gradient is that towards larger offsets, which the formula's tents leave open:
    it is the one a hair behind. At -1 the first pixel lies ahead; at the size nothing does."""
    x = torch.arange(1.0, 7.0, dtype=torch.float64, device=device).view(1, 1, 2, 3).requires_grad_()
    offset = torch.zeros(1, 2, 2, 3, dtype=torch.float64, device=device)
    offset[0, 0] = torch.tensor([[-1.0, 0.0, 2.0], [0.0, 1.0, -2.0]])
    w = torch.ones(1, 1, 1, 1, dtype=torch.float64, device=device)

    def of(moved):
        moved = moved.clone().requires_grad_()
        return torch.autograd.grad(tritonconv.deform_conv2d(x, moved, w).sum(), (x, moved))

    (dx, exact), (_, behind) = of(offset), of(offset + 1e-9)
    torch.testing.assert_close(exact, behind, rtol=0, atol=1e-6)
    assert dx[0, 0].tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    dy = torch.zeros_like(x).index_fill(-1, torch.tensor([0], device=device), float("inf"))  # 0 times it would be NaN
    (dx,) = torch.autograd.grad(tritonconv.deform_conv2d(x, offset, w), x, dy)
    assert dx[0, 0].tolist() == [[0.0, 0.0, 0.0], [float("inf"), 0.0, 0.0]]


def test_a_nan_stays_in_its_place(device):
    """It is in the result and in its own offset's and mask's gradient, and in no gradient of the input."""
    of = tensors((1, 2, 2, 3), 2, (1, 1), device=device, reach=0.25)
    moved = of.offset.clone()
    moved[0, 0, 1, 1] = NAN
    (dx, doffset, dw, _, dmask), _ = gradients(ours, of._replace(offset=moved))
    assert torch.isfinite(dx).all() and torch.isnan(dw).all()
    for gradient in (doffset, dmask):
        assert torch.isnan(gradient[0, :, 1, 1]).all() and torch.isnan(gradient).sum() == len(gradient[0])


def test_the_same_bits_on_every_run_and_in_any_portion(device, monkeypatch):
    """Every place near one pixel: the longest list there is. A batch in portions of one image has the same bits."""
    of = tensors((2, 3, 3, 3), 2, (1, 2), dtype=torch.float32, device=device)
    grid = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(2.0), indexing="ij"))
    together = (1.25 - grid).repeat(1, 2, 1, 1).expand(2, 4, 3, 2).to(device)
    first, _ = gradients(ours, of._replace(offset=together))
    monkeypatch.setattr(model, "WORKSPACE", 1)
    again, _ = gradients(ours, of._replace(offset=together))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_plans_may_be_forced(device, launches):
    """Tiles smaller than the problem along every axis, and pixels shared out."""
    of = tensors((2, 18, 5, 7), 18, (1, 1), dtype=torch.float32, device=device)
    plans = [Plan.parse(word) for word in ("dgrad:deform:16x16x16:w4:s1", "wgrad:deform:16x16x16:w4:s1:split2")]
    got, dy = gradients(lambda t: ours(t, plans), of)
    assert launches()["reduce"] == 1
    want, _ = gradients(by_formula, Tensors(*(t.double() for t in of)), dy)
    assert_all_close(of, got, want, 1e-5)
    for word, why in (
        ("dgrad:deform:16x16x16:split2", "only wgrad splits"),
        ("wgrad:gather:16x16x16", "take plans wgrad:deform"),
    ):
        with pytest.raises(ValueError, match=why):
            gradients(lambda t, word=word: ours(t, Plan.parse(word)), of)


def test_tensors_may_lie_anyhow(device):
    """Slices of every operand, channels-last weights, and a gradient that is expanded."""
    of = tensors((1, 3, 3, 4), 2, (1, 2), device=device)
    laid = Tensors(
        *(t.new_full([2 * n + 1 for n in t.shape], NAN)[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t) for t in of)
    )
    leaves = [t.requires_grad_() for t in laid]
    got = torch.autograd.grad(ours(Tensors(*leaves)).sum(), leaves)
    want, _ = gradients(by_formula, of, torch.ones(1, 2, 3, 3))
    assert_all_close(of, got, want, 1e-13)


def test_an_empty_batch(device):
    of = tensors((0, 2, 3, 3), 2, (1, 1), device=device)
    got, _ = gradients(ours, of)
    assert [t.shape for t in got] == [t.shape for t in of] and not any(bool(t.any()) for t in got)


def test_torchs_operators_compute_the_same():
    """CPU tensors where nothing runs kernels."""
    was, device = host.runs_kernels(), host.model(host.index_of(torch.empty(0)))
    host.use(None)
    try:
        for call in CALLS.values():
            window = window_of(call)
            of = tensors(SHAPE, **call)
            got, _ = gradients(lambda t, window=window: ours(t, **window), of)
            want, _ = gradients(lambda t, window=window: by_formula(t, **window), of)
            assert_all_close(of, got, want, 1e-13)
        test_whole_offsets_and_places_at_the_border("cpu")
        test_a_nan_stays_in_its_place("cpu")
    finally:
        host.use(device if was else None)


def test_as_torchvision_computes_them():
    """In float64 on the CPU, by torch's operators and by torchvision's, where those load."""
    theirs = torchvision_ops().deform_conv2d
    was, device = host.runs_kernels(), host.model(host.index_of(torch.empty(0)))
    host.use(None)
    try:
        for call in CALLS.values():
            window = window_of(call)
            of = tensors(SHAPE, **call)
            got, dy = gradients(lambda t, window=window: ours(t, **window), of)
            want, _ = gradients(lambda t, window=window: theirs(*t[:4], mask=t.mask, **window), of, dy)
            assert_all_close(of, got, want, 1e-12)
    finally:
        host.use(device if was else None)


def test_the_ops_keep_their_promises(device):
    of = Tensors(*(t.requires_grad_() for t in tensors((1, 2, 2, 2), 2, (1, 1), dtype=torch.float32, device=device)))
    window = [1, 1], [0, 0], [1, 1]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPS.deform.default, (*of[:4], of.mask, *window), test_utils=checks)
    checks = checks[:3]
    dy = torch.ones(1, 2, 2, 2, device=device)
    plain = Tensors(*(t.detach() for t in of))
    needs = [True, False, True, True]
    given = (dy, plain.input, plain.offset, plain.weight, plain.mask, *window, needs)
    torch.library.opcheck(OPS.deform_backward.default, given, test_utils=checks)
    with pytest.raises(RuntimeError, match=r"expected dy of shape \[1, 2, 2, 2\], got dy \[2, 2, 2, 2\]"):
        OPS.deform_backward(dy.expand(2, -1, -1, -1), *given[1:])
    with pytest.raises(RuntimeError, match="needs must be 4 bools"):
        OPS.deform_backward(*given[:-1], [True])


def test_autocast_flops_and_compiled_graphs(device):
    of = Tensors(*(t.requires_grad_() for t in tensors((1, 2, 2, 3), 2, (1, 1), dtype=torch.float32, device=device)))
    with FlopCounterMode(display=False) as counted:
        ours(of).sum().backward()
    macs, samples = 6 * 2 * 2, 6 * 2
    assert counted.get_total_flops() == 2 * macs + 7 * samples + 4 * macs + (7 + 8 + 8) * samples
    with torch.autocast(device, torch.bfloat16):
        y = ours(of)
    assert y.dtype == torch.bfloat16
    got = torch.autograd.grad(y.sum(), of.offset)[0]
    assert got.dtype == torch.float32
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")(of)
    assert torch.equal(compiled, ours(of))
    found = [torch.autograd.grad(y.square().sum(), list(of)) for y in (compiled, ours(of))]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
