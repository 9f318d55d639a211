"""TMA and wgmma of the executor against numpy, and what they must not do."""

from __future__ import annotations

import numpy as np
import pytest

from bench.executor import Descriptor, Execution, Kind, Region, decode, execute
from tests.ptx import BASE, kernel

MAP = 1 << 42
PREFIX = """
\t.reg .pred done;
\tsetp.eq.b32 %p1, %r199, 0;
\tmov.b32 %r8, global_smem;
"""
FIND_MAP = "\tmov.b64 %rd1, map;\n\tcvta.param.u64 %rd1, %rd1;\n"


def with_map(body: str, threads: int = 32) -> str:
    """A kernel of one pointer, p0 in %rd70, and a descriptor whose address is %rd1; %p1: thread 0; %r8: shared memory."""
    return kernel(PREFIX + FIND_MAP + body, 1, threads).replace(
        "\t.param .u64 p0\n", "\t.param .u64 p0,\n\t.param .align 64 .b8 map[128]\n"
    )


def run_map(
    ptx: str, tensor: np.ndarray, out: np.ndarray, descriptor: Descriptor, shared: int = 16384, **options: object
) -> Execution:
    program = decode(ptx)
    params = np.zeros(program.param_bytes, np.uint8)
    params[:8] = np.array([BASE], np.uint64).view(np.uint8)
    regions = [Region("out", BASE, out.reshape(-1).view(np.uint8)), Region("tensor", MAP, tensor.reshape(-1).view(np.uint8))]
    return execute(program, (1, 1, 1), params, regions, {program.params[1].offset: descriptor}, shared, limit=20000, **options)  # type: ignore[arg-type]


def described(tensor: np.ndarray, box: tuple[int, ...], **more: object) -> Descriptor:
    """A descriptor of a dense array; box innermost first, as its shape and strides become."""
    return Descriptor(1, MAP, tensor.itemsize, tensor.shape[::-1], tensor.strides[::-1], box, **more)  # type: ignore[arg-type]


def load_body(size: int, coordinates: str, rank: int, expected: int | None = None) -> str:
    body = f"""
\t@%p1 mbarrier.init.shared::cta.b64 [%r8+12288], 1;
\tbar.sync 0;
\t@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r8+12288], {size if expected is None else expected};
\tadd.s32 %r9, %r8, 12288;
\t@%p1 cp.async.bulk.tensor.{rank}d.shared::cta.global.mbarrier::complete_tx::bytes [%r8], [%rd1, {{{coordinates}}}], [%r9];
\tmov.b32 %r10, 0;
$L_wait:
\tmbarrier.try_wait.parity.shared::cta.b64 done, [%r8+12288], %r10;
\t@!done bra.uni $L_wait;
"""
    return body + copy_out(size)


