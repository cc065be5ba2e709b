"""SimpleViT: ViT with fixed positions, mean pooling, no dropout and no class token (Beyer et al., 2205.01580)."""

from __future__ import annotations

from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    FeedForward,
    Size,
    Transformer,
    Variant,
    grid,
    pair,
    patch_embedding,
    sincos,
)


class SimpleViT(Variant):
    """Images (B, channels, H, W) of `image_size` to logits (B, num_classes).

    Variants override `make_transformer`, `make_block` and `make_head`, and `encode` for what else they do to the
    tokens; they take what is not their own as `**vit`.

    Args:
        image_size, patch_size: numbers, or (height, width).

    Raises:
        ValueError: patches that do not fill the image, or a width that is no multiple of 4.
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
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim ({dim}) must be a multiple of 4, two sines and two cosines")
        self.patch_size = pair(patch_size)
        self.pool = "mean"
        self.to_patch_embedding = patch_embedding(dim, patch_size, channels)
        self.register_buffer("pos_embedding", sincos(grid(image_size, patch_size), dim), persistent=False)
        self.transformer = self.make_transformer(dim, depth, heads, dim_head, mlp_dim)
        self.to_latent = nn.Identity()
        self.linear_head = self.make_head(dim, num_classes)

    def make_transformer(self, dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int) -> nn.Module:
        return Transformer(dim, (self.make_block(dim, heads, dim_head, mlp_dim) for _ in range(depth)))

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int) -> tuple[nn.Module, nn.Module]:
        return Attention(dim, heads, dim_head, dropout=None), FeedForward(dim, mlp_dim, dropout=None)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return nn.Linear(dim, num_classes)

    def encode(self, x: Tensor) -> Tensor:
        """Tokens (B, n, dim) with their positions, to what is pooled."""
        return self.transformer(x)

    def forward(self, img: Tensor) -> Tensor:
        x = self.encode(self.to_patch_embedding(img) + self.pos_embedding)
        return self.linear_head(self.to_latent(x.mean(dim=1)))
