"""bench.sass reads the right figures off machine code, and bench.aot compiles what a launch would.

The first half reads listings written by hand, small enough to count in one's head. The second compiles kernels whose
instruction counts follow from their tile: a trip's tensor-core instructions must do the tile's multiply-adds, its
copies must bring the tile's bytes.
"""

import functools
import importlib.util
import math
import os
from typing import NamedTuple

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from bench import aot, sass

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def listing(*lines: str) -> str:
    """What cuobjdump prints for a kernel `f`; instruction i lies at address 16 * i."""
    code = "\n".join(f"        /*{16 * i:04x}*/    {line} ;   /* 0x000e220000000800 */" for i, line in enumerate(lines))
    return f" Function f:\n  REG:40 STACK:8 SHARED:0 LOCAL:0\n\t\tFunction : f\n{code}\n"


def instruction(line: str) -> sass.Instruction:
    return sass.parse(listing(line))[0]


def trip(*lines: str) -> sass.Trip:
    """The audit of `lines` as the body of a loop."""
    return sass.audit_listing(listing("S2R R0, SR_TID.X", *lines, "@P0 BRA 0x10", "EXIT")).trip


# ------------------------------------------------------------------------------------------------ listings by hand


def test_parse_takes_a_line_apart_and_drops_the_padding():
    code = sass.parse(listing("@!P3 LDG.E.128 R4, [R2.64+0x10]", "@!UP0 UMOV UR4, 0x1", "EXIT", "BRA 0x30", "NOP"))
    assert code == [
        sass.Instruction(0, "@!P3", "LDG.E.128", "R4, [R2.64+0x10]"),
        sass.Instruction(16, "@!UP0", "UMOV", "UR4, 0x1"),
        sass.Instruction(32, "", "EXIT", ""),
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("HGMMA.64x128x16.F32 R24, gdesc[UR8], R24", "mma"),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "mma"),
        ("DMMA.884 R4, R8, R12, R4", "mma"),
        ("@P1 UTCHMMA gdesc[UR6], gdesc[UR8], tmem[UR9], tmem[UR34], idesc[UR35], UPT", "mma"),
        ("HFMA2.MMA R3, -RZ, RZ, 0, 0", "mov"),
        ("HFMA2.MMA R3, R4, R5, R3", "fma"),
        ("FFMA R3, R4, R5, R3", "fma"),
        ("UTMALDG.4D [UR8], [UR4], desc[UR6]", "tma"),
        ("LDGSTS.E.BYPASS.128 [R3], [R4.64]", "ldgsts"),
        ("LDGDEPBAR", "barrier"),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x1", "barrier"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR9], R11", "barrier"),
        ("LDSM.16.M88.4 R4, [R2]", "lds"),
        ("@!PT LDS RZ, [RZ]", "other"),
        ("LDL.LU.64 R4, [R1+0x8]", "local"),
        ("RED.E.ADD.F32.FTZ.RN [R2.64], R5", "stg"),
        ("IMAD.MOV.U32 R5, RZ, RZ, R7", "mov"),
        ("IMAD.X R5, RZ, RZ, R7, P0", "imad"),
        ("IMAD.WIDE R4, R5, 0x2, R6", "imad"),
        ("UIADD3 UR4, UR4, 0x1, URZ", "uniform"),
        ("R2UR UR4, R5", "uniform"),
        ("UISETP.GE.AND UP0, UPT, UR4, 0x3, UPT", "pred"),
        ("ISETP.GE.AND P0, PT, R4, 0x3, PT", "pred"),
        ("F2FP.BF16.F32.PACK_AB R4, R5, R4", "convert"),
        ("LOP3.LUT R4, R5, 0x3, RZ, 0xc0, !PT", "alu"),
        ("LDTM.x128 R4, tmem[UR11]", "tmem"),
        ("BRA.U UP0, 0x100", "control"),
        ("SOMETHING.NEW R4", "other"),
    ],
)
def test_class_of_an_instruction(line, kind):
    assert instruction(line).kind == kind


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ("HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24, gsb0", "64x256x16  SS"),
        ("HGMMA.64x256x16.F32 R24, gdesc[UR8].tnspB, R24", "64x256x16 B SS"),
        ("HGMMA.64x128x16.F32 R24, gdesc[UR8].tnspA.tnspB, !UPT, gsb0", "64x128x16 AB SS"),
        ("HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR20], R24, gsb0", "64x256x16  RS"),
        ("QGMMA.64x128x32.F32.E5M2.E5M2 R24, gdesc[UR8], R24", "64x128x32  SS"),
        ("HMMA.16816.F32 R4, R8.reuse, R12, R4", "16x8x16  RR"),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", "16x8x8  RR"),
        ("IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4", "16x8x32  RR"),
        ("DMMA.884 R4, R8, R12, R4", "8x8x4  RR"),
        ("DMMA.16x8x16 R4, R8, R12, R4", "16x8x16  RR"),
        ("UTCHMMA gdesc[UR6], gdesc[UR8], tmem[UR9], tmem[UR34], idesc[UR35], UPT", "  SS"),
        ("UTCHMMA tmem[UR6], gdesc[UR8], tmem[UR9], tmem[UR34], idesc[UR35], UPT", "  TS"),
    ],
)
def test_form_of_an_mma(line, form):
    (found,) = trip(line).mma
    assert f"{found.shape} {found.transposed} {found.operands}" == form
    assert (found.opcode, found.count) == (line.split()[0], 1)


