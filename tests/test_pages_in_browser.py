"""Report pages in a real browser: headless Chromium opens every page of a finished run that has a champion.

Needs Chromium and its driver (Debian: chromium, chromium-driver). Where they are missing these tests are skipped on a
laptop, and fail where MTLOPS_BROWSER_TESTS or CI is set, so that CI cannot pass without them.
"""

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from mtlops.files import read_json
from mtlops.registry import Registry
from mtlops.report import write_report
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.train import train
from tests.monitoring.reports import REPORT
from tests.test_report import everything
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.xdist_group("browser")  # one run of the steps and one browser for all of them

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
"""--no-sandbox: CI runs as root in a container."""

PAGES = ("index", "validation", "training", "evaluation", "decision", "export", "everything", "drift")
"""All of them are of the run, but `everything` and `drift`: a small run has too few rows to find drift in, for one."""

SIZES = {"phone": 390, "desktop": 1280}
SCHEMES = ("light", "dark")

OTHER = ("train.seed=9", "train.epochs=3", "train.learning_rate=0.02", "gates.twins=always", "gates.slice_rows=3")
"""What the challenger is made with, so that every part of the pages has content."""

LEAST_CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3, of text in normal size."""

CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map(c => c / 255).map(
  c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
const ground = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
  if (c[3] === 255) return c; } throw new Error('no background'); };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
let checked = 0;
for (let n = walker.nextNode(); n; n = walker.nextNode()) {
  const e = n.parentElement;
  if (!n.textContent.trim() || !e.getClientRects().length || e.closest('title, desc')) continue;
  // Numbers on a cell of the heat map stand on two colours, one above the other: HEAT looks at them.
  const isPlot = e instanceof SVGElement;
  if (isPlot && e.classList.contains('middle') && e.previousElementSibling?.classList.contains('heat')) continue;
  const ink = light(rgba(isPlot ? getComputedStyle(e).fill : getComputedStyle(e).color)), sheet = light(ground(e));
  const ratio = (Math.max(ink, sheet) + 0.05) / (Math.min(ink, sheet) + 0.05);
  checked += 1;
  if (ratio < arguments[0]) found.push(`${ratio.toFixed(2)} ${e.tagName}.${e.getAttribute('class')} ${n.textContent}`);
}
return {checked, found};
"""
"""Text whose colour differs too little from what is behind it: relative luminance and ratio as WCAG defines them."""

HEAT = """
const lum = ([r, g, b]) => { const [x, y, z] = [r, g, b].map(c => c / 255).map(
  c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
const rgb = (s) => s.match(/[\\d.]+/g).slice(0, 3).map(Number);
return [...document.querySelectorAll('rect.heat')].map(cell => {
  const share = Number(getComputedStyle(cell).opacity), over = rgb(getComputedStyle(cell).fill);
  const under = rgb(getComputedStyle(cell.previousElementSibling).fill);
  const sheet = lum(over.map((c, i) => share * c + (1 - share) * under[i]));
  const ink = lum(rgb(getComputedStyle(cell.nextElementSibling).fill));
  return [share, (Math.max(ink, sheet) + 0.05) / (Math.min(ink, sheet) + 0.05)];
});
"""
"""The opacity of every cell of a confusion matrix, and the contrast of the number on it."""


@pytest.fixture(scope="module")
def reports(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All reports of a run whose model was compared with a champion."""
    root = tmp_path_factory.mktemp("judged")
    registry = Registry(str(root / "registry"))
    registry.promote(registry.publish(finished.bundle), expect=None, by="test", reason="the first")
    params, folder = finished.params(*OTHER), root / "reports"
    inputs = {**finished.paths("prepared", "encoder", "cache"), "trained": root / "trained"}
    train(params, **finished.paths("prepared", "encoder", "cache"), out=root / "trained",
          report=folder / "training.json")  # fmt: skip
    judged = {name: folder / f"{name}.json" for name in ("evaluation", "decision")}
    evaluate(params, **inputs, registry=str(root / "registry"), report=judged["evaluation"],
             decision=judged["decision"])  # fmt: skip
    export(params, **inputs, **judged, out=root / "bundle", report=folder / "export.json")
    write_report(folder / "validation.json", read_json(finished.root / "reports/validation.json", made_by=""))
    write_report(folder / "everything.json", everything())
    write_report(folder / "drift.json", REPORT)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        why = "needs Chromium and its driver: apt-get install chromium chromium-driver"
        if os.environ.get("CI") or os.environ.get("MTLOPS_BROWSER_TESTS"):
            pytest.fail(why)
        pytest.skip(why)
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def show(browser: webdriver.Chrome, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    """Opens a page on a screen of this width, in this colour scheme, with everything unfolded."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")


