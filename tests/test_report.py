"""Units, files in four formats, pictures whose labels do not touch, and the HTML report, also in a real browser."""

import csv
import io
import json
import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from html.parser import HTMLParser

import pytest
import sympy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from costmodel.device import find_device
from costmodel.networks.crosscheck import Comparison
from costmodel.problem import ConvProblem, Pass
from costmodel.reports import export, html, pictures
from costmodel.reports.options import rate_named
from costmodel.reports.report import Report, Total, study
from costmodel.reports.rows import LayerRow, figures, with_measured
from costmodel.reports.units import duration, exact, interval, share, si

NASTY = 'block.<b>"x" & y|z_1'


def row(i, *, macs=0, seconds=1e-5, bound="DRAM", name=None):
    moved = 3_000_000 + 777 * i
    return LayerRow(
        name=name or f"stage{i // 6}.block{i % 3}.conv{i}",
        op="conv2d" if macs else "relu",
        input_shape=(8, 64, 56, 56),
        output_shape=(8, 64, 56, 56),
        parameters=1000 * i,
        useful_macs=macs,
        dense_macs=macs + 1000,
        useful_flops=2 * macs,
        dense_flops=2 * macs + 2000,
        other_flops=0 if macs else 12345,
        bytes=moved,
        intensity=2 * macs / moved,
        bound=bound,
        seconds=seconds,
        share=0.0,
        known=i != 7,
        receptive_field=(3 + 2 * i, 5 + 2 * i),
    )


@pytest.fixture(scope="module")
def report():
    """Two dozen layers crowded into a corner of the roofline, some elementwise rows, a name that wants escaping."""
    rows = [row(i, macs=10**9 + 5 * 10**7 * i, seconds=2e-5 + 1e-6 * i, bound=("DRAM", "L2")[i % 2]) for i in range(24)]
    rows += [row(24, macs=9 * 10**10, seconds=3e-4, bound="arithmetic"), row(25, name=NASTY), row(26, bound="launch")]
    whole = sum(r.seconds for r in rows)
    rows = [replace(r, share=r.seconds / whole) for r in rows]
    macs = sum(r.useful_macs for r in rows)
    rest = {"dense_macs": macs, "useful_flops": 2 * macs, "dense_flops": 2 * macs, "other_flops": 9, "bytes": 10**9}
    device = find_device("h200")
    return Report(
        model="net.py:Net",
        inputs=((8, 3, 224, 224),),
        batch=8,
        device=device.name,
        arithmetic="bfloat16",
        peak=device.rate("bfloat16"),
        bandwidth=device.bandwidth * 1e9,
        parameters=12345,
        trainable=12345,
        timed="forward pass",
        totals=(
            Total("forward pass", macs, **rest, roofline_seconds=1e-4, seconds=whole, low=0.7 * whole, high=1.4 * whole),
            Total("training step", 3 * macs, **rest, roofline_seconds=3e-4),
        ),
        rows=tuple(rows),
        unknown={"aten.<mystery>": 3},
        notes=("branches & centres",),
        assumptions=("1 MAC is 2 FLOP.",),
        figures=tuple(figures(device)),
        checks=(Comparison("convolution", 10, 10, ""), Comparison("convolution_backward", 10, 40, "groups <i>& more")),
    )


# ---- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (4_089_184_256, "4.09 GB"),
        (1.28e18, "1.28 EB"),
        (3e22, "30000 EB"),
        (2.5e-6, "2.50 µB"),
        (9.999e-7, "1.00 µB"),
        (-1500, "-1.50 kB"),
    ],
)
def test_si_prefixes(value, text):
    assert si(value, "B") == text


def test_durations():
    assert [duration(s) for s in (2e-5, 59.9, 60, 853.33, 68266, 300_000, 4e5)] == [
        "20.0 µs",
        "59.9 s",
        "1 min 0 s",
        "14 min 13 s",
        "18 h 57 min",
        "3 d 11 h",
        "4 d 15 h",
    ]
    assert interval(2.72e-5, 5.44e-5) == "27.2 to 54.4 µs" and interval(5e-4, 1e-3) == "500 µs to 1.00 ms"
    assert share(0.0312) == "3.1 %" and exact(52428800, "B") == "52,428,800 B" and exact(989.4) == "989.4"


def test_rates_are_operations_a_second():
    assert rate_named("0.15TFLOPS") == (pytest.approx(0.15e12), "FLOP") and rate_named("6 GMAC/s") == (6e9, "MAC")
    for text in ("", "12", "0TFLOPS", "-1TFLOPS", "TFLOPS", "1.2.3TFLOPS", "1e999TFLOPS", "12TB/s"):
        with pytest.raises(ValueError, match="reads like"):
            rate_named(text)


# ---- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    macs: int = 3
    ratio: float = 1 / 3


@dataclass(frozen=True)
class Row:
    name: str = NASTY
    shape: tuple[int, ...] = (32, 64)
    which: Pass = Pass.FPROP
    inner: Inner = field(default_factory=Inner)
    jump: Fraction = Fraction(1, 2)
    problem: ConvProblem | None = None
    bad: float = float("nan")


