"""How `costmodel model` finds a model and calls it: typed and named inputs, factory arguments, no download, any width."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import costmodel
from costmodel.__main__ import main
from costmodel.networks.models import load
from costmodel.reports.options import arguments_named, inputs_named
from costmodel.reports.units import apart, middle

NETS = """
import logging, sys, types, warnings
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embed, self.conv = nn.Embedding(100, width), nn.Conv1d(width, width, 3)
    def forward(self, ids, scale=None):
        y = self.conv(self.embed(ids).transpose(1, 2))
        return y if scale is None else y * scale

class Batch(Encoder):
    def forward(self, batch):
        return super().forward(batch["ids"], batch["scale"])

def pulls(weights_backbone="DEFAULT", pretrained=True):
    import urllib.request
    if weights_backbone is not None:
        print("Downloading: w.pt", file=sys.stderr)
        urllib.request.urlopen("http://weights.example/w.pt")
    return nn.Conv2d(3, 8, 3)

def loud():
    print("built", logging.getLogger("torch.fx").isEnabledFor(logging.WARNING))
    warnings.warn("deprecated")
    return nn.Conv2d(3, 8, 3)

def deep():
    inner = nn.ModuleDict({f"block{n}": nn.ModuleDict({"convolution_of_some_length": nn.Conv2d(3, 3, 1)}) for n in range(9)})
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.a_rather_long_name_of_features = inner
        def forward(self, x):
            for block in inner.values():
                x = block["convolution_of_some_length"](x)
            return x
    return Deep()
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in a folder with `nets.py`: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "nets.py").write_text(NETS)

    def call(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["nets.py:Encoder", "--input", "int64:2x16"], "input int64 2x16,"),
        (["nets.py:Encoder", "--input", "ids:int64:2x16", "--input", "scale:1"], "input ids int64 2x16, scale 1,"),
        (["nets.py:Encoder", "--input", "ids:int64:2x16", "--arg", "width=16"], "2.38 k parameters"),
        (["nets.py:Batch", "--input", "batch.ids:int64:2x16", "--input", "batch.scale:fp32:1"], "batch.ids int64 2x16, "),
    ],
)  # fmt: skip
def test_inputs_have_names_and_dtypes_and_factories_arguments(run, words, shown):
    code, out, err = run("model", *words)
    assert code == 0 and not err and shown in " ".join(out.split())


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (inputs_named, "ids:int65:1x16", "before the sizes come a keyword and one of fp16"),
        (inputs_named, "1x0", "all at least 1; got '1x0'"),
        (inputs_named, "a b:int64:1", "before the sizes come"),
        (arguments_named, "weights", "--arg reads like weights=None or num_classes=10, got 'weights'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(read, text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read([text])


def test_a_name_is_taken_once_and_is_a_tensor_or_a_dictionary():
    for texts in (["a:1", "a:1"], ["a:1", "a.b:1"], ["a.b:1", "a:1"]):
        with pytest.raises(ValueError, match=r"twice|no dictionary"):
            inputs_named(texts)


def test_arguments_are_literals_or_words():
    found = arguments_named(["weights=None", "num_classes=10", "act=relu", "sizes=(1, 2)", "on=False"])
    assert found == {"weights": None, "num_classes": 10, "act": "relu", "sizes": (1, 2), "on": False}


def test_nothing_is_downloaded(run):
    code, _, err = run("model", "nets.py:pulls", "--input", "1x3x8x8")
    assert code == 2 and err.count("\n") == 1
    assert (
        "asked weights.example for weights, and nothing is downloaded: "
        "say no with --arg weights_backbone=None --arg pretrained=False" in err
    )
    code, out, _ = run("model", "nets.py:pulls", "--input", "1x3x8x8", "--arg", "weights_backbone=None")
    assert code == 0 and "conv2d" in out


def test_a_factory_that_talks_and_logs_leaves_the_report_alone(run):
    code, out, err = run("model", "nets.py:loud", "--input", "1x3x8x8", "--csv", "-")
    assert code == 0 and out.startswith("name,op,") and err == "built False\n"


def test_timms_names_go_to_its_factory(run, tmp_path, monkeypatch):
    (tmp_path / "timm.py").write_text(
        "from torch import nn\ndef create_model(name, width=4):\n    return nn.Conv2d(3, width, 1)"
    )
    for module in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, module)
    try:
        assert load("timm:resnet50.a1_in1k", width=6).out_channels == 6
    finally:
        sys.modules.pop("timm", None)


