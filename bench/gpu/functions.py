"""Items of the functions that replace several calls of torch: causal sequences, causal video, depthwise-separable pairs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import tritonconv
from bench.gpu.convolutions import NUMBERS, followed
from bench.gpu.item import Item, Tensors
from bench.tolerance import C_LIMIT, STEEPEST, TF32_INPUT_UNIT, UNIT, Expected, activated_share, share
from tritonconv.causal import cpu as sequences
from tritonconv.causal.launch import Given
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.video import cpu as frames
from tritonconv.video.op import chunk_of

_OPS = torch.ops.tritonconv


def tensor(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    """A tensor of standard normal values, which are the same in every run. On the device "meta" it has no values."""
    room = torch.empty_strided(shape, strides, dtype=dtype, device=device)
    return room if device == "meta" else room.normal_(generator=torch.Generator(device).manual_seed(seed))


def rows(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    return dense_strides(shape, range(len(shape) - 1, -1, -1))


def numbers_of(words: str, device: str) -> torch.Tensor:
    return torch.tensor([int(word) for word in words.split()], dtype=torch.int32, device=device)


def same_bits(got: torch.Tensor, want: torch.Tensor) -> float:
    """0 where all elements are the same, else infinity."""
    return 0.0 if torch.equal(got.cpu(), want.cpu()) else float("inf")


def in_float64(tensors: Sequence[Any], change: Any = torch.clone) -> list[Any]:
    """The tensors on the CPU. Floating ones are in float64 and `change` has been applied."""
    copies = []
    for t in tensors:
        wide = t is not None and t.is_floating_point()
        copies.append(change(t.detach().cpu().double()) if wide else t if t is None else t.cpu())
    return copies


def planned(function: Any, *arguments: Any, **settings: Any) -> str:
    """The plans of a call, as `tritonconv.explain` names them."""
    plans = tritonconv.explain(function, *arguments, **settings).plans
    return "; ".join(f"{name} {plan}" for name, plan in plans.items())


# --- causal sequences -------------------------------------------------------------------------------------------------

BATCH, CHANNELS, LENGTH, TAPS = 3, 96, 75, 4
#: The bounds of packed sequences, one of which is empty.
STARTS = "0 20 20 21 75"
MODES = ("plain", "state", "packed", "ids")


def line_strides(shape: Sequence[int], last: bool) -> tuple[int, ...]:
    return dense_strides(shape, (1, 2, 0)) if last else rows(shape)


def causal_tensors(mode: str, dtype: torch.dtype, last: bool, device: str) -> list[torch.Tensor | None]:
    """[x, w, b, state, ids, starts], as the op takes them."""
    batch = 1 if mode == "packed" else BATCH
    count = len(STARTS.split()) - 1 if mode == "packed" else batch
    shape, ids, starts = (batch, CHANNELS, LENGTH), None, None
    state = tensor((count, CHANNELS, TAPS - 1), rows((count, CHANNELS, TAPS - 1)), dtype, device, 3)
    if mode == "packed":
        edges = [int(word) for word in STARTS.split()]
        owners = " ".join(" ".join([str(i)] * (end - first)) for i, (first, end) in enumerate(itertools.pairwise(edges)))
        ids, starts = numbers_of(owners, device).unsqueeze(0), numbers_of(STARTS, device)
    elif mode == "ids":
        ids = numbers_of("0 " * 30 + "1 " * 40 + "-1 " * 5, device).expand(BATCH, -1).contiguous()
    return [
        tensor(shape, line_strides(shape, last), dtype, device, 0),
        tensor((CHANNELS, TAPS), (TAPS, 1), dtype, device, 1),
        tensor((CHANNELS,), (1,), dtype, device, 2),
        state if mode in ("state", "packed") else None,
        ids,
        starts,
    ]


def silu(z: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(z)


def sequence_plan(which: str, activation: str, *tensors: Any) -> str:
    """The plan of the forward or backward pass; the arguments are the op's."""
    x, w, b, state, ids, starts = tensors
    call = tritonconv.causal_conv1d, x, w, b, activation or None, state, False, ids if starts is None else None, starts
    return next(words for words in planned(*call).split("; ") if words.startswith(which))


