"""A report as one HTML file that opens without a network: tables and inline SVG, light or dark as the reader has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from costmodel.reports.notation import by
from costmodel.reports.pictures import ROOFS, Theme, picture_named, render
from costmodel.reports.report import Report
from costmodel.reports.rows import LayerRow
from costmodel.reports.units import duration, exact, interval, share, si

#: Stand-ins that matplotlib draws with and that become CSS variables, so that one picture serves light and dark.
INK = Theme("#010101", "#010102", "#010103", "#010104", "#010105", "#010106", "#010107", "#010108")
VARIABLES = ("paper", "ink", "faint", "line", "compute", "memory", "cache", "launch")

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--raised:#f5f7f9;--ink:#1b1f24;--faint:#5a636e;--line:#d5dae0;
--compute:#b3420b;--memory:#0b62a8;--cache:#7a3e9d;--launch:#6f7780;--warn:#a40e26}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--raised:#1c2128;--ink:#e8ebef;--faint:#a3adb8;--line:#343b44;
--compute:#ff9a5c;--memory:#6cb6ff;--cache:#c99bf0;--launch:#98a2ad;--warn:#ff8b97}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1320px;padding:28px 20px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:19px;margin:40px 0 10px}
p{margin:6px 0;max-width:80ch}.faint{color:var(--faint)}.warn{color:var(--warn);font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin:22px 0 0}
.tile{background:var(--raised);border-radius:8px;padding:12px 14px}.tile b{display:block;font-size:21px;line-height:1.3}
.tile span{color:var(--faint);font-size:13px;display:block}
figure{margin:0}figure svg{display:block;width:100%;height:auto}figure svg text{font-family:inherit!important}
.scroll{overflow:auto;max-height:75vh;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:5px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper)}
th:first-child{background:var(--raised);z-index:1}
.op{max-width:16ch;overflow:hidden;text-overflow:ellipsis}
tbody tr:last-child td{border-bottom:0}tbody tr:hover{background:var(--raised)}
th{background:var(--raised);position:sticky;top:0;font-weight:600}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:2px solid var(--memory)}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
.left{text-align:left}.wrap{white-space:normal;text-align:left;min-width:22ch}
.bar{display:inline-block;height:9px;border-radius:2px;vertical-align:baseline;margin-right:7px}
details summary{cursor:pointer;margin:8px 0}
"""

SORT = """
document.querySelectorAll("table.sort th button").forEach(button=>button.addEventListener("click",()=>{
const th=button.parentElement,body=th.closest("table").tBodies[0],column=th.cellIndex;
const up=th.getAttribute("aria-sort")==="descending";
th.parentElement.querySelectorAll("th").forEach(other=>other.removeAttribute("aria-sort"));
th.setAttribute("aria-sort",up?"ascending":"descending");
const key=row=>{const cell=row.cells[column],value=cell.dataset.v;return value===undefined?cell.textContent:+value};
const order=(a,b)=>typeof a==="number"&&typeof b==="number"?a-b:String(a).localeCompare(String(b));
[...body.rows].sort((a,b)=>(up?1:-1)*order(key(a),key(b))).forEach(row=>body.append(row));
}));
"""


