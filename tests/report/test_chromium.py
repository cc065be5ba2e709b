"""report.html and a comparison's page in a real browser, without a network, at the sizes of a phone and a desk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.artifact import Manifest
from vitdeploy.bench.stats import Ratio
from vitdeploy.pipeline.compare import Comparison, Row
from vitdeploy.report.comparison import comparison_page
from vitdeploy.report.html import report

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path(os.environ.get("VITDEPLOY_CHROMIUM", "/usr/bin/chromium"))
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")

PHONE, DESKTOP = (360, 740), (1200, 900)
# Per text element: its colour's contrast with the nearest background behind it (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const back = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const said = [...document.querySelectorAll('h1, h2, p, dt, dd, li, th, td, summary, caption, figcaption, svg text')];
  return Math.min(...said.map(e => { const style = getComputedStyle(e);
    const a = light(parse(e.closest('svg') ? style.fill : style.color).slice(0, 3)), b = light(back(e));
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }));
}"""
OUTSIDE = """() => [...document.querySelectorAll('svg text')].filter(e => {
  const box = e.getBoundingClientRect(), page = e.closest('svg').getBoundingClientRect();
  return box.width && (box.left < page.left - 1 || box.right > page.right + 1); }).map(e => e.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, file: Path, size: tuple[int, int], scheme: str) -> tuple[Any, list[str]]:
    """The page, and what the console and the network said."""
    said: list[str] = []
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True).new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    return page, [one for one in said if not one.startswith("data:")]


def comparison() -> Comparison:
    latency = {"p50": 9.8, "p95": 10.1, "p99": 11.0, "batch": 1, "threads": 1}
    first = Row("deit-fp32", "deit", "onnxruntime", "fp32", 22_800_000, "verified", 8e-7, (4, 4), 0.0, latency, True)
    second = Row("deit-int8", "deit", "openvino", "int8", 6_200_000, "failed", 0.03, (3, 4), 0.4, latency, True)
    third = Row("deit-trt", "deit", "tensorrt", "fp16", None, "none", None, None, None, {}, False, "There is no GPU.")
    return Comparison([first, second, third], [Ratio(1, 1, 1), Ratio(2.5, 2.4, 2.6), None], "deit-int8 wins here.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_pages_fit_and_read_well(
    browser: Any, manifest: Manifest, failed: Manifest, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    pages = {"good": report(manifest), "failed": report(failed), "compared": comparison_page(comparison())}
    for name, text in pages.items():
        file = tmp_path / f"{name}.html"
        file.write_text(text, encoding="utf-8")
        page, said = opened(browser, file, size, scheme)
        assert said == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(CONTRAST) >= 4.5
        page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.context.close()


def test_tables_are_printed_when_they_are_shut(browser: Any, manifest: Manifest, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report(manifest), encoding="utf-8")
    page, _ = opened(browser, file, DESKTOP, "dark")
    cell = page.locator("details td").first
    assert not cell.is_visible()
    page.emulate_media(media="print")
    assert cell.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
    page.context.close()
