"""The convolution spelled out: plain torch, any dtype, slow, meant to be read.

From the loop over output pixels to channels, regions as a matrix, the kernel as a matrix, transposed convolution, and a
layer that learns its kernel. Each function computes in the dtype it is given and is differentiable.

Letters: x input, k or weight the kernel, y output; c_i and c_o channels; n, k and m the sizes of input, kernel and
output along one dimension, so that m = n - k + 1 without stride, padding and dilation.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn

# The sizes below are derived here a second time, on purpose: a reference that took its geometry from
# costmodel/problem.py would repeat its mistakes instead of showing them.

Ints = int | Sequence[int]
Conv = Callable[[Tensor, Tensor], Tensor]


def corr1d(x: Tensor, k: Tensor) -> Tensor:
    """Cross-correlation along a line: y[i] = sum_a x[i + a] * k[a], shapes [n], [k] -> [n - k + 1].

    >>> corr1d(torch.tensor([0, 1, 2, 3, 4, 5, 6]), torch.tensor([1, 2]))
    tensor([ 2,  5,  8, 11, 14, 17])
    """
    (width,) = k.shape
    y = torch.zeros(len(x) - width + 1, dtype=torch.result_type(x, k), device=x.device)
    for i in range(len(y)):
        y[i] = (x[i : i + width] * k).sum()
    return y


def corr2d(x: Tensor, k: Tensor) -> Tensor:
    """Cross-correlation of an image: y[i, j] = sum_{a,b} x[i + a, j + b] * k[a, b].

    Shapes [n_h, n_w], [k_h, k_w] -> [n_h - k_h + 1, n_w - k_w + 1]. This is what deep learning calls convolution.

    >>> corr2d(torch.arange(9).reshape(3, 3), torch.arange(4).reshape(2, 2))
    tensor([[19, 25],
            [37, 43]])
    """
    h, w = k.shape
    y = torch.zeros(x.shape[0] - h + 1, x.shape[1] - w + 1, dtype=torch.result_type(x, k), device=x.device)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = (x[i : i + h, j : j + w] * k).sum()
    return y


def corr3d(x: Tensor, k: Tensor) -> Tensor:
    """Cross-correlation of a volume: y[l, i, j] = sum_{c,a,b} x[l + c, i + a, j + b] * k[c, a, b].

    Shapes [n_d, n_h, n_w], [k_d, k_h, k_w] -> [n_d - k_d + 1, n_h - k_h + 1, n_w - k_w + 1].

    >>> corr3d(torch.arange(12).reshape(2, 2, 3), torch.ones(2, 2, 2, dtype=torch.int64))
    tensor([[[40, 48]]])
    """
    d, h, w = k.shape
    sizes = [n - size + 1 for n, size in zip(x.shape, k.shape, strict=True)]
    y = torch.zeros(sizes, dtype=torch.result_type(x, k), device=x.device)
    for p, i, j in product(*map(range, y.shape)):
        y[p, i, j] = (x[p : p + d, i : i + h, j : j + w] * k).sum()
    return y


def conv2d_true(x: Tensor, k: Tensor) -> Tensor:
    """The convolution of mathematics, the correlation with the kernel turned by 180 degrees.

    y[i, j] = sum_{a,b} x[i + k_h - 1 - a, j + k_w - 1 - b] * k[a, b], shapes as in :func:`corr2d`. A learned kernel
    does not care which of the two is computed: it comes out turned.

    >>> conv2d_true(torch.tensor([[1, 0, 0, 2]]), torch.tensor([[5, 7]]))
    tensor([[ 7,  0, 10]])
    """
    return corr2d(x, k.flip(0, 1))


def corr2d_multi_in(x: Tensor, k: Tensor) -> Tensor:
    """Several input channels: each is correlated with its own kernel, and the results are added.

    y = sum_c corr2d(x[c], k[c]), shapes [c_i, n_h, n_w], [c_i, k_h, k_w] -> [m_h, m_w].

    >>> x = torch.stack([torch.arange(0, 9).reshape(3, 3), torch.arange(1, 10).reshape(3, 3)])
    >>> k = torch.tensor([[[0, 1], [2, 3]], [[1, 2], [3, 4]]])
    >>> corr2d_multi_in(x, k)
    tensor([[ 56,  72],
            [104, 120]])
    """
    return torch.stack([corr2d(xc, kc) for xc, kc in zip(x, k, strict=True)]).sum(0)


def corr2d_multi_in_out(x: Tensor, k: Tensor) -> Tensor:
    """Several output channels: y[o] = corr2d_multi_in(x, k[o]), each from all input channels.

    Shapes [c_i, n_h, n_w], [c_o, c_i, k_h, k_w] -> [c_o, m_h, m_w].
    """
    return torch.stack([corr2d_multi_in(x, ko) for ko in k])


def corr2d_multi_in_out_1x1(x: Tensor, k: Tensor) -> Tensor:
    """A 1x1 kernel sees one pixel at a time, so it is one matrix product: y[o, p] = sum_c k[o, c] * x[c, p].

    Shapes [c_i, n_h, n_w], [c_o, c_i, 1, 1] -> [c_o, n_h, n_w].
    """
    c_o, c_i = k.shape[:2]
    return (k.reshape(c_o, c_i) @ x.reshape(c_i, -1)).reshape(c_o, *x.shape[1:])


def corr2d_counted(x: Tensor, k: Tensor) -> tuple[Tensor, int]:
    """:func:`corr2d_multi_in_out` one multiply-add at a time, with their number.

    Six loops, one for each size, so the count is c_i * c_o * k_h * k_w * m_h * m_w (and the FLOPs are twice that).
    """
    c_o, c_i, k_h, k_w = k.shape
    m_h, m_w = x.shape[1] - k_h + 1, x.shape[2] - k_w + 1
    y = torch.zeros(c_o, m_h, m_w, dtype=torch.result_type(x, k), device=x.device)
    count = 0
    for o, i, j, c, a, b in product(*map(range, (c_o, m_h, m_w, c_i, k_h, k_w))):
        y[o, i, j] += x[c, i + a, j + b] * k[o, c, a, b]
        count += 1
    return y, count


def _per_dim(value: Ints, rank: int) -> tuple[int, ...]:
    """One int for all spatial dimensions, or one for each of them."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"expected an int or {rank} ints, one per spatial dimension, got {value}")
    return values


