"""`python -m bench overhead --stub sm_90`: what a warm call costs the host, beside torch's, on a machine without a GPU.

Kernels are compiled for an architecture, and a launch ends where Triton would call the CUDA driver (`bench.executor.driver`,
`skipped`): all that Python does is done, and nothing is computed. torch's call is the same for all of ours, `F.conv2d` of a few
hundred numbers in float32 on the CPU, so small that its arithmetic hardly counts. Times are those of this thread's processor,
because a shared machine's clock also runs while other processes have the core. All contenders take turns in several rounds, of
which the quickest counts. Triton's own launch is `kernel[grid](...)`, which binds its arguments; the least that it offers is
`compiled[grid](...)`, which does not.

"before" takes the ordinary way: every call checked, planned and dispatched anew, and every launch bound by Triton.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import tritonconv
from costmodel.device import DEVICES, find_device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan
from tritonconv import direct, host, launch, recipes
from tritonconv.prepared import key
from tritonconv.steps import Step

ROUNDS, CALLS = 9, 100
#: The goals: at most so many microseconds above torch's call and the launches of the kernels, and at most this share of the
#: time that a call takes the ordinary way.
GOAL_ABOVE_US, GOAL_SHARE = 15.0, 1 / 3
Call = Callable[..., torch.Tensor]
OURS: Any = tritonconv


@dataclass(frozen=True)
class Example:
    """One of our functions with its tensors."""

    name: str
    call: Call
    x: tuple[int, ...] = (1, 4, 8, 8)
    w: tuple[int, ...] = (4, 4, 3, 3)
    half: bool = False  # in float16 and channels-last

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, w, b = torch.randn(self.x), torch.randn(self.w), torch.randn(self.w[0])
        form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return (x.half().to(memory_format=form), w.half().to(memory_format=form), b.half()) if self.half else (x, w, b)


#: Two sequences packed into one row of 16 columns, zero offsets of 3x3 taps, and a pointwise weight of 16 channels.
SEQUENCES = torch.arange(16).ge(8).int().unsqueeze(0)
OFFSETS = torch.zeros(1, 18, 8, 8)
POINTWISE = torch.ones(16, 16, 1, 1).half().to(memory_format=torch.channels_last)


def separable(plan: str, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Runs a depthwise and a pointwise convolution by a plan."""
    y: torch.Tensor = OURS.depthwise_separable_conv2d(x, w, POINTWISE, b, None, 1, 1, activation="relu", plan=plan)
    return y


