"""The committed counts of compiled kernels: every kind of kernel is there, the page says what they say, and why it is more."""

import itertools
from dataclasses import replace

import pytest

from bench.compiled import store
from bench.compiled.counts_page import COLUMNS, GOAL, PAGE, REASONS, above, all_rows, line, marks, page, ratio, words
from bench.compiled.source import every_kernel
from bench.compiled.store import Access, CountRow
from bench.gpu.convolutions import FAMILIES, LAYOUTS, NUMBERS, serves
from costmodel import families
from costmodel.problem import Pass

NONE = Access(0, 0, 0, 0, 0, 0, 0)


def row(**changes):
    made = CountRow("gather fprop fp16 contiguous", 80, "p", "fprop_kernel", "0", "s", 2, {"fma": 6}, {}, 0, 0)
    return replace(made, **changes)


def test_the_page_says_what_the_rows_say():
    assert PAGE.read_text() == page(), "python -m bench count --table"


def test_every_family_pass_layout_and_type_was_counted():
    found = {(row.call, row.arch) for row in all_rows()}
    for name, which, word, layout in itertools.product(FAMILIES, Pass, NUMBERS, LAYOUTS):
        for arch in families.executed(name) if serves(name, which, word, layout) else ():
            assert (f"{name} {which} {word} {layout}", arch) in found
    assert {row.kernel for row in all_rows()} == set(every_kernel())


def test_what_is_above_the_goal_has_a_reason_and_every_reason_a_kernel():
    cells = list(above(all_rows()))
    bare = [
        (row.call, row.arch, row.kernel, column, round(ratio(row, column), 2))
        for row, column in cells
        if not marks(row, column)
    ]
    assert not bare
    used = {mark for row, column in cells for mark in marks(row, column).split(", ")}
    assert used == {str(number) for number in range(1, len(REASONS) + 1)}


@pytest.mark.parametrize("column, kind", [("read", "cp.async"), ("written", "global store"), ("shared read", "ldmatrix")])
def test_ratios(column, kind):
    """Ten sectors for 256 bytes, of which eight would do; five wavefronts where four would."""
    access = replace(NONE, requests=2, bytes=256, sectors=10, lines=3, wavefronts=5, ideal=4)
    of = row(accesses={kind: access})
    assert ratio(of, column) == 1.25 and not list(above([of]))
    more = row(accesses={kind: replace(access, sectors=11, wavefronts=6)})
    assert [each for _, each in above([more])] == [column]
    assert all(ratio(of, other) == 0 for other in COLUMNS if other != column)
    assert GOAL == 1.25


def test_a_line():
    access = replace(NONE, requests=2, bytes=2048, sectors=64, lines=16, outside=7)
    what, layout, plan, kernel, instructions, read, *_, asked, outside = line(row(accesses={"cp.async": access}, read=1024))
    assert (what, layout, plan, kernel) == ("gather fprop", "contiguous", "`p`", "`fprop_kernel` (stale)")
    assert (instructions, read, asked, outside) == ("3", "1.00 (32.0)", "2 of 1", "7")
    assert words(row(call="causal update bf16")) == ("causal update", "bf16", "")


def test_a_row_is_as_old_as_its_kernel(tmp_path, monkeypatch):
    now = row(triton=store.pinned_triton(), source=store.source_of([("fprop_kernel", "")]), accesses={"box": NONE})
    assert now.current and not replace(now, kernel="dgrad_kernel").current and not replace(now, triton="0").current
    monkeypatch.setattr(store, "COUNTS", tmp_path / "counts.jsonl")
    store.append(store.COUNTS, [now, replace(now, kernel="reduce_kernel")])
    assert store.count_rows() == {("gather fprop fp16 contiguous", 80): [now, replace(now, kernel="reduce_kernel")]}
