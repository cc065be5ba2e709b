"""CaiT: deep ViTs train when each branch is scaled down at first, and the class token joins in the last layers alone
(Touvron et al., Going deeper with Image Transformers, 2103.17239). `CaiT` is vit-pytorch's, `Cait` the paper's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.models import layers
from vitdeploy.models.blocks import (
    Attention,
    Block,
    FeedForward,
    Variant,
    merge_heads,
    norm_head,
    parts,
    patch_embedding,
    prepend,
    quotient,
    split_heads,
)
from vitdeploy.models.layers import attend, record
from vitdeploy.models.vision_transformer import check_image_size, check_pool


class LayerScale(nn.Module):
    """A branch times a gain of each channel, which begins the smaller the deeper its layer is.

    Args:
        depth: of the layer, counted from 1.
        shape: of the gains.
    """

    def __init__(self, shape: tuple[int, ...], fn: nn.Module, depth: int) -> None:
        super().__init__()
        start = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full(shape, start))
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.fn(x, **kwargs) * self.scale


class ClassAttention(Attention):
    """Tokens attend to themselves and to those of `context`, which is not normed."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout, split_kv=True)

    def qkv(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return super().qkv(x, None if context is None else torch.cat((x, context), dim=1))


class TalkingHeads(ClassAttention):
    """Scores are mixed over the heads before the softmax, and weights after it (Shazeer et al., 2003.02436)."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout)
        self.mix_heads_pre_attn = nn.Parameter(torch.randn(heads, heads))
        self.mix_heads_post_attn = nn.Parameter(torch.randn(heads, heads))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = over_heads(q * self.scale @ k.transpose(-2, -1), self.mix_heads_pre_attn)
        weights = F.dropout(scores.softmax(dim=-1), self.drop, self.training)
        return record(over_heads(weights, self.mix_heads_post_attn)) @ v


def over_heads(x: Tensor, mix: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, heads, n, m) times (heads, heads): a convolution by one pixel."""
    return F.conv2d(x, mix.t()[:, :, None, None], bias)


def kept(layers: Iterable[Any], probability: float, training: bool) -> list[Any]:
    """Layers that run: all in eval; while training each is left out with a probability, but for one at least."""
    found = list(layers)
    if not training or probability == 0:
        return found
    return [layer for layer in found if random.random() >= probability] or [random.choice(found)]


class Transformer(nn.Module):
    """Scaled branches.

    Args:
        layer: makes the branches of a layer.
    """

    def __init__(self, shape: tuple[int, ...], depth: int, layer: Callable[[], Block], layer_dropout: float) -> None:
        super().__init__()
        self.layer_dropout = layer_dropout
        self.layers = nn.ModuleList(
            nn.ModuleList(LayerScale(shape, branch, index + 1) for branch in layer()) for index in range(depth)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for attn, *others in kept(parts(self.layers), self.layer_dropout, self.training):
            x = x + (attn(x) if context is None else attn(x, context=context))
            for other in others:
                x = x + other(x)
        return x


class CaiT(Variant):
    """Images (B, 3, image_size, image_size) to logits (B, num_classes).

    Variants override the blocks of both transformers.

    Args:
        depth, cls_depth: layers without and with the class token.
        layer_dropout: probability of leaving a layer out while training; vit-pytorch also draws it in eval.

    Raises:
        ValueError: patches that do not fill the image.
    """

    shape: tuple[int, ...] = (1, 1)  # of gains and the class token, before their channels
    flat = True  # whether patches are a sequence

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        cls_depth: int,
        heads: int,
        mlp_dim: int,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rows = quotient("image_size", image_size, "patch_size", patch_size)
        self.to_patch_embedding = patch_embedding(dim, patch_size, flat=self.flat)
        self.pos_embedding = nn.Parameter(torch.randn(1, rows * rows, dim))
        shape = (*self.shape, dim)
        self.cls_token = nn.Parameter(torch.randn(shape))
        self.dropout = nn.Dropout(emb_dropout)
        sizes = (dim, heads, dim_head, mlp_dim, dropout)
        self.patch_transformer = Transformer(shape, depth, partial(self.make_block, *sizes), layer_dropout)
        self.cls_transformer = Transformer(shape, cls_depth, partial(self.make_class_block, *sizes), layer_dropout)
        self.mlp_head = norm_head(dim, num_classes)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        return TalkingHeads(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)

    make_class_block = make_block

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        return self.classify(self.patch_transformer(self.dropout(x + self.pos_embedding[:, : x.shape[1]])))

    def classify(self, x: Tensor) -> Tensor:
        """Tokens (B, n, dim) to logits, by way of the class token."""
        token = prepend(self.cls_token.view(1, 1, -1), x[:, :1])[:, :1]
        return self.mlp_head(self.cls_transformer(token, context=x)[:, 0])


class ClassAttn(nn.Module):
    """The first of (B, n, dim) tokens attends to all: (B, 1, dim). Keys are timm's."""

    names: tuple[str, ...] = ("q", "k", "v")

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.scale = quotient("embed_dim", dim, "num_heads", num_heads) ** -0.5
        for name in self.names:
            self.add_module(name, nn.Linear(dim, dim, bias=qkv_bias))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        read = zip(self.names, (x[:, :1], x, x), strict=True)
        q, k, v = (split_heads(self.get_submodule(name)(seen), self.num_heads) for name, seen in read)
        out = attend(q, k, v, self.scale, dropout=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(merge_heads(out)))


class TalkingHeadAttn(layers.Attention):
    """Self-attention whose scores are mixed over the heads before the softmax, and weights after it."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.proj_l, self.proj_w = (nn.Linear(num_heads, num_heads) for _ in range(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = over_heads(q * self.scale @ k.transpose(-2, -1), self.proj_l.weight.t(), self.proj_l.bias)
        weights = over_heads(scores.softmax(dim=-1), self.proj_w.weight.t(), self.proj_w.bias)
        return F.dropout(record(weights), self.attn_drop, self.training) @ v


class LayerScaleBlock(nn.Module):
    """x + gamma_1 * attn(norm(x)), then x + gamma_2 * mlp(norm(x)); over (B, n, dim).

    With `context`, x is what attends to both and changes (the class token), and `attn` gives its tokens alone.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp_ratio: float, init_values: float, proj_drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = attn
        self.mlp = layers.Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), init_values)) for _ in range(2))
        self.drop_path = layers.DropPath(drop_path)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        seen = x if context is None else torch.cat((x, context), dim=1)
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(seen)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class Cait(nn.Module):
    """CaiT as its authors trained it, with timm's constructor and keys: (B, in_chans, H, W) to (B, num_classes).

    Unlike vit-pytorch's CaiT, the class token's attention keeps all its heads apart, projections have biases, patches
    are not normed, and patch tokens are normed where the class token attends to them.

    Args:
        global_pool: 'token' (class token) or 'avg' (patch tokens).
        depth, depth_token_only: layers without and with the class token.
        init_values: LayerScale's start value.

    Raises:
        UsageError: an image size that the patch does not divide, an unknown pool.
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
        init_values: float = 1e-4,
        depth_token_only: int = 2,
        mlp_ratio_token_only: float = 4.0,
    ) -> None:
        super().__init__()
        size, patch = layers.to_pair(img_size), layers.to_pair(patch_size)
        check_image_size(size, patch)
        self.global_pool = check_pool(global_pool, "token", "avg")
        self.num_prefix_tokens = 0  # in the position table
        self.patch_embed = layers.PatchEmbed(size, patch, in_chans, embed_dim, bias=True)
        rows, columns = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, rows * columns, embed_dim) * 0.02)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drops = (attn_drop_rate, proj_drop_rate)
        self.blocks = nn.Sequential(
            *(
                LayerScaleBlock(
                    embed_dim,
                    TalkingHeadAttn(embed_dim, num_heads, qkv_bias, *drops),
                    mlp_ratio,
                    init_values,
                    proj_drop_rate,
                    drop_path_rate,
                )
                for _ in range(depth)
            )
        )
        self.blocks_token_only = nn.ModuleList(
            LayerScaleBlock(
                embed_dim, ClassAttn(embed_dim, num_heads, qkv_bias), mlp_ratio_token_only, init_values, 0.0, 0.0
            )
            for _ in range(depth_token_only)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pos_drop(self.patch_embed(x) + self.pos_embed))
        if self.global_pool == "avg":
            return self.head(self.head_drop(self.norm(x).mean(dim=1)))
        token = prepend(self.cls_token, x[:, :1])[:, :1]
        for block in self.blocks_token_only:
            token = block(token, context=x)
        return self.head(self.head_drop(self.norm(token)[:, 0]))
