"""The roofline, the growth of the receptive field, and where the time goes, as matplotlib figures.

Figures are made without pyplot, so nothing global is touched and no display is needed. A row is anything with the fields of
`Row`; colours come from a `Theme`, and a page that follows the reader's light or dark mode passes CSS variables (`html`).
"""

from __future__ import annotations

import io
import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from costmodel.reports.links import tell, words_of
from costmodel.reports.units import apart, share, si


class Row(Protocol):
    """What a picture needs to know of a layer."""

    @property
    def name(self) -> str: ...
    @property
    def useful_flops(self) -> float: ...
    @property
    def intensity(self) -> float: ...
    @property
    def bound(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def measured_seconds(self) -> float | None: ...
    @property
    def receptive_field(self) -> tuple[int, ...] | None: ...


class Work(Protocol):
    """What a picture needs to know of a network: a `costmodel.reports.report.Report`, or anything alike."""

    @property
    def model(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def arithmetic(self) -> str: ...
    @property
    def timed(self) -> str: ...
    @property
    def peak(self) -> float: ...
    @property
    def bandwidth(self) -> float: ...
    @property
    def rows(self) -> Sequence[Row]: ...


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb. The last four tell what limits a layer."""

    paper: str
    ink: str
    faint: str
    line: str
    compute: str
    memory: str
    cache: str
    launch: str


LIGHT = Theme("#ffffff", "#1b1f24", "#5a636e", "#d5dae0", "#b3420b", "#0b62a8", "#7a3e9d", "#6f7780")
DARK = Theme("#14181d", "#e8ebef", "#a3adb8", "#343b44", "#ff9a5c", "#6cb6ff", "#c99bf0", "#98a2ad")

#: The roof that a bound belongs to, by the words `costmodel.timing` and `costmodel.bounds` use.
ROOFS = {"compute": "compute", "arithmetic": "compute", "instruction issue": "compute"}
ROOFS |= {"memory": "memory", "DRAM": "memory", "L2": "cache", "cache lines": "cache", "launch": "launch"}
MEANINGS = {"compute": "arithmetic", "memory": "memory", "cache": "L2 cache", "launch": "launch"}
LABELS = 9
BARS = 14


def picture_named(name: str, work: Work, theme: Theme = LIGHT, titled: bool = True, linked: str = "") -> Figure:
    """One figure: "roofline", "receptive" (field), "time", or "all" of them on a sheet. ValueError for another name.

    `titled` is off where a page gives the single pictures its own headings. Where `linked` is a prefix, dots and bars lead to
    the page's rows, `#prefix0` the first, and carry what a reader who points at them is told (`captions`).
    """
    title = f"{work.model} on {work.device}, {work.arithmetic}"
    times, sight = f"Where the time of a {work.timed} goes", "Receptive field"
    if name == "all":
        figure = blank_figure(13, 11, theme)
        grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1), hspace=0.08, wspace=0.06)
        if seen := receptive_says_something(work.rows):
            draw_receptive(figure.add_subplot(grid[1, 0]), work.rows, sight, theme)
        draw_time(figure.add_subplot(grid[1, 1] if seen else grid[1, :]), work.rows, times, theme)
        draw_roofline(figure.add_subplot(grid[0, :]), work.rows, work.peak, work.bandwidth, title, theme)
    elif name == "roofline":
        figure = blank_figure(9.2, 5.6, theme)
        draw_roofline(figure.subplots(), work.rows, work.peak, work.bandwidth, title if titled else "", theme, linked)
    elif name == "receptive":
        figure = blank_figure(9.2, 3.8, theme)
        draw_receptive(figure.subplots(), work.rows, f"{sight}: {work.model}" if titled else "", theme)
    elif name == "time":
        figure = blank_figure(9.2, 0.9 + 0.3 * min(len(_by_module(work.rows)), BARS + 1), theme)
        draw_time(figure.subplots(), work.rows, times if titled else "", theme, linked)
    else:
        raise ValueError(f"picture must be all, roofline, receptive or time, got {name!r}")
    return figure


def render(figure: Figure, form: str, salt: str = "costmodel") -> bytes:
    """The figure as "png", "pdf", "svg" (letters as outlines, for papers) or "svg-text" (letters as text, for web pages).

    `salt` keeps the ids of several pictures on one page apart. The same picture always has the same bytes.
    """
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none" if form == "svg-text" else "path", "svg.hashsalt": salt}):
        if form == "png":
            figure.savefig(out, format="png", dpi=160)
        elif form == "pdf":
            figure.savefig(out, format="pdf", metadata={"CreationDate": None})
        else:
            figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def draw_roofline(
    axes: Axes, rows: Sequence[Row], peak: float, bandwidth: float, title: str, theme: Theme, linked: str = ""
) -> None:
    """Attained useful FLOP/s over FLOP per compulsory byte, under the roof of `peak` FLOP/s and `bandwidth` bytes/s.

    A dot is a layer, or several equal ones, and its area their share of the predicted time. A diamond is a measured layer. Rows
    without a multiply-add have no intensity: the axis says how many are left out.
    """
    shown = [row for row in rows if row.intensity > 0 and row.seconds > 0]
    groups: dict[tuple[float, float, str], list[Row]] = defaultdict(list)
    for row in shown:
        groups[(row.intensity, row.useful_flops / row.seconds, _roof(row.bound))].append(row)
    ridge = peak / bandwidth
    places = {id(row): place for place, row in enumerate(rows)}
    rates = [rate for _, rate, _ in groups] + [r.useful_flops / r.measured_seconds for r in shown if r.measured_seconds]
    left = min([ridge / 30, *(x / 2 for x, _, _ in groups)])
    right = max([ridge * 8, *(x * 2.5 for x, _, _ in groups)])
    low = min([left * bandwidth, *(rate / 3 for rate in rates)])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(max(low, peak / 1e6), peak * 2.6))
    dress(axes, title, theme)
    axes.grid(True, which="major", color=theme.line, linewidth=0.7)
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color=theme.ink, linewidth=1.8, zorder=2)
    axes.plot([ridge, ridge], [axes.get_ylim()[0], peak], color=theme.faint, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for (x, rate, roof), members in groups.items():
        part = sum(member.share for member in members)
        size, colour = _area(part), getattr(theme, roof)
        dot = axes.scatter([x], [rate], s=size, color=colour, alpha=0.75, edgecolors=theme.paper, linewidths=0.8, zorder=4)
        if linked:
            longest = max(members, key=lambda member: member.seconds)
            tell(dot, f"{linked}{places[id(longest)]}", words_of(members))
        for member in members:
            if member.measured_seconds:
                measured = member.useful_flops / member.measured_seconds
                axes.plot([x, x], [rate, measured], color=colour, linewidth=0.8, zorder=3)
                axes.scatter([x], [measured], s=34, marker="D", facecolors=theme.paper, edgecolors=colour, zorder=5)
    axes.set_ylabel("useful FLOP/s")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    label, absent = "useful FLOP per compulsory byte", len(rows) - len(shown)
    if absent:
        lost = sum(row.share for row in rows) - sum(row.share for row in shown)
        label += f"\n{absent} rows without a multiply-add are not drawn; they take {share(lost)} of the time"
    axes.set_xlabel(label, fontsize=9)
    _legend(axes, {roof for _, _, roof in groups}, theme, any(row.measured_seconds for row in shown))
    slope = math.sqrt(left * ridge)
    for at, text, offset, side in (
        ((right, peak), f"{si(peak, 'FLOP/s')} peak, ridge at {ridge:.0f} FLOP/byte", (-2, 6), "right"),
        ((slope, slope * bandwidth), si(bandwidth, "B/s"), (-6, 6), "right"),
    ):
        axes.annotate(text, at, offset, textcoords="offset points", ha=side, fontsize=9, color=theme.ink)
    edge = [(left * (right / left) ** (step / 200)) for step in range(201)]
    avoid = [((x, min(peak, x * bandwidth)), 20.0) for x in edge]
    avoid += [((x, rate), _area(sum(m.share for m in members))) for (x, rate, _), members in groups.items()]
    avoid += [((row.intensity, row.useful_flops / row.measured_seconds), 40.0) for row in shown if row.measured_seconds]
    heaviest = sorted(groups.items(), key=lambda item: -sum(member.share for member in item[1]))[:LABELS]
    short = apart([members[0].name for _, members in heaviest], 28)
    named = [
        ((x, rate), name + (f" ×{len(members)}" if len(members) > 1 else ""), _area(sum(m.share for m in members)))
        for ((x, rate, _), members), name in zip(heaviest, short, strict=True)
    ]
    label_points(axes, named, avoid, theme)


def draw_receptive(axes: Axes, rows: Sequence[Row], title: str, theme: Theme) -> None:
    """Dots: what an element of each row sees, padding included. Lines: the largest so far, of each axis where they differ."""
    known = [(row.name, row.receptive_field) for row in rows if row.receptive_field]
    fields = [field for _, field in known]
    dress(axes, title, theme)
    if not fields:
        axes.text(0.5, 0.5, "no layer has a receptive field", transform=axes.transAxes, ha="center", color=theme.faint)
        return
    axes.grid(True, axis="y", color=theme.line, linewidth=0.7)
    rank = len(fields[0])
    alike = all(len(set(field)) == 1 for field in fields)
    names = ("all axes",) if alike else {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}[rank]
    for axis, (name, colour) in enumerate(zip(names, (theme.memory, theme.compute, theme.cache), strict=False)):
        sizes = [field[axis] for field in fields]
        largest = list(itertools.accumulate(sizes, max))  # a branch that sees less leaves the line where it was
        axes.step(range(len(sizes)), largest, where="post", color=colour, linewidth=1.8, label=f"{name}: {largest[-1]}")
        axes.scatter(range(len(sizes)), sizes, s=7, color=colour, alpha=0.7, linewidths=0)
    axes.legend(loc="upper left", frameon=False, labelcolor=theme.ink, fontsize=9)
    axes.set_ylabel("input elements that one sees")
    axes.margins(x=0.01, y=0.1)
    axes.set_ylim(bottom=0)
    ticks = _sections([name for name, _ in known])
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=30, ha="right", rotation_mode="anchor", fontsize=8)


def draw_time(axes: Axes, rows: Sequence[Row], title: str, theme: Theme, linked: str = "") -> None:
    """Time by module, each bar divided by what limits its rows; modules beyond the first `BARS` are one bar."""
    ordered = sorted(_by_module(rows).items(), key=lambda item: -sum(item[1].values()))
    bars, rest = ordered[:BARS], ordered[BARS:]
    if rest:
        bars.append(
            (f"{len(rest)} other{'s' * (len(rest) > 1)}", {r: sum(parts.get(r, 0.0) for _, parts in rest) for r in MEANINGS})
        )
    total = sum(row.seconds for row in rows) or 1.0
    longest = max((sum(parts.values()) for _, parts in bars), default=1.0)
    dress(axes, title, theme)
    first = {name: next(at for at, row in enumerate(rows) if (row.name + ".").startswith(name + ".")) for name, _ in ordered}
    for place, (name, parts) in enumerate(bars):
        start = 0.0
        for roof in MEANINGS:
            seconds = parts.get(roof, 0.0)
            drawn = axes.barh(place, seconds, left=start, color=getattr(theme, roof), height=0.72)
            if linked and name in first:
                tell(drawn[0], f"{linked}{first[name]}", f"{name}: {si(seconds, 's')} limited by {MEANINGS[roof]}")
            start += seconds
        text = f"{si(start, 's')}, {share(start / total)}"
        axes.annotate(text, (start, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=theme.ink)
    axes.set_yticks(range(len(bars)), apart([name for name, _ in bars], 28), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.28)
    axes.xaxis.set_major_formatter(EngFormatter(unit="s", sep=" "))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _legend(axes, {roof for _, parts in bars for roof, seconds in parts.items() if seconds}, theme, below=True)


def _by_module(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Seconds by what limits them, by module path: as many parts of the path as keep the modules to about `BARS`."""
    gathered: dict[str, dict[str, float]] = {}
    for depth in (4, 3, 2, 1):
        gathered = {}
        for row in rows:
            parts = gathered.setdefault(".".join(row.name.split(".")[:depth]), {})
            parts[_roof(row.bound)] = parts.get(_roof(row.bound), 0.0) + row.seconds
        if len(gathered) <= BARS + 10:
            break
    return gathered


def blank_figure(width: float, height: float, theme: Theme) -> Figure:
    """A figure of this width and height in inches, which is drawn without a display."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, theme: Theme) -> None:
    """Title, colours and frame of every picture."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=11, fontweight="bold")
    axes.tick_params(which="both", colors=theme.faint, labelcolor=theme.ink, labelsize=9)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(side in ("left", "bottom"))


def _legend(axes: Axes, roofs: Collection[str], theme: Theme, measured: bool = False, below: bool = False) -> None:
    entries: list[Any] = []
    for roof in MEANINGS:
        if roof in roofs:
            label = MEANINGS[roof] if below else f"limited by {MEANINGS[roof]}"
            entries.append(axes.scatter([], [], s=50, color=getattr(theme, roof), label=label))
    if measured:
        entries.append(axes.scatter([], [], s=34, marker="D", facecolors=theme.paper, edgecolors=theme.ink, label="measured"))
    if entries:
        place: dict[str, Any] = {"loc": "lower right"}
        if below:
            place = {
                "loc": "upper center",
                "bbox_to_anchor": (0.5, -0.07),
                "ncols": 4,
                "columnspacing": 1.2,
                "handletextpad": 0.2,
            }
        axes.legend(handles=entries, frameon=False, labelcolor=theme.ink, fontsize=9, **place)


Point = tuple[float, float]


def label_points(
    axes: Axes, named: Sequence[tuple[Point, str, float]], avoid: Sequence[tuple[Point, float]], theme: Theme
) -> None:
    """Name the points (where, text, dot's area), each at the first of several places where it covers no other text, none of
    the dots to avoid and not the picture's edge; a point without such a place stays without a name."""
    figure = axes.figure.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout decides where the axes are
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    pixel = figure.dpi / 72
    occupied = [text.get_window_extent(renderer) for text in axes.texts]
    legend = axes.get_legend()
    occupied += [legend.get_window_extent(renderer)] if legend else []
    for at, area in avoid:
        x, y = axes.transData.transform(at)
        radius = math.sqrt(area / math.pi) * pixel
        occupied.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))
    for at, text, area in named:
        probe = axes.text(0, 0, text, fontsize=8.5)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        x, y = axes.transData.transform(at)
        for reach, angle in itertools.product((4, 14, 26, 40, 56, 74), (0, 180, 40, 140, -40, -140, 90, -90)):
            radius = (math.sqrt(area / math.pi) + reach) * pixel
            dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            left = x + dx - (0 if dx > 1 else extent.width if dx < -1 else extent.width / 2)
            box = Bbox.from_bounds(left, y + dy - extent.height / 2, extent.width, extent.height)
            if frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) and not box.count_overlaps(occupied):
                occupied.append(box)
                side = "left" if dx > 1 else "right" if dx < -1 else "center"
                place: dict[str, Any] = {"xytext": (dx / pixel, dy / pixel), "textcoords": "offset points"}
                if reach > 4:  # below all texts, so that no line runs through one
                    arrow = {"arrowstyle": "-", "color": theme.faint, "linewidth": 0.7}
                    axes.annotate("", at, arrowprops=arrow, zorder=5, **place)
                paper = {"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
                look: dict[str, Any] = {"fontsize": 8.5, "color": theme.ink, "bbox": paper, "zorder": 6}
                axes.annotate(text, at, ha=side, va="center", **look, **place)
                break


def _area(part: float) -> float:
    """A dot's area in points^2 for a share of the time; the smallest can still be seen."""
    return 16 + 1400 * part


def _roof(bound: str) -> str:
    return ROOFS.get(bound, "launch")


def receptive_says_something(rows: Sequence[Row]) -> bool:
    """Whether receptive fields grow: where all layers see one size, or the whole input, a picture has nothing to say."""
    return len({row.receptive_field for row in rows if row.receptive_field}) > 2


def _sections(names: Sequence[str], limit: int = 16) -> dict[int, str]:
    """Position and name of the rows where a new module begins. Names are cut to a few parts of the path, so that there are few
    of them."""
    for depth in (3, 2, 1):
        heads = [".".join(name.split(".")[:depth]) for name in names]
        if len(set(heads)) <= limit + 8:
            break
    ticks: dict[int, str] = {}
    last, section = -math.inf, None
    for place, head in enumerate(heads):
        if head != section and place - last >= len(names) / limit:
            ticks[place], last, section = head, place, head
    return dict(zip(ticks, apart([*ticks.values()], 16), strict=True))
