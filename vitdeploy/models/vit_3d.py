"""ViT on videos: its patches span frames as well as pixels (tubelets: Arnab et al., 2103.15691)."""

from __future__ import annotations

from math import prod
from typing import Any

from vitdeploy.models.blocks import Attention, ClassTokenViT, FeedForward, Transformer, video_embedding, video_grid


class ViT(ClassTokenViT):
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
        tokens = prod(video_grid(frames, frame_patch_size, image_size, image_patch_size))
        embed = video_embedding(dim, frame_patch_size, image_patch_size, channels)
        attentions = (Attention(dim, heads, dim_head, dropout, project_out=None) for _ in range(depth))
        blocks = ((attention, FeedForward(dim, mlp_dim, dropout)) for attention in attentions)
        transformer = Transformer(dim, blocks, norm=False)
        super().__init__(embed, tokens, dim, transformer, num_classes, pool=pool, emb_dropout=emb_dropout)
