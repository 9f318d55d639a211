"""What `test_distributed.py` runs in each of two processes: DTensors, DDP and FSDP2 on converted models against one process.

python tests/two_processes.py RANK FILE
"""

import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import tritonconv
from bench.launched import COUNTS
from tritonconv import convert, halo

KEPT = Replicate()
CONV = (4, 6, 5, 4), (8, 6, 3, 3), (8,)
TRANSPOSED = (4, 8, 3, 2), (8, 6, 3, 3), (6,)
DEPTHWISE = (4, 6, 5, 4), (6, 1, 3, 3), (6,)
BASE = {"padding": 1, "stride": 2}
#: function, shapes, placements of x and w, arguments, and where the result must be sharded (None: wherever).
CASES = [
    ("conv2d", CONV, Shard(0), KEPT, BASE, Shard(0)),
    ("conv2d", CONV, KEPT, Shard(0), BASE, Shard(1)),
    ("conv2d", CONV, KEPT, KEPT, BASE, None),
    ("conv2d", CONV, Shard(2), KEPT, BASE, None),  # redistributed
    ("conv2d", CONV, Shard(0), KEPT, {**BASE, "padding": 0}, Shard(0)),  # not the shape of padding 1
    ("conv2d", ((4, 6, 5, 4), (8, 3, 3, 3), (8,)), Shard(0), KEPT, {"groups": 2}, Shard(0)),
    ("conv2d", ((4, 6, 5, 4), (8, 3, 3, 3), (8,)), KEPT, Shard(0), {"groups": 2}, None),  # redistributed
    ("conv_transpose2d", TRANSPOSED, Shard(0), KEPT, BASE, Shard(0)),
    ("conv_transpose2d", TRANSPOSED, KEPT, Shard(1), BASE, Shard(1)),
    ("conv2d_fused", CONV, Shard(0), KEPT, {"activation": "silu"}, Shard(0)),
    ("conv2d_fused", CONV, KEPT, Shard(0), {"activation": "silu"}, Shard(1)),
    ("conv2d", CONV, Shard(0), KEPT, {**BASE, "padding_mode": "reflect"}, Shard(0)),
    ("conv2d", CONV, KEPT, Shard(0), {**BASE, "padding_mode": ("zeros", "circular")}, Shard(1)),
    ("conv2d", CONV, Shard(2), KEPT, {**BASE, "padding_mode": "circular"}, None),  # redistributed
    ("conv2d", DEPTHWISE, Shard(0), KEPT, {"groups": 6, "padding": 1, "padding_mode": "circular"}, Shard(0)),
    ("conv2d_fused", CONV, Shard(0), KEPT, {"padding": 1, "padding_mode": "replicate", "activation": "silu"}, Shard(0)),
]


def tensors(mesh):
    for name, shapes, of_x, of_w, arguments, expected in CASES:
        function = getattr(tritonconv, name)
        x, w, b = (torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in shapes)
        whole = [t.clone().requires_grad_() for t in (x, w, b)]
        want = function(*whole, **arguments)
        want.square().sum().backward()
        of_b = Shard(0) if of_w == expected or isinstance(of_w, Shard) else KEPT
        parts = [distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in ((x, of_x), (w, of_w), (b, of_b))]
        COUNTS.clear()
        y = function(*parts, **arguments)
        assert isinstance(y, DTensor) and {*COUNTS.values()} == {1}, (name, COUNTS)  # one launch, under each of its names
        assert expected is None or y.placements == (expected,), (name, y.placements)
        torch.testing.assert_close(y.full_tensor(), want, rtol=1e-4, atol=1e-4)
        y.square().sum().backward()
        for got, right in zip(parts, whole, strict=True):
            torch.testing.assert_close(got.grad.full_tensor(), right.grad, rtol=1e-3, atol=1e-3)


