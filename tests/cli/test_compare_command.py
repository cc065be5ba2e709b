"""`vitdeploy compare` on real artifacts: in turn where they run, from the record where not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdeploy.artifact import Artifact
from vitdeploy.report.texts import texts

TIMES = ("--warmup", "0", "--duration", "0.1")


def test_artifacts_take_turns_and_the_page_is_written(cli: Callable[..., Any], work: Path) -> None:
    for name, more in (("a", ()), ("b", ("--fp16",))):
        run = cli("export", "tiny.py:make", *more, *TIMES, "--out", name)
        assert run.code == 0, run.err
    shutil.copytree(work / "a", work / "c")
    manifest = work / "c" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["request"]["backend"] = "gone"
    manifest.write_text(json.dumps(data))

    run = cli("compare", "a", "b", "c", *TIMES, "--json", "--html", "page.html")
    assert run.code == 0, run.err
    found = json.loads(run.out)
    rows = found["artifacts"]
    assert [row["precision"] for row in rows] == ["fp32", "fp16", "fp32"]
    assert [row["measured"] for row in rows] == [True, True, False]
    assert "gone" in rows[2]["why_not"]
    assert rows[2]["latency"]["p50"] == data["bench"]["latency_ms"]["p50"]
    assert rows[1]["ratio_to_first"]["low"] <= rows[1]["ratio_to_first"]["high"]
    assert rows[2]["ratio_to_first"] is None
    assert rows[0]["bytes"] == data["files"]["model.onnx"]["bytes"]
    assert "Latency and error" in (work / "page.html").read_text()

    run = cli("compare", "a", "c", "--no-bench")
    assert run.code == 0, run.err
    told = run.out.splitlines()
    assert told[0].split()[:4] == ["artifact", "model", "backend", "precision"]
    assert told[-1].startswith("By the records ")


def test_page_that_cannot_be_written_is_one_sentence(cli: Callable[..., Any], refused: Callable[..., str]) -> None:
    assert cli("export", "tiny.py:make", "--no-bench", "--out", "a").code == 0
    assert "Cannot write no/page.html" in refused("compare", "a", "a", "--no-bench", "--html", "no/page.html")


def test_texts_beside_an_artifact_are_those_of_its_manifest(exported: Path) -> None:
    artifact = Artifact.load(exported / "artifact")
    for name, text in texts(artifact.manifest).items():
        assert (artifact.folder / name).read_text(encoding="utf-8") == text
