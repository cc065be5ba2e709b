"""Adaptive token sampling against vit-pytorch's where that is the same each time, and against the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo import Case, alive, check_export, check_parity, check_signature, inputs, make_ours, ours

ATS: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 3, "heads": 2}
ATS |= {"mlp_dim": 48, "max_tokens_per_depth": (12, 6, 3)}
ALL = {**ATS, "max_tokens_per_depth": (16, 16, 16)}


def test_class_is_theirs_where_all_tokens_stay() -> None:
    check_parity(Case("ats_vit.ViT", ALL))
    check_parity(Case("ats_vit.ViT", {**ALL, "image_size": (32, 64), "patch_size": (8, 16)}, (3, 32, 64)))
    check_signature("ats_vit.ViT")


def test_eval_draws_the_same_tokens_and_training_others() -> None:
    """vit-pytorch draws in eval too."""
    model = make_ours(Case("ats_vit.ViT", ATS))
    x = inputs((3, 64, 64), 4, 1)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        drawn = [model.train()(x, return_sampled_token_ids=True)[1] for _ in range(4)]
    assert not all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_kept_tokens_are_patches_and_none_is_kept_twice() -> None:
    model = make_ours(Case("ats_vit.ViT", ATS))
    logits, ids = model(inputs((3, 64, 64), 5, 1), return_sampled_token_ids=True)
    assert logits.shape == (5, 10)
    assert ids.shape == (5, 3)
    for kept in ids.tolist():
        there = [patch for patch in kept if patch >= 0]
        assert there
        assert len(set(there)) == len(there)
        assert set(there) <= set(range(16))


def test_tokens_are_drawn_at_equal_parts_of_what_the_class_token_attends_to() -> None:
    """Equations 3 and 4 of the paper, and inverse transform sampling, one image and token at a time."""
    draw = torch.Generator().manual_seed(0)
    attn = torch.rand(3, 2, 9, 9, generator=draw).softmax(dim=-1)
    value = torch.randn(3, 2, 9, 4, generator=draw)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 4:7] = False
    sampling = ours("ats_vit.AdaptiveTokenSampling")(5).eval()
    choice, there = sampling(attn, value, mask)
    for image in range(3):
        scores = np.zeros(8)
        for head in range(2):
            for token in range(8):
                size = np.linalg.norm(value[image, head, token + 1].numpy())
                scores[token] += float(attn[image, head, 0, token + 1]) * size * bool(mask[image, token + 1])
        reached = np.cumsum(scores / scores.sum())
        wanted = [int(np.searchsorted(reached, (k + 0.5) / 5)) + 1 for k in range(5)]
        found = choice[image].argmax(dim=-1)[there[image]].tolist()
        assert found == [0, *sorted(set(wanted))]
        assert choice[image].sum(dim=-1).tolist() == [1.0] * 6


def test_export_gives_what_eager_gives(tmp_path: Path) -> None:
    check_export(Case("ats_vit.ViT", ATS), tmp_path)


def test_masked_tokens_change_nothing() -> None:
    """A row that is not there is not attended to: another one in its place gives the same."""
    model = alive(ours("ats_vit.ViT")(**ATS))
    attention = model.transformer.layers[1][0]
    x = torch.randn(2, 13, 32)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[:, 5] = False
    other = x.clone()
    other[:, 5] = torch.randn(2, 32)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, mask)[0][:, 0], attention(other, mask)[0][:, 0])


@pytest.mark.parametrize("most", [(12, 6), (6, 12, 3), (4, 2, 0)])
def test_constructor_names_the_argument_that_is_wrong(most: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="max_tokens_per_depth"):
        ours("ats_vit.ViT")(**{**ATS, "max_tokens_per_depth": most})
