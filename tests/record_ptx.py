"""Write the kernels that `tests/test_executor_mutants.py` breaks: their PTX and their launch, to `tests/ptx_kernels`.

    python -m tests.record_ptx

Each is run once on compiled code and held against float64 before it is written.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch.nn.grad import conv2d_input, conv2d_weight

from costmodel.device import DEVICES
from costmodel.problem import ConvProblem
from tests.test_executor_mutants import FOLDER, launched, sample, text_of


class Recorded(NamedTuple):
    """What to run: compute capability, plan, element type, input and weight shapes."""

    arch: int
    plan: str
    dtype: torch.dtype
    x: tuple[int, ...]
    w: tuple[int, ...]
    precision: str = "ieee"


KERNELS = {
    "gather_half_80": Recorded(80, "fprop:gather:64x32x32:w4:s3", torch.float16, (1, 40, 7, 9), (24, 40, 3, 3)),
    "gather_single_80": Recorded(80, "fprop:gather:32x32x16:w2:s3", torch.float32, (1, 20, 5, 7), (24, 20, 3, 3)),
    "gather_half_90": Recorded(90, "fprop:gather:64x32x32:w4:s3", torch.float16, (1, 40, 7, 9), (24, 40, 3, 3)),
    "tma_half_90": Recorded(90, "fprop:tma:64x32x32:w4:s4", torch.float16, (1, 64, 7, 9), (32, 64, 3, 3)),
    "tma_tf32_90": Recorded(90, "fprop:tma:64x32x32:w4:s4", torch.float32, (1, 64, 7, 9), (32, 64, 3, 3), "tf32"),
    "tma_wgmma_90": Recorded(90, "fprop:tma:64x64x64:w4:s3", torch.float16, (1, 64, 7, 9), (72, 64, 3, 3)),
    "wgrad_half_80": Recorded(80, "wgrad:gather:32x32x32:w4:s3:split2", torch.float16, (1, 24, 9, 9), (24, 24, 3, 3)),
}


def stripped(ptx: str) -> str:
    """PTX without debug sections and comments but those of .loc."""
    end = re.search(r"^\s*\.section", ptx, re.M)
    files = "\n".join(re.sub(r'"[^"]*/', '"', line.strip()) for line in re.findall(r"^\s*\.file.*", ptx, re.M))
    lines = (ptx[: end.start()] if end else ptx).split("\n")
    kept = [line if ".loc" in line else line.partition("//")[0].rstrip() for line in lines]
    kept = [line for line in kept if line and not line.strip().startswith((".file", "$L__tmp", "$L__func"))]
    return "\n".join(kept) + "\n" + files + "\n"


def run_case(case: Recorded) -> tuple[torch.Tensor, torch.Tensor]:
    """(the result of the package, float64's)."""
    from tritonconv import launch

    torch.manual_seed(0)
    x, w = (torch.randn(shape, dtype=case.dtype).to(memory_format=torch.channels_last) for shape in (case.x, case.w))
    problem = ConvProblem.conv(case.x, case.w, (1, 1), (1, 1), (1, 1))
    dy = torch.randn(problem.output_shape, dtype=case.dtype).to(memory_format=torch.channels_last)
    if case.plan.startswith("fprop"):
        return launch.fprop(x, w, None, problem, case.plan), F.conv2d(x.double(), w.double(), padding=1)
    if case.plan.startswith("dgrad"):
        return launch.dgrad(dy, w, None, problem, case.plan), conv2d_input(case.x, w.double(), dy.double(), padding=1)
    return launch.wgrad(dy, x, problem, case.plan), conv2d_weight(x.double(), case.w, dy.double(), padding=1)


def record(name: str, case: Recorded) -> None:
    """Run a case and write its first kernel with its launch. AssertionError where the result is wrong."""
    from bench.executor import driver
    from tritonconv import host

    host.use(next(device for device in DEVICES.values() if device.capability == case.arch))
    active = driver.install(case.arch)
    torch.backends.cudnn.conv.fp32_precision = case.precision
    calls: list[Any] = []
    heard: list[Any] = []
    execute = driver.execute

    def recording(program: Any, grid: Any, params: Any, regions: Any, descriptors: Any, shared: int, **options: Any) -> Any:
        calls.append((grid, params.copy(), regions, [region.data.copy() for region in regions], descriptors, shared))
        return execute(program, grid, params, regions, descriptors, shared, **options)

    driver.execute = recording
    active.listeners.append(heard.append)
    got, expected = run_case(case)
    driver.execute = execute
    error = ((got.double() - expected).abs().max() / expected.abs().max()).item()
    assert error < (5e-3 if case.precision == "tf32" or case.dtype != torch.float32 else 1e-5), (name, error)
    grid, params, regions, before, descriptors, shared = calls[0]
    dtype = str(case.dtype)[6:]
    text: dict[str, Any] = {
        "made": f"Triton {triton.__version__}, sm_{case.arch}, {case.plan}, {dtype} {case.precision}, x {case.x}, w {case.w}",
        "grid": list(grid),
        "shared": shared,
        "params": params.tobytes().hex(),
        "element": dtype,
        "regions": [
            {"name": r.name, "base": r.base, "size": len(r.data), "written": bool((r.data != old).any())}
            for r, old in zip(regions, before, strict=True)
        ],
        "descriptors": {str(offset): asdict(descriptor) for offset, descriptor in descriptors.items()},
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.ptx").write_text(stripped(heard[0].ptx))
    for _ in range(2):  # the second time with what the first run gives
        (FOLDER / f"{name}.json").write_text(json.dumps(text, indent=1) + "\n")
        done, written = launched(name, text_of(name))
        assert not done.faults, done.faults[0]
        text["sample"] = sample(written)
    print(f"{name}: error {error:.1e}, {len(heard)} launches, {len(heard[0].program.where)} instructions")


if __name__ == "__main__":
    for label, wanted in KERNELS.items():
        record(label, wanted)