def ask(browser: webdriver.Chrome, script: str, *arguments: object) -> Any:
    return browser.execute_script(script, *arguments)


def test_the_run_has_every_page_and_every_judged_part(browser: webdriver.Chrome, reports: Path) -> None:
    assert {path.stem for path in reports.glob("*.html")} == set(PAGES)
    show(browser, reports / "evaluation.html")
    titles = ask(browser, "return [...document.querySelectorAll('h2')].map(title => title.textContent)")
    for part in ("Against the champion", "By slice", "Robust to small", "Does it behave", "Does sharing hurt", "Drift"):
        assert any(title.startswith(part) for title in titles), part


@pytest.mark.parametrize("name", PAGES)
def test_the_console_is_silent_and_nothing_is_fetched(browser: webdriver.Chrome, reports: Path, name: str) -> None:
    browser.get_log("browser")
    show(browser, reports / f"{name}.html")
    assert browser.get_log("browser") == []
    assert ask(browser, "return performance.getEntriesByType('resource').map(entry => entry.name)") == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_every_plot_is_drawn_and_nothing_is_cut_off(
    browser: webdriver.Chrome, reports: Path, name: str, size: str, scheme: str
) -> None:
    show(browser, reports / f"{name}.html", width=SIZES[size], scheme=scheme)
    assert ask(browser, "return document.documentElement.scrollWidth") <= SIZES[size]
    plots = ask(browser, """
        return [...document.querySelectorAll('svg, img')].map(plot => {
          const box = plot.getBoundingClientRect(), marks = plot.querySelectorAll('line, rect, circle, polyline');
          const size = mark => mark.getBoundingClientRect().width + mark.getBoundingClientRect().height;
          const drawn = [...marks].filter(mark => size(mark) > 0);
          return [box.width, box.height, drawn.length, plot.getAttribute('aria-label') || ''];
        })""")  # fmt: skip
    assert bool(plots) == (name in {"training", "evaluation", "everything", "drift"})
    for width, height, marks, words in plots:
        assert min(width, height) > 60, words
        assert marks > 2, words
        assert len(words) > 20
    texts = ask(browser, """
        return [...document.querySelectorAll('svg text')].filter(text => {
          const box = text.getBoundingClientRect(), plot = text.closest('svg').getBoundingClientRect();
          return box.left < plot.left - 1 || box.right > plot.right + 1 || box.bottom > plot.bottom + 1;
        }).map(text => text.textContent)""")  # fmt: skip
    assert texts == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_colours_follow_the_scheme_and_text_can_be_read(
    browser: webdriver.Chrome, reports: Path, name: str, scheme: str
) -> None:
    show(browser, reports / f"{name}.html", scheme=scheme)
    colour = ask(
        browser, "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert max(colour) < 60 if scheme == "dark" else min(colour) > 200
    contrast = ask(browser, CONTRAST, LEAST_CONTRAST)
    assert contrast["checked"] > 10
    assert contrast["found"] == []
    ask(
        browser, "document.querySelectorAll('rect.heat').forEach((c, i) => c.style.setProperty('--share', i % 11 / 10))"
    )
    cells = ask(browser, HEAT)
    assert bool(cells) == (name in {"evaluation", "everything"})
    assert [cell for cell in cells if cell[1] < LEAST_CONTRAST] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_link_resolves(browser: webdriver.Chrome, reports: Path, name: str) -> None:
    show(browser, reports / f"{name}.html")
    links = ask(browser, "return [...document.querySelectorAll('a')].map(a => [a.href, a.getAttribute('href')])")
    places = ask(browser, "return [...document.querySelectorAll('[id]')].map(part => part.id)")
    assert links
    assert len(places) == len(set(places))
    for address, written in links:
        parts = urlsplit(address)
        assert parts.scheme == "file", written
        assert Path(unquote(parts.path)).exists(), written
        if parts.fragment:
            assert parts.fragment in places, written
    if name == "index":
        assert {written for _, written in links} == {f"{page}.html" for page in PAGES} - {"index.html"}


@pytest.mark.parametrize("name", PAGES)
def test_the_basics_for_screen_readers(browser: webdriver.Chrome, reports: Path, name: str) -> None:
    show(browser, reports / f"{name}.html")
    assert ask(browser, "return document.documentElement.lang") == "en"
    assert browser.title.endswith("· mtlops")
    levels = ask(browser, "return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert ask(browser, "return document.querySelectorAll('main').length") == 1
    assert ask(browser, "return [...document.querySelectorAll('th:not([scope])')].length") == 0
    assert ask(browser, "return [...document.querySelectorAll('a')].filter(a => !a.textContent.trim()).length") == 0
