"""Runs programs one after the other, and the warps of each in turns. It releases barriers, finds deadlocks and orders warps."""

from bench.executor.engine.faults import fault
from bench.executor.engine.run import run_warp
from bench.executor.layout import (
    ABORT,
    ACCUMULATOR,
    ACCUMULATOR_COUNT,
    ACCUMULATORS,
    AGENT_CLOCKS,
    AGENTS,
    BARRIER,
    BARRIER_WARPS,
    CHECK,
    CLOCKS,
    ERA,
    FAILED,
    GRANULES,
    GRID_X,
    GRID_Y,
    IMAGE,
    LIVE,
    LOAD,
    LOAD_COUNT,
    LOADS,
    MASK,
    MBARRIER,
    MBARRIER_COUNT,
    MBARRIERS,
    MEMORY,
    N_MBARRIERS,
    N_ORDER,
    NONE,
    ORDER,
    PC,
    PREDICATE_WORDS,
    PREDICATES,
    PROGRAM,
    PROXY_CLOCKS,
    RANDOM,
    READ,
    READERS,
    REGISTER_BYTES,
    REGISTERS,
    REJOIN,
    SHARED,
    SLOT_X,
    SLOT_Y,
    SLOT_Z,
    STATUS,
    T_USED,
    WARP,
    WARP_ORDER,
    WARP_STATES,
    WARPS,
    WRITTEN,
    Kind,
)
from bench.executor.native import copy, fill, i64, routine, u32

ENTRY = "launch"
DEADLOCK = int(Kind.DEADLOCK)
PATIENCE = 64  # rounds without progress


@routine("int64(S)")
def random(state):
    """The next number of a xorshift generator, 0 to 2^31 - 1."""
    x = state[RANDOM]
    x ^= x << 13
    x ^= (x >> 7) & 0x01FFFFFFFFFFFFFF
    x ^= x << 17
    state[RANDOM] = x
    return (x >> 20) & 0x7FFFFFFF


@routine("int64(S,int64,int64)")
def place_program(state, slot, value):
    """Writes a number of the program into all lanes of a slot of all warps."""
    if slot != NONE:
        for warp in range(state[WARPS]):
            target = u32(state[REGISTERS] + warp * state[REGISTER_BYTES] + slot)
            for lane in range(32):
                target[lane] = value
    return 0


