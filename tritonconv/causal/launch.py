"""From the tensors of a causal convolution to launches: tile, allocation, arguments, grid. Nothing is tuned or measured.

x and y are [B, C, L] of any strides. Lanes are channels where the channels are contiguous, otherwise columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl

from costmodel import causal as model
from costmodel.algebra import ceil_div
from costmodel.device import Device
from costmodel.families.depthwise import REDUCE_BLOCK, REDUCE_PARTS, DepthwisePlan, is_planes, width_of
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import MAX_ALIGN, Call, Operand, itemsize
from tritonconv.direct import lasting
from tritonconv.families.depthwise import fits_int32
from tritonconv.host import INTERPRETED, index_of
from tritonconv.kernels.causal import Lengths, Sequences, causal_kernel
from tritonconv.kernels.causal_backward import causal_backward_kernel
from tritonconv.kernels.causal_state import causal_update_kernel, final_state_kernel, state_gradient_kernel
from tritonconv.kernels.depthwise_wgrad import strip_reduce_kernel
from tritonconv.kernels.index import pack
from tritonconv.launch import DTYPES, device_model, on
from tritonconv.layout import dense_strides, depthwise_operand
from tritonconv.prepared import INT32_MAX, TensorKey, accumulator, key, packed_strides, wide
from tritonconv.steps import Launch, Step


@functools.lru_cache(maxsize=4096)
def step_of(kernel: Any, programs: int, **constants: Any) -> Step:
    """A step, the same one for the same call, so that it knows the launches that were made."""
    return Step(kernel, programs, constants)


#: Lanes of the kernels that have a program per sequence and not per column.
STATE_CHANNELS = 128


class Given(NamedTuple):
    """The tensors of a call besides x, weight and bias."""

    state: torch.Tensor | None  # [sequences, C, K - 1]
    ids: torch.Tensor | None  # int32 [B, L], contiguous: the sequence of each column, negative for none
    starts: torch.Tensor | None  # int32 [sequences + 1]: sequences are packed in one row

    def sequences(self, x: torch.Tensor) -> int:
        return x.shape[0] if self.starts is None else self.starts.shape[0] - 1


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether the channels of [B, C, L] are contiguous and its columns are not."""
    return x.stride(1) == 1 and x.stride(2) != 1


def strides_like(shape: Sequence[Any], like: torch.Tensor) -> tuple[int, ...]:
    """The strides of a dense [outer, C, columns], whose channels are contiguous where those of `like` are."""
    return dense_strides(shape, (1, 2, 0) if is_channels_last(like) else (2, 1, 0))


