"""`python -m bench.models [words of names]`: checks models that have no row yet or failed, and writes docs/models.md.

The kernels are compiled for sm_80, with the plans of an A100, and executed on the CPU (`bench/executor`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "results.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LIMIT = 3600  # seconds per model
DEVICE = "NVIDIA A100-SXM4-80GB"  # the device whose plans the kernels take


def main(words: list[str]) -> None:
    from bench.models.catalog import MODELS

    for name in MODELS:
        if "failed" in rows().get(name, {"failed": ""}) and (not words or any(word in name for word in words)):
            print(f"{name} ...", flush=True)
            row = {"model": name, **_apart(name)}
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    PAGE.write_text(page(rows(), list(MODELS)))


def rows() -> dict[str, dict[str, Any]]:
    """The rows so far, by model."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {row["model"]: row for row in map(json.loads, lines)}


def _apart(name: str) -> dict[str, Any]:
    """The row of a model, which runs in a process of its own, so that its memory and crashes stay there."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "bench.models", "--one", name]
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {LIMIT} s"}
    if process.returncode:
        return {"failed": (process.stderr.strip().splitlines() or ["crashed"])[-1][:200]}
    row: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return row


def _one(name: str) -> dict[str, Any]:
    """The row of a model, run by compiled code in this process."""
    import torch

    from bench.executor import driver
    from bench.models.catalog import MODELS
    from bench.models.check import check
    from costmodel.device import DEVICES
    from tritonconv import host

    device = DEVICES[DEVICE]
    driver.install(device.capability)
    host.use(device)
    torch.backends.cudnn.allow_tf32 = False  # results are compared in float32
    return check(MODELS[name])


def page(known: dict[str, dict[str, Any]], names: list[str]) -> str:
    """The table of docs/models.md."""
    done = [row for row in known.values() if "failed" not in row]
    lines = [
        "# Models",
        "",
        f"{len(done)} of {len(names)} models were converted and run by the kernels, forward and backward (`make models`): "
        "compiled code for sm_80 with the plans of an A100, executed on a CPU. The models are built from their configs, with "
        "random weights and small inputs. Results and gradients of every parameter are compared with float64; the error is in "
        "parts of what torch's own float32 has, or of 1e-5 of the largest value where that is more, and may be 8. Launches are "
        "counted, so that torch's convolution is never compared with itself. What `torch.compile` ran, which the column before "
        "the last one says, is held to the same, by as many launches. Each model is given back by `revert` at the end, with "
        "the bits of the original. Where rounding moves a value across the kink of a ReLU, gradients jump, so another input "
        "is drawn.",
        "",
        "| model | replaced | launches, of calls | weight gradients | error | compiled | left to torch |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row = known.get(name)
        if row is None:
            lines.append(f"| {name} | not run yet | | | | | |")
        elif "failed" in row:
            lines.append(f"| {name} | failed: {row['failed'].replace('|', '/')} | | | | | |")
        else:
            launches = f"{row['launches']} of {row['calls']}"
            counts = f"{row['replaced']} of {row['convolutions']}", launches, row["gradients"]
            results = row["error"], row.get("compiled", "not run"), "; ".join(row["left"])
            lines.append(f"| {name} | {' | '.join(map(str, (*counts, *results)))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(_one(sys.argv[2])))
    else:
        main(sys.argv[1:])
