"""Parallel ViT: each layer has several attentions side by side, then several MLPs (Touvron et al., Three things
everyone should know about Vision Transformers, 2203.09795)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vitdeploy.models.blocks import Block, ViTVariant


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


class ViT(ViTVariant):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments and errors are ViTVariant's, and more:

    Args:
        num_parallel_branches: attentions, and MLPs, in a layer.
    """

    patch_norms = False

    def __init__(self, *, num_parallel_branches: int = 2, **vit: Any) -> None:
        self.branches = range(num_parallel_branches)
        super().__init__(**vit)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        found = [super(ViT, self).make_block(dim, heads, dim_head, mlp_dim, dropout) for _ in self.branches]
        return Parallel(attention for attention, _ in found), Parallel(ff for _, ff in found)
