"""The causal kernels compiled ahead of time: no spill, and as few instructions as promised.

Run apart from the interpreter: `pytest -m aot`.
"""

import pytest
import torch

from bench import causal as rows
from bench.aot import Pointer, compile_ahead
from bench.causal import IDS, NOTHING, PACKED, STATE, Row
from bench.sass import audit
from tritonconv.causal.launch import STATE_CHANNELS
from tritonconv.kernels.causal_state import causal_update_kernel, final_state_kernel, state_gradient_kernel
from tritonconv.prepared import accumulator

pytestmark = pytest.mark.aot


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: f"{row.name}:{row.plan}".replace(" ", "-"))
def test_an_output_takes_no_more_instructions_than_promised(row):
    got = rows.figures(row)
    assert got.audited.spills == 0 and got.audited.stack_bytes == 0
    assert got.per_output <= row.limit


SLOW = pytest.mark.slow


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize(
    "taps, features, arch, dtype",
    [
        pytest.param(4, PACKED, 90, torch.bfloat16, marks=SLOW),
        pytest.param(4, STATE, 90, torch.float32, marks=SLOW),
        pytest.param(4, IDS, 90, torch.float16, marks=SLOW),
        pytest.param(4, NOTHING, 80, torch.bfloat16, marks=SLOW),
        pytest.param(4, NOTHING, 100, torch.bfloat16, marks=SLOW),
        pytest.param(4, PACKED, 100, torch.bfloat16, marks=SLOW),
        pytest.param(4, NOTHING, 90, torch.float64, marks=SLOW),
        pytest.param(16, NOTHING, 90, torch.bfloat16, marks=SLOW),
    ],
)
def test_the_plan_chosen_does_not_spill(taps, features, arch, dtype, last, backward):
    row = Row("", taps, last, activation="silu", backward=backward, features=features, arch=arch, dtype=dtype)
    found = rows.figures(row).audited
    assert found.spills == 0 and found.stack_bytes == 0, row.chosen()


def state_arguments(kernel):
    """Arguments of a kernel of `causal_state`, all there is but a ring."""
    element, strides = Pointer(torch.bfloat16), (5, 5, 5)
    known = {"TAPS": 4, "STATE": 3, "ACTIVATION": "silu", "ACC": accumulator("bfloat16"), "UPCAST": False}
    known |= {"CHANNELS": STATE_CHANNELS, "sizes": (4099, 4099, 5, 4099)}
    known |= {"starts_ptr": Pointer(torch.int32), "entry_ptr": Pointer(torch.int32), "before_ptr": None}
    known |= {name: strides for name in kernel.arg_names if name.endswith("_strides")}
    return {name: known.get(name, element) for name in kernel.arg_names}


@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=SLOW), pytest.param(100, marks=SLOW)])
@pytest.mark.parametrize("kernel", [final_state_kernel, state_gradient_kernel, causal_update_kernel], ids=lambda k: k.__name__)
def test_states_compile(kernel, arch):
    found = audit(compile_ahead(kernel, state_arguments(kernel), arch=arch))
    assert found.spills == 0 and found.stack_bytes == 0


@pytest.mark.parametrize("absent", ["b_ptr", "dx_ptr", "partial_ptr", "dfinal_ptr"])
def test_a_gradient_without_one_of_its_tensors_compiles(absent):
    row = Row("", 3, True, "fprop:depthwise:2x32x1:w1:s3:rows4", activation="silu", backward=True, features=PACKED)
    kernel, arguments = rows.launch_of(row)
    warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
    found = audit(compile_ahead(kernel, arguments | {absent: None}, arch=90, num_warps=warps, num_stages=stages))
    assert found.spills == 0


@pytest.mark.parametrize(
    "kernel, absent",
    [
        (final_state_kernel, ("state_ptr", "starts_ptr")),
        (state_gradient_kernel, ("b_ptr", "dfinal_ptr", "starts_ptr")),
        (causal_update_kernel, ("b_ptr", "entry_ptr")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_states_compile_without_what_may_be_absent(kernel, absent):
    given = state_arguments(kernel) | dict.fromkeys(absent) | {"sizes": (3, 3, 5, 5)}
    if kernel is causal_update_kernel:
        given |= {"before_ptr": Pointer(torch.int32), "TAPS": 1, "STATE": 1}  # a ring, and a filter that needs no state
    assert audit(compile_ahead(kernel, given, arch=90)).spills == 0
