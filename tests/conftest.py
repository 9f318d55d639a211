"""What every test shares: where the kernels run, poisoned memory, and the proof that a kernel ran.

Without a GPU the kernels run in Triton's interpreter, which must be chosen before triton is imported. Tests that
compile ahead of time (marker `aot`) or execute what was compiled (`compiled`) cannot live in such a process: run them apart,
with `pytest -m aot` (`-m compiled`) or with the environment variable TRITONCONV_TEST_AOT set.

`pytest --compiled sm_90` runs the interpreter's cases on compiled code instead: kernels are compiled for that architecture and
executed on the CPU (`bench/executor`), with the plans of a GPU of that architecture; `--compiled sm_90=h100` says which.
"""

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.utils._device

POISONED = ("empty", "empty_like", "empty_strided")
POISONED_METHODS = ("new_empty", "new_empty_strided")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compiled",
        metavar="ARCH[=DEVICE]",
        help="run kernels compiled for ARCH (sm_80, sm_90, ...) on the CPU, with the plans that DEVICE would choose (a name of "
        "costmodel.device, by default its first one of that architecture)",
    )
    parser.addoption("--compiled-record", metavar="FILE", help="where --compiled writes what ran, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    for warning in ("Using padding='same' with even kernel", "`torch.jit.script"):  # torch's own affairs
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")
    # The option, not sys.argv: a worker of pytest-xdist is given the options of its controller and an argv of its own.
    # "aot", "aot and slow", ... but not "not gpu and not aot"
    first = config.option.markexpr.replace("(", "").split()[:1]
    apart = bool(os.environ.get("TRITONCONV_TEST_AOT")) or first in (["aot"], ["compiled"])
    if asked := config.getoption("compiled"):
        execute_compiled(config, asked)
    elif not apart and not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
        if "triton" in sys.modules:
            raise pytest.UsageError("triton was imported before conftest.py could set TRITON_INTERPRET=1")
        os.environ["TRITON_INTERPRET"] = "1"


def execute_compiled(config: pytest.Config, asked: str) -> None:
    """Kernels are compiled for an architecture and executed on CPU tensors from here on. `asked` is ARCH[=DEVICE]."""
    arch, _, name = asked.partition("=")
    if not (arch.startswith("sm_") and arch[3:].isdigit()):
        raise pytest.UsageError(f"--compiled takes an architecture such as sm_90, got {arch!r}")
    if os.environ.pop("TRITON_INTERPRET", None) == "1" and "triton" in sys.modules:
        raise pytest.UsageError("--compiled needs a process without TRITON_INTERPRET=1")
    from bench.compiled.recorder import Recorder
    from bench.executor import driver
    from costmodel.device import DEVICES, find_device
    from tritonconv import host

    capability = int(arch[3:])
    try:
        first = next((d for d in DEVICES.values() if d.capability == capability), None)
        device = find_device(name) if name or first is None else first
        executor = driver.install(capability)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    host.use(device)
    record = config.getoption("compiled_record")
    config.pluginmanager.register(Recorder(executor, Path(record) if record else None), "compiled-recorder")
    torch.backends.cudnn.allow_tf32 = False  # as the interpreter computes, unless a test says otherwise


def compiled() -> bool:
    """Whether compiled code runs on CPU tensors."""
    host = sys.modules.get("tritonconv.host")
    return host is not None and host.runs_kernels() and not interpreted()


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def left_to_slow() -> list[tuple[str, str]]:
    """The rows of `slow.txt`: a test, and what the names of its cases hold."""
    lines = (Path(__file__).parent / "slow.txt").read_text().splitlines()
    rows = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return [(test, case) for test, _, case in rows]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cuda = torch.cuda.is_available()
    slow = left_to_slow()
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if any(name.partition("[")[0] == test and case in name.partition("[")[2] for test, case in slow):
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and (not cuda or interpreted()):
            item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1" if cuda else "no CUDA device"))
        elif (item.get_closest_marker("aot") or item.get_closest_marker("compiled")) and interpreted():
            item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1 forbids compiling: run pytest -m aot or -m compiled"))
        elif item.get_closest_marker("interpreter") and compiled():
            item.add_marker(pytest.mark.skip(reason="asks for Triton's interpreter, and compiled code runs here"))


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run: the GPU where there is one, else the CPU in the interpreter."""
    return "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"


@pytest.fixture(autouse=True)
def torch_flags_may_be_set() -> None:
    """torch's own test helpers, which `torch.library.opcheck` imports, forbid setting flags of its backends from then on."""
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True


@pytest.fixture(scope="session", autouse=True)
def interpreter_made_fast() -> None:
    """Four times as fast, by leaving out what Triton's interpreter does over and over. No result depends on it.

    It patches triton.language at every call of one kernel function by another; once a function is enough, since what a
    launch puts back at its end the next launch patches again itself. And it computes every integer operation a second
    time in 64 bits, but looks for the overflow only where debugging is on: `overflow_checked` turns on both.
    """
    if not interpreted():
        return
    from triton.runtime import interpreter

    patched = set()

    def call(function, *args, **kwargs):
        if function not in patched:
            interpreter._patch_lang(function.fn)
            patched.add(function)
        return function.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    _check_overflow(False)


@pytest.fixture(scope="session", autouse=True)
def masks_are_booleans() -> None:
    """A mask that the interpreter widened to integers, as it does with `block & scalar`, fails on every Triton as it does on
    3.9; `tl.where(scalar, block, False)` stays one of booleans."""
    if not interpreted():
        return
    from triton.runtime.interpreter import InterpreterBuilder

    def checked(access, place):
        def call(builder, *operands, **options):
            mask = operands[place].data
            if isinstance(mask, np.ndarray):  # a descriptor's is the interpreter's own
                assert mask.dtype == bool, "a mask of integers: Triton 3.9 takes no block & scalar"
            return access(builder, *operands, **options)

        return call

    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(InterpreterBuilder, name, checked(getattr(InterpreterBuilder, name), place))


def _check_overflow(on: bool) -> None:
    from triton.runtime import interpreter

    for option in ("sanitize_overflow", "debug"):
        object.__setattr__(interpreter.interpreter_builder.options, option, on)  # the options are frozen


@pytest.fixture
def overflow_checked(interpreter_made_fast):
    """The test fails where integer arithmetic of a kernel overflows (in the interpreter only)."""
    if not interpreted():
        yield
        return
    _check_overflow(True)
    yield
    _check_overflow(False)


# `with torch.device(...)` looks up torch's constructors once per process: here, before any of them is wrapped.
torch.utils._device._device_constructors()


def _poisoned(allocate):
    def allocate_nan(*args, **kwargs):
        out = allocate(*args, **kwargs)
        if isinstance(out, torch.Tensor) and out.dtype.is_floating_point and not torch.compiler.is_compiling():
            with torch.no_grad():
                out.fill_(float("nan"))
        return out

    return allocate_nan


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element no kernel wrote cannot pass for a right one."""
    for name in POISONED:
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in POISONED_METHODS:
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that has the table of devices read anew, calibrations included; behind the test it is as it was."""
    from costmodel.device import devices

    read = devices.__wrapped__
    return lambda: monkeypatch.setattr("costmodel.device.devices", functools.cache(read))


@pytest.fixture
def launches():
    """A function that answers the launches since the test began, by pass; see `launched` to require some."""
    from bench.launched import COUNTS

    before = Counter(COUNTS)
    return lambda: COUNTS - before


@pytest.fixture
def launched(launches):
    """As `launches`, and the test fails unless a kernel was launched in it."""
    yield launches
    assert launches(), "no kernel was launched"
