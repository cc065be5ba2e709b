"""report.html: well formed, whole in itself, and deaf to what is written into a manifest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from vitdeploy.artifact import Manifest
from vitdeploy.report.charts import bins, clipped, histogram
from vitdeploy.report.html import report
from vitdeploy.report.reading import TEXTS, cases_told, figure, size_of, worst
from vitdeploy.report.texts import texts
from vitdeploy.spec import ModelSpec

VOID = {"meta", "link", "br"}
DRAWN = {"rect", "line", "circle"}


class Reader(HTMLParser):
    """Refuses what is not closed in order; keeps tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        self.said += data

    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]


def test_page_is_well_formed_and_has_every_section(manifest: Manifest) -> None:
    page = Reader(report(manifest))
    sections = ("Asked and applied", "Verification", "Latency", "Other devices", "Plans that were tried")
    for title in (*sections, "Ops by time", "Quantised layers", "Ops that run", "How it was made", "Environment"):
        assert title in page.said
    assert "✓ Verified" in page.said
    assert [tag for tag in page.names() if tag == "h1"] == ["h1"]


def test_layers_and_ops_are_told_in_numbers(manifest: Manifest) -> None:
    said = Reader(report(manifest)).said
    assert "All 5 layers that were compared" in said
    rows = said.replace("\n", "")
    for row in ("blocks.2.fcGemm0.02", "blocks.4.fcGemmnot finite", "Gemm3.276.2%", "Softmax0.921.4%"):
        assert row in rows


def test_page_needs_no_network_and_runs_no_script(manifest: Manifest) -> None:
    text = report(manifest)
    page = Reader(text)
    assert "script" not in page.names()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    sources = {value for _, facts in page.tags for name, value in facts.items() if name in ("src", "href")}
    assert sources == {"data:,"}


def test_every_plot_is_followed_by_its_numbers_and_named(manifest: Manifest) -> None:
    names = Reader(report(manifest)).names()
    plots = [i for i, name in enumerate(names) if name == "svg"]
    assert len(plots) == 9  # errors, error by layer, distribution, ops by time, devices, plans, layers, ops, steps
    for i in plots:
        assert names[i + 1] == "title"
        assert names[i + 3] == "desc"
        rest = names[i:]
        assert "table" in rest[: rest.index("/figure")]


def test_tables_have_headers_when_they_have_rows(manifest: Manifest) -> None:
    page = Reader(report(manifest))
    scopes = [facts.get("scope") for tag, facts in page.tags if tag == "th"]
    assert set(scopes) == {"col", "row"}
    assert page.names().count("table") == page.names().count("thead")


@pytest.mark.parametrize(
    "poison", ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</style>&lt;", "]]>"]
)
def test_hostile_texts_stay_texts(hostile: Callable[[str], Manifest], poison: str) -> None:
    text = report(hostile(poison))
    page = Reader(text)
    assert not {"script", "img"} & set(page.names())
    assert page.names().count("style") == 1
    assert not any(name.startswith("on") for _, facts in page.tags for name in facts)
    assert page.said.count(poison) > 50
    assert "Pixel 9" in page.said


@pytest.mark.parametrize("name", ["report.md", "model-card.md"])
def test_devices_are_inert_when_markdown_is_written(hostile: Callable[[str], Manifest], name: str) -> None:
    text = texts(hostile("<b>[x](mailto@y)|"))[name]
    lines = [line for line in text.splitlines() if line.startswith("| Pixel 9")]
    assert len(lines) == 1
    assert "<b>" not in lines[0]
    assert "\\[x\\](mailto" in lines[0]


def test_failure_is_told_first_with_the_node(failed: Manifest) -> None:
    page = Reader(report(failed))
    assert page.said.index("✗ Failed verification") < page.said.index("Asked and applied")
    assert "more than 0.4" in page.said
    assert "First node that departs" in page.said
    assert "Conv node_conv2d" in page.said


