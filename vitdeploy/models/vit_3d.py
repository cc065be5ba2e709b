"""ViT on videos: its patches span frames as well as pixels (tubelets: Arnab et al., 2103.15691)."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, FeedForward, Transformer, pair, prepend, video_embedding, video_grid


class ViT(nn.Module):
    """Videos (B, channels, frames, H, W) to logits (B, num_classes). Smaller videos take the first positions.

    Args:
        image_size, image_patch_size: numbers, or (height, width).
        pool: 'cls' (a learned token that is read at the end) or 'mean' (of all tokens, that one among them).

    Raises:
        ValueError: patches that do not fill the video, or an unknown pool.
    """

    def __init__(
        self,
        *,
        image_size: Any,
        image_patch_size: Any,
        frames: int,
        frame_patch_size: int,
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
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool ({pool!r}) must be 'cls' or 'mean'")
        tokens = prod(video_grid(frames, frame_patch_size, image_size, image_patch_size))
        self.patch_size = pair(image_patch_size)
        self.pool = pool
        self.to_patch_embedding = video_embedding(dim, frame_patch_size, image_patch_size, channels)
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(emb_dropout)
        blocks = (
            (Attention(dim, heads, dim_head, dropout, project_out=None), FeedForward(dim, mlp_dim, dropout))
            for _ in range(depth)
        )
        self.transformer = Transformer(dim, blocks, norm=False)
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, video: Tensor) -> Tensor:
        x = prepend(self.cls_token, self.to_patch_embedding(video))
        x = self.transformer(self.dropout(x + self.pos_embedding[:, : x.shape[1]]))
        return self.mlp_head(self.to_latent(x.mean(dim=1) if self.pool == "mean" else x[:, 0]))
