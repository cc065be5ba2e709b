"""SimpleViT that trains on a random part of the patches (Liu et al., PatchDropout, 2208.07220)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import PatchDropout


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes); `patch_dropout` is the share left out while training."""

    def __init__(self, *, patch_dropout: float = 0.5, **vit: Any) -> None:
        super().__init__(**vit)
        self.patch_dropout = PatchDropout(patch_dropout)

    def encode(self, x: Tensor) -> Tensor:
        return self.transformer(self.patch_dropout(x))
