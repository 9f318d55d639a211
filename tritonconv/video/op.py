"""The library op of the causal convolution of video: schema, fake tensors, autocast, FLOP formula, gradients.

    video(x [N, C, T, H, W], w [K, C, t, r, s], b, cache [N, C, F, H, W], stride, padding, dilation, upsample, time_padding,
          keeps, plan) -> (y [N, K, O, P, Q], the next cache, or nothing)

`padding` is (low, high) of height, then of width. CUDA tensors run one Triton kernel. CPU tensors run it where Triton's
interpreter is on, otherwise torch. Gradients are those of the other ops on the written-out known frames, so they exist to any
order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import register_flop_formula

from costmodel.video import TIME_PADDING, Chunk
from tritonconv import operands, private
from tritonconv.autograd import _below_autograd, _bias_gradient, _Primitive, added, or_zeros
from tritonconv.epilogue import per_channel
from tritonconv.host import either
from tritonconv.layout import allocate, allocate_channels_last
from tritonconv.op import LIBRARY, _autocast, flat
from tritonconv.video import check, cpu, launch
from tritonconv.video.cpu import known_frames, magnified

Maybe = torch.Tensor | None
Pair = tuple[torch.Tensor, torch.Tensor]
Ints = Sequence[Any]
_SCHEMA = (
    "video(Tensor x, Tensor w, Tensor? b, Tensor? cache, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "int upsample, str time_padding, bool keeps, str plan='') -> (Tensor, Tensor)"
)
_OPS = torch.ops.tritonconv


def chunk_of(
    x: Ints, w: Ints, cache: Ints | None, stride: Ints, padding: Ints, dilation: Ints, upsample: int, time_padding: str
) -> Chunk:
    """The call for an op's arguments, with shapes in place of tensors."""
    cached = 0 if cache is None else cache[2]
    return Chunk.of(x, w, cached, tuple(stride), tuple(padding), tuple(dilation), upsample, time_padding)


def checked_chunk(
    x: Ints,
    w: Ints,
    cache: Ints | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    upsample: int,
    time_padding: str,
    keeps: bool,
) -> Chunk:
    """`chunk_of` for shapes of five axes. Raises RuntimeError or ValueError where they do not fit together."""
    operands.window("video", 3, stride, (0, 0, *padding), dilation)  # there is no padding in time
    operands.sizes("video", "the weight's size", w, 5, 1)
    operands.word("video", "time_padding", time_padding or "none", TIME_PADDING)
    if upsample not in (1, 2) or (upsample == 2 and (stride[1], stride[2]) != (1, 1)):
        raise RuntimeError(
            f"tritonconv::video: upsample must be 1, or 2 with stride 1 in height and width, got upsample={upsample} and "
            f"stride={list(stride)}"
        )
    if x[1] != w[1] or any(n < 1 for n in x[1:]):
        raise RuntimeError(f"tritonconv::video: channels do not match, or x is empty: x {list(x)}, w {list(w)}")
    chunk = chunk_of(x, w, cache, stride, padding, dilation, upsample, time_padding)
    check.known(chunk, x, cache)
    if keeps:
        check.follows(chunk, x)
    return chunk


_known_chunk = functools.lru_cache(maxsize=1024)(checked_chunk)


def _checked(x: torch.Tensor, w: torch.Tensor, b: Maybe, cache: Maybe, window: tuple[Any, ...], keeps: bool) -> Chunk:
    operands.alike("video", x, w, b, cache)
    for name, tensor in (("x", x), ("w", w), ("cache", cache)):
        if tensor is not None:
            operands.axes("video", name, tensor, 5)
    operands.shaped("video", "b", b, w.shape[0])
    make = checked_chunk if isinstance(x, private.FakeTensor) else _known_chunk  # symbols cannot be hashed
    arguments: Any = (*map(tuple, window[:3]), *window[3:], keeps)
    return make(x.shape, w.shape, None if cache is None else cache.shape, *arguments)


def _by(where: Callable[..., Pair]) -> Callable[..., Pair]:
    def call(
        x: torch.Tensor,
        w: torch.Tensor,
        b: Maybe,
        cache: Maybe,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        upsample: int,
        time_padding: str,
        keeps: bool,
        plan: str = "",
    ) -> Pair:
        window = stride, padding, dilation, upsample, time_padding
        chunk = _checked(x, w, b, cache, window, keeps)
        return where(chunk, x, w, b, cache, keeps, plan)

    return call


def _fake(chunk: Chunk, x: torch.Tensor, w: torch.Tensor, b: Maybe, cache: Maybe, keeps: bool, plan: str) -> Pair:
    after = allocate_channels_last(chunk.next_shape, x) if keeps else x.new_empty(0)
    return allocate(chunk.output_shape, x, w), after


