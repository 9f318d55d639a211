"""What the compiler made of a kernel: registers, spills and its main loop's instructions, read off the machine code.

The steps are listing -> instructions -> basic blocks -> natural loops -> summary. No GPU and no CUDA toolkit are needed:
`cuobjdump` and `nvdisasm` come with Triton's wheel.

    audit(compiled_kernel).trip.classes["ldgsts"]     # or audit(cubin_bytes)
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# The first match counts; a pattern must match the whole opcode up to its first dot (HFMA2.MMA is no MMA).
_CLASS_PATTERNS = {
    "mma": r"[A-Z]G?MMA|UTC\w*MMA",
    "tma": r"UTMA\w+|UBLK\w+",
    "ldgsts": r"LDGSTS",
    "ldg": r"LDG|LD|LDGMC",
    "stg": r"STG|ST|REDG?|ATOMG?",
    "lds": r"LDSM?",
    "sts": r"STSM?|ATOMS",
    "local": r"LDL|STL",
    "tmem": r"LDTM?|STTM?|UTCCP|UTCSHIFT|UTCATOMSWS",
    "barrier": r"BAR|(LDG)?DEPBAR|WARP(GROUP\w*|SYNC)|SYNCS|MEMBAR|FENCE|U(CGA|TC)BAR\w*|ELECT|CCTL\w*|NANOSLEEP",
    "control": r"BRA|BRXU?|JMP|JMXU?|CALL|RET|EXIT|BSSY|BSYNC|BREAK|NOP|YIELD|KILL|BPT|USETMAXREG|ACQBULK|PREEXIT",
    "pred": r"U?[IFDHP]SETP2?|U?PLOP3|U?P2U?R|U?R2U?P|VOTEU?",
    "fma": r"([FDH]|FH)(FMA|ADD|MUL|MNMX)\w*|MUFU|FSEL|FSET|FCHK",
    "convert": r"[FI]2[FI]P?|FRND",
    "uniform": r"R2UR|S2UR|LDCU|U[A-Z]\w+",
    "mov": r"MOVM?|MOV32I|CS2R|S2R|LDC|SHFL",
    "imad": r"IMAD",
    "alu": r"IADD\w*|LEA|LOP3?|SH[FLR]|V?[IH]MNMX\w*|VIADD\w*|SEL|PRMT|I(ABS|DP|MUL)|BMSK|SGXT|FLO|POPC|BREV",
}
_CLASS_REGEXES = {name: re.compile(pattern) for name, pattern in _CLASS_PATTERNS.items()}
CLASSES = (*_CLASS_PATTERNS, "other")
_LOADS_AND_FMAS = {"ldgsts", "ldg", "lds", "tma", "fma"}
# A loop without any of these only waits (an mbarrier poll) or keeps books.
_WORK = _LOADS_AND_FMAS | {"mma", "stg", "sts", "local", "tmem"}
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # bytes per thread; 4 without a suffix

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.M)
_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.M)
_ADDRESS = re.compile(r"0x([0-9a-f]+)$")


@dataclass(frozen=True)
class Instruction:
    """One line of a listing, e.g. address 0x9b0, predicate '@!P0', opcode 'LDG.E.128', operands 'R4, [R2.64]'."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def stem(self) -> str:
        return self.opcode.split(".", 1)[0]

    @property
    def kind(self) -> str:
        """One of `CLASSES`."""
        if self.predicate == "@!PT":  # never executed: ptxas spaces cp.async groups with `@!PT LDS RZ, [RZ]`
            return "other"
        if self.stem in ("IMAD", "HFMA2") and "RZ, RZ, " in self.operands and not self.opcode.startswith("IMAD.X"):
            return "mov"  # 0 * 0 + x (IMAD.X adds a carry to it)
        return _class_of(self.stem)


@cache
def _class_of(stem: str) -> str:
    return next((name for name, regex in _CLASS_REGEXES.items() if regex.fullmatch(stem)), "other")


