"""NaViT with a nested tensor in place of packing: each image a sequence of its own length (after 2307.06304)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models import na_vit
from vitdeploy.models.layers import attend
from vitdeploy.models.na_vit import cut


class Attention(nn.Module):
    """Attention over (B, n, dim), or over nested tensors of that; queries and keys are layer-normed."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.scale, self.drop = heads, dim_head**-0.5, dropout
        self.norm = nn.LayerNorm(dim, bias=False)
        self.to_queries, self.to_keys, self.to_values = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.query_norm: nn.Module = nn.LayerNorm(dim_head, bias=False)
        self.key_norm: nn.Module = nn.LayerNorm(dim_head, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        context = x if context is None else context
        q, k, v = (
            t.unflatten(-1, (self.heads, -1))
            for t in (self.to_queries(x), self.to_keys(context), self.to_values(context))
        )
        q, k, v = (t.transpose(1, 2) for t in (self.query_norm(q), self.key_norm(k), v))
        found = attend(q, k, v, self.scale, bias, self.drop if self.training else 0.0)
        return self.to_out(found.transpose(1, 2).flatten(-2))


class NaViT(na_vit.NaViT):
    """Images (channels, H, W) of any sizes up to `image_size` to logits (images, num_classes).

    `forward_packed` takes what `na_vit.pack` makes of them, in any groups, and gives the same.

    Args:
        qk_rmsnorm: whether the layers norm queries and keys.
        token_dropout_prob: share of an image's patches left out in training.

    Raises:
        ValueError: as na_vit.NaViT.
    """

    norm = staticmethod(partial(nn.LayerNorm, bias=False))
    attention = Attention

    def __init__(self, *, qk_rmsnorm: bool = True, **vit: Any) -> None:
        super().__init__(**vit)
        dim = self.attn_pool_queries.shape[0]
        self.to_patch_embedding[0] = nn.LayerNorm(self.channels * self.patch_size**2)
        self.to_patch_embedding[2] = nn.LayerNorm(dim)
        if not qk_rmsnorm:
            for block in self.transformer.layers:
                block[0].query_norm, block[0].key_norm = nn.Identity(), nn.Identity()  # type: ignore[index]

    def forward(self, images: Sequence[Tensor] | Tensor) -> Tensor:  # type: ignore[override]
        if isinstance(images, Tensor) and self.dropped is None:
            return self.forward_images(images)
        self.check(images)
        patches, positions = zip(*(cut(image, self.patch_size, self.dropped) for image in images), strict=True)
        tokens = self.embed(torch.cat(patches), torch.cat(positions)).split([len(part) for part in patches])
        x = self.transformer(nested(tokens))
        queries = nested([self.attn_pool_queries[None]] * len(images))
        pooled = torch.cat(self.attn_pool(queries, x).unbind())
        return self.mlp_head(self.to_latent(pooled))

    def pool(self, queries: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.attn_pool(queries, x, bias)


class PackedNaViT(na_vit.PackedNaViT, NaViT):  # type: ignore[misc]
    """na_vit.PackedNaViT of this NaViT."""

    def __init__(self, *, qk_rmsnorm: bool = True, **vit: Any) -> None:
        super().__init__(qk_rmsnorm=qk_rmsnorm, **vit)


def nested(parts: Sequence[Tensor]) -> Tensor:
    """Jagged, and with gradients to its parts."""
    return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)
