"""Memory, matrix and warp instructions of the executor against numpy; control flow."""

from __future__ import annotations

import numpy as np
import pytest

from bench.executor import decode
from tests.ptx import BASE, kernel, on_lanes, run

LANES = np.arange(32)
#: %rd10 is the thread's 16 bytes of p0, %rd11 of p1; %r10 its 16 bytes of shared memory.
PLACES = """
\tmul.wide.u32 %rd9, %r199, 16;
\tadd.s64 %rd10, %rd70, %rd9;
\tadd.s64 %rd11, %rd71, %rd9;
\tshl.b32 %r9, %r199, 4;
\tmov.b32 %r8, global_smem;
\tadd.s32 %r10, %r8, %r9;
"""


def moved(body: str, source: np.ndarray, threads: int = 32, **options: object) -> np.ndarray:
    """The bytes that a body leaves at %rd11, 16 per thread, of those at %rd10."""
    out = np.zeros(16 * threads, np.uint8)
    done = run(kernel(PLACES + body, threads=threads), [source, out], **options)
    assert not done.faults, done.faults[0]
    return out


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


VECTORS = [
    ("v4.b32", "{%r1, %r2, %r3, %r4}", 16),
    ("v2.b64", "{%rd1, %rd2}", 16),
    ("v2.b32", "{%r1, %r2}", 8),
    ("v4.b16", "{%rs1, %rs2, %rs3, %rs4}", 8),
    ("b64", "%rd1", 8),
    ("b32", "%r1", 4),
    ("f32", "%r1", 4),
    ("b16", "%rs1", 2),
    ("b8", "%rs1", 1),
]


