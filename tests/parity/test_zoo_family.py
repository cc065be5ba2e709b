"""Variants of ViT against vit-pytorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import CLOSE, Case, alive, check_export, check_parity, check_signature, far, inputs, ours, theirs

VIT: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2}
VIT["mlp_dim"] = 48
WIDE = {**VIT, "image_size": (32, 64), "patch_size": (8, 16)}
PLAIN = {**VIT, "dim_head": 16}
CASES = {
    "deepvit": Case("deepvit.DeepViT", VIT),
    "deepvit, mean": Case("deepvit.DeepViT", {**VIT, "pool": "mean", "channels": 1}, (1, 64, 64)),
    "parallel_vit": Case("parallel_vit.ViT", {**VIT, "num_parallel_branches": 3}),
    "parallel_vit, not square": Case("parallel_vit.ViT", {**WIDE, "pool": "mean"}, (3, 32, 64)),
    "vit_for_small_dataset": Case("vit_for_small_dataset.ViT", VIT),
    "SPT": Case("vit_for_small_dataset.SPT", {"dim": 24, "patch_size": 16}),
    "vit_with_patch_merger": Case("vit_with_patch_merger.ViT", {**VIT, "patch_merge_num_tokens": 4}),
    "vit_with_patch_merger, late": Case("vit_with_patch_merger.ViT", {**WIDE, "patch_merge_layer": 2}, (3, 32, 64)),
    "registers": Case("simple_vit_with_register_tokens.SimpleViT", {**PLAIN, "num_register_tokens": 3}),
    "value residual": Case("simple_vit_with_value_residual.SimpleViT", {**PLAIN, "depth": 3}),
    "flash": Case("simple_flash_attn_vit.SimpleViT", PLAIN),  # theirs raises without use_flash
    "patch dropout": Case("vit_with_patch_dropout.ViT", VIT),
    "patch dropout, mean": Case("vit_with_patch_dropout.ViT", {**WIDE, "pool": "mean"}, (3, 32, 64)),
    "patch dropout, simple": Case("simple_vit_with_patch_dropout.SimpleViT", PLAIN),
    "hyper": Case("simple_vit_with_hyper_connections.SimpleViT", {**PLAIN, "num_residual_streams": 3}),
    "hyper, one stream": Case("simple_vit_with_hyper_connections.SimpleViT", {**PLAIN, "num_residual_streams": 1}),
    "mp3": Case("mp3.ViT", {**WIDE, "channels": 1}, (1, 32, 64)),
    "cait": Case("cait.CaiT", {**VIT, "cls_depth": 2}),
    "cait, a smaller image": Case("cait.CaiT", {**VIT, "cls_depth": 1, "dim_head": 8}, (3, 32, 64)),
    "xcit": Case("xcit.XCiT", {**VIT, "cls_depth": 2}),
    "xcit, a smaller image": Case("xcit.XCiT", {**VIT, "cls_depth": 1}, (3, 32, 48)),
    "xcit, wide kernel": Case("xcit.XCiT", {**VIT, "cls_depth": 1, "local_patch_kernel_size": 5, "patch_size": 8}),
    "learnable_memory_vit": Case("learnable_memory_vit.ViT", {**WIDE, "pool": "mean"}, (3, 32, 64)),
    "rvt": Case("rvt.RvT", {**VIT, "dim_head": 12}),
    "rvt, none of its own": Case("rvt.RvT", {**VIT, "use_rotary": False, "use_ds_conv": False, "use_glu": False}),
    "PatchMerger": Case("vit_with_patch_merger.PatchMerger", {"dim": 24, "num_tokens_out": 4}, (9, 24)),
}
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "patch_size": ("deepvit.DeepViT", {**VIT, "patch_size": 24}),
    "local_patch_kernel_size": ("xcit.XCiT", {**VIT, "cls_depth": 1, "local_patch_kernel_size": 4}),
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


def test_flash_or_not_is_the_same_function() -> None:
    x = inputs((3, 64, 64), 2, 1)
    made = []
    for use_flash in (True, False):
        torch.manual_seed(0)
        made.append(alive(ours("simple_flash_attn_vit.SimpleViT")(**PLAIN, use_flash=use_flash))(x))
    assert torch.equal(*made)


def test_qk_norm_equals_theirs_up_to_the_head_and_has_one() -> None:
    """Theirs has a LayerNorm in the classifier's place, and ignores num_classes."""
    reference = alive(theirs("simple_vit_with_qk_norm.SimpleViT")(**PLAIN))
    mine = ours("simple_vit_with_qk_norm.SimpleViT")(**PLAIN).eval()
    missing = mine.load_state_dict({k: v for k, v in reference.state_dict().items() if "head" not in k}, strict=False)
    assert missing.missing_keys == ["linear_head.weight", "linear_head.bias"]
    x = inputs((3, 64, 64), 2, 1)
    assert mine(x).shape == (2, 10)
    mine.linear_head, reference.linear_head = nn.Identity(), nn.Identity()
    with torch.no_grad():
        assert far(mine(x), reference(x)) <= CLOSE