def page(report: Report) -> str:
    """The whole file."""
    title = escape(f"{report.model} on {report.device}")
    inputs = ", ".join(map(str, report.inputs))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p class="faint">Input {inputs}, {escape(report.arithmetic)}. Times are of the {report.timed}, predicted by arithmetic.</p>
{_tiles(report)}
{_unknown(report)}
{paragraphs(report.notes)}
<h2>Roofline</h2>
<p class="faint">A dot is an operator, or several alike; its area is their share of the time. No direct convolution gets above
the line.</p>
{_figure(report, "roofline", "Attained FLOP per second over FLOP per byte, under the roofline")}
<h2>Where the time goes</h2>
{_figure(report, "time", "Predicted time by module")}
<h2>Receptive field</h2>
<p class="faint">How much of the input one element depends on, padding included. Dots are operators, the line is the largest
so far; a dot below it is a branch that sees less, or a whole input smaller than the field.</p>
{_figure(report, "receptive", "Receptive field after each operator, in the order they run")}
<h2>Operators</h2>
<p class="faint">In the order they run; click a heading to sort.</p>
{_layers(report.rows)}
<h2>Totals</h2>
{_totals(report)}
<h2>Beside torch's own counter</h2>
{_checks(report)}
<h2>Assumptions</h2>
{paragraphs(report.assumptions)}
<h2>The device</h2>
<details><summary>Every figure of {escape(report.device)}, with its source</summary>
{_sources(report)}
</details>
<script>{SORT}</script>
</body></html>
"""


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
        (si(forward.bytes, "B"), "compulsory, forward pass", f"{2 * forward.useful_macs / forward.bytes:.1f} FLOP a byte"),
        (si(report.parameters), "parameters", f"{si(report.trainable)} trainable"),
    ]
    made = (f'<div class="tile"><b>{escape(v)}</b>{escape(name)}<span>{escape(more)}</span></div>' for v, name, more in tiles)
    return f'<div class="tiles">{"".join(made)}</div>'


def paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _unknown(report: Report) -> str:
    if not report.unknown:
        return ""
    calls = ", ".join(f"{escape(name)} ({si(count)} x)" for name, count in report.unknown.items())
    return f'<p class="warn">FLOP not known, and not counted: {calls}.</p>'


def _figure(report: Report, name: str, label: str) -> str:
    return inline(picture_named(name, report, INK, titled=False), name, label)


def inline(figure: Figure, name: str, label: str) -> str:
    """A figure drawn with `INK` as SVG in the page's colours. `name` tells it from the page's other pictures."""
    svg = render(figure, "svg-text", salt=name).decode()
    svg = svg[svg.index("<svg") :]
    for variable in VARIABLES:
        svg = svg.replace(getattr(INK, variable), f"var(--{variable})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # ids are unique within a picture only, and a page holds several
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return "<figure>" + svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1) + "</figure>"


def _layers(rows: Sequence[LayerRow]) -> str:
    measured = any(row.measured_seconds for row in rows)
    heads = [
        "layer",
        "operator",
        "output",
        "time",
        "share",
        "limited by",
        "useful MAC",
        "dense MAC",
        "useful FLOP",
        "other FLOP",
    ]
    heads += ["bytes", "FLOP/byte", "parameters", "receptive field"] + (["measured"] if measured else [])
    widest = max((row.share for row in rows), default=1.0) or 1.0
    body = []
    for row in rows:
        roof = ROOFS.get(row.bound, "launch")
        bar = f'<span class="bar" style="width:{60 * row.share / widest:.1f}px;background:var(--{roof})"></span>'
        field = row.receptive_field
        cells = [
            f'<td class="left">{escape(row.name)}',
            f'<td class="left op" title="{escape(row.op)}">{escape(row.op)}',
            f"<td>{by(row.output_shape) or 'scalar'}",
            f'<td data-v="{row.seconds}">{si(row.seconds, "s")}',
            f'<td data-v="{row.share}">{bar}{share(row.share)}',
            f'<td class="left" style="color:var(--{roof})">{escape(row.bound)}',
            *(_number(count) for count in (row.useful_macs, row.dense_macs, row.useful_flops)),
            _number(row.other_flops) if row.known else '<td class="warn" data-v="-1">unknown',
            _number(row.bytes, "B"),
            f'<td data-v="{row.intensity}">{f"{row.intensity:.1f}" if row.intensity else "–"}',
            _number(row.parameters),
            f'<td data-v="{max(field)}">{by(field)}' if field else '<td data-v="0">–',
        ]
        if measured:
            time = row.measured_seconds
            cells.append(f'<td data-v="{time or 0}">{si(time, "s") if time else "–"}')
        body.append("<tr>" + "</td>".join(cells) + "</td></tr>")
    left = {"layer", "operator", "limited by"}
    top = "".join(
        f'<th{" class=left" if head in left else ""} scope="col"><button type="button">{head}</button></th>' for head in heads
    )
    return f'<div class="scroll"><table class="sort"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _number(value: float, unit: str = "") -> str:
    return f'<td data-v="{value}">{si(value, unit) if value else "–"}'


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
        return '<p class="faint">Not compared: ask for it with --check.</p>'
    rows = [
        (escape(check.op), f"{check.ours:,}", f"{check.torch:,}", escape(check.explanation or "equal"))
        for check in report.checks
    ]
    intro = "Dense FLOP of forward and backward, and what torch.utils.flop_counter.FlopCounterMode counts."
    return f'<p class="faint">{intro}</p>' + plain_table(
        ("operator", "here", "torch", "difference"), rows, left=(0, 3), wrap=(3,)
    )


def _sources(report: Report) -> str:
    rows = [(of.figure, exact(of.value, of.unit), escape(of.source)) for of in report.figures]
    return plain_table(("figure", "value", "source"), rows, left=(0,), wrap=(2,))


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (), wrap: Sequence[int] = ()) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["wrap" if i in wrap else "left" if i in left else "" for i in range(len(cells))]
        made = (f"<{tag}{f' class={kind}' if kind else ''}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", heads)}</thead><tbody>{body}</tbody></table></div>'
