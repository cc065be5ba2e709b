"""Architectures for videos against vit-pytorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import CLOSE, Case, alive, check_export, check_parity, check_signature, far, inputs, make_ours, ours, theirs

VIDEO = {
    "image_size": 32,
    "image_patch_size": 16,
    "frames": 4,
    "frame_patch_size": 2,
    "num_classes": 10,
    "dim": 32,
    "heads": 2,
    "mlp_dim": 48,
}
PLAIN = {**VIDEO, "depth": 2}
WIDE = {"image_size": (32, 48), "image_patch_size": (8, 16)}
SHAPE, WIDE_SHAPE = (3, 4, 32, 32), (3, 4, 32, 48)
ENCODER = {**VIDEO, "spatial_depth": 2, "temporal_depth": 1}
TOGETHER = {**VIDEO, "spatial_depth": 2, "temporal_depth": 2, "variant": "factorized_self_attention"}
CCT = {"img_size": 32, "num_frames": 4, "embedding_dim": 24, "num_layers": 2, "num_heads": 2, "num_classes": 10}
TIME = {"frame_kernel_size": 2, "frame_padding": 1, "frame_stride": 2, "frame_pooling_kernel_size": 3}
TIME = {**TIME, "frame_pooling_stride": 2, "frame_pooling_padding": 1}
CASES = {
    "vit_3d": Case("vit_3d.ViT", PLAIN, SHAPE),
    "vit_3d, mean": Case("vit_3d.ViT", {**PLAIN, "pool": "mean", "dim_head": 16}, SHAPE),
    "vit_3d, not square": Case("vit_3d.ViT", {**PLAIN, **WIDE, "heads": 1, "dim_head": 32}, WIDE_SHAPE),
    "vit_3d, a shorter video": Case("vit_3d.ViT", PLAIN, (3, 2, 32, 32)),
    "simple_vit_3d": Case("simple_vit_3d.SimpleViT", {**PLAIN, "channels": 1}, (1, 4, 32, 32)),
    "simple_vit_3d, not square": Case("simple_vit_3d.SimpleViT", {**PLAIN, **WIDE, "dim": 36}, WIDE_SHAPE),
    "vivit, encoder": Case("vivit.ViViT", ENCODER, SHAPE),
    "vivit, encoder, mean": Case("vivit.ViViT", {**ENCODER, **WIDE, "pool": "mean"}, WIDE_SHAPE),
    "vivit, encoder, no flash": Case("vivit.ViViT", {**ENCODER, "use_flash_attn": False}, SHAPE),
    "vivit, together": Case("vivit.ViViT", TOGETHER, SHAPE),
    "vivit, together, mean": Case("vivit.ViViT", {**TOGETHER, **WIDE, "pool": "mean"}, WIDE_SHAPE),
    "vivit, together, a shorter video": Case("vivit.ViViT", {**TOGETHER, "use_flash_attn": False}, (3, 2, 32, 32)),
    "cct_3d": Case("cct_3d.CCT", CCT, SHAPE),
    "cct_3d, learned": Case("cct_3d.CCT", {**CCT, "positional_embedding": "learnable", "mlp_ratio": 2}, SHAPE),
    "cct_3d, none": Case("cct_3d.CCT", {**CCT, **TIME, "n_conv_layers": 2, "positional_embedding": "none"}, SHAPE),
    "cct_3d, not square": Case("cct_3d.CCT", {**CCT, "img_size": (32, 48)}, WIDE_SHAPE),
    "cct_2": Case("cct_3d.cct_2", {"img_size": 16, "num_frames": 2, "num_classes": 10}, (3, 2, 16, 16)),
    "cct_2, wide kernels": Case("cct_3d.cct_2", {"img_size": 32, "num_frames": 2, "kernel_size": 7}, (3, 2, 32, 32)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_class_is_theirs(case: Case) -> None:
    check_parity(case)


@pytest.mark.parametrize("name", ["vit_3d.ViT", "simple_vit_3d.SimpleViT", "vivit.ViViT"])
def test_constructor_is_theirs(name: str) -> None:
    """CCT's names the arguments that theirs takes as *args and **kwargs."""
    check_signature(name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_export_gives_what_eager_gives(case: Case, tmp_path: Path) -> None:
    check_export(case, tmp_path)


@pytest.mark.parametrize("case", [case for name, case in CASES.items() if "vivit" in name and "shorter" not in name])
def test_vivit_masks_frames_as_theirs(case: Case) -> None:
    torch.manual_seed(0)
    reference = alive(theirs(case.name)(**case.arguments))
    mine = ours(case.name)(**case.arguments).eval()
    mine.load_state_dict(reference.state_dict())
    x = inputs(case.shape, 3, 1)
    mask = torch.tensor([[True] * 4, [True, True, False, True], [False, True, True, True]])
    with torch.no_grad():
        assert far(mine(x, mask=mask), reference(x, mask=mask)) <= CLOSE
        assert far(mine(x), reference(x, mask=mask)) > 1e-3


def test_vivit_in_eval_drops_nothing() -> None:
    """Theirs drops attention weights in eval too."""
    mine = make_ours(Case("vivit.ViViT", {**ENCODER, "dropout": 0.5}, SHAPE))
    x = inputs(SHAPE, 1, 1)
    with torch.no_grad():
        assert torch.equal(mine(x), mine(x))


def test_vivit_has_the_name_of_the_readme() -> None:
    assert ours("vivit.ViT") is ours("vivit.ViViT")


@pytest.mark.parametrize("name", ["cct_4", "cct_6", "cct_7", "cct_8", "cct_14", "cct_16"])
def test_sizes_of_cct_are_theirs(name: str) -> None:
    arguments = {"img_size": 16, "num_frames": 1, "num_classes": 2}
    got, want = (find(f"cct_3d.{name}")(**arguments).state_dict() for find in (ours, theirs))
    assert {key: value.shape for key, value in got.items()} == {key: value.shape for key, value in want.items()}


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("vit_3d.ViT", {**PLAIN, "image_patch_size": 15}, "image_patch_size"),
        ("vit_3d.ViT", {**PLAIN, "frame_patch_size": 3}, "frame_patch_size"),
        ("vit_3d.ViT", {**PLAIN, "pool": "max"}, "pool"),
        ("simple_vit_3d.SimpleViT", {**PLAIN, "frames": 5}, "frames"),
        ("simple_vit_3d.SimpleViT", {**PLAIN, "dim": 8}, "dim"),
        ("vivit.ViViT", {**ENCODER, "image_size": 30}, "image_size"),
        ("vivit.ViViT", {**ENCODER, "pool": "max"}, "pool"),
        ("vivit.ViViT", {**ENCODER, "variant": "joint"}, "variant"),
        ("vivit.ViViT", {**TOGETHER, "temporal_depth": 1}, "temporal_depth"),
        ("cct_3d.CCT", {**CCT, "num_heads": 5}, "num_heads"),
        ("cct_3d.CCT", {**CCT, "positional_embedding": "fixed"}, "positional_embedding"),
        ("cct_3d.CCT", {**CCT, "padding": 0, "img_size": 4}, "img_size"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ours(name)(**arguments)