def test_qk_norm_exports(tmp_path: Path) -> None:
    check_export(Case("simple_vit_with_qk_norm.SimpleViT", PLAIN), tmp_path)


def test_patches_are_left_out_while_training_alone() -> None:
    model = ours("simple_vit_with_patch_dropout.SimpleViT")(**PLAIN, patch_dropout=0.75)
    seen: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    x = inputs((3, 64, 64), 2, 1)
    model.train()(x)
    model.eval()(x)
    assert seen == [4, 16]
    with pytest.raises(ValueError, match="patch_dropout"):
        ours("vit_with_patch_dropout.ViT")(**VIT, patch_dropout=1.0)


def test_efficient_takes_any_transformer(tmp_path: Path) -> None:
    shared = {"image_size": (32, 64), "patch_size": 16, "num_classes": 10, "dim": 32, "pool": "mean"}
    layer = nn.TransformerEncoderLayer(32, 2, 48, batch_first=True, norm_first=True)
    reference = alive(theirs("efficient.ViT")(**shared, transformer=layer))
    mine = ours("efficient.ViT")(**shared, transformer=layer).eval()
    mine.load_state_dict(reference.state_dict(), strict=True)
    x = inputs((3, 32, 64), 2, 1)
    with torch.no_grad():
        assert far(mine(x), reference(x)) <= CLOSE
    check_signature("efficient.ViT")


@pytest.mark.parametrize("name", ["cait.CaiT", "xcit.XCiT"])
def test_layers_are_left_out_while_training_alone(name: str) -> None:
    """vit-pytorch draws them in eval too."""
    model = ours(name)(**{**VIT, "depth": 8}, cls_depth=2, layer_dropout=0.5)
    alive(model)
    x = inputs((3, 64, 64), 2, 1)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        drawn = [model.train()(x) for _ in range(4)]
    assert not all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert ours(name)(**VIT, cls_depth=1, layer_dropout=0.999).train()(x).shape == (2, 10)


def test_adapter_answers_anew_and_leaves_the_old_answer(tmp_path: Path) -> None:
    reference = theirs("learnable_memory_vit.Adapter")(vit=theirs("learnable_memory_vit.ViT")(**VIT), num_classes=3)
    alive(reference)
    mine = ours("learnable_memory_vit.Adapter")(vit=ours("learnable_memory_vit.ViT")(**VIT), num_classes=3).eval()
    mine.load_state_dict(reference.state_dict(), strict=True)
    x = inputs((3, 64, 64), 2, 1)
    with torch.no_grad():
        assert far(mine(x), reference(x)) <= CLOSE
    assert not any(p.requires_grad for p in mine.vit.parameters())
    assert mine.memories_per_layer.requires_grad
    check_signature("learnable_memory_vit.Adapter")
    with pytest.raises(TypeError, match="vit must be"):
        ours("learnable_memory_vit.Adapter")(vit=ours("vit.ViT")(**VIT))


def test_local_vit_equals_theirs_once_its_norm_stands_where_it_can(tmp_path: Path) -> None:
    """Theirs applies a LayerNorm of tokens to a map, and raises."""
    reference = alive(theirs("local_vit.LocalViT")(**VIT))
    x = inputs((3, 64, 64), 2, 1)
    with pytest.raises(RuntimeError):
        reference(x)
    mine = ours("local_vit.LocalViT")(**VIT).eval()
    mine.load_state_dict(reference.state_dict(), strict=True)
    for _, ff in reference.transformer.layers:
        norm, feed = ff.fn.fn.net[0], ff.fn.fn
        feed.net = nn.Sequential(*feed.net[1:])
        feed.register_forward_pre_hook(lambda _, given, norm=norm: (norm(given[0]),))
    with torch.no_grad():
        assert far(mine(x), reference(x)) <= CLOSE
    check_signature("local_vit.LocalViT")
    check_export(Case("local_vit.LocalViT", VIT), tmp_path)
