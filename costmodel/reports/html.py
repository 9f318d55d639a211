"""A report, or two side by side, as one HTML file that opens without a network: tables and inline SVG, light or dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from matplotlib.figure import Figure

from costmodel.reports.html_rows import operators, pairs
from costmodel.reports.links import captions
from costmodel.reports.pictures import Theme, picture_named, receptive_says_something, render
from costmodel.reports.report import Report
from costmodel.reports.sidebyside import SideBySide
from costmodel.reports.units import duration, exact, interval, share, si

#: Stand-ins that matplotlib draws with and that become CSS variables, so that one picture serves light and dark.
INK = Theme("#010101", "#010102", "#010103", "#010104", "#010105", "#010106", "#010107", "#010108")
VARIABLES = ("paper", "ink", "faint", "line", "compute", "memory", "cache", "launch")


def asset(name: str) -> str:
    """A file that goes into every page: report.css, report.js."""
    return (resources.files("costmodel") / "data" / name).read_text()


def page(*reports: Report) -> str:
    """The whole file for one report. For two reports their differences come first, then both."""
    if len(reports) > 1:
        return _comparison(SideBySide((reports[0], reports[1])))
    (report,) = reports
    title = f"{report.model} on {report.device}"
    return document(title, _subtitle(report) + _tiles(report) + _body(report, ""))


def document(title: str, body: str) -> str:
    """A page around its body: heading, the switch of its theme, style and script."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{asset("report.css")}</style></head><body>
<header><h1>{escape(title)}</h1><button type="button" class="tool theme">theme: auto</button></header>
{body}
<script>{asset("report.js")}</script>
</body></html>
"""


def _subtitle(report: Report) -> str:
    inputs = escape(", ".join(map(str, report.inputs)))
    words = f"Input {inputs}, {escape(report.arithmetic)}. Times are of the {report.timed}, predicted by arithmetic."
    return f'<p class="faint">{words}</p>'


def _body(report: Report, mark: str) -> str:
    """Everything below the totals. `mark` tells the ids of several reports on one page apart."""
    receptive = ""
    if receptive_says_something(report.rows):
        receptive = f"""<h2>Receptive field</h2>
