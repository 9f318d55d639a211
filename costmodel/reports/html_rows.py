"""The table of a report's rows on its page: modules that fold, a filter, a file of it, and a place for every dot and bar."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from costmodel.reports.notation import by
from costmodel.reports.pictures import ROOFS
from costmodel.reports.report import Report
from costmodel.reports.rows import LayerRow
from costmodel.reports.sidebyside import SideBySide
from costmodel.reports.units import share, si

#: Heading and what it means, in the order of the columns.
COLUMNS = {
    "layer": "the module's path",
    "operator": "torch's operator",
    "output": "shape of the result, batch first",
    "kernel": "size of the filter, by axis",
    "stride": "by axis",
    "padding": "by axis, low:high where the ends differ",
    "dilation": "by axis",
    "groups": "a group's filters see a group's channels",
    "time": "predicted",
    "share": "of the whole network's time",
    "limited by": "the largest term of the time",
    "plan": "pass, kernel family, tile, warps and stages that are predicted fastest",
    "useful MAC": "multiply-adds that meet no padding",
    "dense MAC": "every tap of every output",
    "useful FLOP": "2 a useful MAC",
    "other FLOP": "of bias, normalisation, activation, pooling",
    "bytes": "every tensor moved once",
    "FLOP/byte": "useful FLOP for each byte",
    "parameters": "that this row is the first to use",
    "receptive field": "input elements that one output element sees, by axis",
    "measured": "as it was given",
}
LEFT = {"layer", "operator", "limited by", "plan"}


def operators(report: Report, mark: str = "") -> str:
    """The section of all rows. `mark` goes before the ids of the rows."""
    rows = report.rows
    heads = [head for head in COLUMNS if head != "measured" or any(row.measured_seconds for row in rows)]
    heads = [head for head in heads if head != "dilation" or any(set(row.dilation or ()) - {1} for row in rows)]
    widest = max((row.share for row in rows), default=1.0) or 1.0
    body: list[str] = []
    opened: list[str] = []
    for place, row in enumerate(rows):
        path = row.name.split(".")
        wanted = [".".join(path[:depth]) for depth in range(1, len(path))]
        wanted = [module for module in wanted if _members(rows, module) > 1]
        for module in wanted:
            if module not in opened:
                body.append(_module(rows, module, heads, widest))
        opened += [module for module in wanted if module not in opened]
        body.append(_row(row, f"{mark}row-{place}", heads, widest, len(wanted), wanted[-1] if wanted else ""))
    name = escape(f"{report.model}-{report.device}.csv".replace("/", "_").replace(" ", "-"))
    return _section(
        heads, body, name, "In the order they run; a heading sorts, a third click restores the order.", bool(opened)
    )


def pairs(both: SideBySide) -> str:
    """The section that holds the times of both reports, row by row."""
    first, last = both.names
    heads = ["layer", "operator", first, last, "ratio"]
    body = []
    for pair in both.pairs:
        ratio = '<td data-v="0">–' if pair.ratio is None else f'<td data-v="{pair.ratio}">{pair.ratio:.2f}'
        times = (f'<td data-v="{t or 0}">{si(t, "s") if t else "–"}' for t in (pair.first_seconds, pair.last_seconds))
        cells = [_name(pair.name, 0), f'<td class="left op">{escape(pair.op)}', *times, ratio]
        body.append(f'<tr data-path="{escape(pair.name)}">' + "</td>".join(cells) + "</td></tr>")
    return _section(heads, body, "side-by-side.csv", f"The ratio is {last} to {first}.", False)


def _section(heads: Sequence[str], body: Sequence[str], name: str, words: str, folds: bool) -> str:
    top = "".join(
        f'<th{" class=left" if head in LEFT else ""} scope="col" title="{escape(COLUMNS.get(head, head))}">'
        f'<button type="button">{escape(head)}</button></th>'
        for head in heads
    )
    kind = "sort" if folds else "sort pairs"
    fold = '<button type="button" class="tool fold">fold all</button>' if folds else ""
    return f"""<section><div class="tools">
