"""The step of an export that measures: what the profiler does must not cost what was measured."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitdeploy.backends import isolate
from vitdeploy.bench import sessions
from vitdeploy.errors import BackendError
from vitdeploy.pipeline.request import ExportRequest, Listener, Steps

ROOM = import_module("vitdeploy.pipeline.export")


@pytest.mark.parametrize("fails", [False, True])
def test_latency_stays_when_the_profiler_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool) -> None:
    def profile(*_: Any, **__: Any) -> dict[str, float]:
        if fails:
            raise BackendError("The profiler cannot.\nMore of it.")
        return {"Gemm": 1.5}

    notes: list[str] = []
    monkeypatch.setattr(isolate, "call", profile)
    monkeypatch.setattr(sessions, "bench_sessions", lambda *_, **__: [SimpleNamespace(to_dict=lambda: {"p50": 2.0})])
    monkeypatch.setattr(ROOM, "bench_line", lambda _: "measured")
    steps = Steps(Listener())
    monkeypatch.setattr(steps, "note", notes.append)
    found = ROOM.bench(ExportRequest(model="net", out=tmp_path / "net"), tmp_path / "model.onnx", steps)
    assert found == {"p50": 2.0, "ops_ms": {} if fails else {"Gemm": 1.5}}
    assert notes == (["Ops were not timed one by one: The profiler cannot."] if fails else [])
