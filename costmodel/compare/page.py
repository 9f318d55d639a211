"""Comparisons as one HTML file that opens without a network: tables and pictures, light or dark as the reader's system."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from costmodel.compare.analysis import Comparison
from costmodel.compare.drawing import drawn
from costmodel.compare.show import totals
from costmodel.reports.html import INK, document, inline, paragraphs, plain_table
from costmodel.reports.units import duration, interval, share, si


def page(comparisons: Sequence[Comparison]) -> str:
    """The whole file."""
    title = f"Measured beside predicted: {', '.join(dict.fromkeys(comparison.device.name for comparison in comparisons))}"
    words = "Measured times are the files'. Times of this package's plans are predictions: nothing of it was measured here."
    sections = "".join(_section(comparison, number) for number, comparison in enumerate(comparisons))
    return document(title, f'<p class="faint">{words}</p>{sections}')


def _section(comparison: Comparison, number: int) -> str:
    figures = drawn(comparison, INK, titled=False)
    labels = {
        "roofline": "Layers measured and predicted, under the roofline",
        "time": "Where a step's time goes",
    }
    pictures = "".join(
        f"<h3>{labels[name]}</h3>{inline(figure, f'{name}{number}', labels[name])}" for name, figure in figures.items()
    )
    parts = [
        f"<h2>{escape(comparison.source)} on {escape(comparison.device.name)}</h2>",
        paragraphs(totals(comparison)),
        pictures,
    ]
    if comparison.layers:
        parts += ["<h3>Layers</h3>", _layers(comparison)]
    if comparison.kinds:
        parts += ["<h3>Kinds of operators</h3>", _kinds(comparison)]
    if comparison.losses:
        lines = [(duration(row.gap or 0.0), escape(row.label), escape(row.advice)) for row in comparison.losses]
        parts += ["<h3>Largest losses</h3>", plain_table(("a step", "layer", "what mends it"), lines, left=(1,), wrap=(2,))]
    if comparison.networks:
        parts += ["<h3>Networks</h3>", _networks(comparison)]
    if comparison.findings:
        lines2 = [(escape(name), escape(words)) for name, words in comparison.findings]
        parts += ["<h3>Below the roofline</h3>", plain_table(("what", "why that may be"), lines2, left=(0,), wrap=(1,))]
    return "\n".join([*parts, paragraphs(comparison.notes)])


def _layers(comparison: Comparison) -> str:
    heads = ("layer", "pass", "calls", "measured", "copies", "useful FLOP/s", "dense FLOP/s", "B/s", "roofline", "share",
             "bound", "plan, predicted", "interval", "cudnn, predicted", "measured over plan", "gap a step")  # fmt: skip
    rows = []
    for row in sorted(comparison.layers, key=lambda row: -row.step_seconds):
        low, high = row.predicted_low, row.predicted_high
        rows.append((
            escape(row.name), row.passes, f"{row.calls:g}", si(row.measured_seconds, "s"), si(row.copies, "s"),
            si(row.useful_rate), si(row.dense_rate), si(row.bytes_rate), si(row.roofline_seconds, "s"),
            share(row.roofline_share), row.bound, si(row.predicted_seconds, "s") if row.predicted_seconds else "–",
            interval(low, high) if low is not None and high is not None else "–",
            si(row.library_seconds, "s") if row.library_seconds else "–",
            f"{row.ratio:.2f}" if row.ratio else "–", si(row.gap, "s") if row.gap is not None else "–",
        ))  # fmt: skip
    return plain_table(heads, rows, left=(0, 1))


def _kinds(comparison: Comparison) -> str:
    whole = sum(comparison.kinds.values())
    rows = [(kind, duration(seconds), share(seconds / whole)) for kind, seconds in comparison.kinds.items()]
    return plain_table(("kind", "a step", "share"), sorted(rows, key=lambda row: -comparison.kinds[row[0]]), left=(0,))


def _networks(comparison: Comparison) -> str:
    heads = ("network", "size", "batch", "measured", "roofline", "fused roofline", "plans, predicted", "cudnn, predicted", "")
    rows = []
    for row in comparison.networks:
        times = (row.roofline_seconds, row.fused_seconds, row.predicted_seconds, row.library_seconds)
        seconds = (duration(value) if value else "–" for value in times)
        rows.append((escape(row.model), str(row.image), str(row.batch), duration(row.measured_seconds), *seconds,
                     escape(row.reason)))  # fmt: skip
    return plain_table(heads, rows, left=(0,), wrap=(8,))
