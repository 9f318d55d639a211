"""The table of measured constants: what it changes, when it is taken and when it is ignored. No figure here was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.deform import LAYERS as DEFORMABLE
from bench.separable import LAYERS
from bench.unfold import LAYERS as WINDOWS
from costmodel import calibration, causal, deform, fingerprints, separable, unfold, video
from costmodel.calibration import DEFAULT, PRIOR, PRIOR_SOURCE, Calibration, Measured, Table, dumps, loads
from costmodel.device import find, find_device
from costmodel.fingerprints import family_hash, model_hash
from costmodel.plan import call_key, candidates, measured, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import channels_last

NAME = "NVIDIA H200"
PROBLEM = ConvProblem.conv((64, 128, 28, 28), (128, 128, 3, 3), (1, 1), (1, 1), (1, 1))
CALL = channels_last(PROBLEM, Pass.FPROP, "bfloat16")
SHALLOW = channels_last(ConvProblem.conv((64, 256, 56, 56), (256, 256, 1, 1), (2, 2), (0, 0), (1, 1)), Pass.FPROP, "bfloat16")
DEPTHWISE = channels_last(
    ConvProblem.conv((64, 512, 28, 28), (512, 1, 3, 3), (1, 1), (1, 1), (1, 1), 512), Pass.FPROP, "bfloat16"
)
SLOWER = Calibration(0.5, 0.5, 0.5, 1200.0, 2.0, (("half", 0.5),), 0.9, 1.1, "a test")


@pytest.fixture
def h200(monkeypatch, anew):
    """The device with nothing measured, whatever the package ships."""
    monkeypatch.setenv("TRITONCONV_CALIBRATION", "none")
    anew()
    return find_device("h200")


def table(constants=SLOWER, family="gather", of=None, model=None, plans=None) -> Table:
    entry = Measured(of or family_hash(family), model or model_hash(), constants)
    return Table(NAME, {family: entry}, plans or {})


def test_a_table_reads_back_from_its_text():
    written = table(plans={"a call": ("fprop:gather:128x128x64:w8:s3", "0123")})
    assert loads(dumps(written), "here") == written


def test_nothing_measured_changes_nothing(h200):
    plan = select(CALL, h200)
    plain = predict(CALL, plan, h200)
    assert predict(CALL, plan, h200.calibrated(table(Calibration()))) == plain
    assert (plain.low, plain.high) == (PRIOR[0] * plain.seconds, PRIOR[1] * plain.seconds) and plain.source == PRIOR_SOURCE


@pytest.mark.parametrize("family", ["gather", "depthwise"])
def test_each_constant_moves_the_time_that_it_should(h200, family):
    """Every plan is slower on slower parts, each constant moves some plan, and none another family's."""
    calls = {"gather": (CALL, SHALLOW), "depthwise": (DEPTHWISE,)}[family]
    runs = [(call, plan) for call in calls for plan in candidates(call, h200) if plan.family == family][::3]
    other = "depthwise" if family == "gather" else "gather"
    before = [predict(call, plan, h200).seconds for call, plan in runs]

    def times(**changes):
        device = h200.calibrated(table(replace(DEFAULT, **changes), family))
        return [predict(call, plan, device).seconds for call, plan in runs]

    changes = {"dram": 0.3, "l2": 0.2, "issue": 0.2, "latency": 6000.0, "launch": 10.0}
    most = {"latency": 4.0} if family == "depthwise" else {}  # every trip of its loops waits
    if family == "gather":
        changes["shares"] = (("half", 0.1),)
    for name, value in changes.items():
        after = times(**{name: value})
        assert all(new >= old for new, old in zip(after, before, strict=True)), name
        assert any(new > most.get(name, 1.1) * old for new, old in zip(after, before, strict=True)), name
    elsewhere = h200.calibrated(table(SLOWER, other))
    assert [predict(call, plan, elsewhere).seconds for call, plan in runs] == before


