"""ViT round a given transformer: any module from (B, n, dim) to (B, n, dim), such as one of linear attention."""

from __future__ import annotations

from torch import nn

from vitdeploy.models.blocks import ClassTokenViT, Size, grid, patch_embedding


class ViT(ClassTokenViT):
    """Images (B, channels, H, W) to logits (B, num_classes).

    Args:
        transformer: the module, of width `dim`.

    Raises:
        ValueError: patches that do not fill the image, or an unknown pool.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: int,
        num_classes: int,
        dim: int,
        transformer: nn.Module,
        pool: str = "cls",
        channels: int = 3,
    ) -> None:
        rows, columns = grid(image_size, patch_size)
        embed = patch_embedding(dim, patch_size, channels)
        super().__init__(embed, rows * columns, dim, transformer, num_classes, pool=pool)
