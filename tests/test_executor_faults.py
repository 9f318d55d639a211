"""What the executor refuses: each kind of fault by a smallest kernel that commits it, and one beside it that does not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from bench.executor import Execution, Kind, Region, decode, execute
from tests.ptx import BASE, kernel, run

#: %rd10: 16 bytes of p0 for each thread; %r10: 16 bytes of shared memory; %r11: the neighbouring warp's; %p1: thread 0;
#: %p2: warp 0; %p3: an odd lane.
PLACES = """
\tmul.wide.u32 %rd9, %r199, 16;
\tadd.s64 %rd10, %rd70, %rd9;
\tshl.b32 %r9, %r199, 4;
\tmov.b32 %r8, global_smem;
\tadd.s32 %r10, %r8, %r9;
\txor.b32 %r11, %r9, 512;
\tadd.s32 %r11, %r11, %r8;
\tsetp.eq.b32 %p1, %r199, 0;
\tsetp.lt.u32 %p2, %r199, 32;
\tand.b32 %r12, %r199, 1;
\tsetp.eq.b32 %p3, %r12, 1;
\tmov.b32 %r1, 5;
"""
BARRIER = "\tbar.sync 0;\n"
STORE, LOAD = "\tst.shared.b32 [%r10], %r199;\n", "\tld.shared.b32 %r2, [%r10];\n"
THEIRS = "\tld.shared.b32 %r2, [%r11];\n"
COPY = "\tcp.async.cg.shared.global [%r10], [%rd10], 16;\n"
COMMIT, WAIT = "\tcp.async.commit_group;\n", "\tcp.async.wait_group 0;\n"


class Case(NamedTuple):
    """A body that is wrong, its fault, words of the fault's text, and a body that is right."""

    wrong: str
    kind: Kind
    words: str
    right: str
    threads: int = 64


