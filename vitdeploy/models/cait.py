"""CaiT: deep ViTs train when each branch is scaled down at first, and the class token joins in the last layers alone
(Touvron et al., Going deeper with Image Transformers, 2103.17239)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, FeedForward, norm_head, parts, patch_embedding, prepend, quotient
from vitdeploy.models.layers import record


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


def over_heads(x: Tensor, mix: Tensor) -> Tensor:
    """(B, heads, n, m) times (heads, heads): a convolution by one pixel."""
    return F.conv2d(x, mix.t()[:, :, None, None])


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

    def __init__(
        self, shape: tuple[int, ...], depth: int, layer: Callable[[], tuple[nn.Module, ...]], layer_dropout: float
    ) -> None:
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


class CaiT(nn.Module):
    """Images (B, 3, image_size, image_size) to logits (B, num_classes).

    Args:
        depth, cls_depth: layers without and with the class token.
        layer_dropout: probability of leaving a layer out while training; vit-pytorch also draws it in eval.

    Raises:
        ValueError: patches that do not fill the image.
    """

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
        self.to_patch_embedding = patch_embedding(dim, patch_size)
        self.pos_embedding = nn.Parameter(torch.randn(1, rows * rows, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(emb_dropout)

        def layer() -> tuple[nn.Module, ...]:
            return TalkingHeads(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)

        self.patch_transformer = Transformer((1, 1, dim), depth, layer, layer_dropout)
        self.cls_transformer = Transformer((1, 1, dim), cls_depth, layer, layer_dropout)
        self.mlp_head = norm_head(dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        x = self.patch_transformer(self.dropout(x + self.pos_embedding[:, : x.shape[1]]))
        token = prepend(self.cls_token, x[:, :1])[:, :1]
        return self.mlp_head(self.cls_transformer(token, context=x)[:, 0])
