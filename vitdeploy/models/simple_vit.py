"""SimpleViT: ViT with fixed positions, mean pooling, no dropout and no class token (Beyer et al., 2205.01580)."""

from __future__ import annotations

from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    Block,
    FeedForward,
    Size,
    Transformer,
    Variant,
    grid,
    norm_head,
    pair,
    patch_embedding,
    sincos,
)


class SimpleViT(Variant):
    """Images (B, channels, H, W) of `image_size` to logits (B, num_classes).

    Variants override `make_embedding`, `make_block` and `make_transformer`, and `encode` for what else they do to the
    tokens; they take what is not their own as `**vit`.

    Args:
        image_size, patch_size: numbers, or (height, width).

    Raises:
        ValueError: patches that do not fill the image, or a width that is no multiple of 4.
    """

    head_norm = False  # whether the last norm stands in the head, behind the pooling

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
        self.patch_size = pair(patch_size)
        self.pool = "mean"
        self.to_patch_embedding, sizes = self.make_embedding(dim, image_size, patch_size, channels)
        self.register_buffer("pos_embedding", sincos(sizes, dim), persistent=False)
        self.transformer = self.make_transformer(
            dim, [self.make_block(dim, heads, dim_head, mlp_dim) for _ in range(depth)]
        )
        self.to_latent = nn.Identity()
        self.linear_head = norm_head(dim, num_classes) if self.head_norm else nn.Linear(dim, num_classes)

    def make_embedding(
        self, dim: int, image_size: Size, patch_size: Size, channels: int
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """What makes tokens, and how many along each axis."""
        if dim % 4:
            raise ValueError(f"dim ({dim}) must be a multiple of 4, two sines and two cosines")
        return patch_embedding(dim, patch_size, channels), grid(image_size, patch_size)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int) -> Block:
        return Attention(dim, heads, dim_head, dropout=None), FeedForward(dim, mlp_dim, dropout=None)

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return Transformer(dim, blocks, norm=not self.head_norm)

    def encode(self, x: Tensor) -> Tensor:
        """Tokens (B, n, dim) with their positions, to what is pooled."""
        return self.transformer(x)

    def forward(self, img: Tensor) -> Tensor:
        x = self.encode(self.to_patch_embedding(img) + self.pos_embedding)
        return self.linear_head(self.to_latent(x.mean(dim=1)))
