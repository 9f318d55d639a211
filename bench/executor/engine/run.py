"""Runs one warp until it has to wait.

Lanes that part at a branch meet again at the branch's immediate post-dominator, which decoding has found. A stack holds the
lanes that wait, with the row where they go on and the row where they meet the others.
"""

from bench.executor.arithmetic import arithmetic
from bench.executor.engine import copies, matrix, mbarriers, memory, tma, warps
from bench.executor.engine import wgmma as products
from bench.executor.engine.faults import fatal, fault
from bench.executor.layout import (
    ABORT,
    CODE,
    COPY_FIRST,
    COPY_NEXT,
    COUNTERS,
    COUNTS,
    DEPTH,
    GUARD,
    GUARD_NOT,
    JOIN,
    LIMIT,
    LIVE,
    MASK,
    N_LANES,
    N_WARPS,
    OP,
    PC,
    PREDICATE_WORDS,
    PREDICATES,
    PRODUCT_FIRST,
    PRODUCT_NEXT,
    REGISTER_BYTES,
    REGISTERS,
    REJOIN,
    ROW,
    STACK,
    STACK_DEPTH,
    STATUS,
    STEPS,
    STORE_FIRST,
    STORE_NEXT,
    TARGET,
    WARP,
    WARP_STATES,
    Kind,
    Op,
)
from bench.executor.native import i64, popcount, routine, u32

CAPACITY, PENDING, TOO_LONG, TRAPPED = int(Kind.CAPACITY), int(Kind.PENDING), int(Kind.TOO_LONG), int(Kind.TRAP)
LOAD_GLOBAL = int(Op.LOAD_GLOBAL)
STORE_GLOBAL = int(Op.STORE_GLOBAL)
LOAD_SHARED = int(Op.LOAD_SHARED)
STORE_SHARED = int(Op.STORE_SHARED)
COPY = int(Op.COPY)
COPY_COMMIT = int(Op.COPY_COMMIT)
COPY_WAIT = int(Op.COPY_WAIT)
LOAD_MATRIX = int(Op.LOAD_MATRIX)
STORE_MATRIX = int(Op.STORE_MATRIX)
PRODUCT = int(Op.PRODUCT)
PRODUCT_DOUBLE = int(Op.PRODUCT_DOUBLE)
SHUFFLE = int(Op.SHUFFLE)
REDUCE = int(Op.REDUCE)
VOTE = int(Op.VOTE)
ELECT = int(Op.ELECT)
ACTIVE = int(Op.ACTIVE)
WARP_BARRIER = int(Op.WARP_BARRIER)
BARRIER = int(Op.BARRIER)
FENCE_PROXY = int(Op.FENCE_PROXY)
MBARRIER_INIT = int(Op.MBARRIER_INIT)
MBARRIER_INVALIDATE = int(Op.MBARRIER_INVALIDATE)
MBARRIER_ARRIVE = int(Op.MBARRIER_ARRIVE)
MBARRIER_WAIT = int(Op.MBARRIER_WAIT)
TMA_LOAD = int(Op.TMA_LOAD)
TMA_STORE = int(Op.TMA_STORE)
TMA_COMMIT = int(Op.TMA_COMMIT)
TMA_WAIT = int(Op.TMA_WAIT)
WGMMA = int(Op.WGMMA)
WGMMA_COMMIT = int(Op.WGMMA_COMMIT)
WGMMA_WAIT = int(Op.WGMMA_WAIT)
WGMMA_FENCE = int(Op.WGMMA_FENCE)
BRANCH, RETURN, NOTHING, TRAP = int(Op.BRANCH), int(Op.RETURN), int(Op.NOTHING), int(Op.TRAP)

