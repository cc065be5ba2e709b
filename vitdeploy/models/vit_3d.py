"""ViT on videos: its patches span frames as well as pixels (tubelets: Arnab et al., 2103.15691)."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitdeploy.models.blocks import Size, ViTVariant, video_embedding, video_grid


class ViT(ViTVariant, without=("patch_size",)):
    """Videos (B, channels, frames, H, W) to logits (B, num_classes). Smaller videos take the first positions.

    Args:
        image_size, image_patch_size: numbers, or (height, width).
        pool: 'cls' (a learned token that is read at the end) or 'mean' (of all tokens, that one among them).

    Raises:
        ValueError: patches that do not fill the video, or an unknown pool.
    """

    def __init__(self, *, image_patch_size: Size, frames: int, frame_patch_size: int, **vit: Any) -> None:
        self.frames, self.frame_patch_size = frames, frame_patch_size
        super().__init__(patch_size=image_patch_size, **vit)

    def make_embedding(
        self, dim: int, image_size: Size, patch_size: Size, channels: int
    ) -> tuple[nn.Module, tuple[int, ...]]:
        sizes = video_grid(self.frames, self.frame_patch_size, image_size, patch_size)
        return video_embedding(dim, self.frame_patch_size, patch_size, channels), sizes
