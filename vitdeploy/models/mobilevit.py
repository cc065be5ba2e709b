"""MobileViT (Mehta and Rastegari, 2110.02178) and MobileViTv2 (2206.02680), with timm's parameter names.

Both cut the feature map into 2x2 patches and let the pixels of one position within the patch attend to each other.
Only attention cares which pixel stands where: every Linear, LayerNorm and 1x1 convolution works on pixels alone. So the
map is never unfolded: pixels stay in raster order, and the regrouping happens inside the attention's own transpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.layers import Attention, Block, ClassifierHead, ConvNormAct, attend, make_divisible


def check_image_size(size: tuple[int, int]) -> None:
    """Raise UsageError for an image that five stride-2 stages shrink to nothing worth attending to."""
    if min(size) < 32:
        raise UsageError(f"Image size {size[0]}x{size[1]} is too small.", fix="The smallest that works: 32x32.")


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation (MobileNetV2, 1801.04381)."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, expand: float) -> None:
        super().__init__()
        mid = make_divisible(in_chs * expand)
        self.residual = stride == 1 and in_chs == out_chs
        self.conv1_1x1 = ConvNormAct(in_chs, mid)
        self.conv2_kxk = ConvNormAct(mid, mid, 3, stride, groups=mid)
        self.conv3_1x1 = ConvNormAct(mid, out_chs, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.residual else y


def bilinear_matrix(size: int, target: int, align_corners: bool) -> Tensor:
    """The (target, size) matrix of 1-D bilinear interpolation, as torch's interpolate defines it."""
    rows = []
    for row in range(target):
        if align_corners:
            position = row * (size - 1) / (target - 1) if target > 1 else 0.0
        else:
            position = max((row + 0.5) * size / target - 0.5, 0.0)
        low = min(int(position), size - 1)
        high = min(low + 1, size - 1)
        weights = [0.0] * size
        weights[low] += 1 - (position - low)
        weights[high] += position - low
        rows.append(weights)
    return torch.tensor(rows)


