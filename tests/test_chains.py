"""Chains of torch's calls against the functions that stand for them, on a stand-in clock."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from standin import StandIn

from bench.chains import causal, run
from bench.chains.chain import OURS, TORCH, Chain, Input
from bench.chains.run import COPY, measure, table
from bench.workloads import load
from costmodel.device import DEVICES

L2 = 4096  # bytes, several sets of the tensors here
H100 = DEVICES["NVIDIA H100 80GB HBM3"]
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")


def small(dtype: torch.dtype = torch.float32) -> Chain:
    layer = replace(load("mamba1_conv1d")[0], batch=2, in_channels=16, out_channels=16, groups=16, size=(12,))
    return causal.chain_of(layer, dtype, H100, True)


@interpreted
@pytest.mark.parametrize("step", [False, True])
def test_every_way_is_checked_and_timed(step: bool, launched) -> None:
    machine = StandIn((4e-5, 1e-5, 5e-6), L2)
    theirs, ours, copy = measure(small(), step, machine)
    assert [row.way for row in (theirs, ours, copy)] == [TORCH, OURS, COPY]
    assert all(row.ok for row in (theirs, ours, copy))
    assert theirs.median_us == pytest.approx(40) and ours.median_us == pytest.approx(10)
    assert copy.median_us == pytest.approx(5) and copy.error is None
    assert (ours.predicted_us is None) == step and theirs.predicted_us is None
    assert ours.error is not None and ours.error < 1e-6
    assert all(sets > 2 for sets in machine.captured)


@pytest.mark.parametrize(
    "way, note",
    [
        (lambda x, w, b: causal.by_torch(x, w, b) + 0.01, "off"),
        (lambda x, w, b: causal.by_torch(x, w, b) * float("nan"), "off"),
        (lambda x, w, b: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["wrong", "nan", "raises"],
)
def test_a_wrong_result_has_no_time(way, note: str) -> None:
    chain = replace(small(), ways={TORCH: causal.by_torch, OURS: way})
    rows = measure(chain, False, StandIn(l2_bytes=L2))
    ours = rows[1]
    assert not ours.ok and ours.median_us is None and note in ours.note
    assert rows[0].ok and rows[2].ok


def test_without_an_exact_result_nothing_is_timed() -> None:
    rows = measure(replace(small(), exact=lambda *tensors: 1 / 0), False, StandIn(l2_bytes=L2))
    assert [row.way for row in rows] == [TORCH, OURS] and not any(row.ok for row in rows)
    assert all("no exact result: ZeroDivisionError" in row.note for row in rows)


def test_every_set_must_be_written() -> None:
    """A way that is right for the first set alone."""
    seen: list[int] = []

    def first_only(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen[:] = seen or [x.data_ptr()]
        y = causal.by_torch(x, w, b)
        return y if x.data_ptr() == seen[0] else y * float("nan")

    rows = measure(replace(small(), ways={TORCH: causal.by_torch, OURS: first_only}), False, StandIn(l2_bytes=L2))
    assert not rows[1].ok and "unwritten" in rows[1].note


def test_the_listed_layers_are_those_of_the_suites() -> None:
    chains = list(causal.chains(torch.bfloat16, H100))
    assert len(chains) == 2 * 14 and {chain.suite for chain in chains} == set(causal.SUITES)
    chain = next(c for c in chains if c.layer.endswith("8x2048x2048 BLC"))
    assert chain.inputs[0] == Input((8, 2048, 2048), (2048 * 2048, 1, 2048))
    moved = 2 * (2 * 8 * 2048 * 2048 + 2048 * 4)  # x, y and w
    assert chain.compulsory == moved and OURS in chain.predicted
    assert 1 < chain.predicted[OURS] / (moved / (1e9 * H100.bandwidth)) < 3
    assert chain.input_bytes == 2 * (8 * 2048 * 2048 + 2048 * 4 + 2048)


@interpreted
def test_the_command_writes_rows_and_stops_in_time(tmp_path, monkeypatch, capsys, launched) -> None:
    found = [replace(small(), layer=str(i)) for i in range(5)]
    monkeypatch.setattr(run, "LISTS", (lambda dtype, device: iter(found),))
    run.command("mamba*", False, "fp32", 2.5 / 60, tmp_path, StandIn())  # a question for the time takes a second
    rows = json.loads((tmp_path / "chains-forward-fp32.json").read_text())
    assert [row["layer"] for row in rows] == ["0"] * 3 + ["1"] * 3 and rows[0]["gpu"] == "stand-in"
    assert "2 of 5 chains" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no chain matches suite 'nothing'; the suites are mamba1_conv1d"):
        run.command("nothing", False, "fp32", None, tmp_path, StandIn())
    with pytest.raises(ValueError, match="dtype"):
        run.command("*", False, "int8", None, tmp_path, StandIn())


def test_a_failure_is_the_exit_code(tmp_path, monkeypatch) -> None:
    broken = replace(small(), ways={TORCH: causal.by_torch, OURS: lambda *tensors: 1 / 0})
    monkeypatch.setattr(run, "LISTS", (lambda dtype, device: iter([broken]),))
    with pytest.raises(SystemExit):
        run.command("*", False, "fp32", None, tmp_path, StandIn())


def test_the_table_says_how_much_faster() -> None:
    rows = measure(
        replace(small(), ways={TORCH: causal.by_torch, OURS: causal.by_torch}), False, StandIn((4e-5, 1e-5, 5e-6), L2)
    )
    console = Console(width=150, record=True, file=open(os.devnull, "w"))
    console.print(table(rows, "times"))
    lines = console.export_text().splitlines()
    assert any(OURS in line and "4.00x" in line and "50%" in line for line in lines)
