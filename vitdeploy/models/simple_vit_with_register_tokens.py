"""SimpleViT with registers: learned tokens that only take part in attention (Darcet et al., Vision Transformers Need
Registers, 2309.16588)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import append


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes); `num_register_tokens` are not pooled."""

    def __init__(self, *, num_register_tokens: int = 4, **vit: Any) -> None:
        super().__init__(**vit)
        self.register_tokens = nn.Parameter(torch.randn(num_register_tokens, vit["dim"]))

    def encode(self, x: Tensor) -> Tensor:
        return self.transformer(append(x, self.register_tokens))[:, : x.shape[1]]
