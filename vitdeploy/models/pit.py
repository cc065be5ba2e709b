"""PiT: a ViT that pools its tokens between stages, as convolutional networks do (Heo et al., Rethinking Spatial
Dimensions of Vision Transformers, 2103.16302). `PiT` is vit-pytorch's, `PoolingVisionTransformer` the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models import layers
from vitdeploy.models.blocks import Embedder, encoder, norm_head, of_stages, prepend
from vitdeploy.models.vision_transformer import check_pool


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


class PiT(Embedder):
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
        if image_size % patch_size or patch_size < 2:
            raise ValueError(f"patch_size ({patch_size}) must be 2 or more and divide image_size ({image_size})")
        if not isinstance(depth, tuple):
            raise ValueError(f"depth ({depth}) must be a tuple: the layers of each stage")
        every = of_stages("heads", heads, len(depth))
        rows = (image_size - patch_size) // (patch_size // 2) + 1
        super().__init__(OverlappingPatches(dim, patch_size, channels), rows * rows, dim, emb_dropout)
        layers: list[nn.Module] = []
        for stage, (count, of_stage) in enumerate(zip(depth, every, strict=True)):
            layers.append(encoder(dim, count, of_stage, dim_head, mlp_dim, dropout, norm=False))
            if stage < len(depth) - 1:
                layers.append(Pool(dim, rows))
                dim, rows = dim * 2, (rows + 1) // 2
        self.layers = nn.Sequential(*layers)
        self.mlp_head = norm_head(dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        return self.mlp_head(self.layers(self.embed(img))[:, 0])


class ConvEmbedding(nn.Module):
    """Images to maps (B, dim, h, w) of patches that overlap."""

    def __init__(self, in_chans: int, dim: int, patch: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, patch, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pooling(nn.Module):
    """Half the rows and columns of (B, n, dim) patches in `rows` rows, each channel becoming some; tokens projected."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, groups=dim)
        self.fc = nn.Linear(dim, dim_out)

    def forward(self, tokens: Tensor, patches: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        pooled = self.conv(rearrange(patches, "b (h w) c -> b c h w", h=rows))
        return self.fc(tokens), rearrange(pooled, "b c h w -> b (h w) c")


class Stage(nn.Module):
    """Blocks over tokens and patches together, behind a pooling in all stages but the first."""

    def __init__(self, pool: Pooling | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pool = pool
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, tokens: int, rows: int) -> tuple[Tensor, int]:
        """Of (B, tokens + n, dim), whose patches are in `rows` rows; and how many rows there are then."""
        if self.pool is not None:
            x = torch.cat(self.pool(x[:, :tokens], x[:, tokens:], rows), dim=1)
            rows = (rows + 1) // 2
        return self.blocks(x), rows


class PoolingVisionTransformer(nn.Module):
    """PiT as its authors trained it, with timm's constructor and keys: (B, in_chans, H, W) to (B, num_classes).

    Unlike vit-pytorch's PiT, pooling is one convolution, positions are a map's, without the class token's, and qkv
    have biases.

    Args:
        patch_size, stride: of the patches.
        base_dims, depth, heads: of each stage: width of a head, blocks, heads.
        distilled: a second token and head, for a teacher's labels: logits are the two heads' mean in eval, a pair
            while training.

    Raises:
        UsageError: an image smaller than a patch, another pool than 'token'.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 8,
        base_dims: Sequence[int] = (48, 48, 48),
        depth: Sequence[int] = (2, 6, 4),
        heads: Sequence[int] = (2, 4, 8),
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "token",
        distilled: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size = layers.to_pair(img_size)
        if min(size) < patch_size:
            raise UsageError(f"Image size {size[0]}x{size[1]} is smaller than a patch of {patch_size}.")
        check_pool(global_pool, "token")
        rows, columns = ((side - patch_size) // stride + 1 for side in size)
        widths = [base * count for base, count in zip(base_dims, heads, strict=True)]
        self.num_prefix_tokens = 2 if distilled else 1
        self.patch_embed = ConvEmbedding(in_chans, widths[0], patch_size, stride)
        self.pos_embed = nn.Parameter(torch.randn(1, widths[0], rows, columns) * 0.02)
        self.cls_token = nn.Parameter(torch.randn(1, self.num_prefix_tokens, widths[0]) * 0.02)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = iter(layers.linspace_rates(drop_path_rate, sum(depth)))
        self.transformers = nn.ModuleList()
        for stage, (count, dim) in enumerate(zip(depth, widths, strict=True)):
            blocks = [
                layers.Block(
                    dim,
                    layers.Attention(dim, heads[stage], attn_drop=attn_drop_rate, proj_drop=proj_drop_rate),
                    mlp_ratio,
                    proj_drop=proj_drop_rate,
                    drop_path=next(rates),
                )
                for _ in range(count)
            ]
            self.transformers.append(Stage(Pooling(widths[stage - 1], dim) if stage else None, blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.head_dist: nn.Module | None = None
        if distilled:
            self.head_dist = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        rows, count = x.shape[2], self.num_prefix_tokens
        x = prepend(self.cls_token, rearrange(x, "b c h w -> b (h w) c"))
        for stage in self.transformers:
            x, rows = stage(x, count, rows)
        x = self.head_drop(self.norm(x[:, :count]))
        if self.head_dist is None:
            return self.head(x[:, 0])
        logits, taught = self.head(x[:, 0]), self.head_dist(x[:, 1])
        return (logits, taught) if self.training else (logits + taught) / 2  # type: ignore[return-value]
