"""Which padding, input size, kernel, stride or dilation gives a wanted output size: exact intervals, with their derivation.

One spatial axis at a time, standard library only. A computer algebra system cannot solve through floor(); here the floor is
unfolded into a double inequality, which is linear in every unknown: so the solutions are always all integers of an interval.
Letters: input n, output o, kernel k, stride s, dilation d, padding p at each end or P at both together, output padding a.
"""

from __future__ import annotations

from costmodel.formulas.isolation import Axis, Isolation, Solution, output_size
from costmodel.problem import padding_pairs

__all__ = ["Solution", "same_padding", "solve"]

#: What may be unknown, in the order in which the unknown is inferred.
UNKNOWNS = ("output", "input", "kernel", "padding", "stride", "dilation")


def same_padding(kernel: int, dilation: int = 1) -> tuple[int, int]:
    """The (low, high) padding that keeps the size at stride 1: equal ends exactly where dilation * (kernel - 1) is even."""
    _require("kernel", kernel, 1)
    _require("dilation", dilation, 1)
    return padding_pairs("same", (kernel,), (dilation,))[0]


def solve(
    for_: str | None = None,
    *,
    output: int | None = None,
    input: int | None = None,
    kernel: int | None = None,
    stride: int | None = None,
    padding: int | tuple[int, int] | str | None = None,
    dilation: int | None = None,
    transposed: bool = False,
    output_padding: int | None = None,
    symmetric: bool = True,
) -> Solution:
    """The integers `for_` that give `output` on one axis, all else given.

    `for_` is "padding", "input", "kernel", "stride", "dilation", "output" or, of a transposed convolution, "output_padding".
    Without it the unknown is the first of output, input, kernel, padding, stride and dilation that is not given.
    Where they are not given, stride and dilation are 1 and paddings are 0. `padding` is one number for both ends, a (low, high)
    pair, "valid", or "same" (dilation * (kernel - 1) in total, whatever the kernel). `symmetric` asks for a padding p that is
    the same at both ends; without it the solution is the total P, which may be split in any way. A padding is at least 0 and
    every other solution at least 1. Raises ValueError for a missing, superfluous or impossible argument. Source: the relations
    of Dumoulin and Visin (arXiv:1603.07285), solved for one unknown.

    >>> print(solve(output=112, input=224, kernel=7, stride=2))
    p = 3
    >>> solve("input", output=7, kernel=3, padding=1, stride=2).low
    13
    """
    given = {
        "output": output,
        "input": input,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "output_padding": output_padding,
    }
    if for_ is None:
        for_ = next((name for name in UNKNOWNS if given[name] is None), None)
    if for_ is None:
        raise ValueError("nothing is left to solve for: leave out the argument whose values you want")
    if for_ not in given or (for_ == "output_padding" and not transposed):
        known = [name for name in given if transposed or name != "output_padding"]
        raise ValueError(f"for_ must be one of {', '.join(known)}, got {for_!r}")
    if given[for_] is not None:
        raise ValueError(f"{for_} is what is solved for, leave it out (got {given[for_]!r})")
    if not transposed and output_padding is not None:
        raise ValueError("output_padding belongs to a transposed convolution")
    for name in ("output", "input", "kernel"):
        if name != for_ and given[name] is None:
            raise ValueError(f"solving for {for_} needs {name}")
    for name in ("output", "input", "kernel", "stride", "dilation", "output_padding"):
        if given[name] is not None:
            _require(name, given[name], 0 if name == "output_padding" else 1)
    axis = Axis(
        input or 1, kernel or 1, stride or 1, dilation or 1, _pair(padding, transposed), output_padding or 0, transposed
    )
    least = _least(for_, axis)
    if for_ == "output":
        return output_size(axis)
    assert output is not None
    return Isolation(for_, axis, output, least, symmetric).solution()


def _require(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _pair(padding: int | tuple[int, int] | str | None, transposed: bool) -> tuple[int, int] | str:
    if padding is None or padding == "valid":
        return (0, 0)
    if padding == "same" and transposed:
        raise ValueError("padding must be numbers for a transposed convolution, got 'same'")
    if padding == "same":
        return "same"
    pair = (padding, padding) if isinstance(padding, int) else padding
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(end, int) for end in pair)):
        raise ValueError(f"padding must be a number, a (low, high) pair, 'same' or 'valid', got {padding!r}")
    return pair


def _least(for_: str, axis: Axis) -> int:
    """The smallest number that the unknown may be. An output padding must be less than the stride or the dilation."""
    extra = axis.output_padding
    if for_ in ("stride", "dilation"):
        other = axis.dilation if for_ == "stride" else axis.stride
        return extra + 1 if extra >= other else 1
    if extra >= max(axis.stride, axis.dilation):
        raise ValueError(
            f"output_padding must be less than the stride or the dilation, got {extra} with {axis.stride} and {axis.dilation}"
        )
    return 0 if for_ in ("padding", "output_padding") else 1