def copy_out(size: int) -> str:
    """Each thread copies its words of shared memory to p0."""
    body = (
        "\tshl.b32 %r11, %r199, 2;\n\tadd.s32 %r12, %r8, %r11;\n\tmul.wide.u32 %rd2, %r199, 4;\n\tadd.s64 %rd3, %rd70, %rd2;\n"
    )
    for k in range(size // 128):
        body += f"\tld.shared.b32 %r13, [%r12+{128 * k}];\n\tst.global.b32 [%rd3+{128 * k}], %r13;\n"
    return body


def swizzled(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows of `width` bytes as they lie in shared memory: 16-byte chunks XORed by the row, as the CUDA guide draws it."""
    if width < 32:
        return rows
    chunks = rows.reshape(len(rows), width // 16, 16)
    turn = {128: 1, 64: 2, 32: 4}[width]
    out = np.empty_like(chunks)
    for r in range(len(rows)):
        for c in range(width // 16):
            out[r, c ^ r // turn % (width // 16)] = chunks[r, c]
    return out.reshape(rows.shape)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("start", [(0, 0, 0), (-3, 2, -1), (10, 5, 3)])
def test_boxes_are_loaded(swizzle: int, start: tuple[int, int, int]) -> None:
    tensor = np.random.default_rng(0).standard_normal((5, 9, 40)).astype(np.float16)
    width = (swizzle or 64) // 2
    box = (width, 4, 4)
    for nan in (False, True):
        out = np.zeros((16, width), np.float16)
        text = with_map(load_body(out.nbytes, ", ".join(map(str, start)), 3))
        done = run_map(text, tensor, out, described(tensor, box, swizzle=swizzle, fill_nan=nan))
        assert not done.faults, done.faults[0]
        padded = np.full((5 + 20, 9 + 20, 40 + 140), np.nan if nan else 0, np.float16)
        padded[10:15, 10:19, 10:50] = tensor
        x, y, z = (s + 10 for s in start)
        expected = np.ascontiguousarray(padded[z : z + 4, y : y + 4, x : x + width]).reshape(16, width)
        expected = swizzled(expected.view(np.uint8).reshape(16, -1), swizzle).view(np.float16).reshape(16, width)
        np.testing.assert_array_equal(out, expected)


def test_the_address_of_a_parameter_in_32_bits() -> None:
    """As Triton 3.9 makes it."""
    tensor, out = np.arange(256, dtype=np.float16).reshape(8, 32), np.zeros((8, 32), np.float16)
    body = "\tmov.b32 %r5, map;\n\tcvt.u64.u32 %rd1, %r5;\n\tcvta.param.u64 %rd1, %rd1;\n" + load_body(512, "0, 0", 2)
    assert not run_map(with_map(body), tensor, out, described(tensor, (32, 8))).faults
    np.testing.assert_array_equal(out, tensor)


def test_boxes_are_stored() -> None:
    tensor, source = np.zeros((6, 40), np.float32), np.arange(4 * 32, dtype=np.float32).reshape(4, 32) + 1
    lying = swizzled(source.view(np.uint8).reshape(4, 128), 128).view(np.float32)
    out = lying.copy()
    body = (
        "\tmul.wide.u32 %rd2, %r199, 16;\n\tadd.s64 %rd3, %rd70, %rd2;\n\tshl.b32 %r11, %r199, 4;\n\tadd.s32 %r12, %r8, %r11;\n"
    )
    body += (
        "\tld.global.v4.b32 {%r1,%r2,%r3,%r4}, [%rd3];\n\tst.shared.v4.b32 [%r12], {%r1,%r2,%r3,%r4};\n{fence}\tbar.sync 0;\n"
    )
    body += "\t@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {16, 4}], [%r8];\n{after}"
    body += "\tcp.async.bulk.commit_group;\n\tcp.async.bulk.wait_group.read 0;\n"
    fence = "\tfence.proxy.async.shared::cta;\n"

    def stored(fence: str, after: str = "") -> Execution:
        return run_map(
            with_map(body.replace("{fence}", fence).replace("{after}", after)),
            tensor,
            out,
            described(tensor, (32, 4), swizzle=128),
        )

    assert not (done := stored(fence)).faults, done.faults[0]
    expected = np.zeros((6, 40), np.float32)
    expected[4:6, 16:40] = source[:2, :24]
    np.testing.assert_array_equal(tensor, expected)
    assert [fault.kind for fault in stored("").faults] == [Kind.PROXY]
    assert [fault.kind for fault in stored(fence, "\tst.shared.b32 [%r12], %r199;\n").faults] == [Kind.READ_RACE]


def test_boxes_misused() -> None:
    tensor, out = np.zeros((8, 32), np.float16), np.zeros(256, np.float16)
    good = load_body(512, "0, 0", 2)
    box = described(tensor, (32, 8))

    def kinds(body: str, descriptor: Descriptor = box) -> set[Kind]:
        return {fault.kind for fault in run_map(with_map(body), tensor, out, descriptor).faults}

    assert not kinds(good)
    assert kinds(good.replace("[%r8], [%rd1", "[%r8+64], [%rd1")) >= {Kind.TMA}
    assert kinds(good.replace("[%r8], [%rd1", "[%r8+16384], [%rd1")) >= {Kind.SHARED_BOUNDS}
    assert kinds(good, described(tensor.reshape(4, 2, 32), (32, 2, 4))) >= {Kind.TMA}
    assert kinds(load_body(512, "0, 0", 2, 496)) == {Kind.DEADLOCK}
    assert kinds(load_body(512, "0, 0", 2, 528)) == {Kind.DEADLOCK}
    unasked = good.replace("\t@!done bra.uni $L_wait;\n", "")
    assert Kind.IN_FLIGHT in kinds(unasked)
    assert Kind.OUT_OF_BOUNDS in kinds(good, Descriptor(1, MAP + 64, 2, (32, 8), (2, 64), (32, 8)))


# --- wgmma: A and B are laid into an image of shared memory by the canonical layouts of the PTX manual
def laid(matrix: np.ndarray, width: int, along: bool, image: np.ndarray, start: int) -> tuple[int, int]:
    """Lay a [lines, k] operand into the image and answer its (leading, stride) bytes. `along`: lines are contiguous."""
    lines, depth = matrix.shape
    each = matrix.itemsize
    raw = image[start:]
    if along:
        across = width // each
        leading, stride = 8 * width, 8 * width * -(-lines // across)
        for block in range(-(-lines // across)):
            for group in range(depth // 8):
                rows = np.zeros((8, across), matrix.dtype)
                part = matrix[block * across : (block + 1) * across, 8 * group : 8 * group + 8].T
                rows[:, : part.shape[1]] = part
                at = block * leading + group * stride
                raw[at : at + 8 * width] = swizzled(rows.view(np.uint8).reshape(8, width), width).reshape(-1)
        return leading, stride
    if width == 16:
        leading, stride = 128, 128 * depth * each // 16
        for group in range(lines // 8):
            for k in range(depth * each // 16):
                part = np.ascontiguousarray(matrix[8 * group : 8 * group + 8, k * 16 // each : (k + 1) * 16 // each])
                raw[group * stride + k * leading :][:128] = part.view(np.uint8).reshape(-1)
        return leading, stride
    for group in range(lines // 8):
        rows = np.zeros((8, width), np.uint8)
        rows[:, : depth * each] = np.ascontiguousarray(matrix[8 * group : 8 * group + 8]).view(np.uint8)
        raw[group * 8 * width :][: 8 * width] = swizzled(rows, width).reshape(-1)
    return 0, 8 * width


def descriptor_bits(start: int, leading: int, stride: int, width: int) -> int:
    mode = {16: 0, 128: 1, 64: 2, 32: 3}[width]
    return (1024 + start) >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def wgmma_body(columns: int, kind: str, a: int, b: int, tail: str, steps: dict[str, str] | None = None) -> str:
    steps = {
        "fence": "\tfence.proxy.async.shared::cta;\n\tbar.sync 0;\n",
        "after": "",
        "wait": "\twgmma.wait_group.sync.aligned 0;\n",
    } | (steps or {})
    depth = 8 if kind == "tf32" else 16
    body = (
        "\tmul.wide.u32 %rd2, %r199, 16;\n\tadd.s64 %rd3, %rd70, %rd2;\n\tshl.b32 %r11, %r199, 4;\n\tadd.s32 %r12, %r8, %r11;\n"
    )
    for k in range(8):  # 16 KiB
        body += f"\tld.global.v4.b32 {{%r1,%r2,%r3,%r4}}, [%rd3+{2048 * k}];\n"
        body += f"\tst.shared.v4.b32 [%r12+{2048 * k}], {{%r1,%r2,%r3,%r4}};\n"
    registers = ", ".join(f"%r{20 + k}" for k in range(columns // 2))
    body += "".join(f"\tmov.b32 %r{20 + k}, 0f3F800000;\n" for k in range(columns // 2)) + steps["fence"]
    body += "\twgmma.fence.sync.aligned;\n\tsetp.ne.b32 %p2, 1, 0;\n"
    body += (
        f"\twgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{kind}.{kind} {{{registers}}}, {a}, {b}, %p2, 1, 1{tail};\n"
    )
    body += "\twgmma.commit_group.sync.aligned;\n" + steps["after"] + steps["wait"]
    body += f"\tmul.wide.u32 %rd4, %r199, {2 * columns};\n\tadd.s64 %rd5, %rd70, %rd4;\n\tadd.s64 %rd5, %rd5, 16384;\n"
    return body + "".join(f"\tst.global.b32 [%rd5+{4 * k}], %r{20 + k};\n" for k in range(columns // 2))


def wgmma_result(out: np.ndarray, columns: int) -> np.ndarray:
    """[64, columns] from the threads' registers, by the manual's figure."""
    registers = out.reshape(128, columns // 2)
    result = np.zeros((64, columns), np.float32)
    for thread in range(128):
        for i in range(columns // 2):
            row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
            result[row, 8 * (i // 4) + 2 * (thread % 4) + i % 2] = registers[thread, i]
    return result


def wgmma(
    columns: int, kind: str, width: int, along: tuple[bool, bool], steps: dict[str, str] | None = None
) -> tuple[Execution, np.ndarray, np.ndarray]:
    """(what happened, the product, numpy's) of 64 x depth by depth x columns, plus 1."""
    random = np.random.default_rng(1)
    depth = 8 if kind == "tf32" else 16
    a, b = (random.integers(-8, 9, (lines, depth)).astype(np.float32) for lines in (64, columns))
    made = [a, b]
    if kind == "f16":
        made = [x.astype(np.float16) for x in made]
    elif kind == "bf16":
        made = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in made]
    memory = np.zeros(16384 + 128 * columns * 2, np.uint8)
    bits = []
    for matrix, start, way in zip(made, (0, 8192), along, strict=True):
        bits.append(descriptor_bits(start, *laid(matrix, width, way, memory, start), width))
    tail = "" if kind == "tf32" else f", {int(along[0])}, {int(along[1])}"
    ptx = kernel(
        PREFIX + wgmma_body(columns, kind, *bits, tail, steps),
        1,
        128,
    )
    params = np.array([BASE], np.uint64).view(np.uint8)
    done = execute(decode(ptx), (1, 1, 1), params, [Region("memory", BASE, memory)], {}, 16384)
    return done, wgmma_result(memory[16384:].view(np.float32), columns), a @ b.T + 1


SHAPES = [(n, width) for n in (8, 64, 128) for width in (16, 32, 64, 128) if n * width <= 8192]


@pytest.mark.parametrize(("columns", "width"), SHAPES)
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_products_of_a_warpgroup(columns: int, kind: str, width: int) -> None:
    done, got, expected = wgmma(columns, kind, width, (False, False))
    assert not done.faults, done.faults[0]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("along", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_transposed_operands(width: int, along: tuple[bool, bool]) -> None:
    done, got, expected = wgmma(64, "f16", width, along)
    assert not done.faults, done.faults[0]
    np.testing.assert_array_equal(got, expected)


def test_products_misused() -> None:
    assert Kind.PROXY in {fault.kind for fault in wgmma(8, "f16", 32, (False, False), {"fence": "\tbar.sync 0;\n"})[0].faults}
    overwritten, *_ = wgmma(8, "f16", 32, (False, False), {"after": "\tst.shared.b32 [%r12], %r199;\n"})
    assert {fault.kind for fault in overwritten.faults} >= {Kind.READ_RACE}
    assert any("operand" in str(fault) for fault in overwritten.faults)
    early, got, _ = wgmma(8, "f16", 32, (False, False), {"wait": ""})
    assert np.isnan(got).all() and {fault.kind for fault in early.faults} == {Kind.PENDING}
    fence = "\tfence.proxy.async.shared::cta;\n\tbar.sync 0;\n\tsetp.eq.b32 %p3, %r199, 3;\n\t@%p3 ret;\n"
    part, *_ = wgmma(8, "f16", 32, (False, False), {"fence": fence})
    assert {fault.kind for fault in part.faults} == {Kind.WGMMA} and "not all lanes" in str(part.faults[0])
