"""How the engine's functions become machine code: Numba routines that call each other by symbol, and raw memory.

A routine is a C function that Numba compiles on its own. Another routine calls it by its symbol, so that LLVM never
compiles a callee a second time inside its callers: the whole engine compiles in seconds. Numba keeps routines in a cache,
but by itself it notices changes of a function's own file only. So the folder is named by a hash of that file and of all that
it imports of this package, of Numba's version and of this machine's instruction set: no stale machine code is ever loaded.

    @routine("int64(S, int64)")
    def double(state, x):
        return 2 * x

In signatures `S` is the engine's state, a pointer to int64 (`bench.executor.layout` names its words).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding, ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

HERE = Path(__file__).parent
STATE = types.CPointer(types.int64)

#: Every routine by its name: the address of its machine code.
ROUTINES: dict[str, int] = {}
_KEPT: list[Any] = []


@cache
def cache_root() -> Path:
    """Where machine code is kept: in `$XDG_CACHE_HOME` or `~/.cache`; a folder of this process where that cannot be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritonconv-executor"
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tritonconv-executor-"))
    return root


@cache
def sources_of(path: Path) -> frozenset[Path]:
    """A file and the files of this package that it imports, directly or not."""
    files, todo = set(), [path]
    while todo:
        source = todo.pop()
        if source in files or not source.is_file():
            continue
        files.add(source)
        text = source.read_text()
        for name in re.findall(r"^from bench\.executor\.([\w.]+) import", text, re.M):
            todo.append(HERE / (name.replace(".", "/") + ".py"))
        for package, names in re.findall(r"^from bench\.executor(\.engine)? import ([\w, ]+)", text, re.M):
            todo += [HERE / package.strip(".") / f"{name.split(' as ')[0].strip()}.py" for name in names.split(",")]
    return frozenset(files)


@cache
def cache_folder(path: Path) -> Path:
    """Where the routines of a file are kept, as long as nothing that shapes them changes."""
    digest = hashlib.sha256()
    for source in sorted(sources_of(path)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for text in (
        numba.__version__,
        llvmlite.__version__,
        binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
    ):
        digest.update(text.encode() + b"\0")
    return cache_root() / digest.hexdigest()[:16]


def _compile(function: Callable[..., Any], signature: Any) -> Any:
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder(Path(function.__code__.co_filename)))
    try:
        return cfunc(signature, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = previous


def routine(text: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for the signature and let other routines call it by symbol."""
    names = {"S": STATE, "int64": types.int64}

    def wrap(function: Callable[..., Any]) -> Any:
        signature = eval(text, {}, names)
        compiled = _compile(function, signature)
        symbol = f"tritonconv_executor_{function.__name__}"
        binding.add_symbol(symbol, compiled.address)
        ROUTINES[function.__name__] = compiled.address
        _KEPT.append(compiled)
        return types.ExternalFunction(symbol, signature)

    return wrap


#: A small function that is compiled into each routine that calls it.
inline = register_jitable(error_model="numpy")


def entry(name: str) -> Callable[[int], int]:
    """A routine of the state alone as a Python function of the state's address."""
    call: Callable[[int], int] = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(ROUTINES[name])
    return call


def _pointer(element: Any) -> Any:
    @intrinsic
    def cast(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), generate

    return cast


#: Addresses as pointers: `u32(address)[k]` is the k-th word from there on. No bounds, no negative indices.
u8 = _pointer(types.uint8)
u16 = _pointer(types.uint16)
u32 = _pointer(types.uint32)
i32 = _pointer(types.int32)
i64 = _pointer(types.int64)
f32 = _pointer(types.float32)
f64 = _pointer(types.float64)


@intrinsic
def popcount(typing_context, value):  # type: ignore[no-untyped-def]
    """How many bits are set."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


@intrinsic
def lowest(typing_context, value):  # type: ignore[no-untyped-def]
    """The position of the lowest bit that is set, 64 for none."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


def _memory(name: str) -> Any:
    @intrinsic
    def act(typing_context, target, source, size):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            byte = ir.IntType(8).as_pointer()
            function_type = ir.FunctionType(byte, [byte, byte if name == "memcpy" else ir.IntType(32), ir.IntType(64)])
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            second = builder.inttoptr(arguments[1], byte) if name == "memcpy" else builder.trunc(arguments[1], ir.IntType(32))
            builder.call(function, [builder.inttoptr(arguments[0], byte), second, arguments[2]])
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, types.int64), generate

    return act


#: `copy(to, from, size)` and `fill(to, byte, size)` of bytes at addresses.
copy = _memory("memcpy")
fill = _memory("memset")
