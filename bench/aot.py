"""Compile a Triton kernel for a GPU that is not there, from example arguments.

The signature comes from the code that Triton runs at a launch (its binder and `_pack_args`), so this compiles what a
launch with such arguments compiles, including tuples, NamedTuples, `None`, `do_not_specialize` and tensor descriptors.
Both functions of Triton are private; they are the same in 3.6 to 3.9.

    compile_ahead(kernel, {"x": Pointer("fp16"), "size": Size(n=64, k=17), "BLOCK": 128}, arch=90, num_warps=8)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

#: Major and minor version of the installed Triton as numbers, because as text "3.10" sorts before "3.9".
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))

Figure = TypeVar("Figure")


def since(figures: Mapping[tuple[int, ...], Figure]) -> Figure:
    """The figure of the newest Triton in `figures` that is not newer than the installed one.

    >>> since({(3, 6): 107, (3, 9): 111})  # 107 on Triton 3.6, 3.7 and 3.8
    """
    return figures[max(version for version in figures if version <= VERSION)]


@dataclass(frozen=True)
class Pointer:
    """Stands for a tensor: its element type ('fp16', 'bf16', 'fp32', torch.float16, ...) and the address of its data.

    An address divisible by 16, as torch's allocator gives, lets the kernel use wide loads. The base of a
    TensorDescriptor needs torch's types, for their size.
    """

    dtype: Any
    address: int = 0

    def data_ptr(self) -> int:
        return self.address


class Signature(NamedTuple):
    """What Triton specialises a kernel on. Paths are tuples of positions: (3, 1) is element 1 of argument 3."""

    types: dict[str, Any]  # argument -> '*fp16', 'i32', 'constexpr', or a tuple of these
    constexprs: dict[tuple[int, ...], Any]  # path -> value
    attrs: dict[tuple[int, ...], Any]  # path -> [['tt.divisibility', 16]]


def signature_of(fn: JITFunction[Any], args: Mapping[str, Any]) -> Signature:
    """How a launch of `fn` with `args` (name -> value; defaults may be left out) specialises it.

    Integers: the value 1 becomes a constant, a multiple of 16 a hint, unless the kernel says `do_not_specialize`.
    Raises TypeError for a missing or unknown argument, and for a kernel that is no JIT function (under
    TRITON_INTERPRET=1 `triton.jit` makes none).
    """
    if not isinstance(fn, JITFunction):
        raise TypeError(f"{fn!r} is no compiled kernel but {type(fn).__name__}; is TRITON_INTERPRET set?")
    if unknown := set(args) - set(fn.arg_names):
        raise TypeError(f"{fn.__name__} has no argument {', '.join(sorted(unknown))}; it has {', '.join(fn.arg_names)}")
    backend = make_backend(GPUTarget("cuda", 90, 32))  # the rules are the same for all of NVIDIA's architectures
    bind = create_function_from_signature(fn.signature, fn.params, backend)
    bound, specialization, _ = bind(**args)
    _, types, constexprs, attrs = fn._pack_args(backend, {}, bound, specialization, {})
    return Signature(types, constexprs, attrs)


def compile_ahead(
    fn: JITFunction[Any],
    args: Mapping[str, Any],
    *,
    arch: int,
    num_warps: int = 4,
    num_stages: int = 3,
    **options: Any,
) -> CompiledKernel:
    """Compile `fn` as a launch with `args` would, for compute capability `arch` (80, 90, 100).

    options: other compiler options of NVIDIA's backend (num_ctas, maxnreg, ...). Needs no GPU. Raises as `signature_of`
    and `triton.compile` do.
    """
    types, constexprs, attrs = signature_of(fn, args)
    source = ASTSource(fn, types, constexprs, attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages, **options}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
