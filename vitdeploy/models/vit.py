"""ViT: an image as a sequence of patches, read by a plain transformer (Dosovitskiy et al., 2010.11929)."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from vitdeploy.models.blocks import Block, Transformer, ViTVariant


class ViT(ViTVariant):
    """Images (B, channels, H, W) to logits (B, num_classes); with num_classes=0 to tokens (B, n, dim).

    Smaller images than `image_size` take the first of the position embeddings.

    Args:
        image_size, patch_size: numbers, or (height, width).
        pool: 'cls' (a learned token that is read at the end) or 'mean' (of all tokens; there is no other).

    Raises:
        ValueError: patches that do not fill the image, or an unknown pool.
    """

    def __init__(self, **vit: Any) -> None:
        super().__init__(**vit)
        dim, num_classes, prefix = vit["dim"], vit["num_classes"], int(self.pool == "cls")
        self.cls_token = nn.Parameter(torch.randn(prefix, dim))
        self.pos_embedding = nn.Parameter(torch.randn(prod(self.grid) + prefix, dim))
        self.mlp_head = nn.Linear(dim, num_classes) if num_classes > 0 else None

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return Transformer(dim, blocks)
