"""One line of a table of measured layers: the columns that `bench/measured` and `costmodel compare` share.

Columns: gpu, op (torch's name), n, c, size (of the input), k, kernel, stride, padding, dilation, groups, output_padding, dtype,
math, layout (NCHW, NHWC, ...), pass (fprop, dgrad, wgrad, or several with + between), time_us, name, notes.
"""

from __future__ import annotations

from collections.abc import Mapping

from costmodel.problem import ConvProblem, Pass

#: Without these a line is no layer.
NEEDED = ("op", "n", "c", "size", "k", "kernel", "dtype", "time_us")


def problem_of(line: Mapping[str, str]) -> tuple[ConvProblem, bool]:
    """(the problem of a line, whether the layer is transposed). Raises ValueError for fields that are no numbers."""
    size, kernel = _sizes(line["size"]), _sizes(line["kernel"])
    ones, none = (1,) * len(size), (0,) * len(size)
    stride, dilation = (_sizes(line.get(name) or "") or ones for name in ("stride", "dilation"))
    padding, extra = (_sizes(line.get(name) or "") or none for name in ("padding", "output_padding"))
    n, c, k, groups = (int(line.get(name) or 1) for name in ("n", "c", "k", "groups"))
    if not line["op"].startswith("conv_transpose"):
        return ConvProblem.conv((n, c, *size), (k, c // groups, *kernel), stride, padding, dilation, groups), False
    return ConvProblem.conv_transpose((n, c, *size), (c, k // groups, *kernel), stride, padding, extra, groups, dilation), True


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x"))) if text else ()


def passes_of(text: str, transposed: bool) -> tuple[Pass, ...]:
    """The primitives of a layer's passes. "fprop" is the layer's own result, which a transposed layer computes by dgrad."""
    swapped = {"fprop": Pass.DGRAD, "dgrad": Pass.FPROP} if transposed else {}
    return tuple(swapped.get(part, Pass(part)) for part in (text or "fprop").split("+"))


def precision_of(line: Mapping[str, str]) -> str:
    """ "tf32" where the line says so, else "ieee"."""
    return "tf32" if (line.get("math") or "").startswith("tf32") or line["dtype"] == "tf32" else "ieee"


def layout_of(line: Mapping[str, str]) -> str:
    """ "channels_last" for NHWC and its like in other ranks, else "contiguous"."""
    text = line.get("layout") or ""
    return "channels_last" if text.endswith("C") or text in ("channels_last", "nhwc") else "contiguous"


def indirect(line: Mapping[str, str]) -> bool:
    """Whether the notes name an algorithm that multiplies less than a direct convolution."""
    return any(word in (line.get("notes") or "").lower() for word in ("winograd", "fft"))
