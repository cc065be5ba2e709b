"""SimpleViT with registers: learned tokens that only take part in attention (Darcet et al., Vision Transformers Need
Registers, 2309.16588)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import Size, append


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes); `num_register_tokens` are not pooled."""

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
        num_register_tokens: int = 4,
        channels: int = 3,
        dim_head: int = 64,
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
        self.register_tokens = nn.Parameter(torch.randn(num_register_tokens, dim))

    def encode(self, x: Tensor) -> Tensor:
        return self.transformer(append(x, self.register_tokens))[:, : x.shape[1]]
