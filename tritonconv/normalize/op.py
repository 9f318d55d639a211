"""The library ops of prologues: `normalize` applies one, `group_scale` and `rms_rstd` take the statistics of x.

    normalize(x, scale [N or 1, T or 1, C], shift, rstd [N, T, H, W], activation, slope) -> act(x * rstd * scale + shift)
    group_scale(x, w, b, groups, eps, per_frame) -> (scale [N, 1 or T, C], shift)
    rms_rstd(x, eps) -> [N, T, H, W]

CUDA tensors run Triton kernels. CPU tensors run them where Triton's interpreter is on, otherwise torch. Gradients are made of
torch's operators, so they exist to any order, in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tritonconv import operands, private
from tritonconv.autograd import _below_autograd, _Primitive, added
from tritonconv.epilogue import ACTIVATIONS, needs_z, widened
from tritonconv.host import either
from tritonconv.layout import allocate_channels_last
from tritonconv.normalize import launch
from tritonconv.normalize.check import statistics_dtype
from tritonconv.normalize.launch import Values
from tritonconv.op import LIBRARY

Maybe = torch.Tensor | None
_OPS = torch.ops.tritonconv
_SCHEMAS = {
    "normalize": "(Tensor x, Tensor? scale, Tensor? shift, Tensor? rstd, str activation='', float slope=0.01) -> Tensor",
    "group_scale": "(Tensor x, Tensor? w, Tensor? b, SymInt groups, float eps, bool per_frame) -> (Tensor, Tensor)",
    "rms_rstd": "(Tensor x, float eps) -> Tensor",
}


# ---- by torch's operators -----------------------------------------------------------------------------------------------


def over_pixels(values: torch.Tensor) -> torch.Tensor:
    """values [N or 1, T or 1, C] so that they broadcast against x [N, C, T, H, W]."""
    n, t, c = values.shape
    return values.reshape(n, c, 1, 1, 1) if t == 1 else values.transpose(1, 2).unsqueeze(-1).unsqueeze(-1)


def over_channels(rstd: torch.Tensor) -> torch.Tensor:
    """rstd [N, T, H, W] likewise."""
    return rstd.unsqueeze(1)


def _times(x: torch.Tensor, factor: Maybe, over: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """x times a factor that `over` broadcasts; x where there is none."""
    return x if factor is None else x * over(factor)


def _sums(x: torch.Tensor, values: Values) -> torch.Tensor:
    """x * rstd * scale + shift in the precision of sums."""
    z = _times(_times(widened(x), values.rstd, over_channels), values.scale, over_pixels)
    return z if values.shift is None else z + over_pixels(values.shift)


def by_torch(x: torch.Tensor, values: Values) -> torch.Tensor:
    """What `launch.apply` computes, for CPU tensors outside of the interpreter."""
    z = _sums(x, values)
    y = ACTIVATIONS[values.activation].forward(z, values.slope) if values.activation else z
    return allocate_channels_last(x.shape, x).copy_(y)


def _grouped(x: torch.Tensor, groups: int, per_frame: bool) -> torch.Tensor:
    """x in the precision of sums as [N, 1 or T, groups, values of a group]."""
    n, c, t, *size = x.shape
    if per_frame:
        return widened(x).transpose(1, 2).reshape(n, t, groups, c // groups * size[0] * size[1])
    return widened(x).reshape(n, 1, groups, c // groups * t * size[0] * size[1])


def _moments(x: torch.Tensor, groups: int, eps: float, per_frame: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, rstd) of each group [N, 1 or T, groups, 1]."""
    variance, mean = torch.var_mean(_grouped(x, groups, per_frame), -1, correction=0, keepdim=True)
    return mean, (variance + eps).rsqrt()


