"""bench.sass reads the right figures off listings written by hand, small enough to count in one's head."""

import importlib.util

import pytest

from bench import sass


def listing(*lines: str) -> str:
    """What cuobjdump prints for a kernel `f`; instruction i lies at address 16 * i."""
    code = "\n".join(f"        /*{16 * i:04x}*/    {line} ;   /* 0x000e220000000800 */" for i, line in enumerate(lines))
    return f" Function f:\n  REG:40 STACK:8 SHARED:0 LOCAL:0\n\t\tFunction : f\n{code}\n"


def instruction(line: str) -> sass.Instruction:
    return sass.parse(listing(line))[0]


def trip(*lines: str) -> sass.Trip:
    """The audit of `lines` as the body of a loop."""
    return sass.audit_listing(listing("S2R R0, SR_TID.X", *lines, "@P0 BRA 0x10", "EXIT")).trip


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
