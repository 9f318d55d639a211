"""The report on rows of a stand-in: what comes first, what is marked, and that the README says what the rows say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from synthetic import GPU, H200, HiddenModel, call_for, line_for, rivals, swept
from typer.testing import CliRunner

from bench import charts, compared, report
from bench.__main__ import app
from bench.compared import by_gpu, grouped, kind_of
from bench.report import MARK, NOTHING, predictions, put, tables
from bench.rows import append
from bench.workloads import load
from bench.workloads.lists import goals
from costmodel.families import every
from costmodel.plan import candidates, select
from costmodel.problem import Pass
from costmodel.reports.notation import parse

LINES = list(compared.goal_lines().values())[::9]  # each work once, under its first goal
EVEN = (1.0, 1.0, 1.0, 1.0)


def side_by_side(line, factors, model=None, **fields):
    """Our row of a line and torch's four."""
    row = (model or HiddenModel(noise=0.0)).row(line, **fields)
    return [row, *rivals(row, factors)]


@pytest.fixture(scope="module")
def rows():
    """Torch takes 0.5, 0.6, ... times as long as we do, by its setting "channels_last benchmark", the fastest of the four."""
    return [row for i, line in enumerate(LINES) for row in side_by_side(line, (1.0 + i / 10, 0.5 + i / 10, 9.0, 9.0))]


def test_nothing_measured_is_said(tmp_path):
    assert tables([]) == NOTHING and "Nothing has been measured" in NOTHING
    assert compared.committed(tmp_path / "nowhere") == []


def test_the_lowest_ratio_comes_first_against_the_fastest_setting(rows):
    found = compared.compared(rows)
    assert [entry.ratio for entry in found] == pytest.approx([0.5 + i / 10 for i in range(len(LINES))])
    channels_last = [e for e in found if e.verdict.line.work.layout == "channels_last"]
    assert len(channels_last) > len(LINES) / 2
    assert all(e.verdict.torch.setting == "channels_last benchmark" for e in found)
    assert all(e.verdict.against(e.verdict.default) == pytest.approx(e.ratio + 0.5) for e in channels_last)
    text = tables(rows)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| layer | ratio |") and "| 0.50x |" in lines[1] and found[0].name in lines[1]
    assert text.index("lowest ratios") < text.index("By goal")
    assert len(tables(rows, full=True).splitlines()) > len(text.splitlines()) and "By suite" in tables(rows, full=True)


def test_groups_have_their_means_floors_and_goals(rows):
    found = compared.compared(rows)
    groups = grouped(found, "goal")
    assert sum(len(group.members) for group in groups) == len(LINES)
    present = {line.group for line in LINES}
    assert [g.name for g in groups] == list(dict.fromkeys(line.group for line in goals() if line.group in present))
    for group in groups:
        ratios = [m.ratio for m in group.members]
        assert min(ratios) <= group.ratio <= max(ratios) and group.line.goal and group.line.floor
    suites = grouped(found, "suite")
    assert [g.name for g in suites] == sorted({line.suite for line in LINES})


def test_the_floor_holds_where_torch_takes_long_enough():
    line = LINES[0]
    short = side_by_side(line, EVEN, median_us=10.0)
    long = side_by_side(LINES[1], (2.0,) * 4, median_us=10.1)
    found = compared.compared([*short, *long])
    assert [entry.counts for entry in found] == [False, True]
    assert compared.Group("", tuple(found)).lowest == pytest.approx(2.0) and compared.Group("", (found[0],)).lowest is None


