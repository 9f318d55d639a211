"""The convolutions among torch's operators and this project's own, each as a pass of a `ConvProblem`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from costmodel.algebra import product
from costmodel.causal import Kind, problem_of
from costmodel.count import Cost, cost
from costmodel.deform import SAMPLE_FLOPS, Deformation
from costmodel.deform_backward import flops as gradient_flops
from costmodel.networks.operators import CONVOLUTIONS, ELEMENTWISE, SAME_FLOPS, aten, elements, moved_bytes, name_of
from costmodel.problem import ConvProblem, Pass
from costmodel.prologue import Prologue
from costmodel.shapes import ends_and_modes
from costmodel.video import Chunk
from costmodel.video import elements as elements_of


@dataclass(frozen=True)
class Convolution:
    """A convolution call as one pass of a forward problem (a transposed convolution is `Pass.DGRAD`)."""

    problem: ConvProblem
    which: Pass
    bias: bool
    weight: int = 1  # position of the weight among the arguments
    after: Cost = field(default_factory=Cost)  # the cost of the epilogue in the same kernel
    kept: Cost = field(default_factory=Cost)  # the cost of what is written only for the backward pass
    residual: torch.Tensor | None = None  # added to the result in the same kernel
    call: Chunk | Kind | Deformation | Prologue | None = None  # the call of a function that has plans of its own, or a prologue
    before: int = 0  # coordinates of the problem's first axis before x: those of a state or cache, or repeated from x
    planned: bool = True  # False: the time of its plan is not modelled
    lost: int = 0  # multiply-adds with the zeros between the sequences of a row
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or f"conv{'_transpose' * (self.which == Pass.DGRAD)}{self.problem.rank}d"

    @property
    def of_input(self) -> ConvProblem:
        """The problem whose input is only x; what lies before x becomes padding."""
        (low, high), *others = self.problem.padding
        first, *rest = self.problem.input_size
        padding = ((low + self.before, high), *others)
        return replace(self.problem, input_size=(first - self.before, *rest), padding=padding)

    def cost(self, which: Pass, dtype: torch.dtype, bias: bool = False) -> Cost:
        """Cost of a pass. A bias adds one FLOP per output to the forward result; the sums of its gradient count with wgrad."""
        name = str(dtype).removeprefix("torch.")
        spent = cost(self.problem, which, dtype=name, bias=bias, transposed=self.which == Pass.DGRAD)
        spent = replace(spent, useful_macs=spent.useful_macs - self.lost)
        return spent + self.after if which == self.which else spent


def arguments(func: Any, args: Sequence[Any]) -> dict[str, Any]:
    """The arguments of an operator of this project, by name."""
    named = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return named | {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)}


def convolution(func: Any, args: Sequence[Any]) -> Convolution | None:
    """The convolution that `func` computes; None where it computes none. It knows aten's and this project's operators."""
    packet = func._overloadpacket
    if packet in CONVOLUTIONS:
        x, w, bias, stride, padding, dilation, transposed, extra, groups = args[:9]
        return _from_torch(x, w, bias is not None, stride, padding, dilation, transposed, extra, groups)
    if packet is aten.convolution_backward:
        _, x, w, sizes, stride, padding, dilation, transposed, extra, groups = args[:10]
        return _from_torch(x, w, bool(sizes), stride, padding, dilation, transposed, extra, groups)
    if func.namespace != "tritonconv":
        return None
    named = arguments(func, args)
    if func.name() in CAUSAL:
        return CAUSAL[func.name()](named)
    primitive = name_of(func).partition("::")[2].removesuffix("_fused").removesuffix("_normalized")
    if primitive not in set(Pass):
        return None
    padding, modes = ends_and_modes(named["padding"], len(named["stride"]))
    window = (named["stride"], padding, named["dilation"], named["groups"])
    which = Pass(primitive)
    if which == Pass.FPROP:
        x_shape, w_shape = named["x"].shape, named["w"].shape
    elif which == Pass.DGRAD:
        w_shape = named["w"].shape
        x_shape = (named["dy"].shape[0], w_shape[1] * named["groups"], *named["input_size"])
    else:
        x_shape = named["x"].shape
        w_shape = (named["dy"].shape[1], x_shape[1] // named["groups"], *named["kernel_size"])
    problem = ConvProblem.conv(x_shape, w_shape, *window, padding_mode=modes)
    after, kept = _epilogue(problem.output_shape if which == Pass.FPROP else problem.input_shape, named, args[0].element_size())
    plain = Convolution(problem, which, named.get("b") is not None, after=after, kept=kept, residual=named.get("residual"))
    return _with_prologue(plain, named) if "x_rstd" in named else plain


def _prologue(named: dict[str, Any], prefix: str = "") -> Prologue:
    """The prologue that an operator's arguments describe, whose names begin with `prefix`."""
    return Prologue.of(*(named[prefix + name] for name in ("activation", "scale", "shift", "rstd")))


