"""States of the causal convolution: final states, gradients of initial states, and updates by single tokens."""

import triton
import triton.language as tl

from tritonconv.kernels.causal import bias_of
from tritonconv.kernels.causal_backward import through
from tritonconv.kernels.epilogue import activated, rounded
from tritonconv.kernels.index import unpack


@triton.jit
def sequence_of(pid, channels, length, starts_ptr, CHANNELS: tl.constexpr):
    """(sequence, channel [CHANNELS], row of x, first column in it, length) of a program, whatever `starts_ptr` holds."""
    tiles_c = tl.cdiv(channels, CHANNELS)
    sequence = pid // tiles_c
    channel = (pid % tiles_c) * CHANNELS + tl.arange(0, CHANNELS)
    row = sequence.to(tl.int64)
    first = sequence * 0
    if starts_ptr is not None:
        row = row * 0
        first = tl.minimum(tl.maximum(tl.load(starts_ptr + sequence), 0), length)
        length = tl.minimum(tl.maximum(tl.load(starts_ptr + sequence + 1), first), length) - first
    return sequence.to(tl.int64), channel.to(tl.int64), row, first, length


@triton.jit
def final_state_kernel(
    x_ptr,
    state_ptr,  # [sequence, C, TAPS - 1]; None without one
    final_ptr,  # likewise
    starts_ptr,
    x_strides,  # packed, of three axes, as all here
    state_strides,
    final_strides,
    sizes,  # (channels, length), packed
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """final[s, c, i] = the last TAPS - 1 columns of state[s, c] followed by sequence s"""
    channels = unpack(sizes[0])
    sequence, channel, row, first, length = sequence_of(tl.program_id(0), channels, unpack(sizes[1]), starts_ptr, CHANNELS)
    lanes = channel < channels
    x_ptrs = x_ptr + row * unpack(x_strides[0]) + channel * unpack(x_strides[1])
    final_ptrs = final_ptr + sequence * unpack(final_strides[0]) + channel * unpack(final_strides[1])
    for i in range(0, TAPS - 1):
        u = length - (TAPS - 1) + i  # in the sequence; before it lies the state
        at = (first + u).to(tl.int64) * unpack(x_strides[2])
        value = tl.load(x_ptrs + at, mask=tl.where(u >= 0, lanes, False), other=0.0)
        if state_ptr is not None:
            at = sequence * unpack(state_strides[0]) + (u + (TAPS - 1)) * unpack(state_strides[2]).to(tl.int64)
            before = tl.load(state_ptr + at + channel * unpack(state_strides[1]), mask=tl.where(u < 0, lanes, False), other=0.0)
            value = tl.where(u < 0, before, value)
        tl.store(final_ptrs + i * unpack(final_strides[2]).to(tl.int64), value, mask=lanes)


@triton.jit
def state_gradient_kernel(
    dy_ptr,
    x_ptr,
    w_ptr,
    b_ptr,
    state_ptr,  # [sequence, C, TAPS - 1]
    dfinal_ptr,  # likewise; None without one
    dstate_ptr,  # likewise
    starts_ptr,
    dy_strides,  # packed, of three axes, as all here
    x_strides,
    w_strides,
    state_strides,
    dfinal_strides,
    dstate_strides,
    sizes,  # (channels, length, stride of the bias), packed
    TAPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dstate[s, c, i] = sum over t <= i of w[c, i - t] * dz[s, c, t], plus dfinal[s, c, i - length] where the state outlives
    a sequence shorter than TAPS - 1"""
    channels = unpack(sizes[0])
    sequence, channel, row, first, length = sequence_of(tl.program_id(0), channels, unpack(sizes[1]), starts_ptr, CHANNELS)
    lanes = channel < channels
    dy_ptrs = dy_ptr + row * unpack(dy_strides[0]) + channel * unpack(dy_strides[1])
    x_ptrs = x_ptr + row * unpack(x_strides[0]) + channel * unpack(x_strides[1])
    state_ptrs = state_ptr + sequence * unpack(state_strides[0]) + channel * unpack(state_strides[1])
    weights = ()
    for s in tl.static_range(TAPS):
        at = channel * unpack(w_strides[0]) + s * unpack(w_strides[2]).to(tl.int64)
        weights = weights + (tl.load(w_ptr + at, mask=lanes, other=0.0).to(ACC),)
    start = bias_of(b_ptr, sizes[2], channel, lanes, CHANNELS, ACC)
    line = ()  # the state, then the first TAPS - 1 columns
    for i in tl.static_range(TAPS - 1):
        line = line + (tl.load(state_ptrs + i * unpack(state_strides[2]).to(tl.int64), mask=lanes, other=0.0).to(ACC),)
    for t in tl.static_range(TAPS - 1):
        at = (first + t).to(tl.int64) * unpack(x_strides[2])
        line = line + (tl.load(x_ptrs + at, mask=tl.where(t < length, lanes, False), other=0.0).to(ACC),)
    dz = ()
    for t in tl.static_range(TAPS - 1):
        at = (first + t).to(tl.int64) * unpack(dy_strides[2])
        g = tl.load(dy_ptrs + at, mask=tl.where(t < length, lanes, False), other=0.0).to(ACC)
        if ACTIVATION != "":
            z = start
            for s in tl.static_range(TAPS):
                z += weights[s] * line[t + s]
            g = tl.where(t < length, through(g, z, ACTIVATION), 0.0)
        dz = dz + (g,)
    for i in tl.static_range(TAPS - 1):
        acc = tl.zeros((CHANNELS,), ACC)
        for t in tl.static_range(i + 1):
            acc += weights[i - t] * dz[t]
        if dfinal_ptr is not None:
            at = sequence * unpack(dfinal_strides[0]) + channel * unpack(dfinal_strides[1])
            at += (i - length).to(tl.int64) * unpack(dfinal_strides[2])
            acc += tl.load(dfinal_ptr + at, mask=tl.where(i >= length, lanes, False), other=0.0).to(ACC)
        at = sequence * unpack(dstate_strides[0]) + channel * unpack(dstate_strides[1])
        at += i * unpack(dstate_strides[2]).to(tl.int64)
        tl.store(dstate_ptr + at, rounded(acc, dstate_ptr.dtype.element_ty, UPCAST), mask=lanes)


@triton.jit
def causal_update_kernel(
    x_ptr,
    state_ptr,  # [entry, C, STATE], changed in place
    w_ptr,
    b_ptr,
    y_ptr,
    before_ptr,  # int32 [B], tokens that each sequence has had if its state is a ring; None if it is a window
    entry_ptr,  # int32 [B], the state of each sequence, or a value that is no entry; None where state n is sequence n's
    x_strides,  # packed, of three axes, as all here
    state_strides,
    w_strides,
    y_strides,
    sizes,  # (channels, tokens, stride of the bias, entries), packed
    TAPS: tl.constexpr,
    STATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y[n, c, t] = act(b[c] + sum over s of w[c, s] * line[n, c, t + s]), with line the last TAPS - 1 columns of the state and
    then x; the state becomes the last STATE columns of itself and x"""
    channels = unpack(sizes[0])
    tokens = unpack(sizes[1])
    tiles_c = tl.cdiv(channels, CHANNELS)
    pid = tl.program_id(0)
    channel = ((pid % tiles_c) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    image = (pid // tiles_c).to(tl.int64)
    lanes = channel < channels
    entry = image
    if entry_ptr is not None:
        entry = tl.load(entry_ptr + image).to(tl.int64)
        entry = tl.where(entry < unpack(sizes[3]), entry, -1)
    ours = tl.where(entry >= 0, lanes, False)
    x_ptrs = x_ptr + image * unpack(x_strides[0]) + channel * unpack(x_strides[1])
    y_ptrs = y_ptr + image * unpack(y_strides[0]) + channel * unpack(y_strides[1])
    state_ptrs = state_ptr + entry * unpack(state_strides[0]) + channel * unpack(state_strides[1])
    state_step = unpack(state_strides[2]).to(tl.int64)
    weights = ()
    for s in tl.static_range(TAPS):
        at = channel * unpack(w_strides[0]) + s * unpack(w_strides[2]).to(tl.int64)
        weights = weights + (tl.load(w_ptr + at, mask=lanes, other=0.0).to(ACC),)
    start = bias_of(b_ptr, sizes[2], channel, lanes, CHANNELS, ACC)
    RING: tl.constexpr = before_ptr is not None
    KEPT: tl.constexpr = TAPS - 1 if before_ptr is not None else STATE
    had = 0
    if RING:
        had = tl.load(before_ptr + image) % STATE
        had = tl.where(had < 0, had + STATE, had)  # what nobody had counts from behind, within the ring
    line = ()  # as loaded, the oldest first: Triton 3.6's compiler aborts on converted values that a loop carries
    for i in tl.static_range(KEPT):
        at = i
        if RING:
            at = (had + (STATE - (TAPS - 1) + i)) % STATE
        line = line + (tl.load(state_ptrs + at * state_step, mask=ours, other=0.0),)
    tl.debug_barrier()  # before another thread overwrites what this one reads
    for t in range(0, tokens):
        token = tl.load(x_ptrs + t * unpack(x_strides[2]).to(tl.int64), mask=lanes, other=0.0)
        line = line + (token,)
        acc = start
        for s in tl.static_range(TAPS):
            acc += weights[s] * line[KEPT + 1 - TAPS + s].to(ACC)
        acc = tl.where(entry >= 0, activated(acc, ACTIVATION, 0.0), 0.0)
        tl.store(y_ptrs + t * unpack(y_strides[2]).to(tl.int64), rounded(acc, y_ptr.dtype.element_ty, UPCAST), mask=lanes)
        if RING:
            tl.store(state_ptrs + ((had + t) % STATE) * state_step, token, mask=ours)
        line = line[1:]
    if not RING:
        for i in tl.static_range(KEPT):
            tl.store(state_ptrs + i * state_step, line[i], mask=ours)
