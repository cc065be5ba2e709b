"""ViT with a patch merger: half-way through, learned queries gather all tokens into a few (Renggli et al., Learning to
Merge Tokens in Vision Transformers, 2202.12015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import Block, Transformer, ViTVariant, parts


class PatchMerger(nn.Module):
    """(B, n, dim) to (B, num_tokens_out, dim)."""

    def __init__(self, dim: int, num_tokens_out: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(num_tokens_out, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return (self.queries @ x.transpose(-2, -1) * self.scale).softmax(dim=-1) @ x


class MergingTransformer(Transformer):
    """Merges behind the layer of number `at`."""

    def __init__(self, dim: int, blocks: list[Block], at: int, count: int) -> None:
        super().__init__(dim, blocks)
        self.at = at
        self.patch_merger = PatchMerger(dim, count)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        for index, (attn, ff) in enumerate(parts(self.layers)):
            x = x + attn(x)
            x = x + ff(x)
            if index == self.at:
                x = self.patch_merger(x)
        return self.norm(x)


class ViT(ViTVariant, without=("pool",)):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments and errors are ViTVariant's, and more:

    Args:
        patch_merge_layer: the layer, counted from 1, behind which tokens are merged; None is the middle one.
        patch_merge_num_tokens: how many are left.
    """

    def __init__(self, *, patch_merge_layer: int | None = None, patch_merge_num_tokens: int = 8, **vit: Any) -> None:
        self.layer, self.count = patch_merge_layer, patch_merge_num_tokens
        super().__init__(pool="mean", **vit)
        del self.cls_token
        self.mlp_head = nn.Sequential(nn.Identity(), nn.Linear(vit["dim"], vit["num_classes"]))

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        at = len(blocks) // 2 if self.layer is None else self.layer
        return MergingTransformer(dim, blocks, at - 1, self.count)

    def embed(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        return self.dropout(x + self.pos_embedding[:, : x.shape[1]])