@pytest.mark.parametrize("where", ["module", "call"])
def test_torchvision_without_its_operators_is_taken_on_every_path(tmp_path, where):
    """Wherever torchvision is first asked for: by a file of the user, when it is loaded or when its function is called."""
    pytest.importorskip("importlib.metadata").version("torchvision")
    build = "return torchvision.models.resnet18(weights=None)"
    lines = (
        ["import torchvision", "def net():", f"    {build}"]
        if where == "module"
        else ["def net():", "    import torchvision", f"    {build}"]
    )
    (tmp_path / "net.py").write_text("\n".join(lines))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(costmodel.__file__).parent.parent), *filter(None, sys.path)])
    }
    command = [sys.executable, "-c", "from costmodel.networks.models import load; print(type(load('net.py:net')).__name__)"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.stdout == "ResNet\n", ran.stderr


@pytest.mark.parametrize("columns", [44, 60, 80, 120])
def test_rows_differ_and_fit_at_any_width(run, columns):
    for words in (
        ["model", "nets.py:deep", "--input", "1x3x8x8", "--top", "0"],
        ["layer", *"conv2d 64x56x56 k3 p1 n32 --device h100".split()],
        ["devices"],
    ):
        out = run(*words, columns=columns)[1]
        assert max(map(len, out.splitlines())) <= columns and "\n" in out
        assert "GMAC" not in out or "3.61 GMAC" in out  # numbers keep their units
        if words[0] == "model":
            names = [line.split()[0] for line in out.splitlines() if re.search(r"\d%$", line)]
            assert len(names) == len(set(names)) == 9
            assert (max(map(len, names)) > 36) == (columns == 120)


def test_names_are_shortened_in_the_middle():
    assert middle("abcdefghij", 5) == "ab…ij" and middle("abc", 3) == "abc"
    names = [f"encoder.layers.{n}.attention.self.query" for n in range(12)]
    for width in (6, 10, 20, 30):
        short = apart(names, width)
        assert len(set(short)) == 12 and max(map(len, short)) <= width
    assert apart(["same", "same"], 3) == ["s…e", "s…e"]


def test_pictures_are_what_their_suffix_says(run, tmp_path):
    for name, begins in (("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a", b"\x89PNG")):
        code, *_ = run("model", "nets.py:loud", "--input", "1x3x8x8", "--png", tmp_path / name, "--picture", "time")
        assert code == 0 and (tmp_path / name).read_bytes().startswith(begins)
    code, _, err = run("model", "nets.py:loud", "--input", "1x3x8x8", "--png", tmp_path / "a.jpg")
    assert code == 2 and "a picture ends in .png, .svg or .pdf, got '.jpg'" in err and not (tmp_path / "a.jpg").exists()


def test_what_a_layer_prints_is_read_back_unquoted(run):
    """The first line of the table goes into the shell as it stands: no letter of it means anything to a shell."""
    for words in (
        "conv2d 64x56x57 k3x1 s2 p0:1x2 d1x2 g64 c64 n2",
        "conv_transpose1d 8x9 k4 s2 p1 op1 c6 n3",
        "conv3d 4x5x6x7 k3 p-1 c4 n1",
    ):
        out = run("layer", *words.split())[1]
        assert out.splitlines()[0] == words and re.fullmatch(r"[\w\s:,-]+", words)
        assert run("layer", *out.splitlines()[0].split())[1] == out
    assert run("layer", "conv2d n2 c4 9x9 -> 6 k3x3 p1,1")[1].startswith("conv2d 4x9x9 k3 p1 c6 n2\n")


def test_two_devices_or_two_models_stand_side_by_side(run):
    code, out, _ = run("model", "nets.py:loud", "--input", "1x3x8x8", "--device", "h100", "--device", "t4")
    assert code == 0 and "NVIDIA H100 80GB HBM3" in out and "Tesla T4" in out and "ratio" in out
    code, out, _ = run("model", "nets.py:loud", "--input", "1x3x8x8", "--beside", "nets.py:deep")
    assert code == 0 and "nets.py:deep" in out
    code, _, err = run("model", "nets.py:loud", "--input", "1x3x8x8", *"--device h100 --device t4 --device l4".split())
    assert code == 2 and "two stand side by side" in err


def test_the_training_step_says_how(run):
    out = run("model", "nets.py:loud", "--input", "1x3x8x8")[1]
    assert "Add --train, or from Python training=True" in " ".join(out.split())
    assert "Add --train" not in run("model", "nets.py:loud", "--input", "1x3x8x8", "--train")[1]
