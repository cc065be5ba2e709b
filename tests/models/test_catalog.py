"""The catalog's look-ups, and that its data is well formed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.models import catalog


def test_names_are_unique_and_every_family_is_there() -> None:
    names = catalog.names()
    assert len(names) == len(set(names)) > 240
    families = {catalog.find(name)[0].family for name in names}
    assert families == {
        *("vit", "dinov2", "deit", "deit3", "mobilevit", "mobilevitv2", "levit", "levit_conv"),
        *("cait", "xcit", "pit", "twins", "nest", "crossvit", "maxvit"),
    }


def test_names_filters_by_glob_or_by_part() -> None:
    assert catalog.names("mobilevit_*") == ["mobilevit_xxs", "mobilevit_xs", "mobilevit_s"]
    assert catalog.names("levit_128") == ["levit_128s", "levit_128"]
    assert catalog.names("nothing_like_it") == []


@pytest.mark.parametrize("name", catalog.names())
def test_entry_is_well_formed(name: str) -> None:
    entry, pretrained = catalog.find(name)
    assert pretrained is None
    assert json.loads(json.dumps(entry.config)) == entry.config
    assert "num_classes" not in entry.config
    if "img_size" in entry.config:
        assert entry.input.shape[1:] == (entry.config["img_size"],) * 2
    if "patch_size" in entry.config and entry.family not in ("pit", "crossvit"):
        assert entry.config["img_size"] % entry.config["patch_size"] == 0
        assert entry.config["embed_dim"] % entry.config["num_heads"] == 0
    for weights in entry.pretrained:
        assert catalog.find(f"{name}.{weights.tag}") == (entry, weights)
        if weights.top1 is not None and weights.top5 is not None:
            assert weights.num_classes == 1000
            assert 60 < weights.top1 < weights.top5 < 100


def test_tag_carries_its_own_preprocessing_and_accuracy() -> None:
    entry, weights = catalog.find("mobilevitv2_150.cvnets_in22k_ft_in1k_384")
    assert weights is not None
    assert (entry.input.shape, weights.input.shape) == ((3, 256, 256), (3, 384, 384))
    assert (entry.input.crop_pct, weights.input.crop_pct) == (0.888, 1.0)
    assert (weights.top1, weights.hub_id) == (82.606, "timm/mobilevitv2_150.cvnets_in22k_ft_in1k_384")


def test_quickgelu_weights_are_marked_on_the_gelu_model_only() -> None:
    assert catalog.find("vit_base_patch32_clip_224.openai")[1].quickgelu  # type: ignore[union-attr]
    assert not catalog.find("vit_base_patch32_clip_224.laion2b")[1].quickgelu  # type: ignore[union-attr]
    assert not catalog.find("vit_base_patch32_clip_quickgelu_224.openai")[1].quickgelu  # type: ignore[union-attr]


def test_arguments_follow_classes_and_image_size() -> None:
    entry, _ = catalog.find("deit_tiny_patch16_224")
    assert entry.arguments()["num_classes"] == 1000
    assert entry.arguments(num_classes=0)["num_classes"] == 0
    assert entry.arguments(image_size=(64, 64))["img_size"] == 64
    assert entry.arguments(image_size=(64, 96))["img_size"] == [64, 96]
    assert "img_size" not in catalog.find("mobilevit_s")[0].arguments(image_size=(64, 64))


def test_catalog_stays_as_it_is_when_a_caller_changes_a_config() -> None:
    entry, _ = catalog.find("mobilevit_xs")
    entry.config["stages"][0]["chs"] = 1
    assert catalog.find("mobilevit_xs")[0].config["stages"][0]["chs"] == 32


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mobilevit_x", ["mobilevit_xs", "mobilevit_xxs"]),
        ("MobileViT_S", ["mobilevit_s"]),
        ("", ["vitdeploy list"]),
        ("resnet50", ["Unknown model 'resnet50'"]),
        ("levit_256.nope", ["no pretrained tag 'nope'", "fb_dist_in1k"]),
        ("levit_256.", ["no pretrained tag ''"]),
        ("levit_512.fb", ["Nobody has published weights"]),
        ("vit_base_patch16_plus_240.untrained", ["no pretrained tag"]),
    ],
)
def test_find_raises_usage_error_when_the_name_is_unknown(name: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.find(name)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert str(caught.value).count("_") < 40


def test_default_tag_is_the_first_or_none() -> None:
    assert catalog.default_tag("levit_128s") == "fb_dist_in1k"
    assert catalog.default_tag("levit_512") is None


def test_catalog_imports_without_torch_and_numpy() -> None:
    code = "import sys, vitdeploy.models.catalog as c; c.names(); print({'torch', 'numpy', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", catalog.names())
def test_model_built_from_the_entry_has_as_many_parameters_as_it_says(name: str) -> None:
    import torch

    entry, _ = catalog.find(name)
    module, _, kind = entry.target.partition(":")
    with torch.device("meta"):
        model = getattr(importlib.import_module(f"vitdeploy.models.{module}"), kind)(**entry.arguments())
    assert sum(p.numel() for p in model.parameters()) == entry.params
    parameters = {key for key, _ in model.named_parameters()}
    assert all(f"{head}.weight" in parameters for head in entry.classifier if entry.num_classes)
