"""The stages of `bench gpu` without a GPU: processes that crash and hang, resuming, limits, and what the items check."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import conftest
import pytest
import stage_items
import torch

from bench.gpu import bits, calls, counters, functions, stages, supervise
from bench.gpu.ahead import normalised_item
from bench.gpu.convolutions import (
    COPIED,
    EPILOGUES,
    FAMILIES,
    LAYERS,
    NUMBERS,
    chosen,
    forced,
    fused_item,
    pass_item,
    serves,
    work_of,
)
from bench.gpu.functions import CHUNKS, MODES, PAIRS, causal_backward, causal_forward, causal_update, separable_item, video_item
from bench.gpu.item import Result, launch_only, perform
from bench.gpu.stages import STAGES, Context, Stage
from bench.gpu.supervise import Lost, Tally
from bench.prepared.ahead import ahead
from bench.tolerance import Expected, activated_share, share
from costmodel.device import DEVICES
from costmodel.families import behind_copies, families
from costmodel.problem import Pass

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
FACTS = {"gpu": "stand-in", "sources": "1"}


def rows(path: Path) -> dict[str, dict]:
    return {row["name"]: row for row in supervise.load(path)}


# --- items in processes of their own --------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """`run` of tests/stage_items.py; what it said is in `said`."""
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("STAGE_PID", str(tmp_path / "pid"))
    said: list[str] = []

    def run(names, seconds=600.0, facts=FACTS, item_seconds=60.0):
        path = tmp_path / "rows.jsonl"
        return supervise.run("calls", "stage_items", names, "cpu", path, facts, seconds, said.append, item_seconds)

    run.path, run.said = tmp_path / "rows.jsonl", said
    return run


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_a_crash_and_a_hang_are_their_own_failures_and_a_later_run_goes_on(stand_in, tmp_path):
    hang = ["right", "hangs"]
    tally = stand_in(hang, item_seconds=8.0)
    assert tally.ok == 1 and tally.failed == ["hangs"] and "no answer within 8 s" in rows(stand_in.path)["hangs"]["note"]
    assert gone(int((tmp_path / "pid").read_text()))

    with stand_in.path.open("a") as file:
        file.write('{"stage": "calls", "name": "right at')  # cut off here
    names = [name for name in stage_items.items() if name != "hangs"]
    tally = stand_in(names)
    found = rows(stand_in.path)
    assert (tally.before, tally.ok, tally.unserved, tally.left) == (1, 2, 1, 0)  # "right" was right before
    assert {name for name in found if found[name]["status"] == "ok"} == {"right", "prints", "right at last"}
    assert sorted(tally.failed) == ["aborts", "launches nothing", "leaves", "raises", "unwritten", "wrong"]
    assert "SIGABRT" in found["aborts"]["note"] and "exit status 7" in found["leaves"]["note"]
    assert found["raises"]["note"] == "RuntimeError: a refusal" and found["unserved"]["note"] == "this GPU has no such plan"
    assert found["wrong"]["error"] == 2 and found["unwritten"]["error"] is None
    assert "no kernel" in found["launches nothing"]["note"]
    assert found["right"]["error"] == 0 and found["right"]["launched"] == "fprop" and found["right"]["us"] > 0
    assert sum(line.startswith("aborts: FAILED, ") for line in stand_in.said) == 1


def test_what_is_right_is_tried_again_for_other_sources_alone(stand_in, monkeypatch):
    tried = []

    class Stub:
        def __init__(self, module, device):
            pass

        def tried(self, name, seconds):
            tried.append(name)
            if name == "none begins":
                raise Lost("why")
            return Result(name, {"bad": "failed", "none": "unserved"}.get(name, "ok"), us=1.0, error=0.5)

        def end(self):
            tried.append("ended")

    monkeypatch.setattr(supervise, "Workers", Stub)
    names = ["good", "bad", "none"]
    assert stand_in(names).failed == ["bad"] and tried == [*names, "ended"]
    tried.clear()
    assert str(stand_in(names)) == "0 right, 1 failed, 2 right before" and tried == ["bad", "ended"]
    tried.clear()
    assert stand_in(["good", "none"]).before == 2 and not tried
    assert stand_in(["good"], facts=FACTS | {"sources": "2"}).ok == 1
    tally = stand_in(["none begins", "good too"])
    assert (tally.failed, tally.left) == (["no process begins: why"], 2) and "good too" not in tried
    # the clock is asked at the beginning, before each item and after a failure
    clock = iter([0.0, 1.0, 5.0, 11.0])
    monkeypatch.setattr(supervise.time, "monotonic", lambda: next(clock))
    tally = stand_in(["a", "b", "c", "d"], seconds=10.0)
    assert (tally.ok, tally.left) == (2, 2) and "2 left: the time is up" in str(tally)
    clock = iter([0.0, 1.0, 12.0])
    tally = stand_in(["bad", "e"], seconds=10.0)  # cut off by the end: it may not be its fault
    assert (tally.failed, tally.left) == ([], 2)


def test_a_stage_ends_where_no_process_begins(tmp_path):
    """As where the GPU does not answer: the module is missing here."""
    tally = supervise.run("calls", "no_such_module", ["a", "b"], "cpu", tmp_path / "rows", FACTS, 60.0, print)
    assert tally.left == 2 and len(tally.failed) == 1 and "No module named 'no_such_module'" in tally.failed[0]


SIGNALLED = """
import sys
from pathlib import Path
from bench.gpu import stages, supervise
with stages.ended_by_signals():
    supervise.run("calls", "stage_items", ["right", "hangs"], "cpu", Path(sys.argv[1]), {}, 600.0, print, 600.0)
