"""The C sources of launchers. Triton 3.6 compiles one per signature when a kernel is first launched; later versions have one
for all. The sources depend only on Triton's version, so they travel as text and are compiled in parallel where they run: a
Python extension is built for one Python and links libcuda.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton

FOLDER = "launchers"
#: The module's name in `triton.backends.nvidia.driver`.
MODULE = "__triton_launcher"


def source_of(source: Any, metadata: Any) -> str | None:
    """The launcher of a compiled kernel, as `CudaLauncher` makes it; None where this Triton has one for all kernels."""
    from triton.backends.nvidia import driver

    make = getattr(driver, "make_launcher", None)
    if make is None or "#include" not in (text := _source(make, source, metadata)):
        return None
    return text


def _source(make: Any, source: Any, metadata: Any) -> str:
    names = source.fn.arg_names
    constants = {(names.index(at),) if isinstance(at, str) else at: value for at, value in source.constants.items()}
    described = metadata.get("tensordesc_meta") if isinstance(metadata, dict) else getattr(metadata, "tensordesc_meta", None)
    text = make(constants, dict(source.signature.items()), described)
    return text if isinstance(text, str) else ""


class Launchers:
    """The sources in a store's folder, by hash."""

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER

    def add(self, source: Any, metadata: Any) -> None:
        text = source_of(source, metadata)
        if text is None:
            return
        path = self.folder / f"{triton.__version__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.c"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(text)
            partial.rename(path)

    def sources(self) -> Iterator[str]:
        """The sources for this version of Triton."""
        for path in sorted(self.folder.glob(f"{triton.__version__}-*.c")):
            yield path.read_text()

    def count(self) -> int:
        return sum(1 for _ in self.sources())

    def build(self, jobs: int | None = None) -> tuple[int, float]:
        """Compiles all of them into Triton's cache, as first launches would. Returns (how many, seconds)."""
        from triton.backends.nvidia import driver
        from triton.runtime.build import compile_module_from_src

        began, texts = time.monotonic(), list(self.sources())
        if not texts:
            return 0, 0.0
        _ = triton.runtime.driver.active.utils  # creates what a launcher looks up when it is loaded

        def build(text: str) -> None:
            directories = driver.library_dirs()
            compile_module_from_src(
                src=text,
                name=MODULE,
                library_dirs=directories,
                include_dirs=driver.include_dirs,
                libraries=driver.libraries,
            )

        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            list(pool.map(build, texts))
        return len(texts), time.monotonic() - began
