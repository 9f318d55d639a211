"""States of sequences in a pool: read, written and taken back by row, without reading a number back from a GPU."""

from __future__ import annotations

import torch


class Rows:
    """The rows of a pool [rows, C, S] that belong to the B sequences: those that `indices` int32 [B] names, or the first B in
    order. A number without a row reads zeros and changes nothing."""

    def __init__(self, pool: torch.Tensor, count: int, indices: torch.Tensor | None) -> None:
        self.pool = pool
        self.every = torch.arange(count, device=pool.device)
        self.here = None if indices is None else (indices >= 0) & (indices < pool.shape[0])
        self.row = self.every if indices is None else indices.clamp(0, pool.shape[0] - 1).long()

    def read(self, columns: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """[B, C, n]: the columns [B, n] of each row, zeros where `known` bool [B] is False."""
        values = self.pool[self.row[:, None], :, columns].transpose(1, 2)
        for kept in (self.here, known):
            values = values if kept is None else torch.where(kept[:, None, None], values, 0)
        return values

    def write(self, columns: torch.Tensor, values: torch.Tensor) -> None:
        """Puts values [B, C, n] into the columns [B, n] of each row."""
        row, values = self.row, values.transpose(1, 2)
        if self.here is not None:
            # a sequence without a row repeats the write of one that has a row, or writes back what is there if none has
            source = torch.where(self.here, self.every, self.here.int().argmax())
            row, columns, values = row[source], columns[source], values[source]
            values = torch.where(self.here.any(), values, self.pool[row[:, None], :, columns])
        self.pool.transpose(1, 2).index_put_((row[:, None], columns), values)


def last(end: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """[B, count]: where a ring of `size` columns has the `count` columns before column `end` [B] of each sequence."""
    return (end.long()[:, None] - count + torch.arange(count, device=end.device)) % size


def take_back(rows: Rows, rejected: torch.Tensor) -> None:
    """Forgets the last `rejected` [B] columns of each row, a window: the others move to its end, and the oldest stays."""
    size = rows.pool.shape[2]
    columns = torch.arange(size, device=rows.pool.device).expand(len(rows.row), size)
    rows.write(columns, rows.read((columns - rejected.long()[:, None]).clamp(min=0)))
