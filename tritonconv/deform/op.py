"""The library ops of the deformable convolution: schemas, fake tensors, autocast, FLOP formulas, gradients.

    deform(x [N, C, H, W], offset [N, 2 D R S, P, Q], w [K, C / G, R, S], b, mask [N, D R S, P, Q], stride, padding, dilation,
           plan) -> y [N, K, P, Q]
    deform_backward(dy, x, offset, w, mask, stride, padding, dilation, needs) -> (dx, doffset, dw, dmask), those that `needs`
           asks for, the others of no elements

Both groups follow from the shapes. `padding` is one number an axis. The second op has no derivative, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from costmodel.deform import Deformation
from costmodel.problem import ConvProblem
from tritonconv import operands, private
from tritonconv.deform import check, cpu, launch
from tritonconv.host import either
from tritonconv.layout import allocate
from tritonconv.op import LIBRARY

Maybe = torch.Tensor | None
Ints = Sequence[Any]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
_OPS = torch.ops.tritonconv
_WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_SCHEMAS = (
    f"deform(Tensor x, Tensor offset, Tensor w, Tensor? b, Tensor? mask, {_WINDOW}, str plan='') -> Tensor",
    f"deform_backward(Tensor dy, Tensor x, Tensor offset, Tensor w, Tensor? mask, {_WINDOW}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


def _checked(
    op: str, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: Maybe, window: tuple[Ints, ...], *others: Maybe
) -> Deformation:
    """The call of an op's arguments. RuntimeError where they do not fit together."""
    operands.alike(op, x, w, *others)
    for name, tensor in (("x", x), ("offset", offset), ("w", w), ("mask", mask)):
        if tensor is not None:
            operands.axes(op, name, tensor, 4)
    for name, tensor in (("offset", offset), ("mask", mask)):
        if tensor is not None and (tensor.dtype not in (x.dtype, torch.float32) or tensor.device != x.device):
            raise RuntimeError(
                f"tritonconv::{op}: expected {name} of {x.dtype} or torch.float32 on {x.device}, got {tensor.dtype} on "
                f"{tensor.device}"
            )
    stride, padding, dilation = map(tuple, window)
    operands.window(op, 2, stride, (*padding, *padding), dilation)
    operands.sizes(op, "the weight's size", w.shape, 4, 1)
    operands.sizes(op, "the size of x, without its batch,", x.shape[1:], 3, 1)
    return check.described(x, offset, w, mask, stride, padding, dilation, f"tritonconv::{op}")


def _by(where: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(
        x: torch.Tensor,
        offset: torch.Tensor,
        w: torch.Tensor,
        b: Maybe,
        mask: Maybe,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        plan: str = "",
    ) -> torch.Tensor:
        of = _checked("deform", x, offset, w, mask, (stride, padding, dilation), b)
        operands.shaped("deform", "b", b, w.shape[0])
        return where(of, x, offset, w, b, mask, plan)

    return call


def _fake(of: Deformation, x: torch.Tensor, offset: Any, w: torch.Tensor, *_: Any) -> torch.Tensor:
    return allocate(of.problem.output_shape, x, w)


def _flops(x: Ints, offset: Ints, w: Ints, b: Any, mask: Any, *window: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOP of the product and of the interpolation; weights of pixels and bias not counted."""
    problem = ConvProblem.conv(x, w, *window[:3], x[1] // w[1])
    return Deformation(problem, offset[1] // (2 * problem.taps), mask is not None).flops


def _autocast(device: str) -> Callable[..., torch.Tensor]:
    """A convolution's tensors take the region's dtype; offset and mask, which say where and how much, keep theirs."""
    off = private.autocast_keys(device)

    def cast(value: Any) -> Any:
        eligible = value is not None and value.dtype != torch.float64 and value.device.type == device
        return value.to(torch.get_autocast_dtype(device)) if eligible else value

    def beside(value: Maybe, x: torch.Tensor) -> Maybe:
        return value if value is None or value.dtype == x.dtype else value.float()

    def call(x: Any, offset: Any, w: Any, b: Any, mask: Any, *rest: Any) -> torch.Tensor:
        x = cast(x)
        given = (x, beside(offset, x), cast(w), cast(b), beside(mask, x))
        with private.without(off):
            made: torch.Tensor = _OPS.deform(*given, *rest)
            return made

    return call


for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
LIBRARY.impl("deform", _by(launch.forward), "CUDA")
LIBRARY.impl("deform", _by(either(launch.forward, cpu.forward)), "CPU")
torch.library.register_fake("tritonconv::deform", _by(_fake), lib=LIBRARY)
register_flop_formula(_OPS.deform)(_flops)
for _device in ("cuda", "cpu"):
    LIBRARY.impl("deform", _autocast(_device), f"Autocast{_device.upper()}")