def test_forms_are_counted_apart():
    plain, transposed = "HGMMA.64x64x16.F32 R24, gdesc[UR8], R24", "HGMMA.64x64x16.F32 R24, gdesc[UR8].tnspA, R24"
    from_registers = "HGMMA.64x64x16.F32 R24, R4, gdesc[UR8], R24"
    forms = trip(plain, transposed, plain, from_registers).mma
    assert [str(f) for f in forms] == ["2xHGMMA.64x64x16.F32", "1xHGMMA.64x64x16.F32.tA", "1xHGMMA.64x64x16.F32/RS"]


def test_copy_widths():
    found = trip(
        "LDGSTS.E.BYPASS.LTC128B.128 [R3], [R4.64]",
        "LDGSTS.E.BYPASS.LTC128B.128 [R3+0x10], [R4.64]",
        "LDGSTS.E.64 [R3], [R4.64]",
        "LDG.E R4, [R4.64]",
        "LDG.E.U16.CONSTANT R4, [R4.64]",
        "LDG.E.ENL2.256 R4, R8, [R4.64]",
        "LDS.U8 R4, [R4]",
    )
    assert found.copies == {"LDGSTS": {16: 2, 8: 1}, "LDG": {4: 1, 2: 1, 32: 1}}
    assert (found.narrowest_load, found.widest_load) == (2, 32)


def test_trip_goes_through_the_mmas_and_past_waits_and_inner_loops():
    audit = sass.audit_listing(
        listing(
            "STL [R1], R0",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR9], R1",  # 0x10: head of the main loop
            "@!P0 BRA 0x110",  # to the poll behind the kernel's end
            "BRA.U UP0, 0x70",  # around the MMAs
            "UMOV UR4, URZ",
            "UTCHMMA gdesc[UR6], gdesc[UR8], tmem[UR9], tmem[UR34], idesc[UR35], UPT",
            "UTCHMMA gdesc[UR6], gdesc[UR8], tmem[UR9], tmem[UR34], idesc[UR35], UPT",
            "@P2 BRA 0xa0",  # 0x70: one way is shorter
            "IADD3 R1, R1, 0x1, RZ",
            "IADD3 R1, R1, 0x1, RZ",
            "LDG.E.64 R4, [R2.64]",  # 0xa0: an inner loop
            "FADD R5, R4, R5",
            "@P3 BRA 0xa0",
            "IADD3 R2, R2, 0x1, RZ",
            "@P1 CALL.REL.NOINC 0x100",  # leaves the loop
            "BRA 0x10",
            "EXIT",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR9], R1",  # 0x110
            "@!P0 BRA 0x110",
            "BRA 0x30",
        )
    )
    found = audit.trip
    assert found.head == 0x10
    assert {name: n for name, n in found.classes.items() if n} == {
        "barrier": 1, "control": 5, "uniform": 1, "mma": 2, "alu": 1,
    }  # fmt: skip
    assert found.instructions == 10
    assert found.copies == {}
    assert (audit.instructions, audit.spills, audit.stack_bytes, audit.registers) == (20, 1, 8, 40)


def test_a_wait_in_line_and_a_call_are_part_of_the_trip():
    wait = ["SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR9], R1", "@!P0 BRA 0x20"]
    found = trip("LDG.E R4, [R2.64]", *wait, "CALL.REL.NOINC 0x70", "FADD R5, R4, R5")
    assert found.head == 0x10
    assert found.instructions == 6


def test_a_loop_that_only_waits_is_no_main_loop():
    audit = sass.audit_listing(listing("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR9], R1", "@!P0 BRA 0x0", "EXIT"))
    assert audit.trip.head is None