@dataclass(frozen=True)
class MmaForm:
    """A tensor-core instruction and how often one trip issues it.

    opcode: as SASS spells it, types included ('HGMMA.64x128x16.F32.BF16', 'HMMA.1688.F32.TF32', 'UTCHMMA').
    shape: 'MxNxK'; '' on sm_100, where shape, types and transposition are in a register.
    transposed: the operands read transposed from shared memory, 'A', 'B', 'AB' or ''.
    operands: where A and B come from, 'RR' registers, 'SS' shared memory, 'RS' (A registers), 'TS' (A tensor memory).
    """

    opcode: str
    shape: str
    transposed: str
    operands: str
    count: int

    def __str__(self) -> str:
        transposed = f".t{self.transposed}" if self.transposed else ""
        source = f"/{self.operands}" if self.operands in ("RS", "TS") else ""
        return f"{self.count}x{self.opcode}{transposed}{source}"


@dataclass(frozen=True)
class Trip:
    """What one warp issues per trip of the main loop (in the whole kernel where there is no loop: `head` is None).

    The main loop is the one with the most MMAs, not counting nested loops; without MMAs, the one with the most loads and
    multiply-adds. The trip is the path through it that meets the most of these in the fewest instructions.
    head: address of the loop's first instruction. classes: instructions by class, with every name of `CLASSES`.
    copies: {'LDGSTS' or 'LDG': {bytes per thread: count}}; TMA copies (class 'tma') have no width.
    serialized: there are several warpgroup MMAs, and each is followed by a wait for all in flight. ptxas does that when it
    gives up pipelining them, and says so only in its own log (C7515).
    """

    head: int | None
    instructions: int
    classes: Mapping[str, int]
    mma: tuple[MmaForm, ...]
    copies: Mapping[str, Mapping[int, int]]
    serialized: bool

    @property
    def widest_load(self) -> int | None:
        """Bytes per thread of the widest global load (LDGSTS or LDG); None without one."""
        return max((width for widths in self.copies.values() for width in widths), default=None)

    @property
    def narrowest_load(self) -> int | None:
        """Bytes per thread of the narrowest global load; None without one."""
        return min((width for widths in self.copies.values() for width in widths), default=None)


@dataclass(frozen=True)
class KernelAudit:
    """A compiled kernel in figures.

    registers, stack_bytes: per thread. spills: LDL and STL instructions in the whole kernel. instructions: of the whole
    kernel. shared_bytes (per program, including dynamic memory) and num_warps: Triton's metadata, None for a bare cubin.
    """

    name: str
    registers: int
    spills: int
    stack_bytes: int
    shared_bytes: int | None
    num_warps: int | None
    instructions: int
    trip: Trip


def audit(kernel: Any) -> KernelAudit:
    """Audit a compiled Triton kernel (anything with `.asm['cubin']` and `.metadata`) or the bytes of a cubin.

    Raises FileNotFoundError where Triton's wheel has no `cuobjdump`, ValueError for anything but a cubin of one kernel.
    """
    if isinstance(kernel, bytes):
        return audit_listing(disassemble(kernel))
    meta = kernel.metadata
    return audit_listing(disassemble(kernel.asm["cubin"]), shared_bytes=meta.shared, num_warps=meta.num_warps)


def find_tool(name: str) -> Path:
    """Path of a CUDA tool ('cuobjdump', 'nvdisasm') in the installed Triton. Raises FileNotFoundError."""
    spec = importlib.util.find_spec("triton")
    package = Path(spec.origin).parent if spec and spec.origin else None
    if package is None or not (path := package / "backends" / "nvidia" / "bin" / name).is_file():
        raise FileNotFoundError(f"{name} comes with Triton's wheel, but the installed one (at {package}) has none")
    return path


