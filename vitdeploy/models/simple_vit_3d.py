"""SimpleViT on videos: fixed positions of three axes, mean pooling, no dropout (after Beyer et al., 2205.01580)."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import Size, video_embedding, video_grid


class SimpleViT(simple_vit.SimpleViT, without=("patch_size",)):
    """Videos (B, channels, frames, H, W) to logits (B, num_classes).

    Args:
        image_size, image_patch_size: numbers, or (height, width).

    Raises:
        ValueError: patches that do not fill the video, or a width under 12.
    """

    def __init__(self, *, image_patch_size: Size, frames: int, frame_patch_size: int, **vit: Any) -> None:
        self.frames, self.frame_patch_size = frames, frame_patch_size
        super().__init__(patch_size=image_patch_size, **vit)

    def make_embedding(
        self, dim: int, image_size: Size, patch_size: Size, channels: int
    ) -> tuple[nn.Module, tuple[int, ...]]:
        sizes = video_grid(self.frames, self.frame_patch_size, image_size, patch_size)
        return video_embedding(dim, self.frame_patch_size, patch_size, channels), sizes