copy_issue, copy_commit, copy_wait = copies.copy_issue, copies.copy_commit, copies.copy_wait
load_global, store_global = memory.load_global, memory.store_global
load_shared, store_shared = memory.load_shared, memory.store_shared
load_matrix, store_matrix = memory.load_matrix, memory.store_matrix
product, product_double = matrix.product, matrix.product_double
shuffle, reduce_lanes, vote, elect = warps.shuffle, warps.reduce_lanes, warps.vote, warps.elect
fence_proxy, mbarrier_init, mbarrier_invalidate = mbarriers.fence_proxy, mbarriers.mbarrier_init, mbarriers.mbarrier_invalidate
mbarrier_arrive, mbarrier_wait = mbarriers.mbarrier_arrive, mbarriers.mbarrier_wait
tma_load, tma_store, tma_commit, tma_wait = tma.tma_load, tma.tma_store, tma.tma_commit, tma.tma_wait
wgmma, wgmma_commit, wgmma_wait = products.wgmma, products.wgmma_commit, products.wgmma_wait
active, warp_barrier, barrier = warps.active, warps.warp_barrier, warps.barrier


@routine("int64(S,int64,int64,int64,int64,int64,int64)")
def act(state, op, n, warp, mask, registers, predicates):
    """Executes an operation that is no arithmetic. Returns whether the warp goes on (0), pauses (1) or the launch stops (2)."""
    if op == LOAD_GLOBAL:
        return load_global(state, n, warp, mask, registers, predicates)
    if op == STORE_GLOBAL:
        return store_global(state, n, warp, mask, registers, predicates)
    if op == LOAD_SHARED:
        return load_shared(state, n, warp, mask, registers, predicates)
    if op == STORE_SHARED:
        return store_shared(state, n, warp, mask, registers, predicates)
    if op == COPY:
        return copy_issue(state, n, warp, mask, registers, predicates)
    if op == COPY_COMMIT:
        return copy_commit(state, n, warp, mask, registers, predicates)
    if op == COPY_WAIT:
        return copy_wait(state, n, warp, mask, registers, predicates)
    if op == LOAD_MATRIX:
        return load_matrix(state, n, warp, mask, registers, predicates)
    if op == STORE_MATRIX:
        return store_matrix(state, n, warp, mask, registers, predicates)
    if op == PRODUCT:
        return product(state, n, warp, mask, registers, predicates)
    if op == PRODUCT_DOUBLE:
        return product_double(state, n, warp, mask, registers, predicates)
    if op == SHUFFLE:
        return shuffle(state, n, warp, mask, registers, predicates)
    if op == REDUCE:
        return reduce_lanes(state, n, warp, mask, registers, predicates)
    if op == VOTE:
        return vote(state, n, warp, mask, registers, predicates)
    if op == ELECT:
        return elect(state, n, warp, mask, registers, predicates)
    if op == ACTIVE:
        return active(state, n, warp, mask, registers, predicates)
    if op == WARP_BARRIER:
        return warp_barrier(state, n, warp, mask, registers, predicates)
    if op == BARRIER:
        return barrier(state, n, warp, mask, registers, predicates)
    if op == FENCE_PROXY:
        return fence_proxy(state, n, warp, mask, registers, predicates)
    if op == MBARRIER_INIT:
        return mbarrier_init(state, n, warp, mask, registers, predicates)
    if op == MBARRIER_INVALIDATE:
        return mbarrier_invalidate(state, n, warp, mask, registers, predicates)
    if op == MBARRIER_ARRIVE:
        return mbarrier_arrive(state, n, warp, mask, registers, predicates)
    if op == MBARRIER_WAIT:
        return mbarrier_wait(state, n, warp, mask, registers, predicates)
    if op == TMA_LOAD:
        return tma_load(state, n, warp, mask, registers, predicates)
    if op == TMA_STORE:
        return tma_store(state, n, warp, mask, registers, predicates)
    if op == TMA_COMMIT:
        return tma_commit(state, n, warp, mask, registers, predicates)
    if op == TMA_WAIT:
        return tma_wait(state, n, warp, mask, registers, predicates)
    if op == WGMMA:
        return wgmma(state, n, warp, mask, registers, predicates)
    if op == WGMMA_COMMIT:
        return wgmma_commit(state, n, warp, mask, registers, predicates)
    if op == WGMMA_WAIT:
        return wgmma_wait(state, n, warp, mask, registers, predicates)
    if op == WGMMA_FENCE:
        return 0
    return 2