def output_size(n: Sequence[int], k: Sequence[int], stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1) -> list[int]:
    """How many kernels fit, per dimension: m = floor((n + 2 * padding - dilation * (k - 1) - 1) / stride) + 1.

    Raises ValueError where none does.

    >>> output_size((224, 224), (7, 7), stride=2, padding=3)
    [112, 112]
    """
    steps = zip(n, k, *(_per_dim(value, len(k)) for value in (stride, padding, dilation)), strict=True)
    m = [(size + 2 * p - d * (taps - 1) - 1) // s + 1 for size, taps, s, p, d in steps]
    if min(m) < 1:
        raise ValueError(f"kernel {tuple(k)}, dilation {dilation}, is larger than input {tuple(n)}, padding {padding}")
    return m


def flatten_regions(x: Tensor, kernel_size: Sequence[int], stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1) -> Tensor:
    """im2col: the region of the input under the kernel, flattened, one row for each output position.

    Shapes [batch, c, *n] -> [batch, prod(m), c * prod(k)] in 1 to 3 spatial dimensions, m by :func:`output_size`. The
    row of output position i holds x[:, c, i * stride + a * dilation - padding] for each channel c and tap a of the
    kernel, 0 where that lies outside the input.

    >>> flatten_regions(torch.arange(9).reshape(1, 1, 3, 3), (2, 2))
    tensor([[[0, 1, 3, 4],
             [1, 2, 4, 5],
             [3, 4, 6, 7],
             [4, 5, 7, 8]]])
    """
    m = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    strides, pads, dilations = (_per_dim(value, len(m)) for value in (stride, padding, dilation))
    x = nn.functional.pad(x, [p for p in reversed(pads) for _side in range(2)])  # pad() wants the last dimension first
    rows = []
    for position in product(*map(range, m)):
        steps = zip(position, kernel_size, strides, dilations, strict=True)
        region = [slice(i * s, i * s + d * (k - 1) + 1, d) for i, k, s, d in steps]
        rows.append(x[:, :, *region].flatten(1))  # [batch, c * prod(k)]
    return torch.stack(rows, dim=1)


def fold_regions(
    rows: Tensor, n: Sequence[int], kernel_size: Sequence[int], stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1
) -> Tensor:
    """col2im, the transpose of :func:`flatten_regions`: every region is added to the image at its place, padding is dropped.

    Shapes [batch, prod(m), c * prod(k)] -> [batch, c, *n].

    >>> fold_regions(flatten_regions(torch.ones(1, 1, 3, 3), (2, 2)), (3, 3), (2, 2))[0, 0]
    tensor([[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]])
    """
    m = output_size(n, kernel_size, stride, padding, dilation)
    strides, pads, dilations = (_per_dim(value, len(m)) for value in (stride, padding, dilation))
    padded = [size + 2 * p for size, p in zip(n, pads, strict=True)]
    x = rows.new_zeros(len(rows), rows.shape[2] // math.prod(kernel_size), *padded)
    for row, position in enumerate(product(*map(range, m))):
        steps = zip(position, kernel_size, strides, dilations, strict=True)
        region = [slice(i * s, i * s + d * (k - 1) + 1, d) for i, k, s, d in steps]
        x[:, :, *region] += rows[:, row].view(*x.shape[:2], *kernel_size)
    return x[:, :, *[slice(p, p + size) for size, p in zip(n, pads, strict=True)]]


def conv_im2col(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution as a matrix product: for each group, y = flatten_regions(x) @ weight^T + bias.

    Shapes [batch, c_i, *n], [c_o, c_i / groups, *k], [c_o] -> [batch, c_o, *m] in 1 to 3 spatial dimensions, with m by
    :func:`output_size`. Group g takes the g-th part of the input channels to the g-th part of the output channels.
    Raises ValueError where the channels do not divide that way.
    """
    c_i, c_o, k = x.shape[1], weight.shape[0], weight.shape[2:]
    if c_i != groups * weight.shape[1] or c_o % groups:
        raise ValueError(f"groups={groups} does not fit input {tuple(x.shape)} and weight {tuple(weight.shape)}")
    parts = []
    for xg, wg in zip(x.chunk(groups, dim=1), weight.chunk(groups, dim=0), strict=True):
        regions = flatten_regions(xg, k, stride, padding, dilation)  # [batch, prod(m), c_i/g * prod(k)]
        parts.append(regions @ wg.flatten(1).T)  # [batch, prod(m), c_o/g]
    y = torch.cat(parts, dim=2)
    if bias is not None:
        y = y + bias
    return y.transpose(1, 2).reshape(len(x), c_o, *output_size(x.shape[2:], k, stride, padding, dilation))


def depthwise_separable(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1
) -> Tensor:
    """A convolution in two steps: each channel alone over space, then a 1x1 convolution over the channels.

    z[c] = corr(x[c], depthwise[c]); y[o] = sum_c pointwise[o, c] * z[c]. Shapes [batch, c, *n], [c, 1, *k],
    [c_o, c, 1, ...] -> [batch, c_o, *m]. It needs prod(k) + c_o multiply-adds for an input channel and output position,
    the full convolution prod(k) * c_o.
    """
    z = conv_im2col(x, depthwise, stride=stride, padding=padding, dilation=dilation, groups=x.shape[1])
    return conv_im2col(z, pointwise)


def kernel_matrix(k: Tensor, input_size: Sequence[int], stride: Ints = 1, padding: Ints = 0) -> Tensor:
    """The matrix M with corr2d(x, k).flatten() = M @ x.flatten(): the kernel padded to the input, flattened.

    Row (i, j) is a picture of the input's size that is 0 but for the kernel at (i * stride, j * stride), with what lies
    on the padding cut off. Shapes [k_h, k_w] -> [m_h * m_w, n_h * n_w]; a 4x4 input and a 3x3 kernel give 4x16.

    >>> kernel_matrix(torch.tensor([[1, 2], [3, 4]]), (2, 3))
    tensor([[1, 2, 0, 3, 4, 0],
            [0, 1, 2, 0, 3, 4]])
    """
    (n_h, n_w), (k_h, k_w) = input_size, k.shape
    (m_h, m_w) = output_size(input_size, k.shape, stride, padding)
    (s_h, s_w), (p_h, p_w) = _per_dim(stride, 2), _per_dim(padding, 2)
    rows = []
    for i in range(m_h):
        for j in range(m_w):
            picture = k.new_zeros(n_h + 2 * p_h, n_w + 2 * p_w)
            picture[i * s_h : i * s_h + k_h, j * s_w : j * s_w + k_w] = k
            rows.append(picture[p_h : p_h + n_h, p_w : p_w + n_w].flatten())
    return torch.stack(rows)


def corr2d_matrix(x: Tensor, k: Tensor, stride: Ints = 1, padding: Ints = 0) -> Tensor:
    """:func:`corr2d` as y.flatten() = M @ x.flatten() with M the :func:`kernel_matrix`, [n_h, n_w] to [m_h, m_w]."""
    y = kernel_matrix(k, x.shape, stride, padding) @ x.flatten()
    return y.reshape(output_size(x.shape, k.shape, stride, padding))


def corr2d_transposed_matrix(y: Tensor, k: Tensor, stride: Ints = 1, padding: Ints = 0, output_padding: Ints = 0) -> Tensor:
    """Transposed convolution, x.flatten() = M^T @ y.flatten(): the way back through the shapes of the convolution.

    M is the :func:`kernel_matrix` for an input of n = (m - 1) * stride - 2 * padding + k + output_padding, the sizes
    that the result has: [m_h, m_w], [k_h, k_w] -> [n_h, n_w]. It is no inverse: it is the gradient of the convolution
    with respect to its input. ``output_padding`` < stride picks one of the n that all lead to the same m.

    >>> k = torch.arange(4).reshape(2, 2)
    >>> corr2d_transposed_matrix(torch.arange(4).reshape(2, 2), k)
    tensor([[ 0,  0,  1],
            [ 0,  4,  6],
            [ 4, 12,  9]])
    """
    steps = zip(y.shape, k.shape, *(_per_dim(v, 2) for v in (stride, padding, output_padding)), strict=True)
    sizes = [(m - 1) * s - 2 * p + kernel + extra for m, kernel, s, p, extra in steps]
    return (kernel_matrix(k, sizes, stride, padding).T @ y.flatten()).reshape(sizes)


class Conv2D(nn.Module):
    """A convolution layer, y = conv(x, weight) + bias, with ``conv`` a function of torch's unbatched form.

    Shapes [c_i, n_h, n_w] -> [c_o, m_h, m_w]; weight [c_o, c_i, k_h, k_w] and bias [c_o] start uniform in
    +-1 / sqrt(c_i * k_h * k_w). ``conv`` defaults to the loops of :func:`corr2d_multi_in_out`; a faster function of
    the same shapes takes its place without another change.
    """

    def __init__(
        self, c_i: int, c_o: int, kernel_size: tuple[int, int], bias: bool = True, conv: Conv = corr2d_multi_in_out
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(c_i * math.prod(kernel_size))
        self.conv = conv
        self.weight = nn.Parameter(torch.empty(c_o, c_i, *kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(c_o).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]


def edge_example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """An edge detector at work: (x, k, y) with x [1, 6, 8] of ones with a band of zeros, k = [1, -1] as [1, 1, 1, 2].

    y [1, 6, 7] is 1 where the band begins, -1 where it ends, and 0 elsewhere.
    """
    x = torch.ones(1, 6, 8, dtype=dtype)
    x[:, :, 2:6] = 0
    k = torch.tensor([[[[1, -1]]]], dtype=dtype)
    return x, k, corr2d_multi_in_out(x, k)


def learn_kernel(
    conv: Conv, x: Tensor, y: Tensor, kernel_size: tuple[int, int], steps: int = 10, learning_rate: float = 3e-2
) -> tuple[Conv2D, list[float]]:
    """Find the kernel that takes x [c_i, n_h, n_w] to y [c_o, m_h, m_w], by gradient descent on sum (conv(x, w) - y)^2.

    Returns the layer, of x's dtype and device and without bias, and the loss before each step. The start is drawn from
    torch's global generator.
    """
    layer = Conv2D(x.shape[0], y.shape[0], kernel_size, bias=False, conv=conv).to(x)
    losses = []
    for _ in range(steps):
        loss = ((layer(x) - y) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, layer.weight)
        with torch.no_grad():
            layer.weight.sub_(learning_rate * gradient)
        losses.append(loss.item())
    return layer, losses
