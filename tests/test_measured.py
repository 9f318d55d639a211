"""Rows that others published: each has a source with a licence, each reads as a problem on a device, none on tensor cores is
faster than its roofline."""

import csv
import gzip

import pytest

from bench.measured import layers
from costmodel.bounds import roofline
from costmodel.compare import schema
from costmodel.count import cost
from costmodel.problem import Pass

ROWS = layers.published()


def test_every_file_names_its_source_and_a_permissive_licence():
    files = {path.name.partition(".")[0] for path in (layers.HERE / "data").iterdir()}
    assert files == set(layers.sources())
    assert {of["licence"] for of in layers.sources().values()} <= {"MIT", "Apache-2.0", "BSD-3-Clause"}
    assert all(of["repository"].startswith("https://github.com/") for of in layers.sources().values())


def test_every_row_is_a_problem_on_a_known_device():
    assert len(ROWS) == sum(len(layers.table(name)) for name in layers.FILES) > 3000
    assert len({row.gpu for row in ROWS}) == 12
    for row in ROWS:
        assert row.seconds > 0 and row.device.bandwidth > 0
        assert min(*row.problem.output_size, row.problem.macs) > 0


def test_a_transposed_layers_forward_is_dgrad_with_its_output_padding():
    row = next(r for r in ROWS if r.name.startswith("72_conv_transposed_3D") and r.problem.batch == 8)
    assert row.transposed and row.passes == (Pass.DGRAD,) and row.problem.groups == 4
    # 12x24x48, kernel 3x5x7, stride 2, padding 1x2x3, output padding 1
    assert row.problem.input_size == (24, 48, 96) and row.problem.padding == ((1, 0), (2, 1), (3, 2))
    assert schema.passes_of("dgrad+wgrad", False) == (Pass.DGRAD, Pass.WGRAD)
    assert schema.passes_of("dgrad", True) == (Pass.FPROP,)


def test_modes_and_layouts_are_read_from_the_source():
    assert {row.mode.partition(" ")[0] for row in ROWS} == {"cudnn", "eager", "compiled"}
    last = [row for row in ROWS if row.layout == "channels_last"]
    assert len(last) == 92 and all(row.file == "conv3d_v100" for row in last)


@pytest.mark.parametrize("gpu", sorted({row.gpu for row in ROWS if row.tensor_cores}))
def test_no_published_time_on_tensor_cores_is_below_the_roofline(gpu):
    for row in (row for row in ROWS if row.tensor_cores and row.gpu == gpu):
        least = sum(
            roofline(cost(row.problem, which, dtype=row.dtype), row.device, row.dtype, precision=row.precision).seconds
            for which in row.passes
        )
        assert row.seconds > least, (row.ref, str(row.problem), row.seconds, least)


@pytest.mark.parametrize("kind", ["1x1", "depthwise"])
def test_no_published_time_of_a_layer_without_a_fast_algorithm_is_below_the_roofline(kind):
    """Neither Winograd nor FFT multiplies less for these, so float32 rows count too, but for operands that L2 holds."""
    chosen = [r for r in ROWS if (r.problem.taps == 1 if kind == "1x1" else r.problem.groups == r.problem.in_channels > 1)]
    assert len(chosen) > 50
    for row in chosen:
        unit = None if row.tensor_cores else "fma"
        spent = [cost(row.problem, which, dtype=row.dtype) for which in row.passes]
        if not row.tensor_cores and sum(of.bytes for of in spent) < 2 * row.device.l2_bytes:
            continue
        least = sum(roofline(of, row.device, row.dtype, precision=row.precision, unit=unit).seconds for of in spent)
        assert row.seconds > least, (row.ref, str(row.problem), row.seconds, least)


def test_the_data_are_tables_of_the_schema():
    names = (layers.HERE / "sources.toml").read_text().partition("Columns")[2].partition("[deepbench]")[0]
    for name in layers.FILES:
        with gzip.open(layers.HERE / "data" / f"{name}.csv.gz", "rt") as file:
            assert all(column in names for column in next(csv.reader(file)))
