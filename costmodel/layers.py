"""One convolution layer to ask questions of: made with torch's arguments, or from the words of the command line.

    layer = costmodel.conv2d((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
    layer = costmodel.layer("conv2d 64x56x56 k3 p1 n32")

Nothing here counts or predicts: each method asks `costmodel.count`, `bounds` or `forecast` about the layer's problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from costmodel.arithmetic import arithmetic_named
from costmodel.bounds import Roofline
from costmodel.bounds import roofline as roofline_of
from costmodel.count import Cost, training_cost
from costmodel.count import cost as cost_of
from costmodel.device import Device, find_device
from costmodel.forecast import predict as predict_of
from costmodel.problem import ConvProblem, Pass
from costmodel.reports.needed import needed
from costmodel.reports.notation import Convolution, parse
from costmodel.reports.tables import Tables
from costmodel.timing import Prediction

if TYPE_CHECKING:
    from costmodel.reports.rows import PassRow

Size = int | Sequence[int]


class Layer(Convolution, Tables):
    """A convolution layer. `print(layer)` is the table of `costmodel layer`, and `costmodel.layer` reads `layer.words` back.

    dtype is a name such as "bf16", "float16" or "tf32", or a torch.dtype; None is bfloat16, or float16 on a device that has no
    bfloat16. device is a name that `costmodel.find_device` reads, or a `costmodel.Device`. `which` is "fprop", "dgrad" or
    "wgrad" of `problem`; None is the layer's own forward pass, which of a transposed layer is "dgrad". The methods raise
    ValueError for words that they do not know. Times are in seconds, traffic in bytes. Source: `docs/cost-model.md` defines the
    counts, `docs/design/prediction.md` the times.

    >>> import costmodel
    >>> layer = costmodel.conv2d((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
    >>> layer.words, layer.output_shape
    ('conv2d 64x56x56 k3 p1 c64 n32', (32, 64, 56, 56))
    >>> layer.cost().dense_flops
    7398752256
    >>> layer.roofline("h100").bound
    'memory'
    """

    @property
    def forward(self) -> Pass:
        """The pass of `problem` that is the layer's own result."""
        return next(iter(self.passes))

    def cost(self, which: Pass | str | None = None, *, dtype: Any = None) -> Cost:
        """MAC, FLOP and compulsory bytes of one pass. Raises ValueError for an unknown pass or dtype."""
        return cost_of(self.problem, self._pass(which), dtype=dtype)

    def training_cost(self, *, dtype: Any = None) -> Cost:
        """The cost of the forward pass and both gradients."""
        return training_cost(self.problem, dtype=dtype)

    def roofline(self, device: Device | str, which: Pass | str | None = None, *, dtype: Any = None) -> Roofline:
        """The least time of a pass on a device, in seconds. Raises ValueError for an unknown device or a dtype it lacks."""
        return roofline_of(self.problem, device, dtype, which=self._pass(which))

    def predict(self, device: Device | str, which: Pass | str | None = None, *, dtype: Any = None) -> Prediction:
        """The predicted time of a pass by the plan that tritonconv would take: seconds, with low, high and what bounds it."""
        return predict_of(self.problem, self._pass(which), device=device, dtype=dtype)

    def table_rows(self) -> list[PassRow]:
        """One row per pass, without a device: what `to_csv` writes."""
        from costmodel.reports.rows import pass_rows

        return pass_rows(self, None, *arithmetic_named()[:2])

    def document(self) -> dict[str, Any]:
        """What `to_json` writes: the layer in words, and one row per pass."""
        return {"layer": self.words, "passes": self.table_rows()}

    def table(self, device: Device | str | None = None, *, dtype: Any = None, width: int = 80) -> str:
        """All passes side by side, as `costmodel layer` prints them. Needs rich (`pip install 'tritonconv[report]'`)."""
        from costmodel.reports.rows import pass_rows

        with needed():
            from costmodel.reports.terminal import printed, show_passes
        chosen = None if device is None else find_device(device)
        kind = arithmetic_named(dtype, chosen)
        rows = pass_rows(self, chosen, kind.dtype, kind.precision)
        return printed(lambda out: show_passes(out, self, rows, chosen, kind.word, kind.remark), width)

    def __str__(self) -> str:
        try:
            return self.table()
        except ModuleNotFoundError:  # without rich
            return self.words

    def __repr__(self) -> str:
        return f"costmodel.layer({self.words!r})"

    def _pass(self, which: Pass | str | None) -> Pass:
        return self.forward if which is None else Pass(which)


def layer(words: str) -> Layer:
    """The layer that the words of the command line name, such as "conv2d 64x56x56 k3 p1 n32"; `Layer.words` is read back too.

    The words are an operator (conv1d to conv3d, conv_transpose1d to conv_transpose3d), the input CxHxW, and k kernel, s stride,
    p padding (p1, p1x2, p1:2 low:high, psame), d dilation, g groups (gdw: depthwise), c output channels, n batch, op output
    padding, and what the padding holds: reflect, replicate, circular, or a word per axis such as zeros,circular. Raises
    ValueError, in one line, for a word that cannot be read and for a layer that cannot be. The arguments mean what they mean in
    `torch.nn.functional.conv2d`.

    >>> import costmodel
    >>> costmodel.layer("conv2d 64x56x56 k3 p1 n32").output_shape
    (32, 64, 56, 56)
    """
    parsed = parse(words)
    return Layer(parsed.problem, parsed.transposed)


def _shape(function: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    """A shape given as numbers or as anything that has one."""
    try:
        shape = tuple(index(size) for size in getattr(value, "shape", value))
    except TypeError:
        raise TypeError(f"{function}(): {name} must be a shape of {rank + 2} ints or a tensor, got {name}={value!r}") from None
    if len(shape) != rank + 2:
        raise ValueError(f"{function}(): {name} must have {rank + 2} sizes, got {len(shape)}: {name}={shape}")
    return shape


def _per_axis(function: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    """One number for all axes, or one number per axis."""
    expected = f"{function}(): {name} must be an int or {rank} ints, got {name}={value!r}"
    try:
        values = tuple(index(one) for one in (value if isinstance(value, (tuple, list)) else (value,)))
    except TypeError:
        raise TypeError(expected) from None
    if len(values) not in (1, rank):
        raise ValueError(expected)
    return values * rank if len(values) == 1 else values


def _groups(function: str, value: Any) -> int:
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{function}(): groups must be an int, got groups={value!r}") from None


def _conv(rank: int) -> Callable[..., Layer]:
    function = f"conv{rank}d"

    def conv(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        padding_mode: str | Sequence[str] = "zeros",
    ) -> Layer:
        shapes = _shape(function, "input", input, rank), _shape(function, "weight", weight, rank)
        pads = padding if isinstance(padding, str) else _per_axis(function, "padding", padding, rank)
        steps = _per_axis(function, "stride", stride, rank), _per_axis(function, "dilation", dilation, rank)
        of_groups = _groups(function, groups)
        return Layer(ConvProblem.conv(*shapes, steps[0], pads, steps[1], of_groups, padding_mode=padding_mode))

    return _documented(conv, function, rank, "stride, padding (also 'valid' or 'same') and dilation")


def _conv_transpose(rank: int) -> Callable[..., Layer]:
    function = f"conv_transpose{rank}d"

    def conv_transpose(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
    ) -> Layer:
        shapes = _shape(function, "input", input, rank), _shape(function, "weight", weight, rank)
        given = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        per_axis = {name: _per_axis(function, name, value, rank) for name, value in given.items()}
        window = per_axis["stride"], per_axis["padding"], per_axis["output_padding"]
        problem = ConvProblem.conv_transpose(*shapes, *window, _groups(function, groups), per_axis["dilation"])
        return Layer(problem, transposed=True)

    return _documented(conv_transpose, function, rank, "stride, padding, output_padding and dilation")


def _documented(constructor: Callable[..., Layer], function: str, rank: int, arguments: str) -> Callable[..., Layer]:
    constructor.__name__ = constructor.__qualname__ = function
    transposed = "transpose" in function
    axes = ", ".join("DHW"[-rank:]) if rank > 1 else "L"
    taps = ", ".join("TRS"[-rank:])
    weights = f"[C, K / groups, {taps}]" if transposed else f"[K, C / groups, {taps}]"
    size, kernel, groups = (9,) * rank, (3,) * rank, 2
    shape = (1, 4, *(19,) * rank) if transposed else (1, 4, *(4,) * rank)
    modes = "" if transposed else "\n    padding_mode says what the padding holds: a word of torch's layers, or one per axis."
    constructor.__doc__ = f"""The layer of `torch.nn.functional.{function}`, described by torch's arguments.

    input [N, C, {axes}] and weight {weights} are shapes of {rank + 2} sizes, or tensors, of which only the shape is read.
    {arguments} are each an int or a sequence of {rank}; groups is an int.
    A bias changes no count. A layer has no dtype: its methods take one.{modes}
    Raises TypeError where an argument is of another type, ValueError for a layer that cannot be. The source is torch's page
    on the function.

    >>> import costmodel
    >>> costmodel.{function}({(1, 4, *size)}, {(4, 2, *kernel)}, stride=2, groups={groups}).output_shape
    {shape}
    """
    return constructor


conv1d, conv2d, conv3d = (_conv(rank) for rank in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_conv_transpose(rank) for rank in (1, 2, 3))
