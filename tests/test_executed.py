"""A family on special hardware is chosen only where its compiled code has been executed, and the record says that it was."""

import re
import shutil
from dataclasses import replace

import pytest
import torch

import tritonconv
from bench.compiled import store, table
from bench.compiled.source import every_kernel, families_of, kernels_of, parsed, source_hash
from bench.compiled.table import executed_kernels
from bench.work import Work
from costmodel import families
from costmodel.device import DEVICES
from costmodel.executed import is_trusted, words
from costmodel.fingerprints import SOURCES
from costmodel.legality import refusal
from costmodel.plan import candidates, select
from costmodel.problem import Pass
from costmodel.reports.notation import parse
from costmodel.tiling import Plan
from tritonconv import host

DENSE = parse("conv2d n32 c256 56x56 -> 256 k3x3 p1,1").problem
LARGE = parse("conv2d n32 c256 32x32 -> 256 k31x31 p15,15 g256").problem
H200, B200, A100 = (DEVICES[f"NVIDIA {name}"] for name in ("H200", "B200", "A100-SXM4-80GB"))


def call(problem, which=Pass.FPROP, layout="channels_last"):
    from bench.providers.ours import call_of

    return call_of(Work(problem, which, "bfloat16", layout=layout))


def test_the_record_has_every_family_on_every_architecture_of_the_table():
    found = executed_kernels(store.plan_rows().values(), store.test_rows().values(), any_age=True)
    ran = {(family, arch) for (family, arch, _), kernels in found.items() if kernels}
    said = {(name, arch) for name in families.every() for arch in families.executed(name)}
    assert said <= ran, f"the record has no {said - ran}: python -m bench compiled"


@pytest.mark.parametrize("which", Pass)
def test_boxes_are_chosen_where_they_ran_alone(which):
    assert select(call(DENSE, which), H200).family == "tma"
    families = {plan.family for plan in candidates(call(DENSE, which), B200)}
    assert families == {"gather"} and select(call(DENSE, which), B200).family == "gather"


@pytest.mark.parametrize("which", Pass)
def test_bands_are_chosen_where_they_ran_alone(which):
    asked = call(LARGE, which, "contiguous")
    assert "band" in {plan.family for plan in candidates(asked, H200)} & {plan.family for plan in candidates(asked, A100)}
    assert {plan.family for plan in candidates(asked, B200)} <= {"depthwise", "gather"}


def test_a_plan_still_forces_them():
    assert refusal(call(DENSE), Plan.parse("fprop:tma:128x128x64:w8:s3"), B200) == ""
    assert refusal(call(LARGE), Plan.parse("fprop:band:128x256x32:w8:s4:step1x1x8x32:rows1"), B200) == ""


def test_what_is_trusted_where():
    """Compute capabilities 8.6, 8.9 and 12 take what sm_80 compiles to, 10.3 what sm_100 does."""
    assert all(is_trusted("band", capability) for capability in (80, 86, 89, 90, 120))
    assert is_trusted("tma", 90) and not any(is_trusted(family, c) for family in ("tma", "band") for c in (100, 103))
    assert all(is_trusted(family, 100) for family in ("gather", "patch", "depthwise"))


def test_words():
    assert words("tma", 90) == "its compiled code has run for sm_90, on a CPU"
    assert words("band", 89) == "its compiled code has run for sm_80 and sm_90, on a CPU"
    assert words("gather", 100).endswith("sm_80 and sm_90, on a CPU, and never for sm_100")


def test_explain_says_what_has_run(monkeypatch):
    x = torch.empty(2, 64, 9, 7, dtype=torch.float16).to(memory_format=torch.channels_last)
    w = torch.empty(64, 64, 3, 3, dtype=torch.float16).to(memory_format=torch.channels_last)
    monkeypatch.setattr(host, "_now", host._now)
    monkeypatch.setattr(host, "_kernels", host._kernels)
    host.use(B200)
    said = str(tritonconv.explain(tritonconv.conv2d, x, w, padding=1))
    assert said.count("its compiled code has run for sm_80 and sm_90, on a CPU, and never for sm_100") == 3


def test_the_page_and_the_readme_say_what_the_record_says():
    """Also where kernels have changed since: then rows are to be marked as stale."""
    told = "python -m bench compiled --table"
    assert table.PAGE.read_text() == table.page(), told
    shown = table.README.read_text().partition("<!-- compiled -->\n")[2].partition("\n<!-- /compiled -->")[0]
    assert shown == table.summary(), told


