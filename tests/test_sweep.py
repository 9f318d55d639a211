"""The sweep on a stand-in machine, and what its rows say of the choice of plans."""

from __future__ import annotations

import io
import itertools
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from standin import StandIn
from synthetic import GPU, H200, HiddenModel, call_for, line_for

from bench import choice, sweep
from bench.choice import Summary, qualities, spearman
from bench.rows import load
from bench.run import lines_of
from bench.workloads import load as load_workloads
from bench.workloads.lists import sample
from costmodel.calibration import Calibration
from costmodel.families import every
from costmodel.plan import candidates, predict, select
from costmodel.problem import Pass

POINTWISE = "conv2d n2 c8 4x4 -> 8 k1"
DENSE = "conv2d n1 c8 5x5 -> 8 k3 p1"
LAYER = next(layer for layer in load_workloads("resnet50") if layer.kernel == (3, 3))


def lines(*problems):
    return lines_of([], problems, [], ["fprop"], "fp16", "")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def rows_of(model: HiddenModel, which: Pass = Pass.FPROP):
    call = call_for(LAYER, which)
    return [model.row(line_for(LAYER, which), plan, setting="sweep") for plan in candidates(call, H200)]


# --- measuring ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
def test_every_plan_is_measured_once_best_first_and_lines_in_turns(tmp_path, launched, monkeypatch):
    monkeypatch.setattr(sweep, "AT_ONCE", 2)
    path, machine, todo = tmp_path / "sweep.jsonl", StandIn(), lines(POINTWISE, DENSE)
    first = sweep.sweep(todo, machine, path, most=3, console=quiet())
    rows = list(load(path))
    assert first.new_rows == len(rows) == 6 and not first.failed and first.left == 0
    assert all(row.ok and row.setting == "sweep" and row.predicted_us for row in rows)
    assert [str(row.problem).split()[3] for row in rows] == ["4x4", "4x4", "5x5", "5x5", "4x4", "5x5"]
    for size in ("4x4", "5x5"):
        own = [row.predicted_us for row in rows if size in str(row.problem)]
        assert own == sorted(own)
    again = sweep.sweep(todo, StandIn(), path, most=3, console=quiet())
    assert again.new_rows == 0 and len(list(load(path))) == 6
    more = sweep.sweep(todo[:1], StandIn(), path, most=4, console=quiet())
    assert more.new_rows == 1


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
def test_a_sweep_ends_in_time_and_says_what_is_left(tmp_path):
    machine = StandIn()
    machine.clock = itertools.count(0, 15)  # seconds at each look: a batch takes 15, and 20 before that is known
    done = sweep.sweep(lines(POINTWISE, DENSE), machine, tmp_path / "rows.jsonl", minutes=0.7, most=1, console=quiet())
    assert done.new_rows == 1 and done.left == 1
    assert sweep.sweep(lines(DENSE), StandIn(), tmp_path / "none.jsonl", minutes=0.1, console=quiet()).left > 0


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
def test_a_wrong_result_has_no_time_and_fails_the_sweep(tmp_path, monkeypatch):
    contender = sweep.contender

    def wrong(work, plan):
        right = contender(work, plan)
        return replace(right, call=lambda a, b: right.call(a, b) + 1)

    monkeypatch.setattr(sweep, "contender", wrong)
    done = sweep.sweep(lines(POINTWISE), StandIn(), tmp_path / "rows.jsonl", most=2, console=quiet())
    (row, _) = load(tmp_path / "rows.jsonl")
    assert len(done.failed) == 2 and not row.ok and row.median_us is None and "tolerance" in done.failed[0]


def test_work_too_large_for_the_memory_is_skipped_with_a_word(tmp_path):
    done = sweep.sweep(lines(POINTWISE), StandIn(memory=1), tmp_path / "rows.jsonl", most=2, console=quiet())
    assert done.new_rows == 0 and "skipped, needs" in done.notes[0]


def test_the_sample_of_a_session_is_always_the_same():
    assert sample(15) == sample(15) == sample(100)[:15] and len({line.suite for line in sample(15)}) > 8


# --- the choice -----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_right_chooses_the_best():
    (found,) = qualities(rows_of(HiddenModel(H200, noise=0.0)), H200)
    assert found.share == 1 and found.correlation == pytest.approx(1) and max(found.errors) < 1e-9
    assert found.plans == found.candidates == len(candidates(call_for(LAYER, Pass.FPROP), H200))
    assert found.first.plan == found.best.plan == str(select(call_for(LAYER, Pass.FPROP), H200))


def test_a_choice_that_is_not_the_fastest_has_its_share():
    rows = rows_of(HiddenModel(H200, noise=0.0))
    chosen = str(select(call_for(LAYER, Pass.FPROP), H200))
    best = min(row.median_us for row in rows)
    rows = [replace(row, median_us=2 * best) if row.plan == chosen else row for row in rows]
    (found,) = qualities(rows, H200)
    rival = min(row.median_us for row in rows)
    assert found.share == pytest.approx(rival / (2 * best)) and found.share < 1 and found.best.plan != chosen
    assert qualities([row for row in rows if row.plan != chosen], H200)[0].share is None


def test_errors_are_the_predictions_of_the_model_as_it_is():
    """Measured on a machine whose launch costs half: every row is shorter by the same time."""
    half = Calibration(launch=0.5)
    rows = rows_of(HiddenModel(replace(H200, calibrations=tuple((family, half) for family in every())), noise=0.0))
    (found,) = qualities(rows, H200)
    worst = max(H200.launch_overhead / 2 / (row.median_us / 1e6) for row in rows)
    assert max(found.errors) == pytest.approx(worst) and found.correlation == pytest.approx(1)


def test_rows_that_say_nothing_of_the_choice_are_left_out():
    rows = rows_of(HiddenModel(noise=0.0))
    assert not qualities(rows[: choice.LEAST_PLANS - 1], H200)
    assert not qualities([replace(row, family_hash="0" * 16) for row in rows], H200)
    assert not qualities([replace(row, ok=False) for row in rows], H200)


def test_rank_correlation():
    assert spearman(np.array([1.0, 2.0, 5.0]), np.array([10.0, 100.0, 1e9])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.9486832980505138)
    assert math.isnan(spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])))


def test_the_summary_stands_beside_its_goals():
    rows = [row for which in Pass for row in rows_of(HiddenModel(), which)]
    found = qualities(rows, H200)
    summary = Summary.of(found)
    assert summary.calls == 3 and summary.plans == sum(q.plans for q in found) and {row.gpu for row in rows} == {GPU}
    assert summary.p5_share <= summary.median_share <= 1 and summary.median_error > 0.05
    assert summary.median_error == pytest.approx(np.median([e for q in found for e in q.errors]))
    console = quiet()
    choice.show(found, console)
    text = console.file.getvalue()
    for words in (
        "goal 95% or more",
        "goal 80% or more",
        "goal 8% or less",
        "goal 12% or less",
        "rank correlation",
        "resnet50/",
    ):
        assert words in text
    shares = [q.share for q in sorted(found, key=lambda q: q.share)]
    assert text.index(f"{shares[0]:.0%}") <= text.index(f"{shares[-1]:.0%}")
    empty = quiet()
    choice.show([], empty)
    assert "no call has 5 plans measured" in empty.file.getvalue()


def test_the_predicted_time_of_a_row_is_the_librarys():
    model = HiddenModel()
    row = model.row(line_for(LAYER, Pass.FPROP))
    call = call_for(LAYER, Pass.FPROP)
    assert row.predicted_us == pytest.approx(1e6 * predict(call, select(call, H200), H200).seconds)
