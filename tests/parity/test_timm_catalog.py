"""The catalog's facts against timm's own registry and constructors."""

from __future__ import annotations

import pytest
from timm_import import import_timm

from vitdeploy.models import catalog
from vitdeploy.spec import InputSpec

timm = import_timm()


def timm_configs(name: str) -> dict[str, dict]:
    """Tag to default configuration, in timm's order."""
    from timm.models._registry import get_arch_pretrained_cfgs

    arch = get_arch_pretrained_cfgs(name)
    return {full.partition(".")[2]: cfg.to_dict() for full, cfg in arch.items()}


@pytest.mark.parametrize("name", catalog.names())
def test_catalog_equals_timm_in_inputs_tags_and_classes(name: str) -> None:
    entry, _ = catalog.find(name)
    configs = timm_configs(name)
    assert [p.tag for p in entry.pretrained] == [tag for tag in configs if tag != "untrained"]
    first = next(iter(configs.values()))
    assert entry.input == InputSpec.from_pretrained_cfg(first)
    assert entry.num_classes == first["num_classes"]
    classifier = first["classifier"]
    if not name.startswith(("levit_384_s8", "levit_conv_384_s8")):  # timm names one of these two models' two heads
        assert entry.classifier == ((classifier,) if isinstance(classifier, str) else tuple(classifier))
    for pretrained in entry.pretrained:
        cfg = configs[pretrained.tag]
        assert pretrained.input == InputSpec.from_pretrained_cfg(cfg), pretrained.tag
        assert pretrained.num_classes == cfg["num_classes"], pretrained.tag
        assert pretrained.license == cfg.get("license"), pretrained.tag
        hub = cfg.get("hf_hub_id") or None
        assert pretrained.hub_id == (f"timm/{name}.{pretrained.tag}" if hub == "timm/" else hub), pretrained.tag


@pytest.mark.parametrize("name", catalog.names())
def test_parameter_count_equals_timm(name: str) -> None:
    import torch

    with torch.device("meta"):
        model = timm.create_model(name)
    assert catalog.find(name)[0].params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_small_distilled_patch16_224", "levit_conv_256d"])
def test_macs_equal_a_count_over_timms_model(name: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    entry, _ = catalog.find(name)
    with torch.device("meta"):
        model, image = timm.create_model(name).eval(), torch.empty(1, *entry.input.shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert entry.macs == counter.get_total_flops() // 2
