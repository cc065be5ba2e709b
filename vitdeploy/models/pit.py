"""PiT: a ViT that pools its tokens between stages, as convolutional networks do (Heo et al., Rethinking Spatial
Dimensions of Vision Transformers, 2103.16302)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, FeedForward, Transformer, norm_head, of_stages, prepend


class OverlappingPatches(nn.Sequential):
    """Images to tokens (B, n, dim) of patches that overlap by half: a convolution, whose weights are a Linear's."""

    def __init__(self, dim: int, patch_size: int, channels: int) -> None:
        super().__init__(nn.Identity(), nn.Identity(), nn.Linear(channels * patch_size**2, dim))
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        linear = self[2]
        assert isinstance(linear, nn.Linear)
        kernel = linear.weight.unflatten(1, (-1, self.patch_size, self.patch_size))
        return rearrange(F.conv2d(x, kernel, linear.bias, stride=self.patch_size // 2), "b c h w -> b (h w) c")


class Pool(nn.Module):
    """Half the rows and columns, twice the width; the class token is projected."""

    def __init__(self, dim: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.downsample = nn.Module()
        depthwise = nn.Conv2d(dim, dim * 2, 3, stride=2, padding=1, groups=dim)
        self.downsample.net = nn.Sequential(depthwise, nn.Conv2d(dim * 2, dim * 2, 1))
        self.cls_ff = nn.Linear(dim, dim * 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.downsample.net(rearrange(x[:, 1:], "b (h w) c -> b c h w", h=self.rows))  # type: ignore[operator]
        return torch.cat((self.cls_ff(x[:, :1]), rearrange(pooled, "b c h w -> b (h w) c")), dim=1)


class PiT(nn.Module):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes).

    Args:
        depth: layers of each stage.
        heads: of each stage, or a number for all.

    Raises:
        ValueError: patches that do not fill the image, an odd patch, or numbers that are not of each stage.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: tuple[int, ...],
        heads: int | tuple[int, ...],
        mlp_dim: int,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size % patch_size or patch_size < 2:
            raise ValueError(f"patch_size ({patch_size}) must be 2 or more and divide image_size ({image_size})")
        if not isinstance(depth, tuple):
            raise ValueError(f"depth ({depth}) must be a tuple: the layers of each stage")
        every = of_stages("heads", heads, len(depth))
        rows = (image_size - patch_size) // (patch_size // 2) + 1
        self.to_patch_embedding = OverlappingPatches(dim, patch_size, channels)
        self.pos_embedding = nn.Parameter(torch.randn(1, rows * rows + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(emb_dropout)
        layers: list[nn.Module] = []
        for stage, (count, of_stage) in enumerate(zip(depth, every, strict=True)):
            attentions = [Attention(dim, of_stage, dim_head, dropout) for _ in range(count)]
            blocks = [(attention, FeedForward(dim, mlp_dim, dropout)) for attention in attentions]
            layers.append(Transformer(dim, blocks, norm=False))
            if stage < len(depth) - 1:
                layers.append(Pool(dim, rows))
                dim, rows = dim * 2, (rows + 1) // 2
        self.layers = nn.Sequential(*layers)
        self.mlp_head = norm_head(dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        x = prepend(self.cls_token, self.to_patch_embedding(img))
        return self.mlp_head(self.layers(self.dropout(x + self.pos_embedding[:, : x.shape[1]]))[:, 0])