def test_a_tile_may_have_a_share_of_its_own(h200):
    plan = next(p for p in candidates(CALL, h200) if (p.block_m, p.block_n, p.block_k) == (128, 128, 64))
    other = next(p for p in candidates(CALL, h200) if (p.block_m, p.block_n, p.block_k) == (64, 64, 64))
    device = h200.calibrated(table(replace(DEFAULT, shares=(("half", 1.0), ("half 128x128x64", 0.1)))))
    assert predict(CALL, plan, device).seconds > 2 * predict(CALL, plan, h200).seconds
    assert predict(CALL, other, device).seconds == predict(CALL, other, h200).seconds


def test_the_interval_and_its_source_are_the_tables(h200):
    found = predict(CALL, select(CALL, h200), h200.calibrated(table()))
    assert found.low == 0.9 * found.seconds and found.high == 1.1 * found.seconds and found.source == "a test"


@pytest.mark.parametrize("stale", [{"of": "0" * 16}, {"model": "0" * 16}])
def test_a_table_of_other_kernels_or_other_arithmetic_is_ignored_and_the_source_says_so(h200, stale):
    plan = select(CALL, h200)
    found, plain = predict(CALL, plan, h200.calibrated(table(**stale))), predict(CALL, plan, h200)
    assert replace(found, source="") == replace(plain, source="")
    assert f"the table of {NAME} was" in found.source and "is ignored" in found.source and PRIOR_SOURCE in found.source


def test_a_family_that_is_gone_is_ignored(h200):
    gone = Table(NAME, {"fft": Measured("0" * 16, model_hash(), SLOWER)}, {"a call": ("fprop:fft:1x1x1", "0" * 16)})
    assert "ignored" in h200.calibrated(gone).calibration("fft").source and not h200.calibrated(gone).fastest


# --- the plan that was measured fastest -----------------------------------------------------------------------------------


def test_a_plan_measured_fastest_is_taken_for_exactly_that_call(h200):
    chosen = select(CALL, h200)
    other = next(plan for plan in candidates(CALL, h200) if plan != chosen)
    device = h200.calibrated(table(DEFAULT, plans={call_key(CALL): (str(other), family_hash("gather"))}))
    assert measured(CALL, device) == select(CALL, device) == other
    changes = ({"dtype": "float16"}, {"problem": replace(PROBLEM, batch=63)}, {"a": replace(CALL.a, align=8)})
    for change in ({"epilogue": "channels"}, *changes):
        call = replace(CALL, **change)
        assert call_key(call) != call_key(CALL)
        assert measured(call, device) is None and select(call, device) == select(call, h200)
    assert call_key(replace(CALL, precision="tf32")) == call_key(CALL)  # which says nothing of bfloat16
    single = replace(CALL, dtype="float32")
    assert call_key(replace(single, precision="tf32")) != call_key(single)


def test_a_measured_plan_that_is_stale_or_no_candidate_is_not_taken(h200):
    other = next(plan for plan in candidates(CALL, h200) if plan != select(CALL, h200))
    for entry in ((str(other), "0" * 16), ("fprop:gather:512x512x64:w8:s3", family_hash("gather"))):
        device = h200.calibrated(table(DEFAULT, plans={call_key(CALL): entry}))
        assert measured(CALL, device) is None and select(CALL, device) == select(CALL, h200)


# --- files and the environment --------------------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path, anew):
    """A user's cache directory with a table in it, and devices read anew."""
    monkeypatch.setenv("TRITONCONV_CACHE", str(tmp_path))
    monkeypatch.delenv("TRITONCONV_CALIBRATION", raising=False)
    path = calibration.user_path(NAME)
    calibration.write(table(plans={"a call": ("fprop:gather:16x16x16", family_hash("gather"))}), path)
    anew()
    return path


