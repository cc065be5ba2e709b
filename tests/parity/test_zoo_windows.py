"""Architectures with windows, and on a sphere, against vit-pytorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import Case, check_export, check_parity, check_signature, ours

NVIT: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2}
NVIT["mlp_dim"] = 48
LOOK: dict[str, Any] = {"dim": 32, "image_size": 64, "num_classes": 10, "depth": 2, "patch_size": 16, "heads": 2}
LOOK |= {"highres_patch_size": 8, "cross_attn_heads": 2, "cross_attn_dim_head": 8}
SEP: dict[str, Any] = {"num_classes": 10, "dim": 8, "depth": (1, 2), "heads": (1, 2)}
REGION: dict[str, Any] = {"dim": (8, 12, 16, 20), "depth": 1, "window_size": 2, "num_classes": 10}
CROSS: dict[str, Any] = {"dim": (32, 32, 64, 64), "depth": 1, "global_window_size": (4, 2, 2, 1), "num_classes": 10}
CROSS["local_window_size"] = (4, 4, 2, 2)
SCALABLE: dict[str, Any] = {"num_classes": 10, "dim": 8, "depth": (1, 2), "heads": (1, 2), "window_size": (4, None)}
SCALABLE |= {"reduction_factor": (4, 2), "ssa_dim_key": (8, 4), "iwsa_dim_value": 8}
JET: dict[str, Any] = {**NVIT, "window_size": 2, "dim_head": 16, "attn_layers": ["WA", "LA"]}
CASES = {
    "jet_vit": Case("jet_vit.JetViT", JET),
    "jet_vit, not square": Case("jet_vit.JetViT", {**JET, "image_size": (32, 64), "channels": 1}, (1, 32, 64)),
    "jet_vit, tokens": Case("jet_vit.JetViT", {**JET, "num_classes": 0, "attn_layers": None}),
    "vit_5": Case("vit_5.ViT", NVIT),
    "vit_5, one head and no registers": Case("vit_5.ViT", {**NVIT, "num_registers": 0, "heads": 1, "dim_head": 32}),
    "normalized_vit": Case("normalized_vit.nViT", NVIT),
    "normalized_vit, not square": Case(
        "normalized_vit.nViT", {**NVIT, "image_size": (32, 64), "residual_lerp_scale_init": 0.1}, (3, 32, 64)
    ),
    "look_vit": Case("look_vit.LookViT", LOOK),
    "look_vit, small kernel": Case("look_vit.LookViT", {**LOOK, "patch_conv_kernel_size": 3}),
    "regionvit": Case("regionvit.RegionViT", REGION),
    "regionvit, convolutions": Case(
        "regionvit.RegionViT", {**REGION, "tokenize_local_3_conv": True, "use_peg": True, "dim": 8}, (3, 64, 128)
    ),
    "crossformer": Case("crossformer.CrossFormer", CROSS),
    "crossformer, grey": Case("crossformer.CrossFormer", {**CROSS, "channels": 1}, (1, 64, 128)),
    "scalable_vit": Case("scalable_vit.ScalableViT", SCALABLE),
    "scalable_vit, the map": Case("scalable_vit.ScalableViT", {**SCALABLE, "window_size": None}, (3, 64, 32)),
    "sep_vit": Case("sep_vit.SepViT", SEP, (3, 56, 112)),
    "sep_vit, one window at last": Case("sep_vit.SepViT", {**SEP, "heads": 2}, (3, 56, 56)),
}
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "window_size .3. must divide": ("jet_vit.JetViT", {**JET, "window_size": 3}),
    "attn_layers": ("jet_vit.JetViT", {**JET, "attn_layers": ("WA", "XA")}),
    "as many as depth": ("jet_vit.JetViT", {**JET, "attn_layers": ("WA",)}),
    "dim_head .18. must be a multiple": ("vit_5.ViT", {**NVIT, "dim_head": 18}),
    "patch_size": ("normalized_vit.nViT", {**NVIT, "patch_size": 24}),
    "highres_patch_size": ("look_vit.LookViT", {**LOOK, "highres_patch_size": 12}),
    "must be above": ("look_vit.LookViT", {**LOOK, "patch_size": 8}),
    "patch_conv_kernel_size": ("look_vit.LookViT", {**LOOK, "patch_conv_kernel_size": 4}),
    "dim": ("look_vit.LookViT", {**LOOK, "dim": 30}),
    "window_size": ("sep_vit.SepViT", {**SEP, "window_size": (7, 7, 7)}),
    "heads": ("sep_vit.SepViT", {**SEP, "heads": (1, 2, 3)}),
    "dim .8, 16": ("regionvit.RegionViT", {**REGION, "dim": (8, 16)}),
    "channels": ("regionvit.RegionViT", {**REGION, "channels": 1}),
    "dim_head": ("crossformer.CrossFormer", {**CROSS, "dim": 48}),
    "cross_embed_strides": ("crossformer.CrossFormer", {**CROSS, "cross_embed_strides": (4, 2)}),
    "reduction_factor": ("scalable_vit.ScalableViT", {**SCALABLE, "reduction_factor": (1, 2, 3)}),
    "depth": ("sep_vit.SepViT", {**SEP, "depth": 2}),
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


def test_normed_weights_are_written_back() -> None:
    model = ours("normalized_vit.nViT")(**NVIT)
    model.norm_weights_()
    stored = model.state_dict()["to_pred.linear.parametrizations.weight.original"]
    torch.testing.assert_close(stored.norm(dim=-1), torch.ones(10))


def test_sep_vit_has_the_windows_and_heads_that_are_asked_for(tmp_path: Path) -> None:
    """Theirs has windows of 7 and heads of 32 all the same."""
    check_export(Case("sep_vit.SepViT", {**SEP, "window_size": (4, 2), "dim_head": 8}, (3, 32, 32)), tmp_path)


def test_jet_vit_draws_among_attentions_while_training_alone() -> None:
    """vit-pytorch draws in eval too."""
    model = ours("jet_vit.JetViT")(**{**JET, "attn_layers": [("WA", "LA", "FA")] * 2})
    x = torch.randn(1, 3, 64, 64)
    drawn = {tuple(model(x).flatten().tolist()) for _ in range(20)}
    assert len(drawn) > 1
    model.eval()
    first = ours("jet_vit.JetViT")(**{**JET, "attn_layers": ["WA", "WA"]}).eval()
    first.load_state_dict(model.state_dict())
    assert torch.equal(model(x), first(x))