"""


def test_a_signal_ends_it_and_what_it_started_and_loses_nothing(stand_in, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SIGNALLED, str(stand_in.path)], cwd=Path(__file__).parent.parent)
    pid = tmp_path / "pid"
    try:
        for _ in range(1200):
            if pid.is_file() and pid.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert gone(int(pid.read_text())) and list(rows(stand_in.path)) == ["right"]


# --- stages -------------------------------------------------------------------------------------------------------------


def test_stages_run_in_their_order_within_their_limits(monkeypatch, tmp_path):
    clock, ran = [0.0], []

    def stage(name, limit, takes, rest=False, tally=None):
        def run(context):
            ran.append((name, context.seconds))
            clock[0] += takes
            if tally is None:
                raise RuntimeError("broken")
            return tally

        return Stage(name, limit, "what", run, rest)

    made = [stage("a", 20, 15, tally=Tally(ok=1)), stage("b", 30, 5), stage("c", 5, 70, rest=True, tally=Tally(ok=2))]
    monkeypatch.setattr(stages, "STAGES", {one.name: one for one in [*made, stage("d", 30, 1, tally=Tally())]})
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock[0])
    said: list[str] = []
    found = stages.run(["d", "c", "b", "a"], "cpu", tmp_path, said.append, total=80)
    assert ran == [("a", 20), ("b", 30), ("c", 60)]
    assert found["b"].failed == ["RuntimeError: broken"] and found["d"].left == 1
    with pytest.raises(SystemExit) as end:
        stages.summary(found, said.append)
    assert end.value.code == 1 and "  failed: RuntimeError: broken" in said
    stages.summary({"a": Tally(ok=1, left=3)}, said.append)
    with pytest.raises(ValueError, match="stage must be one of a, b, c, d, got 'e'"):
        stages.main(["e"], tmp_path, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="there is no CUDA device here"):
            stages.main(["a"], tmp_path, tmp_path)


def test_the_whole_fits_into_eight_minutes():
    assert sum(stage.seconds for stage in STAGES.values()) <= stages.TOTAL_SECONDS == 480
    assert list(STAGES)[:2] == ["calls", "bits"] and STAGES["calls"].seconds <= 120
    assert [name for name, stage in STAGES.items() if stage.rest] == [list(STAGES)[-1]]


def test_a_command_is_ended_at_its_limit(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    context = Context("cpu", tmp_path, FACTS, 3.0, print)
    assert stages.command(["-c", code], context).left == 1 and gone(int((tmp_path / "pid").read_text()))
    assert stages.command(["-c", "raise SystemExit(4)"], context).failed == ["exit status 4"]
    assert stages.command(["-c", ""], context) == Tally(ok=1)


def test_commands_exist(monkeypatch, tmp_path):
    """Their words are taken by the programs that they name."""
    asked = []
    monkeypatch.setattr(stages, "command", lambda words, context: asked.append([*words]) or Tally())
    for name in ("goals", "probe", "tests"):
        STAGES[name].run(Context("cuda", tmp_path, FACTS, 100.0, print))
    goals, probe, tests = asked
    for words in (goals, probe):
        done = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert float(goals[goals.index("--minutes") + 1]) * 60 < 100 and tests[-1] == "tests"


CSV = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","fprop_kernel","sm__inst_executed.sum","inst","1,234,567"
"0","7","fprop_kernel","launch__registers_per_thread","register/thread","168"
"0","7","fprop_kernel","another","","3"
"""


