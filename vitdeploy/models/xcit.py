"""XCiT: attention among channels instead of tokens, at a cost linear in the tokens, with convolutions to let
neighbouring patches talk (El-Nouby et al., 2106.09681). `XCiT` is vit-pytorch's, `Xcit` the paper's."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Block,
    FeedForward,
    PatchLinear,
    out_projection,
    prepend,
    quotient,
    unit,
)
from vitdeploy.models.cait import CaiT, ClassAttention, ClassAttn
from vitdeploy.models.layers import DropPath, Mlp, attend, to_pair
from vitdeploy.models.vision_transformer import check_image_size, check_pool


class XCAttention(nn.Module):
    """Cross-covariance attention over (B, H, W, dim): a head's channels attend to each other by their cosine."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.drop = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.to_out = out_projection(inner, dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.drop if self.training else 0.0
        return self.to_out(attend_by_channel(self.to_qkv(self.norm(x)), self.heads, self.temperature.exp(), dropout))


def attend_by_channel(qkv: Tensor, heads: int, temperature: Tensor, dropout: float) -> Tensor:
    """Queries, keys and values (B, H, W, 3 * dim) to (B, H, W, dim).

    Args:
        temperature: (heads, 1, 1), what cosines are multiplied by.
    """
    q, k, v = (rearrange(t, "b y x (h d) -> b h d (y x)", h=heads) for t in qkv.chunk(3, dim=-1))
    out = attend(unit(q) * temperature, unit(k), v, 1.0, dropout=dropout)
    return rearrange(out, "b h d (y x) -> b y x (h d)", y=qkv.shape[1])


class LocalPatchInteraction(nn.Module):
    """Two convolutions of each channel over (B, H, W, dim). Raises ValueError on an even kernel."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"local_patch_kernel_size ({kernel_size}) must be odd")
        first, second = (nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim) for _ in range(2))
        to_map, to_tokens = Rearrange("b h w c -> b c h w"), Rearrange("b c h w -> b h w c")
        self.net = nn.Sequential(nn.LayerNorm(dim), to_map, first, nn.BatchNorm2d(dim), nn.GELU(), second, to_tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class XCiT(CaiT):
    """Images (B, 3, image_size, image_size) to logits (B, num_classes); arguments and errors are CaiT's, and more.

    Raises:
        ValueError: an even kernel.
    """

    shape = ()
    flat = False

    def __init__(self, *, local_patch_kernel_size: int = 3, **cait: Any) -> None:
        self.kernel_size = local_patch_kernel_size
        super().__init__(**cait)
        self.xcit_transformer = self.patch_transformer
        del self.patch_transformer
        self.final_norm = nn.LayerNorm(cait["dim"])

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        near = LocalPatchInteraction(dim, self.kernel_size)
        return XCAttention(dim, heads, dim_head, dropout), near, FeedForward(dim, mlp_dim, dropout)

    def make_class_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        return ClassAttention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        rows, columns = x.shape[1:3]
        x = x + self.pos_embedding[:, : rows * columns].unflatten(1, (rows, columns))
        return self.classify(self.final_norm(self.xcit_transformer(self.dropout(x))).flatten(1, 2))


class ConvPatchEmbed(nn.Module):
    """Images to maps (B, H / patch, W / patch, dim): convolutions by half the size each, the last `dim` wide."""

    def __init__(self, patch: int, in_chans: int, dim: int) -> None:
        super().__init__()
        if patch not in (8, 16):
            raise ValueError(f"patch_size ({patch}) must be 8 or 16")
        layers: list[nn.Module] = []
        for width in (dim // 8, dim // 4, dim // 2, dim)[patch == 8 :]:
            conv = nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(width)), nn.GELU()]
            in_chans = width
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).movedim(1, -1)


class PositionalEncodingFourier(nn.Module):
    """Position embeddings of any grid, (1, rows, columns, dim): sines and cosines of its coordinates, projected."""

    def __init__(self, dim: int, hidden_dim: int = 32, temperature: float = 10000.0) -> None:
        super().__init__()
        self.token_projection = PatchLinear(hidden_dim * 2, dim)
        self.hidden_dim, self.temperature = hidden_dim, temperature

    def forward(self, rows: int, columns: int) -> Tensor:
        weight = self.token_projection.weight
        octaves = torch.arange(0, self.hidden_dim, 2, device=weight.device) / self.hidden_dim
        waves = []
        for size in (rows, columns):
            along = torch.arange(1, size + 1, device=weight.device) / (size + 1e-6) * 2 * math.pi
            angles = along[:, None] / self.temperature**octaves
            waves.append(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1))
        down, across = waves
        down, across = down[:, None].expand(-1, columns, -1), across.expand(rows, -1, -1)
        return self.token_projection(torch.cat((down, across), dim=-1)[None].to(weight.dtype))


class XCA(nn.Module):
    """Cross-covariance attention over (B, H, W, dim)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        quotient("embed_dim", dim, "num_heads", num_heads)
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.attn_drop if self.training else 0.0
        return self.proj_drop(self.proj(attend_by_channel(self.qkv(x), self.num_heads, self.temperature, dropout)))


