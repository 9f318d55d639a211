"""bench.aot compiles what a launch would, and bench.sass reads the right figures off it.

The instruction counts of these kernels follow from their tile: a trip's tensor-core instructions must do the tile's
multiply-adds, its copies must bring the tile's bytes.
"""

import functools
import math
import os
from typing import NamedTuple

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from bench import aot, sass

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
    assert audit.trip.mma == (sass.MmaForm("UTCHMMA", "", "", "SS", 4),)  # one 128x128x16 per program each
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
    audit = sass.audit(compiled(80, "fp16", (128, 256, 64), 4))  # 256 accumulators per thread, 255 registers
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
