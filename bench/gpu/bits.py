"""Calls whose results are exact in any order of their sums, compared with the CPU's bit by bit.

These are convolutions of small whole numbers, whose sums are exact in float32 (shared reductions, packed, block-diagonal and
folded operands, bands and their diagonals), and copies of arbitrary bits (states of sequences, cached frames). Zeros may differ
in sign.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench.gpu.convolutions import FAMILIES, LAYERS, chosen, forced, of_family, pass_item, serves, work_of
from bench.gpu.functions import CHUNKS, causal_tensors
from bench.gpu.item import Item, Tensors
from bench.work import Work, float64_pass
from costmodel.families import families
from costmodel.problem import Pass
from tritonconv.causal import cpu as sequences
from tritonconv.causal.launch import Given
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.video import cpu as frames
from tritonconv.video.op import chunk_of

_OPS = torch.ops.tritonconv
LARGEST = 2  # the largest whole number
GATHER = FAMILIES["gather"]

#: (layer, layout, type, plan). Under the plans of "stem" and of the groups the kernel reads other weights than those of the
#: call.
FORCED = {
    "shared fprop": (GATHER, "channels_last", "fp16", "fprop:gather:64x64x32:w4:s4:split2"),
    "shared dgrad": (LAYERS["stride 2"], "channels_last", "fp16", "dgrad:gather:64x64x32:w4:s4:split2"),
    "shared wgrad": (GATHER, "channels_last", "fp16", "wgrad:gather:64x64x32:w4:s4:split5"),
    "shared wgrad contiguous": (GATHER, "contiguous", "fp16", "wgrad:gather:64x64x32:w4:s4:split3"),
    "shared wgrad of boxes": (FAMILIES["tma"], "channels_last", "fp16", "wgrad:tma:64x64x64:w4:s4:split3"),
    "packed fprop": (GATHER, "contiguous", "fp16", "fprop:gather:64x64x32:w4:s4:pack-a:pack-b"),
    "packed dgrad": (GATHER, "contiguous", "fp16", "dgrad:gather:64x64x32:w4:s4:pack-a:pack-b"),
    "packed wgrad": (GATHER, "contiguous", "fp16", "wgrad:gather:64x64x32:w4:s4:split2:pack-a:pack-b"),
    "block-diagonal fprop": (LAYERS["groups of 8"], "channels_last", "fp16", "fprop:gather:64x64x32:w4:s4:merge4"),
    "block-diagonal dgrad": (LAYERS["groups of 8"], "channels_last", "fp16", "dgrad:gather:64x64x32:w4:s4:merge4"),
    "block-diagonal wgrad": (LAYERS["groups of 8"], "channels_last", "fp16", "wgrad:gather:64x64x32:w4:s4:split2:merge4"),
    "folded fprop": (LAYERS["stem"], "channels_last", "fp16", "fprop:gather:64x64x32:w4:s4:fold"),
    "folded wgrad": (LAYERS["stem"], "channels_last", "fp16", "wgrad:gather:64x64x32:w4:s4:split2:fold"),
    "three products": (GATHER, "channels_last", "fp32", "fprop:gather:64x64x32:w4:s3:x3"),
}


def whole(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Fills the tensor's memory with whole numbers."""
    return t.copy_(torch.randint(-LARGEST, LARGEST + 1, t.shape, generator=generator, device=t.device))


def whole_item(item: Item, work: Work) -> Item:
    """The item with whole numbers, compared with the exact result rounded once."""

    def inputs(device: str) -> Tensors:
        a, b = item.inputs(device)
        if device == "meta" or a is None or b is None:
            return a, b
        generator = torch.Generator(device).manual_seed(7)
        return whole(a, generator), whole(b, generator)

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        a, b = (t.cpu().double().contiguous() for t in tensors if t is not None)
        want = float64_pass(work, a, b).to(work.torch_dtype)
        return unlike(results[0].cpu(), want)

    return dataclasses.replace(item, name=f"{item.name}, whole numbers", inputs=inputs, judge=judge)


def unlike(got: torch.Tensor, want: torch.Tensor) -> float:
    """0 where no element differs, else the number of differing elements plus 1."""
    if got.shape != want.shape:
        return float("inf")
    wrong = int((got != want).sum())
    return float(wrong + 1) if wrong else 0.0


# --- copies of any bits -----------------------------------------------------------------------------------------------


