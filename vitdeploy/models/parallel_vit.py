"""Parallel ViT: each layer has several attentions side by side, then several MLPs (Touvron et al., Three things
everyone should know about Vision Transformers, 2203.09795)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, ClassTokenViT, FeedForward, Size, Transformer, grid, patch_embedding


class Parallel(nn.Module):
    """The sum of what each of several modules makes of the same input."""

    def __init__(self, fns: Iterable[nn.Module]) -> None:
        super().__init__()
        self.fns = nn.ModuleList(fns)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (fn(x) for fn in self.fns)
        for other in others:
            first = first + other
        return first


class ViT(ClassTokenViT):
    """Images (B, channels, H, W) to logits (B, num_classes).

    Args:
        num_parallel_branches: attentions, and MLPs, in a layer.

    Raises:
        ValueError: patches that do not fill the image, or an unknown pool.
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
        pool: str = "cls",
        num_parallel_branches: int = 2,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        rows, columns = grid(image_size, patch_size)
        branches = range(num_parallel_branches)
        blocks = (
            (
                Parallel(Attention(dim, heads, dim_head, dropout, project_out=None) for _ in branches),
                Parallel(FeedForward(dim, mlp_dim, dropout) for _ in branches),
            )
            for _ in range(depth)
        )
        super().__init__(
            patch_embedding(dim, patch_size, channels, norms=False),
            rows * columns,
            dim,
            Transformer(dim, blocks, norm=False),
            num_classes,
            pool=pool,
            emb_dropout=emb_dropout,
        )