def _with_prologue(plain: Convolution, named: dict[str, Any]) -> Convolution:
    """The convolution with a prologue of its input. Each step of the prologue counts one FLOP per element."""
    prologue = _prologue(named, "x_")
    per_element = prologue.rstd + prologue.scale + prologue.shift
    per_element += ELEMENTWISE[SAME_FLOPS.get(prologue.activation, prologue.activation)] if prologue.activation else 0
    moved = _read(named, "x_scale", "x_shift", "x_rstd")
    spent = Cost(other_flops=per_element * named["x"].numel(), bytes=moved, im2col_bytes=moved)
    return replace(plain, call=prologue, after=plain.after + spent)


def _epilogue(result: Sequence[int], named: dict[str, Any], size: int) -> tuple[Cost, Cost]:
    """(cost of a fused operator's epilogue, cost of what it writes for the backward pass), for elements of `size` bytes. Each
    step counts as in the tables of `operators`; tensors are read once."""
    given = [named[name] for name in ("scale", "shift", "residual") if named.get(name) is not None]
    activation = named.get("activation", "")
    per_element = len(given) + (ELEMENTWISE[SAME_FLOPS.get(activation, activation)] if activation else 0)
    moved, kept = size * sum(map(elements, given)), size * product(result) if named.get("keep") else 0
    return (
        Cost(other_flops=per_element * product(result), bytes=moved, im2col_bytes=moved),
        Cost(bytes=kept, im2col_bytes=kept),
    )


