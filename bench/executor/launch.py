"""Run a decoded program on host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from bench.executor import layout
from bench.executor.faults import Fault, render
from bench.executor.layout import AGENTS, NONE, Op
from bench.executor.memory import Region
from bench.executor.program import Program

LIMIT = 20_000_000  # most rows that one warp may run per program, which takes some seconds


@dataclass(frozen=True)
class Descriptor:
    """What cuTensorMapEncodeTiled holds, innermost dimension first.

    region: the number of its tensor's region in the launch. address: that of its first element. element_size and strides are in
    bytes (strides[0] is the element size). swizzle: 0, 32, 64 or 128 bytes. fill_nan: outside there is NaN instead of 0. tf32:
    loads round to tf32.
    """

    region: int
    address: int
    element_size: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0
    fill_nan: bool = False
    tf32: bool = False


@dataclass
class Execution:
    """What a launch did. Arrays are int64 by instruction (`Program.where`); `unique` is by region, empty without checks."""

    faults: list[Fault]
    executed: int  # warp instructions
    warps: np.ndarray  # warps that executed it
    lanes: np.ndarray  # lanes for which it was not masked off
    sectors: np.ndarray  # 32-byte sectors of global memory
    lines: np.ndarray  # 128-byte lines
    wavefronts: np.ndarray  # wavefronts of shared memory
    ideal_wavefronts: np.ndarray
    bytes: np.ndarray
    outside: np.ndarray  # masked-off lanes of asynchronous copies whose address lies outside every region
    unique: tuple[tuple[int, int], ...] = ()  # (bytes read, bytes written) of each region, each byte counted once


class _State:
    """The engine's memory: a state block, and what its words point to."""

    def __init__(self) -> None:
        self.words = np.zeros(layout.STATE, np.int64)
        self.kept: list[np.ndarray] = []

    def put(self, word: int, array: np.ndarray) -> np.ndarray:
        """Keeps an array alive and writes its address into a word."""
        self.kept.append(array)
        self.words[word] = array.ctypes.data
        return array

    def empty(self, word: int, count: int, kind: type = np.int64, align: int = 128) -> np.ndarray:
        """An aligned array that is not cleared."""
        size = np.dtype(kind).itemsize
        raw = np.empty(count * size + align, np.uint8)
        start = -raw.ctypes.data % align
        self.kept.append(raw)
        return self.put(word, raw[start : start + count * size].view(kind))


@cache
def _halves() -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _image(program: Program, grid: tuple[int, int, int], params: np.ndarray) -> np.ndarray:
    """The registers that every program starts with: uint32 [warps, slots, 32]. Registers that nobody wrote are NaN."""
    warps = program.num_warps
    image = np.full((warps, program.slots + 1, 32), 0xFFFFFFFF, np.uint32)

    def put(slot: int, value: int, wide: bool) -> None:
        at = slot // 128
        if wide:
            image[:, at : at + 2].reshape(warps, 64).view(np.uint64)[:] = np.uint64(value & (1 << 64) - 1)
        else:
            image[:, at] = value & 0xFFFFFFFF

    for value, kind, slot in program.constants:
        put(slot, value, kind == "l")
    for offset, size, signed, slot in program.arguments:
        raw = params[offset : offset + size].tobytes()
        put(slot, int.from_bytes(raw, "little", signed=signed), size == 8)
    lanes = np.arange(32, dtype=np.uint32)
    for name, slot in program.special.items():
        at = slot // 128
        if name == "%tid.x":
            image[:, at] = lanes + 32 * np.arange(warps, dtype=np.uint32)[:, None]
        elif name == "%laneid":
            image[:, at] = lanes
        elif name == "%warpid":
            image[:, at] = np.arange(warps, dtype=np.uint32)[:, None]
        elif name == "%ntid.x":
            put(slot, 32 * warps, False)
        elif name.startswith("%nctaid."):
            put(slot, grid["xyz".index(name[-1])], False)
    return image


def _shift(program: Program, ops: tuple[Op, ...]) -> int:
    """log2 of a granule's bytes: 2 bytes, or 1 where an instruction moves single bytes."""
    chosen = np.isin(program.rows[:, layout.OP], ops) & (program.rows[:, layout.SIZE] == 1)
    return 0 if chosen.any() else 1