def test_a_users_own_table_is_taken_only_where_asked_for(cache, monkeypatch, tmp_path, anew):
    def dram() -> float:
        anew()
        return find_device("h200").calibration("gather").dram

    assert cache == tmp_path / "calibration" / "nvidia-h200.json"
    shipped = dram()
    monkeypatch.setenv("TRITONCONV_CALIBRATION", "user")
    assert dram() == 0.5 != shipped
    own = tmp_path / "own.json"
    calibration.write(table(replace(SLOWER, dram=0.4)), own)
    monkeypatch.setenv("TRITONCONV_CALIBRATION", str(own))
    assert dram() == 0.4 and find_device("h100").calibration("gather") == DEFAULT
    monkeypatch.setenv("TRITONCONV_CALIBRATION", "none")
    assert dram() == DEFAULT.dram


def test_another_device_borrows_constants_but_no_interval(cache, monkeypatch, anew):
    monkeypatch.setenv("TRITONCONV_CALIBRATION", "user")
    anew()
    assert find_device("h200").fastest
    for device in (find("NVIDIA H200 half", 90, 66), find_device("h200,bandwidth=4000")):
        found = device.calibration("gather")
        assert (found.dram, found.low, found.high) == (0.5, *PRIOR) and f"measured on {NAME}" in found.source
        assert not device.fastest


def test_the_package_ships_its_tables(cache, monkeypatch, tmp_path, anew):
    """Read where no variable asks for another, and packaged."""
    shipped = tmp_path / "package.json"
    calibration.write(table(replace(SLOWER, dram=0.3)), shipped)
    monkeypatch.setattr(calibration, "package_path", lambda name: shipped if name == NAME else tmp_path / "none.json")
    anew()
    assert find_device("h200").calibration("gather").dram == 0.3
    assert find(NAME, 90, 132).calibration("gather").dram == 0.3
    assert '"data/calibration/*.json"' in (Path(__file__).parent.parent / "pyproject.toml").read_text()


def test_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITONCONV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration.user_path(NAME) == tmp_path / "tritonconv" / "calibration" / "nvidia-h200.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration.user_path(NAME) == tmp_path / ".cache" / "tritonconv" / "calibration" / "nvidia-h200.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dram": 1.5}, "dram must be from 0.2 to 1, got 1.5"),
        ({"shares": {"half": 7}}, "share of half must be from 0.1 to 1"),
        ({"low": 2.0}, "the interval must be 0 < low <= high"),
        ({"colour": 1}, "unknown constant 'colour'"),
        ({"latency": None}, "cannot be read"),
        ({"issue": ...}, "lacks 'issue'"),
    ],
)
def test_a_file_that_is_no_table_is_named(change, words):
    row = json.loads(dumps(table()))
    row["families"]["gather"] |= {name: value for name, value in change.items() if value is not ...}
    for name in [name for name, value in change.items() if value is ...]:
        del row["families"]["gather"][name]
    with pytest.raises(ValueError, match=f"calibration here .*{words}"):
        loads(json.dumps(row), "here")
    with pytest.raises(ValueError, match="calibration here cannot be read"):
        loads("{", "here")


def test_a_file_that_is_asked_for_and_missing_is_an_error(cache, monkeypatch, tmp_path, anew):
    monkeypatch.setenv("TRITONCONV_CALIBRATION", str(tmp_path / "nowhere.json"))
    anew()
    with pytest.raises(ValueError, match=r"nowhere\.json.* cannot be read"):
        find_device("h200")


