"""The chains of deformable, padded and windowed layers: every way is right on a stand-in clock; what is predicted of them."""

import os

import pytest
import torch
from standin import StandIn

import costmodel
from bench.chains import deform, padded, windows
from bench.chains.chain import OURS, TORCH
from bench.chains.padded import EARTH, PAD_FIRST, REFLECT, Block
from bench.chains.predicted import Ran, times
from bench.chains.run import COPY, LISTS, PREDICTED, measure
from bench.deform import LAYERS, Layer
from costmodel.device import DEVICES

H100 = DEVICES["NVIDIA H100 80GB HBM3"]
SPLIT = windows.Layer("small", windows.split, (1, 4, 5, 5), ((3, 36),), (1, 9, 3))
OUTLOOK = windows.Layer("small", windows.outlook, (1, 4, 4, 4), ((4, 4), (2 * 81, 4), (4, 4)), (1, 4, 4, 4), 2)
SMALL = {
    "deformable": lambda: deform.chain_of(Layer("small", 4, 3, 3, 4, batch=1), torch.float32, H100),
    "reflect": lambda: padded.chain_of(Block("small", (1, 4, 3, 4), REFLECT, padded.cyclegan), torch.float32, H100),
    "earth": lambda: padded.chain_of(Block("small", (1, 4, 3, 4), EARTH, padded.weather), torch.float32, H100),
    "split": lambda: windows.chain_of(SPLIT, torch.float32, H100),
    "outlook": lambda: windows.chain_of(OUTLOOK, torch.float32, H100),
}
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")


@interpreted
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in ("earth", "split") else ()) for n in SMALL])
def test_every_way_is_right_and_timed(name, launched):
    chain = SMALL[name]()
    rows = measure(chain, False, StandIn())
    assert [row.way for row in rows] == [*chain.ways, COPY] and all(row.ok for row in rows), [row.note for row in rows]
    assert all(row.predicted_us for row in rows[:-1])
    assert sum(launched().values()) > 0


def test_what_is_predicted_of_torchs_own_operators_is_the_librarys():
    """In our way too: they are the same operators."""
    layer = windows.LAYERS[0]
    chain = windows.chain_of(layer, torch.float16, H100)
    ours, theirs = (times(chain.ways[way], chain.inputs, torch.float16, H100) for way in (OURS, TORCH))
    assert theirs.ours == 0 < ours.ours and 0 < ours.others < theirs.others
    given = [torch.empty_strided(i.shape, i.strides, dtype=torch.float16, device="meta") for i in chain.inputs]
    rows = costmodel.trace(Ran(chain.ways[OURS]), *given).on(H100, "float16").rows
    own = [row for row in rows if row.layer.op.startswith("tritonconv::")]
    assert [row.layer.op.rpartition(":")[2] for row in own] == ["unfold", "fold"] and len(ours.plans) == 2
    assert ours.ours == pytest.approx(sum(row.seconds for row in own)) and chain.predicted[OURS] == pytest.approx(ours.seconds)


def test_torchvisions_operator_takes_its_columns_and_its_instructions():
    """Columns are written as zeros, written and read; each sample takes its place's instructions."""
    for layer in LAYERS[:3]:
        of = layer.deformation
        seconds = deform.by_columns(of, torch.float16, H100)
        issued = of.samples / 32 * (77 + 16) / (4 * H100.sm_count * H100.clock * 1e6)
        columns = 2 * of.samples / (H100.bandwidth * 1e9)
        assert max(issued, columns) < seconds < 10 * max(issued, columns)


def test_the_lists():
    """torchvision may not load here."""
    assert set(PREDICTED) <= set(LISTS)
    found = [chain for of in PREDICTED for chain in of(torch.float64, H100)]  # of which nothing is predicted
    assert len({(chain.suite, chain.layer) for chain in found}) == len(found) == 3 + 6 + 5
    for chain in found:
        assert {TORCH, OURS} <= set(chain.ways) and not chain.predicted
        assert (PAD_FIRST in chain.ways) == (chain.suite == padded.SUITE)
    first = next(deform.chains(torch.float16, H100))
    assert {*first.predicted} == {TORCH, OURS, deform.TORCHVISION} and all(first.predicted.values())
