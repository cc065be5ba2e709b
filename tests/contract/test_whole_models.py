"""Whole models on every backend that runs here, or has a stand-in: proven, alive, and what was asked for.

Each is made in all precisions that the backend has.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy import api
from vitdeploy.backends.registry import backends
from vitdeploy.spec import CALIBRATED, PRECISIONS

MODELS = ("mobilevit_xs", "levit_256", "deit_tiny_patch16_224")
# Bytes of a weight that the precision may not go below; what is not a product's weight keeps more.
LEAST = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int4-weights": 0.5}


def cases() -> list[tuple[str, str, str]]:
    return [(backend, name, precision) for backend in backends() for name in MODELS for precision in PRECISIONS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "precision"), cases(), ids=lambda value: str(value))
def test_whole_model_is_proven(tmp_path: Path, name: str, model: str, precision: str) -> None:
    can = backends()[name].capabilities()
    if not can.installed or not (can.devices or backends()[name].stand_in):
        pytest.skip(f"{name}: {can.reason or 'no device'}")
    if precision not in can.precisions:
        pytest.skip(f"{name} has no {precision} here")
    options = {"calib_random": True, "calib_images": 16} if precision in CALIBRATED else {}
    made = api.export(model, precision=precision, backend=name, bench=False, out=tmp_path / "made", **options)
    manifest = made.manifest
    assert manifest.verification is not None
    assert manifest.verification["passed"]
    assert len(manifest.verification["cases"]) >= 4
    error = manifest.verification["outputs"]["logits"]["rel_max"]
    assert 0 < error <= manifest.verification["bounds"]["rel_max"]
    # A converter that takes a branch for dead leaves its weights out.
    parameters = manifest.graph["parameters"]
    written = sum(file["bytes"] for path, file in manifest.files.items() if not path.endswith((".md", ".html")))
    assert written >= 0.97 * LEAST.get(precision, 1.0) * parameters
    census = manifest.applied["census"]
    if census is not None:
        assert sum(census["compute"].values()) >= 20
    if precision.startswith("int8") and precision != "int8-weights" and census is not None:
        assert census["compute"]["int8"] > 0