def test_counters_are_read_and_their_lack_is_told(monkeypatch, tmp_path):
    assert counters.parsed(CSV) == {"sm__inst_executed.sum": 1234567, "launch__registers_per_thread": 168}
    assert counters.parsed("==ERROR== no permission") == {}
    assert counters.ITEM in calls.items()
    said: list[str] = []
    monkeypatch.setattr(counters, "profiler", lambda: None)
    assert counters.run(tmp_path / "none.json", FACTS, 1.0, said.append) == Tally()
    program = tmp_path / "ncu"
    monkeypatch.setattr(counters, "profiler", lambda: str(program))
    for text, tally in ((CSV, Tally(ok=1)), ("==ERROR== LibraryNotLoaded", Tally(unserved=1))):
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        program.chmod(0o755)
        assert counters.run(tmp_path / "counters.json", FACTS, 20.0, said.append) == tally
    assert said[0] == "ncu is not installed: nothing is counted" and said[-1].endswith("==ERROR== LibraryNotLoaded")
    assert json.loads((tmp_path / "counters.json").read_text())["launch__registers_per_thread"] == 168


def test_prepared_kernels_may_be_missing_or_useless(tmp_path):
    said: list[str] = []
    stages.prepare(tmp_path / "none", said.append)
    (tmp_path / "index.jsonl").write_text("no JSON\n")
    stages.prepare(tmp_path, said.append)
    assert "none are" in said[0] or "no kernels are prepared" in said[0]
    assert said[1].startswith("the prepared kernels are not all of use: ")


# --- what the items check -------------------------------------------------------------------------------------------------


def test_the_first_stage_has_every_family_pass_dtype_and_kind():
    names = set(calls.items())
    assert {*FAMILIES} == {*families()}
    for name, which in itertools.product(FAMILIES, Pass):
        for word in ("fp16", "bf16"):
            assert f"{name} {which} {word} channels_last" in names
            assert name == "tma" or f"{name} {which} {word} contiguous" in names
        assert {f"{name} {kind} fp16" for kind in EPILOGUES} <= names
    assert {*COPIED} == {*behind_copies()}
    assert {
        f"copied-{name} {which} fp16" for name in FAMILIES if name != "padded" for which in (Pass.FPROP, Pass.WGRAD)
    } <= names
    assert {"copied-tma dgrad fp16", "copied-depthwise dgrad fp32"} <= names
    served = {name: {word for word in NUMBERS if serves(name, Pass.WGRAD, word, "channels_last")} for name in FAMILIES}
    halves = {"fp16", "bf16"}
    assert served == {
        "gather": {*NUMBERS},
        "patch": {*NUMBERS},
        "tma": halves,
        "depthwise": {*NUMBERS} - {"tf32"},
        "band": halves,
        "padded": {*NUMBERS},
    }
    assert serves("tma", Pass.FPROP, "tf32", "channels_last") and not serves("tma", Pass.FPROP, "fp32", "channels_last")
    assert {f"{name} {which} fp16 channels_last" for name in LAYERS for which in Pass} <= names
    for numbers in ("fp16", "bf16", "fp32", "fp64"):
        assert {f"causal state {numbers} channels_last", f"causal update {numbers}"} <= names
        assert f"video cached {numbers} channels_last" in names and f"separable 3x3 relu6 plain {numbers}" in names
    assert {f"causal backward {mode} silu fp16 contiguous" for mode in MODES} <= names
    assert {f"video {name} fp16 channels_last" for name in CHUNKS} <= names
    assert {f"convolution with a prologue {word} channels_last" for word in NUMBERS} <= names
    assert all(any(name.startswith(f"separable {pair} ") for name in names) for pair in PAIRS)


SMALL = "conv2d n1 c4 5x4 -> 6 k3 p1"


def small(which: Pass, numbers: str = "fp16"):
    return work_of(SMALL, which, numbers, "channels_last")


