"""The kernel for chunks of video compiled ahead of time: no spill, and as few instructions as promised.

Run apart from the interpreter: `pytest -m aot`.
"""

import re
from pathlib import Path

import pytest
import torch
import triton.language as tl

from bench import video as rows
from bench.aot import since
from bench.sass import disassemble
from bench.video import Row, launch_of
from costmodel import video as model
from costmodel.resources import resource_table

pytestmark = pytest.mark.aot
SLOW = pytest.mark.slow


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: f"{row.plan}:up{row.upsample}")
def test_a_trip_takes_no_more_instructions_than_promised(row):
    found = rows.figures(row)
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized
    assert found.trip.widest_load == found.trip.narrowest_load == 16
    assert found.trip.instructions <= since(dict(row.limits))
    gather = resource_table()[f"fprop:gather:half:wide:{row.plan.removeprefix('fprop:video:')}:sm90"]
    assert found.trip.instructions <= gather.trip + model.FRAME_INSTRUCTIONS[row.upsample]
    assert found.registers <= gather.registers  # and the frame is a scalar, so that no register of a pixel knows it


def test_the_tables_show_these_limits(capsys):
    page = (Path(__file__).parent.parent / "docs" / "kernels.md").read_text()
    shown = re.findall(r"^\| (frames of a cache|the same, `upsample=2`)[^|]* \| (\w+) \| \d+ \| (\d+) \|$", page, re.M)
    limits = {(row.upsample, row.plan.split(":")[2]): max(limit for _, limit in row.limits) for row in rows.ROWS}
    assert {(1 + ("upsample" in name), tile): int(limit) for name, tile, limit in shown} == limits
    rows.run()
    assert all(row.plan in capsys.readouterr().out for row in rows.ROWS[:1])


LAYERS = [
    {},
    {"channels": 96, "filters": 96},
    {"channels": 96, "filters": 96, "channels_last": False},
    {"channels": 192, "filters": 384, "upsample": 2, "kernel": (1, 3, 3)},
    {"channels": 512, "filters": 512, "time_padding": "replicate"},
    {"channels": 384, "filters": 768, "kernel": (3, 1, 1)},
    {"channels": 16},
    {"channels": 3, "filters": 96},
    {"channels": 100, "filters": 3},
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "-".join(map(str, layer.values())) or "384")
@pytest.mark.parametrize(
    "arch, dtype, precision",
    [
        pytest.param(90, torch.bfloat16, "ieee", marks=SLOW),
        pytest.param(80, torch.bfloat16, "ieee", marks=SLOW),
        pytest.param(100, torch.bfloat16, "ieee", marks=SLOW),
        pytest.param(90, torch.float32, "tf32", marks=SLOW),
        pytest.param(90, torch.float32, "ieee", marks=SLOW),
        pytest.param(90, torch.float64, "ieee", marks=SLOW),
    ],
)
def test_the_plan_chosen_does_not_spill(layer, arch, dtype, precision):
    row = Row(arch=arch, dtype=dtype, precision=precision, **layer)
    found = rows.figures(row)
    assert found.spills == found.stack_bytes == 0, launch_of(row).plan
    assert not found.trip.serialized, launch_of(row).plan


def test_results_and_the_next_cache_are_written_16_bytes_at_a_time():
    listing = disassemble(rows.compiled(rows.ROWS[0]).asm["cubin"])
    assert set(re.findall(r"STG\.E[.\w]*", listing)) == {"STG.E.128"}
    assert "LDG.E.128" in listing  # of the frames that are copied


@pytest.mark.parametrize("arch", [80, 100])
def test_the_largest_tile_of_other_architectures(arch):
    found = rows.figures(Row("fprop:video:128x128x64:w8:s3", upsample=2, arch=arch))
    assert found.spills == found.stack_bytes == 0


@pytest.mark.parametrize("far", ["INDEX", "REACH"])
def test_offsets_of_64_bits(far):
    """Of tensors far apart any tile, of frames that large the tiles that are taken then."""
    plan = "fprop:video:128x256x64:w8:s3" if far == "REACH" else "fprop:video:64x64x64:w4:s4"
    found = rows.figures(Row(plan, filters=512), {far: tl.int64})
    assert found.spills == found.stack_bytes == 0
