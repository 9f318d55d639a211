"""The HTML report in a real browser: it sorts, filters, folds, leads from pictures to rows, saves, changes its theme, and fits.

Needs Debian's `chromium`, or Chrome, on the path; without one these tests are skipped and say so.
"""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
import torch
from torch import nn

import costmodel
from costmodel.reports import html
from costmodel.reports.report import report_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on the path: the report was not tried in a browser")


class Net(nn.Module):
    """Two stages of the same names within, a grouped convolution and one without equal paddings."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
        self.stage2 = nn.Sequential(nn.Conv2d(8, 8, (5, 1), stride=2), nn.ReLU(), nn.Conv2d(8, 8, 4, padding="same"))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage2(self.stage1(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    return costmodel.trace(Net(), (2, 4, 64, 64))


@pytest.fixture(scope="module")
def report(network):
    return report_of(network.on("h100"), model='net.py:"Net" & more')


def probed(text, script, folder, size="1320,900", dark=False):
    """What `script`, an expression, is on the page once it is loaded."""
    asked = f'document.title="§"+JSON.stringify(await (async()=>{{{script}}})())'
    probe = f'<script>addEventListener("load",async()=>{{{asked}}})</script>'
    path = folder / "report.html"
    path.write_text(text.replace("</body>", probe + "</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", f"--window-size={size}"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={int(not dark)}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(unescape(re.search("<title>§(.*?)</title>", page, re.S)[1]))


USE = """
const rows=()=>[...document.querySelectorAll("table.sort tbody tr")];
const seen=()=>rows().filter(r=>!r.hidden&&!r.classList.contains("module")).map(r=>r.dataset.path);
const head=name=>[...document.querySelectorAll("table.sort th button")].find(b=>b.textContent===name);
const filter=document.querySelector("input.filter"),found={};
const type=text=>{filter.value=text;filter.dispatchEvent(new Event("input"))};
found.all=seen();
head("time").click();found.slow=seen();head("time").click();found.quick=seen();head("time").click();found.again=seen();
type("stage2 conv2d");found.filtered=seen();found.count=document.querySelector(".count").textContent;type("");
const fold=path=>rows().find(r=>r.classList.contains("module")&&r.dataset.path===path).querySelector("button");
fold("stage1").click();found.folded=seen();
const links=[...document.querySelectorAll("figure svg a")].map(a=>a.getAttribute("xlink:href")||a.getAttribute("href"));
found.dead=links.filter(link=>!document.querySelector(link));found.links=links.length;
location.hash="#"+rows().find(r=>r.dataset.path==="stage1.0").id;await new Promise(r=>setTimeout(r,100));
found.unfolded=seen();found.marked=getComputedStyle(document.querySelector("tr:target td")).backgroundColor;
found.told=[...document.querySelectorAll("figure svg title")].map(t=>t.textContent);
document.querySelector("button.fold").click();found.none=seen();document.querySelector("button.fold").click();
document.querySelector("button.csv").click();
const link=document.querySelector("a[download]");found.name=link.download;
found.csv=decodeURIComponent(link.href.split(",").slice(1).join(","));
found.paper=[];const button=document.querySelector("button.theme");
for(const _ of [0,1,2,3]){found.paper.push([button.textContent,getComputedStyle(document.body).backgroundColor]);button.click()}
found.wide=document.documentElement.scrollWidth<=innerWidth;
return found
"""
WHITE, BLACK = "rgb(255, 255, 255)", "rgb(20, 24, 29)"


@needs_browser
def test_the_page_is_used(report, tmp_path):
    """One visit, dark by the reader's choice."""
    found = probed(html.page(report), USE, tmp_path, dark=True)
    names = [row.name for row in report.rows]
    by_time = sorted(report.rows, key=lambda row: -row.seconds)
    assert found["all"] == found["again"] == names
    assert found["slow"][0] == by_time[0].name and found["quick"][0] == by_time[-1].name and len(found["slow"]) == len(names)
    assert found["filtered"] == ["stage2.0", "stage2.2"] and found["count"] == f"2 of {len(names)} rows"
    assert found["folded"] == [name for name in names if not name.startswith("stage1.")]
    assert found["none"] == [name for name in names if "." not in name] and found["unfolded"] == names
    assert found["dead"] == [] and found["links"] >= 5 and found["marked"] == "rgb(74, 61, 18)"
    assert any(words.startswith("stage1.0: ") and "limited by" in words for words in found["told"])
    assert any(words.startswith("stage1.0: ") and "of the time" in words for words in found["told"])
    lines = found["csv"].splitlines()
    assert len(lines) == 1 + len(names) and lines[1].startswith("stage1.0,conv2d,2x8x64x64,3")
    assert found["name"].endswith(".csv") and found["wide"]
    dark, light = ["theme: dark", BLACK], ["theme: light", WHITE]
    assert found["paper"] == [["theme: auto", BLACK], light, dark, ["theme: auto", BLACK]]


