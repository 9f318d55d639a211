"""What torch rejects is rejected with the same exception type, a message that says what was wrong, and no launch.

torch is asked each time: no exception type is written down here for a call that torch itself refuses.
"""

import contextlib
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import cases
import numpy
import pytest
import torch
import torch.nn.functional as F

import tritonconv


class Call(NamedTuple):
    """A good call of one of the functions: input (2, 4, 5...), weight for 4 to 6 channels, kernel 3, a bias of 6."""

    function: str
    x: torch.Tensor
    w: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        return int(self.function[-2])

    @property
    def transposed(self) -> bool:
        return "transpose" in self.function

    def weight(self, channels: int, filters: int, kernel: int = 3) -> torch.Tensor:
        return torch.ones(*((channels, filters) if self.transposed else (filters, channels)), *(kernel,) * self.rank)

    def input(self, *shape: int, size: int = 5) -> torch.Tensor:
        return torch.ones(*shape, *(size,) * self.rank)


def good_call(function: str) -> Call:
    empty = Call(function, torch.ones(()), torch.ones(()), torch.ones(6))
    return empty._replace(x=empty.input(2, 4), w=empty.weight(4, 6))


def numbers(*values: object) -> str:
    """A pattern for these values in a row, as in a shape, whatever brackets are around them."""
    return r"(?<![\d.])" + r",\s*".join(re.escape(str(v)) for v in values) + r"(?![\d.]\d)"


Arguments = tuple[tuple, dict[str, object]]
# A broken call, and the patterns that a message about it must match.
Broken = tuple[Callable[[Call], Arguments], Callable[[Call], tuple[str, ...]]]


def keywords(*patterns: str, **arguments: object) -> Broken:
    return lambda call: ((call.x, call.w), arguments), lambda call: patterns


def tensors(make: Callable[[Call], tuple], *patterns: str, **arguments: object) -> Broken:
    return lambda call: (make(call), arguments), lambda call: patterns


def too_long(name: str, **others: object) -> Broken:
    """One number more than the function has dimensions."""
    return (
        lambda call: ((call.x, call.w), {name: (1,) * (call.rank + 1), **others}),
        lambda call: (name, numbers(*(1,) * (call.rank + 1))),
    )


