"""DeepViT: attention maps of deep layers grow alike, so each layer mixes its heads' maps anew (Zhou et al.,
2103.11886)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, ClassTokenViT, FeedForward, Size, Transformer, grid, patch_embedding
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


class DeepViT(ClassTokenViT):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes).

    Raises:
        ValueError: patches that do not fill the image, or an unknown pool.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: Size,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        pool: str = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        rows, columns = grid(image_size, patch_size)
        blocks = (
            (ReAttention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)) for _ in range(depth)
        )
        super().__init__(
            patch_embedding(dim, patch_size, channels),
            rows * columns,
            dim,
            Transformer(dim, blocks, norm=False),
            num_classes,
            pool=pool,
            emb_dropout=emb_dropout,
        )