def resize_bilinear(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Bilinear resize of (B, C, H, W) as two matrix products, so that no Resize node reaches the runtimes."""
    if (x.shape[2], x.shape[3]) == (height, width):
        return x
    rows = bilinear_matrix(x.shape[2], height, align_corners).to(x)
    columns = bilinear_matrix(x.shape[3], width, align_corners).to(x)
    return rows @ x @ columns.mT


class PatchwiseAttention(Attention):
    """Attention among the pixels of one position within their patch, over a channels-last map (B, H, W, dim)."""

    def __init__(
        self, dim: int, num_heads: int, patch_size: int, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        rows, p = x.shape[1] // self.patch_size, self.patch_size
        # a pixel's column within its patch and its heads are neighbours in memory: as one axis, qh, they move together
        q, k, v = (
            rearrange(
                rearrange(t, "b (i p) (j q) (h d) -> b i p j (q h) d", p=p, q=p, h=self.num_heads),
                "b i p j qh d -> b (p qh) (i j) d",
            )
            for t in self.qkv(x).chunk(3, dim=-1)
        )
        y = attend(q, k, v, self.scale, dropout=self.attn_drop if self.training else 0.0)
        y = rearrange(y, "b (p qh) (i j) d -> b i p j qh d", p=p, i=rows)
        y = rearrange(y, "b i p j (q h) d -> b (i p) (j q) (h d)", q=p)
        return self.proj_drop(self.proj(y))


class MobileViTBlock(nn.Module):
    """Local 3x3 convolution, transformer over patch positions, 1x1 projection, 3x3 fusion with the input."""

    def __init__(
        self,
        chs: int,
        dim: int,
        depth: int,
        patch_size: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_kxk = ConvNormAct(chs, chs, 3)
        self.conv_1x1 = nn.Conv2d(chs, dim, 1, bias=False)
        self.transformer = nn.Sequential(
            *(
                Block(
                    dim,
                    PatchwiseAttention(dim, num_heads, patch_size, attn_drop, drop),
                    mlp_ratio,
                    act_layer="silu",
                    norm_eps=1e-5,
                    proj_drop=drop,
                    drop_path=drop_path,
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.conv_proj = ConvNormAct(dim, chs)
        self.conv_fusion = ConvNormAct(2 * chs, chs, 3)

    def forward(self, x: Tensor) -> Tensor:
        height, width, p = x.shape[2], x.shape[3], self.patch_size
        rows, columns = -(-height // p), -(-width // p)
        y = self.conv_1x1(self.conv_kxk(x))
        y = resize_bilinear(y, rows * p, columns * p, align_corners=False)
        y = self.norm(self.transformer(rearrange(y, "b c h w -> b h w c")))
        y = rearrange(y, "b h w c -> b c h w")
        y = resize_bilinear(y, height, width, align_corners=False)
        return self.conv_fusion(torch.cat((x, self.conv_proj(y)), dim=1))


class LinearSelfAttention(nn.Module):
    """Separable self-attention (2206.02680): one score a pixel, cost linear in pixels. (B, dim, H, W) in and out.

    Scores are normalised among the pixels of one position within their patch. A constant 0/1 matrix says which pixel
    has which position, so that the map itself never needs to be cut into patches.
    """

    def __init__(self, dim: int, patch_size: int, drop: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.patch_size = patch_size
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.out_proj = nn.Conv2d(dim, dim, 1)
        self.out_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        height, width, p = x.shape[2], x.shape[3], self.patch_size
        query, key, value = self.qkv_proj(x).split((1, self.dim, self.dim), dim=1)
        scores = rearrange(query, "b 1 (i p) (j q) -> b p q (i j)", p=p, q=p).softmax(dim=-1)
        scores = rearrange(scores, "b p q (i j) -> b (i p j q) 1", i=height // p)
        member = patch_positions(height, width, p).to(x)
        context = rearrange(key, "b c y x -> b c (y x)") @ (scores * member)
        context = rearrange(context @ member.mT, "b c (y x) -> b c y x", y=height)
        return self.out_drop(self.out_proj(value.relu() * context))


def patch_positions(height: int, width: int, patch: int) -> Tensor:
    """The (height * width, patch ** 2) 0/1 matrix of which pixel has which position within its patch."""
    position = torch.arange(height)[:, None] % patch * patch + torch.arange(width) % patch
    return (position.reshape(-1, 1) == torch.arange(patch * patch)).float()


class ConvMlp(nn.Module):
    """1x1 convolution, SiLU, 1x1 convolution."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.SiLU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class LinearTransformerBlock(nn.Module):
    """Pre-norm block of MobileViTv2; its norm is a GroupNorm of one group, over channels and pixels together."""

    def __init__(self, dim: int, patch_size: int, mlp_ratio: float = 2.0, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = LinearSelfAttention(dim, patch_size, drop)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MobileViTV2Block(nn.Module):
    """Depthwise 3x3 and 1x1 convolution, linear transformer, 1x1 projection without activation; no fusion."""

    def __init__(self, chs: int, depth: int, patch_size: int = 2, drop: float = 0.0) -> None:
        super().__init__()
        dim = make_divisible(0.5 * chs)
        self.patch_size = patch_size
        self.conv_kxk = ConvNormAct(chs, chs, 3, groups=chs)
        self.conv_1x1 = nn.Conv2d(chs, dim, 1, bias=False)
        self.transformer = nn.Sequential(*(LinearTransformerBlock(dim, patch_size, drop=drop) for _ in range(depth)))
        self.norm = nn.GroupNorm(1, dim)
        self.conv_proj = ConvNormAct(dim, chs, act=None)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (-(-n // self.patch_size) * self.patch_size for n in x.shape[2:])
        x = resize_bilinear(x, rows, columns, align_corners=True)
        return self.conv_proj(self.norm(self.transformer(self.conv_1x1(self.conv_kxk(x)))))


class MobileViT(nn.Module):
    """MobileViT v1: (B, in_chans, H, W) float -> (B, num_classes) logits. Any H, W >= 32.

    Args:
        stem_chs: channels of the first 3x3 stride-2 convolution.
        stages: five mappings with 'depth', 'chs', 'stride', 'expand' (inverted residuals) and, where a MobileViT block
            follows, 'dim' (transformer width) and 'blocks' (its depth).
        num_features: channels of the last 1x1 convolution.
        patch_size: side of the patches, in pixels of the feature map.
        drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: regularisation while training.
    """

    def __init__(
        self,
        stem_chs: int,
        stages: Sequence[Mapping[str, Any]],
        num_features: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 2,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_chans, stem_chs, 3, 2)
        chs, built = stem_chs, []
        for stage in stages:
            blocks: list[nn.Module] = []
            for i in range(stage["depth"]):
                stride = stage["stride"] if i == 0 else 1
                blocks.append(InvertedResidual(chs, stage["chs"], stride, stage["expand"]))
                chs = stage["chs"]
            if "dim" in stage:
                dim, blocks_inside = stage["dim"], stage["blocks"]
                drops = (attn_drop_rate, proj_drop_rate, drop_path_rate)
                blocks.append(MobileViTBlock(chs, dim, blocks_inside, patch_size, 4, 2.0, *drops))
            built.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*built)
        self.final_conv = ConvNormAct(chs, num_features)
        self.head = ClassifierHead(num_features, num_classes, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) to the last feature map (B, num_features, H/32, W/32)."""
        check_image_size((x.shape[2], x.shape[3]))
        return self.final_conv(self.stages(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


# MobileViTv2: channels at width 1, inverted residuals, stride, transformer blocks
V2_STAGES = ((64, 1, 1, 0), (128, 2, 2, 0), (256, 1, 2, 2), (384, 1, 2, 4), (512, 1, 2, 3))


class MobileViTV2(nn.Module):
    """MobileViTv2 of a width multiplier: (B, in_chans, H, W) float -> (B, num_classes) logits. Any H, W >= 32."""

    def __init__(
        self,
        width: float = 1.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 2,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        chs = int(32 * width)
        self.stem = ConvNormAct(in_chans, chs, 3, 2)
        built = []
        for base, depth, stride, transformer in V2_STAGES:
            blocks: list[nn.Module] = []
            for i in range(depth):
                blocks.append(InvertedResidual(chs, int(base * width), stride if i == 0 else 1, 2.0))
                chs = int(base * width)
            if transformer:
                blocks.append(MobileViTV2Block(chs, transformer, patch_size, proj_drop_rate))
            built.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*built)
        self.head = ClassifierHead(chs, num_classes, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) to the last feature map (B, 512 * width, H/32, W/32)."""
        check_image_size((x.shape[2], x.shape[3]))
        return self.stages(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))
