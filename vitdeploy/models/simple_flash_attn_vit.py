"""SimpleViT by FlashAttention: the same attention without its matrix of scores in memory (Dao et al., 2205.14135)."""

from __future__ import annotations

from torch import nn

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import Attention, FeedForward, Size, Transformer, norm_head


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes). A norm stands in the head, none behind the transformer.

    Args:
        use_flash: of no effect: PyTorch takes FlashAttention where the device has it, and the function is the same.
    """

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
        use_flash: bool = True,
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

    def make_transformer(self, dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int) -> nn.Module:
        attentions = (Attention(dim, heads, dim_head, dropout=None) for _ in range(depth))
        blocks = ((attention, FeedForward(dim, mlp_dim, dropout=None)) for attention in attentions)
        return Transformer(dim, blocks, norm=False)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return norm_head(dim, num_classes)