def disassemble(cubin: bytes) -> str:
    """`cuobjdump`'s resource usage and SASS listing of a cubin."""
    find_tool("nvdisasm")  # cuobjdump runs it from its own folder
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(find_tool("cuobjdump")), "-sass", "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not _FUNCTION.search(done.stdout):
        raise ValueError(f"cuobjdump found no kernel in {len(cubin)} bytes: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def audit_listing(listing: str, *, shared_bytes: int | None = None, num_warps: int | None = None) -> KernelAudit:
    """Audit the text that `disassemble` returns."""
    names = _FUNCTION.findall(listing)
    usage = re.findall(r"REG:(\d+) STACK:(\d+)", listing)
    if len(names) != 1 or len(usage) != 1:
        raise ValueError(f"expected one kernel and its resource usage, got {names} and {usage}")
    code = parse(listing)
    return KernelAudit(
        name=names[0],
        registers=int(usage[0][0]),
        spills=sum(instruction.kind == "local" for instruction in code),
        stack_bytes=int(usage[0][1]),
        shared_bytes=shared_bytes,
        num_warps=num_warps,
        instructions=len(code),
        trip=_main_trip(code),
    )


def parse(listing: str) -> list[Instruction]:
    """The instructions of a listing, without the padding (a branch to itself and NOPs) behind the last one."""
    code = [Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in _LINE.finditer(listing)]
    while code and (code[-1].opcode == "NOP" or code[-1].operands == f"{code[-1].address:#x}"):
        code.pop()
    return code


@dataclass(frozen=True)
class _Block:
    start: int  # instructions [start, stop)
    stop: int
    successors: tuple[int, ...]  # block numbers


def _flow(instruction: Instruction) -> tuple[int | None, bool] | None:
    """(address jumped to, may fall through) of an instruction that ends a block, else None."""
    match instruction.stem:
        case "BRA" | "JMP" | "CALL":
            target = _ADDRESS.search(instruction.operands)
            # `@P0 BRA x`, `BRA.U UP0, x`. A call may return or not, since ptxas also leaves loops by CALL.REL.NOINC.
            falls = instruction.predicate or not _ADDRESS.match(instruction.operands) or instruction.stem == "CALL"
            return (int(target[1], 16) if target else None), bool(falls)
        case "EXIT" | "RET" | "BRX" | "BRXU" | "JMX" | "JMXU" | "KILL":
            return None, bool(instruction.predicate)
    return None


def _blocks(code: Sequence[Instruction]) -> list[_Block]:
    index = {instruction.address: i for i, instruction in enumerate(code)}
    flows = {i: flow for i, instruction in enumerate(code) if (flow := _flow(instruction))}
    targets = {index[target] for target, _ in flows.values() if target in index}
    starts = sorted(({0} | targets | {i + 1 for i in flows}) & set(range(len(code))))
    number = {start: block for block, start in enumerate(starts)}
    blocks = []
    for start, stop in zip(starts, [*starts[1:], len(code)], strict=True):
        target, falls = flows.get(stop - 1, (None, True))
        following = ([index[target]] if target in index else []) + ([stop] if falls and stop < len(code) else [])
        blocks.append(_Block(start, stop, tuple(number[i] for i in following)))
    return blocks


def _reverse_postorder(blocks: Sequence[_Block]) -> list[int]:
    """The blocks that can be reached, each before its successors (jumps back in loops apart)."""
    postorder, seen, stack = list[int](), set[int](), [(0, False)]
    while stack:
        block, successors_done = stack.pop()
        if successors_done:
            postorder.append(block)
        elif block not in seen:
            seen.add(block)
            stack += [(block, True), *((successor, False) for successor in blocks[block].successors)]
    return postorder[::-1]


def _natural_loops(blocks: Sequence[_Block], order: Sequence[int]) -> dict[int, set[int]]:
    """{head: blocks, nested loops included}; a jump to a block that dominates the jump's own makes a loop."""
    predecessors = {block: [p for p in order if block in blocks[p].successors] for block in order}
    dominators = {block: set(order) for block in order} | {order[0]: {order[0]}}
    previous: dict[int, set[int]] = {}
    while dominators != previous:
        previous = dict(dominators)
        for block in order[1:]:
            dominators[block] = set.intersection(*(dominators[p] for p in predecessors[block])) | {block}
    loops: dict[int, set[int]] = {}
    for source in order:
        for head in dominators[source].intersection(blocks[source].successors):
            body = loops.setdefault(head, {head})
            pending = [source]
            while pending:
                if (block := pending.pop()) not in body:
                    body.add(block)
                    pending += predecessors[block]
    return loops


def _heaviest_path(blocks: Sequence[_Block], body: Sequence[int], weight: Mapping[int, tuple[int, int]]) -> list[int]:
    """The path from the first block of `body` (in reverse postorder) to a jump back to it whose weights sum highest."""
    head = body[0]
    position = {block: i for i, block in enumerate(body)}
    best = {head: (weight[head], [head])}
    for block in body:
        (gain, size), path = best[block]
        for successor in blocks[block].successors:
            if position.get(successor, -1) > position[block]:  # neither leaves the loop nor jumps back
                new = (gain + weight[successor][0], size + weight[successor][1])
                if successor not in best or new > best[successor][0]:
                    best[successor] = new, [*path, successor]
    return max((best[block] for block in body if head in blocks[block].successors), key=lambda candidate: candidate[0])[1]


def _main_trip(code: Sequence[Instruction]) -> Trip:
    blocks = _blocks(code)
    order = _reverse_postorder(blocks)
    kinds = [Counter(instruction.kind for instruction in code[b.start : b.stop]) for b in blocks]

    def count(group: Iterable[int], wanted: set[str]) -> int:
        return sum(kinds[block][name] for block in group for name in wanted)

    loops = {head: body for head, body in _natural_loops(blocks, order).items() if count(body, _WORK)}
    if not loops:
        return _summarize(None, code)
    own = {head: body.difference(*(b for b in loops.values() if b < body)) for head, body in loops.items()}
    goal = {"mma"} if any(count(body, {"mma"}) for body in own.values()) else _LOADS_AND_FMAS
    head = max(loops, key=lambda h: (count(own[h], goal), -len(loops[h])))
    # Most MMAs count first, then fewest instructions; a nested loop has no weight.
    weight = dict.fromkeys(loops[head], (0, 0)) | {b: (count([b], goal), -kinds[b].total()) for b in own[head]}
    path = _heaviest_path(blocks, [block for block in order if block in loops[head]], weight)
    trip = [i for block in path if block in own[head] for i in code[blocks[block].start : blocks[block].stop]]
    return _summarize(code[blocks[head].start].address, trip)


def _summarize(head: int | None, trip: Sequence[Instruction]) -> Trip:
    classes = Counter(instruction.kind for instruction in trip)
    forms = Counter(_mma_form(instruction) for instruction in trip if instruction.kind == "mma")
    copies: dict[str, Counter[int]] = {}
    for opcode in (instruction.opcode for instruction in trip if instruction.kind in ("ldgsts", "ldg")):
        stem, *suffixes = opcode.split(".")
        copies.setdefault(stem, Counter())[next((_WIDTHS[s] for s in suffixes if s in _WIDTHS), 4)] += 1
    return Trip(
        head=head,
        instructions=len(trip),
        classes={name: classes[name] for name in CLASSES},
        mma=tuple(MmaForm(*form, count) for form, count in forms.items()),
        copies={stem: dict(widths) for stem, widths in copies.items()},
        serialized=_is_serialized(trip),
    )


def _mma_form(instruction: Instruction) -> tuple[str, str, str, str]:
    """(opcode, shape, transposed, operands) of `MmaForm`."""
    shape = re.search(r"\.(\d+)x(\d+)x(\d+)\b|\.(16|8)(8)(\d{1,3})\b", instruction.opcode)  # .16816 is 16x8x16
    transposed = "".join(name for name in "AB" if f"tnsp{name}" in instruction.operands)
    operands = "RR"
    if instruction.stem.startswith("UTC"):
        operands = "TS" if instruction.operands.startswith("tmem") else "SS"
    elif instruction.stem.endswith("GMMA"):  # D, A, gdesc of B, C; or D, gdesc of both, C
        operands = "RS" if instruction.operands.split(", ")[1].startswith("R") else "SS"
    return instruction.opcode, "x".join(n for n in shape.groups() if n) if shape else "", transposed, operands


def _is_serialized(trip: Sequence[Instruction]) -> bool:
    """Whether there is a wait for all MMAs between any two warpgroup MMAs, including the last and the next trip's first."""
    events = ""
    for instruction in trip:
        if instruction.stem.endswith("GMMA"):
            events += "M"
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR") and instruction.operands.endswith(" 0x0"):
            events += "W"
    return events.count("M") > 1 and "MM" not in events + events[0]