CASES = {
    "read past the end": Case(
        "\tld.global.b32 %r2, [%rd10+1020];\n",
        Kind.OUT_OF_BOUNDS,
        "read of 4 bytes out of bounds",
        "\tld.global.b32 %r2, [%rd10];\n",
    ),
    "write before the start": Case(
        "\tst.global.b32 [%rd10+-16], %r1;\n",
        Kind.OUT_OF_BOUNDS,
        "byte -16 of p0, which has 1024",
        "\tst.global.b32 [%rd10], %r1;\n",
    ),
    "misaligned vector": Case(
        "\tld.global.v2.b32 {%r2,%r3}, [%rd10+4];\n",
        Kind.MISALIGNED,
        "no multiple of 8",
        "\tld.global.v2.b32 {%r2,%r3}, [%rd10+8];\n",
    ),
    "misaligned shared": Case("\tst.shared.b32 [%r10+2], %r1;\n", Kind.MISALIGNED, "no multiple of 4", STORE),
    "misaligned copy": Case(
        "\tcp.async.cg.shared.global [%r10], [%rd10+8], 16;\n" + COMMIT + WAIT,
        Kind.MISALIGNED,
        "no multiple of 16",
        COPY + COMMIT + WAIT,
    ),
    "shared bounds": Case("\tst.shared.b32 [%r10+4096], %r1;\n", Kind.SHARED_BOUNDS, "out of bounds", STORE),
    "uninitialised": Case(LOAD, Kind.UNINITIALISED, "uninitialised shared memory", STORE + LOAD),
    "read without a barrier": Case(STORE + THEIRS, Kind.READ_RACE, "written by warp 0", STORE + BARRIER + THEIRS),
    "overwrite without a barrier": Case(
        STORE + BARRIER + THEIRS + "\tst.shared.b32 [%r10], %r1;\n",
        Kind.OVERWRITE_RACE,
        "read by warp",
        STORE + BARRIER + THEIRS + BARRIER + "\tst.shared.b32 [%r10], %r1;\n",
    ),
    "two write one place": Case(
        "\tst.shared.b32 [%r8], %r199;\n", Kind.WRITE_RACE, "two warps write different values", "\tst.shared.b32 [%r8], %r1;\n"
    ),
    "copy in flight": Case(COPY + COMMIT + LOAD + WAIT, Kind.IN_FLIGHT, "issued at PTX line", COPY + COMMIT + WAIT + LOAD),
    "copy of an open group": Case(COPY + WAIT + LOAD + COMMIT + WAIT, Kind.IN_FLIGHT, "in flight", COPY + COMMIT + WAIT + LOAD),
    "a copy is its warp's": Case(
        COPY + COMMIT + WAIT + THEIRS, Kind.READ_RACE, "written by warp", COPY + COMMIT + WAIT + BARRIER + THEIRS
    ),
    "copy never waited for": Case(COPY + COMMIT, Kind.PENDING, "1 cp.async", COPY + COMMIT + WAIT),
    "barrier in a branch": Case(
        "\t@%p3 bra $L1;\n" + BARRIER + "$L1:\n", Kind.DIVERGED, "lanes are missing", "\t@%p3 bra $L1;\n$L1:\n" + BARRIER
    ),
    "shuffle in a branch": Case(
        "\t@%p3 bra $L1;\n\tshfl.sync.idx.b32 %r2, %r1, 0, 31, -1;\n$L1:\n",
        Kind.DIVERGED,
        "asked 0xffffffff, here 0x55555555",
        "\t@%p3 bra $L1;\n\tshfl.sync.idx.b32 %r2, %r1, 0, 31, 0x55555555;\n$L1:\n",
    ),
    "vote without its members": Case(
        "\t@%p3 vote.sync.any.pred %p4, %p3, -1;\n", Kind.DIVERGED, "here 0xaaaaaaaa", "\tvote.sync.any.pred %p4, %p3, -1;\n"
    ),
    "barrier that one warp skips": Case(
        "\t@%p2 bra $L1;\n\tbar.sync 1, 64;\n$L1:\n",
        Kind.DEADLOCK,
        "deadlock at barrier 1",
        "\t@%p2 bra $L1;\n\tbar.sync 1, 32;\n$L1:\n",
    ),
    "endless": Case(
        "$L1:\n\tadd.s32 %r1, %r1, 1;\n\tbra.uni $L1;\n", Kind.TOO_LONG, "runs without end", "\tadd.s32 %r1, %r1, 1;\n"
    ),
    "trap": Case("\t@%p3 trap;\n", Kind.TRAP, "trap", "\t@!%p3 add.s32 %r1, %r1, 1;\n"),
    "barrier of half a warp": Case("\tbar.sync 1, 48;\n", Kind.BARRIER, "48 threads", "\tbar.sync 1, 64;\n"),
    "no mbarrier": Case(
        "\t@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 16;\n",
        Kind.MBARRIER,
        "no mbarrier is there",
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;\n",
    ),
    "mbarrier twice": Case(
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;\n" * 2,
        Kind.MBARRIER,
        "already",
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;\n\t@%p1 mbarrier.inval.shared::cta.b64 [%r8];\n" * 2,
    ),
    "one arrival too many": Case(
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;\n\t@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 16;\n"
        "\t@%p1 mbarrier.arrive.shared::cta.b64 _, [%r8];\n",
        Kind.MBARRIER,
        "awaits none",
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 2;\n\t@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8], 16;\n"
        "\t@%p1 mbarrier.arrive.shared::cta.b64 _, [%r8];\n",
    ),
    "mbarrier of which a warp was not told": Case(
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 64;\n\tmbarrier.arrive.shared::cta.b64 _, [%r8];\n",
        Kind.MBARRIER,
        "has not been told",
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 64;\n" + BARRIER + "\tmbarrier.arrive.shared::cta.b64 _, [%r8];\n",
    ),
    "an mbarrier that nobody completes": Case(
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;\n"
        + BARRIER
        + "$L1:\n\tmbarrier.try_wait.parity.shared::cta.b64 %p4, [%r8], 0;\n\t@!%p4 bra.uni $L1;\n",
        Kind.DEADLOCK,
        "waits for what nobody will do",
        "\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;\n"
        + BARRIER
        + "\t@%p1 mbarrier.arrive.shared::cta.b64 _, [%r8];\n"
        + "$L1:\n\tmbarrier.try_wait.parity.shared::cta.b64 %p4, [%r8], 0;\n\t@!%p4 bra.uni $L1;\n",
    ),
}


def executed(body: str, threads: int, **options: object) -> Execution:
    return run(kernel(PLACES + body, 1, threads), [np.arange(1024, dtype=np.uint8)], limit=10000, **options)


@pytest.mark.parametrize("name", CASES)
def test_faults(name: str) -> None:
    case = CASES[name]
    found = executed(case.wrong, case.threads).faults
    text = "\n".join(str(fault) for fault in found if fault.kind == case.kind)
    assert case.words in text and "kernel program 0 warp" in text and "kernel.py:7" in text, text
    assert not (right := executed(case.right, case.threads).faults), right[0]


