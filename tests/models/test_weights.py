"""Checkpoints into models: what fits, what is converted, and how a misfit is told."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models import catalog, weights

REAL = Path(os.environ.get("VITDEPLOY_TEST_WEIGHTS", "no such folder"))  # of trained checkpoints in timm's layout


def build(name: str, size: int | None = None, num_classes: int | None = None, **changes: Any) -> nn.Module:
    entry, _ = catalog.find(name)
    module, _, kind = entry.target.partition(":")
    arguments = entry.arguments(num_classes, (size, size) if size else None) | changes
    return getattr(importlib.import_module(f"vitdeploy.models.{module}"), kind)(**arguments).eval()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def drawn(name: str, size: int, seed: int = 0, **kwargs: Any) -> nn.Module:
    model = build(name, size, **kwargs)
    weights.random_weights(model, seed, (3, size, size))
    return model


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 32),
        ("deit_tiny_distilled_patch16_224", 32),
        ("mobilevit_xxs", 32),
        ("mobilevitv2_050", 32),
        ("levit_128s", 64),
        ("levit_conv_128s", 64),
    ],
)
def test_checkpoint_of_the_same_model_gives_the_same_logits(name: str, size: int) -> None:
    source, target = drawn(name, size, num_classes=7), build(name, size, num_classes=7)
    report = weights.load_into(target, state_of(source))
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(source(image), target(image))
    assert report.loaded == len(source.state_dict())
    assert (report.cast_from, report.resampled, report.reshaped, report.dropped) == ((), None, (), ())


def test_half_checkpoint_is_upcast_and_reported() -> None:
    source, target = drawn("vit_tiny_patch16_224", 32), build("vit_tiny_patch16_224", 32)
    half = {k: v.half() for k, v in state_of(source).items()}
    half["norm.weight"] = half["norm.weight"].bfloat16()
    report = weights.load_into(target, half)
    assert report.cast_from == ("bfloat16", "float16")
    assert all(p.dtype == torch.float32 for p in target.parameters())
    assert torch.equal(target.head.weight, half["head.weight"].float())
    assert "converted from bfloat16, float16" in str(report)


def test_missing_num_batches_tracked_is_no_error() -> None:
    source, target = drawn("mobilevit_xxs", 32), build("mobilevit_xxs", 32)
    state = {k: v for k, v in state_of(source).items() if not k.endswith("num_batches_tracked")}
    assert weights.load_into(target, state).loaded == len(state)


def test_bias_indices_are_dropped_when_an_old_levit_checkpoint_has_them() -> None:
    source, target = drawn("levit_128s", 64), build("levit_128s", 64)
    state = state_of(source)
    state["stages.0.blocks.0.attn.attention_bias_idxs"] = torch.zeros(16, 16, dtype=torch.long)
    weights.load_into(target, state)
    assert torch.equal(target.state_dict()["head.linear.weight"], state["head.linear.weight"])


@pytest.mark.parametrize(
    ("source_name", "target_name"), [("levit_128s", "levit_conv_128s"), ("levit_conv_128s", "levit_128s")]
)
def test_levit_weights_load_into_the_twin_and_agree(source_name: str, target_name: str) -> None:
    source, target = drawn(source_name, 64), build(target_name, 64)
    report = weights.load_into(target, state_of(source))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(target(image), source(image), rtol=1e-4, atol=1e-4)
    assert len(report.reshaped) > 20


def test_original_deit3_gammas_are_renamed() -> None:
    source, target = drawn("deit3_small_patch16_224", 32), build("deit3_small_patch16_224", 32)
    state = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in state_of(source).items()}
    assert "blocks.3.gamma_2" in state
    weights.load_into(target, state)
    assert torch.equal(target.blocks[3].ls2.gamma, source.blocks[3].ls2.gamma)


def test_position_table_is_resampled_when_the_image_size_differs() -> None:
    source, target = drawn("vit_tiny_patch16_224", 64), build("vit_tiny_patch16_224", 96)
    state = state_of(source)
    report = weights.load_into(target, state)
    assert report.resampled == ((4, 4), (6, 6))
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    expected = nn.functional.interpolate(
        state["pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2), (6, 6), mode="bicubic", antialias=True
    )
    assert torch.equal(target.pos_embed[0, 1:], expected.flatten(2)[0].T)


def test_position_table_of_an_oblong_image_needs_its_size() -> None:
    source = build("vit_tiny_patch16_224", img_size=[32, 128])
    square = build("vit_tiny_patch16_224", 64)
    same_count = weights.load_into(square, state_of(source), trained_size=(32, 128))
    assert same_count.resampled == ((2, 8), (4, 4))
    oblong = build("vit_tiny_patch16_224", img_size=[48, 128])
    with pytest.raises(UsageError, match="another image size"):
        weights.load_into(square, state_of(oblong))
    assert weights.load_into(square, state_of(oblong), trained_size=(48, 128)).resampled == ((3, 8), (4, 4))


def test_resampling_keeps_a_constant_table_constant_and_checks_its_length() -> None:
    table = torch.full((1, 1 + 9, 2), 3.0)
    assert torch.allclose(weights.resample_pos_embed(table, (3, 3), (5, 4), 1), torch.full((1, 21, 2), 3.0))
    with pytest.raises(UsageError, match="10 entries"):
        weights.resample_pos_embed(table, (3, 3), (5, 4), 0)


def test_dinov2_original_keys_load_with_registers() -> None:
    size = 28
    target = build("vit_small_patch14_reg4_dinov2", size)
    ours = state_of(drawn("vit_small_patch14_reg4_dinov2", size))
    original = {k: v for k, v in ours.items() if k not in ("reg_token", "pos_embed", "cls_token")}
    class_position = torch.randn(1, 1, 384)
    original |= {
        "mask_token": torch.zeros(1, 384),
        "register_tokens": ours["reg_token"],
        "cls_token": ours["cls_token"] - class_position,
        "pos_embed": torch.cat([class_position, ours["pos_embed"]], dim=1),
    }
    weights.load_into(target, original)
    torch.testing.assert_close(target.cls_token.data, ours["cls_token"])
    assert torch.equal(target.reg_token, ours["reg_token"])
    assert torch.equal(target.pos_embed, ours["pos_embed"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_prefix_is_matched_to_the_models(prefix: str) -> None:
    source, target = drawn("mobilevit_xxs", 32), build("mobilevit_xxs", 32)
    lightning = {prefix + k: v for k, v in state_of(source).items()} | {"criterion.weight": torch.ones(3)}
    report = weights.load_into(target, lightning)
    assert report.dropped == ("criterion.weight",)
    wrapped = nn.ModuleDict({prefix.rstrip("."): build("mobilevit_xxs", 32)})
    weights.load_into(wrapped, state_of(source))
    assert torch.equal(wrapped.state_dict()[f"{prefix}head.fc.weight"], source.head.fc.weight)


def test_classifier_is_dropped_when_the_model_was_built_without_one() -> None:
    source, target = (
        build("deit_tiny_distilled_patch16_224", 32),
        build("deit_tiny_distilled_patch16_224", 32, num_classes=0),
    )
    report = weights.load_into(target, state_of(source))
    assert set(report.dropped) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    levit = build("levit_128s", 64, num_classes=0)
    assert "head.bn.weight" in weights.load_into(levit, state_of(build("levit_128s", 64))).dropped


def test_head_size_is_read_before_building() -> None:
    entry, _ = catalog.find("levit_128s")
    assert weights.head_size(state_of(build("levit_128s", 64, num_classes=12)), entry.classifier) == 12
    assert weights.head_size(state_of(build("levit_conv_128s", 64, num_classes=12))) == 12
    assert weights.head_size({"head.fc.weight": torch.ones(3, 4)}, "head.fc") == 3
    assert weights.head_size(state_of(build("vit_tiny_patch16_224", 32, num_classes=0))) is None
    with pytest.raises(UsageError, match="disagree"):
        weights.head_size({"head.weight": torch.ones(3, 4), "head_dist.weight": torch.ones(5, 4)})


def refused(model: nn.Module, state: dict[str, Tensor], **kwargs: Any) -> str:
    before = state_of(model)
    with pytest.raises(UsageError) as caught:
        weights.load_into(model, state, **kwargs)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before), "a refused checkpoint must leave the model as it was"
    return str(caught.value)


def test_number_of_classes_is_named_when_the_heads_differ() -> None:
    message = refused(build("vit_tiny_patch16_224", 32), state_of(build("vit_tiny_patch16_224", 32, num_classes=10)))
    assert message == "The checkpoint has 10 classes and the model 1000. Build it for 10."


def test_backbone_checkpoint_is_named_when_the_model_has_a_classifier() -> None:
    message = refused(build("vit_tiny_patch16_224", 32), state_of(build("vit_tiny_patch16_224", 32, num_classes=0)))
    assert "no classifier" in message


def test_keys_are_named_up_to_five_when_some_do_not_fit() -> None:
    state = state_of(build("vit_tiny_patch16_224", 32))
    for key in sorted(state)[:7]:
        del state[key]
    state["extra"] = torch.ones(1)
    state["norm.bias"] = torch.ones(5)
    message = refused(build("vit_tiny_patch16_224", 32), state)
    assert "7 missing: blocks.0.attn.proj.bias" in message
    assert "and 2 more" in message
    assert "1 unexpected: extra" in message
    assert "1 mis-shaped: norm.bias 5 for 192" in message


@pytest.mark.parametrize(
    ("target", "source", "guess"),
    [
        ("mobilevit_xxs", "levit_128s", "levit_128s"),
        ("mobilevit_xxs", "vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("levit_128s", "mobilevit_xs", "mobilevit_xs"),
        ("levit_128s", "mobilevitv2_075", "mobilevitv2_075"),
        ("vit_tiny_patch16_224", "deit3_small_patch16_224", "deit3_small_patch16_224"),
        ("vit_tiny_patch16_224", "deit_small_distilled_patch16_224", "deit_small_distilled_patch16_224"),
        ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch14_reg4_dinov2"),
        ("vit_tiny_patch16_224", "levit_conv_256", "levit_conv_256"),
    ],
)
def test_other_architecture_is_named_when_hardly_a_key_fits(target: str, source: str, guess: str) -> None:
    message = refused(build(target), state_of(build(source)))
    assert "another architecture" in message
    assert guess in message


def test_foreign_library_is_named_when_its_keys_are_known() -> None:
    state = {f"vit.encoder.layer.{i}.output.dense.weight": torch.ones(2, 2) for i in range(20)}
    state["vit.embeddings.cls_token"] = torch.ones(1, 1, 2)
    assert "transformers library" in refused(build("vit_tiny_patch16_224", 32), state)


def test_patch_size_is_named_when_the_kernels_differ() -> None:
    source = build("vit_tiny_patch16_224", 64, patch_size=8)
    message = refused(build("vit_tiny_patch16_224", 64), state_of(source))
    assert "192x3x8x8" in message
    assert "192x3x16x16" in message


def test_trained_resolution_is_named_when_levit_biases_differ() -> None:
    message = refused(build("levit_128s", 96), state_of(build("levit_128s", 224)))
    assert "trained at 224x224" in message
    assert "built for 96x96" in message
    assert "--image-size 224" in message


def test_quantised_integers_are_refused() -> None:
    state = state_of(build("vit_tiny_patch16_224", 32))
    state["norm.weight"] = state["norm.weight"].to(torch.int8)
    assert "int8" in refused(build("vit_tiny_patch16_224", 32), state)


@pytest.mark.skipif(not REAL.is_dir(), reason="VITDEPLOY_TEST_WEIGHTS names no folder")
@pytest.mark.parametrize("name", ["mobilevit_xxs", "levit_128s", "deit_tiny_patch16_224"])
def test_trained_checkpoints_load_from_their_folders(name: str) -> None:
    folder = weights.read_hub_folder(REAL / f"{name}.fashion_mnist")
    state = weights.read_checkpoint(folder.weights)
    assert (folder.architecture, folder.num_classes, len(folder.labels or ())) == (name, 10, 10)
    assert weights.head_size(state, catalog.find(name)[0].classifier) == 10
    model = build(name, num_classes=folder.num_classes, **folder.model_args)
    assert weights.load_into(model, state).loaded == len(state)
