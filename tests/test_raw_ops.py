"""`torch.ops.tritonconv`: an op, and its fake, say in words what is wrong with an argument before anything of it is read."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonconv  # noqa: F401  registers the ops

OPS = torch.ops.tritonconv
INT = torch.int32


def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


#: A sound call of each op. What a case changes goes by the argument's name.
SOUND = {
    "fprop": {"x": t(2, 4, 6), "w": t(4, 2, 3), "b": t(4), "stride": [1], "padding": [0, 1], "dilation": [1], "groups": 2},
    "dgrad": {
        **{"dy": t(2, 4, 5), "w": t(4, 2, 3), "b": t(4), "input_size": [6]},
        **{"stride": [1], "padding": [0, 1], "dilation": [1], "groups": 2},
    },
    "wgrad": {
        **{"dy": t(2, 4, 5), "x": t(2, 4, 6), "kernel_size": [3]},
        **{"stride": [1], "padding": [0, 1], "dilation": [1], "groups": 2},
    },
    "separable": {
        **{"x": t(1, 2, 4, 4), "w1": t(2, 1, 3, 3), "w2": t(3, 2, 1, 1), "b1": t(2), "b2": t(3), "residual": t(1, 3, 2, 2)},
        **{"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1]},
    },
    "deform": {
        **{"x": t(1, 4, 3, 3), "offset": t(1, 4, 3, 2), "w": t(2, 4, 1, 2), "b": t(2), "mask": t(1, 2, 3, 2)},
        **{"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]},
    },
    "deform_backward": {
        **{"dy": t(1, 2, 3, 2), "x": t(1, 4, 3, 3), "offset": t(1, 4, 3, 2), "w": t(2, 4, 1, 2), "mask": t(1, 2, 3, 2)},
        **{"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "needs": [True] * 4},
    },
    "unfold": {"x": t(1, 2, 4), "kernel_size": [2], "dilation": [1], "padding": [1], "stride": [1]},
    "fold": {"y": t(1, 4, 5), "output_size": [4], "kernel_size": [2], "dilation": [1], "padding": [1], "stride": [1]},
    "causal": {"x": t(1, 2, 6), "w": t(2, 3), "b": t(2), "state": t(1, 2, 2)},
    "causal_backward": {"dy": t(1, 2, 6), "x": t(1, 2, 6), "w": t(2, 3), "state": t(1, 2, 2), "dfinal": t(1, 2, 2)},
    "causal_update": {"x": t(2, 2, 1), "state": t(2, 2, 2), "w": t(2, 3), "b": t(2)},
    "video": {
        **{"x": t(1, 2, 2, 3, 3), "w": t(3, 2, 2, 2, 2), "b": t(3), "cache": t(1, 2, 1, 3, 3), "stride": [1, 1, 1]},
        **{"padding": [0, 0, 0, 0], "dilation": [1, 1, 1], "upsample": 1, "time_padding": "zeros", "keeps": True},
    },
    "normalize": {"x": t(1, 2, 2, 3, 3), "scale": t(1, 1, 2), "shift": t(1, 2, 2), "rstd": t(1, 2, 3, 3), "activation": "relu"},
    "group_scale": {"x": t(1, 2, 2, 3, 3), "w": t(2), "b": t(2), "groups": 2, "eps": 1e-5, "per_frame": False},
    "rms_rstd": {"x": t(1, 2, 2, 3, 3), "eps": 1e-5},
}
SOUND["fprop_fused"] = SOUND["fprop"] | {"scale": t(4), "shift": t(4), "residual": t(2, 4, 5), "activation": "relu"}
SOUND["dgrad_fused"] = SOUND["dgrad"] | {"scale": t(4), "shift": t(4), "residual": t(2, 4, 6), "activation": "relu"}
SOUND["fprop_normalized"] = SOUND["fprop_fused"] | {
    **{"x_scale": t(2, 1, 4), "x_shift": t(1, 1, 4), "x_rstd": t(2, 1, 1, 6), "x_activation": "silu"},
}
PACKED = {"ids": t(1, 6, dtype=INT) * 0, "starts": torch.tensor([0, 6], dtype=INT)}

WINDOWS = [
    ({"stride": [0]}, "stride must be 1 numbers, each at least 1, got stride=\\[0\\]"),
    ({"stride": [1, 1]}, "stride must be 1 numbers"),
    ({"dilation": [-1]}, "dilation must be 1 numbers, each at least 1"),
    ({"padding": [0]}, "padding must be 2 numbers"),
    ({"groups": 0}, "groups must be at least 1, got groups=0"),
    ({"groups": -2}, "groups must be at least 1, got groups=-2"),
]
AFTER = [
    ({"scale": t(3)}, "scale of shape \\[4\\], got scale \\[3\\]"),
    ({"shift": t(1)}, "shift of shape \\[4\\]"),
    ({"residual": t(2, 4, 4)}, "residual of shape \\[2, 4, [56]\\]"),
    ({"residual": t(4)}, "residual of shape"),
    ({"scale": t(4).double()}, "same dtype"),
    ({"activation": "swoosh"}, "activation must be '' or one of 'relu'"),
    ({"b": t(5)}, "b of shape \\[4\\]"),
]
CASES = {
    "fprop": [
        *WINDOWS,
        ({"groups": 4}, "expected input to have"),
        ({"b": t(2)}, "b of shape \\[4\\], got b \\[2\\]"),
        ({"b": t(4, 1)}, "b of shape \\[4\\]"),
        ({"b": t(4).half()}, "same dtype, got torch.float32 and torch.float16"),
        ({"w": t(4, 2, 3, 1)}, "as many axes"),
        ({"x": t(4), "w": t(4)}, "as many axes, 3 to 5"),
        ({"w": t(4, 2, 8)}, "kernel size can't be greater than the padded input: padded \\[7\\]"),
        ({"w": t(4, 2, 0)}, "the kernel's size must be 1 numbers, each at least 1"),
    ],
    "dgrad": [
        *WINDOWS,
        ({"b": t(2)}, "b of shape \\[4\\], got b \\[2\\]"),
        ({"input_size": [6, 6]}, "input_size must be 1 numbers"),
        ({"input_size": [7]}, "dy has shape"),
        ({"dy": t(2, 3, 5)}, "dy has shape"),
    ],
    "wgrad": [
        *WINDOWS,
        ({"kernel_size": [0]}, "kernel_size must be 1 numbers, each at least 1"),
        ({"kernel_size": [3, 3]}, "kernel_size must be 1 numbers"),
        ({"x": t(1, 4, 6)}, "dy has shape"),
        ({"x": t(2, 4, 6).double()}, "same dtype"),
    ],
    "fprop_fused": AFTER,
    "dgrad_fused": AFTER,
    "fprop_normalized": [
        *AFTER,
        ({"x_scale": t(2, 4)}, "scale of shape \\[2 or 1, 1 or 1, 4\\], got scale \\[2, 4\\]"),
        ({"x_shift": t(3, 1, 4)}, "shift of shape"),
        ({"x_rstd": t(2, 6)}, "rstd of shape \\[2, 1, 1, 6\\]"),
        ({"x_rstd": t(2, 1, 1, 6).half()}, "rstd of torch.float32, got torch.float16"),
        ({"x_activation": "swish"}, "activation must be"),
    ],
    "separable": [
        ({"b1": t(3)}, "b1 of shape \\[2\\]"),
        ({"b2": t(2)}, "b2 of shape \\[3\\]"),
        ({"residual": t(1, 3, 2, 1)}, "residual of shape \\[1, 3, 2, 2\\]"),
        ({"w1": t(2, 1, 3)}, "w1 \\[C, 1, R, S\\]"),
        ({"w1": t(2, 1, 5, 5)}, "(larger|greater) than the padded input"),
        ({"stride": [0, 1]}, "stride must be 2 numbers"),
        ({"padding": [0, 0]}, "padding must be 4 numbers"),
        ({"between": "swoosh"}, "between must be '' or one of"),
        ({"activation": "swoosh"}, "activation must be '' or one of"),
    ],
    "deform": [
        ({"x": t(4, 3, 3)}, "x of 4 axes"),
        ({"offset": t(1, 4, 3)}, "offset of 4 axes"),
        ({"offset": t(1, 3, 3, 2)}, "offset with 2 \\* D \\* 2 channels"),
        ({"offset": t(1, 4, 2, 2)}, "offset of shape \\[1, 4, 3, 2\\]"),
        ({"mask": t(1, 4, 3, 2)}, "mask of shape \\[1, 2, 3, 2\\]"),
        (
            {"mask": t(1, 2, 3, 2).double()},
            "mask must have x's dtype or torch.float32, got x .* and mask torch.float64",
        ),
        ({"w": t(2, 3, 1, 2)}, "share out C channels and K filters"),
        ({"w": t(2, 4, 1, 5)}, "offset with 2 \\* D \\* 5 channels"),
        ({"b": t(3)}, "b of shape \\[2\\]"),
        ({"b": t(2).half()}, "same dtype"),
        ({"stride": [0, 1]}, "stride must be 2 numbers"),
        ({"padding": [0]}, "padding must be 4 numbers"),
    ],
    "deform_backward": [
        ({"dy": t(1, 2, 3, 3)}, "dy of shape \\[1, 2, 3, 2\\]"),
        ({"dy": t(1, 2, 3, 2).double()}, "same dtype"),
        ({"offset": t(1, 4, 3, 2).half()}, "offset must have x's dtype"),
        ({"needs": [True]}, "needs must be 4 bools"),
    ],
    "unfold": [
        ({"x": t(2, 4)}, "x of 3 to 5 axes, got x \\[2, 4\\]"),
        ({"x": t(1, 2, 4).long()}, "expected x of torch.float16.*got torch.int64"),
        ({"x": t(1, 0, 4)}, "the size of x, without its batch, must be 2 numbers, each at least 1"),
        ({"kernel_size": [2, 2]}, "kernel_size must be 1 numbers"),
        ({"kernel_size": [0]}, "kernel_size must be 1 numbers, each at least 1"),
        ({"kernel_size": [7]}, "greater than the padded input"),
        ({"dilation": [0]}, "dilation must be 1 numbers"),
        ({"padding": [-1]}, "padding must be 1 numbers, each at least 0"),
        ({"stride": []}, "stride must be 1 numbers"),
    ],
    "fold": [
        ({"y": t(4, 5)}, "y of 3 axes, got y \\[4, 5\\]"),
        ({"y": t(1, 3, 5)}, "whose 3 rows are no multiple of 2"),
        ({"y": t(1, 4, 4)}, "expected input with 5 = 5 windows for output_size"),
        ({"output_size": [4] * 4}, "output_size must be 1 to 3 numbers"),
        ({"output_size": [0]}, "output_size must be 1 numbers, each at least 1"),
        ({"kernel_size": [2, 2]}, "kernel_size must be 1 numbers"),
        ({"stride": [0]}, "stride must be 1 numbers"),
    ],
    "causal": [
        ({"x": t(2, 6)}, "x of 3 axes"),
        ({"w": t(3, 3)}, "w of shape \\[2, 1 to 16\\]"),
        ({"w": t(2, 17), "state": None}, "w of shape \\[2, 1 to 16\\]"),
        ({"b": t(1)}, "b of shape \\[2\\]"),
        ({"state": t(1, 2, 3)}, "state of shape \\[1, 2, 2\\]"),
        ({"state": t(2, 2, 2)}, "state of shape \\[1, 2, 2\\]"),
        ({"ids": t(1, 5, dtype=INT)}, "ids of shape \\[1, 6\\]"),
        ({"ids": t(1, 6)}, "ids to be contiguous torch.int32"),
        ({"ids": t(1, 12, dtype=INT)[:, ::2]}, "ids to be contiguous torch.int32"),
        ({"starts": PACKED["starts"]}, "starts go with ids"),
        ({**PACKED, "starts": t(1, dtype=INT)}, "at least 2 entries"),
        ({**PACKED, "starts": t(3, dtype=INT)}, "state of shape \\[2, 2, 2\\]"),
        ({"activation": "gelu"}, "activation must be '' or one of 'silu'"),
    ],
    "causal_backward": [
        ({"dy": t(1, 2, 5)}, "dy of shape \\[1, 2, 6\\]"),
        ({"dfinal": t(1, 2, 1)}, "dfinal of shape \\[1, 2, 2\\]"),
        ({"state": t(1, 1, 2)}, "state of shape \\[1, 2, 2\\]"),
        ({"dy": t(1, 2, 6).double()}, "same dtype"),
    ],
    "causal_update": [
        ({"state": t(3, 2, 2)}, "state of shape \\[2, 2, at least 2\\]"),
        ({"state": t(2, 2, 1)}, "state of shape \\[2, 2, at least 2\\]"),
        ({"state": t(2, 4)}, "state of 3 axes"),
        ({"b": t(3)}, "b of shape \\[2\\]"),
        ({"w": t(2, 3).half()}, "same dtype"),
        ({"before": t(1, dtype=INT)}, "before of shape \\[2\\]"),
        ({"entries": t(2)}, "entries to be contiguous torch.int32"),
        ({"entries": t(3, dtype=INT)}, "entries of shape \\[2\\]"),
    ],
    "video": [
        ({"b": t(2)}, "b of shape \\[3\\]"),
        ({"cache": t(1, 2, 2, 3, 3)}, "cache of shape \\[1, 2, 0 to 1, 3, 3\\]"),
        ({"cache": t(1, 2, 1, 3, 2)}, "cache of shape"),
        ({"cache": t(2, 1, 3, 3)}, "cache of 5 axes"),
        ({"w": t(3, 1, 2, 2, 2)}, "channels do not match"),
        ({"w": t(3, 2, 2, 4, 2)}, "larger than the padded frame"),
        ({"stride": [0, 1, 1]}, "stride must be 3 numbers"),
        ({"padding": [0, 0]}, "padding must be 6 numbers"),
        ({"upsample": 3}, "upsample must be 1, or 2"),
        ({"time_padding": ""}, "time_padding must be"),
        ({"stride": [3, 1, 1]}, "must have a multiple of 3 frames"),
        ({"groups": 2}, "channels do not match"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"scale": t(1, 2)}, "scale of shape \\[1 or 1, 2 or 1, 2\\]"),
        ({"residual": t(1, 3, 2, 2, 3)}, "residual of shape \\[1, 3, 2, 2, 2\\]"),
        ({"activation": "swish"}, "activation must be"),
    ],
    "normalize": [
        ({"x": t(1, 2, 3, 3)}, "x of 5 axes"),
        ({"scale": t(1, 3, 2)}, "scale of shape \\[1 or 1, 2 or 1, 2\\], got scale \\[1, 3, 2\\]"),
        ({"shift": t(2)}, "shift of shape"),
        ({"rstd": t(1, 2, 3)}, "rstd of shape \\[1, 2, 3, 3\\]"),
        ({"rstd": t(1, 2, 3, 3, dtype=torch.float64)}, "rstd of torch.float32, got torch.float64"),
        ({"activation": "swish"}, "activation must be"),
    ],
    "group_scale": [
        ({"x": t(1, 2, 3, 3)}, "x of 5 axes"),
        ({"groups": 3}, "groups must divide the 2 channels of x, got groups=3"),
        ({"w": t(3)}, "w of shape \\[2\\]"),
        ({"b": t(2, 1)}, "b of shape \\[2\\]"),
    ],
    "rms_rstd": [({"x": t(1, 2, 3, 3)}, "x of 5 axes")],
}
EVERY = [(name, change, words) for name, cases in CASES.items() for change, words in cases]


def test_every_op_is_here() -> None:
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("tritonconv::")}
    assert registered == set(SOUND) == set(CASES)


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_calls_run(name, fake, device, launches) -> None:
    """So that no case below is refused for another reason than its own."""
    call(name, SOUND[name], device, fake)
    assert bool(launches()) == (not fake)


def call(name, arguments, device, fake):
    op, given = getattr(OPS, name), {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
    if not fake:
        return op(**{"b": None} | given if name in ("fprop", "dgrad", "fprop_fused", "dgrad_fused") else given)
    with FakeTensorMode() as mode:
        return op(**{key: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for key, v in given.items()})


@pytest.mark.parametrize("name, change, words", EVERY, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(EVERY)])
def test_nonsense_is_refused_in_words(name, change, words, device, launches) -> None:
    for fake in (False, True):
        with pytest.raises((RuntimeError, ValueError), match=words):
            call(name, SOUND[name] | change, device, fake)
    assert not launches()


@pytest.mark.parametrize("name", SOUND)
def test_tensors_of_two_devices_are_refused(name) -> None:
    """Fake tensors stand for a GPU."""
    _, *others = (key for key, v in SOUND[name].items() if isinstance(v, torch.Tensor))
    with FakeTensorMode() as mode:
        for other in others:
            given = {key: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for key, v in SOUND[name].items()}
            given[other] = torch.empty(SOUND[name][other].shape, device="cuda")
            with pytest.raises(RuntimeError, match=r"same device|device.* cuda:0"):
                getattr(OPS, name)(**given)
