"""Checks for Triton, which the package needs and does not install: every build of torch for GPUs brings the version that it
needs.

A dependency of the distribution would put CUDA's Triton beside the one that torch for ROCm brings, so it is checked at import.
"""

from __future__ import annotations

TRITON = (3, 6)


def check_triton(version: str | None) -> None:
    """Raises ImportError, in words, where Triton is missing (None) or older than the language of the kernels."""
    needed = ".".join(map(str, TRITON))
    brings = f"tritonconv needs Triton {needed} or newer, which torch 2.11 and newer for GPUs brings"
    if version is None:
        raise ImportError(f"{brings}; there is none here: install such a torch, or beside torch for CPUs pip install triton")
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < TRITON:
        raise ImportError(f"{brings}; here is Triton {version}: update torch, or triton beside torch for CPUs")


def installed() -> str | None:
    """The version of Triton that an import gives; None without Triton."""
    try:
        from triton import __version__
    except ModuleNotFoundError:
        return None
    return str(__version__)


check_triton(installed())
