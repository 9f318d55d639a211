"""The words of the engine's state, of a decoded row, of a warp and of every queue: each position has one name, which is defined
here.

All state lies in flat arrays of int64 that the engine reaches by address; arrays of other types stand as addresses in it.
"""

from __future__ import annotations

from enum import IntEnum

# --- a decoded row (one engine operation), in int64 words
(OP, GUARD, GUARD_NOT, STATEMENT, D, A, B, C, E, IMM, EXTRA, COUNT, SIZE, FLAG, TARGET, JOIN) = range(16)
ROW = 16
NONE = -1

# --- counts of a row
(N_WARPS, N_LANES, N_SECTORS, N_LINES, N_WAVES, N_IDEAL, N_BYTES, N_OUTSIDE) = range(8)
COUNTS = 8

# --- the state of a launch
(
    CODE,  # address of rows
    COUNTERS,  # address of counts
    EXTRAS,  # address of int64: operand lists
    PARAMETERS,  # the address that the kernel sees for its parameters
    MAPS,  # address of TMA descriptors
    N_MAPS,
    REGIONS,
    N_REGIONS,
    GRID_X,
    GRID_Y,
    GRID_Z,
    WARPS,  # how many a program has
    PREDICATES,  # how many a warp has
    REGISTER_BYTES,  # of a warp
    SHARED,  # bytes of shared memory
    CHECK,
    RANDOM,  # the random state that orders warps, 0: in turn
    LIMIT,  # rows that one warp may execute in one program
    FAULTS,
    N_FAULTS,
    ABORT,
    PROGRAM,  # the linear index of the program that runs
    ORDER,  # address of the programs to run, in order
    N_ORDER,
    IMAGE,  # address of the registers that a program starts with
    REGISTERS,
    PREDICATE_WORDS,
    MEMORY,  # address of shared memory
    WRITTEN,  # by granule: era of the last write; 0 never, IN_FLIGHT, LATE
    READ,  # by granule: era of the last read
    WRITER,  # by granule: agent << 26 | clock of the last write
    READERS,  # by warp and granule: clock of the last read
    FLIGHT,  # by granule: row of the copy in flight
    GRANULES,
    SHIFT,  # log2 of a shared granule's bytes
    GLOBAL_SHIFT,  # log2 of a global granule's bytes
    ERA,  # counts barriers of all warps
    WARP_STATES,
    CLOCKS,  # by warp and agent: what a warp knows to have happened
    PROXY_CLOCKS,  # the same for what the asynchronous proxy may see
    AGENT_CLOCKS,
    COPIES,  # by warp: the queue of cp.async
    PRODUCTS,  # by warp: the queue of wgmma
    ACCUMULATORS,
    ACCUMULATOR_VALUES,
    MBARRIERS,
    N_MBARRIERS,  # how many were made in this program
    LOADS,  # TMA loads in flight
    STORES,  # by warp: the queue of TMA stores
    HALVES,  # table of float16's values
    SCRATCH,  # 128 KiB
    SLOT_X,  # byte offsets of the slots of %ctaid, NONE where not read
    SLOT_Y,
    SLOT_Z,
    HINT,  # the region that was found last
    WARP_ORDER,
    IDLE,  # rounds without progress
) = range(57)
STATE = 64

# --- a warp
(PC, MASK, REJOIN, LIVE, STATUS, BARRIER, BARRIER_WARPS, DEPTH, COPY_FIRST, COPY_NEXT, COPY_GROUP) = range(11)
(PRODUCT_FIRST, PRODUCT_NEXT, PRODUCT_GROUP, STORE_FIRST, STORE_NEXT, STORE_GROUP, STEPS, FAILED, SINCE, WARP_ID) = range(
    11, 21
)
STACK, STACK_DEPTH = 24, 64
WARP = STACK + 3 * STACK_DEPTH
RUNNING, AT_BARRIER, DONE = 0, 1, 2

# --- what a row's routine answers
ON, PAUSE, STOP = 0, 1, 2

AGENTS = 64  # warps 0 to 31, asynchronous copies 32 to 63
CLOCK_BITS = 26
CLOCK_MASK = (1 << CLOCK_BITS) - 1
IN_FLIGHT = 0xFFFFFFFF
LATE = 0xFFFFFFFE  # landed, but nobody was told: compare clocks, whatever the era
SHARED_BASE = 1024
PARAMETER_BASE = 0x7E << 40
FULL = 0xFFFFFFFF