def any_bits(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    """A tensor of random bits, which include infinities and NaN of every kind."""
    room = torch.empty_strided(shape, strides, dtype=as_whole(dtype), device=device)
    if device != "meta":
        limits = torch.iinfo(room.dtype)
        generator = torch.Generator(device).manual_seed(seed)
        room.copy_(torch.randint(limits.min, limits.max, tuple(shape), generator=generator, device=device))
    return room.view(dtype)


def as_whole(dtype: torch.dtype) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def same(got: torch.Tensor, want: torch.Tensor) -> float:
    integers = as_whole(got.dtype)
    return unlike(got.cpu().view(integers), want.cpu().view(integers))


def final_state(mode: str, dtype: torch.dtype, last: bool) -> Item:
    """The final states of sequences, which are copies of their last columns."""

    def inputs(device: str) -> Tensors:
        x, w, _, state, ids, starts = causal_tensors(mode, dtype, last, device)
        assert x is not None and w is not None
        x = any_bits(tuple(x.shape), x.stride(), dtype, device, 0)
        state = None if state is None else any_bits(tuple(state.shape), state.stride(), dtype, device, 1)
        return x, w, None, state, ids, starts

    def call(*tensors: Any) -> Sequence[torch.Tensor]:
        return (_OPS.causal(*tensors, "", True)[1],)

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        x, w, _, *given = (None if t is None else t.cpu() for t in tensors)
        assert x is not None and w is not None
        return same(results[0], sequences.final_state(x, w.shape[1], Given(*given)))

    name = f"final state {mode} {dtype} {'channels_last' if last else 'contiguous'}"
    return Item(name.replace("torch.", ""), inputs, call, judge)


def next_cache(name: str, dtype: torch.dtype, last: bool) -> Item:
    """The next cache of a chunk, which is a copy of its last frames."""
    x_shape, w_shape, cached, *window = CHUNKS[name]
    cache_shape = (*x_shape[:2], cached, *x_shape[3:])
    chunk = chunk_of(x_shape, w_shape, cache_shape if cached else None, *window)

    def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
        return channels_last_strides(shape) if last else dense_strides(shape, range(len(shape) - 1, -1, -1))

    def inputs(device: str) -> Tensors:
        return [
            any_bits(x_shape, strides_of(x_shape), dtype, device, 0),
            torch.zeros(w_shape, dtype=dtype, device=device),
            torch.zeros(w_shape[:1], dtype=dtype, device=device),
            any_bits(cache_shape, strides_of(cache_shape), dtype, device, 1) if cached else None,
        ]

    def call(*tensors: Any) -> Sequence[torch.Tensor]:
        return (_OPS.video(*tensors, *window, True)[1],)

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        x, _, _, cache = (None if t is None else t.cpu() for t in tensors)
        assert x is not None
        line = frames.known_frames(chunk, x, cache)
        return same(results[0], line[:, :, line.shape[2] - chunk.kept :])

    words = f"next cache {name} {dtype} {'channels_last' if last else 'contiguous'}"
    return Item(words.replace("torch.", ""), inputs, call, judge)


# --- all of them ------------------------------------------------------------------------------------------------------


def in_order() -> Iterator[Item]:
    for name, (text, layout, numbers, plan) in FORCED.items():
        work = work_of(text, Pass(plan.split(":")[0]), numbers, layout)
        yield whole_item(pass_item(name, work, partial(forced, plan)), work)
    for name, numbers, which in itertools.product(families(), ("fp16", "fp32"), Pass):
        if serves(name, which, numbers, "channels_last"):
            work = work_of(FAMILIES[name], which, numbers, "channels_last")
            yield whole_item(pass_item(f"{name} {which} {numbers}", work, partial(of_family, name)), work)
    for name, text in LAYERS.items():
        for which in Pass:
            work = work_of(text, which, "fp16", "channels_last")
            yield whole_item(pass_item(f"{name} {which} fp16", work, chosen), work)
    for dtype in (torch.float16, torch.float32):
        for mode in ("plain", "state", "packed"):
            yield final_state(mode, dtype, mode != "plain")
        yield next_cache("cached", dtype, True)
    yield next_cache("replicate", torch.float16, True)
    yield next_cache("cached", torch.float16, False)


def items() -> dict[str, Item]:
    """The items by name, in order."""
    return {item.name: item for item in in_order()}