def causal_forward(mode: str, numbers: str, last: bool) -> Item:
    """y, and where sequences have states the final states, which are copies."""
    dtype, keeps = getattr(torch, NUMBERS[numbers][0]), mode != "ids"

    def call(*tensors: Any) -> Sequence[torch.Tensor]:
        results = _OPS.causal(*tensors, "silu", keeps)
        return results if keeps else results[:1]

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        def z(change: Any) -> torch.Tensor:
            x, w, b, *given = in_float64(tensors, change)
            return sequences.forward(x, w, b, "", Given(*given))

        error = activated_share(results[0], Expected(z(torch.clone), z(torch.abs), z(torch.ones_like)), silu)
        if not keeps:
            return error
        x, w, _, *given = (None if t is None else t.cpu() for t in tensors)
        assert x is not None and w is not None
        return max(error, same_bits(results[1], sequences.final_state(x, w.shape[1], Given(*given))))

    name = f"causal {mode} {numbers} {'channels_last' if last else 'contiguous'}"

    def explained(tensors: Tensors) -> str:
        return sequence_plan("forward", "silu", *tensors)

    return Item(name, lambda device: causal_tensors(mode, dtype, last, device), call, judge, explained=explained)


def causal_backward(mode: str, numbers: str, last: bool, activation: str) -> Item:
    """dx, dw followed by db, and the gradients of the states."""
    dtype = getattr(torch, NUMBERS[numbers][0])
    wants = (True, True, mode in ("state", "packed"))

    def inputs(device: str) -> Tensors:
        given = causal_tensors(mode, dtype, last, device)
        x, state = given[0], given[3]
        assert x is not None
        dfinal = None if state is None else tensor(tuple(state.shape), state.stride(), dtype, device, 4)
        return [tensor(tuple(x.shape), x.stride(), dtype, device, 5), *given, dfinal]

    def call(*tensors: Any) -> Sequence[torch.Tensor]:
        results = _OPS.causal_backward(*tensors, activation, *wants)
        return [t for t, wanted in zip(results, wants, strict=True) if wanted]

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        def gradients(change: Any, act: str = "") -> list[torch.Tensor]:
            dy, x, w, b, state, ids, starts, dfinal = in_float64(tensors, change)
            if activation and change is torch.abs:  # |silu'| <= 1.5, and the error of z counts with |silu''| <= 0.5
                dy = dy * (STEEPEST + 0.5 * sequences.forward(x, w, b, "", Given(state, ids, starts)))
            given = Given(state, ids, starts)
            results = sequences.backward(dy, x, w, b, dfinal, act, given, wants)
            return [t for t, wanted in zip(results, wants, strict=True) if wanted]

        expected = gradients(torch.clone, activation), gradients(torch.abs), gradients(torch.ones_like)
        extra = TAPS if activation else 0  # z is a sum of `TAPS` terms
        return max(
            share(got, Expected(value, size, terms + extra)) for got, value, size, terms in zip(results, *expected, strict=True)
        )

    name = f"causal backward {mode} {activation or 'plain'} {numbers} {'channels_last' if last else 'contiguous'}"

    def explained(tensors: Tensors) -> str:
        return sequence_plan("backward", activation, *tensors[1:7])

    return Item(name, inputs, call, judge, explained=explained)


def causal_update(numbers: str) -> Item:
    """Two tokens per sequence, whose states are rings in a larger tensor."""
    dtype, entries, width = getattr(torch, NUMBERS[numbers][0]), 5, TAPS

    def inputs(device: str) -> Tensors:
        x, state = (BATCH, CHANNELS, 2), (entries, CHANNELS, width)
        return [
            tensor(x, rows(x), dtype, device, 0),
            tensor(state, rows(state), dtype, device, 1),
            tensor((CHANNELS, TAPS), (TAPS, 1), dtype, device, 2),
            tensor((CHANNELS,), (1,), dtype, device, 3),
            numbers_of("0 3 9", device),
            numbers_of("4 -1 1", device),
        ]

    def call(x: Any, state: Any, *rest: Any) -> Sequence[torch.Tensor]:
        state = state.clone()
        return _OPS.causal_update(x, state, *rest, "silu"), state

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        def z(change: Any) -> torch.Tensor:
            x, state, w, b, before, rows_of = in_float64(tensors, change)
            return sequences.update(x, state, w, b, "", before, rows_of)

        x, state, w, b, before, rows_of = (None if t is None else t.cpu() for t in tensors)
        assert x is not None and state is not None and w is not None
        after = state.clone()
        sequences.update(x, after, w, b, "silu", before, rows_of)
        error = activated_share(results[0], Expected(z(torch.clone), z(torch.abs), z(torch.ones_like)), silu)
        return max(error, same_bits(results[1], after))

    return Item(f"causal update {numbers}", inputs, call, judge)