def prologue(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Convolves a chunk of video that a prologue scales and activates first."""
    y: torch.Tensor = OURS.causal_conv3d(x, w, b, padding=1, prologue=OURS.Prologue(b, b, None, "silu"))[0]
    return y


PLANS = tuple(Plan.parse(f"{which}:tma:64x32x32:w4:s3") for which in ("fprop", "dgrad", "wgrad"))
EXAMPLES = (
    Example("conv2d", lambda *t: OURS.conv2d(*t, 1, 1)),
    Example("conv2d, depthwise", lambda *t: OURS.conv2d(*t, 1, 1, 1, 4), w=(4, 1, 3, 3)),
    Example("conv2d, tma forced", lambda *t: OURS.conv2d(*t, 1, 1, plan=PLANS), (1, 32, 8, 8), (32, 32, 3, 3), True),
    Example("conv_transpose2d", lambda *t: OURS.conv_transpose2d(*t, 2, 1)),
    Example("conv2d_fused, relu", lambda *t: OURS.conv2d_fused(*t, 1, 1, activation="relu")),
    Example("causal_conv1d, silu", lambda *t: OURS.causal_conv1d(*t, "silu"), (1, 8, 16), (8, 4)),
    Example("causal_conv1d, seq_idx", lambda *t: OURS.causal_conv1d(*t, "silu", seq_idx=SEQUENCES), (1, 8, 16), (8, 4)),
    Example("conv2d, unbatched", lambda *t: OURS.conv2d(*t, 1, 1), (4, 8, 8)),
    Example("causal_conv3d", lambda *t: OURS.causal_conv3d(*t, padding=1)[0], (1, 8, 4, 6, 6), (8, 8, 3, 3, 3), True),
    Example("causal_conv3d, prologue", prologue, (1, 8, 4, 6, 6), (8, 8, 3, 3, 3), True),
    Example(
        "group_norm_prologue",
        lambda x, w, b: OURS.group_norm_prologue(x, 2, b, b).scale,
        (1, 8, 4, 6, 6),
        (8, 1, 1, 1, 1),
        True,
    ),
    Example("rms_norm_prologue", lambda x, w, b: OURS.rms_norm_prologue(x, b).rstd, (1, 8, 4, 6, 6), (8, 1, 1, 1, 1), True),
    Example("deform_conv2d", lambda x, *wb: OURS.deform_conv2d(x, OFFSETS, *wb, 1, 1)),
    Example("unfold", lambda x, *wb: OURS.unfold(x, 3, 1, 1)),
    Example("fold", lambda x, *wb: OURS.fold(x, 8, 3, 1, 1), (1, 36, 64)),
    Example("separable, one kernel", lambda *t: separable("fused", *t), (1, 16, 8, 8), (16, 1, 3, 3), True),
    Example("separable, two kernels", lambda *t: separable("apart", *t), (1, 16, 8, 8), (16, 1, 3, 3), True),
)
#: The call of torch that every example is compared with.
THEIRS = Example("torch", lambda x, w, b: functional.conv2d(x, w, b, 1, 1))


@dataclass(frozen=True)
class Warm:
    """Microseconds per call: ours as it is `now`, ours the ordinary way (`before`), and `torch`'s. `kernels` counts ours."""

    example: str
    kind: str  # "no_grad", "recorded", "backward"
    now: float
    before: float
    torch: float
    kernels: int


@contextmanager
def ordinary() -> Iterator[None]:
    """Inside the block no call and no launch is looked up: every call is checked and planned, and Triton binds every launch."""
    names: tuple[tuple[Any, str], ...] = (recipes, "key"), (direct, "key")
    kept = [getattr(module, name) for module, name in names]
    for module, name in names:
        setattr(module, name, lambda *_: None)
    try:
        yield
    finally:
        for (module, name), function in zip(names, kept, strict=True):
            setattr(module, name, function)


@contextmanager
def stubbed(arch: int, skipped: list[str]) -> Iterator[None]:
    """Inside the block kernels are compiled for an architecture, and `skipped` gets their launches, none of which is made."""
    from bench.executor import driver

    driver.install(arch).skipped = skipped
    host.use(next((device for device in DEVICES.values() if device.capability == arch), None) or find_device(""))
    try:
        yield
    finally:
        host.use(None)
        driver.uninstall()


def quickest(contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds per call of each contender, in its quickest round. The contenders take turns in every round."""
    times = dict.fromkeys(contenders, float("inf"))
    for call in contenders.values():
        for _ in range(3):
            call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            for name, call in contenders.items():
                began = time.thread_time()
                for _ in range(CALLS):
                    call()
                times[name] = min(times[name], 1e6 * (time.thread_time() - began) / CALLS)
    finally:
        gc.enable()
    return times


def _kinds(call: Call, tensors: tuple[torch.Tensor, ...]) -> dict[str, Callable[[], object]]:
    """A call in three ways: under no_grad, recorded by autograd, and only the backward pass, for x and w."""
    x, w, b = tensors
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    call(*leaves, b)
    y = call(*leaves, b)  # the second one, so its backward pass is that of a known call
    dy = torch.ones_like(y)

    @torch.no_grad()
    def plain() -> object:
        return call(x, w, b)

    def backward() -> object:
        return torch.autograd.grad(y, leaves, dy, retain_graph=True, allow_unused=True)

    return {"no_grad": plain, "recorded": lambda: call(*leaves, b), "backward": backward}


def measure(example: Example, skipped: list[str]) -> list[Warm]:
    """The times of an example in the three ways of `_kinds`."""
    ours, theirs = (_kinds(side.call, side.tensors()) for side in (example, THEIRS))
    rows = []
    for kind, call in ours.items():

        def before(call: Callable[[], object] = call) -> object:
            with ordinary():
                return call()

        times = quickest({"now": call, "before": before, "torch": theirs[kind]})
        skipped.clear()
        call()
        rows.append(Warm(example.name, kind, times["now"], times["before"], times["torch"], len(skipped)))
        skipped.clear()
    return rows


def parts() -> dict[str, float]:
    """Microseconds of each part of a call of `EXAMPLES[0]` under no_grad, and of Triton's two ways to launch its kernel."""
    x, w, b = EXAMPLES[0].tensors()
    words = "conv2d", 1, 1, 1, 1
    with torch.no_grad():
        y = EXAMPLES[0].call(x, w, b)
        problem = ConvProblem.conv(x.shape, w.shape, (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
        prepared = launch.prepared_for(Pass.FPROP, problem, x, w, key(y), b)
        step, known_key = prepared.main, recipes.key(words, None, x, w, b)
        values = step.values({"a": x, "b": w, "bias": b, "out": y, "": None})
        compiled = step.kernel[(step.programs,)](*values, **step.constants)
        bound = [*step.kernel.signature.bind(*values, **_arguments(step)).arguments.values()]
        return quickest(
            {
                "its key": lambda: recipes.key(words, None, x, w, b),
                "the look-up": lambda: recipes.known(known_key),
                "memory for the result": lambda: torch.empty_strided(y.shape, y.stride(), dtype=y.dtype, device=y.device),
                "the launch": lambda: prepared.run(x, w, b, y),
                OWN: lambda: compiled[(step.programs, 1, 1)](*bound),
                BOUND: lambda: step.kernel[(step.programs,)](*values, **step.constants),
            }
        )


OWN, BOUND = "compiled[grid](...)", "kernel[grid](...)"


def _arguments(step: Step) -> dict[str, Any]:
    """The constants that a step's kernel takes as arguments, and the kernel's defaults of those that the step leaves out."""
    parameters = step.kernel.signature.parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return defaults | {name: value for name, value in step.constants.items() if name in step.kernel.arg_names}


def table(rows: list[Warm], bound_us: float, own_us: float) -> Table:
    """The rows as a table. `bound_us` and `own_us` are microseconds of Triton's two ways to launch a kernel."""
    shown = Table(box=MARKDOWN, padding=(0, 1, 0, 0))
    for heading in ("call", "kind", "kernels", "before µs", "now µs", "of before", "torch's µs", "above A", "above B"):
        shown.add_column(heading, justify="left" if heading in ("call", "kind") else "right")
    for row in rows:
        above = (f"{row.now - row.torch - row.kernels * us:.1f}" for us in (bound_us, own_us))
        numbers = f"{row.before:.0f}", f"{row.now:.1f}", f"{row.now / row.before:.0%}", f"{row.torch:.1f}"
        shown.add_row(row.example, row.kind, str(row.kernels), *numbers, *above)
    return shown


def command(arch: int) -> None:
    """What `python -m bench overhead --stub` does."""
    skipped: list[str] = []
    console = Console(width=140)
    with stubbed(arch, skipped):
        times = parts()
        rows = [row for example in EXAMPLES for row in measure(example, skipped)]
    launches = f"{BOUND} for each kernel, {times[BOUND]:.1f} µs; above B: the same with {OWN}, {times[OWN]:.1f} µs"
    lines = (
        f"above A: above torch's call and Triton's {launches}",
        "Of conv2d under no_grad: " + ", ".join(f"{name} {us:.1f} µs" for name, us in times.items()),
        f"aims: at most {GOAL_ABOVE_US:.0f} µs above, at most {GOAL_SHARE:.0%} of before",
    )
    versions = f"torch {torch.__version__}, Triton {triton.__version__}"
    console.print(f"sm_{arch}, no GPU: launches end before the CUDA driver. {versions}")
    console.print(table(rows, times[BOUND], times[OWN]))
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