NARROW = """
const tight=[...document.querySelectorAll("p,h1,.tile,.tools")].filter(e=>e.scrollWidth>e.clientWidth+1).length;
const small=Math.min(...[...document.querySelectorAll("figure svg text")].map(t=>t.getBoundingClientRect().height));
const cells=[...document.querySelectorAll("table.sort tbody tr:not([hidden]) td.name")].map(c=>c.innerText);
return {width:innerWidth,page:document.documentElement.scrollWidth,tight,small,cells}
"""


@needs_browser
def test_it_is_readable_at_500_pixels(report, tmp_path):
    found = probed(html.page(report), NARROW, tmp_path, "500,900")
    assert found["page"] <= found["width"] <= 500 and found["tight"] == 0
    assert found["small"] >= 8
    assert len([words for words in found["cells"] if words.strip() == "0"]) == 2  # of both stages: the tree says which


@needs_browser
def test_two_stand_side_by_side(network, tmp_path):
    both = network.on("h100").compare(network.on("t4"))
    script = """
const tables=[...document.querySelectorAll("table.sort")];const ids=[...document.querySelectorAll("[id]")].map(e=>e.id);
const links=[...document.querySelectorAll("figure svg a")].map(a=>a.getAttribute("xlink:href")||a.getAttribute("href"));
return {rows:tables.map(t=>t.tBodies[0].rows.length),twice:ids.length-new Set(ids).size,
dead:links.filter(link=>!document.querySelector(link)),fits:document.documentElement.scrollWidth<=innerWidth}
"""
    found = probed(both.to_html(), script, tmp_path, "1100,900")
    assert found["twice"] == 0 and found["dead"] == [] and found["fits"]
    assert found["rows"][0] == len(both.pairs) and found["rows"][1] == found["rows"][2] > len(both.pairs)


@needs_browser
@pytest.mark.parametrize(("size", "pictures"), [("1400,900", True), ("500,900", False)])
def test_side_by_side_nothing_that_tells_them_apart_is_cut_off(network, tmp_path, size, pictures):
    """Pictures where there is room for two, and at any width the times and their ratio."""
    script = """
const right=cells=>Math.max(...[...cells].map(c=>c.getBoundingClientRect().right));
const figures=[...document.querySelectorAll(".beside figure")];
return {width:innerWidth,figures:figures.map(f=>f.scrollWidth<=f.clientWidth+1),page:document.documentElement.scrollWidth,
cells:right(document.querySelectorAll("table.pairs td:last-child, table.pairs th:last-child"))}
"""
    found = probed(network.on("h100").compare(network.on("t4")).to_html(), script, tmp_path, size)
    assert found["page"] <= found["width"] and found["cells"] <= found["width"] and len(found["figures"]) == 4
    assert not pictures or all(found["figures"])


def test_rows_say_kernel_stride_padding_groups_and_plan(report):
    text = html.page(report)
    rows = {row.name: row for row in report.rows}
    assert rows["stage2.0"].kernel_size == (5, 1) and rows["stage2.0"].stride == (2, 2) and rows["stage1.2"].groups == 2
    assert rows["stage2.2"].padding == "1:2x1:2" and rows["stage1.1"].kernel_size is None
    cells = re.search(r'<tr id="row-\d+" data-path="stage2.2">(.*?)</tr>', text)[1]
    for words in ("4x4", "1:2x1:2", rows["stage2.2"].plan):
        assert words in cells
    assert rows["stage2.2"].plan.startswith("fprop:")


def test_a_receptive_field_is_drawn_where_it_says_something(report):
    assert "<h2>Receptive field</h2>" in html.page(report)
    flat = costmodel.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), (4, 8)).on("h100").report()
    assert "Receptive field" not in re.sub(r"<title>.*?</title>", "", html.page(flat).split("<section>")[0])


def test_labels_of_long_names_differ():
    """Bars and dots of modules that differ in the middle of their paths."""
    layers = {f"encoder_of_some_length_block{n}_and_a_rather_long_tail_alike": nn.Conv2d(4, 4, n + 1) for n in range(4)}

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict(layers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.inner.values():
                x = layer(x)
            return x

    from costmodel.reports import pictures

    found = costmodel.trace(Deep(), (2, 4, 64, 64)).on("h100").report()
    labels = [text.get_text() for text in pictures.picture_named("time", found).axes[0].get_yticklabels()]
    assert len(labels) == len(set(labels)) == 4 and max(map(len, labels)) <= 28
    names = [text.get_text() for text in pictures.picture_named("roofline", found).axes[0].texts if "…" in text.get_text()]
    assert len(names) == len(set(names)) > 1


@pytest.mark.parametrize("linked", ["", "row-"])
def test_pictures_are_reproducible(report, linked):
    made = [html.inline(html.picture_named("roofline", report, html.INK, linked=linked), "roofline", "label") for _ in range(2)]
    assert made[0] == made[1] and ("<title>" in made[0]) == bool(linked)
