"""The library ops tritonconv::fprop, dgrad and wgrad: schemas, kernels per device, fake tensors, autocast, FLOP formulas.

`fprop_fused` and `dgrad_fused` add an epilogue and return (y, z). z is the value before the activation; it has y's shape where
`keep` or a gradient needs it, and otherwise no elements. `activation` is "" for none.
`padding` is flat, (low, high) per axis, and where it holds other values than zeros on some axis the number of each axis's mode
in `costmodel.shapes.MODES` follows. `plan` is "" or forced plans, `str(plan)` joined by ";". Gradients: `autograd`.
CUDA tensors run Triton kernels. CPU tensors run the same kernels where Triton's interpreter is on, else torch's convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch.utils.flop_counter import register_flop_formula

from costmodel.problem import ConvProblem, Pass
from costmodel.shapes import MODES, ends_and_modes, mode_words
from tritonconv import cpu, host, invariant, launch, operands, private, where, workspace
from tritonconv.epilogue import ACTIVATIONS, Epilogue, by_torch, widened
from tritonconv.layout import allocate

LIBRARY = torch.library.Library("tritonconv", "DEF")
_PLACE = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
_WINDOW = f"{_PLACE}, str plan=''"
_EPILOGUE = (
    "Tensor? scale=None, Tensor? shift=None, Tensor? residual=None, str activation='', float slope=0.01, bool keep=False"
)
_SCHEMAS = (
    f"fprop(Tensor x, Tensor w, Tensor? b, {_WINDOW}) -> Tensor",
    f"dgrad(Tensor dy, Tensor w, Tensor? b, SymInt[] input_size, {_WINDOW}) -> Tensor",
    f"wgrad(Tensor dy, Tensor x, SymInt[] kernel_size, {_WINDOW}) -> Tensor",
    f"fprop_fused(Tensor x, Tensor w, Tensor? b, {_PLACE}, {_EPILOGUE}, str plan='') -> (Tensor, Tensor)",
    f"dgrad_fused(Tensor dy, Tensor w, Tensor? b, SymInt[] input_size, {_PLACE}, {_EPILOGUE}, str plan='') -> (Tensor, Tensor)",
)

Ints = Sequence[int]


def pairs(padding: Ints) -> tuple[tuple[int, int], ...]:
    """Flat (low, high) paddings as pairs."""
    return tuple(zip(padding[::2], padding[1::2], strict=True))


def flat(padding: Sequence[tuple[int, int]], modes: Sequence[str] = ()) -> list[int]:
    """Paddings, and the modes of a problem's `padding_mode`, as a flat list, as the ops take them."""
    return [*(p for pair in padding for p in pair), *map(MODES.index, modes)]


# ---- the problem of an op's arguments; a and b are shapes ---------------------------------------------------------------