def _from_torch(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    extra: Sequence[int],
    groups: int,
) -> Convolution:
    rank = w.dim() - 2
    stride, padding, dilation, extra = (tuple(v) * (rank // len(v)) for v in (stride, padding, dilation, extra))
    if transposed:
        problem = ConvProblem.conv_transpose(x.shape, w.shape, stride, padding, extra, groups, dilation)
        return Convolution(problem, Pass.DGRAD, bias)
    return Convolution(ConvProblem.conv(x.shape, w.shape, stride, padding, dilation, groups), Pass.FPROP, bias)


#: The operator that computes two convolutions in one kernel. They are counted one by one.
SEPARABLE = "tritonconv::separable"


def taken_apart(func: Any, args: Sequence[Any]) -> torch.Tensor:
    """Calls the two convolutions of `SEPARABLE` one after the other, so the depthwise result is counted as written and read."""
    named = arguments(func, args)
    x = named["x"]
    first = named["stride"], named["padding"], named["dilation"], x.shape[1]
    convolve = torch.ops.tritonconv.fprop_fused
    z, _ = convolve(x, named["w1"], named["b1"], *first, None, None, None, named["between"], named["slope"])
    last = (1, 1), (0, 0, 0, 0), (1, 1), 1, None, None, named["residual"], named["activation"], named["slope"]
    y: torch.Tensor = convolve(z, named["w2"], named["b2"], *last)[0]
    return y


# ---- the causal functions -------------------------------------------------------------------------------------------


def _causal(named: dict[str, Any]) -> Convolution:
    """causal_conv1d. Columns before x are a state's, which count as input, or zeros, which do not. Each sequence of a packed
    row has its own. Their lengths are not known here: sequences are assumed to be longer than a filter, or equally long.
    """
    x, w, state, starts = (named[name] for name in ("x", "w", "state", "starts"))
    (batch, channels, length), taps = x.shape, w.shape[1]
    kind = Kind(named["activation"] != "", False, state is not None, named["ids"] is not None)
    problem, before, lost = problem_of(batch, channels, length, taps), 0, 0
    if state is not None:
        problem, before = _continued(x, taps), taps - 1
    elif starts is not None and starts.shape[0] > 1:
        sequences = starts.shape[0] - 1
        length_each, longer = divmod(length, sequences)
        met = [problem_of(1, channels, size, taps).useful_macs if size else 0 for size in (length_each, length_each + 1)]
        lost = int(problem.useful_macs) - (sequences - longer) * met[0] - longer * met[1]
    biased = named["b"] is not None
    convolution = Convolution(problem, Pass.FPROP, biased, call=kind, before=before, lost=lost, label="causal_conv1d")
    last = channels * (taps - 1) * (batch if starts is None else starts.shape[0] - 1)
    moved = _read(named, "x", "w", "b", "state", "ids", "starts") + x.element_size() * (x.numel() + last * named["final"])
    return _with_tensors(convolution, named, moved)


def _update(named: dict[str, Any]) -> Convolution:
    """causal_conv1d_update. Every tap meets a column of the state or of x. Whole rows of the state are read and written; of a
    ring only the columns that are used."""
    x, state, taps = named["x"], named["state"], named["w"].shape[1]
    columns = state.shape[2]
    touched = 2 * columns if named["before"] is None else taps - 1 + min(x.shape[2], columns)
    moved = _read(named, "x", "w", "b", "before", "entries")
    moved += x.shape[0] * x.shape[1] * (x.shape[2] + touched) * x.element_size()
    convolution = Convolution(
        _continued(x, taps),
        Pass.FPROP,
        named["b"] is not None,
        weight=2,
        before=taps - 1,
        planned=False,
        label="causal_conv1d_update",
    )
    return _with_tensors(convolution, named, moved)


def _video(named: dict[str, Any]) -> Convolution | None:
    """causal_conv3d. Frames of a cache, and repetitions of the first frame, count as input; zeros before them do not."""
    x, w, cache = named["x"], named["w"], named["cache"]
    stride, padding, dilation = (tuple(named[name]) for name in ("stride", "padding", "dilation"))
    cached = 0 if cache is None else cache.shape[2]
    window = stride, padding, dilation, named["upsample"], named["time_padding"], named["groups"], named["padding_mode"]
    chunk = replace(Chunk.of(x.shape, w.shape, cached, *window), residual=named["residual"] is not None)
    if named["activation"] or any(named[name] is not None for name in ("scale", "shift", "rstd")):
        chunk = replace(chunk, prologue=_prologue(named))
    chunk = chunk.with_summed_taps() if named["summed"] else chunk
    if 0 in chunk.output_shape:
        return None
    problem, before = (chunk.spatial, chunk.front + chunk.cached) if chunk.replicate else (chunk.problem, chunk.cached)
    convolution = Convolution(
        problem, Pass.FPROP, named["b"] is not None, call=chunk, before=before, label=f"causal_conv{problem.rank}d"
    )
    elements = elements_of(chunk)
    written = x.element_size() * (elements["y"] + elements["next"] * named["keeps"])
    return _with_tensors(
        convolution, named, _read(named, "x", "w", "b", "cache", "scale", "shift", "rstd", "residual") + written
    )


def _deform(named: dict[str, Any]) -> Convolution:
    """deform_conv2d. Its useful multiply-adds are those of offsets of zero, because a trace does not know the values of
    offsets."""
    x, w = named["x"], named["w"]
    stride, padding, dilation = (named[name] for name in ("stride", "padding", "dilation"))
    problem = ConvProblem.conv(x.shape, w.shape, stride, padding, dilation, x.shape[1] // w.shape[1])
    deformation = Deformation(problem, named["offset"].shape[1] // (2 * problem.taps), named["mask"] is not None)
    convolution = Convolution(problem, Pass.FPROP, named["b"] is not None, weight=2, call=deformation, label="deform_conv2d")
    written = x.element_size() * product(problem.output_shape)
    convolution = _with_tensors(convolution, named, _read(named, "x", "offset", "w", "b", "mask") + written)
    return replace(convolution, after=convolution.after + Cost(other_flops=SAMPLE_FLOPS * deformation.samples))


def deform_gradient(func: Any, args: Sequence[Any], out: Any) -> tuple[Convolution, Cost]:
    """The gradients of deform_conv2d without that of the bias, which are one operator: (the convolution, the cost of the
    gradients that are asked for). Bytes are those of its arguments and results; the memory between its kernels counts in their
    predicted time."""
    named = {"b": None, **arguments(func, args)}
    convolution, dtype = _deform(named), named["x"].dtype
    deformation = convolution.call
    assert isinstance(deformation, Deformation)
    inputs, offsets, weights, mask = named["needs"]
    products = (inputs or offsets or mask) + weights
    spent = replace(convolution, after=Cost()).cost(Pass.DGRAD, dtype)
    others = gradient_flops(deformation, inputs, offsets or mask, weights) - 2 * deformation.macs * products
    moved = moved_bytes(func, name_of(func), args, {}, out)
    macs = {"useful_macs": spent.useful_macs * products, "dense_macs": spent.dense_macs * products}
    return convolution, Cost(**macs, other_flops=others, bytes=moved, im2col_bytes=moved)


#: The operators that compute several gradients at once. Each has a function that returns (the convolution, the cost of the
#: gradients).
CAUSAL_GRADIENT, DEFORM_GRADIENT = "tritonconv::causal_backward", "tritonconv::deform_backward"
CAUSAL: dict[str, Callable[[dict[str, Any]], Convolution | None]] = {
    "tritonconv::causal": _causal,
    "tritonconv::causal_update": _update,
    "tritonconv::video": _video,
    "tritonconv::deform": _deform,
}


def _continued(x: torch.Tensor, taps: int) -> ConvProblem:
    """The depthwise convolution of `taps` - 1 columns followed by x."""
    batch, channels, length = x.shape
    return ConvProblem.conv(
        (batch, channels, taps - 1 + length), (channels, 1, taps), (1,), (0,), (1,), channels, checked=False
    )


def _read(named: dict[str, Any], *names: str) -> int:
    """Bytes of the named arguments that are given."""
    return sum(elements(named[name]) * named[name].element_size() for name in names if named[name] is not None)


def _with_tensors(convolution: Convolution, named: dict[str, Any], moved: int) -> Convolution:
    """The convolution with an activation in its kernel, and with `moved` bytes (those of the operator's own tensors) instead of
    the problem's."""
    x, activation = named["x"], named.get("activation", "")
    rest = moved - convolution.cost(Pass.FPROP, x.dtype, convolution.bias).bytes
    flops = ELEMENTWISE[activation] * x.numel() if activation else 0
    return replace(convolution, after=Cost(other_flops=flops, bytes=rest, im2col_bytes=rest))


def causal_gradient(func: Any, args: Sequence[Any], out: Any) -> tuple[Convolution, Cost]:
    """The gradients of causal_conv1d, which are one operator: (the convolution, the cost of the gradients that are asked for).

    The kernel computes the value before the activation again; that is not counted.
    """
    named = arguments(func, args)
    convolution, dtype = _causal({"final": False, **named}), named["x"].dtype
    assert isinstance(convolution.call, Kind)
    convolution = replace(convolution, call=convolution.call._replace(backward=True), after=Cost())
    gradients = [which for which, wanted in ((Pass.DGRAD, named["wants_x"]), (Pass.WGRAD, named["wants_w"])) if wanted]
    bias = convolution.bias and named["wants_w"]
    spent = sum((convolution.cost(which, dtype, bias and which == Pass.WGRAD) for which in gradients), Cost())
    activation = named["activation"]
    per_element = ELEMENTWISE[f"{activation}_backward"] if activation else 0
    moved = moved_bytes(func, name_of(func), args, {}, out)
    return convolution, replace(spent, other_flops=per_element * named["x"].numel(), bytes=moved, im2col_bytes=moved)
