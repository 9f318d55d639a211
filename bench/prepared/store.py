"""A folder of compiled kernels that travels, and its filing under the keys of the machine where they run.

Triton's key of a kernel has a hash of Triton's own files and libtriton.so, of the kernel's source, of ptxas's version, of the
options and of the environment. The first differs from Python to Python (libtriton.so is built for each), and the cache's files
name each other by absolute paths, so a copied cache is of no use. Here each kernel is kept with the parts of its key that
depend on neither, and `install` puts the key together where the kernel is to run. No process needs a patched Triton.

    DIR/index.jsonl        one line per kernel: `Kernel`
    DIR/<name>-<hash>/     its cubin and metadata
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import cache

INDEX = "index.jsonl"
#: The files that a kernel needs to be launched. The intermediate stages of its compilation are not kept.
KEPT = (".json", ".cubin")


@dataclass(frozen=True)
class Kernel:
    """The parts of a compiled kernel's key, and what compiled it. `source` and `options` are Triton's hashes."""

    name: str
    capability: int
    source: str
    options: str
    environment: str  # the variables in Triton's key, as Triton writes them
    triton: str  # Triton's version
    compiler: str  # hash of the backend: ptxas's version and the capability
    launcher: str = ""  # hash of the C source of its launcher, where this Triton has one per signature

    @property
    def folder(self) -> str:
        return f"{self.name[:60]}-{hashlib.sha256(self.tail.encode()).hexdigest()[:16]}"

    @property
    def tail(self) -> str:
        """The part of the key that is the same on every machine."""
        return f"{self.source}-{self.capability}-{self.options}-{self.environment}-{self.triton}"

    def key(self) -> str:
        """Triton's key on this machine, as `triton.runtime.cache.get_cache_key` makes it."""
        backend = make_backend(GPUTarget("cuda", self.capability, 32))
        return f"{cache.triton_key()}-{self.source}-{backend.hash()}-{self.options}-{self.environment}"


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def folder_of(digest: str) -> str:
    """The folder of Triton's cache for a hash."""
    return base64.b32encode(bytes.fromhex(digest)).decode().rstrip("=")


def kernels(store: Path) -> list[Kernel]:
    """The kernels of a folder, each once. A last line without its end, from a run that was cut off, is left out."""
    path = store / INDEX
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kernels = (Kernel(**json.loads(line)) for line in lines if line.endswith("\n"))
    return list(dict.fromkeys(kernel for kernel in kernels if (store / kernel.folder).is_dir()))


def add(store: Path, kernel: Kernel, files: Iterable[Path]) -> None:
    """Copies a compiled kernel's files into the folder, then adds it to the index."""
    target = store / kernel.folder
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in files:
        if file.suffix in KEPT:
            shutil.copyfile(file, partial / file.name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    path = store / INDEX
    with path.open("ab+") as index:
        index.seek(0)
        index.truncate(index.read().rfind(b"\n") + 1)
        index.write(json.dumps(asdict(kernel)).encode() + b"\n")
        index.flush()
        os.fsync(index.fileno())


@dataclass(frozen=True)
class Installed:
    """The outcome for a folder's kernels: filed now, already there, or made by another Triton. `ptxas` says whether this
    machine's ptxas is another one than the one that made them."""

    filed: int = 0
    there: int = 0
    foreign: int = 0
    ptxas: bool = False

    def __str__(self) -> str:
        text = f"{self.filed} kernels filed, {self.there} were there"
        if self.foreign:
            text += f", {self.foreign} are of another Triton than {triton.__version__} and stay away"
        return text + (", compiled by another ptxas than this machine's" if self.ptxas else "")


def install(store: Path, target: Path | None = None) -> Installed:
    """Files the kernels in Triton's cache (by default the one in use) under this machine's keys."""
    target = target or Path(triton.knobs.cache.dir)
    filed = there = foreign = 0
    ptxas = False
    for kernel in kernels(store):
        if kernel.triton != triton.__version__:
            foreign += 1
            continue
        ptxas = ptxas or kernel.compiler != make_backend(GPUTarget("cuda", kernel.capability, 32)).hash()
        digest = hash_of(kernel.key())
        folder = target / folder_of(digest)
        metadata = f"{kernel.name[:150]}.json"
        if (folder / f"__grp__{metadata}").is_file():
            there += 1
            continue
        folder.mkdir(parents=True, exist_ok=True)
        group: dict[str, str] = {}
        for file in sorted((store / kernel.folder).iterdir()):
            place = folder / file.name
            if file.suffix == ".json":
                place.write_text(json.dumps(json.loads(file.read_text()) | {"hash": digest}))
            else:
                shutil.copyfile(file, place)
            group[file.name] = str(place)
        (folder / f"__grp__{metadata}").write_text(json.dumps({"child_paths": group}))
        filed += 1
    return Installed(filed, there, foreign, ptxas)
