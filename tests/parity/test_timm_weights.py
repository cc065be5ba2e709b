"""Checkpoint conversion against timm's own, and strict loading of timm's state dicts."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from timm_import import import_timm
from torch import Tensor, nn

from vitdeploy.models import catalog, weights

timm = import_timm()


def ours(name: str, size: int, num_classes: int = 10) -> nn.Module:
    entry, _ = catalog.find(name)
    module, _, kind = entry.target.partition(":")
    cls = getattr(importlib.import_module(f"vitdeploy.models.{module}"), kind)
    return cls(**entry.arguments(num_classes, (size, size))).eval()


def theirs(name: str, size: int, num_classes: int = 10) -> nn.Module:
    sized: dict[str, Any] = {"img_size": size} if "img_size" in catalog.find(name)[0].config else {}
    return timm.create_model(name, num_classes=num_classes, **sized).eval()


def image(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("old", "new", "prefix"),
    [((14, 14), (24, 24), 1), ((14, 14), (7, 9), 0), ((3, 5), (5, 3), 2), ((37, 37), (16, 16), 5)],
)
def test_resampled_position_table_is_bit_identical_to_timms(
    old: tuple[int, int], new: tuple[int, int], prefix: int, dtype: torch.dtype
) -> None:
    table = torch.randn(1, prefix + old[0] * old[1], 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = timm.layers.resample_abs_pos_embed(table, list(new), list(old), prefix)
    assert torch.equal(weights.resample_pos_embed(table, old, new, prefix), expected)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 64),
        ("vit_medium_patch32_clip_224", 64),
        ("vit_wee_patch16_reg1_gap_256", 64),
        ("vit_small_patch14_reg4_dinov2", 56),
        ("deit_tiny_distilled_patch16_224", 64),
        ("deit3_small_patch16_224", 64),
        ("mobilevit_xxs", 64),
        ("mobilevitv2_050", 64),
        ("levit_128s", 64),
        ("levit_conv_128s", 64),
        ("levit_256d", 64),
    ],
)
def test_random_weights_load_both_ways_and_agree(name: str, size: int) -> None:
    source, target = theirs(name, size), ours(name, size)
    weights.random_weights(source, 0, (3, size, size))
    for module in source.modules():  # timm's LeViT keeps the biases of its last eval pass
        if hasattr(module, "attention_bias_cache"):
            module.attention_bias_cache = {}
    report = weights.load_into(target, source.state_dict())
    assert report.loaded == len(source.state_dict())
    with torch.no_grad():
        expected = source(image(size))
        assert expected.std() > 0.05
        torch.testing.assert_close(target(image(size)), expected, rtol=1e-4, atol=1e-4)
    source.load_state_dict(target.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("vit_tiny_patch16_224", 64, 96),
        ("deit_tiny_distilled_patch16_224", 96, 64),
        ("deit3_small_patch16_224", 64, 96),
        ("vit_small_patch14_reg4_dinov2", 98, 56),
    ],
)
def test_checkpoint_of_another_size_is_converted_as_timm_converts_it(name: str, old: int, new: int) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = ours(name, old).state_dict()
    state["pos_embed"].copy_(torch.randn(state["pos_embed"].shape, generator=torch.Generator().manual_seed(2)))
    expected = checkpoint_filter_fn(dict(state), theirs(name, new))
    target = ours(name, new)
    weights.load_into(target, state)
    assert torch.equal(target.state_dict()["pos_embed"], expected["pos_embed"])


def test_original_dinov2_registers_are_converted_as_timm_converts_them() -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    name, size = "vit_small_patch14_reg4_dinov2", 56
    state = ours(name, size).state_dict()
    generator = torch.Generator().manual_seed(2)
    original = {k: v for k, v in state.items() if k not in ("reg_token", "pos_embed")}
    original |= {"mask_token": torch.zeros(1, 384), "register_tokens": torch.randn(1, 4, 384, generator=generator)}
    original["pos_embed"] = torch.randn(1, 1 + 7 * 7, 384, generator=generator)
    target = ours(name, size)
    weights.load_into(target, original)
    expected = checkpoint_filter_fn(dict(original), theirs(name, size))
    for key in ("cls_token", "reg_token", "pos_embed"):
        assert torch.equal(target.state_dict()[key], expected[key].reshape(target.state_dict()[key].shape)), key
