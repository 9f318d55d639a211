"""`python -m bench.gpu.worker MODULE DEVICE`: tries items one after another, as its standard input names them.

MODULE has `items()`. The first line on the standard output says that the process is ready. Each answer is one JSON line there:
a `bench.gpu.item.Result`, and whether the process has lost the GPU, as it does after an illegal access. All other output goes
to the standard error. `bench.gpu.supervise` uses another process where this one is lost or ends.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from typing import Any

import torch

from bench.gpu.item import Result, perform

READY = "ready"


def alive(device: str) -> bool:
    """Whether the GPU still computes."""
    if device != "cuda":
        return True
    try:
        return int(torch.ones(1, dtype=torch.int32, device=device).sum()) == 1
    except RuntimeError:
        return False


def answer(result: Result, device: str) -> dict[str, Any]:
    """The answer for a result."""
    lost = not alive(device)
    if lost:
        result = dataclasses.replace(result, status="failed", note=f"{result.note or 'right'}; the GPU stopped answering"[:300])
    return {**dataclasses.asdict(result), "lost": lost}


def main(module: str, device: str) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(value: Any) -> None:
        out.write(json.dumps(value, allow_nan=False) + "\n")
        out.flush()

    items = importlib.import_module(module).items()
    if not alive(device):
        raise SystemExit("the GPU does not answer")
    say({"status": READY})
    for line in sys.stdin:
        name = line.rstrip("\n")
        result = perform(items[name], device) if name in items else Result(name, "failed", "there is no such item")
        say(answer(result, device))


if __name__ == "__main__":
    main(*sys.argv[1:])
