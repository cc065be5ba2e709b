"""DeepViT: attention maps of deep layers grow alike, so each layer mixes its heads' maps anew (Zhou et al.,
2103.11886)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, Block, FeedForward, ViTVariant
from vitdeploy.models.layers import record


class ReAttention(Attention):
    """Attention whose maps are mixed over the heads, and normed over them, before they weigh the values."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout)
        self.dropout = nn.Dropout(dropout)
        self.reattn_weights = nn.Parameter(torch.randn(heads, heads))
        self.reattn_norm = nn.Sequential(nn.Identity(), nn.LayerNorm(heads))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        maps = self.dropout(record((q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)))
        maps = self.reattn_norm(maps.movedim(1, -1) @ self.reattn_weights)
        return maps.movedim(-1, 1) @ v


class DeepViT(ViTVariant):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments and errors are ViTVariant's."""

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        return ReAttention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)