def _rank(op: str, a: Ints, b: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> int:
    """The rank that two tensors and a window agree on. Raises RuntimeError, in words, where they do not agree."""
    if len(a) != len(b) or not 3 <= len(a) <= 5:
        raise RuntimeError(f"tritonconv::{op}: expected two tensors of as many axes, 3 to 5, got {list(a)} and {list(b)}")
    operands.window(op, len(a) - 2, stride, padding, dilation, groups, len(MODES))
    return len(a) - 2


def _conv(
    op: str, x: Ints, w: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int, dy: Ints | None = None
) -> ConvProblem:
    """The problem of an op's x and w. Raises RuntimeError where they do not go together, and dy, if given, with them."""
    ends, modes = ends_and_modes(padding, len(stride))
    return _checked(op, ConvProblem.conv(x, w, stride, ends, dilation, groups, padding_mode=modes), x, w, dy)


def _checked(op: str, problem: ConvProblem, x: Ints, w: Ints, dy: Ints | None) -> ConvProblem:
    groups = problem.groups
    if x[1] != w[1] * groups or w[0] % groups:
        raise RuntimeError(f"tritonconv::{op}: channels do not match: x {list(x)}, w {list(w)}, groups {groups}")
    if dy is not None and tuple(dy) != problem.output_shape:
        raise RuntimeError(f"tritonconv::{op}: dy has shape {list(dy)}, the convolution's output {list(problem.output_shape)}")
    if dy is None:
        operands.covered(op, problem)
    return problem.with_steps_in_reach()


def _fprop_problem(x: Ints, w: Ints, b: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> ConvProblem:
    rank = _rank("fprop", x, w, stride, padding, dilation, groups)
    operands.sizes("fprop", "the kernel's size", w[2:], rank, 1)
    return _conv("fprop", x, w, stride, padding, dilation, groups)


def _dgrad_problem(
    dy: Ints, w: Ints, b: Any, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> ConvProblem:
    rank = _rank("dgrad", dy, w, stride, padding, dilation, groups)
    operands.sizes("dgrad", "input_size", input_size, rank, 0)
    operands.sizes("dgrad", "the kernel's size", w[2:], rank, 1)
    x = (dy[0], w[1] * groups, *input_size)
    return _conv("dgrad", x, w, stride, padding, dilation, groups, dy)


def _wgrad_problem(
    dy: Ints, x: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> ConvProblem:
    rank = _rank("wgrad", dy, x, stride, padding, dilation, groups)
    operands.sizes("wgrad", "kernel_size", kernel_size, rank, 1)
    w = (dy[1], x[1] // groups, *kernel_size)
    return _conv("wgrad", x, w, stride, padding, dilation, groups, dy)


class _Primitive(NamedTuple):
    name: str
    problem: Callable[..., ConvProblem]  # takes the op's arguments up to groups, with shapes in place of the two tensors
    arguments: int  # how many arguments `problem` takes
    has_bias: bool
    result: str  # the attribute of the problem that is the shape of the op's result
    kernel: Callable[..., torch.Tensor]
    torch: Callable[..., torch.Tensor]


_PRIMITIVES = {
    "fprop": _Primitive("fprop", _fprop_problem, 7, True, "output_shape", launch.fprop, cpu.fprop),
    "dgrad": _Primitive("dgrad", _dgrad_problem, 8, True, "input_shape", launch.dgrad, cpu.dgrad),
    "wgrad": _Primitive("wgrad", _wgrad_problem, 7, False, "weight_shape", launch.wgrad, cpu.wgrad),
}


@functools.lru_cache(maxsize=4096)
def _known_problem(name: str, *arguments: Any) -> ConvProblem:
    """The problem of an op's arguments up to groups, without the bias. It is checked once, because it depends on numbers
    only."""
    primitive = _PRIMITIVES[name]
    a, b, *place = arguments
    return primitive.problem(a, b, *(None,) * primitive.has_bias, *place)


def known_problem(name: str, a: torch.Tensor, b: torch.Tensor, window: tuple[Any, ...]) -> ConvProblem:
    """The problem of a call of the op `name` that was made; `window` are its arguments from the first list up to groups."""
    *sizes, groups = window
    return _known_problem(name, a.shape, b.shape, *map(tuple, sizes), groups)


def _problem(primitive: _Primitive, a: torch.Tensor, b: torch.Tensor, rest: Sequence[Any]) -> ConvProblem:
    """The problem of an op's arguments. Raises RuntimeError where they do not fit together."""
    operands.alike(primitive.name, a, b, *rest[: primitive.has_bias], *rest[primitive.arguments - 2 :])
    *sizes, groups = rest[primitive.has_bias : primitive.arguments - 2]
    make = _known_problem.__wrapped__ if isinstance(a, private.FakeTensor) else _known_problem  # symbols cannot be hashed
    problem = make(primitive.name, a.shape, b.shape, *map(tuple, sizes), groups)
    if primitive.has_bias:
        operands.shaped(primitive.name, "b", rest[0], getattr(problem, primitive.result)[1])
    return problem


def _by_kernel(primitive: _Primitive) -> Callable[..., torch.Tensor]:
    which = Pass(primitive.name)

    def call(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> torch.Tensor:
        problem = _problem(primitive, a, b, rest)
        bias = rest[: primitive.has_bias]
        alone, plan = invariant.unmarked("".join(rest[primitive.arguments - 2 :]))
        by_torch, plan = where.resolved(plan, problem, which, a)
        if by_torch:
            return primitive.torch(a, b, *bias, problem)
        if alone and which != Pass.WGRAD and problem.batch > 1 and problem.macs:
            fixed_plan = invariant.fixed(which, problem, a, b, bias[0], plan)
            if fixed_plan is None:
                single = replace(problem, batch=1)
                return cast(
                    torch.Tensor, invariant.by_image(lambda image: primitive.kernel(image, b, *bias, single, plan), (a,))
                )
            plan = fixed_plan

        def run(plan: str) -> torch.Tensor:
            return primitive.kernel(a, b, *bias, problem, plan)

        return workspace.fitting(run, which, problem, a, b, bias[0] if bias else None, plan)

    return call


def _by_torch(primitive: _Primitive) -> Callable[..., torch.Tensor]:
    def call(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> torch.Tensor:
        return primitive.torch(a, b, *rest[: primitive.has_bias], _problem(primitive, a, b, rest))

    return call


def _fake(primitive: _Primitive) -> Callable[..., torch.Tensor]:
    def call(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> torch.Tensor:
        return allocate(getattr(_problem(primitive, a, b, rest), primitive.result), a, b)

    return call


# ---- with an epilogue ---------------------------------------------------------------------------------------------------

Pair = tuple[torch.Tensor, torch.Tensor]


def _split(primitive: _Primitive, a: torch.Tensor, b: torch.Tensor, rest: Sequence[Any]) -> tuple[ConvProblem, Epilogue, str]:
    """The triple (problem, epilogue, forced plans) of a fused op's arguments, which come without trailing defaults."""
    after = rest[primitive.arguments - 2 :]
    size = len(Epilogue._fields)
    problem, epilogue = _problem(primitive, a, b, rest), Epilogue(*after[:size])
    name, shape = f"{primitive.name}_fused", getattr(problem, primitive.result)
    if problem.padding_mode and primitive.name == "dgrad":
        raise RuntimeError(
            f'tritonconv::{name}: only "zeros" padding mode is supported for a transposed convolution, got '
            f"{mode_words(problem.padding_mode)!r}"
        )
    operands.shaped(name, "scale", epilogue.scale, shape[1])
    operands.shaped(name, "shift", epilogue.shift, shape[1])
    operands.shaped(name, "residual", epilogue.residual, *shape)
    operands.word(name, "activation", epilogue.activation, ACTIVATIONS)
    return problem, epilogue, after[size] if len(after) > size else ""


def _fused_by_kernel(which: Pass, primitive: _Primitive) -> Callable[..., Pair]:
    def call(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, *rest: Any) -> Pair:
        problem, epilogue, plan = _split(primitive, a, b, (bias, *rest))
        alone, plan = invariant.unmarked(plan)
        if alone and problem.batch > 1 and problem.macs:
            fixed_plan = invariant.fixed(which, problem, a, b, bias, plan, epilogue)
            if fixed_plan is None:
                single = replace(problem, batch=1)

                def one(image: torch.Tensor, residual: torch.Tensor | None) -> Pair:
                    return launch.followed(which, single, image, b, bias, epilogue._replace(residual=residual), plan)

                y, z = invariant.by_image(one, (a, epilogue.residual))
                return y, z if epilogue.keep else z.new_empty(0)
            plan = fixed_plan

        def run(plan: str) -> Pair:
            return launch.followed(which, problem, a, b, bias, epilogue, plan)

        return workspace.fitting(run, which, problem, a, b, bias, plan, epilogue)

    return call


def _fused_by_torch(primitive: _Primitive) -> Callable[..., Pair]:
    def call(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, *rest: Any) -> Pair:
        problem, epilogue, _ = _split(primitive, a, b, (bias, *rest))
        y, z = by_torch(
            primitive.torch(widened(a), widened(b), bias if bias is None else widened(bias), problem),
            problem,
            epilogue,
            a.dtype,
        )
        return cpu.laid_out(y, a, b), cpu.laid_out(z, a, b) if z.numel() else z

    return call


def _fused_fake(primitive: _Primitive) -> Callable[..., Pair]:
    def call(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, *rest: Any) -> Pair:
        problem, epilogue, _ = _split(primitive, a, b, (bias, *rest))
        shape = getattr(problem, primitive.result)
        return allocate(shape, a, b), allocate(shape, a, b) if epilogue.keep else a.new_empty(0)

    return call


def _autocast(op: Any, device: str) -> Callable[..., torch.Tensor]:
    """Autocast as torch does it for convolutions: floating inputs, except float64, are cast to the region's dtype."""
    off = private.autocast_keys(device)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        eligible = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible and value.device.type == device else value

    def call(*args: Any) -> torch.Tensor:
        dtype = torch.get_autocast_dtype(device)
        args = tuple(cast(value, dtype) for value in args)
        with private.without(off):
            return op(*args)

    return call


def _flops(primitive: _Primitive) -> Callable[..., int]:
    """Dense FLOP (2 * MAC) without the bias, which are the same for every pass."""

    def count(a: Ints, b: Ints, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return primitive.problem(a, b, *rest[: primitive.arguments - 2]).flops

    return count


for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))


def _register(name: str, primitive: _Primitive, kernel: Any, by_torch: Any, fake: Any) -> None:
    op = getattr(torch.ops.tritonconv, name)
    LIBRARY.impl(name, kernel, "CUDA")
    LIBRARY.impl(name, host.either(kernel, by_torch), "CPU")
    torch.library.register_fake(f"tritonconv::{name}", fake, lib=LIBRARY)
    for device in ("cuda", "cpu"):
        LIBRARY.impl(name, _autocast(op.default, device), f"Autocast{device.upper()}")
    register_flop_formula(op)(_flops(primitive))


for _name, _primitive in _PRIMITIVES.items():
    _register(_name, _primitive, _by_kernel(_primitive), _by_torch(_primitive), _fake(_primitive))
for _which in (Pass.FPROP, Pass.DGRAD):
    _primitive = _PRIMITIVES[str(_which)]
    _register(
        f"{_which}_fused",
        _primitive,
        _fused_by_kernel(_which, _primitive),
        _fused_by_torch(_primitive),
        _fused_fake(_primitive),
    )