ITEMS = {
    "fprop": lambda: pass_item("fprop", small(Pass.FPROP), chosen),
    "wgrad": lambda: pass_item("wgrad", small(Pass.WGRAD, "fp32"), chosen),
    "channels": lambda: fused_item("channels", small(Pass.FPROP), "channels", chosen),
    "tensors": lambda: fused_item("tensors", small(Pass.DGRAD, "bf16"), "tensors", chosen),
    "heavy": lambda: fused_item("heavy", small(Pass.FPROP, "fp32"), "heavy", chosen),
    "causal": lambda: causal_forward("packed", "fp16", True),
    "causal backward": lambda: causal_backward("state", "fp16", True, "silu"),
    "causal update": lambda: causal_update("fp32"),
    "video": lambda: video_item("replicate", "fp16"),
    "prologue": lambda: normalised_item("fp32"),
    "separable": lambda: separable_item("3x3 stride 2", "fp16", "relu", "silu"),
    "whole numbers": lambda: bits.whole_item(
        pass_item("w", small(Pass.WGRAD), functools.partial(forced, "wgrad:gather:16x16x16:w1:s1:split2")), small(Pass.WGRAD)
    ),
    "final state": lambda: bits.final_state("packed", torch.float16, True),
    "next cache": lambda: bits.next_cache("replicate", torch.float32, True),
}


#: What is far below what an eye would see, in units of a type; float32's tolerance grows with the number of terms.
SLIGHTLY = {torch.float16: 4, torch.bfloat16: 4, torch.float32: 1000}


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")  # of any bits, whose sums nobody reads
@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_right_and_a_slightly_wrong_result_is_not(name, launched, monkeypatch):
    """One element of one result is off."""
    monkeypatch.setattr(functions, "CHANNELS", 6)
    item, kept = ITEMS[name](), []

    def call(*tensors):
        results = item.call(*tensors)
        kept.append((tensors, [t.clone() for t in results]))
        return results

    found = perform(dataclasses.replace(item, call=call), "cpu")
    assert found.status == "ok" and found.launched, found
    assert found.plan or name in ("causal update", "final state", "next cache"), found  # which have one tile, and copies
    tensors, results = kept[0]
    for i, result in enumerate(results):
        wrong, at = [t.clone() for t in results], tuple(n // 2 for n in result.shape)
        before = float(result[at])
        by = SLIGHTLY[result.dtype] * torch.finfo(result.dtype).eps * max(1.0, abs(before))
        wrong[i][at] = before + by if math.isfinite(before + by) else 1.0
        assert not item.judge(tensors, wrong) <= 1, f"result {i}"


def test_nothing_is_off_where_nothing_may_be():
    """Half a subnormal step of float64 is zero: an exact zero is right all the same, and nothing else is."""
    zero = torch.zeros(2, dtype=torch.float64)
    want = Expected(zero, zero, zero)
    for judge in (share, lambda got, want: activated_share(got, want, torch.relu)):
        assert judge(zero, want) == 0 and judge(torch.tensor([0.0, 1e-300], dtype=torch.float64), want) == math.inf
        assert judge(torch.tensor([0.0, math.nan], dtype=torch.float64), want) == math.inf


def test_items_without_memory_are_the_same_calls():
    """`launch_only` on the device "meta" makes tensors of the same shapes, strides and types."""
    for item in (ITEMS["tensors"](), ITEMS["causal"](), ITEMS["video"](), ITEMS["separable"](), ITEMS["final state"]()):
        for here, there in zip(item.inputs("cpu"), item.inputs("meta"), strict=True):
            assert (here is None) == (there is None)
            if here is not None:
                assert (here.shape, here.stride(), here.dtype) == (there.shape, there.stride(), there.dtype)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 forbids compiling"), ahead(DEVICES["NVIDIA H200"]):
        launch_only(ITEMS["fprop"](), "meta")


def test_a_checkout_in_a_folder_named_gpu_skips_nothing():
    """pytest counts the folders above a test among its keywords."""

    class Item:
        keywords = ("gpu", "aot")
        nodeid = "tests/test_stages.py::test"

        def get_closest_marker(self, name):
            return None

        def add_marker(self, marker):
            raise AssertionError(marker)

    conftest.pytest_collection_modifyitems([Item()])