<input class="tool filter" type="search" placeholder="filter: layer1 conv2d" aria-label="filter rows">{fold}
<button type="button" class="tool csv" data-name="{name}">save CSV</button>
<span class="count faint"></span></div><p class="faint">{escape(words)}</p>
<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div></section>"""


def _inside(row: LayerRow, module: str) -> bool:
    return row.name.startswith(module + ".")


def _members(rows: Sequence[LayerRow], module: str) -> int:
    return sum(_inside(row, module) for row in rows)


def _module(rows: Sequence[LayerRow], module: str, heads: Sequence[str], widest: float) -> str:
    """The row of a module: what the rows in it add up to."""
    members = [row for row in rows if _inside(row, module)]
    depth = module.count(".")
    part = sum(row.share for row in members)
    counts = {
        "useful MAC": sum(row.useful_macs for row in members),
        "dense MAC": sum(row.dense_macs for row in members),
        "useful FLOP": sum(row.useful_flops for row in members),
        "other FLOP": sum(row.other_flops for row in members),
        "parameters": sum(row.parameters for row in members),
    }
    seconds, moved = sum(row.seconds for row in members), sum(row.bytes for row in members)
    cells = {
        "layer": _name(module, depth, folds=True),
        "operator": f'<td class="left op">{len(members)} rows',
        "time": f'<td data-v="{seconds}">{si(seconds, "s")}',
        "share": f'<td data-v="{part}">{share(part)}',
        "bytes": _number(moved, "B"),
        "FLOP/byte": f"<td>{counts['useful FLOP'] / moved:.1f}" if moved and counts["useful FLOP"] else "<td>–",
    } | {head: _number(count) for head, count in counts.items()}
    cells_html = "</td>".join(cells.get(head, "<td>") for head in heads)
    return f'<tr class="module" data-path="{escape(module)}">{cells_html}</td></tr>'


def _row(row: LayerRow, mark: str, heads: Sequence[str], widest: float, depth: int, within: str) -> str:
    """`within` is the module under which the tree shows the row, `depth` how deep that is."""
    roof = ROOFS.get(row.bound, "launch")
    bar = f'<span class="bar" style="width:{60 * row.share / widest:.1f}px;background:var(--{roof})"></span>'
    field, time = row.receptive_field, row.measured_seconds
    cells = {
        "layer": _name(row.name, depth, within),
        "operator": f'<td class="left op" title="{escape(row.op)}">{escape(row.op)}',
        "output": f"<td>{by(row.output_shape) or 'scalar'}",
        "kernel": _geometry(row.kernel_size),
        "stride": _geometry(row.stride),
        "padding": f"<td>{escape(row.padding)}" if row.padding else "<td>",
        "dilation": _geometry(row.dilation),
        "groups": f'<td data-v="{row.groups}">{row.groups:,}' if row.groups else '<td data-v="0">',
        "time": f'<td data-v="{row.seconds}">{si(row.seconds, "s")}',
        "share": f'<td data-v="{row.share}" title="{share(row.share)} of the time">{bar}{share(row.share)}',
        "limited by": f'<td class="left" style="color:var(--{roof})">{escape(row.bound)}',
        "plan": f'<td class="left plan" title="{escape(row.plan)}">{escape(row.plan)}' if row.plan else '<td class="left">',
        "useful MAC": _number(row.useful_macs),
        "dense MAC": _number(row.dense_macs),
        "useful FLOP": _number(row.useful_flops),
        "other FLOP": _number(row.other_flops) if row.known else '<td class="warn" data-v="-1">unknown',
        "bytes": _number(row.bytes, "B"),
        "FLOP/byte": f'<td data-v="{row.intensity}">{f"{row.intensity:.1f}" if row.intensity else "–"}',
        "parameters": _number(row.parameters),
        "receptive field": f'<td data-v="{max(field)}">{by(field)}' if field else '<td data-v="0">–',
        "measured": f'<td data-v="{time or 0}">{si(time, "s") if time else "–"}',
    }
    cells_html = "</td>".join(cells[head] for head in heads)
    return f'<tr id="{mark}" data-path="{escape(row.name)}">{cells_html}</td></tr>'


def _name(name: str, depth: int, within: str = "", folds: bool = False) -> str:
    """The cell of a name. The tree shows what the name adds to the module above it; a sorted or filtered list shows the whole
    name."""
    button = '<button type="button" aria-expanded="true" aria-label="fold"></button>' if folds else ""
    own = escape(name.removeprefix(f"{within}.") if within else name.rpartition(".")[2] if folds else name)
    shown = (
        f'<span class="tree" style="padding-left:{14 * depth}px">{button}{own}</span><span class="whole">{escape(name)}</span>'
    )
    return f'<td class="left name" title="{escape(name)}">{shown}'


def _geometry(sizes: Sequence[int] | None) -> str:
    return f'<td data-v="{max(sizes)}">{by(sizes)}' if sizes else '<td data-v="0">'


def _number(value: float, unit: str = "") -> str:
    return f'<td data-v="{value}">{si(value, unit) if value else "–"}'
