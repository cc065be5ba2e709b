"""Variants of ViT against vit-pytorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from zoo import Case, check_export, check_parity, check_signature, ours

VIT: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2}
VIT["mlp_dim"] = 48
WIDE = {**VIT, "image_size": (32, 64), "patch_size": (8, 16)}
CASES = {
    "deepvit": Case("deepvit.DeepViT", VIT),
    "deepvit, mean": Case("deepvit.DeepViT", {**VIT, "pool": "mean", "channels": 1}, (1, 64, 64)),
    "parallel_vit": Case("parallel_vit.ViT", {**VIT, "num_parallel_branches": 3}),
    "parallel_vit, not square": Case("parallel_vit.ViT", {**WIDE, "pool": "mean"}, (3, 32, 64)),
    "vit_for_small_dataset": Case("vit_for_small_dataset.ViT", VIT),
    "SPT": Case("vit_for_small_dataset.SPT", {"dim": 24, "patch_size": 16}),
    "vit_with_patch_merger": Case("vit_with_patch_merger.ViT", {**VIT, "patch_merge_num_tokens": 4}),
    "vit_with_patch_merger, late": Case("vit_with_patch_merger.ViT", {**WIDE, "patch_merge_layer": 2}, (3, 32, 64)),
    "PatchMerger": Case("vit_with_patch_merger.PatchMerger", {"dim": 24, "num_tokens_out": 4}, (9, 24)),
}
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "patch_size": ("deepvit.DeepViT", {**VIT, "patch_size": 24}),
    "pool": ("parallel_vit.ViT", {**VIT, "pool": "max"}),
    r"patch_size \(16, 8\)": ("vit_for_small_dataset.ViT", {**VIT, "patch_size": (16, 8)}),
    "image_size": ("vit_with_patch_merger.ViT", {**VIT, "image_size": 72}),
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


@pytest.mark.parametrize("says", BAD)
def test_constructor_names_the_argument_that_is_wrong(says: str) -> None:
    name, arguments = BAD[says]
    with pytest.raises(ValueError, match=says):
        ours(name)(**arguments)
