"""A Kineto trace (what torch.profiler writes) as convolutions with their kernels. Standard library only.

Two dialects are read: that of 2021 (categories `Operator`, `Kernel`, `Runtime`; no strides, no numbers) and today's (`cpu_op`,
`kernel`, `cuda_runtime`). A kernel belongs to the operator whose external id it carries. Without such an id its correlation
names the runtime call that launched it, and it belongs to the operator that was running then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodel.compare.events import Reader
from costmodel.compare.geometry import Call, is_convolution, read

RECORD = (
    "record it like this: with torch.profiler.profile(record_shapes=True) as p: model(x); torch.cuda.synchronize() "
    '-- and then p.export_chrome_trace("trace.json")'
)
_OPERATORS, _KERNELS = ("cpu_op", "operator"), ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset")
_RUNTIME = ("cuda_runtime", "cuda_driver", "runtime")
_SHAPES = ("Input Dims", "Input dims")


@dataclass(eq=False)
class Operator:
    """An operator on the host, in microseconds; `parent` is the operator around it."""

    name: str
    start: float
    end: float
    thread: tuple[Any, Any]
    arguments: dict[str, Any]
    parent: Operator | None = None

    def chain(self) -> Iterator[Operator]:
        """This operator, the one around it, and so on."""
        at: Operator | None = self
        while at is not None:
            yield at
            at = at.parent

    def call(self) -> Call | None:
        a = self.arguments
        dims: list[Any] = next((a[name] for name in _SHAPES if name in a), [])
        return read(self.name, dims, a.get("Input Strides", []), a.get("Input type", []), a.get("Concrete Inputs", []))


@dataclass(eq=False)
class Kernel:
    name: str
    start: float
    duration: float
    operator: Operator | None
    step: int


@dataclass(eq=False)
class Instance:
    """One call of a convolution, forward or backward: its outermost operator, what is known about it, and its kernels."""

    operator: Operator
    call: Call
    kernels: list[Kernel] = field(default_factory=list)
    inner: dict[int, Operator] = field(default_factory=dict)  # by kernel: the operator that launched it


@dataclass
class Trace:
    """A trace. `steps`: the number of the profiler's steps that have kernels, at least 1. `device`: the GPU's name in the
    trace, or ""."""

    path: Path
    device: str
    kernels: list[Kernel]
    convolutions: list[Instance]
    steps: int
    dialect: str
    notes: list[str]


def load(path: Path) -> Trace:
    """The trace in a file. Raises ValueError where shapes or kernels are missing, where only a CPU or an AMD part was recorded,
    or where the times are not a GPU's. The message says how to record a trace that can be read."""
    reader, operators, launches, raw, steps = Reader(path), [], {}, [], []
    dialect = "2.x"
    for event in reader:
        category = str(event.get("cat", ""))
        lowered = category.lower()
        if event.get("ph") != "X" and lowered not in _KERNELS:
            continue
        if lowered in _OPERATORS:
            dialect = "2021" if category == "Operator" else dialect
            operators.append(_operator(event))
        elif lowered in _KERNELS:
            raw.append(event)
        elif lowered in _RUNTIME:
            arguments = event.get("args", {})
            launches[arguments.get("correlation")] = (event.get("ts", 0.0), _thread(event), _id(arguments))
        elif lowered in ("user_annotation", "cpu_op") or str(event.get("name", "")).startswith("ProfilerStep#"):
            if str(event.get("name", "")).startswith("ProfilerStep#"):
                steps.append((float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0.0))))
    properties = reader.properties.get("deviceProperties") or []
    operators = _profiler_steps(operators, steps)
    _refuse(path, operators, raw, properties)
    _nest(operators)
    name, kernels = _kernels(raw, operators, launches, properties, steps)
    notes: list[str] = []
    if not name and (reason := _synthetic(kernels)):
        raise ValueError(f"{path}: {reason}; it looks made up, and is not compared")
    convolutions = _convolutions(kernels)
    if not convolutions:
        notes.append("no convolution ran a kernel in this trace")
    used = {kernel.step for kernel in kernels} - {-1}
    return Trace(path, name, kernels, convolutions, max(1, len(used)), dialect, notes)


def _thread(event: dict[str, Any]) -> tuple[Any, Any]:
    return event.get("pid"), event.get("tid")


def _id(arguments: dict[str, Any]) -> Any:
    return arguments.get("External id", arguments.get("external id"))


def _operator(event: dict[str, Any]) -> Operator:
    start = float(event.get("ts", 0.0))
    return Operator(str(event.get("name")), start, start + float(event.get("dur", 0.0)), _thread(event), event.get("args", {}))


def _profiler_steps(operators: list[Operator], steps: list[tuple[float, float]]) -> list[Operator]:
    """Moves the steps, which the dialect of 2021 records as operators, to `steps`; returns the other operators."""
    kept = []
    for operator in operators:
        if operator.name.startswith("ProfilerStep#"):
            steps.append((operator.start, operator.end))
        else:
            kept.append(operator)
    steps.sort()
    return kept