<p class="faint">How much of the input one element depends on, padding included. Dots are operators, the line is the largest
so far; a dot below it is a branch that sees less, or a whole input smaller than the field.</p>
{_figure(report, "receptive", "Receptive field after each operator, in the order they run", mark)}"""
    return f"""{_unknown(report)}
{paragraphs(report.notes)}
<h2>Roofline</h2>
<p class="faint">A dot is an operator, or several alike; its area is their share of the time, and it leads to the row. No direct
convolution gets above the line.</p>
{_figure(report, "roofline", "Attained FLOP per second over FLOP per byte, under the roofline", mark)}
<h2>Where the time goes</h2>
{_figure(report, "time", "Predicted time by module", mark)}
{receptive}
<h2>Operators</h2>
{operators(report, mark)}
<h2>Totals</h2>
{_totals(report)}
<h2>Beside torch's own counter</h2>
{_checks(report)}
<h2>Assumptions</h2>
{paragraphs(report.assumptions)}
<h2>The device</h2>
<details><summary>Every figure of {escape(report.device)}, with its source</summary>
{_sources(report)}
</details>"""


def _comparison(both: SideBySide) -> str:
    first, last = both.names
    lines = [
        (escape(line.quantity), *map(escape, line.words), "–" if line.ratio is None else f"{line.ratio:.2f}")
        for line in both.lines
    ]
    heads = ("", escape(first), escape(last), "ratio")
    inputs = escape(", ".join(map(str, both.reports[0].inputs)))
    words = f'<p class="faint">Input {inputs}. Times are predicted by arithmetic.</p>'
    parts = [words, plain_table(heads, lines, left=(0,)), "<h2>Row by row</h2>", pairs(both)]
    for picture, label in (("roofline", "Roofline"), ("time", "Where the time goes")):
        drawn = (
            f"<div><h3>{escape(name)}</h3>{_figure(report, picture, f'{label}: {name}', mark)}</div>"
            for report, name, mark in zip(both.reports, both.names, "ab", strict=True)
        )
        parts.append(f'<h2>{label}</h2><div class="beside">{"".join(drawn)}</div>')
    for report, name, mark in zip(both.reports, both.names, "ab", strict=True):
        parts.append(
            f"<h2>{escape(name)}</h2>{_unknown(report)}{paragraphs(report.notes)}{operators(report, mark)}"
            f"<details><summary>Totals, torch's counter, assumptions, figures of the device</summary>{_totals(report)}"
            f"{_checks(report)}{paragraphs(report.assumptions)}{_sources(report)}</details>"
        )
    return document(f"{first} beside {last}", "\n".join(parts))


def _tiles(report: Report) -> str:
    timed = next(total for total in report.totals if total.seconds is not None)
    forward = report.totals[0]
    assert timed.seconds is not None and timed.low is not None and timed.high is not None
    tiles = [
        (duration(timed.seconds), f"predicted {timed.what}", interval(timed.low, timed.high)),
        (si(report.batch / timed.seconds), "samples a second", f"batch {report.batch}"),
        (duration(timed.roofline_seconds), f"roofline of the {timed.what}", "no fusion, peak and bandwidth"),
        (si(forward.useful_macs, "MAC"), "useful, forward pass", f"{si(forward.useful_flops, 'FLOP')}"),
        (
            si(forward.dense_macs, "MAC"),
            "dense, forward pass",
            f"{share(1 - forward.useful_macs / forward.dense_macs)} meets padding",
        )
        if forward.dense_macs
        else ("0 MAC", "dense, forward pass", ""),
        (si(forward.bytes, "B"), "compulsory, forward pass", f"{2 * forward.useful_macs / forward.bytes:.1f} FLOP per byte"),
        (si(report.parameters), "parameters", f"{si(report.trainable)} trainable"),
    ]
    tiles_html = (
        f'<div class="tile"><b>{escape(v)}</b>{escape(name)}<span>{escape(detail)}</span></div>' for v, name, detail in tiles
    )
    return f'<div class="tiles">{"".join(tiles_html)}</div>'


def paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _unknown(report: Report) -> str:
    if not report.unknown:
        return ""
    calls = ", ".join(f"{escape(name)} ({si(count)} x)" for name, count in report.unknown.items())
    return f'<p class="warn">FLOP not known, and not counted: {calls}.</p>'


def _figure(report: Report, name: str, label: str, mark: str) -> str:
    figure = picture_named(name, report, INK, titled=False, linked=f"{mark}row-")
    return inline(figure, f"{mark}{name}", label)


def inline(figure: Figure, name: str, label: str) -> str:
    """A figure drawn with `INK` as SVG in the page's colours. `name` tells it from the page's other pictures."""
    words = captions(figure)
    svg = render(figure, "svg-text", salt=name).decode()
    svg = svg[svg.index("<svg") :]
    for variable in VARIABLES:
        svg = svg.replace(getattr(INK, variable), f"var(--{variable})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # ids are unique within a picture only, and a page holds several
    svg = re.sub(r'(\bid="|url\(#|href="#(?!\w*row-\d))', rf"\g<1>{name}-", svg)
    for mark, tooltip in words.items():
        svg = svg.replace(f'<g id="{name}-{mark}">', f'<g id="{name}-{mark}"><title>{escape(tooltip)}</title>')
    return "<figure>" + svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1) + "</figure>"


def _totals(report: Report) -> str:
    heads = ("work", "useful MAC", "dense MAC", "useful FLOP", "other FLOP", "bytes", "roofline", "predicted", "interval")
    rows = [
        (
            total.what,
            *(si(n) for n in (total.useful_macs, total.dense_macs, total.useful_flops, total.other_flops)),
            si(total.bytes, "B"),
            duration(total.roofline_seconds),
            "–" if total.seconds is None else duration(total.seconds),
            "–" if total.low is None or total.high is None else interval(total.low, total.high),
        )
        for total in report.totals
    ]
    return plain_table(heads, rows, left=(0,))


def _checks(report: Report) -> str:
    if report.checks is None:
        return '<p class="faint">Not compared: ask for it with --check, or from Python with checks=crosscheck(model, ...).</p>'
    rows = [
        (escape(check.op), f"{check.ours:,}", f"{check.torch:,}", escape(check.explanation or "equal"))
        for check in report.checks
    ]
    intro = "Dense FLOP of forward and backward, and what torch.utils.flop_counter.FlopCounterMode counts."
    return f'<p class="faint">{intro}</p>' + plain_table(
        ("operator", "here", "torch", "difference"), rows, left=(0, 3), wrap=(3,)
    )


def _sources(report: Report) -> str:
    rows = [(row.figure, exact(row.value, row.unit), escape(row.source)) for row in report.figures]
    return plain_table(("figure", "value", "source"), rows, left=(0,), wrap=(2,))


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (), wrap: Sequence[int] = ()) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["wrap" if i in wrap else "left" if i in left else "" for i in range(len(cells))]
        cells_html = (
            f"<{tag}{f' class={kind}' if kind else ''}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{''.join(cells_html)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", heads)}</thead><tbody>{body}</tbody></table></div>'
