"""The forms of a weight that the kernel reads; in one of them, taps that see the same pixel of a magnified frame are summed.

Where a frame is upsampled by 2 (nearest) and then convolved with R taps, row 2 i + a of the result sees the magnified rows
2 i + a - low + r for r < R. Pairs of neighbours among these are copies of one row, so each parity a convolves the frame
itself with (R + 1) / 2 rows of sums. Of 3x3 taps 2x2 remain.
"""

from __future__ import annotations

import torch

from costmodel.video import Chunk
from tritonconv.epilogue import widened
from tritonconv.layout import channels_last_copy
from tritonconv.packed import packed


def rows_of(parity: int, low: int, taps: int) -> list[list[int]]:
    """For each row of the frame that a result of this parity sees, the taps that see it."""
    first = (parity - low) >> 1
    seen = [((parity - low + r) >> 1) - first for r in range(taps)]
    return [[r for r in range(taps) if seen[r] == row] for row in range(max(seen) + 1)]


def summed(w: torch.Tensor, low_h: int, low_w: int) -> torch.Tensor:
    """The summed weights [4, K, t, (R + 1) / 2, (S + 1) / 2, C], one set for each parity of row and column.

    Sums are computed in float32 (float64 for float64) and rounded once.
    """
    wide, parities = widened(w), []
    for a in range(2):
        rows = torch.stack([wide[:, :, :, taps].sum(3) for taps in rows_of(a, low_h, w.shape[3])], 3)
        for b in range(2):
            parities.append(torch.stack([rows[..., taps].sum(4) for taps in rows_of(b, low_w, w.shape[4])], 4))
    return torch.stack(parities).movedim(2, -1).to(w.dtype).contiguous()


def read(chunk: Chunk, w: torch.Tensor, readable: bool) -> torch.Tensor:
    """The weights as the kernel takes them: those given where it can read them, otherwise a packed form."""
    if chunk.summed:
        (low_h, _), (low_w, _) = chunk.problem.padding[1:]
        return packed(w, ("summed", low_h % 2, low_w % 2), lambda w: summed(w, low_h, low_w))
    return w if readable else packed(w, "channels last", channels_last_copy)
