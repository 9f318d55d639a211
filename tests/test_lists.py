"""The fixed lists: whole, reproducible, and untouched by rows that come later."""

from __future__ import annotations

import json

import pytest

from bench import workloads
from bench.workloads import lists
from bench.workloads.lists import DRAWN_FROM, GOALS, goals, sample, spread
from costmodel.problem import Pass


@pytest.fixture
def more_rows(monkeypatch):
    """A file that has grown at its end."""
    row = json.loads(workloads.PATH.read_text().splitlines()[1]) | {"layer": "new", "suite": "vgg16"}
    grown = (*workloads.rows(), *(row | {"N": n} for n in range(1, 200)))
    monkeypatch.setattr(lists, "rows", lambda: grown)


def test_the_goals_stand_for_every_group():
    lines = goals()
    assert {line.group for line in lines} == {goal.group for goal in GOALS}
    assert len({(line.suite, line.layer, line.work.problem) for line in lines}) in range(60, 90)
    assert [line.group for line in lines[: len(GOALS)]] == [goal.group for goal in GOALS]  # a cut run has seen every group
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert line.goal >= 1 and 0.75 <= line.floor < 1
        assert line.work.tf32 == (line.group == "float32 in tf32")


def test_forward_and_backward_of_transposed_layers():
    transposed = [line.work for line in goals() if line.group == "transposed"]
    assert all(work.transposed for work in transposed)
    assert [work.which for work in transposed].count(Pass.DGRAD) == len(transposed) // 3


def test_large_filters_lie_as_their_networks_keep_them():
    large = [line for line in goals() if line.group == "large depthwise filters"]
    assert {line.work.which for line in large} == set(Pass) and {line.work.layout for line in large} == {"contiguous"}
    assert {min(line.work.problem.kernel_size) for line in large} >= {13, 31} and len(large) == 12


def test_the_sample_is_reproducible():
    assert sample() == sample() and len(set(sample())) == lists.SAMPLE_SIZE
    assert sample(seed=1) != sample() and sample(10) == sample()[:10]
    assert len({line.suite for line in sample()}) > 20 and {line.work.which for line in sample()} == set(Pass)


def test_rows_that_are_added_change_no_list(request):
    before = goals(), sample()
    assert len(workloads.rows()) >= DRAWN_FROM
    request.getfixturevalue("more_rows")
    assert len(lists.rows()) > DRAWN_FROM and (goals(), sample()) == before


def test_spread():
    assert spread(list("abcdefg"), 3) == ["a", "d", "g"]
    assert spread(["a", "b"], 3) == ["a", "b"] and spread(["a", "b"], 1) == ["a"]