EVERYWHERE: dict[str, Broken] = {
    "input rank too high": tensors(lambda c: (c.input(1, 2, 4), c.w), "input", numbers(1, 2, 4)),
    "input rank too low": tensors(lambda c: (c.input(), c.w), "input", numbers(5)),
    "input scalar": tensors(lambda c: (torch.tensor(1.0), c.w), "input"),
    "weight rank too low": tensors(lambda c: (c.x, c.w[..., 0]), "weight"),
    "weight rank too high": tensors(lambda c: (c.x, c.w[..., None]), "weight"),
    "channels": tensors(lambda c: (c.input(2, 5), c.w), "channels", "input", "weight", numbers(5), numbers(4)),
    "channels unbatched": tensors(lambda c: (c.input(5), c.w), "channels", "input", "weight", numbers(5), numbers(4)),
    "channels of an empty batch": tensors(lambda c: (c.input(0, 5), c.w), "channels", numbers(5), numbers(4)),
    "groups do not divide": keywords("groups", numbers(3), groups=3),
    "groups 0": keywords("groups", numbers(0), groups=0),
    "groups negative": keywords("groups", numbers(-1), groups=-1),
    "bias length": tensors(lambda c: (c.x, c.w, torch.ones(5)), "bias", numbers(5), numbers(6)),
    "bias length 1": tensors(lambda c: (c.x, c.w, torch.ones(1)), "bias", numbers(1), numbers(6)),
    "bias rank": tensors(lambda c: (c.x, c.w, torch.ones(6, 1)), "bias", numbers(6, 1)),
    "bias scalar": tensors(lambda c: (c.x, c.w, torch.tensor(1.0)), "bias"),
    "bias dtype": tensors(lambda c: (c.x, c.w, c.b.double()), "bias", "float64|double", "float32|float"),
    "bias dtype half": tensors(lambda c: (c.x, c.w, c.b.half()), "bias", "float16|[Hh]alf", "float32|float"),
    "weight dtype": tensors(lambda c: (c.x, c.w.double()), "weight", "float64|double", "float32|float"),
    "input dtype": tensors(lambda c: (c.x.half(), c.w), "weight|input", "float16|[Hh]alf", "float32|float"),
    "16 bit dtypes": tensors(lambda c: (c.x.half(), c.w.bfloat16()), "weight", "float16|[Hh]alf", "bfloat16"),
    "padding negative": keywords("padding", numbers(-1), padding=-1),
    "padding negative in one dimension": (
        lambda call: ((call.x, call.w), {"padding": (*(1,) * (call.rank - 1), -2)}),
        lambda call: ("padding", numbers(-2)),
    ),
    "stride 0": keywords("stride", numbers(0), stride=0),
    "stride negative": keywords("stride", numbers(-1), stride=-1),
    "dilation 0": keywords("dilation", numbers(0), dilation=0),
    "dilation negative": keywords("dilation", numbers(-1), dilation=-1),
    "stride too long": too_long("stride"),
    "padding too long": too_long("padding"),
    "dilation too long": too_long("dilation"),
    "stride empty": keywords("stride", stride=()),
    "padding empty": keywords("padding", padding=()),
    "dilation empty": keywords("dilation", dilation=()),
    "stride float": keywords("stride", "float", stride=1.0),
    "padding float": keywords("padding", "float", padding=1.5),
    "dilation float": keywords("dilation", "float", dilation=1.0),
    "groups float": keywords("groups", "float", groups=1.0),
    "groups tuple": keywords("groups", "tuple", groups=(1,)),
    "stride of floats": (
        lambda call: ((call.x, call.w), {"stride": (1.0,) * call.rank}),
        lambda call: ("stride", "float|tuple"),
    ),
    "stride bool": keywords("stride", "bool|True", stride=True),
    "groups bool": keywords("groups", "bool|True", groups=True),
    "stride None": keywords("stride", "None", stride=None),
    "padding None": keywords("padding", "None", padding=None),
    "stride string": keywords("stride", "str|'1'", stride="1"),
    "dilation string": keywords("dilation", "str|'same'", dilation="same"),
    "same with stride": keywords("padding", "same|str", padding="same", stride=2),
    "unknown padding": keywords("padding", "full|str", padding="full"),
    "input a list": tensors(lambda c: ([1.0, 2.0], c.w), "input", "list"),
    "weight missing": tensors(lambda c: (c.x, None), "weight", "None"),
    "bias a number": tensors(lambda c: (c.x, c.w, 1.0), "bias", "float"),
    "unknown keyword": keywords("depth", depth=1),
    "too many positional": tensors(lambda c: (c.x, c.w, c.b, 1, 0, 1, 1, 1, 1)),
    "input without pixels": tensors(lambda c: (c.input(2, 4, size=0), c.w), "input", numbers(0)),
    "kernel without taps": tensors(lambda c: (c.x, c.weight(4, 6, 0)), "weight|kernel", numbers(0)),
    "sparse input": tensors(lambda c: (c.x.to_sparse(), c.w), "input|layout"),
}

FORWARD: dict[str, Broken] = {
    "kernel above input": tensors(lambda c: (c.x, c.weight(4, 6, 8)), "[Kk]ernel", numbers(8), numbers(5)),
    "kernel above padded input": tensors(lambda c: (c.x, c.weight(4, 6, 8)), "[Kk]ernel", numbers(8), numbers(7), padding=1),
    "kernel above input in one dimension": (
        lambda call: ((call.x[..., :2], call.w), {}),
        lambda call: ("[Kk]ernel", numbers(3), numbers(2)),
    ),
    "dilated kernel above input": keywords("[Kk]ernel", numbers(9), numbers(5), dilation=4),
    "kernel above input of an empty batch": tensors(
        lambda c: (c.input(0, 4, size=2), c.w), "[Kk]ernel", numbers(3), numbers(2)
    ),
    "groups and weight": keywords("groups", "channels", numbers(2), numbers(4), groups=2),
    "groups do not divide filters": tensors(
        lambda c: (c.x, c.weight(2, 5)), "groups", "weight", numbers(2), numbers(5), groups=2
    ),
    "fewer filters than groups": tensors(lambda c: (c.x, c.weight(1, 3)), "groups", "weight", numbers(4), numbers(3), groups=4),
}