def test_json_keeps_the_numbers_and_has_no_nan():
    conv = ConvProblem.conv((1, 3, 8, 8), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1))
    (found,) = json.loads(export.to_json([Row(problem=conv)]))
    assert found["inner"] == {"macs": 3, "ratio": 1 / 3} and found["shape"] == [32, 64] and found["which"] == "fprop"
    assert (found["jump"], found["bad"], found["problem"]) == (0.5, None, str(conv))


def test_csv_reads_back():
    (found,) = csv.DictReader(io.StringIO(export.to_csv([Row()])))
    assert found["name"] == NASTY and float(found["inner.ratio"]) == 1 / 3 and found["shape"] == "32x64"


def test_markdown_escapes_bars_and_names_mac():
    head, rule, line = export.to_markdown([Row()]).splitlines()
    unescaped = re.compile(r"(?<!\\)\|")
    assert len(unescaped.findall(head)) == len(unescaped.findall(rule)) == len(unescaped.findall(line)) == 9
    assert "inner MAC" in head and "---:" in rule and "0.333333" in line


def test_latex_escapes_what_latex_reads():
    text = export.to_latex([Row()])
    assert r"block.\textless{}b\textgreater{}" in text and r"\& y|z\_1" in text and text.count("&") - text.count(r"\&") == 2 * 7
    x = sympy.Symbol("x")
    assert "$x^{2}$" in export.to_latex([replace(Inner(), macs=x**2)])


def test_no_rows_give_no_table():
    assert [export.to_csv([]), export.to_markdown([]), export.to_latex([]), export.to_json([])] == ["", "", "", "[]\n"]


def test_write_replaces_in_one_step_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.txt"
    export.write(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="No space left"):
        export.write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_measured_names_must_be_rows(report):
    name = report.rows[0].name
    assert with_measured(report.rows, {name: 1e-3})[0].measured_seconds == 1e-3
    with pytest.raises(ValueError, match="nonsense"):
        with_measured(report.rows, {"nonsense": 1.0})


# ---- pictures -------------------------------------------------------------------------------------------------------


def texts(axes):
    renderer = axes.figure.figure.canvas.get_renderer()
    legend = axes.get_legend()
    found = [child for child in axes.get_children() if isinstance(child, Text)]  # titles too
    found += legend.get_texts() if legend else []
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in found if text.get_text()]


@pytest.mark.parametrize("name", ["roofline", "receptive", "time", "all"])
def test_labels_neither_overlap_nor_leave_the_picture(report, name):
    rows = with_measured(report.rows, {report.rows[24].name: 5e-4})
    figure = pictures.picture_named(name, replace(report, rows=tuple(rows)))
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = texts(axes)
        for i, (text, box) in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
            for other, its in boxes[:i]:
                assert not box.overlaps(its), (text, other)


def test_roofline_names_the_heaviest_and_says_what_is_left_out(report):
    axes = pictures.picture_named("roofline", report).axes[0]
    words = " ".join(text.get_text() for text in axes.texts)
    assert report.rows[24].name in words and "989 TFLOP/s peak, ridge at 206" in words
    assert "2 rows without a multiply-add" in axes.get_xlabel()


def test_dots_grow_with_their_share(report):
    axes = pictures.picture_named("roofline", report).axes[0]
    sizes = sorted(dot.get_sizes()[0] for dot in axes.collections if len(dot.get_offsets()))
    assert sizes[-1] == pytest.approx(16 + 1400 * report.rows[24].share) and sizes[0] < sizes[-1] / 4


def test_bars_add_up_to_the_whole_time(report):
    axes = pictures.picture_named("time", report).axes[0]
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(sum(row.seconds for row in report.rows))
    ends = {}
    for bar in axes.patches:  # one above another's end, never over it
        assert bar.get_x() == pytest.approx(ends.get(bar.get_y(), 0.0))
        ends[bar.get_y()] = bar.get_x() + bar.get_width()


def test_png_and_svg_are_reproducible(report):
    def make(form):
        return pictures.render(pictures.picture_named("time", report, pictures.DARK), form)

    assert make("png").startswith(b"\x89PNG") and make("png") == make("png")
    svg = make("svg").decode()
    assert svg == make("svg").decode() and pictures.DARK.paper in svg and "<svg" in svg and "<text" not in svg


def test_an_unknown_picture_is_refused(report):
    with pytest.raises(ValueError, match="roofline, receptive or time"):
        pictures.picture_named("pie", report)


# ---- HTML -----------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Checks that tags nest, and collects what a page would load and its ids."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_loads_nothing(report):
    text = html.page(report)
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and reader.loads == [] and len(reader.ids) == len(set(reader.ids))
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    words = " ".join(reader.words)
    for needed in (
        NASTY,
        "aten.<mystery> (3 x)",
        "groups <i>& more",
        "branches & centres",
        "useful MAC",
        "dense MAC",
        "datasheet",
    ):
        assert needed in words, needed
    assert "prefers-color-scheme:dark" in text and text.count("<svg") == 3
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(reader.ids)
    assert not re.search(r"#01010[1-8]", text)


def test_a_training_run_without_multiply_adds_takes_time():
    found = study("torch.nn:PReLU", [(4, 3, 8, 8)], find_device("h100"), "float32", "ieee", training=True, samples=10, epochs=3)
    _, step, run = found.totals
    assert run.useful_macs == 0 and run.seconds == pytest.approx(9 * step.seconds) and run.seconds > 0
