"""The deformable convolution, forward: against its formula in float64, and at the places where a rule decides."""

import pytest
import torch
from deformed import Tensors, assert_close, by_formula, ours, tensors, torchvision_ops

import tritonconv
from costmodel.deform import Deformation
from costmodel.problem import ConvProblem
from costmodel.tiling import Plan
from tritonconv import host
from tritonconv.deform.launch import prepare

INF, NAN = float("inf"), float("nan")
CALLS = {
    "modulated": {"kernel": (2, 2), "padding": 1},
    "version 1": {"kernel": (2, 2), "masked": False, "biased": False, "reach": 0.5},
    "offset groups": {"kernel": (1, 2), "offset_groups": 3},
    "weight groups": {"kernel": (2, 1), "groups": 2},
    "groups that share no boundary": {"kernel": (1, 1), "groups": 2, "offset_groups": 3},
    "kernel < stride": {"kernel": (2, 1), "stride": (3, 2)},
    "dilation": {"kernel": (2, 2), "dilation": (2, 3), "padding": (1, 2)},
    "padding beyond the kernel": {"kernel": (1, 2), "padding": 3, "shape": (1, 2, 2, 3)},
    "empty batch": {"shape": (0, 4, 5, 5)},
}


@pytest.mark.parametrize("name", CALLS)
def test_every_shape(name, device, launches):
    window = {k: v for k, v in CALLS[name].items() if k in ("stride", "padding", "dilation")}
    of = tensors(**CALLS[name], device=device)
    assert_close(of, ours(of, **window), **window)
    assert launches()["deform"] == (name != "empty batch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype(dtype, device):
    of = tensors((1, 4, 4, 5), kernel=(1, 2), dtype=dtype, device=device)
    assert_close(of, ours(of))


def test_offsets_finer_than_the_images(device):
    """Places are found in float32, and offsets of float32 go with half an image: 100.1 is 100 in bfloat16."""
    of = tensors((1, 2, 4, 100), 2, (1, 1), dtype=torch.bfloat16, device=device)
    offset = torch.full_like(of.offset, -40.1, dtype=torch.float32)
    fine = of._replace(offset=offset, mask=of.mask.float())
    assert_close(fine, ours(fine), torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        under = ours(Tensors(*(t.float() for t in fine)))
    assert torch.equal(under, ours(fine))


def one(offset, values=((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), at=(0, 0), device="cpu"):
    """What one tap samples of an image [2, 3], moved from pixel `at` by `offset`; by default from the first one."""
    x = torch.tensor(values, dtype=torch.float32, device=device).view(1, 1, 2, 3)
    moved = torch.zeros(1, 2, 2, 3, device=device)
    moved[0, :, at[0], at[1]] = torch.tensor(offset)
    return float(tritonconv.deform_conv2d(x, moved, torch.ones(1, 1, 1, 1, device=device))[0, 0, at[0], at[1]])


PLACES = {
    "whole": ((1.0, 2.0), 6.0),
    "between four": ((0.5, 0.25), 2.75),
    "half outside": ((-0.5, 0.0), 0.5),
    "just inside": ((-0.875, 0.0), 0.125),
    "at -1": ((-1.0, 0.0), 0.0),
    "the last pixel": ((1.0, 0.0), 4.0),
    "behind the last": ((1.5, 2.0), 3.0),
    "both corners": ((1.5, 2.5), 1.5),
    "at the size": ((2.0, 0.0), 0.0),
    "far": ((3e9, -3e38), 0.0),
    "infinite": ((INF, 0.0), 0.0),
    "minus infinite": ((0.0, -INF), 0.0),
    "not a number": ((0.0, NAN), NAN),
    "not a number, outside": ((-7.0, NAN), 0.0),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_by_hand(name, device):
    offset, want = PLACES[name]
    assert one(offset, device=device) == pytest.approx(want, abs=1e-6, nan_ok=True)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_place_outside_touches_no_pixel(device):
    """Weights of 0 times infinity would be NaN: a place at -1 or at the size is 0, and one on a pixel has no other's."""
    for offset, want in (((-1.0, 0.0), 0.0), ((0.0, 3.0), 0.0), ((0.0, -1.0), 0.0)):
        assert one(offset, ((INF, INF, INF),) * 2, device=device) == want


@pytest.mark.parametrize("layout", ["last", "sliced", "expanded"])
def test_tensors_may_lie_anyhow(layout, device, launched):
    of = tensors((2, 4, 3, 4), 3, (1, 2), dtype=torch.float32, device=device)

    def laid(t):
        if layout == "last" and t.dim() == 4:
            return t.to(memory_format=torch.channels_last)
        if layout == "expanded":
            return t[:1].expand(t.shape)
        wide = t.new_full([2 * n + 1 for n in t.shape], NAN)
        view = wide[tuple(slice(1, None, 2) for _ in t.shape)]
        return view.copy_(t)

    given = Tensors(*map(laid, of))
    y = ours(given)
    assert_close(given, y)
    assert y.is_contiguous(memory_format=torch.channels_last if layout == "last" else torch.contiguous_format)


@pytest.mark.parametrize("plan", ["fprop:deform:16x16x16:w4:s1:group2", "fprop:deform:32x16x16:w4:s2:pack-a:pack-b"])
def test_plans_may_be_forced(plan, device):
    """Tiles smaller than the problem: several along every axis."""
    of = tensors((2, 20, 3, 4), 18, (1, 1), dtype=torch.float32, device=device)
    assert_close(of, ours(of, Plan.parse(plan)))


def test_a_batch_of_one_image_at_a_time(device):
    of = tensors((2, 2, 3, 3), 2, (1, 1), dtype=torch.float32, device=device)
    with tritonconv.batch_invariant():
        y = ours(of)
        for i in range(2):
            alone = of._replace(**{name: getattr(of, name)[i : i + 1] for name in ("input", "offset", "mask")})
            assert torch.equal(y[i : i + 1], ours(alone))


def test_as_torchvision_computes_it():
    """In float64 on the CPU, by torch's operators and by torchvision's, where those load."""
    theirs = torchvision_ops().deform_conv2d
    was, device = host.runs_kernels(), host.model(host.index_of(torch.empty(0)))
    host.use(None)
    try:
        for name, call in CALLS.items():
            window = {k: v for k, v in call.items() if k in ("stride", "padding", "dilation")}
            of = tensors(**call)
            want = theirs(*of[:4], mask=of.mask, **window)
            torch.testing.assert_close(ours(of, **window), want, rtol=1e-12, atol=1e-12, msg=name)
    finally:
        host.use(device if was else None)


def test_torchs_operators_compute_the_same():
    """CPU tensors where nothing runs kernels."""
    was, device = host.runs_kernels(), host.model(host.index_of(torch.empty(0)))
    host.use(None)
    try:
        for call in CALLS.values():
            window = {k: v for k, v in call.items() if k in ("stride", "padding", "dilation")}
            for dtype in (torch.float64, torch.bfloat16):
                of = tensors(**call, dtype=dtype)
                assert_close(of, ours(of, **window), **window)
        for offset, want in PLACES.values():
            assert one(offset) == pytest.approx(want, abs=1e-6, nan_ok=True)
    finally:
        host.use(device if was else None)


def test_the_formula_by_hand():
    """The reference itself: a place between four pixels, and one half outside."""
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).view(1, 1, 2, 2)
    offset = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert by_formula(Tensors(x, offset, torch.ones(1, 1, 1, 1), None, None)).flatten().tolist() == [2.75, 1.75, 2.0, 1.25]


X, W, OFFSET = torch.zeros(1, 4, 5, 6), torch.zeros(2, 4, 3, 3), torch.zeros(1, 18, 3, 4)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"input": "x"}, TypeError, "'input' must be a Tensor, got str"),
        ({"mask": 1}, TypeError, "'mask' must be a Tensor, got int"),
        ({"input": X[0]}, ValueError, r"input of 4 axes \[N, C, H, W\], got input \[4, 5, 6\]"),
        ({"weight": W[0]}, RuntimeError, r"weight of 4 axes, got weight \[4, 3, 3\]"),
        ({"offset": OFFSET[0]}, RuntimeError, r"offset of 4 axes, got offset \[18, 3, 4\]"),
        ({"weight": W[:, :3]}, RuntimeError, r"share out C channels and K filters, got input .*weight \[2, 3, 3, 3\]"),
        ({"weight": W[:1, :2]}, RuntimeError, r"share out C channels and K filters, .*weight \[1, 2, 3, 3\]"),
        ({"weight": W.double()}, RuntimeError, "same dtype, got input torch.float32 and weight torch.float64"),
        ({"weight": W[:0]}, RuntimeError, r"only the batch may be empty, got weight of shape \[0, 4, 3, 3\]"),
        ({"input": X[:, :, :0]}, RuntimeError, r"only the batch may be empty, got input of shape \[1, 4, 0, 6\]"),
        ({"offset": OFFSET.double()}, RuntimeError, "input's dtype or torch.float32, got input .*float32 and offset .*float64"),
        (
            {"offset": OFFSET.long()},
            RuntimeError,
            "offset strided and of a float dtype, got torch.strided, torch.int64",
        ),
        ({"offset": OFFSET.to("meta")}, RuntimeError, "same device, got input cpu and offset meta"),
        ({"offset": OFFSET[:, :17]}, RuntimeError, r"offset with 2 \* D \* 9 channels.* got offset \[1, 17, 3, 4\]"),
        ({"offset": torch.zeros(1, 54, 3, 4)}, RuntimeError, r"share out 4 channels of input, got offset \[1, 54, 3, 4\]"),
        ({"offset": OFFSET[..., :3]}, RuntimeError, r"offset of shape \[1, 18, 3, 4\] .*, got offset \[1, 18, 3, 3\]"),
        ({"mask": OFFSET}, RuntimeError, r"mask of shape \[1, 9, 3, 4\] .* 1 offset groups, got mask \[1, 18, 3, 4\]"),
        ({"bias": torch.zeros(4)}, RuntimeError, r"bias of shape \[2\].*got bias \[4\]"),
        ({"stride": 0}, RuntimeError, "non-positive stride is not supported, got stride=0"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride to be an int or 2 ints, got 3: stride=\(1, 2, 3\)"),
        ({"padding": "same"}, TypeError, "'padding' must be an int or a tuple of 2 ints, got 'same'"),
        ({"padding": -1}, RuntimeError, "negative padding"),
        ({"dilation": (1, 3)}, RuntimeError, r"greater than the padded input.*dilation=\(1, 3\)"),
        (
            {"dilation": (1, 2**28), "padding": (0, 2**28), "offset": torch.zeros(1, 18, 3, 6)},
            RuntimeError,
            r"reaches \d+ pixels, the kernel counts",
        ),
        ({"plan": Plan.parse("fprop:gather:64x64x64:w4:s3")}, ValueError, "takes plans fprop:deform, got fprop:gather"),
        ({"plan": Plan.parse("fprop:deform:64x8x64:w4:s3")}, ValueError, "block_n must be a power of two of at least 16"),
        ({"plan": Plan.parse("fprop:deform:64x64x64:split2")}, ValueError, "only wgrad splits its sums, got split 2"),
        ({"plan": Plan.parse("fprop:deform:64x64x64:pack-c")}, ValueError, "pack names operands a and b, got c"),
    ],
)
@pytest.mark.interpreter
def test_errors_name_the_argument(change, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.deform_conv2d(**{"input": X, "offset": OFFSET, "weight": W} | change)
    assert not launches()


@pytest.mark.parametrize("name", ["input", "offset", "mask", "weight", "output"])
def test_what_32_bits_do_not_reach_is_refused(name):
    """A stride of 2^29 elements between channels: no memory holds it here, and the launch is refused before any is touched."""
    shapes = {"input": X.shape, "offset": OFFSET.shape, "weight": W.shape, "output": (1, 2, 3, 4), "mask": (1, 9, 3, 4)}
    keys = {k: (tuple(shape), (0, 2**29 if k == name else 1, 0, 0)) for k, shape in shapes.items()}
    of = Deformation(ConvProblem.conv(X.shape, W.shape, (1, 1), (0, 0), (1, 1)), 1, True)
    given = (keys["input"], keys["offset"], keys["weight"], keys["output"], keys["mask"], 1, "")
    with pytest.raises(RuntimeError, match=rf"{name} of shape .* and strides .* reaches \d+ elements .* count 2147483647"):
        prepare(of, torch.float32, "ieee", -1, *given)