TRANSPOSED: dict[str, Broken] = {
    "output_padding without stride": keywords("output_padding", numbers(1), output_padding=1),
    "output_padding as large as stride": keywords("output_padding", numbers(2), output_padding=2, stride=2),
    "output_padding as large as dilation": keywords("output_padding", numbers(3), output_padding=3, dilation=3),
    "output_padding negative": keywords("output_padding", numbers(-1), output_padding=-1, stride=2),
    "output_padding float": keywords("output_padding", "float", output_padding=1.0, stride=2),
    "output_padding too long": too_long("output_padding", stride=2),
    "padding string": keywords("padding", "str|'valid'", padding="valid"),
    "padding same": keywords("padding", "str|'same'", padding="same"),
    "padding crops more than there is": keywords("padding", numbers(4), padding=4),
    # In float64: in float32 oneDNN, below torch's CPU convolution, answers an empty tensor.
    "padding crops all there is": tensors(
        lambda c: (c.input(2, 4, size=1).double(), c.weight(4, 6, 2).double()), "padding|output", numbers(0), padding=1
    ),
    "positional order of a forward convolution": tensors(
        lambda c: (c.x, c.w, c.b, 1, 0, 1, 3), "groups|output_padding"
    ),  # output_padding 1, groups 3
}

ALL = [
    pytest.param(function, broken, id=f"{function}-{name}".replace(" ", "_"))
    for function in cases.FUNCTIONS
    for name, broken in (EVERYWHERE | (TRANSPOSED if "transpose" in function else FORWARD)).items()
]


def moved(arguments: Arguments, device: str) -> Arguments:
    positional, named = arguments
    return tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in positional), named


@pytest.mark.parametrize(("function", "broken"), ALL)
def test_rejected_as_torch_rejects(function: str, broken: Broken, device: str, launches) -> None:
    call = good_call(function)
    make, describe = broken
    positional, named = make(call)
    with pytest.raises(Exception) as theirs:
        getattr(F, function)(*positional, **named)
    positional, named = moved((positional, named), device)
    with pytest.raises(type(theirs.value)) as ours:
        getattr(tritonconv, function)(*positional, **named)
    assert type(ours.value) is type(theirs.value)
    for pattern in describe(call):
        assert re.search(pattern, str(ours.value)), f"nothing like {pattern!r} in: {ours.value}"
    assert not launches(), "a kernel was launched before the call was refused"


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_good_call_is_accepted(function: str, device: str, launched) -> None:
    """The call that every case above breaks in one place."""
    call = good_call(function)
    (x, w, b), _ = moved(((call.x, call.w, call.b), {}), device)
    assert getattr(tritonconv, function)(x, w, b).shape == getattr(F, function)(call.x, call.w, call.b).shape


