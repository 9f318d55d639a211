"""The library op of the causal convolution of video: schema, fake tensors, autocast, FLOP formula, gradients.

    video(x [N, C, T, H, W], w [K, C / groups, t, r, s], b, cache [N, C, F, H, W], stride, padding, dilation, upsample,
          time_padding, keeps, plan, scale, shift, rstd, activation, slope, residual [N, K, O, P, Q], groups, summed,
          padding_mode)
        -> (y [N, K, O, P, Q], the next cache, or nothing)

`padding` is (low, high) of height, then of width. scale to slope are the prologue, as of the op `normalize`. CUDA tensors run
one Triton kernel, or two. CPU tensors run them where Triton's interpreter is on, otherwise torch. Gradients are those of the
other ops on the known frames, so they exist to any order. Where a call with a prologue has gradients, the op `normalize` comes
first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import register_flop_formula

from costmodel.chunk import MODES, TIME_PADDING, Chunk
from tritonconv import operands, private, recipes
from tritonconv.autograd import _below_autograd, _bias_gradient, _Primitive, added, gradients_of, or_zeros
from tritonconv.epilogue import per_channel, widened
from tritonconv.host import either
from tritonconv.layout import allocate, allocate_channels_last
from tritonconv.normalize import op as normalize
from tritonconv.normalize.launch import Values
from tritonconv.op import LIBRARY, _autocast, flat
from tritonconv.video import check, cpu, launch
from tritonconv.video.cpu import folded, known_frames, magnified, padded

Maybe = torch.Tensor | None
Pair = tuple[torch.Tensor, torch.Tensor]
Ints = Sequence[Any]
_SCHEMA = (
    "video(Tensor x, Tensor w, Tensor? b, Tensor? cache, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "int upsample, str time_padding, bool keeps, str plan='', Tensor? scale=None, Tensor? shift=None, Tensor? rstd=None, "
    "str activation='', float slope=0.01, Tensor? residual=None, SymInt groups=1, bool summed=False, "
    "str padding_mode='zeros') -> (Tensor, Tensor)"
)
_OPS = torch.ops.tritonconv


def chunk_of(
    x: Ints,
    w: Ints,
    cache: Ints | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    upsample: int,
    time_padding: str,
    groups: Any = 1,
    summed: bool = False,
    mode: str = "zeros",
) -> Chunk:
    """The call for an op's arguments, with shapes in place of tensors."""
    cached = 0 if cache is None else cache[2]
    chunk = Chunk.of(x, w, cached, tuple(stride), tuple(padding), tuple(dilation), upsample, time_padding, groups, mode)
    return chunk.with_summed_taps() if summed else chunk


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
    groups: Any = 1,
    summed: bool = False,
    mode: str = "zeros",
) -> Chunk:
    """`chunk_of` for shapes of five axes. Raises RuntimeError or ValueError where they do not fit together."""
    operands.window("video", 3, stride, (0, 0, *padding), dilation, groups)  # there is no padding in time
    operands.sizes("video", "the weight's size", w, 5, 1)
    operands.word("video", "time_padding", time_padding or "none", TIME_PADDING)
    operands.word("video", "padding_mode", mode or "none", MODES)
    if upsample not in (1, 2) or (upsample == 2 and (stride[1], stride[2]) != (1, 1)):
        raise RuntimeError(
            f"tritonconv::video: upsample must be 1, or 2 with stride 1 in height and width, got upsample={upsample} and "
            f"stride={list(stride)}"
        )
    if x[1] != w[1] * groups or w[0] % groups or any(n < 1 for n in x[1:]):
        raise RuntimeError(
            f"tritonconv::video: channels do not match, or x is empty: x {list(x)}, w {list(w)}, groups {groups}"
        )
    chunk = chunk_of(x, w, cache, stride, padding, dilation, upsample, time_padding, groups, summed, mode)
    check.known(chunk, x, cache)
    check.mirrored(chunk, x)
    if keeps:
        check.follows(chunk, x)
    return chunk


_known_chunk = functools.lru_cache(maxsize=1024)(checked_chunk)


def _checked(
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe,
    cache: Maybe,
    window: tuple[Any, ...],
    keeps: bool,
    residual: Maybe,
    groups: int,
    summed: bool,
    mode: str,
) -> Chunk:
    operands.alike("video", x, w, b, cache, residual)
    for name, tensor in (("x", x), ("w", w), ("cache", cache)):
        if tensor is not None:
            operands.axes("video", name, tensor, 5)
    operands.shaped("video", "b", b, w.shape[0])
    make = checked_chunk if isinstance(x, private.FakeTensor) else _known_chunk  # symbols cannot be hashed
    arguments: Any = (*map(tuple, window[:3]), *window[3:], keeps, groups, summed, mode)
    chunk = make(x.shape, w.shape, None if cache is None else cache.shape, *arguments)
    operands.shaped("video", "residual", residual, *chunk.output_shape)
    return chunk