def causal_items(numbers: str, every: bool) -> Iterator[Item]:
    """Forward, backward and update, with `every` in all modes and layouts, otherwise in one."""
    modes, layouts = (MODES, (True, False)) if every else (("state",), (True,))
    for mode in modes:
        for last in layouts:
            yield causal_forward(mode, numbers, last)
            yield causal_backward(mode, numbers, last, "silu")
    yield causal_backward("packed" if every else "plain", numbers, True, "")
    yield causal_update(numbers)


# --- causal video -----------------------------------------------------------------------------------------------------

#: (x, weight, cached frames, then the op's stride, padding, dilation, upsample and time_padding).
CHUNKS: dict[str, tuple[Any, ...]] = {
    "cached": ((1, 32, 2, 10, 9), (48, 32, 3, 3, 3), 2, (1, 1, 1), (1, 1, 1, 1), (1, 1, 1), 1, "zeros"),
    "first": ((2, 32, 1, 10, 9), (48, 32, 3, 3, 3), 0, (1, 1, 1), (1, 1, 1, 1), (1, 1, 1), 1, "zeros"),
    "replicate": ((1, 24, 3, 9, 8), (20, 24, 3, 3, 3), 0, (1, 1, 1), (1, 1, 1, 1), (1, 1, 1), 1, "replicate"),
    "downsampler": ((1, 32, 4, 8, 8), (32, 32, 3, 1, 1), 1, (2, 1, 1), (0, 0, 0, 0), (1, 1, 1), 1, "valid"),
    "strided": ((2, 16, 4, 9, 11), (24, 16, 3, 3, 3), 2, (2, 2, 3), (1, 1, 2, 2), (1, 1, 1), 1, "zeros"),
    "upsample": ((1, 32, 2, 7, 8), (48, 32, 3, 3, 3), 2, (1, 1, 1), (1, 1, 1, 1), (1, 1, 1), 2, "zeros"),
    "upsample frames": ((1, 32, 2, 7, 8), (16, 32, 1, 3, 3), 0, (1, 1, 1), (1, 1, 1, 1), (1, 1, 1), 2, "zeros"),
}


def video_item(name: str, numbers: str, last: bool = True) -> Item:
    x_shape, w_shape, cached, *window = CHUNKS[name]
    dtype, precision = getattr(torch, NUMBERS[numbers][0]), NUMBERS[numbers][1]
    cache_shape = (*x_shape[:2], cached, *x_shape[3:])
    chunk = chunk_of(x_shape, w_shape, cache_shape if cached else None, *window)
    strides_of = channels_last_strides if last else rows

    def inputs(device: str) -> Tensors:
        return [
            tensor(x_shape, strides_of(x_shape), dtype, device, 0),
            tensor(w_shape, strides_of(w_shape), dtype, device, 1),
            tensor(w_shape[:1], (1,), dtype, device, 2),
            tensor(cache_shape, strides_of(cache_shape), dtype, device, 3) if cached else None,
        ]

    def call(*tensors: Any) -> Sequence[torch.Tensor]:
        results: Sequence[torch.Tensor] = _OPS.video(*tensors, *window, True)
        return results

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        def y(change: Any) -> torch.Tensor:
            x, w, b, cache = in_float64(tensors, change)
            return frames.forward(chunk, x, w, b, cache, False)[0]

        want = Expected(y(torch.clone), y(torch.abs), y(torch.ones_like))
        after = frames.known_frames(chunk, *(None if t is None else t.cpu() for t in (tensors[0], tensors[3])))  # type: ignore[arg-type]
        kept = after[:, :, after.shape[2] - chunk.kept :]
        return max(share(results[0], want, precision == "tf32"), same_bits(results[1], kept))

    layout = "channels_last" if last else "contiguous"

    def explained(tensors: Tensors) -> str:
        x, w, b, cache = tensors
        stride, (top, _, left, _), dilation, upsample, time_padding = window
        given = {"dilation": dilation, "upsample": upsample, "time_padding": time_padding}
        return planned(tritonconv.causal_conv3d, x, w, b, stride, (top, left), cache, True, **given)

    return Item(f"video {name} {numbers} {layout}", inputs, call, judge, precision=precision, explained=explained)


