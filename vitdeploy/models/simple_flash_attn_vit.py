"""SimpleViT by FlashAttention: the same attention without its matrix of scores in memory (Dao et al., 2205.14135)."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import Transformer, norm_head


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes). A norm stands in the head, none behind the transformer.

    Args:
        use_flash: of no effect: PyTorch takes FlashAttention where the device has it, and the function is the same.
    """

    def __init__(self, *, use_flash: bool = True, **vit: Any) -> None:
        super().__init__(**vit)

    def make_transformer(self, dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int) -> nn.Module:
        blocks = (self.make_block(dim, heads, dim_head, mlp_dim) for _ in range(depth))
        return Transformer(dim, blocks, norm=False)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return norm_head(dim, num_classes)