Marks = list[tuple[np.ndarray, np.ndarray]]  # by region: the program that wrote each granule, the one that read it


def _regions(
    state: _State, program: Program, regions: Sequence[Region], descriptors: Mapping[int, Descriptor], check: bool
) -> Marks:
    shift = _shift(program, (Op.LOAD_GLOBAL, Op.STORE_GLOBAL))
    if any(d.element_size == 1 for d in descriptors.values()):
        shift = 0
    state.words[layout.GLOBAL_SHIFT] = shift
    marks: Marks = []
    table = state.put(layout.REGIONS, np.zeros((max(1, len(regions)), layout.REGION), np.int64))
    for row, region in zip(table, regions, strict=False):
        row[layout.R_BASE], row[layout.R_SIZE] = region.base, len(region.data)
        row[layout.R_HOST], row[layout.R_WRITABLE] = region.data.ctypes.data, region.writable
        for word, allowed in ((layout.R_READABLE, region.readable), (layout.R_OWN, region.own)):
            if allowed is not None:
                row[word] = allowed.ctypes.data
        if check:
            owner, reader = np.zeros((2, (len(region.data) >> shift) + 2), np.uint32)
            marks.append((owner, reader))
            row[layout.R_OWNER], row[layout.R_READER] = owner.ctypes.data, reader.ctypes.data
    state.words[layout.N_REGIONS] = len(regions)
    maps = state.put(layout.MAPS, np.zeros((max(1, len(descriptors)), layout.MAP), np.int64))
    for row, (offset, d) in zip(maps, descriptors.items(), strict=False):
        if d.tf32:
            raise ValueError(f"the descriptor of parameter byte {offset} rounds to tf32 as it loads, which is not modelled")
        row[layout.M_OFFSET], row[layout.M_ADDRESS], row[layout.M_RANK] = offset, d.address, len(d.shape)
        row[layout.M_SWIZZLE], row[layout.M_SIZE], row[layout.M_NAN], row[layout.M_TF32] = (
            {0: 0, 32: 1, 64: 2, 128: 3}[d.swizzle],
            d.element_size,
            d.fill_nan,
            d.tf32,
        )
        for word, values in ((layout.M_SHAPE, d.shape), (layout.M_STRIDES, d.strides), (layout.M_BOX, d.box)):
            row[word : word + len(values)] = values
    state.words[layout.N_MAPS] = len(descriptors)
    return marks


def _shared(state: _State, program: Program, shared_bytes: int, check: bool) -> None:
    warps = program.num_warps
    shift = _shift(program, (Op.LOAD_SHARED, Op.STORE_SHARED))
    granules = (shared_bytes >> shift) + 16
    state.words[[layout.SHARED, layout.SHIFT, layout.GRANULES]] = shared_bytes, shift, granules
    state.empty(layout.MEMORY, shared_bytes + 64, np.uint8, 1024)
    if check:
        for word in (layout.WRITTEN, layout.READ, layout.WRITER):
            state.empty(word, granules, np.uint32)
        state.empty(layout.READERS, granules * warps, np.uint32)
        state.empty(layout.FLIGHT, granules)


