"""The ViT of masked patch position prediction: fixed positions, mean pooling (Zhai et al., Position Prediction as an
Effective Pretraining Strategy, 2207.07611)."""

from __future__ import annotations

from typing import Any

from vitdeploy.models.blocks import Attention, Block, FeedForward
from vitdeploy.models.simple_vit import SimpleViT


class ViT(SimpleViT):
    """Images (B, channels, H, W) of `image_size` to logits (B, num_classes); arguments and errors are SimpleViT's."""

    head_norm = True

    def __init__(self, *, dropout: float = 0.0, **vit: Any) -> None:
        self.drop = dropout
        super().__init__(**vit)
        self.dim, self.num_patches = vit["dim"], len(self.pos_embedding)  # type: ignore[arg-type]

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int) -> Block:
        attention = Attention(dim, heads, dim_head, self.drop, split_kv=True)
        return attention, FeedForward(dim, mlp_dim, self.drop)