@routine("int64(S,int64)")
def begin(state, program):
    """Gives a program fresh registers, memory, clocks and queues."""
    state[PROGRAM] = program
    warps, size = state[WARPS], state[REGISTER_BYTES]
    copy(state[REGISTERS], state[IMAGE], warps * size)
    fill(state[PREDICATE_WORDS], 0, warps * state[PREDICATES] * 4)
    place_program(state, state[SLOT_X], program % state[GRID_X])
    place_program(state, state[SLOT_Y], program // state[GRID_X] % state[GRID_Y])
    place_program(state, state[SLOT_Z], program // state[GRID_X] // state[GRID_Y])
    fill(state[MEMORY], 255, state[SHARED])
    if state[CHECK]:
        fill(state[WRITTEN], 0, 4 * state[GRANULES])
        fill(state[READ], 0, 4 * state[GRANULES])
        fill(state[READERS], 0, 4 * state[GRANULES] * warps)
    state[ERA] = 1
    state[N_MBARRIERS] = 0
    fill(state[AGENT_CLOCKS], 0, 8 * AGENTS)
    fill(state[CLOCKS], 0, 8 * AGENTS * warps)
    fill(state[PROXY_CLOCKS], 0, 8 * AGENTS * warps)
    for k in range(LOAD_COUNT):
        i64(state[LOADS] + k * LOAD * 8)[T_USED] = 0
    fill(state[ACCUMULATORS], 0, 8 * ACCUMULATOR * ACCUMULATOR_COUNT * warps)
    for k in range(MBARRIER_COUNT):
        i64(state[MBARRIERS] + k * MBARRIER * 8)[0] = -1
    for warp in range(warps):
        me = i64(state[WARP_STATES] + warp * WARP * 8)
        fill(state[WARP_STATES] + warp * WARP * 8, 0, 8 * WARP)
        me[MASK] = me[LIVE] = 0xFFFFFFFF
        me[REJOIN] = -1
        i64(state[CLOCKS] + warp * AGENTS * 8)[warp] = 1
        u32(state[PREDICATE_WORDS] + warp * state[PREDICATES] * 4)[0] = 0xFFFFFFFF
    return 0


@routine("int64(S)")
def release(state):
    """Lets the warps of full barriers go on, with their clocks joined. Returns whether any did."""
    warps, any_released = state[WARPS], 0
    alive = 0
    for warp in range(warps):
        alive += i64(state[WARP_STATES] + warp * WARP * 8)[STATUS] != 2
    for number in range(16):
        here, wanted = 0, 0
        for warp in range(warps):
            me = i64(state[WARP_STATES] + warp * WARP * 8)
            if me[STATUS] == 1 and me[BARRIER] == number:
                here += 1
                wanted = max(wanted, me[BARRIER_WARPS])
        if here == 0:
            continue
        if wanted == 0:
            wanted = alive
        if here < wanted:
            continue
        any_released = 1
        for table in (state[CLOCKS], state[PROXY_CLOCKS]):
            for agent in range(AGENTS):
                latest = 0
                for warp in range(warps):
                    me = i64(state[WARP_STATES] + warp * WARP * 8)
                    if me[STATUS] == 1 and me[BARRIER] == number:
                        latest = max(latest, i64(table + warp * AGENTS * 8)[agent])
                for warp in range(warps):
                    me = i64(state[WARP_STATES] + warp * WARP * 8)
                    if me[STATUS] == 1 and me[BARRIER] == number:
                        i64(table + warp * AGENTS * 8)[agent] = latest
        for warp in range(warps):
            me = i64(state[WARP_STATES] + warp * WARP * 8)
            if me[STATUS] == 1 and me[BARRIER] == number:
                me[STATUS] = 0
                i64(state[CLOCKS] + warp * AGENTS * 8)[warp] += 1
        if here == alive:
            state[ERA] += 1
    return any_released


@routine("int64(S,int64)")
def run_program(state, program):
    """Run one program to its end, a fatal fault or a deadlock."""
    begin(state, program)
    warps = state[WARPS]
    order = i64(state[WARP_ORDER])
    for warp in range(warps):
        order[warp] = warp
    idle = 0
    while True:
        if state[RANDOM]:
            for k in range(warps - 1, 0, -1):
                other = random(state) % (k + 1)
                order[k], order[other] = order[other], order[k]
        running, progress, ended = False, False, True
        for k in range(warps):
            warp = order[k]
            me = i64(state[WARP_STATES] + warp * WARP * 8)
            if me[STATUS] == 0:
                running = True
                budget = 1 << 20
                if state[RANDOM]:
                    budget = 1 + random(state) % 256
                before = me[FAILED]
                steps = run_warp(state, warp, budget)
                if state[ABORT]:
                    return 0
                if me[FAILED] == before or steps > 16:
                    progress = True
            ended &= me[STATUS] == 2
        if ended:
            return 0
        if release(state):
            progress = True
        elif not running:
            progress = False
            idle = PATIENCE
        idle = 0 if progress else idle + 1
        if idle > PATIENCE:
            for warp in range(warps):
                me = i64(state[WARP_STATES] + warp * WARP * 8)
                if me[STATUS] != 2:
                    fault(state, DEADLOCK, max(me[PC] - 1, 0), warp, 0, me[BARRIER], me[STATUS], 0)
            state[ABORT] = 1
            return 0


@routine("int64(S)")
def launch(state):
    """Runs the programs of a launch in their order. Returns 0, or 1 where a fault stopped it."""
    order = i64(state[ORDER])
    for k in range(state[N_ORDER]):
        run_program(state, order[k])
        if state[ABORT]:
            return 1
    return 0