def _by(where: Callable[..., Pair]) -> Callable[..., Pair]:
    """The op, computed by `where`, which gets the checked call and its tensors."""

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
        scale: Maybe = None,
        shift: Maybe = None,
        rstd: Maybe = None,
        activation: str = "",
        slope: float = 0.01,
        residual: Maybe = None,
        groups: int = 1,
        summed: bool = False,
        padding_mode: str = "zeros",
    ) -> Pair:
        window = stride, padding, dilation, upsample, time_padding
        chunk = _checked(x, w, b, cache, window, keeps, residual, groups, summed, padding_mode)
        values = launch.NOTHING
        if scale is not None or shift is not None or rstd is not None or activation:
            values = Values(scale, shift, rstd, activation, slope)
            normalize.checked("video", x, values)
        return where(chunk, x, w, b, cache, keeps, plan, values, residual)

    return call


def _fake(chunk: Chunk, x: torch.Tensor, w: torch.Tensor, b: Maybe, cache: Maybe, keeps: bool, *_: Any) -> Pair:
    after = allocate_channels_last(chunk.next_shape, x) if keeps else x.new_empty(0)
    return allocate(chunk.output_shape, x, w), after


def _flops(x: Ints, w: Ints, b: Any, cache: Ints | None, *window: Any, out_shape: Any = None, **_: Any) -> int:
    """Dense FLOP (2 * MAC), including padding frames; what comes before and after the products is not counted."""
    groups = window[13] if len(window) > 13 else 1
    stride, padding, dilation, upsample, time_padding = window[:5]
    return chunk_of(x, w, cache, stride, padding, dilation, upsample, time_padding, groups).flops