def test_main_loop_without_mmas_is_the_one_that_computes():
    copying = ["LDG.E R4, [R2.64]", "@P0 BRA 0x0"]
    computing = ["LDS R4, [R3]", *["FFMA R5, R4, R4, R5"] * 3, "@P0 BRA 0x20"]
    audit = sass.audit_listing(listing(*copying, *computing, "EXIT"))
    assert audit.trip.head == 0x20
    assert audit.trip.classes["fma"] == 3


def test_kernel_without_a_loop_is_one_trip():
    audit = sass.audit_listing(listing("LDG.E.128 R4, [R2.64]", "@P0 BRA 0x30", "FADD R4, R4, R4", "EXIT"))
    assert audit.trip.head is None
    assert audit.trip.instructions == 4
    assert audit.trip.widest_load == 16


MMA = "HGMMA.64x256x16.F32 R24, gdesc[UR8], R24, gsb0"
DRAIN = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
KEEP_ONE = "WARPGROUP.DEPBAR.LE gsb0, 0x1"


@pytest.mark.parametrize(
    ("lines", "serialized"),
    [
        ([MMA, DRAIN, MMA, DRAIN], True),
        ([DRAIN, MMA, DRAIN, MMA], True),  # the last is waited for at the head of the next trip
        ([MMA, MMA, DRAIN], False),
        ([MMA, DRAIN, DRAIN, MMA], False),
        ([MMA, KEEP_ONE, MMA, KEEP_ONE], False),  # two are in flight
        ([MMA, DRAIN], False),
        (["FADD R4, R4, R4"], False),
    ],
)
def test_serialized(lines, serialized):
    assert trip(*lines).serialized is serialized


def test_one_kernel_a_listing():
    one = listing("EXIT")
    with pytest.raises(ValueError, match=r"expected one kernel.*'f', 'f'"):
        sass.audit_listing(one + one)


def test_bytes_that_are_no_cubin():
    with pytest.raises(ValueError, match="no kernel in 5 bytes"):
        sass.audit(b"hello")


@pytest.mark.parametrize("found", [None, importlib.util.find_spec("json")])
def test_missing_tool_is_named(monkeypatch, found):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(FileNotFoundError, match="cuobjdump comes with Triton's wheel"):
        sass.find_tool("cuobjdump")


# ------------------------------------------------------------------------------------------------ compiled kernels


class Size(NamedTuple):
    m: int
    n: int
    k: int