def _flops(x: Ints, w: Ints, b: Any, cache: Ints | None, *window: Any, out_shape: Any = None, **_: Any) -> int:
    """Dense FLOP (2 * MAC), including padding frames; the bias is not counted."""
    chunk = chunk_of(x, w, cache, *window[:5])
    return chunk.flops


class _Video(_Primitive):
    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.video, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, _, cache, *ctx.window = inputs
        keeps = ctx.window[5]
        ctx.set_materialize_grads(False)
        if not keeps:
            ctx.mark_non_differentiable(output[1])
        ctx.shapes = x.shape, w.shape, None if cache is None else cache.shape
        needs_x, needs_w, _, needs_cache, *_ = ctx.needs_input_grad
        ctx.save_for_forward(x, w, cache, *output)
        weights = needs_x or needs_cache
        ctx.save_for_backward(*((x, cache) if needs_w else (None, None)), w if weights else None)

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], tx: Maybe, tw: Maybe, tb: Maybe, tcache: Maybe, *_: Any) -> Any:
        """The tangents. y is linear in the frames of cache and x and in the weight; the next cache is a part of the frames."""
        x, w, cache, y, after = saved
        *window, keeps, plan = ctx.window
        ty = tafter = None
        if tx is not None or tcache is not None:
            ty, tafter = _OPS.video(or_zeros(tx, x), w, tb, or_zeros(tcache, cache), *window, keeps, plan)
            tb = None
        if tw is not None:
            of_weight, _ = _OPS.video(x, tw, tb, cache, *window, False, plan)
            ty, tb = added(ty, of_weight), None
        if tb is not None:
            ty = added(ty, per_channel(tb, 3).expand(y.shape))
        return ty, or_zeros(tafter, after) if keeps else None

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dafter: Maybe) -> Any:
        """The gradients. They go through y and the next cache to the written-out frames, and from there to cache and x."""
        x, cache, w = ctx.saved_tensors
        chunk = chunk_of(*ctx.shapes, *ctx.window[:5])
        needs_x, needs_w, needs_b, needs_cache, *_ = ctx.needs_input_grad
        spatial = chunk.spatial
        window = spatial.stride, flat(spatial.padding), spatial.dilation, spatial.groups
        dx = dw = db = dcache = dline = None
        if dy is not None and 0 in chunk.output_shape:  # without a result the gradients are zeros, as torch's are
            batch, channels, *_ = chunk.next_shape
            if needs_x or needs_cache:
                dline = dy.new_zeros((batch, channels, chunk.front + chunk.known, *chunk.frame))
            dw = dy.new_zeros(ctx.shapes[1]) if needs_w else None
            db = dy.new_zeros(ctx.shapes[1][:1]) if needs_b else None
        elif dy is not None:
            if needs_x or needs_cache:
                dline = _OPS.dgrad(dy, w, None, spatial.input_size, *window)
                if chunk.upsample > 1:
                    pairs = (*dline.shape[:3], chunk.frame[0], chunk.upsample, chunk.frame[1], chunk.upsample)
                    dline = dline.reshape(pairs).sum((4, 6))
            if needs_w:
                dw = _OPS.wgrad(dy, magnified(chunk, known_frames(chunk, x, cache)), spatial.kernel_size, *window)
            db = _bias_gradient(dy) if needs_b else None
        if dafter is not None and (needs_x or needs_cache):
            taken = F.pad(dafter, (0, 0, 0, 0, chunk.front + chunk.known - chunk.kept, 0))
            dline = taken if dline is None else dline + taken
        if dline is not None:
            made, dknown = dline[:, :, : chunk.front], dline[:, :, chunk.front :]
            if chunk.replicate and chunk.front:
                dknown = torch.cat([dknown[:, :, :1] + made.sum(2, keepdim=True), dknown[:, :, 1:]], 2)
            dx = dknown[:, :, chunk.cached :] if needs_x else None
            dcache = dknown[:, :, : chunk.cached] if needs_cache else None
        return dx, dw, db, dcache, *(None,) * len(ctx.window)


def _video(*args: Any) -> Any:
    return _Video.apply(*args, *("",)[len(args) - 10 :])


LIBRARY.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
LIBRARY.impl("video", _by(launch.forward), "CUDA")
LIBRARY.impl("video", _by(either(launch.forward, cpu.forward)), "CPU")
LIBRARY.impl("video", _video, "Autograd")
torch.library.register_fake("tritonconv::video", _by(_fake), lib=LIBRARY)
register_flop_formula(_OPS.video)(_flops)
for _device in ("cuda", "cpu"):
    LIBRARY.impl("video", _autocast(_OPS.video.default, _device), f"Autocast{_device.upper()}")