def test_an_edit_of_the_arithmetic_makes_what_was_fitted_to_it_stale(monkeypatch, tmp_path):
    before = model_hash()
    names = sorted(fingerprints.arithmetic(fingerprints.MODEL))
    # every module with a predicted time of its own, and what it counts by; not the choice, the words or the device
    own = {"matrix", "matrix_time", "band", "band_windows", "depthwise", "depthwise_choice"}
    counted = {
        "timing",
        "causal",
        "video",
        "separable",
        "deform",
        "deform_backward",
        "unfold",
        "problem",
        "algebra",
        "tiling",
        "resources",
    }
    assert counted | {f"families.{name}" for name in own} <= {*names}
    beside = {"plan", "legality", "device", "calibration", "fingerprints", "forecast", "count", "bounds", "families.protocol"}
    assert not {*names} & beside
    for name in (*(f"{name.replace('.', '/')}.py" for name in names), "data/resources.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((fingerprints.MODEL / name).read_text())
    monkeypatch.setattr(fingerprints, "MODEL", tmp_path)
    for name in names:
        model_hash.cache_clear()
        assert model_hash() == before
        path = tmp_path / f"{name.replace('.', '/')}.py"
        source = path.read_text()
        path.write_text(source + "\nANOTHER = 1\n")
        model_hash.cache_clear()
        assert model_hash() != before, name
        path.write_text(source)
    model_hash.cache_clear()


def test_every_module_with_a_predicted_time_is_hashed():
    """A new one that nobody lists would leave constants in place that were fitted to other arithmetic."""
    timed = set()
    for path in (*fingerprints.MODEL.glob("*.py"), *fingerprints.MODEL.glob("families/*.py")):
        source = path.read_text()
        if "def predict(" in source and any(made in source for made in ("Prediction(", ".beside(")):
            timed.add(".".join(path.relative_to(fingerprints.MODEL).with_suffix("").parts))
    assert timed | {"timing"} == set(fingerprints.timed())


PAIR = LAYERS[2].call()
MOVED = DEFORMABLE[0].call()
SPLIT = WINDOWS[0].call(Pass.FPROP)
CHUNK = video.Chunk.of((1, 384, 1, 60, 104), (384, 384, 3, 3, 3), 2, padding=(1,) * 4)
ROW = channels_last(causal.problem_of(8, 2048, 2048, 4), Pass.FPROP, "bfloat16")
#: Functions that no row of a pass measures: the family whose constants theirs are, and the prediction of a device.
FUNCTIONS = {
    "separable": ("patch", lambda d: separable.predict(PAIR, separable.candidates(PAIR, d)[0], d)),
    "video": (
        "gather",
        lambda d: video.predict(CHUNK, video.candidates(CHUNK, "bfloat16", "ieee", d)[0], "bfloat16", "ieee", d),
    ),
    "deform": ("gather", lambda d: deform.predict(MOVED, deform.candidates(MOVED, d)[0], d)),
    "unfold": ("depthwise", lambda d: unfold.predict(SPLIT, unfold.candidates(SPLIT, d)[0], d)),
    "causal": (
        "depthwise",
        lambda d: causal.predict(ROW, causal.candidates(ROW, d, causal.Kind())[0], d, causal.Kind()),
    ),
}


@pytest.mark.parametrize("family", FUNCTIONS)
def test_a_function_of_several_passes_shares_its_kins_constants(h200, family):
    """Else one kernel would be held against two by other constants than theirs. Its own come first, where a table has them."""
    kin, timed = FUNCTIONS[family]
    plain = timed(h200)
    shared, own = timed(h200.calibrated(table(family=kin))), timed(h200.calibrated(table(family=family)))
    assert shared.seconds == own.seconds > 1.2 * plain.seconds
    assert (shared.low, shared.high) == (PRIOR[0] * shared.seconds, PRIOR[1] * shared.seconds)
    assert f"the model's constants are those of {kin} kernels" in shared.source and plain.source == PRIOR_SOURCE
    assert (own.low, own.source) == (0.9 * own.seconds, "a test")
    assert timed(h200.calibrated(table(Calibration(), family=kin))).source == PRIOR_SOURCE
    for other in {"gather", "patch", "depthwise", "tma", "band"} - {kin}:
        assert timed(h200.calibrated(table(family=other))) == plain
