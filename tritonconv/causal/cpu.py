"""The causal convolution by torch's operators, for CPU tensors outside Triton's interpreter. CUDA tensors never come here.

Half precision is accumulated in float32, as in the kernels.
"""

from __future__ import annotations

import torch

from tritonconv.causal.launch import Given, allocate

Wide = torch.Tensor  # a tensor in the accumulator's type


def _wide(t: torch.Tensor) -> Wide:
    return t.double() if t.dtype == torch.float64 else t.float()


def _laid_out(result: Wide, like: torch.Tensor) -> torch.Tensor:
    return allocate(tuple(result.shape), like).copy_(result)


class Places:
    """The positions of x's columns in their sequences."""

    def __init__(self, x: torch.Tensor, given: Given) -> None:
        batch, _, length = x.shape
        self.column = torch.arange(length, device=x.device)
        zero = torch.zeros((), dtype=torch.long)
        self.ids = given.ids.long() if given.ids is not None else zero.expand(batch, length)
        packed = given.starts is not None
        #: for each column, the number of its sequence's state, and its position in the sequence
        self.sequence = self.ids.clamp_min(0) if packed else torch.arange(batch)[:, None].expand(batch, length)
        starts = given.starts.long() if given.starts is not None else zero.expand(1)
        self.reach = self.column - (starts[self.sequence] if packed else 0)
        self.exists = self.ids >= 0

    def same(self, d: int) -> torch.Tensor:
        """[B, L]: whether the column d columns back is in the same sequence."""
        before = torch.nn.functional.pad(self.ids, (d, 0), value=-1)[:, : self.ids.shape[1]]
        return (self.column >= d) & (before == self.ids) & self.exists

    def in_state(self, d: int, state: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """(row, column of x, sequence, column of the state) of the columns that see their sequence's state d columns back."""
        if state is None:
            return ()
        row, column = ((self.reach < d).expand_as(self.ids) & self.exists).nonzero(as_tuple=True)
        at = state.shape[2] - d + self.reach.expand_as(self.ids)[row, column]
        return row, column, self.sequence[row, column], at


def _seen(x: Wide, state: Wide | None, places: Places, d: int) -> Wide:
    """[B, C, L]: what each column sees d columns back."""
    length = x.shape[2]
    back = torch.nn.functional.pad(x, (d, 0))[:, :, :length]
    back = torch.where(places.same(d)[:, None], back, 0)
    if where := places.in_state(d, state):
        assert state is not None
        row, column, sequence, at = where
        back[row, :, column] = state[sequence, :, at]
    return back


def _z(x: Wide, w: Wide, b: Wide | None, state: Wide | None, places: Places) -> Wide:
    z = torch.zeros_like(x) if b is None else b[:, None].expand_as(x).clone()
    for d in range(w.shape[1]):
        z += w[:, w.shape[1] - 1 - d, None] * _seen(x, state, places, d)
    return z


def forward(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, activation: str, given: Given) -> torch.Tensor:
    places = Places(x, given)
    bias, state = (None if t is None else _wide(t) for t in (b, given.state))
    z = _z(_wide(x), _wide(w), bias, state, places)
    y = torch.nn.functional.silu(z) if activation else z
    return _laid_out(torch.where(places.exists[:, None], y, 0), x)


def final_state(x: torch.Tensor, taps: int, given: Given) -> torch.Tensor:
    count, channels = given.sequences(x), x.shape[1]
    final = allocate((count, channels, taps - 1), x)
    for s in range(count):
        row, state = _row(x, given, s), given.state
        before = x.new_zeros((channels, taps - 1)) if state is None else state[s]
        line = torch.cat([before, row], 1)
        final[s] = line[:, line.shape[1] - (taps - 1) :]
    return final


def _row(x: torch.Tensor, given: Given, s: int) -> torch.Tensor:
    """The columns of sequence s, a view [C, its length]."""
    if given.starts is None:
        return x[s]
    first, end = given.starts[s : s + 2].tolist()
    return x[0, :, first:end]


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    dfinal: torch.Tensor | None,
    activation: str,
    given: Given,
    wants: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    places, taps, length = Places(x, given), w.shape[1], x.shape[2]
    x_wide, w_wide, dz = _wide(x), _wide(w), _wide(dy)
    bias, state = (None if t is None else _wide(t) for t in (b, given.state))
    if activation:
        z = _z(x_wide, w_wide, bias, state, places)
        gate = z.sigmoid()
        dz = dz * (gate * (1 + z * (1 - gate)))
    dz = torch.where(places.exists[:, None], dz, 0)
    dx, dwb = torch.zeros_like(x_wide), w_wide.new_zeros((w.shape[0], taps + 1))
    dstate = None if state is None else torch.zeros_like(state)
    dwb[:, taps] = dz.sum((0, 2))
    for d in range(taps):
        tap = w_wide[:, taps - 1 - d, None]
        dwb[:, taps - 1 - d] = (dz * _seen(x_wide, state, places, d)).sum((0, 2))
        met = torch.where(places.same(d)[:, None], dz * tap, 0)
        dx += torch.nn.functional.pad(met, (0, d))[:, :, d : d + length]
        if dstate is not None and (where := places.in_state(d, state)):
            row, column, sequence, at = where
            dstate.transpose(1, 2).index_put_((sequence, at), (dz * tap)[row, :, column], accumulate=True)
    if dfinal is not None:
        for s in range(given.sequences(x)):
            of_x, size = _row(dx, given, s), _row(dx, given, s).shape[1]
            kept = min(size, taps - 1)
            of_x[:, size - kept :] += dfinal[s, :, taps - 1 - kept :]
            if dstate is not None:
                dstate[s, :, size:] += dfinal[s, :, : taps - 1 - kept]
    none = x.new_empty(0)
    wants_x, wants_w, wants_state = wants
    return (
        _laid_out(dx, x) if wants_x else none,
        dwb.to(w.dtype) if wants_w else none.clone(),
        _laid_out(dstate, given.state) if wants_state and dstate is not None and given.state is not None else none.clone(),
    )


def update(
    x: torch.Tensor,
    state: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    activation: str,
    before: torch.Tensor | None,
    entries: torch.Tensor | None,
) -> torch.Tensor:
    y, taps, size = allocate(tuple(x.shape), x), w.shape[1], state.shape[2]
    rows = range(x.shape[0]) if entries is None else entries.tolist()
    for n, entry in enumerate(rows):
        if entry < 0:
            y[n] = 0
            continue
        at = torch.arange(size)
        if before is not None:
            at = (at + before[n].long()) % size  # the oldest first
        line = torch.cat([state[entry][:, at], x[n]], 1)
        window = line[:, size - (taps - 1) :]
        given = Given(window[None, :, : taps - 1], None, None)
        y[n] = forward(x[n : n + 1], w, b, activation, given)[0]
        after = at if before is None else (at + x.shape[2]) % size
        state[entry][:, after] = line[:, line.shape[1] - size :]
    return y
