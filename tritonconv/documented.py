"""The text that `help` shows of the public functions after their own first lines: one text for what the twelve convolutions
share, and an example and a source for each of the others. The examples run as doctests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DTYPES = """float16, bfloat16, float32 or float64, the same for all tensors. Sums are accumulated in float32 (float64 for
    float64) and rounded once. float32 is multiplied as `torch.backends.cudnn.conv.fp32_precision` says ("tf32" or "ieee")."""
WINDOW = """stride, padding, dilation{more} are ints or {rank} ints{named}; groups divides the channels of both sides. Tensors
    may have any strides. The result has torch's memory format, and the same bits on every run."""
MODES = """

    padding_mode says what the padding holds, by one word for all axes or a tuple of one word per axis: "zeros", "reflect" (less
    padding than pixels), "replicate" or "circular" (at most as much padding as pixels), as for `torch.nn.Conv2d`. The kernel
    finds the pixels by index arithmetic. Where it is predicted to be quicker, as for depthwise layers, x is copied with its
    padding first and the copy is convolved. Other words raise ValueError, too much padding raises RuntimeError."""
SHARED = """

    {what}

    Dtypes: {dtypes}

    {window}{modes}

    On CUDA a Triton kernel runs; CPU tensors take torch's convolution, or these kernels where TRITON_INTERPRET=1 is set.
    Every tensor has gradients of any order, backwards and forwards. plan selects specific kernels and tiles; None leaves the
    choice to the library. It is a `costmodel.tiling.Plan`, or its words as `tritonconv.explain` and `costmodel layer` print
    them ("fprop gather 128x64x32 w4 s3"; words without a pass are for the pass that computes the result), or the name of a
    family ("gather"), whose tile is then chosen, or the answer of `explain`, or several of these, or a dictionary of them by
    pass ({{"fprop": "gather"}}).

    Raises torch's exception types, naming the argument, before anything is launched: TypeError for what is no tensor or no
    plan, ValueError and RuntimeError for shapes, dtypes, devices and windows that do not go together, and for a plan that
    cannot run the call or whose pass does not run. The function computes `torch.nn.functional.{torch}`.

    >>> import torch, tritonconv
    >>> x, w = torch.ones({x}), torch.ones({w})
    >>> tritonconv.{name}(x, w, stride=2, groups=2{call}).shape
    torch.Size({y})
    """
EPILOGUE = """The result is y = act((conv(input, weight) + bias) * scale[c] + shift[c] + residual), all of it computed in the
    accumulator's precision. scale and shift [{out}] are a folded batch normalisation. residual has the shape of y and any
    strides, so an expanded one broadcasts. activation is None, "relu", "relu6", "leaky_relu" (of negative_slope), "hardswish",
    "silu", "gelu", "gelu_tanh", "sigmoid" or "tanh". The backward pass keeps y or the value before the activation; the table in
    `tritonconv.epilogue` says which."""
PROLOGUE = """

    prologue is a `tritonconv.Prologue`, such as `group_norm_prologue(input, 32, gamma, beta, activation="silu")`. The function
    then convolves act(input * rstd * scale + shift), rounded to the dtype. Padding comes after the prologue: zeros stay zeros,
    and repeated pixels are pixels of its result. Either the kernel applies the prologue to the pixels that it gathers, anew for
    each tap and block of filters ("together" in a plan), or a kernel before it writes the prologue's result once, whichever is
    predicted to take less time. Groups of one channel or one filter, values per frame, and calls that record gradients or take
    tangents always use the kernel before it."""
PROLOGUE_EXAMPLE = """
    >>> x = torch.randn({x})
    >>> before = tritonconv.group_norm_prologue(x, 2, activation="silu")
    >>> y = tritonconv.{name}(x, w, padding=1, groups=2, prologue=before)
    >>> want = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 2))
    >>> torch.allclose(y, torch.nn.functional.{torch}(want, w, padding=1, groups=2), atol=1e-5)
    True
    """
PLAIN = "The result is that of torch's function. input is [N, C, ...], or [C, ...] without a batch."

