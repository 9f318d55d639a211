"""Small kernels of PTX text, for tests of the executor: a body around given statements, run on arrays of bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bench.executor import Execution, Region, decode, execute

BASE = 1 << 40
HEAD = """.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
{params}
)
.reqntid {threads}
{{
\t.reg .pred %p<40>;
\t.reg .b16 %rs<80>;
\t.reg .b32 %r<200>;
\t.reg .b64 %rd<80>;
\t.loc 1 7 0 // kernel.py:7:0
{body}
\tret;
}}
.file 1 "kernel.py"
"""


def kernel(body: str, pointers: int = 2, threads: int = 32) -> str:
    """PTX of a kernel whose parameters p0, p1, ... are pointers, loaded into %rd70, %rd71, ...; %r199 is the thread."""
    params = ",\n".join(f"\t.param .u64 p{k}" for k in range(pointers))
    loads = "".join(f"\tld.param.b64 %rd{70 + k}, [p{k}];\n" for k in range(pointers))
    return HEAD.format(params=params, threads=threads, body=loads + "\tmov.u32 %r199, %tid.x;\n" + body)


def run(
    ptx: str, arrays: Sequence[np.ndarray], grid: int = 1, shared: int = 4096, readable: Sequence[int] = (), **options: object
) -> Execution:
    """Execute a kernel on arrays, each in a window of its own; `readable`: indices of arrays that it may not write."""
    program = decode(ptx)
    regions = [
        Region(f"p{k}", (k + 1) * BASE, array.reshape(-1).view(np.uint8), writable=k not in readable)
        for k, array in enumerate(arrays)
    ]
    params = np.array([region.base for region in regions], np.uint64).view(np.uint8)
    return execute(program, (grid, 1, 1), params, regions, {}, shared, **options)  # type: ignore[arg-type]


REGISTER = {8: "%rs", 16: "%rs", 32: "%r", 64: "%rd"}


def on_lanes(statement: str, inputs: Sequence[tuple[int, np.ndarray]], width: int, setup: str = "") -> np.ndarray:
    """What a statement gives for 32 lanes: uint64 bits.

    inputs: (bits, values [32] as uint64) of the operands, which the statement names {a}, {b}, {c}, {e}; its target, of
    `width` bits, is {d}. Predicates %p1 and %p2 may be set by `setup`, which comes first.
    """
    body, names = setup, {"d": f"{REGISTER[width]}60"}
    for k, (bits, _) in enumerate(inputs):
        name = f"{REGISTER[bits]}{k + 1}"
        names["abce"[k]] = name
        body += f"\tmul.wide.u32 %rd{50 + k}, %r199, 8;\n\tadd.s64 %rd{50 + k}, %rd{50 + k}, %rd{70 + k};\n"
        body += f"\tld.global.b{bits} {name}, [%rd{50 + k}];\n"
    last = len(inputs)
    body += "\t" + statement.format(**names) + "\n"
    body += f"\tmul.wide.u32 %rd60, %r199, 8;\n\tadd.s64 %rd61, %rd60, %rd{70 + last};\n".replace("%rd60", "%rd59")
    body += f"\tst.global.b{width} [%rd61], {names['d']};\n"
    out = np.zeros(32, np.uint64)
    done = run(kernel(body, last + 1), [*(np.asarray(values, np.uint64) for _, values in inputs), out])
    assert not done.faults, done.faults[0]
    return out


def check(
    statement: str, inputs: Sequence[tuple[int, np.ndarray]], width: int, expected: Callable[..., int], setup: str = ""
) -> None:
    """Hold a statement against Python: `expected` of each lane's operands as unsigned bits."""
    got = on_lanes(statement, inputs, width, setup)
    for lane in range(32):
        operands = [int(values[lane]) & ((1 << bits) - 1) for bits, values in inputs]
        want = expected(*operands) & ((1 << width) - 1)
        assert int(got[lane]) == want, (statement, [hex(x) for x in operands], hex(int(got[lane])), hex(want))