def test_a_row_is_stale_where_sources_or_triton_have_changed():
    row = store.PlanRow(
        "k", 90, "d", "gather", "fprop", "float16", "p", "q", "l", "0", "s", (("fprop_kernel", "h"),), 1, 1, 0.5
    )
    group = store.Group("d", "float16", ("k", "other"))
    assert row.ok and not row.current
    assert table.state(group, {"k": row}) == (2, 0, 1, 0)
    assert not executed_kernels([row], []) and executed_kernels([row], [], any_age=True)
    now = replace(row, triton=store.pinned_triton(), source=source_hash(("fprop_kernel",)))
    assert now.current and table.state(group, {"k": now}) == (2, 1, 0, 0)
    assert table.state(group, {"k": replace(now, error=1.5)}) == (2, 0, 0, 1)
    assert executed_kernels([now], []) == {("gather", 90, "float16"): {"h"}}


def test_the_record_is_read_as_it_was_written(tmp_path):
    row = store.PlanRow(
        "k", 90, "d", "gather", "fprop", "float16", "p", "q", "l", "0", "s", (("fprop_kernel", "h"),), 1, 1, None, "x"
    )
    store.append(tmp_path / "rows.jsonl", [row, row])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"key":"cut o')
    assert store.load(tmp_path / "rows.jsonl", store.PlanRow) == [row, row] and not row.ok


# --- what a row is as old as --------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    return shutil.copytree(SOURCES, tmp_path / "kernels")


def edit(sources, file, old, new):
    path = sources / file
    text = path.read_text()
    assert text.count(old) >= 1, f"{file} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def aged(sources):
    """The kernels whose hash another folder of sources changes."""
    source_hash.cache_clear()
    parsed.cache_clear()
    return {name for name in every_kernel() if source_hash((name,), sources) != source_hash((name,))}


def test_words_positions_and_other_kernels_do_not_age_a_kernel(sources):
    for path in sources.glob("*.py"):
        text = path.read_text()
        path.write_text(
            "# a comment\n\n" + text.replace('"""', '"""More words. ', 1).replace("):\n    ", "):\n    # said\n    ")
        )
    edit(sources, "index.py", '    """', '    """Other words. ')
    assert aged(sources) == set()
    edit(sources, "depthwise_taps.py", "def taps_kernel(\n", "def taps_kernel(\n    unused,\n")
    assert aged(sources) == {"taps_kernel"}


@pytest.mark.parametrize(
    "file, old, new, kernels",
    [
        ("reduce.py", "for _ in range(1, unpack", "for _ in range(2, unpack", {"reduce_kernel"}),  # the kernel
        ("boxes.py", "value", "amount", {"tma_kernel", "wgrad_kernel"}),  # what it calls
        (
            "epilogue.py",
            ">= (3, 7)",
            ">= (3, 8)",
            {
                *("fprop_kernel", "dgrad_kernel", "reduce_kernel", "video_kernel", "deform_kernel", "scatter_kernel"),
                *("padded_fprop_kernel", "padded_copy_kernel", "padded_fold_kernel"),
            },
        ),  # a constant that it reads
        ("band.py", "class Band(NamedTuple):\n", "class Band(NamedTuple):\n    first: int\n", set(kernels_of(["band"]))),
    ],
)
def test_an_edit_ages_the_kernels_that_reach_it(sources, file, old, new, kernels):
    edit(sources, file, old, new)
    assert aged(sources) == kernels


def test_every_kernel_has_a_family_and_every_family_kernels():
    every = {name for path in SOURCES.glob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)}
    assert every == set(every_kernel())
    assert {family for name in every for family in families_of()[name]} == set(families.every())
    assert all(kernels_of([family]) for family in families.every())
    with pytest.raises(ValueError, match=r"no file of .* defines a kernel 'fft_kernel'"):
        source_hash(("fft_kernel",))


def test_a_kernel_imports_nothing_that_the_hash_does_not_see(sources):
    edit(sources, "reduce.py", "import triton\n", "import triton\nfrom tritonconv import epilogue\n")
    with pytest.raises(ValueError, match=r"reduce.py:6: .*nothing else"):
        source_hash(("band_kernel",), sources)
