"""Calls of the causal convolution, and its definition: one column at a time, in float64."""

import itertools

import torch

import tritonconv
from tritonconv.causal.launch import Given


def walked(x, w, b=None, activation=None, state=None, ids=None, bounds=None):
    """(out, final) of x [B, C, L]: what lies before a column is x, the state, or zero."""
    (batch, channels, length), taps = x.shape, w.shape[1]
    if bounds is None:
        spans = [(n, 0, length) for n in range(batch)]
    else:
        spans = [(0, first, end) for first, end in itertools.pairwise(bounds)]
    columns, finals = {}, []
    for s, (n, first, end) in enumerate(spans):
        before = x.new_zeros(channels, taps - 1) if state is None else state[s]
        line = torch.cat([before, x[n, :, first:end]], 1)
        numbers = [0] * line.shape[1] if ids is None else [None] * (taps - 1) + ids[n].tolist()
        for t in range(end - first):
            z = x.new_zeros(channels) if b is None else b
            for j in range(taps):
                if numbers[t + j] == numbers[t + taps - 1]:
                    z = z + w[:, j] * line[:, t + j]
            z = z * 0 if numbers[t + taps - 1] < 0 else z
            columns[n, first + t] = z if activation is None else z / (1 + torch.exp(-z))
        finals.append(line[:, line.shape[1] - (taps - 1) :])
    rows = [[columns.get((n, t), x[n, :, t] * 0) for t in range(length)] for n in range(batch)]
    out = torch.stack([torch.stack(row, 1) for row in rows]) if columns else torch.zeros_like(x)
    return out, torch.stack(finals) if finals else x.new_zeros(0, channels, taps - 1)


class Example:
    """Random tensors of one call; `bounds` where sequences are packed, one of them empty, one a single column."""

    def __init__(self, mode, batch, channels, length, taps, last=True, dtype=torch.float64, device="cpu", seed=0):
        random = torch.Generator().manual_seed(seed)

        def values(*shape):
            return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).to(device)

        packed = mode.startswith("packed")
        batch = 1 if packed else batch
        self.bounds = [0, 2, 2, 3, length // 2, length] if packed else None
        self.cu_seqlens = torch.tensor(self.bounds, dtype=torch.int32, device=device) if packed else None
        self.x = values(batch, length, channels).transpose(1, 2) if last else values(batch, channels, length)
        self.w, self.b = values(channels, taps), values(channels)
        count = 5 if packed else batch
        self.state = values(count, channels, taps - 1) if "state" in mode else None
        self.ids = None
        if mode == "ids":
            numbers = torch.randint(-1, 3, (batch, length), generator=random, dtype=torch.int32)
            self.ids = numbers.sort(1).values.to(device)  # -1: columns that are nobody's
        self.dy, self.dfinal = values(*self.x.shape), values(count, channels, taps - 1)
        if last:
            self.dy = self.dy.transpose(1, 2).contiguous().transpose(1, 2)

    @property
    def given(self):
        return Given(self.state, self.ids if self.bounds is None else self.packed_ids(), self.cu_seqlens)

    def packed_ids(self):
        numbers = torch.bucketize(torch.arange(self.x.shape[2]), self.cu_seqlens[1:].cpu(), right=True, out_int32=True)
        return numbers.unsqueeze(0).to(self.x.device)

    def run(self, call):
        """Results and gradients of call(x, w, b, state) -> (out, final or None)."""
        tensors = [self.x, self.w, self.b] + ([] if self.state is None else [self.state])
        leaves = [t.detach().requires_grad_() for t in tensors]
        out, final = call(*leaves, *([None] * (4 - len(leaves))))
        results, arrive = ([out], [self.dy]) if final is None else ([out, final], [self.dy, self.dfinal])
        gradients = torch.autograd.grad(results, leaves, [g.to(r.dtype) for g, r in zip(arrive, results, strict=True)])
        return dict(zip(("out", "final", "dx", "dw", "db", "dstate"), (out, final, *gradients), strict=False))

    def library(self, activation, final=True):
        final = final and self.ids is None

        def call(x, w, b, state):
            found = tritonconv.causal_conv1d(x, w, b, activation, state, final, self.ids, self.cu_seqlens)
            return found if final else (found, None)

        return self.run(call)

    def by_definition(self, activation):
        wide = Example.__new__(Example)
        wide.__dict__ = {k: v.cpu().double() if isinstance(v, torch.Tensor) else v for k, v in self.__dict__.items()}
        ids = None if self.ids is None else self.ids.cpu()

        def call(x, w, b, state):
            out, final = walked(x, w, b, activation, state, ids, self.bounds)
            return out, final if ids is None else None

        return wide.run(call)


def assert_close(got, want, rounding):
    """Within a rounding of the largest value of each result, and sums of a few hundred terms in the accumulator's type."""
    assert set(got) == set(want)
    for name, value in want.items():
        if value is not None and value.numel():
            error = (got[name].detach().cpu().double() - value).abs().max()
            assert error <= rounding * value.abs().max(), f"{name}: {error}"