@routine("int64(S,int64)")
def retire(state, warp):
    """Ends a warp. Nothing that it issued may still be in flight."""
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    me[STATUS] = 2
    last = me[PC]
    if me[COPY_FIRST] < me[COPY_NEXT]:
        fault(state, PENDING, last, warp, 0, me[COPY_NEXT] - me[COPY_FIRST], -1, 0)
    if me[PRODUCT_FIRST] < me[PRODUCT_NEXT]:
        fault(state, PENDING, last, warp, 0, me[PRODUCT_NEXT] - me[PRODUCT_FIRST], -1, 1)
    if me[STORE_FIRST] < me[STORE_NEXT]:
        fault(state, PENDING, last, warp, 0, me[STORE_NEXT] - me[STORE_FIRST], -1, 2)
    return 0


@routine("int64(S,int64,int64)")
def run_warp(state, warp, budget):
    """Runs a warp until it pauses, ends or has used its budget of rows. Returns how many rows it ran."""
    me = i64(state[WARP_STATES] + warp * WARP * 8)
    registers = state[REGISTERS] + warp * state[REGISTER_BYTES]
    predicates = state[PREDICATE_WORDS] + warp * state[PREDICATES] * 4
    code, counters = state[CODE], state[COUNTERS]
    pc, mask, rejoin = me[PC], me[MASK], me[REJOIN]
    steps = 0
    while steps < budget:
        while pc == rejoin or mask == 0:  # the lanes of this path are done: take the next path, or all lanes together again
            if me[DEPTH] == 0:
                if mask == 0:
                    me[STEPS] += steps
                    retire(state, warp)
                    return steps
                break
            me[DEPTH] -= 1
            top = STACK + 3 * me[DEPTH]
            pc, mask, rejoin = me[top], me[top + 1] & me[LIVE], me[top + 2]
        row = i64(code + pc * (ROW * 8))
        op = row[OP]
        lanes = mask
        if row[GUARD] >= 0:
            guard = 0
            guard += u32(predicates + row[GUARD])[0]
            if row[GUARD_NOT]:
                guard = ~guard
            lanes &= guard
        steps += 1
        counts = i64(counters + pc * (COUNTS * 8))
        counts[N_WARPS] += 1
        counts[N_LANES] += popcount(lanes)
        if op < BRANCH:
            if lanes != 0:
                arithmetic(op, code + pc * (ROW * 8), registers, predicates, lanes)
            pc += 1
        elif op == BRANCH:
            rest = mask & ~lanes
            if lanes == 0:
                pc += 1
            elif rest == 0:
                pc = row[TARGET]
            else:
                meet = row[JOIN]
                if me[DEPTH] + 2 > STACK_DEPTH:
                    fatal(state, CAPACITY, pc, warp, 0, STACK_DEPTH)
                    return steps
                if meet != rejoin:
                    top = STACK + 3 * me[DEPTH]
                    me[top], me[top + 1], me[top + 2] = meet, mask, rejoin
                    me[DEPTH] += 1
                if row[TARGET] == meet:
                    pc, mask, rejoin = pc + 1, rest, meet
                elif pc + 1 == meet:
                    pc, mask, rejoin = row[TARGET], lanes, meet
                else:
                    top = STACK + 3 * me[DEPTH]
                    me[top], me[top + 1], me[top + 2] = pc + 1, rest, meet
                    me[DEPTH] += 1
                    pc, mask, rejoin = row[TARGET], lanes, meet
        elif op == RETURN:
            me[LIVE] &= ~lanes
            mask &= ~lanes
            me[PC] = pc
            pc += 1
        elif lanes == 0 or op == NOTHING:
            pc += 1
        elif op == TRAP:
            fatal(state, TRAPPED, pc, warp, 0, 0)
            return steps
        else:
            me[PC] = pc
            answer = act(state, op, pc, warp, lanes, registers, predicates)
            pc += 1
            if answer != 0:
                if answer == 2:
                    state[ABORT] = 1
                break
    me[PC], me[MASK], me[REJOIN] = pc, mask, rejoin
    me[STEPS] += steps
    if me[STEPS] > state[LIMIT]:
        fatal(state, TOO_LONG, min(pc, me[PC]), warp, 0, state[LIMIT])
    return steps
