"""ViT and SimpleViT against vit-pytorch's."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import Case, check_export, check_parity, check_signature

VIT = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}
CASES = {
    "vit": Case("vit.ViT", VIT),
    "vit, mean": Case("vit.ViT", {**VIT, "pool": "mean", "dim_head": 16}),
    "vit, one head": Case("vit.ViT", {**VIT, "heads": 1, "dim_head": 32}),
    "vit, tokens": Case("vit.ViT", {**VIT, "num_classes": 0}),
    "vit, not square": Case("vit.ViT", {**VIT, "image_size": (32, 64), "patch_size": (8, 16)}, (3, 32, 64)),
    "vit, a smaller image": Case("vit.ViT", VIT, (3, 32, 64)),
    "simple_vit": Case("simple_vit.SimpleViT", {**VIT, "channels": 1}, (1, 64, 64)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_class_is_theirs(case: Case) -> None:
    check_parity(case)


@pytest.mark.parametrize("name", sorted({case.name for case in CASES.values()}))
def test_constructor_is_theirs(name: str) -> None:
    check_signature(name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_export_gives_what_eager_gives(case: Case, tmp_path: Path) -> None:
    check_export(case, tmp_path)
