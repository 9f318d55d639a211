"""The workload file against the problem: its derived columns were computed elsewhere, so they check `ConvProblem`."""

from __future__ import annotations

import pytest

from bench.workloads import Workload, load, parse, rows
from costmodel.problem import Pass

CONVOLUTIONS = [row for row in rows() if row["op"].startswith("conv")]
DEFORMABLE = [row for row in rows() if not row["op"].startswith("conv")]


def name(row: dict) -> str:
    return f"{row['suite']}/{row['layer']}"


def result_shape(layer: Workload) -> tuple[int, ...]:
    """What the call returns: a transposed convolution is the input gradient of its problem."""
    return layer.problem().input_shape if layer.transposed else layer.problem().output_shape


def test_the_whole_file_is_there():
    assert len(set(load())) == 1057  # no row twice, and each is a key
    assert len({layer.suite for layer in load()}) == 48
    assert len(DEFORMABLE) == 13


def test_output_shapes_are_the_traced_ones():
    wrong = [
        f"{name(row)}: {result_shape(parse(row))}"
        for row in CONVOLUTIONS
        if result_shape(parse(row)) != (row["N"], row["C_out"], *row["out_spatial"])
    ]
    assert not wrong, "\n".join(wrong)


def test_weight_shapes_are_the_problems():
    wrong = [name(row) for row in CONVOLUTIONS if parse(row).problem().weight_shape != parse(row).weight_shape]
    assert not wrong, "\n".join(wrong)


def test_flops_and_bytes_are_the_files():
    """The file rounds to four and three places, and moves the whole of x, as only dgrad does for us."""
    wrong = []
    for row in CONVOLUTIONS:
        problem = parse(row).problem()
        flops, size = problem.flops, problem.bytes(2, Pass.DGRAD)
        if abs(flops / 1e9 - row["gflop"]) > 5.1e-5 or abs(size / 1e6 - row["min_mbytes_16bit"]) > 5.1e-4:
            wrong.append(f"{name(row)}: {flops / 1e9:.4f} GFLOP, {size / 1e6:.3f} MB; {problem}")
    assert not wrong, "\n".join(wrong)


def test_resnet50_is_8_17_gflop_an_image():
    layers = load(suite="resnet50")
    assert sum(layer.count for layer in layers) == 53
    total = sum(layer.count * layer.problem().flops / layer.batch for layer in layers)
    assert round(total / 1e9, 2) == 8.17


def test_patterns_select():
    assert [layer.layer for layer in load("resnet50", "layer1.0.conv*")] == [
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer1.0.conv3",
    ]
    assert {layer.suite for layer in load("mamba?_conv1d")} == {"mamba1_conv1d", "mamba2_conv1d"}


def test_a_pattern_without_a_match_names_the_suites():
    with pytest.raises(ValueError, match=r"no layer matches suite 'resnet'.*resnet50"):
        load("resnet")


@pytest.mark.parametrize("row", DEFORMABLE[:1], ids=name)
def test_a_deformable_layer_is_no_convolution(row):
    with pytest.raises(ValueError, match=row["op"]):
        parse(row).problem()


@pytest.mark.parametrize("op", [f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)])
def test_a_layer_calls_torch(op):
    """`arguments()` and the shapes are torch's: the smallest layer of each function, on the meta device."""
    torch = pytest.importorskip("torch")
    layer = min((parse(row) for row in CONVOLUTIONS if row["op"] == op), key=lambda w: w.problem().flops)
    x = torch.empty(layer.input_shape, device="meta")
    w = torch.empty(layer.weight_shape, device="meta")
    y = getattr(torch.nn.functional, op)(x, w, **layer.arguments())
    assert tuple(y.shape) == result_shape(layer)