def _refuse(path: Path, operators: Sequence[Operator], kernels: Sequence[Any], properties: Sequence[Any]) -> None:
    names = [str(entry.get("name", "")) for entry in properties if isinstance(entry, dict)]
    if any("AMD" in name or "Instinct" in name or "Radeon" in name for name in names):
        raise ValueError(f"{path} is of {names[0]}: no figures of AMD parts are known, and their kernels are not joined")
    if not operators and not kernels:
        raise ValueError(f"{path} holds neither operators nor kernels: it is no trace of torch.profiler; {RECORD}")
    if not kernels:
        raise ValueError(f"{path} has no GPU kernel: it was recorded on a CPU, or without CUDA activities; {RECORD}")
    if not operators:
        raise ValueError(f"{path} has kernels and no operators, so no shapes: profile the CPU's activities too; {RECORD}")
    if not any(name in operator.arguments for operator in operators for name in _SHAPES):
        raise ValueError(f"{path} has no shapes (record_shapes was off): {RECORD}")


def _nest(operators: list[Operator]) -> None:
    """Sets each operator's parent: the innermost operator of the same thread that spans it."""
    operators.sort(key=lambda operator: (str(operator.thread), operator.start, -operator.end))
    stack: list[Operator] = []
    for operator in operators:
        while stack and (stack[-1].thread != operator.thread or stack[-1].end <= operator.start):
            stack.pop()
        operator.parent = stack[-1] if stack else None
        stack.append(operator)


def _kernels(
    raw: list[dict[str, Any]], operators: list[Operator], launches: dict[Any, Any], properties: Sequence[Any], steps: list[Any]
) -> tuple[str, list[Kernel]]:
    """The name and the kernels of the GPU that ran most kernels (a rank of DDP runs on one)."""
    by_id = {number: operator for operator in operators if (number := _id(operator.arguments)) is not None}
    used = Counter(event.get("args", {}).get("device", event.get("pid")) for event in raw)
    device = used.most_common(1)[0][0]
    named = {entry.get("id"): str(entry.get("name", "")) for entry in properties if isinstance(entry, dict)}
    name = named.get(device) or next(iter(named.values()), "")
    by_thread: dict[Any, list[Operator]] = defaultdict(list)
    for operator in operators:
        by_thread[operator.thread].append(operator)
    kernels = []
    for event in raw:
        arguments = event.get("args", {})
        if arguments.get("device", event.get("pid")) != device:
            continue
        launch = launches.get(arguments.get("correlation"))
        number = _id(arguments)
        owner = by_id.get(number) if number else None
        if owner is None and launch is not None:
            owner = by_id.get(launch[2]) if launch[2] else _running(by_thread[launch[1]], launch[0])
        at = launch[0] if launch else owner.start if owner else float(event.get("ts", 0.0))
        duration = float(event.get("dur", 0.0))
        kernels.append(Kernel(str(event.get("name")), float(event.get("ts", 0.0)), duration, owner, _step(steps, at)))
    if any(kernel.step >= 0 for kernel in kernels):
        kernels = [kernel for kernel in kernels if kernel.step >= 0]
    return name, kernels


def _running(operators: Sequence[Operator], at: float) -> Operator | None:
    """The innermost operator of a thread at a time. `operators` are sorted by their start."""
    low, high = 0, len(operators)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if operators[middle].start <= at else (low, middle)
    if low == 0:
        return None
    return next((operator for operator in operators[low - 1].chain() if operator.start <= at <= operator.end), None)


def _step(steps: Sequence[tuple[float, float]], at: float) -> int:
    """The number of the step that spans a time, -1 for none. Gradients run on another thread, in the same time."""
    return next((i for i, (start, end) in enumerate(steps) if start <= at <= end), -1)


def _synthetic(kernels: Iterable[Kernel]) -> str:
    durations = [kernel.duration for kernel in kernels]
    if len(durations) >= 3 and all(duration % 10 == 0 for duration in durations):
        return "it has no deviceProperties, and every kernel takes a whole multiple of 10 us"
    return ""


def _convolutions(kernels: Iterable[Kernel]) -> list[Instance]:
    """The convolutions, in the order in which the host called them."""
    instances: dict[int, Instance] = {}
    for kernel in kernels:
        chain = [operator for operator in kernel.operator.chain() if is_convolution(operator.name)] if kernel.operator else []
        if not chain or kernel.operator is None:
            continue
        outermost = chain[-1]
        if id(outermost) not in instances:
            calls = [call for operator in chain if (call := operator.call()) is not None]
            if not calls:
                continue
            # the innermost operator has the dtype that ran, and the first one with numbers has the problem
            numbers = next((call for call in calls if call.problem is not None), calls[0])
            call = Call(
                backward=numbers.backward,
                x=numbers.x,
                w=numbers.w,
                dtype=calls[0].dtype or numbers.dtype,
                layout=calls[-1].layout,
                problem=numbers.problem,
                transposed=numbers.transposed,
                passes=numbers.passes,
            )
            instances[id(outermost)] = Instance(outermost, call)
        instance = instances[id(outermost)]
        instance.kernels.append(kernel)
        instance.inner[id(kernel)] = kernel.operator
    return sorted(instances.values(), key=lambda instance: instance.operator.start)
