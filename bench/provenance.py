"""Where a measured row comes from, and where results are kept."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).parent.parent


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit() -> str:
    """The commit that runs, followed by `+dirty` when a file other than a result differs.

    In a copy without its history the variable COMMIT names it.
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, RuntimeError):
        return "unknown"


@cache
def provenance() -> dict[str, str]:
    """Device, versions and commit."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": str(torch.backends.cudnn.version()) if cuda else "none",
        "commit": commit(),
    }


def committed_results() -> Path:
    """`bench/results/<the GPU's name>`. Raises SystemExit where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here, and these results need one")
    return ROOT / "bench" / "results" / torch.cuda.get_device_name().lower().replace(" ", "-")


def results_dir() -> Path:
    """The folder where a run keeps its rows and `make gpu` its log: $OUT, else that of the committed results."""
    return Path(os.environ["OUT"]) if os.environ.get("OUT") else committed_results()


if __name__ == "__main__":
    print(results_dir())
