"""A layer in one line of words, such as "conv2d 64x56x56 k3 s1 p1 c64 n32", and the reasons why a layer is impossible.

Two forms are read. The short one, which reports print, has the input CxHxW and the output channels in `c`; the one that
`str(ConvProblem)` writes has an arrow, which a shell wants quoted: "conv2d n32 c64 56x56 -> 128 k3x3 s2x2 p1,1 d2x2 g4".
Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.problem import ConvProblem, Pass
from costmodel.shapes import MODES, check_modes, mode_words

OPERATORS = {f"{name}{rank}d": rank for name in ("conv", "conv_transpose") for rank in (1, 2, 3)}
#: What may follow the letters of a word; `parse` checks the numbers.
WORDS = {
    "op": r"\d+(?:x\d+)*",
    "k": r"\d+(?:x\d+)*",
    "s": r"\d+(?:x\d+)*",
    "d": r"\d+(?:x\d+)*",
    "p": r"same|valid|-?\d+(?::-?\d+)?(?:[x,]-?\d+(?::-?\d+)?)*",
    "g": r"\d+|dw",
    "c": r"\d+",
    "n": r"\d+",
}
SIZE = re.compile(r"\d+(?:x\d+)*")
MODE = re.compile(f"(?:{'|'.join(MODES)})(?:,(?:{'|'.join(MODES)}))*")
AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


@dataclass(frozen=True)
class Convolution:
    """A layer as a user names it: `problem`, or for a transposed layer the problem whose dgrad it is."""

    problem: ConvProblem
    transposed: bool = False

    @property
    def passes(self) -> dict[Pass, str]:
        """The three primitives, the layer's own result first, with what each of them is to this layer."""
        if self.transposed:
            return {Pass.DGRAD: "forward (dgrad)", Pass.FPROP: "dx (fprop)", Pass.WGRAD: "dw (wgrad)"}
        return {which: str(which) for which in Pass}

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.problem.output_shape if self.transposed else self.problem.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.problem.input_shape if self.transposed else self.problem.output_shape

    @property
    def words(self) -> str:
        """The short form, which `parse` reads back and a shell passes on unquoted; what is torch's default is left out."""
        p, (batch, *shape) = self.problem, self.input_shape
        words = [f"conv{'_transpose' * self.transposed}{p.rank}d", by(shape), "k" + _short(p.kernel_size)]
        words += [] if set(p.stride) == {1} else ["s" + _short(p.stride)]
        ends = [str(low) if self.transposed or low == high else f"{low}:{high}" for low, high in p.padding]
        words += [] if set(ends) == {"0"} else ["p" + _short(ends)]
        words += [mode_words(p.padding_mode)] if p.padding_mode else []
        extra = [low - high for low, high in p.padding] if self.transposed else [0]
        words += ["op" + _short(extra)] if any(extra) else []
        words += [] if set(p.dilation) == {1} else ["d" + _short(p.dilation)]
        words += [] if p.groups == 1 else [f"g{p.groups}"]
        return " ".join([*words, f"c{self.output_shape[1]}", f"n{batch}"])

    def __str__(self) -> str:
        return self.words


