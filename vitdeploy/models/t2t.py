"""T2T-ViT: tokens are made of overlapping patches of tokens, a few times, with a transformer layer between
(Yuan et al., Tokens-to-Token ViT, 2101.11986)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import ClassTokenViT, encoder


class Unfold(nn.Module):
    """Tokens (B, rows * rows, dim), or an image, to the tokens of its overlapping patches (B, n, dim * kernel ** 2).

    Each value of a patch is picked by a convolution with a one in its place: one node in a graph, where torch's Unfold
    is many.
    """

    def __init__(self, dim: int, kernel: int, stride: int, rows: int | None) -> None:
        super().__init__()
        self.dim, self.stride, self.rows = dim, stride, rows
        ones = torch.eye(kernel**2).view(kernel**2, 1, kernel, kernel).repeat(dim, 1, 1, 1)
        self.ones: Tensor
        self.register_buffer("ones", ones, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            x = rearrange(x, "b (h w) c -> b c h w", h=self.rows)
        patches = F.conv2d(x, self.ones, stride=self.stride, padding=self.stride // 2, groups=self.dim)
        return rearrange(patches, "b c h w -> b (h w) c")


class T2TViT(ClassTokenViT):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes).

    Args:
        depth, heads, mlp_dim: of the transformer, needed unless `transformer` is given.
        transformer: any module from (B, n, dim) to (B, n, dim).
        t2t_layers: (kernel, stride) of each step.

    Raises:
        ValueError: an unknown pool, or no transformer.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_classes: int,
        dim: int,
        depth: int | None = None,
        heads: int | None = None,
        mlp_dim: int | None = None,
        pool: str = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        transformer: nn.Module | None = None,
        t2t_layers: tuple[tuple[int, int], ...] = ((7, 4), (3, 2), (3, 2)),
    ) -> None:
        layers: list[nn.Module] = []
        width, rows = channels, image_size
        for step, (kernel, stride) in enumerate(t2t_layers):
            unfold = Unfold(width, kernel, stride, rows if step else None)
            width *= kernel**2
            last = step == len(t2t_layers) - 1
            middle = nn.Identity() if last else encoder(width, 1, 1, width, width, dropout, project_out=None)
            layers += [nn.Identity(), unfold, nn.Identity(), middle]  # theirs has four, too
            rows = (rows - kernel + 2 * (stride // 2)) // stride + 1
        if rows < 1:
            raise ValueError(f"t2t_layers {t2t_layers} leave nothing of image_size ({image_size})")
        if transformer is None:
            if depth is None or heads is None or mlp_dim is None:
                raise ValueError("depth, heads and mlp_dim must be given where transformer is not")
            transformer = encoder(dim, depth, heads, dim_head, mlp_dim, dropout, project_out=None)
        embed = nn.Sequential(*layers, nn.Linear(width, dim))
        super().__init__(embed, rows * rows, dim, transformer, num_classes, pool=pool, emb_dropout=emb_dropout)
        self.mlp_head = nn.Linear(dim, num_classes)