def test_page_is_whole_when_the_manifest_is_bare() -> None:
    page = Reader(report(Manifest(ModelSpec("m"))))
    assert "Not verified" in page.said
    assert "Random weights" in page.said


@pytest.mark.parametrize("odd", [None, 3, "x", [1, None, "x"], {"a": 1}, [{"p50": "x", "name": {}}], {"outputs": 3}])
def test_page_is_whole_when_records_are_of_the_wrong_kind(manifest: Manifest, odd: Any) -> None:
    data = manifest.to_dict()
    for name in ("verification", "bench"):
        Reader(report(replace(manifest, **{name: odd if isinstance(odd, dict) else {"outputs": odd, "parts": odd}})))
    applied = dict.fromkeys(data["applied"], odd)
    devices = [{"device": odd, "verification": odd, "latency": odd, "threads": odd}]
    Reader(report(replace(manifest, applied=applied, devices=devices, steps=[{"name": odd}], environment={"x": odd})))


def test_texts_are_the_same_bytes_when_the_manifest_went_through_a_file(manifest: Manifest) -> None:
    files = {"model.onnx": {"bytes": 6_200_000, "sha256": "0"}, "report.md": {"bytes": 9, "sha256": "0"}}
    made = replace(manifest, files=files)
    written = texts(made)
    assert tuple(written) == TEXTS
    assert texts(Manifest.from_json(made.to_json())) == written
    turned = {name: made.environment[name] for name in reversed(made.environment)}
    assert texts(replace(made, environment=turned, files={"model.onnx": files["model.onnx"]})) == written


def test_figures_read_well() -> None:
    assert [figure(x) for x in (None, True, "x", float("nan"), 0, 8.47e-7, 0.0289, 1899.4, 2.5)] == [
        *("", "", "", "", "0", "8.5e-7", "0.0289", "1899", "2.5"),
    ]


def test_worst_output_is_the_one_without_a_number() -> None:
    outputs = {"a": {"rel_max": 0.5}, "b": {"rel_max": None}, "c": {"rel_max": 0.7}}
    assert worst({"outputs": outputs})["name"] == "b"
    assert worst({"outputs": {"a": {"rel_max": 0.5}, "c": {"rel_max": 0.7}}})["name"] == "c"


def test_size_is_of_the_model_alone() -> None:
    files = {"model.onnx": {"bytes": 5}, "model.onnx.data": {"bytes": 7}, "report.html": {"bytes": 100}}
    assert size_of({**files, "pareto.svg": {"bytes": 9}}) == 12
    assert size_of({}) is None


def test_histogram_counts_every_sample() -> None:
    edges, counts = bins([1.0, 1.0, 2.0, 9.0, 5.5])
    assert (sum(counts), edges[0], edges[-1]) == (5, 1.0, 9.0)
    assert bins([3.0, 3.0])[1] == [2]


def test_marks_stand_beside_their_line_when_it_is_late() -> None:
    drawn = histogram("ms", [0.0, 1.0, 2.0], [3, 1], [("p50", 0.5), ("p99", 1.9)])
    (early,) = re.findall(r"<text[^>]*>p50 0.5<", drawn)
    (late,) = re.findall(r"<text[^>]*>p99 1.9<", drawn)
    assert 'dx="5.0"' in early
    assert "text-anchor" not in early
    assert 'dx="-5.0"' in late
    assert 'text-anchor="end"' in late


def test_inputs_that_are_told_alike_are_counted() -> None:
    data, seed = {"source": "data", "batch": 1}, {"source": "synthetic seed 0", "batch": 2}
    assert cases_told({"cases": [data, seed, data, data]}) == ["3 times data, batch 1", "synthetic seed 0, batch 2"]
    assert cases_told({"cases": "none"}) == []


def test_long_names_keep_both_ends() -> None:
    assert clipped("blocks.0.attn.proj", 40) == "blocks.0.attn.proj"
    short = clipped("stages.0.blocks.0.attention.projection.weight", 20)
    assert len(short) == 20
    assert short.startswith("stages.0")
    assert short.endswith("on.weight")
