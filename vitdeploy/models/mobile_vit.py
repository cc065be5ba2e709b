"""MobileViT with vit-pytorch's constructor: convolutions, and between two of them a transformer over unfolded patches
(Mehta and Rastegari, MobileViT, 2110.02178)."""

from __future__ import annotations

import torch
from einops import rearrange
from einops.layers.torch import Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import FeedForward, Transformer, out_projection, pair, parts
from vitdeploy.models.layers import attend


def conv(
    dim: int, dim_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> list[nn.Module]:
    """Convolution without bias, BatchNorm, and SiLU."""
    made = [nn.Conv2d(dim, dim_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(dim_out)]
    return [*made, nn.SiLU()] if act else made


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., 1801.04381): widen, convolve each channel, narrow."""

    def __init__(self, dim: int, dim_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = dim * expansion
        widen = [] if expansion == 1 else conv(dim, hidden)
        depthwise = conv(hidden, hidden, 3, stride, hidden)
        self.conv = nn.Sequential(*widen, *depthwise, *conv(hidden, dim_out, act=False))
        self.residual = stride == 1 and dim == dim_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class PixelAttention(nn.Module):
    """Attention among pixels that have the same place in their patch: (B, places, patches, dim), 4 heads of 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * 32, bias=False)
        self.to_out = out_projection(32, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "b p n (h d) -> b p h n d", h=4) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        return self.to_out(rearrange(attend(q, k, v, 8**-0.5), "b p h n d -> b p n (h d)"))


class MobileViTBlock(nn.Module):
    """A convolution for what is near, a transformer for what is far, both joined with the input."""

    def __init__(self, dim: int, depth: int, channel: int, kernel: int, patch: tuple[int, int], mlp_dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv1 = nn.Sequential(*conv(channel, channel, kernel))
        self.conv2 = nn.Sequential(*conv(channel, dim))
        blocks = ((PixelAttention(dim), FeedForward(dim, mlp_dim, act=nn.SiLU)) for _ in range(depth))
        self.transformer = Transformer(dim, blocks, norm=False)
        self.conv3 = nn.Sequential(*conv(dim, channel))
        self.conv4 = nn.Sequential(*conv(2 * channel, channel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        high, wide = self.patch
        far = self.conv2(self.conv1(x))
        rows = far.shape[-2] // high
        far = self.transformer(rearrange(far, "b d (h p) (w q) -> b (p q) (h w) d", p=high, q=wide))
        far = rearrange(far, "b (p q) (h w) d -> b d (h p) (w q)", p=high, h=rows)
        return self.conv4(torch.cat((self.conv3(far), x), dim=1))


class MobileViT(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes).

    It is not the paper's: attention has 4 heads of 8 whatever its width and no biases, the MLPs are 2, 4 and 4 times as
    wide, transformers end without a norm, BatchNorm and SiLU stand behind each 1x1 convolution, the fusion has the
    input last, and the classifier no bias. The paper's is `mobilevit_s` of the catalog, in mobilevit.py.

    Args:
        image_size: (height, width).
        dims, depths: widths and blocks of the three transformers.
        channels: eleven, from the stem to the classifier.

    Raises:
        ValueError: too few numbers, or maps that patches do not fill.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        dims: tuple[int, ...] | list[int],
        channels: tuple[int, ...] | list[int],
        num_classes: int,
        expansion: int = 4,
        kernel_size: int = 3,
        patch_size: tuple[int, int] = (2, 2),
        depths: tuple[int, ...] = (2, 4, 3),
    ) -> None:
        super().__init__()
        for name, values, count in (("dims", dims, 3), ("depths", depths, 3), ("channels", channels, 11)):
            if len(values) != count:
                raise ValueError(f"{name} {tuple(values)} must be {count} numbers")
        if channels[2] != channels[3]:
            raise ValueError(f"channels[2] and channels[3] ({channels[2]}, {channels[3]}) must be the same")
        for size, patch in zip(pair(image_size), pair(patch_size), strict=True):
            maps = [-(-size // reduction) for reduction in (8, 16, 32)]
            if any(side % patch for side in maps):
                raise ValueError(f"patch_size ({patch}) must divide the maps' sides {maps} of image_size ({size})")
        self.conv1 = nn.Sequential(*conv(3, channels[0], 3, 2))
        strides = (1, 2, 1, 1)
        ends = ((0, 1), (1, 2), (2, 3), (2, 3))
        self.stem = nn.ModuleList(
            InvertedResidual(channels[a], channels[b], stride, expansion)
            for (a, b), stride in zip(ends, strides, strict=True)
        )
        self.trunk = nn.ModuleList()
        for at, dim, depth, mult in zip((3, 5, 7), dims, depths, (2, 4, 4), strict=True):
            block = MobileViTBlock(dim, depth, channels[at + 2], kernel_size, pair(patch_size), dim * mult)
            self.trunk.append(nn.ModuleList([InvertedResidual(channels[at], channels[at + 1], 2, expansion), block]))
        self.to_logits = nn.Sequential(
            nn.Sequential(*conv(channels[-2], channels[-1])),
            Reduce("b c h w -> b c", "mean"),
            nn.Linear(channels[-1], num_classes, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.stem:
            x = block(x)
        for down, block in parts(self.trunk):
            x = block(down(x))
        return self.to_logits(x)
