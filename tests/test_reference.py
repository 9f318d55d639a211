"""The convolution spelled out: worked numbers by hand, and torch's own convolutions in float64."""

import ast
import doctest
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonconv
from tritonconv import reference

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# input [c_i, *n], weight [c_o, c_i / groups, *k], then stride, padding, dilation, groups
GEOMETRIES = [
    ((3, 9), (4, 3, 3), 1, 0, 1, 1),
    ((4, 11), (6, 2, 4), 2, 3, 2, 2),
    ((1, 5, 5), (1, 1, 5, 5), 1, 0, 1, 1),  # one output pixel
    ((3, 6, 9), (4, 3, 2, 3), 1, 0, 1, 1),
    ((3, 6, 9), (4, 3, 3, 2), (2, 3), (1, 2), 1, 1),
    ((2, 9, 7), (3, 2, 3, 2), 1, 1, (2, 3), 1),
    ((4, 7, 5), (6, 2, 3, 1), (1, 2), (2, 0), (1, 2), 2),
    ((3, 5, 8), (6, 1, 3, 3), 2, 1, 1, 3),  # two output channels for each input channel
    ((2, 7, 8), (2, 2, 2, 1), 3, 0, 1, 1),  # stride larger than the kernel: rows that no tap sees
    ((5, 4, 6), (3, 5, 1, 1), 1, 0, 1, 1),
    ((2, 4, 5, 6), (4, 2, 2, 3, 2), 1, 1, 1, 1),
    ((4, 5, 4, 7), (2, 2, 2, 1, 3), (2, 1, 3), (0, 1, 2), (1, 2, 2), 2),
]