def execute(
    program: Program,
    grid: tuple[int, int, int],
    params: np.ndarray,
    regions: Sequence[Region],
    descriptors: Mapping[int, Descriptor],
    shared_bytes: int,
    *,
    seed: int = 0,
    programs: range | None = None,
    check: bool = True,
    limit: int = LIMIT,
) -> Execution:
    """Runs a launch. The regions' bytes are changed in place.

    params: uint8 [program.param_bytes], the kernel's parameters. descriptors: by the byte offset of their parameter. seed: 0
    runs programs and warps in order, any other number draws an order. programs: which programs of the grid run, by default all.
    check: whether races, uninitialised bytes and order are checked too, besides bounds. limit: the number of rows after which a
    warp counts as endless.

    Raises ValueError where the parameters' size is not the program's. A fault is no exception: see `Execution.faults`.
    """
    from bench.executor.engine import programs as engine  # here, because the import compiles, or reads Numba's cache
    from bench.executor.native import entry

    if params.dtype != np.uint8 or params.shape != (program.param_bytes,):
        raise ValueError(f"params is {params.dtype}{list(params.shape)}, expected uint8[{program.param_bytes}]")
    warps = program.num_warps
    if not 1 <= warps <= 32:
        raise ValueError(f"a program has {warps} warps, expected 1 to 32")
    state = _State()
    words = state.words
    state.put(layout.CODE, program.rows)
    counters = state.put(layout.COUNTERS, np.zeros((len(program.rows), layout.COUNTS), np.int64))
    state.put(layout.EXTRAS, program.extras)
    words[layout.PARAMETERS] = layout.PARAMETER_BASE
    marks = _regions(state, program, regions, descriptors, check)
    _shared(state, program, shared_bytes, check)
    words[[layout.GRID_X, layout.GRID_Y, layout.GRID_Z]] = grid
    words[[layout.WARPS, layout.PREDICATES, layout.CHECK, layout.LIMIT]] = warps, program.predicates, check, limit
    words[layout.REGISTER_BYTES] = (program.slots + 1) * 128
    image = _image(program, grid, params)
    words[layout.RANDOM] = seed and (seed * 0x9E3779B97F4A7C15 + 88172645463325252) & ((1 << 62) - 1) | 1
    faults = state.put(layout.FAULTS, np.zeros((layout.MAX_FAULTS, layout.FAULT), np.int64))
    total = grid[0] * grid[1] * grid[2]
    order = np.array(programs if programs is not None else range(total), np.int64)
    if seed:
        order = np.random.default_rng(seed).permutation(order)
    state.put(layout.ORDER, order)
    words[layout.N_ORDER] = len(order)
    state.put(layout.IMAGE, image)
    state.empty(layout.REGISTERS, image.size, np.uint32)
    state.empty(layout.PREDICATE_WORDS, warps * program.predicates, np.uint32)
    state.empty(layout.WARP_STATES, warps * layout.WARP)
    state.empty(layout.CLOCKS, warps * AGENTS)
    state.empty(layout.PROXY_CLOCKS, warps * AGENTS)
    state.empty(layout.AGENT_CLOCKS, AGENTS)
    state.empty(layout.COPIES, warps * layout.COPY_QUEUE * layout.COPY)
    state.empty(layout.PRODUCTS, warps * layout.PRODUCT_QUEUE * layout.PRODUCT)
    state.empty(layout.ACCUMULATORS, warps * layout.ACCUMULATOR_COUNT * layout.ACCUMULATOR)
    state.empty(layout.ACCUMULATOR_VALUES, warps * layout.ACCUMULATOR_COUNT * layout.ACCUMULATOR_BYTES, np.uint8)
    state.empty(layout.MBARRIERS, layout.MBARRIER_COUNT * layout.MBARRIER)
    state.empty(layout.LOADS, layout.LOAD_COUNT * layout.LOAD)
    state.empty(layout.STORES, warps * layout.STORE_QUEUE * layout.STORE)
    state.empty(layout.SCRATCH, 1 << 18, np.uint8)
    state.empty(layout.WARP_ORDER, warps)
    state.put(layout.HALVES, _halves())
    for word, name in ((layout.SLOT_X, "%ctaid.x"), (layout.SLOT_Y, "%ctaid.y"), (layout.SLOT_Z, "%ctaid.z")):
        words[word] = program.special.get(name, NONE)
    entry(engine.ENTRY)(words.ctypes.data)
    counted = counters[program.first_rows] if len(program.where) else counters[:0]
    statement = program.rows[:, layout.STATEMENT]
    summed = np.zeros((len(program.where), layout.COUNTS), np.int64)
    np.add.at(summed, statement, counters)
    summed[:, : layout.N_SECTORS] = counted[:, : layout.N_SECTORS]
    rendered = [render(program, regions, row) for row in faults[: words[layout.N_FAULTS]]]
    columns = summed.T.copy()
    shift = int(words[layout.GLOBAL_SHIFT])
    return Execution(
        rendered,
        int(columns[layout.N_WARPS].sum()),
        columns[layout.N_WARPS],
        columns[layout.N_LANES],
        columns[layout.N_SECTORS],
        columns[layout.N_LINES],
        columns[layout.N_WAVES],
        columns[layout.N_IDEAL],
        columns[layout.N_BYTES],
        columns[layout.N_OUTSIDE],
        tuple((int(np.count_nonzero(reader)) << shift, int(np.count_nonzero(owner)) << shift) for owner, reader in marks),
    )