class LPI(nn.Module):
    """Two convolutions of each channel over (B, H, W, dim), GELU and BatchNorm between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.gelu(self.conv1(x.movedim(-1, 1)))
        return self.conv2(self.bn(x)).movedim(1, -1)


class XCABlock(nn.Module):
    """Attention among channels, convolutions, MLP; each normed before, scaled after, and added to (B, H, W, dim)."""

    def __init__(
        self, dim: int, attn: nn.Module, mlp_ratio: float, eta: float, proj_drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.attn = attn
        self.local_mp = LPI(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.gamma1, self.gamma2, self.gamma3 = (nn.Parameter(torch.full((dim,), eta)) for _ in range(3))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x)))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class ClassAttentionBlock(nn.Module):
    """The class token (B, 1, dim) attends to patches (B, n, dim), which pass with a share of their norm added; then
    both are normed (patches with `tokens_norm` alone), the token goes through the MLP, and patches are doubled."""

    def __init__(
        self, dim: int, attn: nn.Module, mlp_ratio: float, eta: float, proj_drop: float, tokens_norm: bool
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = attn
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), eta)) for _ in range(2))
        self.tokens_norm = tokens_norm

    def forward(self, token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm1(torch.cat((token, patches), dim=1))
        token = self.norm2(token + self.gamma1 * self.attn(normed))
        patches = patches + self.gamma1 * normed[:, 1:]
        if self.tokens_norm:
            patches = self.norm2(patches)
        return token + self.gamma2 * self.mlp(token), 2 * patches


class Xcit(nn.Module):
    """XCiT as its authors trained it, with timm's constructor and keys: (B, in_chans, H, W) to (B, num_classes).

    Unlike vit-pytorch's XCiT, images enter by convolutions, positions are Fourier features, BatchNorm stands behind
    GELU, and patches go on changing in the layers of the class token.

    Args:
        patch_size: 8 or 16.
        global_pool: 'token' (class token) or 'avg' (patch tokens).
        cls_attn_layers: layers with the class token.
        use_pos_embed: whether patches know where they are.
        eta: LayerScale's start value.
        tokens_norm: patches are normed in the layers of the class token.

    Raises:
        UsageError: an image size that the patch does not divide, an unknown pool.
        ValueError: another patch, or heads that do not divide the width.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        cls_attn_layers: int = 2,
        use_pos_embed: bool = True,
        eta: float = 1.0,
        tokens_norm: bool = False,
    ) -> None:
        super().__init__()
        check_image_size(to_pair(img_size), to_pair(patch_size))
        self.global_pool = check_pool(global_pool, "token", "avg")
        self.patch_embed = ConvPatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.pos_embed = PositionalEncodingFourier(embed_dim) if use_pos_embed else None
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drops = (attn_drop_rate, proj_drop_rate)
        self.blocks = nn.Sequential(
            *(
                XCABlock(
                    embed_dim,
                    XCA(embed_dim, num_heads, qkv_bias, *drops),
                    mlp_ratio,
                    eta,
                    proj_drop_rate,
                    drop_path_rate,
                )
                for _ in range(depth)
            )
        )
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(
                embed_dim,
                ClassAttn(embed_dim, num_heads, qkv_bias, *drops),
                mlp_ratio,
                eta,
                proj_drop_rate,
                tokens_norm,
            )
            for _ in range(cls_attn_layers)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed(*x.shape[1:3])
        patches = self.blocks(self.pos_drop(x)).flatten(1, 2)
        token = prepend(self.cls_token, patches[:, :1])[:, :1]
        for block in self.cls_attn_blocks:
            token, patches = block(token, patches)
        x = self.norm(patches).mean(dim=1) if self.global_pool == "avg" else self.norm(token)[:, 0]
        return self.head(self.head_drop(x))
