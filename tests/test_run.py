"""The measuring harness end to end on a stand-in clock: rows, resuming, red checks, budgets, providers."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from standin import SMALL, StandIn, go, lines, quiet, unwritten
from typer.testing import CliRunner

from bench import measure as measuring
from bench import run as running
from bench.__main__ import app
from bench.measure import measure
from bench.providers import DEFAULT, PROVIDERS, Contender, Unserved, cudnn, ours
from bench.providers.cudnn import SETTINGS
from bench.rows import load
from bench.run import lines_of, show
from bench.table import Verdict
from bench.work import LAYOUTS, Work, float64_pass
from bench.workloads.lists import layout_of
from costmodel.problem import Pass
from costmodel.reports.notation import parse

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")

POINTWISE = "conv2d n2 c8 4x4 -> 8 k1"

# --- end to end ---------------------------------------------------------------------------------------------------------


def test_rows_ratio_and_table(tmp_path, launched):
    machine = StandIn(seconds=[1e-5, 4e-5, 3e-5, 5e-5, 2e-5, 1e-6])
    result = go(lines(SMALL), machine, tmp_path / "rows.jsonl")
    rows = list(load(tmp_path))
    assert [row.setting for row in rows] == ["", *SETTINGS]
    assert not result.failed and result.new_rows == 5
    row = rows[0]
    assert row.ok and row.error <= 1 and row.plan.startswith("fprop:") and row.family_hash
    assert (row.p10_us, row.median_us, row.p90_us) == pytest.approx((10, 10, 10)) and row.clock_mhz == 1980
    assert row.roofline_us > 0 and row.predicted_us > 0 and rows[1].predicted_us is None
    (verdict,) = result.verdicts
    assert verdict.torch.setting == "contiguous benchmark" and verdict.default.setting == "channels_last"
    assert verdict.ratio == pytest.approx(2) and verdict.against(verdict.default) == pytest.approx(4)
    console = quiet()
    show(result, machine, tmp_path, console)
    printed = console.file.getvalue()
    assert "2.00x" in printed and "4.00x" in printed and SMALL.split()[1] in printed and "5 new rows" in printed


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path):
    path, todo = tmp_path / "rows.jsonl", lines(SMALL, POINTWISE)
    go(todo[:1], StandIn(), path)
    before = path.read_text()
    machine = StandIn()
    result = go(todo, machine, path)
    assert path.read_text().startswith(before) and result.new_rows == 5 and len(machine.captured) == 5
    assert [verdict.ratio for verdict in result.verdicts] == [1.0, 1.0]  # the old rows are in the table
    machine = StandIn()
    assert go(todo, machine, tmp_path / "other.jsonl", earlier=[path]).new_rows == 0 and not machine.captured
    machine.facts["triton"] = "another"
    assert go(todo[:1], machine, path).new_rows == 5


def test_new_kernels_are_measured_again(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    go(lines(SMALL), StandIn(), path)
    monkeypatch.setattr(measuring, "family_hash", lambda family: "another")
    result = go(lines(SMALL), StandIn(), path)
    assert result.new_rows == 1 and list(load(path))[-1].family_hash == "another"


@pytest.mark.parametrize("which", list(Pass))
@pytest.mark.parametrize(
    "text",
    [
        "conv2d n2 c4 6x5 -> 6 k3x2 s2x1 p1,0 d1x2 g2",
        "conv1d n2 c4 9 -> 4 k3 p2:0 g4",
        "conv2d n1 c4 5x5 -> 4 k4 p1:2,1:2",
        "conv3d n1 c4 3x4x4 -> 4 k3x1x3 p1,0,1",
        "conv_transpose2d n2 c4 3x3 -> 6 k3 s2 p1 op1",
        "conv_transpose1d n1 c4 5 -> 4 k4 s2 p1 g2",
        "conv2d n2 c3 6x4 -> 5 k3x2 s3x2",
        "conv1d n1 c5 6 -> 3 k1",
    ],
)
def test_providers_agree_in_every_layout(text, which, tmp_path):
    """Each row has passed the check against float64."""
    for layout in LAYOUTS:
        for line in lines_of([], [text], [], [str(which)], "fp32", layout):
            outcome = measure(line, DEFAULT, StandIn(), ())
            assert outcome.rows and all(row.ok for row in outcome.rows), [row.note for row in outcome.rows if not row.ok]
            assert max(row.error for row in outcome.rows) <= 1


def test_the_exact_result_is_torchs():
    """Against the plain call, for a symmetric padding, which float64_pass lays around by hand."""
    work = lines(SMALL, dtype="fp64")[0].work
    ((a, b),) = work.inputs(1, "cpu")
    want = torch.nn.functional.conv2d(a, b, padding=1)
    torch.testing.assert_close(float64_pass(work, a, b), want)
    exact = work.exact(a, b)
    assert exact.terms.expand_as(want)[0, 0, 0, 0] == 8 * 4 and exact.terms.expand_as(want)[0, 0, 2, 2] == 8 * 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_exact_result_leaves_its_operands_as_they_are(layout):
    """In float64 the oracle's copies were the operands themselves, and their absolute values stayed behind."""
    work = lines_of([], [SMALL], [], ["fprop"], "fp64", layout)[0].work
    ((a, b),) = work.inputs(1, "cpu")
    before = a.clone(), b.clone()
    work.exact(a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


# --- what must not be reported ------------------------------------------------------------------------------------------


def wrong(change):
    def contenders(work: Work) -> list[Contender]:
        (right,) = ours.contenders(work)
        return [dataclasses.replace(right, call=lambda a, b: change(right.call(a, b)))]

    return contenders


def off(y: torch.Tensor) -> torch.Tensor:
    """By four roundings, of which the tolerance has little more than one."""
    return y * (1 + 2.0**-9)


def another_shape(y: torch.Tensor) -> torch.Tensor:
    return y[..., 1:]


def raising(y: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("an illegal memory access")


@pytest.mark.parametrize("change", [off, unwritten, another_shape, raising])
def test_a_red_check_has_no_time_and_no_ratio(change, tmp_path, monkeypatch):
    monkeypatch.setitem(PROVIDERS, "tritonconv", wrong(change))
    machine = StandIn()
    result = go(lines(SMALL, POINTWISE), machine, tmp_path / "rows.jsonl")
    rows = [row for row in load(tmp_path) if row.provider == "tritonconv"]
    assert len(rows) == 2 and not any(row.ok or row.median_us for row in rows) and all(row.note for row in rows)
    assert [verdict.ratio for verdict in result.verdicts] == [None, None] and result.verdicts[0].torch.ok
    console = quiet()
    with pytest.raises(SystemExit) as exit:
        show(result, machine, tmp_path, console)
    assert exit.value.code == 1
    assert "failed" in console.file.getvalue() and rows[0].note.split(":")[0] in console.file.getvalue()
    assert go(lines(SMALL), StandIn(), tmp_path / "rows.jsonl").failed  # a row that is known to be wrong stays wrong


def test_a_layer_that_cannot_be_computed_does_not_end_the_run(tmp_path, monkeypatch):
    exact, bad = Work.exact, lines(SMALL)[0].work.problem

    def failing(self, a, b):
        if self.problem == bad:
            raise RuntimeError("out of memory")
        return exact(self, a, b)

    monkeypatch.setattr(Work, "exact", failing)
    result = go(lines(SMALL, POINTWISE), StandIn(), tmp_path / "rows.jsonl")
    assert len(result.failed) == 1 and "out of memory" in result.failed[0] and result.verdicts[1].ratio == 1.0


def test_a_call_that_launches_nothing_is_no_measurement(tmp_path, monkeypatch):
    def by_torch(work: Work) -> list[Contender]:
        (right,), (theirs, *_) = ours.contenders(work), PROVIDERS["cudnn"](work)
        return [dataclasses.replace(theirs, provider="tritonconv", plan=right.plan)]

    monkeypatch.setitem(PROVIDERS, "matmul", by_torch)
    result = go(lines(SMALL), StandIn(), tmp_path / "rows.jsonl", providers=["matmul"])
    assert "no kernel of tritonconv was launched" in result.failed[0]


def test_torchs_failure_is_told_and_fatal_where_no_setting_is_left(tmp_path, monkeypatch):
    def broken(name, of=lambda work: []):
        return lambda work: [*of(work), Contender(name, lambda a, b: raising(a), "broken")]

    monkeypatch.setitem(PROVIDERS, "flaggems", broken("flaggems"))
    monkeypatch.setitem(PROVIDERS, "cudnn", broken("cudnn", PROVIDERS["cudnn"]))
    result = go(lines(SMALL), StandIn(), tmp_path / "some.jsonl", providers=["tritonconv", "cudnn", "flaggems"])
    assert not result.failed and result.verdicts[0].ratio == 1.0
    assert sum("failed, RuntimeError: an illegal memory access" in note for note in result.notes) == 2
    monkeypatch.setitem(PROVIDERS, "cudnn", broken("cudnn"))
    result = go(lines(SMALL), StandIn(), tmp_path / "none.jsonl")
    assert len(result.failed) == 1 and "cudnn broken failed" in result.failed[0] and result.verdicts[0].ratio is None


def test_a_layer_that_does_not_fit_is_skipped_and_said_so(tmp_path):
    result = go(lines(SMALL), StandIn(memory=1000), tmp_path / "rows.jsonl")
    assert not result.failed and result.new_rows == 0
    assert "needs about" in result.notes[0] and result.verdicts[0].ratio is None


def test_the_time_is_kept(tmp_path, monkeypatch):
    """The stand-in's clock ticks at each question, twice a line; before the first, a line is taken to last twenty seconds."""
    todo = lines(*(f"conv2d n1 c8 {n}x4 -> 8 k1" for n in range(1, 8)))
    assert go(todo, StandIn(), tmp_path / "none.jsonl", minutes=20 / 60).left == 7
    monkeypatch.setattr(running, "FIRST_LINE_SECONDS", 1.0)
    result = go(todo, StandIn(), tmp_path / "rows.jsonl", minutes=0.1)
    assert (len(result.verdicts), result.left) == (3, 4)
    assert len(list(load(tmp_path))) == 5 * 3


# --- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SMALL, "conv_transpose1d n1 c4 5 -> 4 k4 s2 p1 g2", "conv1d n2 c4 9 -> 4 k3 p2:0 g4"])
def test_a_problem_reads_back_what_it_prints(text):
    (line,) = lines(text)
    again = lines(str(parse(text)))
    assert again == [line] and line.work.layout == layout_of(line.work.problem.rank)


def test_a_transposed_layers_forward_is_dgrad():
    text = "conv_transpose2d n2 c4 3x3 -> 6 k3 s2 p1 op1"
    found = {word: lines(text, passes=(word,))[0].work for word in ("fprop", "dgrad", "wgrad")}
    assert [work.which for work in found.values()] == [Pass.DGRAD, Pass.FPROP, Pass.WGRAD]
    assert all(work.transposed for work in found.values())


@pytest.mark.parametrize(
    "given, said",
    [
        ({"suites": ["nope"]}, "no layer matches suite 'nope'"),
        ({"problems": ["conv9d"]}, "unknown layer 'conv9d'"),
        ({"lists": ["everything"]}, "list must be one of goals, sample, got 'everything'"),
        ({"passes": ["forward"]}, "a pass is fprop, dgrad or wgrad, got 'forward'"),
        ({"dtype": "int8"}, "dtype must be one of .*, got 'int8'"),
        ({"layout": "NHWC"}, "layout must be one of .*, got 'NHWC'"),
        ({"problems": []}, "nothing to measure"),
    ],
)
def test_words_that_name_nothing(given, said):
    arguments = {"suites": [], "problems": [SMALL], "lists": [], "passes": ["fprop"], "dtype": "bf16", "layout": ""} | given
    with pytest.raises(ValueError, match=said):
        lines_of(**arguments)


def test_suites_leave_out_what_is_no_convolution():
    every = lines_of(["*"], [], [], ["fprop"], "bf16", "")
    assert len(every) == 1044


def command(*words: str):
    return CliRunner().invoke(app, ["run", *words])


def test_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "Gpu", lambda cudnn_plans: StandIn())
    monkeypatch.setattr(running, "committed_results", lambda: tmp_path / "committed")
    done = command("--problem", SMALL, "--pass", "fprop,wgrad", "--dtype", "fp16", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "1.00x" in done.output and {row.which for row in load(tmp_path)} == {Pass.FPROP, Pass.WGRAD}
    assert command("--problem", SMALL, "--provider", "nobody").exit_code == 2
    listed = command("--list", "goals", "--dry-run")
    assert listed.exit_code == 0 and listed.output.count("\n") > 200


# --- providers ----------------------------------------------------------------------------------------------------------


def served(provider: str, text: str, which: str = "fprop") -> str:
    """ "" or why not."""
    try:
        PROVIDERS[provider](lines(text, passes=(which,))[0].work)
    except Unserved as reason:
        return str(reason)
    return ""


def test_who_serves_what(monkeypatch):
    assert not served("matmul", POINTWISE) and not served("matmul", "conv2d n1 c3 8x8 -> 8 k4 s4", "wgrad")
    for text in (SMALL, "conv2d n1 c8 4x4 -> 8 k1 g2", "conv2d n1 c3 9x8 -> 8 k4 s4", "conv2d n1 c8 4x4 -> 8 k1 s2"):
        assert "no plain matrix product" in served("matmul", text)
    assert not served("inductor", SMALL) and "backward" in served("inductor", SMALL, "dgrad")
    assert not served("inductor", "conv_transpose1d n1 c4 5 -> 4 k4 s2 p1")
    assert served("flaggems", SMALL) == "flag_gems is not installed"
    causal = "conv1d n2 c4 9 -> 4 k4 p3:0 g4"
    assert served("causal_conv1d", causal) == "causal_conv1d is not installed"
    assert "front only" in served("causal_conv1d", "conv1d n2 c4 9 -> 4 k4 p3 g4")
    assert "depthwise" in served("causal_conv1d", SMALL)


@pytest.mark.parametrize("which", list(Pass))
@pytest.mark.parametrize("text", ["conv2d n2 c4 6x5 -> 6 k3", "conv1d n2 c4 9 -> 6 k3"])
def test_torch_convolves_in_the_layout_of_the_setting(text, which, monkeypatch):
    """And the result comes back in the tensors' own."""
    seen = []

    def convolution(work, *tensors):
        seen.append([t for t in tensors if t is not None])
        return plain(work, *tensors)

    plain = cudnn.convolution
    monkeypatch.setattr(cudnn, "convolution", convolution)
    for layout in LAYOUTS:
        (line,) = lines_of([], [text], [], [str(which)], "fp32", layout)
        for setting in SETTINGS:
            contender = cudnn.contender(line.work, setting)
            ((a, b),) = line.work.inputs(1, "cpu")
            y = contender.call(*contender.prepare(a, b))
            last = "channels_last" in setting
            form = torch.channels_last if last else torch.contiguous_format
            assert all(t.is_contiguous(memory_format=form) for t in seen.pop()), (layout, setting)
            if which != Pass.WGRAD and (a.dim() == 4 or layout == "contiguous"):
                assert y.stride() == line.work.strides(y.shape)


def test_who_does_not_serve_is_told(tmp_path):
    result = go(lines(SMALL), StandIn(), tmp_path / "rows.jsonl", providers=["tritonconv", "flaggems"])
    assert result.notes == ["flaggems left out: flag_gems is not installed"]


def test_torchs_settings_are_put_back():
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    for contender in PROVIDERS["cudnn"](lines(SMALL)[0].work):
        with contender.active():
            assert torch.backends.cudnn.benchmark == contender.setting.endswith("benchmark")
    measure(lines(SMALL, dtype="tf32")[0], ["cudnn"], StandIn(), ())
    after = torch.backends.cudnn.benchmark, torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    assert before == after


def test_no_verdict_without_rows():
    (line,) = lines(SMALL)
    verdict = Verdict.of(measuring.Outcome(line), {})
    assert verdict.ratio is None and verdict.torch is None
