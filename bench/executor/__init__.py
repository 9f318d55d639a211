"""Runs Triton's compiled NVIDIA code, as PTX, on a CPU, and checks it.

`decode` makes a program of PTX, `execute` runs it on host memory (docs/design/executor.md).
"""

from bench.executor.faults import Fault
from bench.executor.launch import Descriptor, Execution, execute
from bench.executor.layout import Kind
from bench.executor.memory import Region
from bench.executor.program import Param, Program, UnknownInstruction, Where, decode

__all__ = [
    "Descriptor",
    "Execution",
    "Fault",
    "Kind",
    "Param",
    "Program",
    "Region",
    "UnknownInstruction",
    "Where",
    "decode",
    "execute",
]