def test_rows_of_changed_kernels_or_plans_are_marked(rows):
    call = call_for(load("resnet50")[5], Pass.FPROP)
    line = line_for(load("resnet50")[5], Pass.FPROP)
    other = next(plan for plan in candidates(call, H200) if plan != select(call, H200))
    old = side_by_side(line, EVEN, family_hash="0" * 16)
    moved = side_by_side(line, EVEN, plan=other)
    now = side_by_side(line, EVEN)
    assert [compared.compared(group)[0].stale for group in (old, moved, now)] == ["kernels", "plan", ""]
    assert compared.compared([*now, *moved, *old])[0].stale == ""  # whatever came last, the one of today counts
    assert compared.compared([*old, *moved])[0].stale == "plan"
    assert MARK not in tables(rows) and MARK not in tables(now)
    for group, words in ((old, "1 of kernels that have changed"), (moved, "1 of plans that have changed")):
        text = tables(group)
        assert words in text and f"fprop {MARK} |" in text
    assert "1 of kernels and 1 of plans" in tables(
        [*old, *side_by_side(line_for(load("resnet50")[5], Pass.DGRAD), EVEN, plan=other)]
    )


def test_new_versions_of_torch_replace_the_old_rows():
    line = LINES[0]
    old = side_by_side(line, EVEN)
    new = [replace(row, torch="newer", when="2026-02-01T00:00:00+00:00") for row in side_by_side(line, (3.0,) * 4)]
    for both in ([*old, *new], [*new, *old]):
        (entry,) = compared.compared(both)
        assert entry.ratio == pytest.approx(3.0) and entry.verdict.ours.torch == "newer"


def test_a_failed_row_has_no_ratio_and_is_told(rows):
    ours, *torch = side_by_side(LINES[0], EVEN)
    red = replace(ours, ok=False, median_us=None, note="the error is 7 times the tolerance")
    (entry,) = compared.compared([red, *torch])
    assert entry.ratio is None and entry.verdict.ours is None
    text = tables([red, *torch, *rows[5:]])
    assert "Failed: " in text and "7 times the tolerance" in text
    assert red.note not in tables([red, *torch, ours, *rows[5:]])  # measured well since


def test_a_sweeps_rows_are_no_measurement_of_the_choice():
    layer = load("resnet50")[5]
    swept_rows = [replace(row, setting="sweep") for row in swept(HiddenModel(), [layer], [Pass.FPROP], 8)]
    assert compared.compared(swept_rows) == []
    text = tables(swept_rows)
    assert "over 1 calls and 9 plans" in text and "rank correlation" in text and "Predicted times of 9 rows" in text


def test_predicted_times_are_todays_model_and_rows_of_todays_kernels(rows):
    found = predictions(rows, H200)
    assert len(found) == len(LINES) and all(low < us < high for _, us, low, high in found)
    assert found[0][1] == pytest.approx(found[0][0].predicted_us)
    assert not predictions([replace(row, family_hash="0" * 16) for row in rows], H200)


def test_every_gpu_has_its_own_table(rows):
    other = [replace(row, gpu="NVIDIA H100 80GB HBM3") for row in rows[:10]]
    text = tables([*rows, *other])
    assert text.index("**NVIDIA H100") < text.index(f"**{GPU}**") and set(by_gpu([*rows, *other])) == {GPU, other[0].gpu}
    with pytest.raises(ValueError, match="'NVIDIA H999' is not in the table of devices"):
        tables([replace(row, gpu="NVIDIA H999") for row in rows])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("conv2d n1 c64 8x8 -> 64 k3 p1", "dense"),
        ("conv2d n1 c64 8x8 -> 64 k1", "pointwise"),
        ("conv2d n1 c64 8x8 -> 64 k1 s2", "pointwise"),
        ("conv2d n1 c3 8x8 -> 64 k4 s4", "patches"),
        ("conv2d n1 c3 8x8 -> 64 k3 p1", "few channels"),
        ("conv2d n1 c64 8x8 -> 64 k3 p1 g4", "grouped"),
        ("conv2d n1 c64 8x8 -> 64 k3 p1 g64", "depthwise"),
        ("conv2d n1 c64 8x8 -> 64 k3 p2 d2", "dilated"),
        ("conv_transpose2d n1 c64 8x8 -> 64 k4 s2 p1", "transposed"),
    ],
)
def test_kinds(text, kind):
    layer = parse(text)
    assert kind_of(layer.problem, layer.transposed) == kind and kind in charts.COLOUR