def allocate(shape: tuple[Any, ...], like: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor of `shape` with the strides of `strides_like`."""
    return torch.empty_strided(shape, strides_like(shape, like), dtype=like.dtype, device=like.device)


def packed_axes(tensor: torch.Tensor | None) -> tuple[int, int, int]:
    """The strides of three axes, packed; zeros without a tensor."""
    if tensor is None:
        none: tuple[int, int, int] = _NO_STRIDES
        return none
    outer, channel, column = tensor.stride()
    return pack(outer), pack(channel), pack(column)


_NO_STRIDES = lasting((pack(0), pack(0), pack(0)))


def as_weight(w: torch.Tensor) -> TensorKey:
    """Shape and strides of w [C, K] as a convolution's [C, 1, K]."""
    return (w.shape[0], 1, w.shape[1]), (w.stride(0), w.stride(1), w.stride(1))


def width_along(tensor: Operand, call: Call, columns: int) -> int:
    """Columns of a tensor per load, where lanes are columns."""
    if not is_planes(call) or tensor.unit != 4:
        return 1
    width = math.gcd(tensor.outside, call.problem.input_size[0], columns, max(1, 16 // itemsize(call.dtype)))
    return width & -width


def call_of(problem: ConvProblem, dtype: torch.dtype, x: TensorKey, w: TensorKey, y: TensorKey, activation: str) -> Call:
    """The call in the form of the cost model."""
    a, b, out = (depthwise_operand(*t) for t in (x, w, y))
    return Call(problem, Pass.FPROP, DTYPES[dtype], "ieee", a, b, out, "heavy" if activation else "")


@functools.lru_cache(maxsize=1024)
def prepare(
    problem: ConvProblem,
    dtype: torch.dtype,
    device: Device,
    x: TensorKey,
    w: TensorKey,
    y: TensorKey,  # dx for the backward pass
    dy: TensorKey | None,  # for the backward pass only
    bias_stride: int | None,
    activation: str,
    features: tuple[bool, bool, bool],  # whether there are a state, ids, and packed sequences
    forced: str = "",  # a forced plan
) -> Launch:
    """Tile, arguments and constants of the forward pass, or of the backward pass where `dy` is given."""
    call = call_of(problem, dtype, x, w, y, activation)
    a, b, out = call.a, call.b, call.out
    kind = model.Kind(bool(activation), dy is not None, *features[:2])
    plan = DepthwisePlan.parse(forced) if forced else model.select(call, device, kind)
    programs = model.launch(call, plan).programs
    if programs > INT32_MAX:
        raise RuntimeError(f"causal_conv1d of {problem} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    align = math.gcd(problem.in_channels, MAX_ALIGN)
    sizes = (problem.in_channels // align, problem.input_size[0], bias_stride or 0, plan.rows)
    activations = (x, y) if dy is None else (x, y, dy)
    state, ids, packed = features
    constants: dict[str, Any] = {
        "TAPS": problem.kernel_size[0],
        "ACTIVATION": activation,
        "HAS_STATE": state,
        "IDS": ids,
        "PACKED": packed,
        "X_ALIGN": a.align,
        "X_UNIT": a.unit,
        "W_ALIGN": b.align,
        "W_UNIT": b.unit,
        "C_ALIGN": align,
        "EVEN_C": problem.in_channels % plan.block_n == 0,
        "X_WIDTH": width_of(call, plan.block_m, None),
        "ACC": accumulator(call.dtype),
        "INDEX": tl.int32 if fits_int32(problem, plan, images=activations, weights=None) else tl.int64,
        "UPCAST": INTERPRETED and call.dtype == "bfloat16",
        "CHANNELS": plan.block_n,
        "GROUPS": plan.block_k,
        "COLUMNS": plan.block_m,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    prefix = "Y" if dy is None else "DX"
    constants |= {f"{prefix}_ALIGN": out.align, f"{prefix}_UNIT": out.unit}
    constants[f"{prefix}_WIDTH"] = model.stored_together(call, plan)
    lengths = Lengths(*map(pack, sizes))
    strides = packed_strides(x, a), packed_strides(w, b), packed_strides(y, out)
    if dy is None:
        return Launch(plan, Step(causal_kernel, programs, constants, (*strides, lengths)))
    described = depthwise_operand(*dy)
    width = width_along(described, call, plan.block_m)
    constants |= {"DY_ALIGN": described.align, "DY_UNIT": described.unit, "DY_WIDTH": width}
    arguments = (packed_strides(dy, described), *strides, lengths)
    parts = model.parts(call, plan), problem.kernel_size[0] + 1, problem.in_channels
    main = Step(causal_backward_kernel, programs, constants, arguments)
    return Launch(plan, main, workspace=parts, between=wide(dtype))


def prepared_for(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    y: TensorKey,
    dy: TensorKey | None,
    activation: str,
    given: Given,
) -> Launch:
    batch, channels, length = x.shape
    problem = model.problem_of(batch, channels, length, w.shape[1])
    device = device_model(index_of(x))
    state = given.state is not None and w.shape[1] > 1
    features = state, given.ids is not None, given.starts is not None
    stride = None if b is None else b.stride(0)
    return prepare(problem, x.dtype, device, key(x), as_weight(w), y, dy, stride, activation, features)


def prepared_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, activation: str, given: Given, wants_x: bool
) -> Launch:
    """The launch of `backward`'s main kernel."""
    dx = (tuple(x.shape), strides_like(x.shape, x)) if wants_x else key(x)
    return prepared_for(x, w, b, dx, key(dy), activation, given)


def sequences_of(given: Given, taps: int) -> Sequences:
    if given.state is None and given.ids is None and given.starts is None:
        one: Sequences = _ONE_SEQUENCE
        return one
    state = given.state if taps > 1 else None
    count = 0 if given.starts is None else given.starts.shape[0] - 1
    return Sequences(state, given.ids, given.starts, packed_axes(state), pack(count))


_ONE_SEQUENCE = lasting(Sequences(None, None, None, _NO_STRIDES, pack(0)))


def forward(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, activation: str, given: Given) -> torch.Tensor:
    """y [B, C, L] of x [B, C, L], w [C, K] and b [C]."""
    y = allocate(tuple(x.shape), x)
    if y.numel() == 0:
        return y
    start(prepared_for(x, w, b, key(y), None, activation, given), x, w, b, y, given)
    return y


def start(prepared: Launch, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, y: torch.Tensor, given: Given) -> None:
    """The forward pass into y."""
    main = prepared.main
    with on(x):
        main.start(x, w, b, y, sequences_of(given, w.shape[1]), *main.arguments)


def final_state(x: torch.Tensor, taps: int, given: Given) -> torch.Tensor:
    """[sequences, C, K - 1]: the last K - 1 columns of each sequence's state followed by the sequence."""
    count, channels = given.sequences(x), x.shape[1]
    final = allocate((count, channels, taps - 1), x)
    if final.numel() == 0:
        return final
    programs = count * ceil_div(channels, STATE_CHANNELS)
    step = step_of(final_state_kernel, programs, TAPS=taps, CHANNELS=STATE_CHANNELS)
    with on(x):
        step.start(
            x,
            given.state,
            final,
            given.starts,
            packed_axes(x),
            packed_axes(given.state),
            packed_axes(final),
            (pack(channels), pack(x.shape[2])),
        )
    return final


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    dfinal: torch.Tensor | None,
    activation: str,
    given: Given,
    wants: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx [B, C, L], dw with db behind it [C, K + 1], dstate); `wants` says which, the others have no elements."""
    wants_x, wants_w, wants_state = wants
    dx = allocate(tuple(x.shape), x) if wants_x else None
    dwb = w.new_empty((w.shape[0], w.shape[1] + 1)) if wants_w else None
    with on(x):
        if x.numel() and (wants_x or wants_w):
            prepared = prepared_backward(dy, x, w, b, activation, given, wants_x)
            start_backward(prepared, dy, x, w, b, dfinal, dx, dwb, given)
        elif dwb is not None:
            dwb.zero_()
        dstate = state_gradient(dy, x, w, b, dfinal, activation, given) if wants_state and given.state is not None else None
    none = x.new_empty(0)
    return none if dx is None else dx, w.new_empty(0) if dwb is None else dwb, none if dstate is None else dstate


def start_backward(
    prepared: Launch,
    dy: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    dfinal: torch.Tensor | None,
    dx: torch.Tensor | None,
    dwb: torch.Tensor | None,
    given: Given,
) -> None:
    """The backward pass into dx and dw with db behind it, where they are wanted."""
    taps = w.shape[1]
    dfinal = dfinal if taps > 1 else None
    partial = None if dwb is None else torch.empty(prepared.workspace, dtype=prepared.between, device=x.device)
    *strides, lengths = prepared.main.arguments
    sequences = sequences_of(given, taps)
    prepared.main.start(dy, x, w, b, dfinal, dx, partial, sequences, *strides, packed_axes(dfinal), lengths)
    if partial is not None and dwb is not None:
        sum_parts(partial, dwb)


def state_gradient(
    dy: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    dfinal: torch.Tensor | None,
    activation: str,
    given: Given,
) -> torch.Tensor:
    """dstate of a call that has a state."""
    (channels, taps), state = w.shape, given.state
    assert state is not None
    dfinal = dfinal if taps > 1 else None
    dstate = allocate(tuple(state.shape), state)
    if dstate.numel():
        programs = given.sequences(x) * ceil_div(channels, STATE_CHANNELS)
        step = step_of(state_gradient_kernel, programs, **token_constants(x.dtype, taps, activation))
        step.start(
            dy,
            x,
            w,
            b,
            state,
            dfinal,
            dstate,
            given.starts,
            packed_axes(dy),
            packed_axes(x),
            (pack(w.stride(0)), pack(0), pack(w.stride(1))),
            packed_axes(state),
            packed_axes(dfinal),
            packed_axes(dstate),
            (pack(channels), pack(x.shape[2]), pack(0 if b is None else b.stride(0))),
        )
    return dstate


def token_constants(dtype: torch.dtype, taps: int, activation: str) -> dict[str, Any]:
    """The constants of the kernels that have a program per sequence."""
    return {
        "TAPS": taps,
        "ACTIVATION": activation,
        "ACC": accumulator(DTYPES[dtype]),
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
        "CHANNELS": STATE_CHANNELS,
    }


def sum_parts(partial: torch.Tensor, dwb: torch.Tensor) -> None:
    """dwb[c, s] = sum over parts of partial[part, s, c], in a fixed order."""
    step = summing_step(partial.shape, dwb.dtype)
    step.start(partial, dwb, *step.arguments)


@functools.lru_cache(maxsize=1024)
def summing_step(partial: Sequence[int], dtype: torch.dtype) -> Step:
    """The kernel of `sum_parts`, for a shape of partial sums."""
    count, entries, channels = partial
    described = ((channels, 1, entries), (entries, entries, 1))
    operand = depthwise_operand(*described)
    elements = entries * channels
    constants = {
        "KERNEL": (1, 1, entries),
        "PER_FILTER": 1,
        "DW_ALIGN": operand.align,
        "DW_UNIT": operand.unit,
        "ACC": accumulator(DTYPES[dtype]),
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
        "BLOCK_PARTS": REDUCE_PARTS,
        "BLOCK": REDUCE_BLOCK,
    }
    arguments = packed_strides(described, operand), (pack(elements), pack(count), pack(channels))
    return Step(strip_reduce_kernel, ceil_div(elements, REDUCE_BLOCK), constants, arguments)


@functools.lru_cache(maxsize=4096)
def update_step(
    dtype: torch.dtype, x: TensorKey, state: TensorKey, w: TensorKey, y: TensorKey, bias_stride: int | None, activation: str
) -> Step:
    """The kernel of `update`; its tensors come before its arguments."""
    (batch, channels, tokens), taps = x[0], w[0][1]
    constants = token_constants(dtype, taps, activation) | {"STATE": state[0][2]}
    arguments = (
        tuple(map(pack, x[1])),
        tuple(map(pack, state[1])),
        (pack(w[1][0]), pack(0), pack(w[1][1])),
        tuple(map(pack, y[1])),
        tuple(map(pack, (channels, tokens, bias_stride or 0, state[0][0]))),
    )
    return Step(causal_update_kernel, batch * ceil_div(channels, STATE_CHANNELS), constants, arguments)


def update(
    x: torch.Tensor,
    state: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    activation: str,
    before: torch.Tensor | None,
    entries: torch.Tensor | None,
) -> torch.Tensor:
    """y [B, C, T] of the next tokens x [B, C, T]; `state` [entries, C, >= K - 1] is changed in place."""
    y = allocate(tuple(x.shape), x)
    if y.numel():
        stride = None if b is None else b.stride(0)
        step = update_step(x.dtype, key(x), key(state), key(w), key(y), stride, activation)
        with on(x):
            step.start(x, state, w, b, y, before, entries, *step.arguments)
    return y
