"""Architectures of several scales against vit-pytorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import CLOSE, Case, alive, check_export, check_parity, check_signature, far, inputs, ours, theirs

PIT: dict[str, Any] = {"image_size": 64, "patch_size": 8, "num_classes": 10, "dim": 16, "depth": (1, 2), "heads": 2}
PIT["mlp_dim"] = 24
CROSS: dict[str, Any] = {"image_size": 64, "num_classes": 10, "sm_dim": 16, "lg_dim": 24, "sm_patch_size": 8}
CROSS |= {"sm_enc_mlp_dim": 24, "lg_enc_depth": 1, "lg_enc_mlp_dim": 24, "cross_attn_depth": 1, "depth": 2}
VIT: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 24}
EFFICIENT = dict(VIT)
VIT |= {"depth": 2, "heads": 2, "mlp_dim": 24}
T2T: dict[str, Any] = {"image_size": 64, "num_classes": 10, "dim": 24, "depth": 1, "heads": 2, "mlp_dim": 24}
CVT: dict[str, Any] = {"num_classes": 10, "s1_emb_dim": 8, "s2_emb_dim": 12, "s3_emb_dim": 16, "s3_depth": 1}
TWINS: dict[str, Any] = {"num_classes": 10, "s1_emb_dim": 8, "s2_emb_dim": 12, "s3_emb_dim": 16, "s4_emb_dim": 20}
TWINS |= {f"s{stage}_local_patch_size": 2 for stage in (1, 2, 3)} | {f"s{stage}_global_k": 2 for stage in (1, 2, 3, 4)}
TWINS |= {"s3_depth": 1, "s4_depth": 1}
LEVIT: dict[str, Any] = {"image_size": 64, "num_classes": 10, "dim": (16, 24, 32), "depth": 1, "heads": (2, 3, 4)}
LEVIT |= {"mlp_mult": 2, "dim_key": 8, "dim_value": 16}
CCT: dict[str, Any] = {"img_size": (32, 64), "embedding_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0}
CCT |= {"num_classes": 10, "kernel_size": 5, "padding": 2}
MAX: dict[str, Any] = {"num_classes": 10, "dim": 16, "depth": (2, 1), "dim_head": 8, "window_size": 4}
CASES = {
    "pit": Case("pit.PiT", PIT),
    "pit, own heads": Case("pit.PiT", {**PIT, "heads": (1, 2), "channels": 1}, (1, 64, 64)),
    "cross_vit": Case("cross_vit.CrossViT", CROSS),
    "cross_vit, one width": Case("cross_vit.CrossViT", {**CROSS, "lg_dim": 16, "channels": 1}, (1, 64, 64)),
    "cvt": Case("cvt.CvT", CVT),
    "cvt, grey": Case("cvt.CvT", {**CVT, "channels": 1, "s2_proj_kernel": 5, "s2_heads": 1}, (1, 64, 32)),
    "twins_svt": Case("twins_svt.TwinsSVT", TWINS),
    "twins_svt, wide positions": Case("twins_svt.TwinsSVT", {**TWINS, "peg_kernel_size": 5}, (3, 128, 64)),
    "levit": Case("levit.LeViT", LEVIT),
    "levit, odd map": Case("levit.LeViT", {**LEVIT, "image_size": 80, "heads": 2, "stages": 4}, (3, 80, 80)),
    "cct": Case("cct.CCT", CCT, (3, 32, 64)),
    "cct, two convolutions": Case("cct.CCT", {**CCT, "n_conv_layers": 2, "positional_embedding": "none"}, (3, 32, 64)),
    "cct_2": Case("cct.cct_2", {"img_size": 32, "num_classes": 10, "positional_embedding": "learnable"}, (3, 32, 32)),
    "max_vit": Case("max_vit.MaxViT", MAX, (3, 64, 64)),
    "max_vit, wide": Case("max_vit.MaxViT", {**MAX, "depth": (1,), "dim_conv_stem": 4, "channels": 1}, (1, 32, 64)),
    "t2t": Case("t2t.T2TViT", T2T),
    "t2t, mean": Case("t2t.T2TViT", {**T2T, "pool": "mean", "t2t_layers": ((3, 2), (3, 2))}),
}
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "patch_size": ("pit.PiT", {**PIT, "patch_size": 24}),
    "depth": ("pit.PiT", {**PIT, "depth": 2}),
    "heads": ("pit.PiT", {**PIT, "heads": (1, 2, 3)}),
    "sm_patch_size": ("cross_vit.CrossViT", {**CROSS, "sm_patch_size": 12}),
    "s2_proj_kernel": ("cvt.CvT", {**CVT, "s2_proj_kernel": 4}),
    "peg_kernel_size": ("twins_svt.TwinsSVT", {**TWINS, "peg_kernel_size": 2}),
    "dim": ("levit.LeViT", {**LEVIT, "dim": (16, 24, 32, 48)}),
    "dim_head": ("max_vit.MaxViT", {**MAX, "dim_head": 5}),
    "pool": ("t2t.T2TViT", {**T2T, "pool": "max"}),
    "mlp_dim": ("t2t.T2TViT", {**T2T, "mlp_dim": None}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_class_is_theirs(case: Case) -> None:
    check_parity(case)


@pytest.mark.parametrize("name", sorted({case.name for case in CASES.values() if not case.name.startswith("cct")}))
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


DISTILLED = {
    "distill.DistillableViT": ("vit.ViT", VIT),
    "distill.DistillableT2TViT": ("t2t.T2TViT", T2T),
    "distill.DistillableEfficientViT": ("efficient.ViT", {**EFFICIENT, "transformer": nn.Linear(24, 24)}),
}


@pytest.mark.parametrize("name", DISTILLED)
def test_distillable_model_is_the_plain_one_and_takes_a_token_along(name: str) -> None:
    """In vit-pytorch the second and third raise: their class token has another shape."""
    plain, arguments = DISTILLED[name]
    mine = ours(name)(**arguments)
    alive(mine)
    reference = theirs(plain)(**arguments).eval()
    reference.load_state_dict(mine.state_dict(), strict=True)
    x, token = inputs((3, 64, 64), 2, 1), torch.randn(1, 24)
    with torch.no_grad():
        assert far(mine(x), reference(x)) <= CLOSE
        assert torch.equal(mine.to_vit().eval()(x), mine(x))
        logits, learned = mine(x, token)
    assert (logits.shape, learned.shape) == ((2, 10), (2, 24))
    assert (mine.dim, mine.num_classes) == (24, 10)


def test_distillation_token_becomes_what_theirs_becomes() -> None:
    reference = alive(theirs("distill.DistillableViT")(**VIT))
    mine = ours("distill.DistillableViT")(**VIT).eval()
    mine.load_state_dict(reference.state_dict(), strict=True)
    x, token = inputs((3, 64, 64), 2, 1), torch.randn(1, 24)
    with torch.no_grad():
        assert far(mine(x, token), reference(x, token)) <= CLOSE


def test_levit_has_a_second_head_where_it_is_asked_for() -> None:
    check_parity(Case("levit.LeViT", {**LEVIT, "num_distill_classes": 7}))