def others(mesh):
    """A deformable convolution whose batch, or whose filters, are sharded; unfold and fold, prologues and a causal convolution
    of a sharded batch."""
    shapes = (4, 4, 5, 4), (4, 18, 5, 4), (4, 9, 5, 4), (6, 4, 3, 3), (6,)
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in shapes]

    def deformed(x, offset, mask, w, b):
        return tritonconv.deform_conv2d(x, offset, w, b, 1, 1, 1, mask)

    def through(x):
        return tritonconv.fold(tritonconv.unfold(x, 3, 1, 1, 2).square(), (5, 4), 3, 1, 1, 2)

    def normed(x, w, b, gamma):
        prologue = tritonconv.group_norm_prologue(x, 2, gamma, activation="silu")
        return tritonconv.conv2d_fused(x, w, b, padding=1, activation="relu", prologue=prologue)

    def unrecorded(x, w, b, gamma):
        with torch.no_grad():
            y = normed(x, w, b, gamma)
        return y + 0 * x.sum()

    def causal(x, w, b, cache):
        prologue = tritonconv.rms_norm_prologue(x, activation="silu")
        y, after = tritonconv.causal_conv3d(x, w, b, padding=1, cache=cache, prologue=prologue)
        return torch.cat([y.flatten(1), after.flatten(1)], 1)

    def drawn(*shapes):
        return [torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in shapes]

    dense, video = drawn((4, 4, 5, 4), (6, 4, 3, 3), (6,), (4,)), drawn((4, 4, 2, 3, 4), (6, 4, 3, 3, 3), (6,), (4, 4, 2, 3, 4))
    for call, tensors_, placements, expected in (
        (normed, dense, [Shard(0), KEPT, KEPT, KEPT], Shard(0)),
        (unrecorded, dense, [Shard(0), KEPT, KEPT, KEPT], Shard(0)),
        (unrecorded, dense, [Shard(2), KEPT, KEPT, KEPT], None),  # redistributed
        (causal, video, [Shard(0), KEPT, KEPT, Shard(0)], Shard(0)),
        (deformed, given, [Shard(0)] * 3 + [KEPT] * 2, Shard(0)),
        (deformed, given, [KEPT] * 3 + [Shard(0)] * 2, Shard(1)),
        (deformed, given, [Shard(2)] * 3 + [KEPT] * 2, None),  # redistributed
        (through, given[:1], [Shard(0)], Shard(0)),
        (through, given[:1], [Shard(1)], None),  # redistributed
    ):
        whole = [t.clone().requires_grad_() for t in tensors_]
        want = call(*whole)
        want.square().sum().backward()
        parts = [distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in zip(tensors_, placements, strict=True)]
        y = call(*parts)
        assert isinstance(y, DTensor) and (expected is None or y.placements == (expected,)), y.placements
        torch.testing.assert_close(y.full_tensor(), want, rtol=1e-4, atol=1e-4)
        y.square().sum().backward()
        for got, right in zip(parts, whole, strict=True):
            if right.grad is not None:
                torch.testing.assert_close(got.grad.full_tensor(), right.grad, rtol=1e-3, atol=1e-3)


#: kernel, stride, padding and dilation along the axis that is cut, and the rows that a slab takes of its neighbours.
HALOS = [(3, 1, 1, 1, 1, 1), (3, 2, 1, 1, 1, 0), (4, 2, 1, 1, 1, 1), (3, 1, 2, 2, 2, 2), (1, 2, 0, 1, 0, 0)]


def halos(rank):
    """Slabs of an image, with the rows beside them, equal the image: results, gradients, and gradients of those."""
    generator = torch.Generator().manual_seed(2)
    for kernel, stride, padding, dilation, low, high in HALOS:
        assert high == max(0, (kernel - 1) * dilation - padding - stride + 1)
        x, w = torch.randn(2, 3, 8, 4, generator=generator), torch.randn(4, 3, kernel, 3, generator=generator)
        window = {"stride": (stride, 1), "dilation": (dilation, 1)}

        def derived(part, call, w=w, window=window):
            leaf, weight = part.clone().requires_grad_(), w.clone().requires_grad_()
            y = call(leaf, weight, window)
            dx, dw = torch.autograd.grad(y.square().sum(), (leaf, weight), create_graph=True)
            return y, dx, dw, torch.autograd.grad(dx.square().sum(), leaf)[0]

        def whole(x, w, window, padding=padding):
            return tritonconv.conv2d(x, w, padding=(padding, 1), **window)

        def slab(x, w, window, low=low, high=high):
            return tritonconv.conv2d(halo.exchange(x, low, high), w, padding=((0, 0), (1, 1)), **window)

        want, mine = derived(x, whole), derived(x.chunk(2, 2)[rank], slab)
        dist.all_reduce(mine[2].detach_())
        for got, right, cut in zip(mine, want, (True, True, False, True), strict=True):
            torch.testing.assert_close(got, right.chunk(2, 2)[rank] if cut else right, rtol=1e-3, atol=1e-3)
    for given, words in (((torch.ones(1, 1, 1, 4), 2, 0), "at least 2 rows along dim 2"), ((x, -1, 0), "low must be an int")):
        try:
            halo.exchange(*given)
        except ValueError as error:
            assert words in str(error)
        else:
            raise AssertionError(words)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.LazyLinear(2))


def training(rank, mesh):
    x = torch.randn(4, 4, 5, 4, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    model = net()
    model(x)
    model(x).square().mean().backward()
    want = [p.grad for p in model.parameters()]
    model.zero_grad()
    mine = x[2 * rank : 2 * rank + 2]

    COUNTS.clear()
    parallel = DistributedDataParallel(convert(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of gradients that lie otherwise than their parameters
        parallel(mine).square().mean().backward()
    assert COUNTS["fprop"] == 2 and COUNTS["wgrad"] == 2, COUNTS
    for parameter, right in zip(parallel.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, right, rtol=1e-3, atol=1e-4)

    COUNTS.clear()
    sharded = convert(model)
    fully_shard(sharded, mesh=mesh)
    sharded(mine).square().mean().backward()
    assert COUNTS["fprop"] == 2 and COUNTS["wgrad"] == 2, COUNTS
    for parameter, right in zip(sharded.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), right, rtol=1e-3, atol=1e-4)


def main(rank, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    tensors(mesh)
    others(mesh)
    halos(rank)
    training(rank, mesh)
    dist.barrier()
    dist.destroy_process_group()
    print(f"process {rank}: {len(CASES)} cases, DDP and FSDP2, slabs")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
