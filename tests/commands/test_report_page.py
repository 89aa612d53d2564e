"""The report in a real browser: complete, offline, readable on a phone and in both colour schemes."""

from __future__ import annotations

import html.parser
import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from run_marks import Marks, result

SECTIONS = (
    "verdict", "recipe", "pipeline", "data", "training", "metrics", "slices", "calibration", "users", "card"
)  # fmt: skip
CHARTS = {
    "chart-ratings", "chart-times", "chart-activity", "chart-popularity", "chart-curve-loss", "chart-accuracy",
    "chart-accuracy-unseen", "chart-slices-top_100_accuracy_unseen", "chart-slices-rmse", "chart-calibration",
    "chart-residuals",
}  # fmt: skip
VIEWS = [(width, scheme) for width in (1280, 375) for scheme in ("light", "dark")]
FAILED = "20260103-120000"

# WCAG 2.2, success criterion 1.4.3: 4.5 for text.
CONTRAST = """
const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const ground = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const found = rgb(getComputedStyle(one).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const bad = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const silent = ["SCRIPT", "TITLE", "DESC"].includes(element.tagName.toUpperCase());
  if (!own || silent || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const isSvg = element instanceof SVGElement;
  const a = luminance(rgb(isSvg ? style.fill : style.color));
  const b = luminance(ground(isSvg ? element.closest("svg").parentElement : element));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push(`${element.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return bad;
"""

# Text of the page and of the charts, in pixels on the screen; a chart of its own coordinates is scaled with them.
SMALL_TEXT = """
const small = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.getClientRects().length || element.tagName === "SCRIPT") continue;
  const svg = element.closest("svg");
  const inside = svg?.viewBox.baseVal?.width;
  const scale = inside ? svg.getBoundingClientRect().width / inside : 1;
  const size = parseFloat(getComputedStyle(element).fontSize) * scale;
  if (size < 11.5) small.push(`${element.textContent.trim().slice(0, 40)}: ${size.toFixed(1)}`);
}
return small;
"""

# Labels that reach out of their chart, or texts of the picture that reach out of it.
CLIPPED = """
const clipped = [];
for (const svg of document.querySelectorAll(".plot svg.main-svg, svg.dag")) {
  const frame = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    if (!box.width || !text.textContent.trim()) continue;
    const out = box.left < frame.left - 1 || box.right > frame.right + 1;
    if (out || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      clipped.push(`${svg.parentElement.closest("figure")?.id || "dag"}: ${text.textContent}`);
  }
}
return clipped;
"""

# What is wider than the screen without a container that scrolls.
OVERFLOWING = """
const width = document.documentElement.clientWidth;
const wide = [...document.querySelectorAll("body *")].filter((element) =>
  element.getClientRects().length && element.getBoundingClientRect().right > width + 1
  && !element.closest(".scroll, nav ul, .skip, svg, pre"));
const page = document.documentElement.scrollWidth > width ? ["the page"] : [];
return [...page, ...wide.map((element) => element.outerHTML.slice(0, 80))];
"""

# Plotly colours the text of a chart as the layout says.
TEXT_COLOUR = "return getComputedStyle(document.querySelector('.plot .xtick text')).fill"


@pytest.fixture(scope="module")
def report(first_run: Any, tandem: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report and the model card of a real MovieLens run, with what making them took."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    card = out.with_name("card.md")
    start, used = time.monotonic(), os.times()
    done = tandem(
        "report", first_run.result["run_id"], "--workdir", first_run.workdir, "--out", out, "--model-card", card
    )
    seconds, processor = time.monotonic() - start, sum(os.times()[2:4]) - sum(used[2:4])
    assert done.code == 0, done.stderr

    class Report:
        path, text, markdown, said = out, out.read_text(), card.read_text(), done
        clock = seconds, processor

    return Report


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, tandem: Callable[..., Any]) -> Path:
    """The report of a run that ended with an error in its second component, after a complete one."""
    marks = Marks(tmp_path_factory.mktemp("failed") / "work")
    marks.folder("20260102-120000", result=result("20260102-120000"), recipe={"name": "movielens"})
    for component in ("InteractionExampleGen", "StatisticsGen", "Trainer"):
        marks.step("20260102-120000", component)
    marks.folder(
        FAILED,
        recipe={"name": "movielens", "description": "<b>Films</b> & more", "data": {"columns": {"user_id": "u"}}},
        error="StatisticsGen failed: <script>alert(1)</script>\nMend the cause.",
        log="the whole story",
    )
    marks.step(FAILED, "InteractionExampleGen")
    marks.step(FAILED, "StatisticsGen", "failed")
    out = marks.workdir / "report.html"
    done = tandem("report", "--workdir", marks.workdir, "--out", out)
    assert done.code == 0, done.stderr
    return out