#: An example and the source of the definition, by the function's name.
MORE = {
    "causal_conv1d": """

    The meaning is that of `causal_conv1d_fn` of the package causal-conv1d (https://github.com/Dao-AILab/causal-conv1d).

    >>> import torch, tritonconv
    >>> x, w = torch.randn(2, 4, 9), torch.randn(4, 3)
    >>> y, state = tritonconv.causal_conv1d(x, w, activation="silu", return_final_state=True)
    >>> y.shape, state.shape
    (torch.Size([2, 4, 9]), torch.Size([2, 4, 2]))
    """,
    "causal_conv1d_prefill": """

    Dtypes: float16, bfloat16, float32 or float64, the same for all tensors, or mixed as in `causal_conv1d`.

    >>> import torch, tritonconv
    >>> x, pool, rows = torch.ones(2, 4, 9), torch.zeros(5, 4, 2), torch.tensor([3, 0], dtype=torch.int32)
    >>> y = tritonconv.causal_conv1d_prefill(x, pool, torch.ones(4, 3), conv_state_indices=rows)
    >>> y.shape, pool.sum((1, 2))
    (torch.Size([2, 4, 9]), tensor([8., 0., 0., 8., 0.]))
    """,
    "causal_conv1d_update": """

    Raises TypeError, ValueError or RuntimeError naming the argument, before anything is launched. The meaning is that of
    `causal_conv1d_update` of the package causal-conv1d (https://github.com/Dao-AILab/causal-conv1d).

    >>> import torch, tritonconv
    >>> state = torch.zeros(2, 4, 2)
    >>> tritonconv.causal_conv1d_update(torch.ones(2, 4), state, torch.ones(4, 3)).sum(), state.sum()
    (tensor(8.), tensor(8.))
    """,
    "causal_conv3d": """

    It replaces the cat, pad, conv3d and clone of diffusers' WanCausalConv3d and CogVideoXCausalConv3d.

    >>> import torch, tritonconv
    >>> x, w = torch.randn(1, 2, 3, 4, 4), torch.randn(4, 2, 3, 3, 3)
    >>> y, cache = tritonconv.causal_conv3d(x, w, padding=1)
    >>> y.shape, cache.shape
    (torch.Size([1, 4, 3, 4, 4]), torch.Size([1, 2, 2, 4, 4]))
    """,
    "depthwise_separable_conv2d": """

    Dtypes: float16, bfloat16, float32 or float64, the same for all tensors. TypeError is for what is no tensor or no plan,
    ValueError for windows and activations, RuntimeError for shapes, dtypes and devices that do not go together. The block is of
    Howard et al., "MobileNets" (2017).

    >>> import torch, tritonconv
    >>> x, d, p = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 3, 3), torch.randn(8, 4, 1, 1)
    >>> tritonconv.depthwise_separable_conv2d(x, d, p, padding=1, activation="relu6").shape
    torch.Size([1, 8, 6, 6])
    """,
    "explain": """

    >>> import torch, tritonconv
    >>> explanation = tritonconv.explain(tritonconv.conv2d, torch.ones(1, 4, 8, 8), torch.ones(8, 4, 3, 3))
    >>> sorted(explanation.plans), explanation.predictions["fprop"].seconds > 0
    (['dgrad', 'fprop', 'wgrad'], True)
    """,
    "revert": """

    >>> import torch, tritonconv
    >>> model = tritonconv.convert(torch.nn.Conv2d(3, 8, 3))
    >>> type(tritonconv.revert(model)) is torch.nn.Conv2d
    True
    """,
    "report": """

    >>> import torch, tritonconv
    >>> print(tritonconv.report(tritonconv.convert(torch.nn.Conv2d(3, 8, 3))))  # doctest: +ELLIPSIS
    1 of 1 convolutions run on tritonconv's kernels
    ...
    """,
}


def _convolution(name: str) -> str:
    """The text that all twelve share, with the sizes of one."""
    plain, fused = name.removesuffix("_fused"), name.endswith("_fused")
    rank, transposed = int(plain[-2]), "transpose" in plain
    named = "" if transposed else ', padding also "same" or "valid"'
    shape, kernel = [1, 4] + [6] * rank, [4, 2] + [2] * rank
    window = WINDOW.format(more=" and output_padding" if transposed else "", rank=rank, named=named)
    before = "" if transposed or not fused else PROLOGUE
    text = SHARED.format(
        what=EPILOGUE.format(out="C" if transposed else "K") if fused else PLAIN,
        dtypes=DTYPES,
        window=window,
        modes="" if transposed else MODES + before,
        torch=plain,
        name=name,
        x=", ".join(map(str, shape)),
        w=", ".join(map(str, kernel)),
        call=', activation="relu"' if fused else "",
        y=[1, 4] + [12 if transposed else 3] * rank,
    )
    example = PROLOGUE_EXAMPLE.format(name=name, torch=plain, x=", ".join(map(str, shape)))
    return text.rstrip() + example if before else text


def complete(functions: dict[str, Callable[..., Any]]) -> None:
    """Appends the text of this module to the docstring of each function, by its name."""
    for name, function in functions.items():
        entry = MORE[name] if name in MORE else _convolution(name)
        own = (function.__doc__ or "").rstrip().removesuffix("; see this module's docstring.").removesuffix(".")
        function.__doc__ = f"{own}.{entry}"