@triton.jit
def gemm(
    x, w, y, size, bias, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr = "tf32", W_IS_KN: tl.constexpr = False, MAY_BE_EMPTY: tl.constexpr = False,
):  # fmt: skip
    """y[m, n] = x[m, k] @ w[n, k]^T + bias[n]; w is [k, n] where W_IS_KN."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    a = x + ((offs_m % size.m)[:, None] * size.k + offs_k[None, :])  # [BLOCK_M, BLOCK_K]
    if W_IS_KN:
        b = w + (offs_k[:, None] * size.n + offs_n[None, :])  # [BLOCK_K, BLOCK_N]
        step = BLOCK_K * size.n
    else:
        b = w + ((offs_n % size.n)[None, :] * size.k + offs_k[:, None])
        step = BLOCK_K
    trips = tl.cdiv(size.k, BLOCK_K)
    if not MAY_BE_EMPTY:
        trips = tl.maximum(trips, 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32)
    for _ in range(0, trips):
        acc = tl.dot(tl.load(a), tl.load(b), acc, input_precision=PRECISION, out_dtype=acc.dtype)
        a += BLOCK_K
        b += step
    if bias is not None:
        acc += tl.load(bias + offs_n)[None, :]
    mask = (offs_m < size.m)[:, None] & (offs_n < size.n)[None, :]
    tl.store(y + offs_m[:, None] * size.n + offs_n[None, :], acc.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["free"])
def no_op(pointer, number, free, pair, absent, flag: tl.constexpr, other=16):
    tl.store(pointer, number + free + pair[0] + other)


BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}


@functools.cache
def compiled(arch, dtype, block, num_warps, k=256, **constexprs):
    tensor = aot.Pointer(dtype)
    args = {"x": tensor, "w": tensor, "y": tensor, "size": Size(512, 256, k), "bias": None, **constexprs}
    return aot.compile_ahead(
        gemm, args | dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), block, strict=True)), arch=arch, num_warps=num_warps
    )


def check_tile(audit: sass.KernelAudit, dtype: str, block: tuple[int, int, int]) -> None:
    """The trip brings both tiles in 16-byte copies, and (where shapes are known) multiplies them."""
    m, n, k = block
    threads = audit.num_warps * 32
    assert audit.trip.copies == {"LDGSTS": {16: (m + n) * k * BYTES[dtype] // (16 * threads)}}
    assert audit.shared_bytes >= 2 * (m + n) * k * BYTES[dtype]  # two stages or more
    assert (audit.spills, audit.stack_bytes) == (0, 0)
    assert audit.registers <= 255
    assert audit.trip.instructions == sum(audit.trip.classes.values()) < audit.instructions
    macs = 0
    for form in audit.trip.mma:
        warps_together = 4 if form.opcode.startswith("HGMMA") else 1
        macs += form.count * math.prod(map(int, form.shape.split("x"))) * audit.num_warps // warps_together
    assert macs == (m * n * k if audit.trip.mma else 0)
    assert sum(form.count for form in audit.trip.mma) == audit.trip.classes["mma"]


@pytest.mark.aot
@pytest.mark.parametrize(
    ("arch", "dtype", "block", "num_warps", "opcode"),
    [
        (80, "fp16", (64, 64, 32), 4, "HMMA.16816.F32"),
        (80, "bf16", (64, 64, 32), 4, "HMMA.16816.F32.BF16"),
        (80, "fp32", (64, 64, 32), 4, "HMMA.1688.F32.TF32"),
        (80, "fp64", (32, 32, 16), 4, "DMMA.884"),
        (90, "fp16", (128, 128, 64), 4, "HGMMA.64x128x16.F32"),
        (90, "bf16", (128, 256, 64), 8, "HGMMA.64x256x16.F32.BF16"),
        (90, "fp32", (64, 64, 32), 4, "HGMMA.64x64x8.F32.TF32"),
        (90, "fp64", (32, 32, 16), 4, "DMMA"),  # 16x8x16 or 8x8x4: ptxas and Triton differ by version
    ],
)
def test_gemm_on_tensor_cores(arch, dtype, block, num_warps, opcode):
    audit = sass.audit(compiled(arch, dtype, block, num_warps))
    assert audit.name == "gemm"
    assert audit.num_warps == num_warps
    check_tile(audit, dtype, block)
    (form,) = audit.trip.mma
    assert form.opcode.startswith(opcode)
    assert form.operands == ("SS" if form.opcode.startswith("HGMMA") else "RR")
    assert form.transposed == ""
    assert not audit.trip.serialized


@pytest.mark.aot
def test_gemm_on_sm_100_says_neither_shape_nor_types():
    audit = sass.audit(compiled(100, "fp16", (128, 128, 64), 4))
    assert audit.trip.mma == (sass.MmaForm("UTCHMMA", "", "", "SS", 4),)  # one 128x128x16 a program each
    assert audit.trip.copies == {"LDGSTS": {16: 16}}
    assert audit.spills == 0


@pytest.mark.aot
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_ieee_fp32_runs_on_no_tensor_core(arch):
    block = (64, 64, 16)
    audit = sass.audit(compiled(arch, "fp32", block, 4, PRECISION="ieee"))
    check_tile(audit, "fp32", block)
    assert audit.trip.mma == ()
    fmas = math.prod(block) // 128
    if arch == 100:  # has FFMA2, two in one, and Triton 3.8 uses it now and then
        assert fmas // 2 <= audit.trip.classes["fma"] <= fmas
    else:
        assert audit.trip.classes["fma"] == fmas


@pytest.mark.aot
def test_spills():
    audit = sass.audit(compiled(80, "fp16", (128, 256, 64), 4))  # 256 accumulators a thread, 255 registers
    assert audit.registers == 255
    assert audit.stack_bytes > 0
    assert audit.spills >= audit.trip.classes["local"] > 0


@pytest.mark.aot
def test_operand_read_transposed():
    (form,) = sass.audit(compiled(90, "fp16", (128, 128, 64), 4, W_IS_KN=True)).trip.mma
    assert (form.transposed, form.operands) == ("B", "SS")


@pytest.mark.aot
def test_rows_that_are_not_aligned_to_16_elements_are_loaded_one_by_one():
    audit = sass.audit(compiled(80, "fp16", (64, 64, 32), 4, k=264))
    assert (audit.trip.narrowest_load, audit.trip.widest_load) == (2, 2)
    assert audit.trip.copies["LDG"][2] == (64 + 64) * 32 // 128


@pytest.mark.aot
def test_a_loop_that_may_be_empty_is_serialized_by_triton_3_6():
    audit = sass.audit(compiled(90, "fp16", (128, 256, 64), 8, MAY_BE_EMPTY=True))
    assert audit.trip.serialized is triton.__version__.startswith("3.6.")


@pytest.mark.aot
def test_options_reach_the_compiler():
    args = {name: aot.Pointer("fp16") for name in "xwy"} | {"size": Size(512, 256, 256), "bias": None}
    args |= {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
    default = sass.audit(aot.compile_ahead(gemm, args, arch=80))
    changed = sass.audit(aot.compile_ahead(gemm, args, arch=80, num_stages=4, maxnreg=64))
    assert changed.shared_bytes - default.shared_bytes == (64 + 64) * 32 * BYTES["fp16"]
    assert changed.registers <= 64 < default.registers


@pytest.mark.aot
def test_bare_cubin():
    kernel = compiled(80, "fp16", (64, 64, 32), 4)
    bare, whole = sass.audit(kernel.asm["cubin"]), sass.audit(kernel)
    assert (bare.shared_bytes, bare.num_warps) == (None, None)
    assert (bare.trip, bare.registers, bare.instructions) == (whole.trip, whole.registers, whole.instructions)


# --------------------------------------------------------------------------------------------------- signatures


def signature(**changes):
    args = {"pointer": aot.Pointer("fp32"), "number": 3, "free": 16, "pair": (3, 3), "absent": 3, "flag": True}
    types, constexprs, attrs = aot.signature_of(no_op, args | changes)
    return types, constexprs, {path for path, hints in attrs.items() if hints}


@pytest.mark.aot
@pytest.mark.parametrize(
    ("value", "kind", "is_hint"), [(3, "i32", False), (32, "i32", True), (2**31, "i64", True), (2**31 + 1, "i64", False)]
)
def test_signature_of_an_integer(value, kind, is_hint):
    types, _, hints = signature(number=value)
    assert (types["number"], (1,) in hints) == (kind, is_hint)


@pytest.mark.aot
def test_signature_of_one():
    types, constexprs, _ = signature(number=1)
    assert (types["number"], constexprs[1,]) == ("constexpr", 1)


@pytest.mark.aot
def test_signature_of_an_argument_that_is_not_specialized():
    for value in (1, 16):
        types, constexprs, hints = signature(free=value)
        assert types["free"] == "i32"
        assert (2,) not in constexprs
        assert (2,) not in hints


@pytest.mark.aot
def test_signature_of_tuples():
    types, constexprs, hints = signature(pair=Size(1, 16, 3))
    assert types["pair"] == ("constexpr", "i32", "i32")
    assert isinstance(types["pair"], Size)  # the kernel reads it by name
    assert constexprs[3, 0] == 1
    assert {path for path in hints if path[0] == 3} == {(3, 1)}
    types, constexprs, hints = signature(pair=((1, 2), None, aot.Pointer("bf16")))
    assert types["pair"] == (("constexpr", "i32"), "constexpr", "*bf16")
    assert constexprs[3, 0, 0] == 1
    assert constexprs[3, 1] is None
    assert (3, 2) in hints


@pytest.mark.aot
def test_signature_of_pointers_none_constants_and_defaults():
    types, constexprs, hints = signature(absent=None)
    assert [types[name] for name in ("pointer", "absent", "flag", "other")] == ["*fp32", "constexpr", "constexpr", "i32"]
    assert (constexprs[4,], constexprs[5,]) == (None, True)
    assert {(0,), (6,)} <= hints
    assert (0,) not in signature(pointer=aot.Pointer("fp32", address=8))[2]


@pytest.mark.aot
def test_signature_names_a_wrong_argument():
    with pytest.raises(TypeError, match="no_op has no argument numbr"):
        signature(numbr=1)
    with pytest.raises(TypeError, match="missing 6 required positional arguments: 'pointer'"):
        aot.signature_of(no_op, {})


@pytest.mark.aot
def test_a_launch_compiles_the_same(monkeypatch):
    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    monkeypatch.setattr(type(triton.runtime.driver), "active", Driver())
    args = {name: aot.Pointer("fp16") for name in "xwy"} | {"size": Size(1, 64, 129), "bias": None}
    args |= {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
    launched = gemm.warmup(**args, grid=(1,), num_warps=8, num_stages=2)
    assert aot.compile_ahead(gemm, args, arch=90, num_warps=8, num_stages=2).hash == launched.hash


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_interpreted_functions_are_not_compiled():
    with pytest.raises(TypeError, match="TRITON_INTERPRET"):
        aot.compile_ahead(gemm, {}, arch=90)
