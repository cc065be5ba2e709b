"""CrossViT with timm's constructor and keys, as its authors trained it: one image in small patches and in large ones,
and class tokens that attend to the patches of the other branch (Chen et al., 2103.14899). vit-pytorch's is cross_vit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.blocks import prepend
from vitdeploy.models.cait import ClassAttn
from vitdeploy.models.layers import Attention, Block, DropPath, linspace_rates, to_pair
from vitdeploy.models.vision_transformer import check_image_size, check_pool


def bicubic_matrix(size: int, target: int) -> Tensor:
    """The (target, size) matrix of 1-D bicubic interpolation, as torch's interpolate has it (Keys, 1981, a = -0.75)."""
    a = -0.75
    rows = []
    for row in range(target):
        weights = [0.0] * size
        position = (row + 0.5) * size / target - 0.5
        low = int(position // 1)
        for tap in range(low - 1, low + 3):
            x = abs(position - tap)
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            weights[min(max(tap, 0), size - 1)] += near if x <= 1 else far
        rows.append(weights)
    return torch.tensor(rows)


def resize_bicubic(x: Tensor, target: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, *target): two matrix products, so that no Resize node reaches the runtimes.

    The matrices stand on the left, where they are no weights, which quantisation would round.
    """
    if x.shape[-2:] == target:
        return x
    rows, columns = (bicubic_matrix(*pair).to(x) for pair in zip(x.shape[-2:], target, strict=True))
    return (columns @ (rows @ x).mT).mT


def crop(x: Tensor, target: tuple[int, int]) -> Tensor:
    """The middle of (B, C, H, W)."""
    top, left = (round((size - wanted) / 2) for size, wanted in zip(x.shape[-2:], target, strict=True))
    return x[:, :, top : top + target[0], left : left + target[1]]


class PatchEmbed(nn.Module):
    """(B, in_chans, H, W) to (B, n, dim): one convolution, or with `multi_conv` three that overlap."""

    def __init__(self, patch: int, in_chans: int, dim: int, multi_conv: bool) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Conv2d(in_chans, dim, patch, stride=patch)
        if multi_conv:
            if patch not in (12, 16):
                raise UsageError(f"patch_size {patch} has no multi_conv: it is for patches of 12 and 16.")
            kernel, strides = 3, ((3, 0), (1, 1)) if patch == 12 else ((2, 1), (2, 1))
            (second, pad), (third, edge) = strides
            self.proj = nn.Sequential(
                nn.Conv2d(in_chans, dim // 4, 7, stride=4, padding=3),
                nn.ReLU(),
                nn.Conv2d(dim // 4, dim // 2, kernel, stride=second, padding=pad),
                nn.ReLU(),
                nn.Conv2d(dim // 2, dim, kernel, stride=third, padding=edge),
            )

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b c h w -> b (h w) c")


class CrossAttention(ClassAttn):
    """CaiT's, under other names."""

    names = ("wq", "wk", "wv")


class CrossAttentionBlock(nn.Module):
    """The first token (B, 1, dim), with what it attends to added."""

    def __init__(self, dim: int, attn: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] + self.drop_path(self.attn(self.norm1(x)))


class MultiScaleBlock(nn.Module):
    """Each branch's own blocks, then each class token among the other branch's patches, at that branch's width.

    Args:
        depth: blocks of each branch, and last the attentions across: 0 is one too, whose keys have no number.
        rates: of stochastic depth.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depth: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: Sequence[float],
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        rates: Sequence[float],
    ) -> None:
        super().__init__()
        self.blocks, self.projs = nn.ModuleList(), nn.ModuleList()
        self.fusion, self.revert_projs = nn.ModuleList(), nn.ModuleList()
        drops: dict[str, Any] = {"attn_drop": attn_drop, "proj_drop": proj_drop}
        branches = range(len(dims))
        for branch, width in enumerate(dims):
            own = (
                Block(
                    width,
                    Attention(width, num_heads[branch], qkv_bias, **drops),
                    mlp_ratio[branch],
                    proj_drop=proj_drop,
                    drop_path=rates[index],
                )
                for index in range(depth[branch])
            )
            self.blocks.append(nn.Sequential(*own))
        for branch in branches:
            other = (branch + 1) % len(dims)
            width, far = dims[branch], dims[other]
            across = [
                CrossAttentionBlock(far, CrossAttention(far, num_heads[other], qkv_bias, **drops), rates[-1])
                for _ in range(max(1, depth[-1]))
            ]
            self.projs.append(change_width(width, far))
            self.fusion.append(nn.Sequential(*across) if depth[-1] else across[0])
            self.revert_projs.append(change_width(far, width))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [blocks(x) for blocks, x in zip(self.blocks, xs, strict=True)]
        found = []
        for branch, (proj, fuse, back) in enumerate(zip(self.projs, self.fusion, self.revert_projs, strict=True)):
            other = xs[(branch + 1) % len(xs)]
            token = back(fuse(torch.cat((proj(xs[branch][:, :1]), other[:, 1:]), dim=1)))
            found.append(torch.cat((token, xs[branch][:, 1:]), dim=1))
        return found


def change_width(dim: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim, eps=1e-6), nn.GELU(), nn.Linear(dim, dim_out))


class CrossVit(nn.Module):
    """(B, in_chans, H, W) to logits (B, num_classes), the mean of what each branch says.

    Args:
        img_scale: of each branch, the size that it sees the image in, as a part of `img_size`.
        patch_size, embed_dim, num_heads: of each branch.
        depth: of each MultiScaleBlock; see there.
        mlp_ratio: of each branch, and one that is of no effect.
        multi_conv: patches are embedded by three convolutions ('dagger').
        crop_scale: a branch sees the middle of the image instead of a smaller image.
        global_pool: 'token' (class tokens) or 'avg' (patch tokens).

    Raises:
        UsageError: an image that patches do not fill, an unknown pool, or a patch that has no multi_conv.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        img_scale: Sequence[float] = (1.0, 1.0),
        patch_size: Sequence[int] = (8, 16),
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (192, 384),
        depth: Sequence[Sequence[int]] = ((1, 3, 1), (1, 3, 1), (1, 3, 1)),
        num_heads: Sequence[int] = (6, 12),
        mlp_ratio: Sequence[float] = (2.0, 2.0, 4.0),
        multi_conv: bool = False,
        crop_scale: bool = False,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "token",
    ) -> None:
        super().__init__()
        self.global_pool = check_pool(global_pool, "token", "avg")
        self.scale = crop if crop_scale else resize_bicubic
        self.patch_embed, self.sizes = nn.ModuleList(), []
        for branch, (scale, patch, dim) in enumerate(zip(img_scale, patch_size, embed_dim, strict=True)):
            height, width = (int(side * scale) for side in to_pair(img_size))
            check_image_size((height, width), (patch, patch))
            self.sizes.append((height, width))
            self.patch_embed.append(PatchEmbed(patch, in_chans, dim, multi_conv))
            count = 1 + height // patch * (width // patch)
            self.register_parameter(f"pos_embed_{branch}", nn.Parameter(torch.randn(1, count, dim) * 0.02))
            self.register_parameter(f"cls_token_{branch}", nn.Parameter(torch.randn(1, 1, dim) * 0.02))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = iter(linspace_rates(drop_path_rate, sum(sum(counts[-2:]) for counts in depth)))
        self.blocks = nn.ModuleList(
            MultiScaleBlock(
                embed_dim,
                counts,
                num_heads,
                mlp_ratio,
                qkv_bias,
                attn_drop_rate,
                proj_drop_rate,
                [next(rates, drop_path_rate) for _ in range(max(counts[:-1]) + counts[-1])],
            )
            for counts in depth
        )
        self.norm = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for dim in embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.ModuleList(nn.Linear(dim, num_classes) if num_classes else nn.Identity() for dim in embed_dim)

    def embed(self, image: Tensor) -> list[Tensor]:
        """The image to each branch's tokens, (B, 1 + n, dim)."""
        tokens = []
        for branch, (size, patches) in enumerate(zip(self.sizes, self.patch_embed, strict=True)):
            x = prepend(self.get_parameter(f"cls_token_{branch}"), patches(self.scale(image, size)))
            tokens.append(self.pos_drop(x + self.get_parameter(f"pos_embed_{branch}")))
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        xs = self.embed(x)
        for block in self.blocks:
            xs = block(xs)
        xs = [norm(x) for norm, x in zip(self.norm, xs, strict=True)]
        xs = [self.head_drop(x[:, 1:].mean(dim=1) if self.global_pool == "avg" else x[:, 0]) for x in xs]
        if isinstance(self.head[0], nn.Identity):
            return torch.cat(xs, dim=1)
        logits = [head(x) for head, x in zip(self.head, xs, strict=True)]
        return sum(logits[1:], logits[0]) / len(logits)
