"""Every architecture of the zoo through the whole export: each precision, fixed and dynamic batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_zoo_family import VIT
from test_zoo_nest import CASES as NEST
from test_zoo_pyramids import CASES as PYRAMIDS
from test_zoo_sampling import ATS
from test_zoo_video import CASES as VIDEOS
from test_zoo_windows import CASES as WINDOWS

from vitdeploy import api
from vitdeploy.models import build_zoo, zoo

FIRST = {
    case.name.replace(".", ":"): case
    for cases in (NEST, VIDEOS, WINDOWS, PYRAMIDS)
    for case in reversed(cases.values())
}
QUICK = ("sep_vit", "xcit", "vivit", "na_vit_nested_tensor_packed")


def small(entry: zoo.Entry) -> dict[str, Any]:
    """Options that build it small: as its parity test does, or else as a ViT."""
    case = FIRST.get(entry.target)
    if case is not None:
        frames = {"frames": case.shape[1]} if len(case.shape) == 4 else {}
        return {"arguments": case.arguments, "image_size": case.shape[-2:], **frames}
    more = {"cls_depth": 1, "num_residual_streams": 2, "length": 100, "slots": 4}
    given = ATS if entry.name == "ats_vit" else {**VIT, **more}
    known = build_zoo.parameters(entry)
    return {"arguments": {key: value for key, value in given.items() if key in known}, "image_size": (64, 64)}


@pytest.mark.parametrize("batch", [1, (1, 2, 4)], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in zoo.names()])
def test_architecture_is_exported_and_proven(name: str, precision: str, batch: Any, tmp_path: Path) -> None:
    int8 = {"calib_random": True, "calib_images": 32, "tolerance": 0.5}  # a little more: few channels, random weights
    artifact = api.export(
        zoo.PREFIX + name,
        precision=precision,
        batch=batch,
        bench=False,
        out=tmp_path / "made",
        **small(zoo.find(name)),
        **(int8 if precision == "int8" else {}),
    )
    assert artifact.manifest.verification is not None
    assert artifact.manifest.verification["passed"]