@pytest.mark.parametrize(("kind", "registers", "size"), VECTORS, ids=lambda x: str(x))
def test_loads_and_stores(kind: str, registers: str, size: int) -> None:
    source = random_bytes(512)
    expected = source.reshape(32, 16).copy()
    expected[:, size:] = 0
    plain = f"\tld.global.{kind} {registers}, [%rd10];\n\tst.global.{kind} [%rd11], {registers};\n"
    hinted = f"\tld.global.nc.L1::evict_last.L2::128B.{kind} {registers}, [%rd10+0];\n"
    hinted += f"\tst.global.cs.{kind} [%rd11 + 0], {registers};\n"
    shared = f"\tld.global.{kind} {registers}, [%rd10];\n\tst.shared.{kind} [%r10+64], {registers};\n"
    shared += f"\tld.shared.{kind} {registers}, [%r10+64];\n\tst.global.{kind} [%rd11], {registers};\n"
    for body in (plain, hinted, shared):
        assert (moved(body, source).reshape(32, 16) == expected).all(), body


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("kind", ["s8", "u8", "s16", "u16"])
@pytest.mark.parametrize("register", ["%rs1", "%r1", "%rd1"])
def test_narrow_loads_extend(space: str, kind: str, register: str) -> None:
    source = random_bytes(512)
    width = {"%rs1": 16, "%r1": 32, "%rd1": 64}[register]
    place = "%rd10" if space == "global" else "%r10"
    body = "\tld.global.v4.b32 {%r20,%r21,%r22,%r23}, [%rd10];\n\tst.shared.v4.b32 [%r10], {%r20,%r21,%r22,%r23};\n"
    body += f"\tld.{space}.{kind} {register}, [{place}];\n\tst.global.b{width} [%rd11], {register};\n"
    got = moved(body, source).reshape(32, 16)[:, : width // 8].copy().view(f"u{width // 8}")[:, 0]
    first = source.reshape(32, 16)[:, : int(kind[1:]) // 8].copy().view({"s": "i", "u": "u"}[kind[0]] + str(int(kind[1:]) // 8))
    assert (got == first[:, 0].astype(f"i{width // 8}").view(f"u{width // 8}")).all()


def test_parameters_and_special_registers() -> None:
    out = np.zeros((2, 64, 2), np.uint32)
    body = (
        "\tmov.u32 %r1, %ctaid.x;\n\tmov.u32 %r2, %ntid.x;\n\tmad.lo.s32 %r3, %r1, %r2, %r199;\n\tmul.wide.u32 %rd1, %r3, 8;\n"
    )
    body += "\tadd.s64 %rd1, %rd1, %rd70;\n\tmov.u32 %r4, %laneid;\n\tmov.u32 %r5, %warpid;\n\tmov.u32 %r6, %nctaid.x;\n"
    body += "\tshl.b32 %r5, %r5, 8;\n\tshl.b32 %r6, %r6, 16;\n\tor.b32 %r4, %r4, %r5;\n\tor.b32 %r4, %r4, %r6;\n"
    body += "\tld.param.b32 %r7, [p0+4];\n\tst.global.v2.b32 [%rd1], {%r4, %r7};\n"
    done = run(kernel(body, 1, 64), [out], grid=2)
    assert not done.faults
    lanes = np.arange(64)
    assert (out[..., 0] == (lanes % 32) + (lanes // 32) * 256 + 2 * 65536).all() and (out[..., 1] == BASE >> 32).all()


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies_fill_with_zeros(size: int) -> None:
    source = random_bytes(512)
    body = f"\tand.b32 %r1, %r199, 3;\n\tmul.lo.s32 %r1, %r1, {size // 4};\n"  # 0, a quarter, a half, three quarters
    body += f"\tcp.async.{'cg' if size == 16 else 'ca'}.shared.global.L2::128B [%r10 + 0], [%rd10 + 0], {size}, %r1;\n"
    body += "\tcp.async.commit_group;\n\tcp.async.wait_group 0;\n"
    for k in range(size // 4):
        body += f"\tld.shared.b32 %r2, [%r10+{4 * k}];\n\tst.global.b32 [%rd11+{4 * k}], %r2;\n"
    expected = np.zeros((32, 16), np.uint8)
    for lane in range(32):
        taken = lane % 4 * size // 4
        expected[lane, :taken] = source.reshape(32, 16)[lane, :taken]
    assert (moved(body, source).reshape(32, 16) == expected).all()


def test_masked_copies_outside_are_counted_and_not_read() -> None:
    body = PLACES + "\tadd.s64 %rd12, %rd10, 100000;\n\tmov.b32 %r1, 0;\n"
    body += "\tcp.async.cg.shared.global [%r10], [%rd12], 16, %r1;\n\tcp.async.wait_all;\n"
    done = run(kernel(body), [random_bytes(512), np.zeros(64, np.uint64)])
    assert not done.faults and done.outside.sum() == 32


def test_groups_of_copies_land_in_order() -> None:
    source = random_bytes(512)
    body = "\tcp.async.cg.shared.global [%r10], [%rd10], 16;\n\tcp.async.commit_group;\n"
    body += "\tcp.async.cg.shared.global [%r10+512], [%rd10], 16;\n\tcp.async.commit_group;\n\tcp.async.wait_group 1;\n"
    body += "\tld.shared.v4.b32 {%r1,%r2,%r3,%r4}, [%r10];\n\tst.global.v4.b32 [%rd11], {%r1,%r2,%r3,%r4};\n"
    body += "\tcp.async.wait_group 0;\n"
    assert (moved(body, source) == source).all()


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_of_halves(count: int, trans: str) -> None:
    source = random_bytes(512)
    registers = "{" + ", ".join(f"%r{k}" for k in range(1, count + 1)) + "}"
    fill = "\tld.global.v4.b32 {%r20,%r21,%r22,%r23}, [%rd10];\n\tst.shared.v4.b32 [%r10], {%r20,%r21,%r22,%r23};\n"
    load = fill + f"\tldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers}, [%r10];\n"
    for k in range(count):
        load += f"\tst.global.b32 [%rd11+{4 * k}], %r{k + 1};\n"
    got = moved(load, source).view(np.uint16).reshape(32, 4, 2)
    matrices = source.view(np.uint16).reshape(4, 8, 8)
    for k in range(count):
        matrix = matrices[k].T if trans else matrices[k]
        assert (got[:, k] == matrix.reshape(32, 2)).all()
    back = load + f"\tstmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r10+1024], {registers};\n"
    back += "\tmov.b32 %r30, 0;\n" + "".join(f"\tst.global.b32 [%rd11+{4 * k}], %r30;\n" for k in range(4))
    back += f"\tsetp.lt.u32 %p1, %r199, {8 * count};\n\t@%p1 ld.shared.v4.b32 {{%r20,%r21,%r22,%r23}}, [%r10+1024];\n"
    back += "\t@%p1 st.global.v4.b32 [%rd11], {%r20,%r21,%r22,%r23};\n"
    assert (moved(back, source).reshape(32, 16)[: 8 * count] == source.reshape(32, 16)[: 8 * count]).all()


def fragments(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """[32, registers, elements a register] of a matrix whose fragments are height x width: 8 rows, 4 columns of registers."""
    rows, columns = matrix.shape
    each = width // 4
    out = np.zeros((32, (rows // height) * (columns // width), each), matrix.dtype)
    for k in range(out.shape[1]):
        top, left = k % (rows // height) * height, k // (rows // height) * width
        out[:, k] = matrix[top : top + height, left : left + width].reshape(32, each)
    return out


PRODUCTS = [
    ("m16n8k16", "f16", 16),
    ("m16n8k8", "f16", 8),
    ("m16n8k16", "bf16", 16),
    ("m16n8k8", "bf16", 8),
    ("m16n8k8", "tf32", 8),
    ("m16n8k4", "tf32", 4),
]


@pytest.mark.parametrize(("shape", "kind", "depth"), PRODUCTS)
def test_matrix_products(shape: str, kind: str, depth: int) -> None:
    random = np.random.default_rng(1)
    a, b, c = (random.standard_normal(size).astype(np.float32) for size in ((16, depth), (depth, 8), (16, 8)))
    if kind == "f16":
        bits = [x.astype(np.float16).view(np.uint16) for x in (a, b)]
        exact = [x.astype(np.float16).astype(np.float64) for x in (a, b)]
    else:
        low = 0xFFFF if kind == "bf16" else 0x1FFF
        kept = [x.view(np.uint32) & np.uint32(~low & 0xFFFFFFFF) for x in (a, b)]
        exact = [x.view(np.float32).astype(np.float64) for x in kept]
        bits = [(x >> 16).astype(np.uint16) for x in kept] if kind == "bf16" else [x.view(np.uint32) for x in (a, b)]
    width = 4 if kind == "tf32" else 8
    left, right = fragments(bits[0], 8, width), fragments(np.ascontiguousarray(bits[1].T), 8, width)
    registers = [x.reshape(32, -1).copy().view(np.uint32) for x in (left, right)] + [
        fragments(c, 8, 8).reshape(32, 4).view(np.uint32)
    ]
    memory = np.ascontiguousarray(np.concatenate(registers, 1))
    counts = [x.shape[1] for x in registers]
    body = f"\tmul.wide.u32 %rd1, %r199, {4 * sum(counts)};\n\tadd.s64 %rd1, %rd1, %rd70;\n"
    body += "".join(f"\tld.global.b32 %r{20 + k}, [%rd1+{4 * k}];\n" for k in range(sum(counts)))
    names = iter(f"%r{20 + k}" for k in range(sum(counts)))
    groups = ["{" + ", ".join(next(names) for _ in range(n)) + "}" for n in counts]
    body += f"\tmma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{%r1, %r2, %r3, %r4}}, {', '.join(groups)};\n"
    body += "\tmul.wide.u32 %rd2, %r199, 16;\n\tadd.s64 %rd2, %rd2, %rd71;\n\tst.global.v4.b32 [%rd2], {%r1,%r2,%r3,%r4};\n"
    out = np.zeros((32, 4), np.float32)
    done = run(kernel(body), [memory, out])
    assert not done.faults
    expected = fragments(exact[0] @ exact[1] + c, 8, 8).reshape(32, 4)
    np.testing.assert_allclose(out, expected, rtol=0, atol=depth * 2e-6)


@pytest.mark.parametrize(("height", "depth"), [(8, 4), (16, 4), (16, 8), (16, 16)])
def test_double_products(height: int, depth: int) -> None:
    random = np.random.default_rng(1)
    a, b, c = (random.integers(-9, 10, size).astype(np.float64) for size in ((height, depth), (depth, 8), (height, 8)))
    parts = [fragments(a, 8, 4), fragments(np.ascontiguousarray(b.T), 8, 4), fragments(c, 8, 8)]
    registers = [part.reshape(32, -1) for part in parts]
    counts = [x.shape[1] for x in registers]
    memory = np.ascontiguousarray(np.concatenate(registers, 1))
    body = f"\tmul.wide.u32 %rd1, %r199, {8 * sum(counts)};\n\tadd.s64 %rd1, %rd1, %rd70;\n"
    body += "".join(f"\tld.global.b64 %rd{10 + k}, [%rd1+{8 * k}];\n" for k in range(sum(counts)))
    names = iter(f"%rd{10 + k}" for k in range(sum(counts)))
    groups = ["{" + ", ".join(next(names) for _ in range(n)) + "}" for n in counts]
    results = ", ".join(f"%rd{40 + k}" for k in range(counts[2]))
    body += f"\tmma.sync.aligned.m{height}n8k{depth}.row.col.f64.f64.f64.f64 {{{results}}}, {', '.join(groups)};\n"
    body += f"\tmul.wide.u32 %rd2, %r199, {8 * counts[2]};\n\tadd.s64 %rd2, %rd2, %rd71;\n"
    body += "".join(f"\tst.global.b64 [%rd2+{8 * k}], %rd{40 + k};\n" for k in range(counts[2]))
    out = np.zeros((32, counts[2]))
    done = run(kernel(body), [memory, out])
    assert not done.faults and (out == fragments(a @ b + c, 8, 8).reshape(32, -1)).all()


def source_lane(mode: str, lane: int, by: int, clamp: int) -> int | None:
    """The lane that shfl reads, None where it reads its own, by the PTX manual's text."""
    segment, limit = clamp >> 8 & 31, clamp & 31
    last, first = (lane & segment) | (limit & ~segment & 31), lane & segment
    source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment & 31)}[mode]
    return source if (source >= last if mode == "up" else source <= last) else None


@pytest.mark.parametrize(
    ("mode", "clamp"), [("idx", 31), ("bfly", 31), ("up", 0), ("down", 31), ("idx", 0x181F), ("down", 0x181F)]
)
def test_shuffles(mode: str, clamp: int) -> None:
    values = LANES.astype(np.uint64) * 3 + 1
    for by in (1, 2, 5, 16):
        text = f"shfl.sync.{mode}.b32 {{d}}|%p3, {{a}}, {by}, {clamp}, -1; @!%p3 add.s32 {{d}}, {{d}}, 1000;"
        got = on_lanes(text, [(32, values)], 32)
        for lane in range(32):
            source = source_lane(mode, lane, by, clamp)
            assert got[lane] == (values[source] if source is not None else values[lane] + 1000), (mode, by, lane)


def test_votes_and_reductions() -> None:
    values = np.array([(k * 37) % 64 for k in range(32)], np.uint64)
    text = "setp.lt.u32 %p3, {a}, 20; "
    mask = sum(int(v < 20) << k for k, v in enumerate(values))
    assert (on_lanes(text + "vote.sync.ballot.b32 {d}, %p3, -1;", [(32, values)], 32) == mask).all()
    for kind, expected in (("any", 1), ("all", 0), ("uni", 0)):
        got = on_lanes(text + f"vote.sync.{kind}.pred %p4, %p3, -1; selp.b32 {{d}}, 1, 0, %p4;", [(32, values)], 32)
        assert (got == expected).all()
    odd = values + np.uint64(0xFFFFFFF0)
    odd &= np.uint64(0xFFFFFFFF)
    signed = odd.astype(np.uint32).view(np.int32)
    table = {
        "add.s32": signed.sum(),
        "min.s32": signed.min(),
        "max.s32": signed.max(),
        "min.u32": odd.min(),
        "max.u32": odd.max(),
    }
    table |= {"and.b32": np.bitwise_and.reduce(odd), "or.b32": np.bitwise_or.reduce(odd), "xor.b32": np.bitwise_xor.reduce(odd)}
    for kind, expected in table.items():
        assert (on_lanes(f"redux.sync.{kind} {{d}}, {{a}}, -1;", [(32, odd)], 32) == int(expected) % 2**32).all(), kind
    got = on_lanes("elect.sync {d}|%p3, -1; @%p3 add.s32 {d}, {d}, 7;", [(32, values)], 32)
    assert got[0] == 7 and (got[1:] == 0).all()
    assert (on_lanes("activemask.b32 {d};", [(32, values)], 32) == 0xFFFFFFFF).all()


def test_lanes_part_and_meet() -> None:
    """A loop whose trip count differs by lane, a branch in it, and a shuffle of all lanes behind both."""
    body = """
\tmov.b32 {d}, 0;
\tmov.b32 %r100, 0;
\tbra.uni $L_latch;
$L_body:
\tand.b32 %r101, %r100, 1;
\tsetp.eq.b32 %p3, %r101, 0;
\t@%p3 bra $L_even;
\tadd.s32 {d}, {d}, 100;
\tbra.uni $L_next;
$L_even:
\tadd.s32 {d}, {d}, 1;
$L_next:
\tadd.s32 %r100, %r100, 1;
$L_latch:
\tsetp.lt.u32 %p4, %r100, {a};
\t@%p4 bra $L_body;
\tshfl.sync.idx.b32 %r102, {d}, 31, 31, -1;
\tadd.s32 {d}, {d}, %r102;
"""
    trips = (LANES * 7 % 11).astype(np.uint64)
    count = [int(n) // 2 * 101 + int(n) % 2 for n in trips]
    got = on_lanes(body, [(32, trips)], 32)
    assert [int(x) for x in got] == [x + count[31] for x in count]


def test_a_latch_before_its_body() -> None:
    """Lanes that leave a loop early reach the code behind it in the text first, and wait there for the others."""
    body = """
\tmov.b32 {d}, 0;
\tbra.uni $L_latch;
$L_after:
\tshfl.sync.bfly.b32 %r102, {d}, 1, 31, -1;
\tadd.s32 {d}, {d}, %r102;
\tbra.uni $L_end;
$L_latch:
\tsetp.ge.u32 %p4, {d}, {a};
\t@%p4 bra $L_after;
\tadd.s32 {d}, {d}, 1;
\tbra.uni $L_latch;
$L_end:
"""
    got = on_lanes(body, [(32, LANES.astype(np.uint64))], 32)
    assert [int(x) for x in got] == [lane + (lane ^ 1) for lane in range(32)]


def test_lanes_that_return_early() -> None:
    out = np.zeros(64, np.uint64)
    body = "\tsetp.gt.u32 %p1, %r199, 20;\n\t@%p1 ret;\n\tmul.wide.u32 %rd1, %r199, 8;\n\tadd.s64 %rd1, %rd1, %rd70;\n"
    body += "\tmov.b64 %rd2, 1;\n\tst.global.b64 [%rd1], %rd2;\n"
    done = run(kernel(body, 1), [out])
    assert not done.faults and out.sum() == 21


def test_counts() -> None:
    """Sectors, lines and wavefronts of rows of 4 bytes that lie 128 bytes apart, and of neighbours."""
    body = "\tshl.b32 %r1, %r199, 7;\n\tcvt.u64.u32 %rd1, %r1;\n\tadd.s64 %rd1, %rd1, %rd70;\n\tld.global.b32 %r2, [%rd1];\n"
    body += "\tmul.wide.u32 %rd2, %r199, 4;\n\tadd.s64 %rd2, %rd2, %rd70;\n\tld.global.b32 %r3, [%rd2];\n"
    body += "\tmov.b32 %r4, global_smem;\n\tadd.s32 %r4, %r4, %r1;\n\tst.shared.b32 [%r4], %r2;\n"
    body += "\tadd.s32 %r5, %r4, 0;\n\tld.shared.b32 %r6, [%r5];\n"
    done = run(kernel(body, 1), [np.zeros(4096, np.uint8)])
    assert not done.faults
    texts = [where.statement.split()[0] for where in decode(kernel(body, 1)).where]
    loads = [k for k, text in enumerate(texts) if text == "ld.global.b32"]
    store = texts.index("st.shared.b32")
    assert list(done.sectors[loads]) == [32, 4] and list(done.lines[loads]) == [32, 1] and list(done.bytes[loads]) == [128, 128]
    assert done.wavefronts[store] == 32 and done.ideal_wavefronts[store] == 1
    assert done.unique == ((4 * 63, 0),)  # 32 words 128 bytes apart, 32 neighbours, one of them twice
    assert done.warps[store] == 1 and done.lanes[store] == 32 and done.executed == len(texts)
