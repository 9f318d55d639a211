"""What cuDNN and PyTorch take today: predicted from published times, with words for what none of them has."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import costmodel
from bench.measured import evidence, validate
from costmodel.library import constants
from costmodel.library.alike import Row, distance, guess
from costmodel.library.terms import kind_of, seen
from costmodel.problem import ConvProblem, Pass

LAYER = ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
DEPTHWISE = ConvProblem.conv((16, 64, 512, 512), (64, 1, 3, 3), (1, 1), (0, 0), (1, 1), 64)


def ask(problem=LAYER, **named):
    return costmodel.predict(problem, **{"device": "h100", "dtype": "float16", "library": "cudnn"} | named)


@pytest.mark.parametrize("device", sorted(d.aliases[0] for d in costmodel.device.devices().values()))
@pytest.mark.parametrize("which", list(Pass))
def test_no_prediction_on_tensor_cores_is_below_the_roofline(device, which):
    for problem in (LAYER, DEPTHWISE, replace(LAYER, in_channels=3), replace(LAYER, groups=4, stride=(2, 2))):
        found = ask(problem, which=which, device=device)
        least = costmodel.roofline(problem, device, "float16", which=which).seconds
        assert least <= found.low <= found.seconds <= found.high


def test_a_layer_that_was_published_is_predicted_near_its_times():
    """KernelBench's 82: 2.55 ms on an H100, 12.1 ms on an L4, eager and contiguous, in TF32."""
    for device, milliseconds in (("h100", 2.55), ("l4", 12.1)):
        found = ask(DEPTHWISE, device=device, dtype="float32", precision="tf32", layout="contiguous")
        assert 1e3 * found.seconds == pytest.approx(milliseconds, rel=0.3)
        assert found.low < 1e-3 * milliseconds < found.high


def test_a_depthwise_layer_in_16_bits_is_what_networks_leave_for_one():
    """No published layer is; TF32 kernels on contiguous tensors take far longer."""
    half, tf32 = ask(DEPTHWISE), ask(DEPTHWISE, dtype="float32", precision="tf32", layout="contiguous")
    assert "no row in half is of a depthwise layer" in half.source and "networks" in half.source
    assert half.seconds < tf32.seconds and half.high / half.low > 3


