"""Habits of torch that a converted model keeps: checkpointing, the profiler, hooks, tied weights, AOTInductor.

Compiling, exporting, autocast and fake tensors are in test_compile.py, test_export.py and test_functions.py.
"""

import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tritonconv import convert

X = torch.randn(1, 3, 5, 5)


def net():
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2))


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_by_kernels(reentrant, launches):
    model = net()
    ours, x = convert(model), X.clone().requires_grad_()
    model(x).sum().backward()
    want, x.grad = x.grad, None
    y = checkpoint(ours, x, use_reentrant=reentrant).sum()
    before = launches()
    y.backward()
    assert launches() - before == {"fprop": 2, "dgrad": 2, "wgrad": 2}
    close(x.grad, want)


def test_the_profiler_names_the_ops_and_their_shapes():
    with torch.profiler.profile(record_shapes=True, with_flops=True) as profile:
        convert(net())(X)
    events = {event.key: event for event in profile.key_averages(group_by_input_shape=True)}
    assert {"tritonconv::fprop", "tritonconv::dgrad"} <= {*events}
    assert events["tritonconv::fprop"].input_shapes[:2] == [[1, 3, 5, 5], [3, 3, 3, 3]]


def test_hooks_of_every_kind_run(launched):
    ours, seen = convert(net()), []
    first = ours[0]
    first.register_forward_pre_hook(lambda module, given: seen.append("before") or (given[0] * 2,))
    first.register_forward_hook(lambda module, given, made: seen.append("after") or made + 1)
    first.register_full_backward_pre_hook(lambda module, gradient: seen.append("gradient"))
    first.register_full_backward_hook(lambda module, inner, outer: seen.append("gradients"))
    first.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append("accumulated"))
    y = first(X.clone().requires_grad_())
    close(y, torch.nn.functional.conv2d(2 * X, first.weight, first.bias, padding=1) + 1)
    y.sum().backward()
    assert sorted(seen) == ["accumulated", "after", "before", "gradient", "gradients"]


def test_tied_weights_collect_both_gradients(launched):
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    model[1].weight = model[0].weight
    ours = convert(model)
    model(X).square().sum().backward()
    ours(X).square().sum().backward()
    assert len(list(ours.parameters())) == 1
    close(ours[0].weight.grad, model[0].weight.grad)


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor asks for a C++ compiler")
def test_aotinductor(tmp_path, launches):
    """A package calls the ops, by the process that loads it."""
    model = net().eval()
    program = torch.export.export(convert(model), (X,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    before = launches()
    close(loaded(X), model(X))
    assert launches() - before == {"fprop": 1, "dgrad": 1}
