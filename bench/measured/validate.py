"""`python -m bench validate`: writes docs/validation.md and its pictures from the published rows, and fits the library term."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from bench.measured import evidence, pictures
from bench.measured.evidence import Below, Error
from bench.measured.layers import HERE, sources, table
from bench.measured.library import FROM, make
from bench.measured.networks import runs
from bench.measured.rows import CALL, Sample
from bench.report import markdown_table as markdown
from costmodel.fingerprints import model_hash, normalised
from costmodel.library import constants
from costmodel.library.constants import library
from costmodel.reports.pictures import render

ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "validation.md"
#: Goals of the library term on held-out folds: layers above `FROM` with one GPU left out, networks, networks on another GPU.
GOALS = {"layers": 0.25, "networks": 0.08, "another GPU": 0.12}


def digest() -> str:
    """A hash of everything that the page's figures follow from: the rows, the constants, the arithmetic, this package's
    code."""
    digest = hashlib.sha256(model_hash().encode())
    package = Path(constants.__file__).parent
    for path in sorted([*(HERE / "data").glob("*"), *(HERE / "devices").glob("*"), constants.path()]):
        digest.update(path.read_bytes())
    digest.update((HERE / "sources.toml").read_bytes())
    for path in sorted([*HERE.glob("*.py"), *package.glob("*.py")]):
        digest.update(normalised(ast.parse(path.read_text("utf-8"))).encode())
    return digest.hexdigest()[:16]


def stamp() -> str:
    """The page's last line, from which a test sees whether the page is stale."""
    return f"<!-- made by python -m bench validate from {digest()} -->"