# --- of a real run ----------------------------------------------------------------------------------------------------


def test_report_is_one_file_below_5_mb_within_20_s(report: Any) -> None:
    assert report.path.stat().st_size < 5_000_000
    assert sorted(path.name for path in report.path.parent.iterdir()) == ["card.md", "report.html"]
    clock, processor = report.clock
    # On a machine that is busy with something else, the clock measures that.
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert (processor if busy else clock) < 20, report.clock
    assert report.said.stderr == "" and str(report.path) in report.said.stdout


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_every_section_and_chart_is_shown_and_readable(report: Any, browser: Browser, width: int, scheme: str) -> None:
    browser.open(report.path, width, scheme)
    assert browser.console() == []
    assert browser.run("return document.documentElement.dataset.drawn") == "yes"
    sections = browser.run(
        "return [...document.querySelectorAll('main > section')]"
        ".map((one) => [one.id, one.querySelector('h2').innerText])"
    )
    assert [id_ for id_, _ in sections] == list(SECTIONS) and all(title for _, title in sections)
    drawn = browser.run(
        "return [...document.querySelectorAll('figure')]"
        ".filter((one) => one.querySelector('.plot svg.main-svg .cartesianlayer .trace'))"
        ".map((one) => one.id)"
    )
    assert set(drawn) >= CHARTS
    assert len(drawn) == browser.run("return document.querySelectorAll('figure').length")
    assert browser.run(OVERFLOWING) == []
    assert browser.run(CLIPPED) == []
    assert browser.run(SMALL_TEXT) == []
    assert browser.run(CONTRAST) == []


def test_no_network_requests(report: Any, browser: Browser) -> None:
    browser.open(report.path)
    asked = [address for address in browser.requests() if not address.startswith(("data:", "blob:"))]
    assert asked == [report.path.as_uri()]
    assert browser.run("return performance.getEntriesByType('resource').map((one) => one.name)") == []


def test_charts_follow_the_colour_scheme(report: Any, browser: Browser) -> None:
    browser.open(report.path, scheme="light")
    light = browser.run(TEXT_COLOUR)
    browser.scheme("dark")
    browser.wait(f"{TEXT_COLOUR} !== {light!r}")
    browser.scheme("light")
    browser.wait(f"{TEXT_COLOUR} === {light!r}")
    assert browser.console() == []


def test_links_lead_to_existing_artifacts(report: Any) -> None:
    links = re.findall(r'href="([^"#]+)"', report.text)
    local = [link for link in links if not link.startswith("data:")]
    assert len(local) > 15
    for link in local:
        assert not link.startswith(("/", "http")), link
        assert (report.path.parent / link).exists(), link


def test_report_is_accessible(report: Any, browser: Browser) -> None:
    browser.open(report.path)
    levels = browser.run("return [...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for selector, missing in {
        "html": ":not([lang])",
        "[role=img], [role=region]": ":not([aria-label]):not([aria-labelledby])",
        "th": ":not([scope])",
    }.items():
        script = "return [...document.querySelectorAll(arguments[0])].filter((one) => one.matches(arguments[1]) && "
        script += "!one.closest('.card')).length"
        assert browser.run(script, selector, missing) == 0, selector
    assert (
        browser.run("return [...document.querySelectorAll('table')].filter((one) => !one.querySelector('th')).length")
        == 0
    )
    assert browser.run("return [...document.querySelectorAll('.plot')].every((one) => one.ariaLabel.length > 40)")