def parse(text: str) -> Convolution:
    """The layer that `text` names: operator, input CxHxW, k kernel, s stride, p padding (p1, p1x2, p1:2 for low:high, psame),
    d dilation, g groups (gdw: depthwise), c output channels (those of the input unless given), n batch (1 unless given), op,
    the output padding of a transposed layer, and what the padding holds: reflect, replicate, circular, or a word per axis such
    as zeros,circular.

    Raises ValueError, in one line, for a word that cannot be read and for a layer that cannot be.
    """
    operator, *tokens = text.replace("->", " -> ").split() or [""]
    if operator not in OPERATORS:
        known = ", ".join(OPERATORS)
        raise ValueError(f"unknown layer {operator!r}: begin with {known}, as in 'conv2d 64x56x56 k3 s1 p1 c64 n32'")
    rank = OPERATORS[operator]
    words: dict[str, str] = {}
    sizes: list[str] = []
    modes = ""
    for token in tokens:
        if MODE.fullmatch(token):
            if modes:
                raise ValueError(f"the padding mode is given twice, as {modes} and as {token}")
            modes = token
            continue
        name = next((name for name, form in WORDS.items() if re.fullmatch(name + f"(?:{form})", token)), None)
        if SIZE.fullmatch(token) or token == "->":
            sizes.append(token)
        elif name is None:
            raise ValueError(
                f"cannot read {token!r}: words are k3 k3x5 s2 p1 p1x2 p1:2 psame d2 g4 gdw c64 n32 op1 circular and a size"
            )
        elif name in words:
            raise ValueError(f"{name} is given twice, as {name}{words[name]} and as {token}")
        else:
            words[name] = token.removeprefix(name)
    channels, size, filters = _ends(operator, sizes, words)
    if "k" not in words:
        raise ValueError(f"{operator} has no kernel size: add k3, or one number an axis such as k{by((3, 5, 7)[:rank])}")
    groups = channels if words.get("g") == "dw" else int(words.get("g", 1))
    _at_least_one(n=words.get("n", "1"), c=filters, g=groups, k=words["k"], s=words.get("s", "1"), d=words.get("d", "1"))
    _at_least_one(input=by((channels, *size)))
    for what, count in (("input", channels), ("output", filters)):
        if count % groups:
            raise ValueError(f"g{groups} does not divide the {count} {what} channels: both must be multiples of the groups")
    numbers = {
        name: _per_axis(operator, name, words.get(name, default)) for name, default in (("k", ""), ("s", "1"), ("d", "1"))
    }
    batch = int(words.get("n", 1))
    if operator.startswith("conv_transpose"):
        if modes:
            raise ValueError(f"{modes} is for other layers: the padding of {operator} is zeros, as torch's")
        return _transposed(operator, (batch, channels, *size), filters, groups, words, **numbers)
    if "op" in words:
        raise ValueError(f"op{words['op']} is for transposed layers: {operator} has no output padding")
    padding = _padding(operator, words.get("p", "0"))
    if padding == "same" and any(s != 1 for s in numbers["s"]):
        raise ValueError(f"psame needs s1, got s{by(numbers['s'])}: 'costmodel solve' finds paddings for other strides")
    weight = (filters, channels // groups, *numbers["k"])
    mode = _spread(operator, modes, modes.split(",")) if modes else MODES[0]
    window = (numbers["s"], padding, numbers["d"], groups)
    problem = ConvProblem.conv((batch, channels, *size), weight, *window, padding_mode=mode, checked=False)
    check_modes(problem.input_size, problem.padding, problem.padding_mode)
    for axis, padded, extent in zip(AXES[rank], problem.padded_size, problem.effective_kernel, strict=True):
        if padded < extent:
            raise ValueError(
                f"the kernel spans {extent} of axis {axis}, whose padded input is {padded}: "
                f"add {extent - padded} of padding or input, or take a smaller kernel or dilation"
            )
    return Convolution(problem)


def _transposed(
    operator: str,
    shape: tuple[int, ...],
    filters: int,
    groups: int,
    words: dict[str, str],
    k: tuple[int, ...],
    s: tuple[int, ...],
    d: tuple[int, ...],
) -> Convolution:
    padding, extra = _padding(operator, words.get("p", "0")), _per_axis(operator, "op", words.get("op", "0"))
    if isinstance(padding, str) or any(low != high or low < 0 for low, high in padding):
        raise ValueError(f"{operator} takes paddings such as p1 or p1x2, at least 0, and op1 for one side; got p{words['p']}")
    weight = (shape[1], filters // groups, *k)
    problem = ConvProblem.conv_transpose(shape, weight, s, [low for low, _ in padding], extra, groups, d, checked=False)
    for axis, size, extra_size, stride, dilation in zip(AXES[len(k)], problem.input_size, extra, s, d, strict=True):
        if extra_size >= max(stride, dilation):
            raise ValueError(f"op{extra_size} on axis {axis} must be less than the larger of s{stride} and d{dilation}")
        if size < 1:
            raise ValueError(f"the output has size {size} on axis {axis}: it must be at least 1, so lower p or raise the input")
    return Convolution(problem, transposed=True)


def _ends(operator: str, sizes: list[str], words: dict[str, str]) -> tuple[int, list[int], int]:
    """Input channels, input size and output channels, in either form."""
    rank = OPERATORS[operator]
    short = "x".join(("64", "56", "56", "56")[: rank + 1])
    if "->" in sizes:
        if [s == "->" for s in sizes] != [False, True, False] or "c" not in words or not sizes[2].isdigit():
            raise ValueError(f"with an arrow a layer reads '{operator} n32 c64 {short[3:]} -> 128 k3', got '{' '.join(sizes)}'")
        size, given = _numbers(sizes[0]), sizes[0]
        channels, filters = int(words["c"]), int(sizes[2])
    else:
        if len(sizes) != 1:
            given = " and ".join(sizes) or "none"
            raise ValueError(f"{operator} needs one input size {'x'.join(('C', *AXES[rank]))} such as {short}, got {given}")
        (channels, *size), given = _numbers(sizes[0]), sizes[0]
        filters = int(words.get("c", channels))
    if len(size) != rank:
        wanted = "x".join(AXES[rank] if "->" in sizes else ("C", *AXES[rank]))
        raise ValueError(f"{operator} takes an input {wanted} such as {short[3:] if '->' in sizes else short}, got {given}")
    return channels, size, filters


def _short(values: Sequence[object]) -> str:
    """One value where all are alike, otherwise one per axis."""
    return str(values[0]) if len(set(values)) == 1 else by(values)


def by(values: Iterable[object]) -> str:
    """The values with x between them: 3x5."""
    return "x".join(map(str, values))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split("x")]


def _per_axis(operator: str, name: str, text: str) -> tuple[int, ...]:
    return tuple(_spread(operator, name + text, _numbers(text)))


def _spread(operator: str, word: str, values: Sequence[Any]) -> list[Any]:
    """One value for every axis, or one each."""
    rank = OPERATORS[operator]
    if len(values) not in (1, rank):
        what = "modes" if word in MODES or "," in word else "numbers"
        raise ValueError(f"{word} has {len(values)} {what}: {operator} takes one for all axes or {rank}, one per axis")
    return list(values) * (rank if len(values) == 1 else 1)


def _padding(operator: str, text: str) -> str | list[tuple[int, int]]:
    if text in ("same", "valid"):
        return text
    pairs = []
    for pair in text.replace(",", "x").split("x"):
        low, colon, high = pair.partition(":")
        pairs.append((int(low), int(high if colon else low)))
    return _spread(operator, "p" + text, pairs)


def _at_least_one(**given: object) -> None:
    for name, value in given.items():
        if any(number < 1 for number in _numbers(str(value))):
            word = f"input {value}" if name == "input" else f"{name}{value}"
            raise ValueError(f"{word} has a number below 1: sizes, counts, strides and dilations are at least 1")
