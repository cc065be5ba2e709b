"""SimpleViT that trains on a random part of the patches (Liu et al., PatchDropout, 2208.07220)."""

from __future__ import annotations

from torch import Tensor

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import PatchDropout, Size


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes); `patch_dropout` is the share left out while training."""

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
        channels: int = 3,
        dim_head: int = 64,
        patch_dropout: float = 0.5,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
        )
        self.patch_dropout = PatchDropout(patch_dropout)

    def encode(self, x: Tensor) -> Tensor:
        return self.transformer(self.patch_dropout(x))
