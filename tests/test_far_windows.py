"""Windows that reach beyond 2^31 pixels, where a tap's number times the dilation takes 64 bits: torch is the oracle."""

import pytest
import torch
from torch.nn import functional as F

import tritonconv
from costmodel.families import depthwise, tma
from costmodel.legality import refusal
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import FARTHEST, Plan, channels_last

FAR = 2**31
#: function, input, weight, arguments: few taps meet the input, and those that do are far from the first.
CASES = {
    "few taps": ("conv1d", (1, 2, 5), (3, 2, 5), {"padding": FAR, "dilation": FAR // 2}),
    "more taps than bits": ("conv1d", (1, 2, 5), (3, 2, 33), {"padding": FAR, "dilation": FAR // 16}),
    "a dilation of 64 bits": ("conv1d", (1, 2, 5), (3, 2, 3), {"padding": 3 * FAR, "dilation": 3 * FAR}),
    "the last axis": ("conv2d", (1, 2, 5, 4), (3, 2, 1, 3), {"padding": (0, FAR), "dilation": (1, FAR)}),
    "the first axis": ("conv2d", (1, 8, 5, 4), (8, 8, 3, 1), {"padding": (FAR, 0), "dilation": (FAR, 1), "stride": (2, 1)}),
    "depthwise": ("conv1d", (2, 4, 5), (4, 1, 5), {"padding": FAR, "dilation": FAR // 2, "groups": 4}),
    "depthwise, 64 bits": ("conv2d", (1, 8, 5, 4), (8, 1, 1, 3), {"padding": (0, FAR), "dilation": (1, FAR), "groups": 8}),
    "large depthwise filter": ("conv1d", (1, 4, 5), (4, 1, 33), {"padding": FAR, "dilation": FAR // 16, "groups": 4}),
    "transposed": ("conv_transpose1d", (1, 2, 5), (2, 3, 5), {"padding": FAR, "dilation": FAR // 2}),
    "a stride of 64 bits": ("conv1d", (1, 2, 5), (3, 2, 3), {"padding": 1, "stride": 2 * FAR}),
    "a stride beyond the image": ("conv2d", (2, 2, 5, 6), (3, 2, 2, 3), {"padding": (1, 4), "stride": (FAR, 2), "dilation": 2}),
    "a stride beyond the image, depthwise": ("conv1d", (2, 8, 9), (8, 1, 3), {"padding": 2, "stride": 2**20, "groups": 8}),
    "a transposed stride": ("conv_transpose1d", (1, 2, 1), (2, 3, 5), {"padding": 1, "stride": FAR // 2}),
    "expanded": ("conv1d", (1, 2, 1), (3, 2, 3), {"padding": FAR, "dilation": FAR}),
}


BOTH_LAYOUTS = ("few taps", "more taps than bits", "a dilation of 64 bits")


@pytest.mark.parametrize(
    ("case", "layout"), [(case, "contiguous") for case in CASES] + [(case, "channels-last") for case in BOTH_LAYOUTS]
)
def test_forward_and_gradients(case, layout, launched):
    function, shape, kernel, arguments = CASES[case]
    x, w = torch.randn(shape, dtype=torch.float64), torch.randn(kernel, dtype=torch.float64)
    if case == "expanded":
        x = x.expand(1, 2, 6)
    elif layout == "channels-last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    results = []
    for library, dtype in ((tritonconv, torch.float32), (F, torch.float64)):
        inputs = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = getattr(library, function)(*inputs, **arguments)
        dy = torch.ones_like(y) + torch.arange(y.numel()).view(y.shape) / y.numel()
        results.append((y, *torch.autograd.grad(y, inputs, dy)))
    for got, exact in zip(*results, strict=True):
        assert torch.allclose(got.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["depthwise", "tma", "band"])
def test_families_that_count_in_32_bits_say_so(family):
    limit = tma.FARTHEST if family == "tma" else FARTHEST
    groups, weight = (64, (64, 1, 15, 15)) if family != "tma" else (1, (64, 64, 15, 15))
    for padding, refused in ((7, False), (limit + 1, True)):
        problem = ConvProblem.conv((1, 64, 32, 32), weight, (1, 1), (padding, 7), (1, 1), groups)
        call = channels_last(problem, Pass.FPROP, "float16", "ieee")
        said = refusal(call, Plan(Pass.FPROP, family, 128, 64, 64, 4, 3))
        assert (f"reaches {limit + 1} pixels" in said) == refused
    assert not depthwise.is_narrow(ConvProblem.conv((1, 4, 8), (4, 1, 3), (1,), (FARTHEST + 1,), (1,), 4))


def test_causal_conv3d_refuses_them_by_name():
    x, w = torch.randn(1, 2, 2, 4, 4), torch.randn(2, 2, 1, 3, 3)
    with pytest.raises(RuntimeError, match=r"causal_conv3d\(\): a window, stride or padding of more than .* pixels"):
        tritonconv.causal_conv3d(x, w, padding=FAR, dilation=(1, FAR, FAR))