def test_what_no_row_has_is_said_and_widens_the_interval():
    known = ask(device="v100", layout="contiguous")
    assert "no row" not in known.source
    for named, words in (
        ({"device": "b200", "layout": "contiguous"}, "no row is of NVIDIA B200 in half"),
        ({"device": "v100"}, "is of channels_last tensors"),
        ({"device": "v100", "layout": "contiguous", "mode": "compiled"}, "is of the mode compiled"),
    ):
        found = ask(**named)
        assert words in found.source
        assert found.high / found.low > known.high / known.low


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"dtype": "float64"}, "no published time of float64"),
        ({"library": "mkl"}, "library must be 'cudnn', got 'mkl'"),
        ({"layout": "NCHW"}, "layout must be 'channels_last' or 'contiguous', got 'NCHW'"),
        ({"mode": "tuned"}, "mode must be 'eager' or 'compiled', got 'tuned'"),
        ({"plan": "fprop:gather:64x64x32:w4:s3"}, "give a plan or a library"),
        ({"library": None, "layout": "contiguous"}, "layout and mode are of a library"),
        ({"device": "v100", "dtype": "bfloat16"}, "has no bf16 rate"),
    ],
)
def test_refusals(named, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ask(**named)


def test_the_librarys_constants_leave_our_own_predictions_alone(monkeypatch):
    ours = costmodel.predict(LAYER, device="h100").seconds
    monkeypatch.setattr(constants, "path", lambda: pytest.fail("library.json was read for a plan of this package"))
    constants.library.cache_clear()
    assert costmodel.predict(LAYER, device="h100").seconds == ours


def test_the_nearest_rows_decide_and_a_lone_one_stands_for_all():
    near = seen(LAYER, [Pass.FPROP], "float16", "ieee", "contiguous", "eager")
    far = seen(DEPTHWISE, [Pass.WGRAD], "float32", "ieee", "contiguous", "eager")
    assert distance(near, near) == 0 < 20 < distance(near, far)
    assert guess(near, [Row(far, 3.0, 1)]).log_ratio == pytest.approx(3.0, abs=1e-6)
    both = guess(near, [Row(near, 1.0, 1), Row(far, 3.0, 1)])
    assert both.log_ratio == pytest.approx(1.0, abs=0.02) and both.support == pytest.approx(1.0, abs=1e-3)


def test_kinds():
    kinds = [kind_of(replace(LAYER, **change)) for change in (
        {}, {"in_channels": 3}, {"kernel_size": (1, 1)}, {"groups": 2}, {"groups": 64}
    )]  # fmt: skip
    assert kinds == ["dense", "few channels", "1x1", "grouped", "depthwise"]


# ---- networks -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    return costmodel.trace(Net().eval(), (64, 16, 56, 56), dtype=torch.float16)


def total(rows):
    return sum(row.seconds for row in rows)


def test_a_network_in_each_mode_and_layout(network):
    device = costmodel.find_device("rtx3090")
    rows = network.on(device, library="cudnn")
    assert [row.layer.name for row in rows] == [row.layer.name for row in network.on(device)]
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert all(row.low < row.seconds < row.high for row in rows)
    known, compiled = (total(network.on(device, library="cudnn", mode=mode)) for mode in ("eager", "compiled"))
    assert compiled < known < total(network.on(device, library="cudnn", training=True))


def test_a_network_that_no_row_is_like_says_so_and_has_a_wider_interval(network):
    def spread(rows):
        return sum(row.high for row in rows) / sum(row.low for row in rows), " ".join(rows[0].sources)

    known, words = spread(network.on(costmodel.find_device("rtx3090"), library="cudnn"))
    assert "no " not in words.replace("no more", "")
    for device, named, word in (
        ("h100", {}, "no network was timed on NVIDIA H100"),
        ("rtx3090", {"training": True}, "no training step"),
        ("rtx3090", {"mode": "compiled"}, "no compiled network"),
        ("rtx3090", {"dtype": "float32"}, "no network in float32"),
    ):
        wider, words = spread(network.on(costmodel.find_device(device), library="cudnn", **named))
        assert wider > known and word in words
    with pytest.raises(ValueError, match="float64"):
        network.on(costmodel.find_device("h100"), "float64", library="cudnn")


def test_in_a_compiled_network_what_lies_between_is_neither_written_nor_read(network):
    from costmodel.library.networks import riding

    rows = {layer.name: (layer.forward.bytes, left.forward.bytes)
            for layer, left in zip(network.layers, riding(network.layers), strict=True)}  # fmt: skip
    image = 2 * 64 * 32 * 56 * 56
    assert rows["norm"][0] > 2 * image and rows["norm"][1] == rows["norm"][0] - image  # reads the convolution, writes nothing
    assert rows["relu"] == (2 * image, image)  # writes
    assert rows["conv"][0] == rows["conv"][1]


# ---- what is committed ----------------------------------------------------------------------------------------------


def test_the_validation_page_is_of_todays_rows_and_arithmetic():
    """Run `python -m bench validate` where this fails."""
    assert validate.PAGE.read_text().splitlines()[-1] == validate.stamp()
    for name in re.findall(r"\]\((\S+\.png)\)", validate.PAGE.read_text()):
        assert (validate.PAGE.parent / name).is_file()


def test_every_difference_from_timms_counts_is_explained():
    agree, others = evidence.macs_beside_timm()
    assert f"{agree} of {agree + len(others)} published figures are met" in validate.PAGE.read_text()
    assert agree > 400 and all(why for _, why, _, _ in others)


def test_the_constants_read_back_as_they_were_written():
    known = constants.library()
    assert constants.loads(constants.dumps(known)) == known
    assert all(math.isfinite(row.log_ratio) for row in known.layers.rows)


def test_the_library_term_needs_the_standard_library_alone():
    code = (
        "import costmodel, sys; costmodel.predict(costmodel.ConvProblem.conv((1, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), "
    )
    code += "(1, 1)), library='cudnn'); sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sympy')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
