"""The demo: measured layers where there is a GPU, a filtered photograph where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def run(out: Path) -> None:
    """Run the demo that this machine can run. Raises SystemExit where a result is wrong.

    Triton reads TRITON_INTERPRET when it is imported, so nothing that imports it is imported before the choice is made.
    """
    out.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        from bench import run as harness

        harness.demo(out)
    else:
        os.environ["TRITON_INTERPRET"] = "1"
        from bench import pictures

        pictures.run(out)
