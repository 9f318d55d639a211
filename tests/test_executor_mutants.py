"""Compiled kernels broken on purpose, one line at a time: the executor notices each by a fault or by other values.

The kernels and their launches lie in `tests/ptx_kernels` (`tests/record_ptx.py` wrote them); here nothing is compiled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from bench.executor import Descriptor, Execution, Region, decode, execute

FOLDER = Path(__file__).parent / "ptx_kernels"
KERNELS = sorted(path.stem for path in FOLDER.glob("*.ptx"))
#: How many places of a kernel a rule breaks, spread over the text.
PLACES = 3


@cache
def text_of(name: str) -> str:
    return (FOLDER / f"{name}.ptx").read_text()


def launched(name: str, ptx: str, **options: object) -> tuple[Execution, list[np.ndarray]]:
    """Execute a recorded launch with other PTX: what happened, and the bytes of the tensors that it writes."""
    launch = json.loads((FOLDER / f"{name}.json").read_text())
    random = np.random.default_rng(0)
    regions = []
    for region in launch["regions"]:
        values = random.standard_normal(region["size"] // np.dtype(launch["element"]).itemsize).astype(launch["element"])
        data = np.full(region["size"], 255, np.uint8) if region["written"] else values.view(np.uint8)
        regions.append(Region(region["name"], region["base"], data))
    descriptors = {
        int(offset): Descriptor(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        for offset, fields in launch["descriptors"].items()
    }
    params = np.frombuffer(bytes.fromhex(launch["params"]), np.uint8).copy()
    done = execute(decode(ptx), tuple(launch["grid"]), params, regions, descriptors, launch["shared"], limit=200_000, **options)  # type: ignore[arg-type]
    return done, [region.data for region, kept in zip(regions, launch["regions"], strict=True) if kept["written"]]


@cache
def right(name: str) -> list[np.ndarray]:
    done, written = launched(name, text_of(name))
    assert not done.faults, done.faults[0]
    return written


def sample(written: list[np.ndarray]) -> list[str]:
    """Some bytes of each result, as hexadecimal digits."""
    return [data[: len(data) // 4 * 4].view(np.uint32)[:: max(1, len(data) // 256)].tobytes().hex() for data in written]


class Rule(NamedTuple):
    """A way to break a line that matches: what the line becomes."""

    name: str
    line: str
    broken: Callable[[str], str]


def replaced(pattern: str, by: str | Callable[[re.Match[str]], str]) -> Callable[[str], str]:
    return lambda line: re.sub(pattern, by, line, count=1)


def dropped(line: str) -> str:
    return ""


RULES = [
    Rule("drop cp.async", r"cp\.async\.c[ag]\.", dropped),
    Rule("drop the mask of cp.async", r"cp\.async\.c[ag]\..*, %r\d+;", replaced(r", %r\d+;", ";")),
    Rule("shift a cp.async source", r"cp\.async\.c[ag]\.", replaced(r"(%rd\d+) \+ 0", r"\1 + 16")),
    Rule("shift a cp.async target", r"cp\.async\.c[ag]\.", replaced(r"(%r\d+) \+ 0", r"\1 + 16")),
    Rule("drop cp.async.commit_group", r"cp\.async\.commit_group", dropped),
    Rule("drop cp.async.wait_group", r"cp\.async\.wait_group", dropped),
    Rule("wait for one group less", r"cp\.async\.wait_group", replaced(r"(\d+);", lambda m: f"{int(m[1]) + 1};")),
    Rule("drop bar.sync", r"bar\.sync", dropped),
    Rule("drop the mask of a load", r"@!?%p\d+ ld\.global", replaced(r"@!?%p\d+ ", "")),
    Rule("drop the mask of a store", r"@!?%p\d+ st\.global", replaced(r"@!?%p\d+ ", "")),
    Rule("drop a global load", r"(@!?%p\d+ )?ld\.global", dropped),
    Rule("drop a global store", r"(@!?%p\d+ )?st\.global", dropped),
    Rule("shift a global store", r"(@!?%p\d+ )?st\.global", replaced(r"(%rd\d+) \+ 0", r"\1 + 16")),
    Rule("drop a shared load", r"ld\.shared", dropped),
    Rule("drop a shared store", r"(@!?%p\d+ )?st\.shared", dropped),
    Rule("drop ldmatrix", r"ldmatrix", dropped),
    Rule("ldmatrix without trans", r"ldmatrix.*trans", replaced(r"\.trans", "")),
    Rule("shift ldmatrix", r"ldmatrix", replaced(r"\[(%r\d+)(?:\+(\d+))?\]", lambda m: f"[{m[1]}+{int(m[2] or 0) + 16}]")),
    Rule("drop stmatrix", r"stmatrix", dropped),
    Rule("drop mma", r"mma\.sync", dropped),
    Rule("drop fence.proxy.async", r"fence\.proxy\.async", dropped),
    Rule("drop wgmma", r"wgmma\.mma_async", dropped),
    Rule("wgmma of another descriptor", r"wgmma\.mma_async", replaced(r"(%rd\d+), (%rd\d+)", r"\2, \1")),
    Rule("drop wgmma.wait_group", r"wgmma\.wait_group", dropped),
    Rule("wait for one wgmma group less", r"wgmma\.wait_group", replaced(r"(\d+);", lambda m: f"{int(m[1]) + 1};")),
    Rule("drop wgmma.commit_group", r"wgmma\.commit_group", dropped),
    Rule("drop a TMA load", r"(@!?%p\d+ )?cp\.async\.bulk\.tensor.*shared::cta\.global", dropped),
    Rule("drop a TMA store", r"(@!?%p\d+ )?cp\.async\.bulk\.tensor.*global\.shared::cta", dropped),
    Rule("drop the wait for a TMA store", r"cp\.async\.bulk\.wait_group", dropped),
    Rule("drop the commit of a TMA store", r"cp\.async\.bulk\.commit_group", dropped),
    Rule("expect fewer bytes", r"(@!?%p\d+ )?mbarrier\.arrive\.expect_tx", replaced(r"(\d+);", lambda m: f"{int(m[1]) - 16};")),
    Rule("drop the arrival", r"(@!?%p\d+ )?mbarrier\.arrive", dropped),
    Rule("drop the initialisation", r"(@!?%p\d+ )?mbarrier\.init", dropped),
    Rule("ask for the other phase", r"mbarrier\.try_wait", replaced(r"(%r\d+);", "1;")),
    Rule("drop the wait for a phase", r"mbarrier\.try_wait", replaced(r".*", "setp.eq.b32 complete, 0, 0;")),
    Rule("drop a shuffle", r"shfl\.sync", dropped),
    Rule("drop a branch", r"@!?%p\d+ bra", dropped),
    Rule("count one trip more", r"setp\.[lg][te]\.[su]32", replaced(r", (-?\d+);", lambda m: f", {int(m[1]) + 1};")),
]


class Mutant(NamedTuple):
    kernel: str
    rule: str
    line: int  # of the file, from 1
    text: str

    def __str__(self) -> str:
        return f"{self.kernel}-{self.rule.replace(' ', '_')}-{self.line}"


def mutants() -> Iterator[Mutant]:
    for kernel in KERNELS:
        lines = text_of(kernel).split("\n")
        for rule in RULES:
            found = [k for k, line in enumerate(lines) if re.match(r"\s*" + rule.line, line) and rule.broken(line) != line]
            for k in found[:: max(1, -(-len(found) // PLACES))]:
                yield Mutant(kernel, rule.name, k + 1, "\n".join([*lines[:k], rule.broken(lines[k]), *lines[k + 1 :]]))


#: Mutants that compute the same and do nothing wrong, by the reason.
HARMLESS = {
    "the copies join the group behind, which is waited for at the same place": [
        "gather_half_80-drop_cp.async.commit_group-442",
        "gather_half_90-drop_cp.async.commit_group-441",
        "gather_single_80-drop_cp.async.commit_group-449",
        "wgrad_half_80-drop_cp.async.commit_group-329",
    ],
    "another barrier of all warps lies between the same accesses, or they do not overlap": [
        "tma_wgmma_90-drop_bar.sync-219",
        "tma_wgmma_90-drop_bar.sync-261",
        "tma_wgmma_90-drop_bar.sync-414",
        "gather_half_80-drop_bar.sync-460",
        "gather_half_90-drop_bar.sync-459",
        "gather_single_80-drop_bar.sync-469",
        "tma_half_90-drop_bar.sync-231",
        "tma_half_90-drop_bar.sync-303",
        "tma_half_90-drop_bar.sync-464",
        "tma_tf32_90-drop_bar.sync-231",
        "tma_tf32_90-drop_bar.sync-303",
        "tma_tf32_90-drop_bar.sync-484",
        "wgrad_half_80-drop_bar.sync-455",
    ],
    "both ways of a division, in 32 and in 64 bits, give the same quotient here": [
        "gather_half_80-drop_a_branch-170",
        "gather_half_90-drop_a_branch-169",
        "gather_single_80-drop_a_branch-160",
    ],
    "no number of this problem lies between the two bounds": [
        "tma_wgmma_90-count_one_trip_more-234",
        "gather_half_80-count_one_trip_more-262",
        "gather_half_80-count_one_trip_more-343",
        "gather_half_80-count_one_trip_more-378",
        "gather_half_90-count_one_trip_more-261",
        "gather_half_90-count_one_trip_more-342",
        "gather_half_90-count_one_trip_more-377",
        "gather_single_80-count_one_trip_more-260",
        "gather_single_80-count_one_trip_more-345",
        "gather_single_80-count_one_trip_more-380",
        "tma_half_90-count_one_trip_more-248",
        "tma_tf32_90-count_one_trip_more-248",
    ],
    "what is read beyond the mask lies in the tensor, and the other operand is zero there": [
        "gather_single_80-drop_the_mask_of_cp.async-445",
        "gather_single_80-drop_the_mask_of_cp.async-473",
        "gather_single_80-drop_the_mask_of_cp.async-959",
        "wgrad_half_80-drop_the_mask_of_cp.async-328",
    ],
    "generic reads (ldmatrix) before an asynchronous write: a fence that the executor does not ask for": [
        "tma_half_90-drop_fence.proxy.async-449",
        "tma_tf32_90-drop_fence.proxy.async-469",
    ],
}
REDUNDANT = {name for names in HARMLESS.values() for name in names}


def noticed(mutant: Mutant) -> bool:
    done, written = launched(mutant.kernel, mutant.text)
    same = all((a == b).all() for a, b in zip(written, right(mutant.kernel), strict=True))
    return bool(done.faults) or not same


@pytest.mark.parametrize("mutant", [m for m in mutants() if str(m) not in REDUNDANT], ids=str)
def test_a_broken_line_is_noticed(mutant: Mutant) -> None:
    assert noticed(mutant), str(mutant)


def test_what_is_called_redundant_is() -> None:
    found = {str(m): m for m in mutants()}
    assert set(found) >= REDUNDANT, REDUNDANT - set(found)
    assert not [name for name in sorted(REDUNDANT) if noticed(found[name])]
    assert len(found) - len(REDUNDANT) >= 100


@pytest.mark.parametrize("name", KERNELS)
def test_values_are_those_that_were_recorded(name: str) -> None:
    """They were held against float64 when the kernel was recorded; a change of the engine that moves a bit is to be meant."""
    assert sample(right(name)) == json.loads((FOLDER / f"{name}.json").read_text())["sample"]


@pytest.mark.parametrize("name", KERNELS)
def test_the_order_of_warps_and_programs_changes_no_bit(name: str) -> None:
    for seed in range(1, 21):
        done, written = launched(name, text_of(name), seed=seed)
        assert not done.faults, (seed, done.faults[0])
        assert all((a == b).all() for a, b in zip(written, right(name), strict=True)), seed
