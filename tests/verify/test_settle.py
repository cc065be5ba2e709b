"""A file that misses fp32's bound by little is right when it keeps it against the model in float64, and only then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vitdeploy.models import build
from vitdeploy.pipeline.export import judge, settle
from vitdeploy.pipeline.request import ExportRequest
from vitdeploy.spec import InputSpec
from vitdeploy.verify.collect import Collected, eager_outputs, make_cases
from vitdeploy.verify.compare import Verification


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


def settled(
    monkeypatch: pytest.MonkeyPatch, eager_off: float, file_off: float, precision: str = "fp32", rebuilt: Any = None
) -> Verification:
    """The verdict when eager float32 and the file lie that far from the exact outputs, relative to the largest."""
    cases = make_cases(InputSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3), (1,))
    exact = [case["logits"] for case in eager_outputs(Net().double(), cases, double=True)]
    request = ExportRequest(model="net", precision=precision)
    moved = [[{"logits": x + np.float32(off * np.abs(x).max())} for x in exact] for off in (eager_off, file_off)]
    collected = Collected(moved[1], None)
    monkeypatch.setattr(build, "rebuild", lambda spec: rebuilt or SimpleNamespace(module=Net()))
    spec: Any = SimpleNamespace(input=None)
    return settle(request, spec, cases, collected, judge(request, cases, moved[0], collected))


def test_float64_decides_when_both_round_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settled(monkeypatch, 6e-6, -6e-6)
    assert found
    assert found.to_dict()["reference"] == "PyTorch in float64"


def test_float32_is_the_reference_when_the_file_equals_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, 0, 5e-6).reference == "PyTorch in float32"


@pytest.mark.parametrize(("eager_off", "file_off"), [(0, 1.5e-5), (-1e-6, 4e-5), (0, 0.1), (0, np.nan)])
def test_a_file_that_is_wrong_stays_wrong(monkeypatch: pytest.MonkeyPatch, eager_off: float, file_off: float) -> None:
    found = settled(monkeypatch, eager_off, file_off)
    assert not found
    assert found.reference == "PyTorch in float32"


def test_the_first_verdict_stands_when_the_model_cannot_be_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not settled(monkeypatch, 6e-6, -6e-6, rebuilt=SimpleNamespace(module=None))