# --- pictures, files, commands --------------------------------------------------------------------------------------------


def test_pictures_show_every_row(rows):
    entries, found = compared.compared(rows), predictions(rows, H200)
    figures = charts.charts(entries, found, H200)
    assert set(figures) == {"roofline", "ratios", "predicted"}
    bfloat16 = sum(entry.verdict.line.work.dtype == "bfloat16" for entry in entries)
    (axes,) = figures["roofline"].axes
    assert f"{bfloat16} passes" in axes.get_title(loc="left")
    assert sum(len(c.get_offsets()) for c in axes.collections) == 2 * bfloat16
    (axes,) = figures["ratios"].axes
    assert len(axes.patches) == len(LINES) and axes.get_yscale() == "log"
    assert f"{sum(e.ratio < 1 for e in entries)} below 1" in axes.get_title(loc="left")
    (axes,) = figures["predicted"].axes
    dots = [c for c in axes.collections if c.get_label().partition(":")[0] in every()]
    assert sum(len(c.get_offsets()) for c in dots) == len(found)
    assert charts.charts([], [], H200) == {}


def test_a_stale_bar_is_hatched():
    old, now = side_by_side(LINES[0], EVEN, family_hash="0" * 16), side_by_side(LINES[1], (2.0,) * 4)
    (axes,) = charts.charts(compared.compared([*old, *now]), [], H200)["ratios"].axes
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [True, False]


def test_the_command_writes_report_and_pictures(rows, tmp_path, monkeypatch):
    append(tmp_path / "results" / "nvidia-h200" / "goals.jsonl", rows)
    (tmp_path / "results" / "nvidia-h200" / "probe.json").write_text(json.dumps({}))
    monkeypatch.setattr(report, "committed", lambda: compared.committed(tmp_path / "results"))
    done = CliRunner().invoke(app, ["report", "--gpu", "h200", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.md",
        *(f"nvidia-h200-{name}.png" for name in ("roofline", "ratios", "predicted")),
    }
    assert (tmp_path / "out" / "report.md").read_text() == tables(rows, full=True) + "\n"
    wrong = CliRunner().invoke(app, ["report", "--gpu", "v100"], env={"COLUMNS": "200"})
    assert wrong.exit_code == 2 and "has no rows" in wrong.output
    before = "# a\n<!-- measured -->\nold\n<!-- /measured -->\nb\n"
    readme = tmp_path / "README.md"
    readme.write_text(before)
    monkeypatch.setattr(report, "README", readme)
    assert CliRunner().invoke(app, ["report", "--readme"]).exit_code == 0
    assert readme.read_text() == before.replace("old", tables(rows))


def test_the_readmes_markers():
    assert put("<!-- measured -->\nx\n\ny\n<!-- /measured -->", r"\1 new") == "<!-- measured -->\n\\1 new\n<!-- /measured -->"
    with pytest.raises(ValueError, match="once"):
        put("nothing", "new")


def test_calibrating_needs_rows_of_one_gpu(rows, tmp_path):
    file = tmp_path / "rows.jsonl"
    append(file, [*rows[:5], *(replace(row, gpu="NVIDIA H100 80GB HBM3") for row in rows[:5])])
    wide = {"COLUMNS": "200"}
    for words in ([], ["--gpu", "v100"]):
        done = CliRunner().invoke(app, ["calibrate", "--rows", str(file), *words], env=wide)
        assert done.exit_code == 2 and "NVIDIA H100 80GB HBM3, NVIDIA H200" in done.output
    done = CliRunner().invoke(app, ["calibrate", "--rows", str(tmp_path / "none.jsonl")], env=wide)
    assert done.exit_code == 2 and "there are no rows" in done.output
    done = CliRunner().invoke(
        app, ["calibrate", "--rows", str(file), "--gpu", "h200"], env=wide | {"TRITONCONV_CACHE": str(tmp_path)}
    )
    assert done.exit_code == 0 and "too few rows" in done.output and (tmp_path / "calibration" / "nvidia-h200.json").is_file()