def command(fit: bool) -> None:
    """Writes the page and its pictures. With `fit` it first fits the library term's constants."""
    console = Console()
    if fit:
        constants.path().write_text(constants.dumps(make()), "utf-8")
        library.cache_clear()
        console.print(f"wrote {constants.path()}", soft_wrap=True)
    text = page()
    PAGE.write_text(text, "utf-8")
    console.print(f"wrote {PAGE}", soft_wrap=True)
    for name, figure in pictures.drawn().items():
        path = PAGE.parent / f"validation-{name}.png"
        path.write_bytes(render(figure, "png"))
        console.print(f"wrote {path}", soft_wrap=True)


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def page() -> str:
    """The whole page."""
    agree, others = evidence.macs_beside_timm()
    roof = evidence.under_the_roofline()
    networks = evidence.network_errors()
    parts = [
        "# The cost model beside published measurements",
        "`python -m bench validate` writes this page from the rows in `bench/measured/`. **Every time here was measured by "
        "others**, and is of cuDNN and eager PyTorch, not of this package's kernels, of which nothing has been timed. The rows "
        "can show that the roofline is one, that counting is right, how networks add up, and what a GPU takes today. They say "
        "nothing of how fast the Triton kernels are.",
        "In short:",
        _summary(roof, networks, agree, agree + len(others)),
        "The distances by which layers alike are found, and the figures of a device that each kind of layer scales with, were "
        "chosen while looking at these folds, so layers of another kind will be further off. The interval that a prediction "
        "carries is of the held-out rows.",
        "## The rows",
        _sources(),
        "## The roofline",
        'The last column is the least of measured over roofline. "Has a fast algorithm": the filter is wider than 1x1 and the '
        "stride 1, and the source does not say what ran.",
        _roofline(roof),
        "## Layers",
        f"Median error, 90th percentile, and rank correlation, of times of at least {FROM * 1e6:.0f} µs. "
        '"Layer held out": five folds, all rows of a problem in one. "GPU held out": predicted from the rows of other GPUs '
        f"alone. Times of single calls hold the call, which is taken to be {CALL['eager'] * 1e6:.0f} µs eager and "
        f"{CALL['compiled'] * 1e6:.0f} µs compiled.",
        _errors(evidence.layer_errors(evidence.gpu_of)),
        "The same on tensor cores, by kind of layer:",
        _errors(sorted(evidence.layer_errors(evidence.kind_on_tensor_cores))),
        "![Predicted over measured times of layers](validation-layers.png)",
        "This package's plan, uncalibrated, on channels-last tensors, beside cuDNN's time. A ratio of 0.3 is a prediction, not "
        "a measured speed: the model's arithmetic is a datasheet's, and contiguous rows hold layout copies that its time does "
        "not.",
        markdown(("GPU", "rows", "predicted over published, median", "rank correlation"), _ours()),
        "## Networks",
        f"{len({run.network.model for run in runs()})} networks of timm, amp in float16, {len(runs()):,} times; parameters and "
        "multiply-adds agree with the trace. The roofline moves every operator's tensors once. The mean is far above the "
        "median because some networks do what the traced operators do not show.",
        _networks(networks),
        "![Predicted over measured times of networks](validation-networks.png)",
        "## Multiply-adds beside timm's",
        "timm's figure is fvcore's, which adds 2 for each element of a batch normalisation, 5 of a layer or group "
        f"normalisation, and 1 of an adaptive pool's input. With those added, {agree} of {agree + len(others)} published "
        "figures are met to their rounding. The others:",
        markdown(("network", "published G", "here", "why"), [(n, f"{p:.2f}", f"{g:.2f}", why) for n, why, p, g in others]),
        stamp(),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(roof: Sequence[Below], networks: Sequence[tuple[str, Error]], agree: int, counts: int) -> str:
    units = {name: errors for name, *errors in evidence.layer_errors(_unit)}
    tf32, half, fma = (units[name][2] for name in ("TF32", "16 bit", "FMA units"))
    halves = [e.median for words, e in networks if "other half" in words]
    across = next(e for words, e in networks if words.startswith("channels last") and "fitted to the RTX 3090" in words)
    tensor = [one for one in roof if one.unit == "tensor cores"]
    lines = [
        f"Of {sum(one.rows for one in tensor):,} times on tensor cores {sum(one.below for one in tensor)} are below the "
        f"roofline; the least is {min(one.least for one in tensor):.2f} times it. The {sum(one.below for one in roof)} times "
        "below it are "
        "float32 on FMA units, where cuDNN may run Winograd or FFT, which multiply less.",
        f'`costmodel.predict(..., library="cudnn")` is off by {percent(tf32.median)} in the median on TF32 layers above '
        f"{FROM * 1e6:.0f} µs whose GPU was left out of the fit (goal {percent(GOALS['layers'])}), by {percent(fma.median)} in "
        "float32 on FMA units. In 16 bit the V100 alone has more than a few rows: with it left out they are predicted from "
        f"TF32 layers, and off by {percent(half.median)}; with other layers left out, by {percent(units['16 bit'][1].median)}.",
        f"Networks in eager PyTorch: {percent(min(halves))} to {percent(max(halves))} on the half of the networks that was "
        f"held out (goal {percent(GOALS['networks'])}), {percent(across.median)} from the RTX 3090 to the RTX 4090, channels "
        f"last (goal {percent(GOALS['another GPU'])}).",
        f"Multiply-adds: {agree} of {counts} counts that timm publishes are met, the others are explained below.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _unit(sample: Sample) -> str:
    return evidence.gpu_of(sample).rpartition(", ")[2]


def _sources() -> str:
    rows = [
        (f"[{name}]({one['repository']})", f"{len(table(name)):,}" if name != "timm_networks" else "", one["licence"],
         one["hardware"], one["timed"])
        for name, one in sources().items()
    ]  # fmt: skip
    return markdown(("file", "rows", "licence", "hardware", "what"), rows)


def _roofline(rows: Iterable[Below]) -> str:
    heads = ("GPU", "unit", "rows", "below", "named Winograd or FFT", "has a fast algorithm", "operands in L2", "least")
    return markdown(heads, [
        (one.gpu, one.unit, str(one.rows), str(one.below), str(one.named), str(one.fast), str(one.cached), f"{one.least:.2f}")
        for one in rows
    ])  # fmt: skip


def _error(one: Error) -> str:
    rank = f", {one.rank:.2f}" if one.rank == one.rank else ""
    return f"{percent(one.median)}, {percent(one.p90)}{rank}"


def _errors(rows: Sequence[tuple[str, Error, Error, Error]]) -> str:
    heads = ("layers", "rows", "roofline", "library, layer held out", "library, GPU held out")
    return markdown(heads, [(name, str(a.rows), _error(a), _error(b), _error(c)) for name, a, b, c in rows])


def _ours() -> list[tuple[str, ...]]:
    return [(gpu, str(rows), f"{ratio:.2f}", f"{rank:.2f}") for gpu, rows, ratio, rank in evidence.our_ratios()]


def _networks(rows: Iterable[tuple[str, Error]]) -> str:
    heads = ("layout, GPU, prediction", "networks", "median error", "mean", "predicted over measured", "rank correlation")
    return markdown(heads, [
        (words, str(e.rows), percent(e.median), percent(e.mean), f"{e.bias:.2f}", f"{e.rank:.3f}") for words, e in rows
    ])  # fmt: skip
