"""Random weights: repeatable, of a healthy size, and with no branch that could be left out unnoticed."""

from __future__ import annotations

import copy
import importlib
import re

import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models import catalog
from vitdeploy.models.random_weights import random_weights

# One of each family, small, and the side of its images.
MODELS = {
    "vit_tiny_patch16_224": 64,
    "vit_medium_patch32_clip_224": 64,
    "vit_wee_patch16_reg1_gap_256": 64,
    "vit_small_patch14_reg4_dinov2": 56,
    "deit_tiny_distilled_patch16_224": 64,
    "deit3_small_patch16_224": 64,
    "mobilevit_xxs": 64,
    "mobilevitv2_050": 64,
    "levit_128s": 96,
    "levit_conv_128s": 96,
    "levit_256d": 64,
}


def build(name: str, size: int, seed: int = 0) -> nn.Module:
    entry, _ = catalog.find(name)
    module, _, kind = entry.target.partition(":")
    arguments = entry.arguments(entry.num_classes or 100, (size, size))
    model = getattr(importlib.import_module(f"vitdeploy.models.{module}"), kind)(**arguments).eval()
    random_weights(model, seed, (3, size, size))
    return model


def images(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(99)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    grain = torch.randn(count, 3, size, size, generator=generator)
    return 0.7 * nn.functional.interpolate(coarse, (size, size), mode="bilinear") + 0.3 * grain


def branch_ends(model: nn.Module) -> list[str]:
    """The last layer with weights of every residual branch, of every block without a shortcut, and the like."""
    pattern = re.compile(
        r"attn\.proj$|attn\.out_proj$|mlp\.fc2$|\.ls[12]$"  # transformers
        r"|proj\.ln\.bn$|mlp\.ln2\.bn$"  # LeViT
        r"|conv3_1x1\.bn$|conv_proj\.bn$|conv_fusion\.bn$"  # MobileViT
        r"|^head(_dist)?$|head\.fc$|^head(_dist)?\.linear$"
    )
    return [name for name, module in model.named_modules() if pattern.search(name) and list(module.parameters())]


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_a_healthy_size_and_differ_between_images(name: str) -> None:
    size = MODELS[name]
    with torch.no_grad():
        logits = build(name, size)(images(8, size))
    assert 0.05 < logits.square().mean().sqrt() < 50
    assert logits.abs().max() < 50
    assert logits.std(dim=0).min() > 5e-3
    assert logits.std(dim=0).mean() > 0.02 * logits.square().mean().sqrt()


@pytest.mark.parametrize("name", MODELS)
def test_every_branch_matters(name: str) -> None:
    size = MODELS[name]
    model, batch = build(name, size), images(2, size)
    ends = branch_ends(model)
    assert len(ends) > 10
    with torch.no_grad():
        logits = model(batch)
        for end in ends:
            module = model.get_submodule(end)
            kept = [p.clone() for p in module.parameters()]
            for parameter in module.parameters():
                parameter.zero_()
            change = (model(batch) - logits).norm() / logits.norm()
            for parameter, value in zip(module.parameters(), kept, strict=True):
                parameter.copy_(value)
            assert change > 1e-3, end


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_or_statistic_is_left_trivial(name: str) -> None:
    size = MODELS[name]
    model = build(name, size)
    tensors = dict(model.named_parameters())
    tensors |= {k: b for k, b in model.named_buffers() if "running" in k}
    for key, tensor in tensors.items():
        assert torch.isfinite(tensor).all(), key
        first = tensor.flatten()[:1000]
        assert first.abs().min() > 0, key
        assert first.unique().numel() > 0.9 * first.numel(), key


@pytest.mark.parametrize("name", ["mobilevit_xxs", "levit_128s", "vit_tiny_patch16_224"])
def test_same_seed_gives_the_same_weights_and_another_seed_others(name: str) -> None:
    size = MODELS[name]
    first = build(name, size, seed=3)
    again = copy.deepcopy(first)
    random_weights(again, 3, (3, size, size))  # over weights that were drawn already
    torch.manual_seed(1234)
    fresh = build(name, size, seed=3)
    other = build(name, size, seed=4)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
        assert torch.equal(value, fresh.state_dict()[key]), key
        if value.is_floating_point():
            assert not torch.equal(value, other.state_dict()[key]), key


def test_threads_do_not_change_the_weights() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = build("mobilevit_xxs", 64).state_dict()
        torch.set_num_threads(4)
        four = build("mobilevit_xxs", 64).state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[k], four[k]) for k in one)


def test_global_generator_training_mode_and_dtype_are_left_alone() -> None:
    entry, _ = catalog.find("mobilevit_xxs")
    model = importlib.import_module("vitdeploy.models.mobilevit").MobileViT(**entry.arguments())
    model.train()
    before = torch.get_rng_state()
    random_weights(model, 0, (3, 64, 64))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {b.dtype for b in model.buffers()} == {torch.float32, torch.int64}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_wrong_image_shape_is_a_usage_error() -> None:
    model = build("levit_128s", 96)
    with pytest.raises(UsageError, match="does not run on an input of 3x224x224"):
        random_weights(model, 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_plain_network_of_the_users_is_drawn_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    model(torch.zeros(1, 1, 224, 224))
    random_weights(model, 0)
    with torch.no_grad():
        logits = model.eval()(torch.randn(4, 1, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert 0.05 < logits.std() < 50


@pytest.mark.parametrize("name", ["levit_128s", "levit_256", "mobilevit_xxs"])
def test_rounding_stays_rounding_for_any_seed(name: str) -> None:
    """Attention that is too sharp makes float32 chaotic: then no file equals eager, and no verification means much."""
    from vitdeploy.data.synthetic import synthetic_images

    entry, _ = catalog.find(name)
    batch = torch.from_numpy(synthetic_images(entry.input, 4))
    for seed in range(3):
        model = build(name, entry.input.shape[1], seed)
        with torch.inference_mode():
            single, double = model(batch), model.double()(batch.double())
        assert (single - double).abs().max() < 3e-6 * double.abs().max()