class _Video(_Primitive):
    """The op under autograd, as a function of x, w, b, cache, residual, stride, padding, dilation, upsample, time_padding,
    keeps, plan, groups, summed and mode."""

    @staticmethod
    def forward(x: Any, w: Any, b: Any, cache: Any, residual: Any, *rest: Any) -> Any:
        *window, groups, summed, mode = rest
        if residual is None and groups == 1 and not summed and mode == "zeros":
            return _below_autograd(_OPS.video, x, w, b, cache, *window)
        return _below_autograd(_OPS.video, x, w, b, cache, *window, None, None, None, "", 0.01, residual, *rest[-3:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, _, cache, _, *ctx.window = inputs
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
    def tangents(
        cls, ctx: Any, saved: tuple[Any, ...], tx: Maybe, tw: Maybe, tb: Maybe, tcache: Maybe, tresidual: Maybe, *_: Any
    ) -> Any:
        """The tangents. y is linear in the frames of cache and x and in the weight; the next cache is a part of the frames."""
        x, w, cache, y, after = saved
        *window, keeps, plan, groups, summed, mode = ctx.window
        rest = (plan, None, None, None, "", 0.01, None, groups, summed, mode)
        ty = tafter = None
        if tx is not None or tcache is not None:
            ty, tafter = _OPS.video(or_zeros(tx, x), w, tb, or_zeros(tcache, cache), *window, keeps, *rest)
            tb = None
        if tw is not None:
            from_weight, _ = _OPS.video(x, tw, tb, cache, *window, False, *rest)
            ty, tb = added(ty, from_weight), None
        ty = added(ty, tresidual)
        if tb is not None:
            ty = added(ty, per_channel(tb, 3).expand(y.shape))
        return ty, or_zeros(tafter, after) if keeps else None

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dafter: Maybe) -> Any:
        stride, padding, dilation, upsample, time_padding, _, _, groups, _, mode = ctx.window
        x, w, cache = ctx.shapes
        chunk = chunk_of(x, w, cache, stride, padding, dilation, upsample, time_padding, groups, mode=mode)
        return *_Video.gradients(ctx, chunk, dy, dafter), *(None,) * len(ctx.window)

    @staticmethod
    def gradients(ctx: Any, chunk: Chunk, dy: Maybe, dafter: Maybe) -> tuple[Maybe, ...]:
        """The gradients of x, w, b, cache and residual. They go through y and the next cache to the known frames, behind those
        that repeat the first where the call repeats it, and from there to cache and x. `chunk` has no summed taps."""
        x, cache, w = ctx.saved_tensors
        needs_x, needs_w, needs_b, needs_cache, needs_residual, *_ = ctx.needs_input_grad
        needs_line = needs_x or needs_cache
        front = chunk.front if chunk.replicate else 0
        dx = dw = db = dcache = dline = None
        if dy is not None and not dy.numel():  # without a result the gradients are zeros, as torch's are
            batch, channels, *_ = chunk.next_shape
            if needs_line:
                dline = dy.new_zeros((batch, channels, front + chunk.known, *chunk.frame))
            dw = dy.new_zeros(ctx.shapes[1]) if needs_w else None
            db = dy.new_zeros(ctx.shapes[1][:1]) if needs_b else None
        elif dy is not None:
            problem = chunk.differentiated
            place = problem.stride, flat(problem.padding), problem.dilation, problem.groups
            line = padded(chunk, magnified(chunk, _line(chunk, x, cache))) if needs_w else None
            of_line, of_weight = ("dgrad", dy, w, problem.input_size, *place), ("wgrad", dy, line, problem.kernel_size, *place)
            dline, dw = gradients_of(needs_line, needs_w, of_line, of_weight)
            if dline is not None:
                dline = folded(chunk, dline)
                if chunk.upsample > 1:
                    pairs = (*dline.shape[:3], chunk.frame[0], chunk.upsample, chunk.frame[1], chunk.upsample)
                    dline = dline.reshape(pairs).sum((4, 6))
            db = _bias_gradient(dy) if needs_b else None
        if dafter is not None and needs_line:
            dkept = F.pad(dafter, (0, 0, 0, 0, front + chunk.known - chunk.kept, 0))  # padding frames are cut off
            dline = dkept if dline is None else dline + dkept
        if dline is not None:
            if front:
                made, dline = dline[:, :, :front], dline[:, :, front:]
                dline = torch.cat([dline[:, :, :1] + made.sum(2, keepdim=True), dline[:, :, 1:]], 2)
            if ctx.shapes[2] is not None:
                dcache, dline = dline[:, :, : chunk.cached] if needs_cache else None, dline[:, :, chunk.cached :]
            dx = dline if needs_x else None
        return dx, dw, db, dcache, dy if needs_residual else None


def _line(chunk: Chunk, x: torch.Tensor, cache: Maybe) -> torch.Tensor:
    """The frames whose convolution `Chunk.differentiated` is, before they are magnified."""
    if chunk.replicate:
        return known_frames(chunk, x, cache)
    return x if cache is None else torch.cat([cache, x], 2)


def _video(
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
    *after: Any,
) -> Any:
    window = stride, padding, dilation, upsample, time_padding, keeps, plan
    given: list[Any] = [*after, *_DEFAULTS[len(after) :]]
    scale, shift, rstd, activation, slope, residual, *last = given
    if scale is None and shift is None and rstd is None and not activation:
        return _Video.apply(x, w, b, cache, residual, *window, *last)
    tensors = x, w, b, cache, scale, shift, rstd, residual
    if not private.transforms_are_active() and not private.is_differentiated_forwards() and not recipes.records(*tensors):
        return _below_autograd(_OPS.video, x, w, b, cache, *window, scale, shift, rstd, activation, slope, *given[5:])
    x = _OPS.normalize(x, scale, shift, rstd, activation, slope)
    window = (*window[:-1], plan.replace(":apart", ""))
    return _Video.apply(x, w, b, cache, residual, *window, *last)


_DEFAULTS = (None, None, None, "", 0.01, None, 1, False, "zeros")


def _cast(op: Any, device: str) -> Callable[..., Any]:
    """Autocast of the tensors but for scale, shift and rstd, which are not rounded to 16 bits."""
    cast = _autocast(op, device)

    def call(*args: Any) -> Any:
        if len(args) <= 11 or all(t is None for t in args[11:14]):
            return cast(*args)
        values = tuple(widened(t) if isinstance(t, torch.Tensor) else t for t in args[11:14])
        return _autocast(lambda *others: op(*others[:11], *values, *others[11:]), device)(*args[:11], *args[14:])

    return call


LIBRARY.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
LIBRARY.impl("video", _by(launch.forward), "CUDA")
LIBRARY.impl("video", _by(either(launch.forward, cpu.forward)), "CPU")
LIBRARY.impl("video", _video, "Autograd")
torch.library.register_fake("tritonconv::video", _by(_fake), lib=LIBRARY)
register_flop_formula(_OPS.video)(_flops)
for _device in ("cuda", "cpu"):
    LIBRARY.impl("video", _cast(_OPS.video.default, _device), f"Autocast{_device.upper()}")
