from __future__ import annotations

import pytest

from vitdeploy.bench.parts import Parts
from vitdeploy.report.tables import parts_line


def parts(compute: list[float], enqueue: list[float]) -> Parts:
    return Parts.from_seconds(
        {"h2d": [1e-4], "compute": compute, "d2h": [1e-5], "enqueue": enqueue, "latency": compute}
    )


def test_parts_summarise_each_in_milliseconds() -> None:
    found = parts([0.001, 0.002, 0.003], [0.0001]).to_dict()
    assert found["compute"]["p50"] == pytest.approx(2.0)
    assert found["compute"]["max"] == pytest.approx(3.0)
    assert found["h2d"]["count"] == 1
    assert parts_line(found) == ("latency 2   host to device 0.1   GPU compute 2   device to host 0.01   enqueue 0.1")


def test_parts_are_empty_on_a_cpu() -> None:
    assert Parts.from_seconds({}).to_dict() == {}
    assert Parts.from_seconds({}).warnings == []


@pytest.mark.parametrize(
    ("compute", "enqueue", "says"),
    [
        ([0.001] * 20, [0.0005] * 20, ""),
        ([0.001] * 20, [0.00081] * 20, "Enqueue-bound"),
        ([0.001] * 20, [0.00079] * 20, ""),
        ([0.001, 0.00106] * 10, [0.0001] * 20, "Unstable"),
        ([0.001, 0.00104] * 10, [0.0001] * 20, ""),
    ],
)
def test_warnings_keep_to_trtexecs_limits(compute: list[float], enqueue: list[float], says: str) -> None:
    found = parts(compute, enqueue).warnings
    assert [warning.split(":")[0] for warning in found] == ([says] if says else [])
