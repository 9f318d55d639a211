"""The clock of the harness: quantiles, rounds, sets of inputs, contenders in turns, results of the replay."""

from __future__ import annotations

import math
import os

import pytest
import torch
from standin import SMALL, Repeated, StandIn, lines, unwritten

from bench.machine import ROUNDS, in_turns, quantiles, rounds
from bench.measure import capture, checked, measure
from bench.providers import PROVIDERS, Contender
from bench.tolerance import share
from bench.work import Line

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")


def test_quantiles():
    found = quantiles([float(n) for n in range(11)])
    assert (found.p10, found.median, found.p90, found.count) == (1, 5, 9, 11)
    assert quantiles([2.0]).p90 == 2
    with pytest.raises(ValueError, match="no samples"):
        quantiles([])


def test_rounds_end():
    assert rounds([1.0, 1e-3]) == ROUNDS[0] and rounds([1e-6]) == ROUNDS[1] and rounds([4e-3, 5e-3]) == 20


@pytest.mark.parametrize("l2", [1, 1000, 10_000, 50_000_000])
def test_inputs_exceed_the_cache_twice(l2):
    for line in lines(SMALL, "conv2d n32 c64 56x56 -> 64 k3 p1", passes=("fprop", "dgrad", "wgrad")):
        count, size = line.work.sets(l2), line.work.input_bytes
        assert count * size > 2 * l2 >= (count - 1) * size


def test_every_set_is_another_and_is_used(tmp_path):
    work = lines(SMALL)[0].work
    sets = work.inputs(3, "cpu")
    assert len({t.data_ptr() for pair in sets for t in pair}) == 6
    assert not torch.equal(sets[0][0], sets[1][0])
    assert all((sets[i][j].data_ptr() - sets[0][j].data_ptr()) % 512 == 0 for i in range(3) for j in range(2))
    assert sets[0][0].is_contiguous(memory_format=torch.channels_last)
    machine = StandIn(l2_bytes=work.input_bytes)
    measure(Line(work), ["tritonconv"], machine, ())
    assert machine.captured == [3]


def test_calls_take_turns():
    made = []

    def call(i):
        made.append(i)
        return torch.tensor(len(made))

    assert [int(out) for out in in_turns(call, 3, 8)] == [7, 8, 6] and made == [0, 1, 2, 0, 1, 2, 0, 1]


def test_results_of_every_set_are_looked_at():
    """All that is compared is the first set's; of the others every element must have been written."""
    work = lines(SMALL)[0].work
    seen = []

    def call(a, b):
        seen.append(a.data_ptr())
        y = torch.nn.functional.conv2d(a, b, padding=1)
        return y if a.data_ptr() == seen[0] else unwritten(y)

    captured = capture(Contender("", call), work.inputs(2, "cpu"), 2, StandIn())
    assert checked(captured, work.exact(*work.inputs(2, "cpu")[0]), work) == math.inf


def test_results_are_those_of_the_replay():
    class Idle(Repeated):
        def replay(self):
            pass

    work = lines(SMALL)[0].work
    ((a, b),) = work.inputs(1, "cpu")
    call = PROVIDERS["cudnn"](work)[0].call
    assert checked(Repeated(lambda i: call(a, b), 1, 1), work.exact(a, b), work) <= 1
    assert checked(Idle(lambda i: call(a, b), 1, 1), work.exact(a, b), work) == math.inf


def test_the_share_of_the_tolerance():
    work = lines(SMALL)[0].work
    ((a, b),) = work.inputs(1, "cpu")
    want = work.exact(a, b)
    got = want.value.half()
    assert share(got, want) <= 1 < share(got * 1.01, want)
    got[0, 0, 0, 0] = math.nan
    assert share(got, want) == math.inf
