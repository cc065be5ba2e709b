"""ViT that trains on a random part of the patches (Liu et al., PatchDropout, 2208.07220)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    ClassTokenViT,
    FeedForward,
    PatchDropout,
    Size,
    Transformer,
    grid,
    patch_embedding,
    prepend,
)


class ViT(ClassTokenViT):
    """Images (B, channels, H, W) to logits (B, num_classes); `patch_dropout` is the share left out while training.

    Raises:
        ValueError: patches that do not fill the image, an unknown pool, or a share that leaves nothing.
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
        patch_dropout: float = 0.25,
    ) -> None:
        rows, columns = grid(image_size, patch_size)
        attentions = (Attention(dim, heads, dim_head, dropout, project_out=None) for _ in range(depth))
        blocks = ((attention, FeedForward(dim, mlp_dim, dropout)) for attention in attentions)
        super().__init__(
            patch_embedding(dim, patch_size, channels, norms=False),
            rows * columns,
            dim,
            Transformer(dim, blocks, norm=False),
            num_classes,
            pool=pool,
            emb_dropout=emb_dropout,
        )
        self.pos_embedding = nn.Parameter(torch.randn(rows * columns, dim))  # none for the class token
        self.patch_dropout = PatchDropout(patch_dropout)

    def embed(self, img: Tensor) -> Tensor:
        x = self.patch_dropout(self.to_patch_embedding(img) + self.pos_embedding)
        return self.dropout(prepend(self.cls_token, x))
