"""The table of compiled kernels as a file: what it lacks for a Triton version, in which order, what a stopped run leaves."""

import json

import pytest
import triton

from bench import audit
from costmodel.resources import resource_table

ROWS = list(audit.menu())[:30]
COMPILED = {
    "registers": 90,
    "shared_bytes": 4096,
    "spills": 0,
    "trip": {"instructions": 100, "serialized": False},
}


def test_the_rows_a_version_lacks_come_by_their_registers_on_others():
    few, many, spills, unknown, there = ROWS[:5]
    table = {
        few.key: {"3.6.0": [40, 0, 0, 10]},
        many.key: {"3.6.0": [40, 0, 0, 10], "3.7.1": [255, 0, 0, 10]},
        spills.key: {"3.6.0": [255, 0, 2, 10], "3.7.1": [255, 0, 0, 10]},
        there.key: {"3.8.0": [255, 0, 0, 10]},
    }
    assert audit.missing(ROWS[:5], table, "3.8.0") == [unknown, many, few, spills]
    assert audit.missing(ROWS[:5], table, "3.6.0") == [unknown, there]


def test_coverage_counts_each_version():
    table = {
        ROWS[0].key: {"3.6.0": [1, 1, 0, 1], "3.8.0": [1, 1, 0, 1]},
        ROWS[1].key: {"3.6.0": [1, 1, 0, 1]},
        "other": {"3.9.0": []},
    }
    assert audit.coverage(ROWS, table) == "of 30 rows the table has 2 from Triton 3.6.0, 1 from Triton 3.8.0"
    assert audit.coverage(ROWS, {}) == "of 30 rows the table has none"


def test_a_written_row_stands_beside_those_of_other_versions(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"a": {"3.0.0": [1, 2, 3, 4]}}))
    serialized = COMPILED | {"trip": {"instructions": 100, "serialized": True}}
    audit.write_table({"a": COMPILED, "b": serialized, "c": {"error": "no"}}, path)
    now = triton.__version__
    assert audit.committed(path) == {
        "a": {"3.0.0": [1, 2, 3, 4], now: [90, 4096, 0, 100]},
        "b": {now: [255, 0, 1, 0]},
        "c": {now: [255, 0, 1, 0]},
    }
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table in place of the committed one, and a compiler that is stopped at the fifth of its rows."""
    path = tmp_path / "table.json"
    monkeypatch.setattr(audit, "TABLE", path)
    monkeypatch.setattr(audit.write_table, "__defaults__", (path,))
    monkeypatch.setattr(audit.committed, "__defaults__", (path,))
    monkeypatch.setattr(audit, "WRITE_EVERY", 2)
    monkeypatch.setattr(audit, "menu", lambda archs=(): iter(ROWS[:7]))
    return path


def test_a_stopped_run_is_taken_up_where_it_stood(table, monkeypatch, capsys):
    def stopped(rows, jobs):
        for row in rows[:5]:
            yield row.key, COMPILED
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "compile_menu", stopped)
    with pytest.raises(KeyboardInterrupt):
        audit.run(write=True, lacking=True)
    assert list(audit.committed(table)) == sorted(row.key for row in ROWS[:4])

    taken = []
    trip = COMPILED["trip"] | {"mma": [], "copies": {}, "classes": dict.fromkeys(audit._CLASSES, 0)}

    def whole(rows, jobs):
        taken.extend(rows)
        yield from ((row.key, COMPILED | {"trip": trip}) for row in rows)

    monkeypatch.setattr(audit, "compile_menu", whole)
    audit.run(write=True, lacking=True, limit=1)
    assert taken == ROWS[4:5] and len(audit.committed(table)) == 5
    audit.run(write=True, lacking=True)
    assert taken == ROWS[4:7] and len(audit.committed(table)) == 7
    assert f"of 7 rows the table has 4 from Triton {triton.__version__}" in capsys.readouterr().out
    audit.run(write=True, lacking=True)
    assert len(taken) == 3 and f"0 rows lack figures of Triton {triton.__version__}" in capsys.readouterr().out


def test_every_version_of_the_table_counts():
    """A row that spills on one version is left out, whatever the others made of it."""
    for key, versions in audit.committed().items():
        assert resource_table()[key].spills == max(spills for _, _, spills, _ in versions.values()), key