def video_items(numbers: str, every: bool) -> Iterator[Item]:
    for name in CHUNKS if every else ("cached",):
        yield video_item(name, numbers)
    if every:
        yield video_item("cached", numbers, last=False)


# --- depthwise and pointwise ------------------------------------------------------------------------------------------

#: (x, depthwise kernel, filters, stride, padding, whether there is a residual).
PAIRS: dict[str, tuple[Any, ...]] = {
    "3x3": ((2, 48, 15, 13), 3, 40, 1, 1, True),
    "3x3 stride 2": ((2, 40, 17, 14), 3, 72, 2, 1, False),
    "5x5": ((2, 32, 14, 14), 5, 48, 1, 2, False),
}


def separable_item(name: str, numbers: str, between: str, after: str, plan: str = "fused") -> Item:
    x_shape, taps, filters, stride, padding, follows = PAIRS[name]
    dtype, precision = getattr(torch, NUMBERS[numbers][0]), NUMBERS[numbers][1]
    channels = x_shape[1]
    w1_shape, w2_shape = (channels, 1, taps, taps), (filters, channels, 1, 1)
    size = [(n + 2 * padding - taps) // stride + 1 for n in x_shape[2:]]
    out = (x_shape[0], filters, *size)

    def inputs(device: str) -> Tensors:
        w2 = tensor(w2_shape, rows(w2_shape), dtype, device, 2)
        return [
            tensor(x_shape, channels_last_strides(x_shape), dtype, device, 0),
            tensor(w1_shape, rows(w1_shape), dtype, device, 1).mul_(1 / taps),
            w2.mul_(channels**-0.5),
            tensor((channels,), (1,), dtype, device, 3),
            tensor((filters,), (1,), dtype, device, 4),
            tensor(out, channels_last_strides(out), dtype, device, 5) if follows else None,
        ]

    def settings(residual: Any) -> dict[str, Any]:
        return {
            "activation": between or None,
            "pointwise_activation": after or None,
            "residual": residual,
            "plan": plan,
        }

    def call(*tensors: Any) -> Sequence[torch.Tensor]:
        x, w1, w2, b1, b2, residual = tensors
        y = tritonconv.depthwise_separable_conv2d(x, w1, w2, b1, b2, stride, padding, **settings(residual))
        return (y,)

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        """z is rounded between the two convolutions; its rounding error and that of its sums are summed by the second."""
        got, (x, w1, w2, b1, b2, residual) = results[0], in_float64(tensors)
        conv, tf32 = torch.nn.functional.conv2d, precision == "tf32" and dtype == torch.float32

        def first(change: Any) -> torch.Tensor:
            return conv(change(x), change(w1), change(b1), stride, padding, 1, channels)

        z = Expected(first(torch.clone), first(torch.abs), first(torch.ones_like))
        act = ACTIVATIONS[between].forward if between else lambda t, slope: t
        between_expected = Expected(act(z.value, 0.01), STEEPEST * z.magnitude, z.terms)
        off = UNIT[dtype] * between_expected.value.abs() + C_LIMIT * between_expected.accumulation(dtype)
        y = Expected(
            conv(between_expected.value, w2),
            conv(between_expected.value.abs(), w2.abs()),
            torch.full_like(results[0].double().cpu(), channels),
        )
        y = followed(y, b2.view(-1, 1, 1), None, None, residual)
        unit = UNIT[torch.float64 if dtype == torch.float64 else torch.float32] * channels**0.5
        unit += TF32_INPUT_UNIT if tf32 else 0.0
        y = dataclasses.replace(y, magnitude=y.magnitude + conv(off, w2.abs()) / (C_LIMIT * unit))
        last = ACTIVATIONS[after].forward if after else lambda t, slope: t
        return activated_share(got, y, lambda t: last(t, 0.01), tf32)

    words = f"separable {name} {between or 'plain'} {after or 'plain'} {numbers}"

    def explained(tensors: Tensors) -> str:
        *given, residual = tensors
        return planned(tritonconv.depthwise_separable_conv2d, *given, stride, padding, **settings(residual))

    return Item(words, inputs, call, judge, precision=precision, explained=explained)


def separable_items(numbers: str, every: bool) -> Iterator[Item]:
    yield separable_item("3x3", numbers, "relu6", "")
    if every:
        yield separable_item("3x3", numbers, "silu", "relu")
        yield separable_item("3x3 stride 2", numbers, "relu", "silu")
        yield separable_item("5x5", numbers, "relu6", "")
