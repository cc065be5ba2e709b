"""ViT: an image as a sequence of patches, read by a plain transformer (Dosovitskiy et al., 2010.11929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    FeedForward,
    Size,
    Transformer,
    checked_pool,
    grid,
    pair,
    patch_embedding,
    prepend,
)


class ViT(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes); with num_classes=0 to tokens (B, n, dim).

    Smaller images than `image_size` take the first of the position embeddings.

    Args:
        image_size, patch_size: numbers, or (height, width).
        pool: 'cls' (a learned token that is read at the end) or 'mean' (of all tokens).

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
        super().__init__()
        rows, columns = grid(image_size, patch_size)
        prefix = int(pool == "cls")
        self.patch_size = pair(patch_size)
        self.pool = checked_pool(pool)
        self.to_patch_embedding = patch_embedding(dim, patch_size, channels)
        self.cls_token = nn.Parameter(torch.randn(prefix, dim))
        self.pos_embedding = nn.Parameter(torch.randn(rows * columns + prefix, dim))
        self.dropout = nn.Dropout(emb_dropout)
        self.transformer = Transformer(
            dim,
            (
                (Attention(dim, heads, dim_head, dropout, project_out=None), FeedForward(dim, mlp_dim, dropout))
                for _ in range(depth)
            ),
        )
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Linear(dim, num_classes) if num_classes > 0 else None

    def embed(self, img: Tensor) -> Tensor:
        """Tokens (B, n, dim) with their positions, with pool 'cls' the class token first."""
        x = self.to_patch_embedding(img)
        if self.pool == "cls":
            x = prepend(self.cls_token, x)
        return self.dropout(x + self.pos_embedding[: x.shape[1]])

    def forward(self, img: Tensor) -> Tensor:
        x = self.transformer(self.embed(img))
        if self.mlp_head is None:
            return x
        return self.mlp_head(self.to_latent(x.mean(dim=1) if self.pool == "mean" else x[:, 0]))