def sample(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A normal tensor that depends on its shape only."""
    generator = torch.Generator().manual_seed(sum(size * 31**i for i, size in enumerate(shape)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_close_to_torch(got: Tensor, conv, x: Tensor, w: Tensor, b: Tensor | None = None, *, terms: int, **kwargs):
    """|got - ref| <= u * |ref| + 4 * u * sqrt(terms) * (conv(|x|, |w|) + |b|), ref in float64, u of got's dtype.

    ``terms`` is the number of products that add up to one output.
    """
    ref = conv(x.double(), w.double(), None if b is None else b.double(), **kwargs)
    size = conv(x.double().abs(), w.double().abs(), None if b is None else b.double().abs(), **kwargs)
    assert got.shape == ref.shape
    assert got.dtype == x.dtype
    u = torch.finfo(got.dtype).eps / 2
    excess = (got.double() - ref).abs() - u * ref.abs()
    needed = (excess / (u * terms**0.5 * size).clamp_min(torch.finfo(torch.float64).tiny)).max().item()
    assert needed <= 4, f"needs c = {needed:.3g} in {got.dtype}, {tuple(x.shape)} {tuple(w.shape)} {kwargs}"


def test_the_examples_in_the_docstrings():
    result = doctest.testmod(reference)
    assert result.attempted >= 10
    assert result.failed == 0


def test_it_imports_torch_and_the_standard_library_only():
    tree = ast.walk(ast.parse(Path(reference.__file__).read_text(encoding="utf-8")))
    nodes = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += ["." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= {"math", "collections", "itertools", "torch"}


# Worked numbers


def two_channels() -> tuple[Tensor, Tensor]:
    x = torch.stack([torch.arange(0, 9).reshape(3, 3), torch.arange(1, 10).reshape(3, 3)])
    return x, torch.tensor([[[0, 1], [2, 3]], [[1, 2], [3, 4]]])


def test_two_input_channels():
    x, k = two_channels()
    assert reference.corr2d_multi_in(x, k).tolist() == [[56, 72], [104, 120]]


def test_three_output_channels():
    x, k = two_channels()
    y = reference.corr2d_multi_in_out(x, torch.stack([k, k + 1, k + 2]))
    assert y.tolist() == [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]


def test_edge_example():
    x, k, y = reference.edge_example(torch.int64)
    assert (x.shape, k.shape) == ((1, 6, 8), (1, 1, 1, 2))
    assert y.tolist() == [[[0, 1, 0, 0, 0, -1, 0]] * 6]


def test_kernel_matrix_of_a_3x3_kernel_on_a_4x4_input():
    matrix = reference.kernel_matrix(torch.arange(1, 10).reshape(3, 3), (4, 4))
    assert matrix.tolist() == [
        [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0],
        [0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0],
        [0, 0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9],
    ]


def test_padding_cuts_the_kernel_matrix_and_stride_skips_its_rows():
    k = torch.tensor([[1, 2, 3]])
    assert reference.kernel_matrix(k, (1, 3), padding=(0, 1)).tolist() == [[2, 3, 0], [1, 2, 3], [0, 1, 2]]
    assert reference.kernel_matrix(k, (1, 3), stride=(1, 2), padding=(0, 1)).tolist() == [[2, 3, 0], [0, 1, 2]]


def test_counted_multiply_adds():
    x, w = sample(2, 5, 7), sample(3, 2, 3, 2)
    y, macs = reference.corr2d_counted(x, w)
    c_o, c_i, k_h, k_w = w.shape
    m_h, m_w = y.shape[1:]
    assert (m_h, m_w) == (3, 6)
    assert macs == c_i * c_o * k_h * k_w * m_h * m_w == 648
    assert_close_to_torch(y, F.conv2d, x, w, terms=12)


# Against torch and numpy


@pytest.mark.parametrize("correlate", [reference.corr1d, reference.corr2d, reference.corr3d])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_loops(correlate, dtype):
    rank = [reference.corr1d, reference.corr2d, reference.corr3d].index(correlate) + 1
    for n, k in [((4, 7, 5), (2, 3, 4)), ((6, 3, 5), (1, 3, 2)), ((5, 5, 5), (5, 5, 5))]:
        x, w = sample(*n[:rank], dtype=dtype), sample(*k[:rank], dtype=dtype)
        got = correlate(x, w)[None, None]
        assert_close_to_torch(got, CONV[rank], x[None, None], w[None, None], terms=w.numel())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_channels_by_loops(dtype):
    x, w = sample(3, 5, 7, dtype=dtype), sample(4, 3, 2, 3, dtype=dtype)
    assert_close_to_torch(reference.corr2d_multi_in_out(x, w), F.conv2d, x, w, terms=18)
    assert_close_to_torch(reference.corr2d_multi_in(x, w[1])[None], F.conv2d, x, w[1:2], terms=18)


def test_1x1_is_a_matrix_product():
    x, w = sample(3, 4, 5), sample(2, 3, 1, 1)
    assert_close_to_torch(reference.corr2d_multi_in_out_1x1(x, w), F.conv2d, x, w, terms=3)


def test_true_convolution_turns_the_kernel():
    x, k = sample(4, 6), sample(2, 3)
    got = reference.conv2d_true(x, k)
    for i, j in np.ndindex(*got.shape):
        want = sum(x[i + 1 - a, j + 2 - b] * k[a, b] for a in range(2) for b in range(3))
        assert got[i, j].item() == pytest.approx(want.item(), abs=1e-12)
    row = reference.conv2d_true(x[:1], k[:1])[0].numpy()
    np.testing.assert_allclose(row, np.convolve(x[0].numpy(), k[0].numpy(), "valid"), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_im2col(geometry, dtype):
    n, k, stride, padding, dilation, groups = geometry
    x, w, b = sample(2, *n, dtype=dtype), sample(*k, dtype=dtype), sample(k[0], dtype=dtype)
    kwargs = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    conv, terms = CONV[len(k) - 2], w[0].numel()
    got = reference.conv_im2col(x, w, b, **kwargs)
    assert_close_to_torch(got, conv, x, w, b, terms=terms, **kwargs)
    assert_close_to_torch(reference.conv_im2col(x, w, **kwargs), conv, x, w, terms=terms, **kwargs)
    assert reference.output_size(n[1:], k[2:], stride, padding, dilation) == list(got.shape[2:])


def test_im2col_of_an_empty_batch():
    assert reference.conv_im2col(sample(0, 2, 5, 6), sample(3, 2, 2, 3), sample(3)).shape == (0, 3, 4, 4)


def test_im2col_gradients():
    args = [sample(2, 4, 5, 6), sample(6, 2, 3, 2), sample(6)]
    kwargs = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    grads = []
    for conv in (reference.conv_im2col, F.conv2d):
        leaves = [t.clone().requires_grad_() for t in args]
        y = conv(*leaves, **kwargs)
        grads.append(torch.autograd.grad((y * sample(*y.shape)).sum(), leaves))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "k", "kwargs", "names"),
    [
        ((2, 4, 4), (3, 2, 2, 2), dict(groups=2), "groups=2"),
        ((2, 4, 4), (3, 1, 2, 2), dict(groups=2), "groups=2"),  # 3 output channels in 2 groups
        ((2, 4, 4), (3, 2, 2, 2), dict(stride=(1, 1, 1)), r"2 ints.*\(1, 1, 1\)"),
        ((2, 4, 4), (3, 2, 2, 5), {}, r"kernel \(2, 5\)"),
        ((2, 4, 4), (3, 2, 2, 3), dict(dilation=2), "dilation 2"),
    ],
)
def test_im2col_rejects_what_does_not_fit(n, k, kwargs, names):
    with pytest.raises(ValueError, match=names):
        reference.conv_im2col(sample(1, *n), sample(*k), **kwargs)
    with pytest.raises(RuntimeError):
        F.conv2d(sample(1, *n), sample(*k), **kwargs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_depthwise_separable(dtype):
    x, depthwise, pointwise = (sample(*s, dtype=dtype) for s in [(2, 3, 7, 6), (3, 1, 3, 2), (5, 3, 1, 1)])
    kwargs = dict(stride=(2, 1), padding=1, dilation=(1, 2))
    got = reference.depthwise_separable(x, depthwise, pointwise, **kwargs)
    # The two steps are one convolution whose kernel is the outer product of theirs.
    full = pointwise * depthwise.transpose(0, 1)
    assert_close_to_torch(got, F.conv2d, x, full, terms=18, **kwargs)


PLANES = [  # input, kernel, stride, padding
    ((4, 4), (3, 3), 1, 0),
    ((3, 5), (2, 3), 1, 0),
    ((5, 3), (2, 1), 1, 0),
    ((6, 4), (3, 2), (2, 1), (1, 0)),
    ((4, 7), (3, 4), (1, 3), (2, 1)),
    ((7, 6), (2, 2), 3, 0),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "k", "stride", "padding"), PLANES)
def test_correlation_by_the_kernel_matrix(n, k, stride, padding, dtype):
    x, w = sample(*n, dtype=dtype), sample(*k, dtype=dtype)
    got = reference.corr2d_matrix(x, w, stride, padding)[None, None]
    kwargs = dict(stride=stride, padding=padding)
    assert_close_to_torch(got, F.conv2d, x[None, None], w[None, None], terms=w.numel(), **kwargs)
    matrix = reference.kernel_matrix(w, n, stride, padding)
    assert matrix.shape == (got.numel(), x.numel())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("m", "k", "stride", "padding", "output_padding"),
    [
        ((2, 2), (3, 3), 1, 0, 0),
        ((2, 4), (3, 2), 1, 0, 0),
        ((3, 2), (1, 3), 1, 0, 0),
        ((3, 2), (2, 4), (2, 3), 0, 0),
        ((4, 3), (3, 4), (2, 1), (1, 2), 0),
        ((3, 4), (2, 3), (3, 2), (0, 1), (2, 1)),
        ((2, 3), (1, 2), 3, 0, (0, 2)),  # kernel smaller than the stride: outputs that stay 0
    ],
)
def test_transposed_convolution_by_the_transposed_matrix(m, k, stride, padding, output_padding, dtype):
    y, w = sample(*m, dtype=dtype), sample(*k, dtype=dtype)
    got = reference.corr2d_transposed_matrix(y, w, stride, padding, output_padding)[None, None]
    kwargs = dict(stride=stride, padding=padding, output_padding=output_padding)
    assert_close_to_torch(got, F.conv_transpose2d, y[None, None], w[None, None], terms=w.numel(), **kwargs)


# Learning


def test_layer():
    layer = reference.Conv2D(3, 4, (2, 3)).double()
    x = sample(3, 5, 6)
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "weight"]
    assert all(p.abs().max() <= 18**-0.5 and p.unique().numel() == p.numel() for p in layer.parameters())
    assert_close_to_torch(layer(x), F.conv2d, x, layer.weight, layer.bias, terms=18)
    assert reference.Conv2D(3, 4, (2, 3), bias=False).bias is None


def assert_learns_the_edge_kernel(conv, dtype: torch.dtype, device: str = "cpu") -> None:
    """Ten steps from a seeded start end near [1, -1], and exactly where the algebra says.

    With A the regions of x as rows, the loss is |A (w - k)|^2 and a step of rate r multiplies w - k by I - 2 r A^T A,
    whose eigenvalues are here -0.8 (along [1, 1]) and 0.64 (along [1, -1]).
    A start within 1 / sqrt(2) of 0 therefore ends within 0.8^10 / sqrt(2) < 0.1 of [1, -1].
    """
    x, k, y = (t.to(device) for t in reference.edge_example(dtype))
    torch.manual_seed(3)
    start = reference.Conv2D(1, 1, (1, 2), bias=False).weight.detach().double().flatten()
    torch.manual_seed(3)
    layer, losses = reference.learn_kernel(conv, x, y, (1, 2))

    learned, x, k = (t.cpu() for t in (layer.weight.detach(), x, k))
    assert (learned - k).abs().max() < 0.1
    assert len(losses) == 10
    assert all(after < before for before, after in pairwise(losses))

    regions = torch.stack([x[0, :, :-1].flatten(), x[0, :, 1:].flatten()], dim=1).double()
    step = torch.eye(2, dtype=torch.float64) - 2 * 3e-2 * regions.T @ regions
    torch.testing.assert_close(torch.linalg.eigvalsh(step), torch.tensor([-0.8, 0.64], dtype=torch.float64))
    want = k.double().flatten() + torch.linalg.matrix_power(step, 10) @ (start - k.double().flatten())
    torch.testing.assert_close(learned.flatten(), want.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_learning_a_kernel_with_the_reference(dtype):
    assert_learns_the_edge_kernel(reference.corr2d_multi_in_out, dtype)
    assert_learns_the_edge_kernel(lambda x, w: reference.conv_im2col(x[None], w)[0], dtype)


@pytest.fixture
def ieee():
    """No tf32 on a GPU: the algebra is compared to float32's last digits. (pytest's monkeypatch cannot restore it.)"""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    yield
    conv.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_learning_a_kernel_with_tritonconv(dtype, device, launches, ieee):
    assert_learns_the_edge_kernel(tritonconv.conv2d, dtype, device)
    # With neither a GPU nor the interpreter, torch's own convolution computes CPU tensors.
    if device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        ran = launches()
        assert (ran["fprop"], ran["wgrad"], ran["dgrad"]) == (10, 10, 0)  # x asks for no gradient
