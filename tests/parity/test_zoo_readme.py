"""The examples of vit-pytorch's README, with one word changed in their imports."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

import pytest
import torch
from timm_import import import_timm

import_timm()  # declares what torchvision lacks, which vit-pytorch imports
TRAINERS = ("DistillWrapper", "SimMIM", "MAE", "MPP", "MP3", "Dino", "EsViTTrainer")  # not architectures
CONTINUED = ("import ", "from ")  # an example that has neither goes on where the last one ended


def examples() -> list[str]:
    """Each with what it goes on from in front, but for those of trainers and what goes on from them."""
    try:
        readme = str(metadata("vit-pytorch").get_payload())
    except PackageNotFoundError:
        return []
    found: list[str] = []
    before = ""
    for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL):
        before = block if block.lstrip().startswith(CONTINUED) else before + block
        if not any(re.search(rf"\b{name}\b", before) for name in TRAINERS):
            found.append(before)
    return found


def told_shapes(example: str) -> dict[str, tuple[int, ...]]:
    """What comments say of the shapes of variables, but for one that forgets the batch."""
    if "vit_for_small_dataset import ViT" in example:
        return {"preds": (4, 1000)}
    lines = re.findall(r"^(\w+)(?:, \w+)? = .*# \(([\d, ]+)\)", example, flags=re.MULTILINE)
    return {name: tuple(int(size) for size in sizes.split(",")) for name, sizes in lines}


def test_there_are_examples() -> None:
    pytest.importorskip("vit_pytorch")
    assert len(examples()) > 40


@pytest.mark.parametrize("example", examples(), ids=lambda text: re.findall(r"from vit_pytorch\S* import .*", text)[0])
def test_example_runs_with_the_import_changed(example: str) -> None:
    if "nystrom" in example:
        pytest.importorskip("nystrom_attention")
    if "x_transformers" in example:
        pytest.importorskip("x_transformers")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    with torch.no_grad():
        exec(example.replace("vit_pytorch", "vitdeploy.models"), names)
    for name, shape in told_shapes(example).items():
        assert tuple(names[name].shape) == shape
        assert bool(names[name].isfinite().all())
