"""NesT and MobileViT against vit-pytorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from zoo import Case, check_export, check_parity, check_signature, ours

NEST: dict[str, Any] = {"image_size": 64, "patch_size": 4, "num_classes": 10, "dim": 16, "heads": 2}
NEST |= {"num_hierarchies": 3, "block_repeats": (1, 1, 2)}
MOBILE: dict[str, Any] = {"image_size": (64, 128), "dims": (16, 24, 32), "num_classes": 10}
MOBILE |= {"channels": (4, 8, 12, 12, 16, 16, 20, 20, 24, 24, 32), "depths": (1, 1, 1)}
CASES = {
    "nest": Case("nest.NesT", NEST),
    "nest, the same everywhere": Case(
        "nest.NesT", {**NEST, "block_repeats": 1, "channels": 1, "mlp_mult": 2}, (1, 64, 64)
    ),
    "mobile_vit": Case("mobile_vit.MobileViT", MOBILE, (3, 64, 128)),
    "mobile_vit, no expansion": Case("mobile_vit.MobileViT", {**MOBILE, "expansion": 1}, (3, 64, 128)),
}
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "patch_size": ("nest.NesT", {**NEST, "patch_size": 5}),
    "num_hierarchies": ("nest.NesT", {**NEST, "image_size": 72}),
    "heads": ("nest.NesT", {**NEST, "heads": 3}),
    "block_repeats": ("nest.NesT", {**NEST, "block_repeats": (1, 1)}),
    "dims": ("mobile_vit.MobileViT", {**MOBILE, "dims": (16, 24)}),
    "channels": ("mobile_vit.MobileViT", {**MOBILE, "channels": (4, 8)}),
    "image_size": ("mobile_vit.MobileViT", {**MOBILE, "image_size": (64, 96)}),
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


@pytest.mark.parametrize("argument", BAD)
def test_constructor_names_the_argument_that_is_wrong(argument: str) -> None:
    name, arguments = BAD[argument]
    with pytest.raises(ValueError, match=argument):
        ours(name)(**arguments)
