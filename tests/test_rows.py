"""Rows as files: written, cut off, read back; and the hash that says which kernels a row is of."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest

from bench.rows import Measurement, append, geometric_mean, latest, load
from costmodel import families
from costmodel.fingerprints import SOURCES, closure, family_hash
from costmodel.problem import ConvProblem, Pass

ROW = Measurement(
    problem=ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), ((1, 0), (1, 1)), (1, 1)),
    which=Pass.FPROP,
    dtype="bfloat16",
    layout="channels_last",
    provider="tritonconv",
    plan="fprop:gather:128x64x64:w4:s4",
    family="gather",
    family_hash="0123456789abcdef",
    median_us=30.5,
    p10_us=30.1,
    p90_us=31.0,
    repeats=400,
    error=0.4,
    ok=True,
    roofline_us=7.69,
    gpu="a GPU",
    torch="2.11.0",
    triton="3.6.0",
    commit="0123abc",
    when="2026-11-22T00:00:00+00:00",
)


def test_rows_come_back_as_they_went(tmp_path):
    path = tmp_path / "gpu" / "goals.jsonl"
    failed = dataclasses.replace(ROW, provider="cudnn", median_us=None, p10_us=None, p90_us=None, error=None, ok=False)
    append(path, [ROW])
    append(path, [failed])
    assert list(load(path)) == list(load(tmp_path / "gpu")) == [ROW, failed]
    assert json.loads(path.read_text().splitlines()[0])["problem"]["padding"] == [[1, 0], [1, 1]]
    assert list(load(tmp_path / "nowhere")) == []


def test_a_line_that_was_cut_off_is_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append(path, [ROW])
    path.write_text(path.read_text() + ROW.to_json()[:50])
    assert list(load(path)) == [ROW]
    append(path, [ROW])  # the next run goes on behind it
    assert list(load(path)) == [ROW, ROW]


@pytest.mark.parametrize("change", [{"colour": 1}, {"dtype": None}])
def test_a_line_that_is_no_row_is_named(tmp_path, change):
    values = {**json.loads(ROW.to_json()), **change}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None or name != "dtype"}) + "\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl:1: .*{next(iter(change))}"):
        list(load(path))


def test_the_last_of_the_same_counts():
    again = dataclasses.replace(ROW, median_us=29.0, when="2026-11-23T00:00:00+00:00")
    other = dataclasses.replace(ROW, family_hash="f" * 16)
    assert list(latest([ROW, other, again]).values()) == [again, other]
    assert ROW.job == other.job and ROW.identity != other.identity


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert math.isnan(geometric_mean([]))


# --- families -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    return shutil.copytree(SOURCES, tmp_path / "kernels")


def test_a_family_is_its_kernels_and_what_they_import():
    assert set(closure("gather")) == {"fprop", "dgrad", "wgrad", "reduce", "gather", "boxes", "index", "epilogue"}
    assert set(closure("depthwise")) >= {"depthwise", "depthwise_taps", "depthwise_wgrad", "window"}
    with pytest.raises(ValueError, match="there is no family 'fft'"):
        family_hash("fft")


def test_every_kernel_is_of_a_family():
    files = {path.stem for path in SOURCES.glob("*.py")} - {"__init__"}
    assert files == {name for family in families.every() for name in closure(family)}


def test_an_edit_makes_the_rows_of_its_family_stale_and_no_others(sources):
    before = {family: family_hash(family) for family in families.every()}
    edited = sources / "window.py"
    edited.write_text(edited.read_text() + "\nEXTRA = 1\n")
    assert family_hash("depthwise", sources) != before["depthwise"]
    assert family_hash("gather", sources) == before["gather"]


def test_an_edit_of_an_imported_file_counts(sources):
    edited = sources / "index.py"
    edited.write_text(edited.read_text() + "\nEXTRA = 1\n")
    assert family_hash("gather", sources) != family_hash("gather")


def test_words_do_not_count(sources):
    for path in sources.glob("*.py"):
        text = path.read_text()
        assert '"""' in text
        path.write_text("# a comment\n" + text.replace('"""', '"""More words. ', 1) + "\n\n# and another\n")
    for family in families.every():
        assert family_hash(family, sources) == family_hash(family)


def test_every_family_of_a_plan_has_sources():
    from tritonconv.families import launchers

    assert list(families.families()) == list(launchers())
    assert set(families.every()) == {*launchers(), "causal", "deform", "separable", "unfold", "video"}
