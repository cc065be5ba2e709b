"""What a comparison concludes from measurements and from records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.artifact import Artifact, Manifest, staged
from vitdeploy.bench.sessions import Measured
from vitdeploy.bench.stats import LatencyStats
from vitdeploy.errors import UsageError
from vitdeploy.pipeline.compare import Row, by_measure, compare, ratios_to_first, with_latency
from vitdeploy.report.comparison import comparison_page, print_comparison
from vitdeploy.spec import ModelSpec


def row(folder: str, **facts: Any) -> Row:
    base: dict[str, Any] = {"model": "m", "backend": "onnxruntime", "precision": "fp32", "bytes": 9_000_000}
    base |= {"verified": "verified", "error": 1e-6, "top1": (4, 4), "drop_pp": None}
    return Row(folder=folder, **base | facts)


def measured(ms: float, *, noise: float = 0.01, batch: int = 1) -> Measured:
    turns = [[ms / 1e3 * (1 + noise * ((i * 7) % 5 - 2))] * 3 for i in range(10)]
    stats = LatencyStats.from_seconds([s for turn in turns for s in turn], batch)
    return Measured("m", batch, stats, turns, None, {"threads": 1, "device": "cpu"})


def artifact(folder: Path, p50: float | None, **facts: Any) -> Path:
    bench = None
    if p50 is not None:
        latency = {"p50": p50, "p95": p50, "p99": p50}
        bench = {"latency_ms": latency, "batch": 1, "threads": 1, "device": "cpu", **facts.pop("bench", {})}
    verification = {"passed": True, "outputs": {"logits": {"rel_max": 0.01}}}
    made: dict[str, Any] = {"verification": verification, "environment": {"cpu": "C"}, "bench": bench} | facts
    with staged(folder) as stage:
        (stage.folder / "model.onnx").write_bytes(b"x" * 1000)
        return stage.commit(Manifest(ModelSpec("m"), request={"backend": "onnxruntime"}, **made)).folder


def test_fastest_wins_with_the_interval_of_its_ratio_to_the_next() -> None:
    rows = [row("a"), row("b", backend="openvino"), row("c")]
    said = by_measure(rows, {0: measured(9.0), 1: measured(3.0), 2: measured(6.0)})
    assert said.startswith("openvino fp32 (b) wins here: 2.000 times as fast as onnxruntime fp32 (c), 95 % interval [")


def test_nothing_wins_when_the_interval_holds_one() -> None:
    noisy = replace(measured(3.0), turns=[[0.003 * (0.9 + 0.02 * ((i * 3) % 10))] for i in range(10)])
    assert by_measure([row("a"), row("b")], {0: measured(3.0), 1: noisy}).startswith("No winner: ")


def test_nothing_wins_when_it_failed_its_verification_or_runs_another_batch() -> None:
    rows = [row("a"), row("b", verified="failed")]
    assert by_measure(rows, {0: measured(9.0), 1: measured(3.0)}).startswith("No winner: fewer than two")
    said = by_measure([row("a"), row("b")], {0: measured(9.0), 1: measured(3.0, batch=4)})
    assert said == "No winner: they run batches of 1 and 4. Name one with --batch."


def test_ratios_are_of_one_run_alone() -> None:
    found = ratios_to_first(4, {0: measured(9.0), 2: measured(3.0), 3: measured(3.0, batch=2)})
    assert found[0] is not None
    assert found[2] is not None
    assert (found[0].median, found[1], found[2].median, found[3]) == (1.0, None, pytest.approx(3.0), None)
    assert ratios_to_first(2, {1: measured(3.0)}) == [None, None]


def test_records_tell_the_lowest_when_they_are_of_one_machine(tmp_path: Path, capsys: Any) -> None:
    folders = [artifact(tmp_path / "a", 9.0), artifact(tmp_path / "b", 3.0), artifact(tmp_path / "c", None)]
    found = compare(folders, bench=False)
    assert [one.p50 for one in found.rows] == [9.0, 3.0, None]
    assert found.rows[0].bytes == 1000
    assert found.rows[0].error == 0.01
    assert "/b) has the lowest p50, 3 ms; runs apart give no interval." in found.verdict
    print_comparison(found)
    assert "record" in capsys.readouterr().out
    assert found.to_dict()["artifacts"][1]["measured"] is False


@pytest.mark.parametrize("other", [{"environment": {"cpu": "D"}}, {"bench": {"batch": 8}}, {"bench": {"threads": 2}}])
def test_records_tell_nothing_when_they_are_of_several_machines(tmp_path: Path, other: dict[str, Any]) -> None:
    folders = [artifact(tmp_path / "a", 9.0), artifact(tmp_path / "b", 3.0, **other)]
    assert compare(folders, bench=False).verdict.startswith("No winner: the records are of several")


def test_record_is_kept_when_the_artifact_does_not_run_here(tmp_path: Path) -> None:
    folders = [artifact(tmp_path / "a", 9.0), artifact(tmp_path / "b", 3.0)]
    found = compare(folders, duration=0.1)
    assert [one.measured for one in found.rows] == [False, False]
    assert all(one.why_not for one in found.rows)  # a thousand x are no model
    assert found.rows[1].p50 == 3.0


def test_page_escapes_what_the_folders_say() -> None:
    poison = "<script>alert(1)</script>"
    found = compare_of([row(poison, model=poison, precision=poison), row("b", why_not=poison)])
    page = comparison_page(found)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 5


def compare_of(rows: list[Row]) -> Any:
    from vitdeploy.pipeline.compare import Comparison

    shown = [with_latency(one, measured(3.0 + i)) for i, one in enumerate(rows)]
    return Comparison(shown, ratios_to_first(len(rows), {0: measured(3.0)}), "No winner: none.")


def test_one_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name two or more"):
        compare([artifact(tmp_path / "a", 9.0)])
    assert Artifact.load(tmp_path / "a")
