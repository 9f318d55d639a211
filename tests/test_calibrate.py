"""Constants fitted to rows of a stand-in whose constants are known: found again, and never worse than none."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from synthetic import GPU, H200, HIDDEN, HIDDEN_DEPTHWISE, HiddenModel, call_for, line_for, some_plans, swept

from bench import calibrate
from bench.calls import fresh, ours
from bench.fit import Sample, absolute_errors, fit, golden_section, with_constants
from bench.workloads import load
from costmodel import calibration
from costmodel.calibration import DEFAULT, PRIOR, Calibration
from costmodel.device import find_device
from costmodel.plan import call_key, candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import channels_last

CONVOLUTIONS = [layer for layer in load() if layer.op.startswith("conv")]
#: Layers of every kind, so many that each kernel family has enough rows.
LAYERS = [w for w in CONVOLUTIONS if w.kind == "depthwise"][::8] + [w for w in CONVOLUTIONS if w.kind != "depthwise"][::18]


@pytest.fixture(scope="module")
def rows():
    return swept(HiddenModel(), LAYERS, list(Pass), 2)


@pytest.fixture(scope="module")
def found(rows):
    return calibrate.calibrate(rows, GPU)


def test_the_hidden_constants_are_found_again(found):
    """As far as rows depend on them: where nothing hides the DRAM's or the launch's time, to a few per cent."""
    table, _ = found
    boxes = table.families["tma"].calibration
    for name in ("dram", "l2", "launch"):
        assert getattr(boxes, name) == pytest.approx(getattr(HIDDEN, name), rel=0.1), name
    assert dict(boxes.shares)["half"] == pytest.approx(0.72, rel=0.1)
    assert table.families["gather"].calibration.l2 == pytest.approx(HIDDEN.l2, rel=0.1)
    lanes = table.families["depthwise"].calibration
    for name in ("dram", "issue", "launch"):
        assert getattr(lanes, name) == pytest.approx(getattr(HIDDEN_DEPTHWISE, name), rel=0.15), name


def test_held_out_rows_are_predicted_within_the_noise(found):
    fits = [f for f in found[1] if f.family != "band"]  # of whose layers there are too few to hold any out
    assert {f.family for f in fits} == {"gather", "patch", "tma", "depthwise"}
    for f in fits:
        assert f.before.median > 0.08 and f.after.median < 0.05 and f.after.mean < 0.06, f
        assert 0.85 < f.constants.low < 1 < f.constants.high < 1.2, f


def test_no_row_of_a_held_out_problem_is_fitted(rows):
    train, test = calibrate.split(rows)
    assert len(train) + len(test) == len(rows) and len(test) > len(rows) / 5
    assert not {str(r.problem) for r in train} & {str(r.problem) for r in test}
    assert calibrate.split(rows)[1] == test != calibrate.split(rows, seed=1)[1]


@pytest.mark.parametrize("seed", range(2))
def test_rows_without_a_pattern_never_make_it_worse(seed):
    """Times that no constant explains: what the fit finds in them does not carry over, and is then not taken."""
    chance = random.Random(seed)
    rows = swept(HiddenModel(H200, noise=0.0), LAYERS, [Pass.FPROP], 4)
    rows = [replace(row, median_us=row.median_us * math.exp(chance.gauss(0, 0.6))) for row in rows]
    table, fits = calibrate.calibrate(rows, GPU, seed=seed)
    for f in fits:
        if f.before is not None:
            assert f.after.median <= f.before.median and f.after.mean <= f.before.mean
    assert any(f.before is not None for f in fits) and table.device == GPU


def test_a_constant_that_no_row_depends_on_stays_as_it_was():
    """One tiny layer, all launch: nothing is known of arithmetic, L2 or DRAM."""
    call = channels_last(ConvProblem.conv((1, 8, 8), (8, 8, 1), (1,), (0,), (1,)), Pass.FPROP, "bfloat16")
    device = with_constants(H200, "patch", Calibration(launch=3.0))
    samples = [Sample(call, plan, predict(call, plan, device).seconds) for plan in some_plans(call, 5)]
    constants = fit(samples, H200, "patch")
    assert constants.launch == pytest.approx(3.0, rel=0.1)
    assert (constants.dram, constants.l2, constants.shares) == (DEFAULT.dram, DEFAULT.l2, ())


def test_a_few_rows_far_off_do_not_bend_the_rest(rows):
    samples = calibrate.samples_of(row for row in rows[::2] if row.family == "patch")
    wild = [replace(s, seconds=50 * s.seconds) if i % 12 == 0 else s for i, s in enumerate(samples)]
    good = [s for i, s in enumerate(samples) if i % 12]
    assert np.median(absolute_errors(good, with_constants(H200, "patch", fit(wild, H200, "patch")))) < 0.05


def test_a_tile_with_enough_rows_gets_its_own_share():
    call = channels_last(ConvProblem.conv((64, 512, 28, 28), (512, 512, 3, 3), (1, 1), (1, 1), (1, 1)), Pass.FPROP, "bfloat16")
    slow = with_constants(H200, "gather", Calibration(shares=(("half", 0.6), ("half 128x256x64", 0.4))))
    calls = [replace(call, problem=replace(call.problem, batch=n)) for n in range(32, 64, 3)]
    plans = [p for p in candidates(call, H200) if p.family == "gather" and p.block_m * p.block_n >= 128 * 128]
    constants = fit([Sample(c, p, predict(c, p, slow).seconds) for c in calls for p in plans], H200, "gather")
    assert dict(constants.shares)["half 128x256x64"] == pytest.approx(0.4, rel=0.05)


def test_a_family_with_few_rows_keeps_the_defaults(rows):
    table, (found,) = calibrate.calibrate([row for row in rows if row.family == "gather"][:20], GPU)
    assert not table.families and found.before is None
    assert (found.constants.low, found.constants.high) == PRIOR


def test_rows_that_say_nothing_of_these_kernels_are_left_out(rows):
    row = next(row for row in rows if row.family == "gather")
    assert ours(row) and fresh(row)
    assert not fresh(replace(row, family_hash="0" * 16)) and not fresh(replace(row, family="fft"))
    for change in ({"ok": False}, {"provider": "cudnn"}, {"plan": ""}, {"median_us": None}):
        assert not ours(replace(row, **change))
    for change in ({"family_hash": "0" * 16}, {"gpu": "another"}, {"ok": False}):
        with pytest.raises(ValueError, match="no row of 'NVIDIA H200' is a good measurement"):
            calibrate.calibrate([replace(row, **change)], GPU)


# --- the fastest plans ----------------------------------------------------------------------------------------------------


def test_a_plan_clearly_faster_than_the_choice_is_noted():
    stand_in, layer = HiddenModel(noise=0.0), LAYERS[0]
    call = call_for(layer, Pass.FPROP)
    chosen, other, third = some_plans(call, 2)
    row, faster, slower = (stand_in.row(line_for(layer, Pass.FPROP), plan) for plan in (chosen, other, third))
    faster = replace(faster, median_us=0.8 * row.median_us, p90_us=0.9 * row.p10_us)
    slower = replace(slower, median_us=2 * row.median_us)
    device = find_device("h200")
    assert calibrate.fastest_plans([row, slower, faster], device) == {call_key(call): (str(other), faster.family_hash)}
    noisy = replace(faster, p90_us=1.01 * row.p10_us)
    assert not calibrate.fastest_plans([row, noisy, slower], device)  # the quantiles overlap
    assert not calibrate.fastest_plans([faster, slower], device)  # what the choice takes is not known
    assert not calibrate.fastest_plans([row, slower], device)


# --- the command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_that_the_library_takes(rows, found, monkeypatch, tmp_path, anew):
    monkeypatch.setenv("TRITONCONV_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "calibrate", lambda *_: found)
    console = Console(width=160, record=True)
    path = calibrate.run(rows, GPU, write=False, console=console)
    assert path == calibration.user_path(GPU) and calibration.read(path) == found[0]
    text = console.export_text()
    assert "held-out error" in text and "depthwise" in text and "TRITONCONV_CALIBRATION=user" in text
    monkeypatch.setenv("TRITONCONV_CALIBRATION", "user")
    anew()
    call = call_for(next(layer for layer in LAYERS if layer.kind == "dense"), Pass.FPROP)
    device = find_device("h200")
    predicted = predict(call, select(call, device), device)
    assert "held-out rows" in predicted.source and GPU in predicted.source and predicted.low > 0.8 * predicted.seconds
    monkeypatch.setattr(calibration, "package_path", lambda name: tmp_path / "package.json")
    assert calibrate.run(rows, GPU, write=True, console=Console(quiet=True)) == tmp_path / "package.json"


def test_golden_section_finds_the_valley():
    assert golden_section(lambda x: abs(x - 0.3), -1.0, 2.0) == pytest.approx(0.3, abs=3e-3)