def test_report_has_the_results_of_the_run(report: Any, first_run: Any, browser: Browser) -> None:
    browser.open(report.path)
    text = {id_: browser.run(f"return document.getElementById('{id_}').innerText") for id_ in SECTIONS}
    found = first_run.result
    metrics, rows = found["metrics"], found["rows"]
    assert "Blessed and pushed" in text["verdict"]
    assert f"{100 * metrics['top_100_accuracy']:.1f}\u00a0%" in text["metrics"]
    assert f"{metrics['rmse']:.3f}" in text["metrics"]
    for name in ("train", "eval", "catalogue", "read"):
        assert f"{rows[name]:,}" in text["data"]
    for component in found["seconds"]:
        assert component in text["pipeline"]
    version = Path(found["pushed_model"]).name
    assert version in text["verdict"] and f"Version {version}" in text["pipeline"]
    assert "interactions.csv" in text["pipeline"]
    assert "None: the data conforms to the schema." in text["data"]
    assert "user_id" in text["data"] and "L∞" in text["data"]
    # Films that everyone knows: the sample users get titles, not ids.
    assert "A new user" in text["users"]
    names = browser.run("return [...document.querySelectorAll('#users li')].map((one) => one.innerText)")
    assert len(names) > 30 and all(re.match(r"[A-Z0-9]\D+", name) for name in names)
    assert text["users"].count("Recommended") == 4