def test_a_fault_says_where() -> None:
    (fault,) = executed("\t@%p3 st.global.b32 [%rd10+4096], %r1;\n", 32).faults
    line = next(k for k, text in enumerate(kernel(PLACES + "\t@%p3 st.global.b32", 1).split("\n"), 1) if "st.global" in text)
    assert (fault.where.line, fault.warp, fault.lane, fault.program, fault.count) == (line, 0, 1, 0, 16)
    assert fault.where.source == "kernel.py:7" and fault.address == BASE + 4096 + 16
    assert str(fault) == (
        f"global write of 4 bytes out of bounds: kernel program 0 warp 0 lane 1, address {BASE + 4112:#x}; byte 4112 of p0, "
        f"which has 1024, 16 times\n    PTX line {line}: @%p3 st.global.b32 [%rd10+4096], %r1\n    kernel.py:7"
    )


def test_a_tensor_that_is_only_read() -> None:
    ptx = kernel(PLACES + "\tst.global.b32 [%rd10], %r1;\n", 1)
    (fault,) = run(ptx, [np.zeros(1024, np.uint8)], readable=[0]).faults
    assert fault.kind == Kind.READ_ONLY and "read-only" in str(fault)


def test_bytes_outside_a_view() -> None:
    data, readable = np.zeros(512, np.uint8), np.ones(512, np.uint8)
    readable[100] = 0
    program = decode(kernel(PLACES + "\tld.global.b32 %r2, [%rd10+4];\n", 1))
    done = execute(
        program, (1, 1, 1), np.array([BASE], np.uint64).view(np.uint8), [Region("x", BASE, data, readable)], {}, 1024
    )
    (fault,) = done.faults
    assert fault.kind == Kind.HOLE and fault.lane == 6 and fault.address == BASE + 100


def test_bytes_that_may_be_read_but_not_written() -> None:
    data, own = np.zeros(512, np.uint8), np.ones(512, np.uint8)
    own[256:] = 0
    program = decode(kernel(PLACES + "\tld.global.b32 %r2, [%rd10+4];\n\tst.global.b32 [%rd10+4], %r2;\n", 1))
    region = Region("x", BASE, data, own=own)
    (fault,) = execute(program, (1, 1, 1), np.array([BASE], np.uint64).view(np.uint8), [region], {}, 1024).faults
    assert fault.kind == Kind.HOLE and fault.lane == 16 and "write to a byte outside the view" in str(fault)


@pytest.mark.parametrize("kind", ["b8", "b16", "b32"])
def test_programs_that_meet_on_a_byte(kind: str) -> None:
    width = int(kind[1:]) // 8
    value = "%r1" if kind == "b32" else "%rs1"
    place = f"\tmov.u32 %r20, %ctaid.x;\n\tcvt.u16.u32 %rs1, %r20;\n\tmul.wide.u32 %rd1, %r20, {width};\n"
    place += "\tadd.s64 %rd1, %rd1, %rd70;\n"
    apart = place + f"\t@%p1 st.global.{kind} [%rd1], {value};\n"
    assert not run(kernel(PLACES + apart, 1), [np.zeros(1024, np.uint8)], grid=4).faults
    together = place + f"\t@%p1 st.global.{kind} [%rd70], {value};\n"
    (fault,) = run(kernel(PLACES + together, 1), [np.zeros(1024, np.uint8)], grid=2).faults
    assert fault.kind == Kind.PROGRAM_RACE and fault.program == 1 and "program 0 wrote it" in str(fault)
    reads = place + f"\tsetp.eq.b32 %p4, %r20, 0;\n\t@%p4 ld.global.{kind} {value}, [%rd70];\n"
    reads += f"\t@!%p4 st.global.{kind} [%rd70], {value};\n"
    (fault, *_) = run(kernel(PLACES + reads, 1), [np.zeros(1024, np.uint8)], grid=2).faults
    assert fault.kind == Kind.PROGRAM_RACE and "program 0 read it" in str(fault)


@pytest.mark.parametrize("seed", range(1, 21))
def test_a_race_is_found_in_any_order(seed: int) -> None:
    kinds = {fault.kind for fault in executed(STORE + THEIRS, 64, seed=seed).faults}
    assert kinds & {Kind.READ_RACE, Kind.OVERWRITE_RACE, Kind.UNINITIALISED}
    assert not executed(STORE + BARRIER + THEIRS, 64, seed=seed).faults


def test_without_checks_only_bounds_are_held() -> None:
    assert not executed(STORE + THEIRS + COPY + COMMIT + WAIT, 64, check=False).faults
    assert executed("\tst.shared.b32 [%r10+4096], %r1;\n", 64, check=False).faults[0].kind == Kind.SHARED_BOUNDS