MIXED = {
    "weight float64": ("float32", "float64", None),
    "input float64": ("float64", "float32", None),
    "bias float64": ("float32", "float32", "float64"),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_autocast_does_not_mend_what_it_does_not_cast(function: str, name: str, device: str, launches) -> None:
    """It leaves float64 alone, and with that float64 and others do not mix."""
    good = good_call(function)
    kinds = [kind and getattr(torch, kind) for kind in MIXED[name]]
    tensors = [t.to(device, kind) for t, kind in zip((good.x, good.w, good.b), kinds, strict=True) if kind]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(Exception) as theirs:
        getattr(F, function)(*(t.cpu() for t in tensors))
    for call in (getattr(tritonconv, function), getattr(tritonconv, f"{function}_fused")):
        with torch.autocast(device, torch.bfloat16), pytest.raises(type(theirs.value), match="float64") as ours:
            call(*tensors)
        assert "float32" in str(ours.value)
    assert not launches()


@pytest.mark.parametrize("kinds", [("float32", "float64"), ("float16", "bfloat16")])
@pytest.mark.parametrize("fake", [False, True])
def test_operators_refuse_mixed_dtypes(fake: bool, kinds: tuple[str, str], device: str, launches) -> None:
    """Called by themselves, as autograd calls them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    window = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
    one, other = (getattr(torch, kind) for kind in kinds)
    ops = torch.ops.tritonconv
    with FakeTensorMode() if fake else contextlib.nullcontext():
        x, w, b = (torch.ones(s, dtype=one, device=device) for s in ((1, 2, 4, 4), (2, 2, 3, 3), (2,)))
        dy = torch.ones(1, 2, 2, 2, dtype=one, device=device)
        for call in (
            lambda: ops.fprop(x, w.to(other), None, *window),
            lambda: ops.fprop(x, w, b.to(other), *window),
            lambda: ops.dgrad(dy.to(other), w, None, [4, 4], *window),
            lambda: ops.wgrad(dy, x.to(other), [3, 3], *window),
            lambda: ops.fprop_fused(x, w, b, *window, None, b.to(other)),
            lambda: ops.dgrad_fused(dy, w, None, [4, 4], *window, None, None, x.to(other), "relu"),
        ):
            with pytest.raises(RuntimeError, match=f"same dtype, got.*({kinds[0]}|{kinds[1]}).*({kinds[0]}|{kinds[1]})"):
                call()
    assert not launches()


UNSERVED = ["complex64", "complex128", "int8", "uint8", "int32", "int64", "bool", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", UNSERVED)
@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_dtypes_not_served_are_named(function: str, dtype: str, device: str, launches) -> None:
    """torch convolves some of these on the CPU; here they are refused, never computed by something else in silence."""
    call, kind = good_call(function), getattr(torch, dtype)
    with pytest.raises(RuntimeError, match=dtype):
        getattr(tritonconv, function)(call.x.to(device, kind), call.w.to(device, kind))
    with pytest.raises(RuntimeError, match=dtype):
        getattr(tritonconv, function)(*(t.to(device, kind) for t in (call.x, call.w, call.b)), padding=1)
    assert not launches()


@pytest.mark.parametrize("function", cases.FUNCTIONS)
@pytest.mark.parametrize("stray", ["input", "weight", "bias"])
def test_mixed_devices(function: str, stray: str, device: str, launches) -> None:
    call = good_call(function)
    arguments = dict(zip(("input", "weight", "bias"), (t.to(device) for t in (call.x, call.w, call.b)), strict=True))
    arguments[stray] = arguments[stray].to("meta")
    with pytest.raises(RuntimeError, match="meta") as error:
        getattr(tritonconv, function)(*arguments.values())
    assert stray in str(error.value) and device in str(error.value)
    assert not launches()


@pytest.mark.gpu
@pytest.mark.parametrize("stray", ["input", "weight", "bias"])
@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_cpu_tensor_among_cuda_tensors(function: str, stray: str, launches) -> None:
    call = good_call(function)
    arguments = dict(zip(("input", "weight", "bias"), (t.cuda() for t in (call.x, call.w, call.b)), strict=True))
    arguments[stray] = arguments[stray].cpu()
    with pytest.raises(Exception) as theirs:
        getattr(F, function)(*arguments.values())
    with pytest.raises(type(theirs.value), match="cpu"):
        getattr(tritonconv, function)(*arguments.values())
    assert not launches()


ACCEPTED: dict[str, dict[str, object]] = {
    "numpy integers": {"stride": numpy.int64(2), "padding": numpy.int32(1)},
    "tensor of one integer": {"stride": torch.tensor(2)},
    "list": {"padding": [1]},
    "range": {"padding": 2, "stride": 3, "dilation": 2},
}


@pytest.mark.parametrize("function", cases.FUNCTIONS)
@pytest.mark.parametrize("named", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_as_torch_accepts(function: str, named: dict[str, object], device: str, launched) -> None:
    call = good_call(function)
    got = getattr(tritonconv, function)(call.x.to(device), call.w.to(device), **named)
    assert got.shape == getattr(F, function)(call.x, call.w, **named).shape


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_error_is_raised_before_the_input_is_read(function: str, device: str, launches) -> None:
    """An input of a terabyte that does not exist: the check must not copy or convert anything."""
    call = good_call(function)
    huge = torch.ones(1, device=device).expand(2**20, 5, *(2**6,) * call.rank)
    with pytest.raises(RuntimeError, match=numbers(5)):
        getattr(tritonconv, function)(huge, call.w.to(device))
    assert math.prod(huge.shape) > 2**25 and not launches()


def test_a_gpu_that_triton_does_not_support_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from tritonconv.launch import device_model

    properties = {7: ("Tesla T4", 7, 5, 40), 8: ("NVIDIA A100-SXM4-40GB", 8, 0, 108)}

    def answer(index: int) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(("name", "major", "minor", "multi_processor_count"), properties[index], strict=True)))

    monkeypatch.setattr(torch.cuda, "get_device_properties", answer)
    with pytest.raises(RuntimeError, match=r"needs a GPU of compute capability 8\.0 or newer.*Tesla T4 has 7\.5"):
        device_model.__wrapped__(7)
    assert device_model.__wrapped__(8).capability == 80


@pytest.mark.parametrize("plan", [3, [3], {"fprop": 3}, object()], ids=["an int", "a list", "a dictionary", "an object"])
def test_a_plan_is_a_plan(plan: object, device: str, launches) -> None:
    x, w = torch.ones(1, 4, 8, 8, device=device), torch.ones(4, 4, 3, 3, device=device)
    with pytest.raises((TypeError, ValueError), match=r"conv2d\(\): .*plan.* got "):
        tritonconv.conv2d(x, w, plan=plan)
    assert not launches()
