"""The executor as Triton's device: arguments as Triton passes them, memory as a kernel may see it, what leaks and what not."""

import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

pytest.importorskip("numba", reason="compiled code is not run: the executor needs numba")
pytestmark = pytest.mark.compiled


class Pair(NamedTuple):
    """A tuple argument: a tensor, nothing, an integer, a constant 1, a float."""

    x: torch.Tensor
    none: None
    shift: int
    one: int
    scale: float


@triton.jit
def tuple_kernel(pair, y, size, negative, FLAG: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(pair.x + at, at < size, 0.0) * pair.scale + pair.shift + pair.one + negative
    tl.store(y + at, value + (1 if FLAG else 0), at < size)


@triton.jit
def copy_kernel(x, y, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, at < size, 0.0), at < size)


@triton.jit
def box_kernel(x, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    box = x.load([-1, 0])
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(y + at, box)


@triton.jit
def distance_kernel(x, y, out):
    tl.store(out, (y.to(tl.int64, bitcast=True) - x.to(tl.int64, bitcast=True)))


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def executor(request):
    from bench.executor import driver

    yield driver.install(request.param)
    driver.uninstall()


def fault(words):
    from bench.executor.driver import ExecutorFault

    return pytest.raises(ExecutorFault, match=words)


@pytest.mark.parametrize("flag", [True, False])
def test_arguments_are_laid_out_as_triton_passes_them(executor, flag):
    """Tuples are flattened, None and 1 are constants, negative and 64-bit integers keep their values, constexprs vanish."""
    x = torch.randn(100)
    y = torch.full((100,), torch.nan)
    for shift, negative in ((16, -7), (3, -(2**40))):
        tuple_kernel[(4,)](Pair(x, None, shift, 1, 0.5), y, 100, negative, FLAG=flag, BLOCK=32)
        torch.testing.assert_close(y, x * 0.5 + shift + 1 + negative + flag)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int8])
def test_every_type_of_tensor(executor, dtype):
    x = torch.arange(-20, 30).to(dtype)
    y = torch.zeros(50, dtype=dtype)
    copy_kernel[(1,)](x, y, 50, BLOCK=64)
    assert torch.equal(x, y)


def test_listeners_hear_of_launches(executor):
    heard = []
    executor.listeners.append(heard.append)
    x, y = torch.randn(8), torch.zeros(8)
    copy_kernel[(1,)](x, y, 8, BLOCK=8)
    (launched,) = heard
    assert launched.program.name == "copy_kernel" and launched.grid == (1, 1, 1) and launched.arch == executor.arch
    assert f".target sm_{executor.arch}" in launched.ptx and launched.constants["BLOCK"] == 8
    assert launched.types == ("*fp32", "*fp32", "i32") and launched.execution.executed > 0
    assert [region.name for region in launched.regions] == ["x", "y"]


def test_a_load_and_a_store_out_of_bounds(executor):
    with fault("copy_kernel.*"):
        copy_kernel[(1,)](torch.zeros(70)[1:65], torch.zeros(100), 100, BLOCK=128)
    with fault("copy_kernel.*"):
        copy_kernel[(1,)](torch.zeros(100), torch.zeros(64), 100, BLOCK=128)


def test_what_lies_between_the_elements_of_a_view_is_not_read(executor):
    room = torch.zeros(300)
    with fault("copy_kernel"):
        copy_kernel[(1,)](room[2:130:2], torch.zeros(64), 64, BLOCK=64)


def test_a_tensor_that_begins_its_storage_may_be_read_to_the_storages_end(executor):
    room = torch.arange(64.0)
    y = torch.zeros(64)
    copy_kernel[(1,)](room[:50], y, 64, BLOCK=64)
    assert torch.equal(y, room)
    with fault("copy_kernel"):
        copy_kernel[(1,)](room[4:50], y, 60, BLOCK=64)


@pytest.mark.parametrize("view", [slice(0, 50), slice(0, 128, 2)], ids=["rest", "between"])
def test_what_is_no_element_is_not_written(executor, view):
    room = torch.zeros(128)
    with fault("copy_kernel"):
        copy_kernel[(1,)](torch.zeros(64), room[view], 64, BLOCK=64)


