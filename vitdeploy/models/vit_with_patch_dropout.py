"""ViT that trains on a random part of the patches (Liu et al., PatchDropout, 2208.07220)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import PatchDropout, ViTVariant, prepend


class ViT(ViTVariant):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments and errors are ViTVariant's, and
    `patch_dropout` the share left out while training."""

    patch_norms = False

    def __init__(self, *, patch_dropout: float = 0.25, **vit: Any) -> None:
        super().__init__(**vit)
        self.pos_embedding = nn.Parameter(torch.randn_like(self.pos_embedding[0, 1:]))  # none for the class token
        self.patch_dropout = PatchDropout(patch_dropout)

    def embed(self, img: Tensor) -> Tensor:
        x = self.patch_dropout(self.to_patch_embedding(img) + self.pos_embedding)
        return self.dropout(prepend(self.cls_token, x))
