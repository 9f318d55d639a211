"""The command line: every command's output, its width and colour, and one line for every kind of bad input."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import costmodel
from costmodel.__main__ import main

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        y = torch.relu(self.norm(self.stem(x)))
        return self.head((y + self.up(self.down(y))).mean((2, 3)))

class Strange(Net):
    def forward(self, x):
        return torch.special.bessel_j0(super().forward(x))
"""
LAYER = "conv2d 64x56x56 k3 s1 p1 c64 n32".split()
LECTURE = "conv2d 100x68x68 k5 c100 --layers 10 --samples 1e6 --rate 0.15TFLOPS --rate 12TFLOPS".split()


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A folder with a small model, to be in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in this process, 80 columns wide: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def good(result):
    code, out, err = result
    assert code == 0 and not err, err
    return out


COMMANDS = {
    "about": [],
    "layer": ["layer", *LAYER],
    "layer on a device": ["layer", *LAYER, "--device", "h100", "--dtype", "bf16"],
    "layer transposed": ["layer", *"conv_transpose3d 512x28x28x28 k4 s2 p1 c256 n128 --device b200 --dtype tf32".split()],
    "lecture": ["layer", *LECTURE, "--device", "h100"],
    "solve": ["solve", *"--output 112 --input 224 --kernel 7 --stride 2".split()],
    "solve transposed": ["solve", *"--transposed --output 56 --input 28 --kernel 4 --stride 2".split()],
    "devices": ["devices"],
    "sources": ["devices", "--source"],
    "formula": ["formula", "conv2d"],
    "model": ["model", "net.py:Net", *"--input 4x3x32x32 --check --samples 1e6 --epochs 90 --train".split()],
    "model by module": ["model", "net.py:Strange", *"--input 4x3x32x32 --depth 1 --device a100".split()],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_output_fits_80_columns_and_has_no_colour_where_it_is_piped(words, run, net):
    out = good(run(*words))
    assert len(out.splitlines()) > 5 and "\x1b" not in out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert not re.search(r"\d…", out)  # names may be cut, numbers not
    if words:
        for line in good(run(words[0], "--help")).splitlines():
            assert len(line) <= 80, line


def test_no_color_is_honoured(run, net, monkeypatch):
    colour = re.compile(r"\x1b\[[0-9;]*[349][0-7][0-9;]*m")
    words = ["model", "net.py:Net", "--input", "4x3x32x32"]
    assert not colour.search(good(run(*words)))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert colour.search(good(run(*words)))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(good(run(*words)))


def test_the_issues_layer_says_what_it_costs(run):
    rows = json.loads(good(run("layer", *LAYER, "--device", "h100", "--json")))["passes"]
    assert [row["what"] for row in rows] == ["fprop", "dgrad", "wgrad"]
    for row in rows:
        assert row["dense_macs"] == 32 * 64 * 64 * 9 * 56 * 56 and row["dense_flops"] == 2 * row["dense_macs"]
        assert row["useful_macs"] == 32 * 64 * 64 * (3 * 56 - 2) ** 2
        assert row["issued_macs"] >= row["dense_macs"]
        assert row["bytes"] == 2 * (2 * 32 * 64 * 56 * 56 + 64 * 64 * 9)
        assert row["im2col_bytes"] == row["bytes"] + 2 * 2 * 32 * 64 * 9 * 56 * 56
        assert row["roof"] == ("compute" if row["intensity"] >= row["ridge"] else "memory")
        assert row["low"] < row["seconds"] < row["high"] and row["source"]
        assert row["roofline_seconds"] < row["seconds"]


def test_the_lectures_estimate_is_18_hours_and_14_minutes(run):
    found = json.loads(good(run("layer", *LECTURE, "--json")))
    assert found["passes"][0]["dense_macs"] == 100 * 100 * 5 * 5 * 64 * 64  # about 1 G
    times = {(row["rate"], row["unit"]): row for row in found["estimate"]}
    slow, fast = times[0.15e12, "MAC/s"], times[12e12, "MAC/s"]
    assert slow["forward_seconds"] * 0.15e12 == pytest.approx(10.24e15)  # about 10 P
    assert slow["forward_seconds"] // 3600 == 18 and fast["forward_seconds"] // 60 == 14
    assert times[12e12, "FLOP/s"]["forward_seconds"] == pytest.approx(2 * fast["forward_seconds"])
    assert all(row["training_seconds"] == pytest.approx(3 * row["forward_seconds"]) for row in times.values())
    out = good(run("layer", *LECTURE))
    for words in ("1.02 GMAC = 2.05 GFLOP", "10.2 PMAC", "18 h 57 min", "14 min 13 s", "150 GMAC/s", "12.0 TFLOP/s"):
        assert words in out


def test_a_rate_in_mac_is_read_one_way(run):
    rows = json.loads(good(run("layer", *"conv2d 8x9x9 k3 --samples 10 --rate 2GMAC/s --json".split())))["estimate"]
    assert [(row["rate"], row["unit"]) for row in rows] == [(2e9, "MAC/s")]


def test_a_device_without_the_default_dtype_takes_another_and_says_so(run, net):
    said = "float16 is taken, since Tesla V100-SXM2-16GB has no bfloat16."
    for words in (["layer", *LAYER], ["model", "net.py:Net", "--input", "4x3x32x32"]):
        out = " ".join(good(run(*words, "--device", "v100")).split())
        assert said in out and "tritonconv does not run on Tesla V100-SXM2-16GB: it needs compute capability 8.0" in out
        for device, dtype in (("v100", "fp16"), ("h100", None)):  # asked for, or the default: nothing to say
            asked = ["--dtype", dtype] if dtype else []
            assert "is taken" not in " ".join(good(run(*words, "--device", device, *asked)).split())
    assert json.loads(good(run("layer", *LAYER, "--device", "v100", "--json")))["dtype"] == "float16"
    assert "does not run there (it needs compute capability 8.0): t4, v100, v100-pcie" in " ".join(good(run("devices")).split())


def test_solve_names_the_unknown_and_its_interval(run):
    found = json.loads(good(run(*COMMANDS["solve"], "--json")))
    assert (found["solved_for"], found["low"], found["high"]) == ("padding", 3, 3) and found["derivation"]
    found = json.loads(good(run("solve", *"--output 7 --kernel 3 --padding 1 --stride 2 --json".split())))
    assert (found["solved_for"], found["low"], found["high"]) == ("input", 13, 14)
    assert "lfloor" in good(run(*COMMANDS["solve"], "--latex"))


def test_formula_prints_latex_and_markdown(run):
    assert r"\begin{align*}" in good(run("formula", "conv1d", "--latex"))
    assert "$$" in good(run("formula", "conv_transpose1d", "--markdown"))


@pytest.mark.parametrize("form", ["json", "csv", "markdown", "latex"])
def test_every_format_has_every_row(form, run, net):
    words = ["model", "net.py:Net", "--input", "4x3x32x32", f"--{form}", "-"]
    out = good(run(*words))
    names = [row["name"] for row in json.loads(good(run(*words[:-2], "--json", "-")))["rows"]]
    assert {"stem", "norm", "down", "up", "head"} <= set(names)
    if form == "csv":
        assert [row["name"] for row in csv.DictReader(io.StringIO(out))] == names
    else:
        assert all(name.replace("_", r"\_" if form == "latex" else "_") in out for name in names)


def test_a_transposed_layer_in_a_network_counts_its_input(run, net):
    rows = {r["name"]: r for r in json.loads(good(run("model", "net.py:Net", "--input", "4x3x32x32", "--json", "-")))["rows"]}
    assert rows["up"]["dense_macs"] == 4 * 16 * 8 * 2 * 2 * 16 * 16
    assert rows["down"]["receptive_field"] == [5, 5]


def test_all_files_are_written_and_named(run, net):
    words = ["model", "net.py:Net", "--input", "4x3x32x32"]
    for form in ("html", "png", "svg", "json", "csv", "markdown", "latex"):
        words += [f"--{form}", net / f"report.{form}"]
    out = good(run(*words))
    for form in ("html", "png", "svg", "json", "csv", "markdown", "latex"):
        assert (net / f"report.{form}").stat().st_size > 200 and f"report.{form}" in out.replace("\n", "")
    assert sorted(path.suffix for path in net.iterdir() if path.name.startswith(".")) == []


def test_unknown_operators_are_named(run, net):
    out = good(run("model", "net.py:Strange", "--input", "4x3x32x32"))
    assert "FLOP not known, and not counted" in out and "bessel_j0" in out
    assert "bessel" not in good(run("model", "net.py:Net", "--input", "4x3x32x32"))


def test_measured_times_reach_the_rows(run, net):
    (net / "times.json").write_text('{"stem": 2e-5}')
    words = ["model", "net.py:Net", "--input", "4x3x32x32", "--measured", net / "times.json", "--json", "-"]
    rows = {row["name"]: row["measured_seconds"] for row in json.loads(good(run(*words)))["rows"]}
    assert rows["stem"] == 2e-5 and rows["down"] is None


BAD = {
    "an impossible layer": (["layer", *"conv2d 64x5x5 k7".split()], "add 2 of padding"),
    "an unknown word": (["layer", *"conv2d 64x5x5 k3 z9".split()], "'z9'"),
    "an unknown device": (["layer", *LAYER, "--device", "h1000"], "h100"),
    "a device file that is missing": (["layer", *LAYER, "--device", "mine.toml"], "mine.toml"),
    "an unknown dtype": (["layer", *LAYER, "--dtype", "int8"], "fp16, bf16"),
    "a rate the device lacks": (["layer", *LAYER, *"--device v100 --dtype bf16".split()], "no bf16 rate"),
    "what the device has instead": (["layer", *LAYER, *"--device v100 --dtype tf32".split()], "it has fp16, fp32, fp64"),
    "a model in what the device lacks": (
        ["model", "net.py:Net", *"--input 1x3x8x8 --device v100-pcie --dtype bf16".split()],
        "it has fp16, fp32, fp64",
    ),
    "a wrong rate": (["layer", *LAYER, "--samples", "9", "--rate", "fast"], "0.15TFLOPS"),
    "samples without a rate": (["layer", *LAYER, "--samples", "9"], "--rate"),
    "a rate without samples": (["layer", *LAYER, "--rate", "1TFLOPS"], "--samples"),
    "samples that are none": (["layer", *LAYER, "--rate", "1TFLOPS", "--samples", "-1"], "positive"),
    "two formats": (["layer", *LAYER, "--json", "--csv"], "choose one"),
    "an unknown option": (["layer", *LAYER, "--colour"], "--colour"),
    "an unknown command": (["layr"], "layr"),
    "no layer": (["layer"], "LAYER"),
    "nothing to solve for": (
        ["solve", *"--output 1 --input 1 --kernel 1 --stride 1 --padding 0 --dilation 1".split()],
        "nothing",
    ),
    "a padding that is none": (["solve", "--output", "7", "--kernel", "3", "--padding", "wide"], "low:high"),
    "an unknown operator": (["formula", "conv4d"], "conv3d"),
    "a model that is not there": (["model", "net.py:Missing", "--input", "1x3x8x8"], "Missing"),
    "a module that is not there": (["model", "nowhere.to:be", "--input", "1x3x8x8"], "nowhere"),
    "an input of the wrong rank": (["model", "net.py:Net", "--input", "1x3"], "stem"),
    "an input of the wrong channels": (["model", "net.py:Net", "--input", "1x5x8x8"], "stem"),
    "an input that is none": (["model", "net.py:Net", "--input", "big"], "32x3x224x224"),
    "no input": (["model", "net.py:Net"], "--input"),
    "a measured file that is missing": (
        ["model", "net.py:Net", "--input", "1x3x8x8", "--measured", "no.json"],
        "no.json cannot be read: No such",
    ),
    "one name for two files": (["model", "net.py:Net", "--input", "1x3x8x8", "--png", "a", "--svg", "a"], "one name"),
    "a folder that is missing": (["model", "net.py:Net", "--input", "1x3x8x8", "--html", "no/r.html"], "no/r.html"),
}


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_code_2(words, says, run, net):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1 and "Traceback" not in err
    assert {path.name for path in net.iterdir()} <= {"net.py", "__pycache__"}


def test_a_failure_leaves_the_old_report(run, net):
    (net / "report.html").write_text("old")
    code, *_ = run("model", "net.py:Net", "--input", "1x5x8x8", "--html", net / "report.html")
    assert code == 2 and (net / "report.html").read_text() == "old"


@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib"])
def test_a_missing_package_names_the_extra(missing, run, net, monkeypatch):
    for name in ("commands", "html", "terminal", "pictures"):
        monkeypatch.delitem(sys.modules, f"costmodel.reports.{name}", raising=False)
        monkeypatch.delattr(costmodel.reports, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "rich":  # typer may have brought parts of it already
        for name in [name for name in sys.modules if name.startswith("rich.")]:
            monkeypatch.setitem(sys.modules, name, None)
    code, out, err = run("model", "net.py:Net", "--input", "1x3x8x8", "--png", "a.png")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "tritonconv[report]" in err and missing in err


def test_importing_the_package_needs_the_standard_library_only():
    heavy = "torch triton sympy typer rich matplotlib numpy".split()
    code = (
        "import sys, costmodel, costmodel.reports.notation, costmodel.reports.export; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "[]"


def test_the_console_script_is_this_command():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert EntryPoint("costmodel", project["scripts"]["costmodel"], "console_scripts").load() is main


@pytest.mark.parametrize("words", [["devices", "--json"], ["devices"]])
def test_a_reader_who_leaves_is_no_error(words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "costmodel", *words]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (found.returncode, found.stderr) == (1, "")
