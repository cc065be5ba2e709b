"""SimpleViT on videos: fixed positions of three axes, mean pooling, no dropout (after Beyer et al., 2205.01580)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, FeedForward, Transformer, pair, sincos, video_embedding, video_grid


class SimpleViT(nn.Module):
    """Videos (B, channels, frames, H, W) to logits (B, num_classes).

    Variants override `make_block`.

    Args:
        image_size, image_patch_size: numbers, or (height, width).

    Raises:
        ValueError: patches that do not fill the video, or a width under 12.
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
        channels: int = 3,
        dim_head: int = 64,
    ) -> None:
        super().__init__()
        sizes = video_grid(frames, frame_patch_size, image_size, image_patch_size)
        self.patch_size = pair(image_patch_size)
        self.to_patch_embedding = video_embedding(dim, frame_patch_size, image_patch_size, channels)
        self.register_buffer("pos_embedding", sincos(sizes, dim), persistent=False)
        self.transformer = Transformer(dim, (self.make_block(dim, heads, dim_head, mlp_dim) for _ in range(depth)))
        self.to_latent = nn.Identity()
        self.linear_head = nn.Linear(dim, num_classes)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int) -> tuple[nn.Module, nn.Module]:
        return Attention(dim, heads, dim_head, dropout=None), FeedForward(dim, mlp_dim, dropout=None)

    def forward(self, video: Tensor) -> Tensor:
        x = self.transformer(self.to_patch_embedding(video) + self.pos_embedding)
        return self.linear_head(self.to_latent(x.mean(dim=1)))