def test_low_bits_of_addresses_and_windows():
    from bench.executor.tensors import MIDDLE, WINDOW, region_of

    x = torch.zeros(1000)[3:]
    regions = [region_of("x", x, index) for index in range(3)]
    for index, region in enumerate(regions):
        assert region.base % 4096 == x.data_ptr() % 4096
        assert 0 <= region.base - (index + 1) * WINDOW - MIDDLE < 4096
        assert len(region.data) == 997 * 4 and region.readable is None
    assert region_of("x", x, 0, true_address=True).base == x.data_ptr()
    regions[0].data[:4] = np.frombuffer(np.float32(7).tobytes(), np.uint8)
    assert x[0] == 7


def test_a_map_of_a_view():
    from bench.executor.tensors import region_of

    x = torch.zeros(4, 6, dtype=torch.int16)[1:, ::3]
    region = region_of("x", x, 0)
    assert len(region.data) == 2 * (2 * 6 + 3 + 1)
    assert region.readable.reshape(-1, 2).any(1).tolist() == [i % 3 == 0 and i % 6 < 6 for i in range(16)]
    assert len(region_of("nothing", torch.zeros(0), 1).data) == 0


def test_true_addresses_where_a_kernel_steps_between_tensors(executor, monkeypatch):
    from bench.executor import driver

    x, y, out = torch.zeros(8), torch.zeros(8), torch.zeros(1, dtype=torch.int64)
    distance_kernel[(1,)](x, y, out)
    assert out.item() != y.data_ptr() - x.data_ptr()
    monkeypatch.setattr(driver, "TRUE_ADDRESSES", ("distance_kernel",))
    distance_kernel[(1,)](x, y, out)
    assert out.item() == y.data_ptr() - x.data_ptr()


def test_a_descriptor(executor):
    """sm_90 takes boxes, zeros outside of the tensor; on sm_80 Triton reads the same elements itself."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    x, y = torch.randn(12, 16), torch.full((8, 16), torch.nan)
    box_kernel[(1,)](TensorDescriptor(x, [12, 16], [16, 1], [8, 16]), y, ROWS=8, COLUMNS=16)
    assert torch.equal(y, torch.cat([torch.zeros(1, 16), x[:7]]))


def test_a_descriptor_that_the_driver_refuses(executor):
    from triton.tools.tensor_descriptor import TensorDescriptor

    x, y = torch.randn(12, 16), torch.zeros(8, 16)
    wrong = TensorDescriptor(x, [12, 16], [16, 1], [8, 16])
    wrong.strides = [15, 1]
    if executor.arch == 80:  # which has no descriptors: rows that begin 15 elements apart
        box_kernel[(1,)](wrong, y, ROWS=8, COLUMNS=16)
        assert torch.equal(y[1:], x.flatten().unfold(0, 16, 15)[:7])
        return
    with fault("refuses the descriptor of x: the stride of axis 1 must be a multiple of 16 bytes"):
        box_kernel[(1,)](wrong, y, ROWS=8, COLUMNS=16)


def test_a_tile_that_no_block_has_room_for(executor):
    from triton.runtime.errors import OutOfResources

    from costmodel.problem import ConvProblem
    from tritonconv import host, launch

    x = torch.zeros(1, 64, 8, 8).to(memory_format=torch.channels_last)
    problem = ConvProblem.conv((1, 64, 8, 8), (64, 64, 1, 1), (1, 1), (0, 0), (1, 1))
    host.use(host._MODELS[0])
    try:
        with pytest.raises((OutOfResources, ValueError)):
            launch.fprop(x, torch.zeros(64, 64, 1, 1), None, problem, "fprop:gather:256x256x64:w8:s4")
    finally:
        host.use(None)


def test_nothing_leaks():
    """Neither the cache's folder nor Triton's stages nor the device stay; the environment is never touched."""
    from triton import knobs

    from bench.executor import driver

    before, environment = str(knobs.cache.dir), dict(os.environ)
    driver.install(90)
    assert str(knobs.cache.dir) == f"{before}/executor" and triton.runtime.driver.active.arch == 90
    driver.install(80)
    assert str(knobs.cache.dir) == f"{before}/executor" and triton.runtime.driver.active.arch == 80
    driver.uninstall()
    assert str(knobs.cache.dir) == before and knobs.runtime.add_stages_inspection_hook is None
    assert triton.runtime.driver._active is None and dict(os.environ) == environment


def test_an_architecture_that_nobody_knows():
    from bench.executor import driver

    with pytest.raises(ValueError, match="arch must be one of 80, 86, 89, 90"):
        driver.install(70)
    driver.uninstall()