def test_charts_have_their_values_as_tables(report: Any, browser: Browser, first_run: Any) -> None:
    browser.open(report.path)
    rows = browser.run(
        "return [...document.querySelectorAll('#chart-ratings tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert sum(float(row[1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.5)
    counts = browser.run(
        "return [...document.querySelectorAll('#chart-calibration tbody tr')].map((row) => row.cells[3].textContent)"
    )
    assert sum(int(count.replace(",", "")) for count in counts) == first_run.result["rows"]["eval"]


def test_old_browser_shows_tables_instead_of_charts(report: Any, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "old.html"
    page.write_text(report.text.replace("new DecompressionStream", "new NoSuchStream", 1))
    browser.open(page)
    assert browser.run("return document.documentElement.dataset.drawn") == "no"
    assert browser.run("return document.querySelector('#chart-ratings table').getBoundingClientRect().height") > 50


def test_the_model_card_is_markdown_and_in_the_page(report: Any, first_run: Any, browser: Browser) -> None:
    for heading in ("Intended use", "Data", "Metrics", "Limitations", "Reproduction"):
        assert f"\n## {heading}\n" in report.markdown
    assert report.markdown.startswith("# Model card: movielens\n")
    assert f"| RMSE | {first_run.result['metrics']['rmse']:.3f} |" in report.markdown
    browser.open(report.path)
    headings = browser.run("return [...document.querySelectorAll('#card h4')].map((one) => one.textContent)")
    assert headings == ["Intended use", "Data", "Metrics", "Limitations", "Reproduction"]
    assert browser.run("return document.querySelectorAll('#card table').length") == 3


# --- of runs that did not get far -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_failed_run_has_a_report_with_the_error(failed: Path, browser: Browser, width: int, scheme: str) -> None:
    browser.open(failed, width, scheme)
    assert browser.console() == []
    verdict = browser.run("return document.getElementById('verdict').innerText")
    assert "Failed" in verdict and "failed in StatisticsGen" in verdict and "Mend the cause." in verdict
    # What comes from data and errors is text and nothing else.
    assert "<script>alert(1)</script>" in verdict
    assert "<b>Films</b> & more" in browser.run("return document.querySelector('header').innerText")
    assert browser.run("return [...document.querySelectorAll('main > section')].map((one) => one.id)") == list(SECTIONS)
    for check in (OVERFLOWING, CLIPPED, SMALL_TEXT, CONTRAST):
        assert browser.run(check) == []
    nodes = browser.run(
        "return [...document.querySelectorAll('.dag g')].map((one) => [one.classList[0], one.textContent.trim()])"
    )
    states = {text.split()[0]: state for state, text in nodes}
    assert states == {
        "InteractionExampleGen": "done",
        "StatisticsGen": "failed",
        "Trainer": "reached-not",
    }


class Balance(html.parser.HTMLParser):
    """Which elements are open."""

    VOID = ("meta", "link", "br", "hr", "input", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_upper_bounds_are_shown_for_synthetic_data_only(failed: Path, report: Any) -> None:
    assert "Upper bound" not in failed.read_text() + report.text


def test_the_html_is_well_formed(failed: Path) -> None:
    balance = Balance()
    balance.feed(failed.read_text())
    assert balance.wrong == [] and balance.open == []


def test_failed_gates_are_shown_with_their_margins(marks: Marks, tandem: Callable[..., Any], browser: Browser) -> None:
    stopped = result("20260105-120000", pushed_model=None, blessed=False)
    stopped["verdict"]["blessed"] = False
    bound = stopped["verdict"]["bounds"][0]
    stopped["verdict"]["bounds"] = [
        bound,
        {
            **bound,
            "slice": {"user_activity": "light"},
            "measured": 0.2,
            "margin": -0.07,
            "passed": False,
            "examples": 20,
        },
        {**bound, "condition": "beats_baseline_by", "allowed": 0.0, "reference": 0.3, "limit": 0.3},
        {**bound, "condition": "may_drop", "allowed": 0.02, "limit": None, "margin": None, "reason": "no model yet"},
    ]
    long = "a value that is far too long for the width of a telephone"
    few = {"top_100_accuracy": 0.3, "rmse": 1.0}
    stopped["verdict"]["slices"] += [
        {"name": "city", "value": f"{long} {place}", "examples": 10_000 + place, "metrics": few} for place in range(30)
    ]
    stopped["verdict"]["slices"][2]["value"] = "</script><script>alert(1)</script>"
    stopped["best_possible"] = {"rmse": 0.7, "top_100_accuracy": 0.5, "mrr": 0.9}
    marks.folder("20260105-120000", result=stopped, recipe={"name": "movielens"})
    out = marks.workdir / "report.html"
    assert tandem("report", "--workdir", marks.workdir, "--out", out).code == 0
    browser.open(out)
    verdict = browser.run("return document.getElementById('verdict').innerText").replace("\u00a0", " ")
    assert "Not blessed" in verdict and "failed 1 of 4 gates" in verdict
    for told in ("users: light, 20 examples", "failed by 7.0 points", "passed by 13.0 points",
                 "≥ baseline", "skipped: no model yet"):  # fmt: skip
        assert told in verdict
    possible = browser.run(
        "return [...document.querySelectorAll('[aria-label=\"Upper bounds\"] tbody tr')].map((r) => r.innerText)"
    )
    # The model's RMSE is 0.9 and the baseline's 0.95; nobody measured mrr.
    assert [row.replace("\u00a0", " ").split("\t") for row in possible] == [
        ["RMSE", "0.950", "0.900", "0.700", "20%"],
        ["Top-100 accuracy", "30.0 %", "40.0 %", "50.0 %", "50%"],
    ]
    rows = browser.run("return [...document.querySelectorAll('#metrics tbody tr')].map((r) => r.innerText)")
    accuracy = next(row for row in rows if row.startswith("Top-100")).replace("\u00a0", " ").split("\t")
    assert accuracy[1:] == ["40.0 %", "30.0 % ✓", "41.0 % ✗"]
    slices = browser.run(
        "return [...document.querySelectorAll('#chart-slices-top_100_accuracy tbody th')].map((one) => one.textContent)"
    )
    # Those that every dataset has are always among those that are drawn.
    assert (slices[0], slices[-1], len(slices)) == ("users: light", "items: head", 24)
    browser.open(out, width=375)
    assert browser.console() == [] and browser.run("return document.documentElement.dataset.drawn") == "yes"
    for check in (OVERFLOWING, CLIPPED, SMALL_TEXT):
        assert browser.run(check) == []


def test_unwritable_path_is_bad_input(marks: Marks, tandem: Callable[..., Any], tmp_path: Path) -> None:
    marks.folder(FAILED, result=result(FAILED))
    done = tandem("report", "--workdir", marks.workdir, "--out", tmp_path / "nowhere" / "report.html")
    assert done.code == 2 and "--out" in done.stderr and "Traceback" not in done.stderr
    done = tandem("report", "2027", "--workdir", marks.workdir, "--out", tmp_path / "report.html")
    assert done.code == 2 and "id of a run or its prefix, got '2027'" in done.stderr
    assert not (tmp_path / "report.html").exists()