# --- an entry of the queue of cp.async, of one warp: then 32 targets, 32 sources, 32 source sizes
(Q_ROW, Q_GROUP, Q_MASK) = range(3)
COPY_TARGETS, COPY_SOURCES, COPY_SIZES = 4, 36, 68
COPY, COPY_QUEUE = 100, 512

# --- an entry of the queue of wgmma
(P_ROW, P_GROUP, P_A, P_B, P_SCALE, P_ACCUMULATOR) = range(6)
P_CLOCK, P_PROXY, P_REGISTERS = 8, 8 + AGENTS, 8 + 2 * AGENTS
PRODUCT, PRODUCT_QUEUE = P_REGISTERS + 64, 256
(ACC_SLOT, ACC_ROW, ACC_USERS) = range(3)
ACCUMULATOR, ACCUMULATOR_COUNT, ACCUMULATOR_BYTES = 4, 8, 128 * 128

# --- an mbarrier
(B_ADDRESS, B_EXPECTED, B_PENDING, B_BYTES, B_PHASE, B_AGENT, B_ASKED, B_WARP, B_CLOCK) = range(9)
B_NOW, B_NOW_PROXY, B_DONE, B_DONE_PROXY = (12 + k * AGENTS for k in range(4))
MBARRIER, MBARRIER_COUNT = 12 + 4 * AGENTS, 32

# --- TMA: a load in flight, a store in flight, a descriptor
(T_USED, T_MAP, T_TARGET, T_BARRIER, T_ROW, T_WARP, T_X) = range(7)
LOAD, LOAD_COUNT = 16, 256
(S_ROW, S_GROUP, S_MAP, S_SOURCE, S_X, S_LANE) = (0, 1, 2, 3, 4, 9)
S_CLOCK, S_PROXY = 12, 12 + AGENTS
STORE, STORE_QUEUE = 12 + 2 * AGENTS, 64
(M_OFFSET, M_ADDRESS, M_RANK, M_SWIZZLE, M_SIZE, M_NAN, M_TF32, M_SHAPE, M_STRIDES, M_BOX) = (0, 1, 2, 3, 4, 5, 6, 8, 13, 18)
MAP = 24

# --- a region
(R_BASE, R_SIZE, R_HOST, R_READABLE, R_OWNER, R_READER, R_WRITABLE, R_OWN) = range(8)
REGION = 8

# --- a fault
(F_KIND, F_ROW, F_PROGRAM, F_WARP, F_LANE, F_ADDRESS, F_OTHER, F_INFO, F_COUNT) = range(9)
FAULT, MAX_FAULTS = 9, 64


class Kind(IntEnum):
    """What a fault is."""

    OUT_OF_BOUNDS = 1
    MISALIGNED = 2
    READ_ONLY = 3
    PROGRAM_RACE = 4
    HOLE = 5
    SHARED_BOUNDS = 6
    UNINITIALISED = 7
    READ_RACE = 8
    OVERWRITE_RACE = 9
    WRITE_RACE = 10
    IN_FLIGHT = 11
    PROXY = 12
    DIVERGED = 13
    DEADLOCK = 14
    PENDING = 15
    WGMMA = 16
    WGMMA_OPERAND = 17
    MBARRIER = 18
    TMA = 19
    TOO_LONG = 20
    CAPACITY = 21
    TRAP = 22
    BARRIER = 23


class Op(IntEnum):
    """Operations beyond arithmetic (`bench.executor.floats.NUMBERS`, all below these)."""

    BRANCH = 512
    RETURN = 513
    NOTHING = 514
    TRAP = 515
    LOAD_GLOBAL = 516
    STORE_GLOBAL = 517
    LOAD_SHARED = 518
    STORE_SHARED = 519
    COPY = 520
    COPY_COMMIT = 521
    COPY_WAIT = 522
    LOAD_MATRIX = 523
    STORE_MATRIX = 524
    PRODUCT = 525
    PRODUCT_DOUBLE = 526
    SHUFFLE = 527
    REDUCE = 528
    VOTE = 529
    ELECT = 530
    ACTIVE = 531
    WARP_BARRIER = 532
    BARRIER = 533
    FENCE_PROXY = 534
    MBARRIER_INIT = 535
    MBARRIER_INVALIDATE = 536
    MBARRIER_ARRIVE = 537
    MBARRIER_WAIT = 538
    TMA_LOAD = 539
    TMA_STORE = 540
    TMA_COMMIT = 541
    TMA_WAIT = 542
    WGMMA = 543
    WGMMA_COMMIT = 544
    WGMMA_WAIT = 545
    WGMMA_FENCE = 546