def _scale(x: torch.Tensor, w: Maybe, b: Maybe, groups: int, eps: float, per_frame: bool) -> tuple[torch.Tensor, torch.Tensor]:
    mean, rstd = _moments(x, groups, eps, per_frame)
    per_group = (*mean.shape[:3], x.shape[1] // groups)
    scale, mean = (t.expand(per_group).flatten(2) for t in (rstd, mean))
    scale = scale.clone() if w is None else scale * widened(w)
    shift = -mean * scale
    return scale, shift if b is None else shift + widened(b)


def _rstd(x: torch.Tensor, eps: float) -> torch.Tensor:
    return (widened(x).square().mean(1) + eps).rsqrt()


# ---- checks, fake tensors -----------------------------------------------------------------------------------------------


def _beside(op: str, x: torch.Tensor, name: str, value: torch.Tensor) -> None:
    if value.device != x.device:
        raise RuntimeError(
            f"tritonconv::{op}: all tensors must be on the same device, got x on {x.device} and {name} on {value.device}"
        )


def checked(op: str, x: torch.Tensor, values: Values) -> None:
    """Raises RuntimeError or ValueError where a prologue does not fit x."""
    operands.axes(op, "x", x, 5)
    n, c, t, *size = x.shape
    wide = {x.dtype, statistics_dtype(x.dtype)}
    for name, value in (("scale", values.scale), ("shift", values.shift), ("rstd", values.rstd)):
        if value is None:
            continue
        if name == "rstd":
            operands.shaped(op, name, value, n, t, *size)
        elif value.dim() != 3 or value.shape[2] != c or value.shape[0] not in (1, n) or value.shape[1] not in (1, t):
            raise RuntimeError(
                f"tritonconv::{op}: expected {name} of shape [{n} or 1, {t} or 1, {c}], got {name} {list(value.shape)}"
            )
        if value.dtype not in wide:
            names = " or ".join(sorted(map(str, wide)))
            raise RuntimeError(f"tritonconv::{op}: expected {name} of {names}, got {value.dtype}")
        _beside(op, x, name, value)
    operands.word(op, "activation", values.activation, ACTIVATIONS)


def _group_checked(x: torch.Tensor, w: Maybe, b: Maybe, groups: Any) -> None:
    operands.axes("group_scale", "x", x, 5)
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise RuntimeError(f"tritonconv::group_scale: groups must divide the {channels} channels of x, got groups={groups}")
    for name, value in (("w", w), ("b", b)):
        operands.shaped("group_scale", name, value, channels)
        if value is not None:
            _beside("group_scale", x, name, value)


def _normalize_by(where: Callable[[torch.Tensor, Values], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(
        x: torch.Tensor, scale: Maybe, shift: Maybe, rstd: Maybe, activation: str = "", slope: float = 0.01
    ) -> torch.Tensor:
        values = Values(scale, shift, rstd, activation, slope)
        checked("normalize", x, values)
        return where(x, values)

    return call


def _group_by(where: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def call(x: torch.Tensor, w: Maybe, b: Maybe, groups: int, eps: float, per_frame: bool) -> Any:
        _group_checked(x, w, b, groups)
        return where(x, w, b, groups, eps, per_frame)

    return call


def _rms_by(where: Callable[[torch.Tensor, float], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(x: torch.Tensor, eps: float) -> torch.Tensor:
        operands.axes("rms_rstd", "x", x, 5)
        return where(x, eps)

    return call


def _fake_group(x: torch.Tensor, w: Maybe, b: Maybe, groups: int, eps: float, per_frame: bool) -> Any:
    n, c, t, *_ = x.shape
    shape = (n, t if per_frame else 1, c)
    return tuple(x.new_empty(shape, dtype=statistics_dtype(x.dtype)) for _ in range(2))


def _fake_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    n, _, *size = x.shape
    return x.new_empty((n, *size), dtype=statistics_dtype(x.dtype))


# ---- gradients ----------------------------------------------------------------------------------------------------------


def _like(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A gradient with the shape and dtype of `like`: it is summed along the axes where `like` was broadcast."""
    return gradient.sum_to_size(like.shape).to(like.dtype)


def _through_activation(dz: torch.Tensor, z: torch.Tensor, values: Values) -> torch.Tensor:
    """dz times the activation's derivative at z: a gradient's way back, a tangent's way on."""
    function = ACTIVATIONS[values.activation]
    return function.backward(
        dz, z if needs_z(values.activation, values.slope) else function.forward(z, values.slope), values.slope
    )


class _Normalize(_Primitive):
    """y = act(z), z = x * rstd * scale + shift. The backward pass computes z anew from x."""

    @staticmethod
    def forward(x: Any, scale: Any, shift: Any, rstd: Any, activation: str, slope: float) -> torch.Tensor:
        return _below_autograd(_OPS.normalize, x, scale, shift, rstd, activation, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.activation, ctx.slope = inputs
        ctx.save_for_forward(*tensors)
        ctx.save_for_backward(*tensors)

    @classmethod
    def tangents(
        cls, ctx: Any, saved: tuple[Any, ...], tx: Maybe, tscale: Maybe, tshift: Maybe, trstd: Maybe, *_: Any
    ) -> torch.Tensor:
        """ty = act'(z) tz, tz = (tx * rstd + x * trstd) * scale + x * rstd * tscale + tshift."""
        x, scale, shift, rstd = saved
        wide = widened(x)
        tread = None if tx is None else _times(widened(tx), rstd, over_channels)
        tread = added(tread, None if trstd is None else wide * over_channels(trstd))
        tz = None if tread is None else _times(tread, scale, over_pixels)
        tz = added(tz, None if tscale is None else _times(wide, rstd, over_channels) * over_pixels(tscale))
        tz = added(tz, None if tshift is None else over_pixels(tshift))
        values = Values(scale, shift, rstd, ctx.activation, ctx.slope)
        tz = torch.zeros_like(wide) if tz is None else tz.expand(x.shape)
        return (_through_activation(tz, _sums(x, values), values) if ctx.activation else tz).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return *_Normalize.gradients(ctx, g), None, None

    @staticmethod
    def gradients(ctx: Any, g: torch.Tensor) -> tuple[Maybe, ...]:
        """The gradients of x, scale, shift and rstd."""
        x, scale, shift, rstd = ctx.saved_tensors
        needs_x, needs_scale, needs_shift, needs_rstd, *_ = ctx.needs_input_grad
        dz, wide = widened(g), widened(x)
        pixels = None if rstd is None else over_channels(rstd)
        factor = None if scale is None else over_pixels(scale)
        read = wide if pixels is None else wide * pixels
        if ctx.activation:
            z = read if factor is None else read * factor
            z = z if shift is None else z + over_pixels(shift)
            dz = _through_activation(dz, z, Values(activation=ctx.activation, slope=ctx.slope))
        dx = dscale = dshift = drstd = None
        if needs_x or (rstd is not None and needs_rstd):
            scaled = dz if factor is None else dz * factor
            dx = (scaled if pixels is None else scaled * pixels).to(x.dtype) if needs_x else None
            if rstd is not None and needs_rstd:
                drstd = (scaled * wide).sum(1).to(rstd.dtype)
        if scale is not None and needs_scale:
            dscale = _like((dz * read).sum((3, 4)).transpose(1, 2), scale)
        if shift is not None and needs_shift:
            dshift = _like(dz.sum((3, 4)).transpose(1, 2), shift)
        return dx, dscale, dshift, drstd


def _normalize(x: Any, scale: Any, shift: Any, rstd: Any, activation: str = "", slope: float = 0.01) -> Any:
    return _Normalize.apply(x, scale, shift, rstd, activation, slope)


class _GroupScale(_Primitive):
    """scale = w * rstd, shift = b - mean * scale. Of the M values x of a group, dmean/dx = 1 / M and
    drstd/dx = -rstd^3 (x - mean) / M."""

    @staticmethod
    def forward(x: Any, w: Any, b: Any, groups: int, eps: float, per_frame: bool) -> Any:
        return _below_autograd(_OPS.group_scale, x, w, b, groups, eps, per_frame)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, b, *ctx.how = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(x, w)
        ctx.save_for_backward(x, w, b)

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], tx: Maybe, tw: Maybe, tb: Maybe, *_: Any) -> Any:
        """tscale = tw * rstd + w * trstd, tshift = tb - tmean * scale - mean * tscale."""
        x, w = saved
        groups, eps, per_frame = ctx.how
        mean, rstd = _moments(x, groups, eps, per_frame)
        weight = torch.ones_like(mean) if w is None else widened(w).view(groups, -1)
        tscale, tshift = torch.zeros_like(rstd * weight), torch.zeros_like(rstd * weight)
        if tx is not None:
            values, moved = _grouped(x, groups, per_frame), _grouped(tx, groups, per_frame)
            trstd = -rstd.pow(3) * ((values - mean) * moved).mean(-1, keepdim=True)
            tscale = tscale + weight * trstd
            tshift = tshift - moved.mean(-1, keepdim=True) * (weight * rstd)
        if tw is not None:
            tscale = tscale + widened(tw).view(groups, -1) * rstd
        tshift = tshift - mean * tscale
        if tb is not None:
            tshift = tshift + widened(tb).view(groups, -1)
        channels = (*mean.shape[:3], x.shape[1] // groups)
        return tuple(t.expand(channels).flatten(2) for t in (tscale, tshift))

    @staticmethod
    def backward(ctx: Any, dscale: Maybe, dshift: Maybe) -> Any:
        return *_GroupScale.gradients(ctx, dscale, dshift), *(None,) * 3

    @staticmethod
    def gradients(ctx: Any, dscale: Maybe, dshift: Maybe) -> tuple[Maybe, Maybe, Maybe]:
        """The gradients of x, w and b. Channels are [N, groups, channels of a group, T or 1, 1, 1] here."""
        if dscale is None and dshift is None:
            return None, None, None
        x, w, b = ctx.saved_tensors
        groups, eps, per_frame = ctx.how
        needs_x, needs_w, needs_b, *_ = ctx.needs_input_grad
        values = widened(x).unflatten(1, (groups, x.shape[1] // groups))
        axes = (2, 4, 5) if per_frame else (2, 3, 4, 5)
        variance, mean = torch.var_mean(values, axes, correction=0, keepdim=True)
        rstd = (variance + eps).rsqrt()

        def by_group(gradient: torch.Tensor) -> torch.Tensor:
            n, t, c = gradient.shape
            return gradient.transpose(1, 2).reshape(n, groups, c // groups, t, 1, 1)

        of_shift = None if dshift is None else by_group(dshift)
        through = None if dscale is None else by_group(dscale)  # of w * rstd
        if of_shift is not None:
            through = -of_shift * mean if through is None else torch.addcmul(through, of_shift, mean, value=-1)
        assert through is not None
        dx = dw = db = None
        if needs_x:
            share = 1 / math.prod(values.shape[axis] for axis in axes)
            weight = None if w is None else widened(w).view(groups, -1, 1, 1, 1)
            drstd = (through if weight is None else through * weight).sum(2, keepdim=True) * rstd.pow(3)
            if of_shift is None:
                dvalues = (values - mean) * (drstd * -share)
            else:
                dmean = (of_shift if weight is None else of_shift * weight).sum(2, keepdim=True) * rstd * -share
                dvalues = torch.addcmul(dmean, values - mean, drstd, value=-share)
            dx = dvalues.flatten(1, 2).to(x.dtype)
        if w is not None and needs_w:
            dw = (through * rstd).sum((0, 3, 4, 5)).flatten().to(w.dtype)
        if b is not None and needs_b and dshift is not None:
            db = dshift.sum((0, 1)).to(b.dtype)
        return dx, dw, db


class _RmsRstd(_Primitive):
    """rstd = (mean of x^2 + eps)^(-1/2), so drstd/dx = -rstd^3 x / C."""

    @staticmethod
    def forward(x: Any, eps: float) -> torch.Tensor:
        return _below_autograd(_OPS.rms_rstd, x, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, _ = inputs
        ctx.save_for_forward(x, output)
        ctx.save_for_backward(x, output)

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], tx: torch.Tensor, *_: Any) -> torch.Tensor:
        """trstd = -rstd^3 * mean of x * tx."""
        x, rstd = saved
        return -rstd.pow(3) * (widened(x) * widened(tx)).mean(1)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return _RmsRstd.gradient(ctx, g), None

    @staticmethod
    def gradient(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        """The gradient of x."""
        x, rstd = ctx.saved_tensors
        return (over_channels(g * rstd.pow(3) * (-1 / x.shape[1])) * widened(x)).to(x.dtype)


def _autocast(op: Any, device: str) -> Callable[..., Any]:
    """Autocast of x; tensors of another dtype beside it become those of sums, because statistics are not rounded to 16 bits."""
    off = private.autocast_keys(device)

    def call(x: torch.Tensor, *rest: Any) -> Any:
        if x.is_floating_point() and x.dtype != torch.float64 and x.device.type == device:
            x = x.to(torch.get_autocast_dtype(device))
        with private.without(off):
            return op(x, *(widened(t) if isinstance(t, torch.Tensor) and t.dtype != x.dtype else t for t in rest))

    return call


_BY = {
    "normalize": (_normalize_by(launch.apply), _normalize_by(by_torch)),
    "group_scale": (_group_by(launch.group_scale), _group_by(_scale)),
    "rms_rstd": (_rms_by(launch.rms_rstd), _rms_by(_rstd)),
}
_FAKE = {
    "normalize": _normalize_by(lambda x, values: allocate_channels_last(x.shape, x)),
    "group_scale": _group_by(_fake_group),
    "rms_rstd": _rms_by(_fake_rms),
}
_GRADIENTS = {"normalize": _normalize, "group_scale": _GroupScale.apply, "rms_rstd": _RmsRstd.apply}
for _name, _schema in _SCHEMAS.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    _kernel, _torch = _BY[_name]
    LIBRARY.impl(_name, _kernel, "CUDA")
    LIBRARY.impl(_name, either(_kernel, _torch), "CPU")
    LIBRARY.impl(_name, _GRADIENTS[_name], "Autograd")
    torch.library.register_fake(f"tritonconv::{_name}", _FAKE[_name], lib=LIBRARY)
    for _device in ("cuda", "cpu"):
        LIBRARY.impl(_name, _autocast(getattr(_OPS, _name).default, _device), f"Autocast{_device.upper()}")
