"""XCiT: attention among channels instead of tokens, at a cost linear in the tokens, with convolutions to let
neighbouring patches talk (El-Nouby et al., 2106.09681)."""

from __future__ import annotations

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import FeedForward, norm_head, out_projection, patch_embedding, prepend, quotient, unit
from vitdeploy.models.cait import ClassAttention, Transformer
from vitdeploy.models.layers import attend


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
        found = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b y x (h d) -> b h d (y x)", h=self.heads) for t in found)
        out = attend(unit(q) * self.temperature.exp(), unit(k), v, 1.0, dropout=self.drop if self.training else 0.0)
        return self.to_out(rearrange(out, "b h d (y x) -> b y x (h d)", y=x.shape[1]))


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


class XCiT(nn.Module):
    """Images (B, 3, image_size, image_size) to logits (B, num_classes).

    Args:
        depth, cls_depth: layers without and with the class token, which attends as CaiT's does.
        layer_dropout: probability of leaving a layer out while training; vit-pytorch also draws it in eval.

    Raises:
        ValueError: patches that do not fill the image, or an even kernel.
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
        local_patch_kernel_size: int = 3,
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rows = quotient("image_size", image_size, "patch_size", patch_size)
        self.to_patch_embedding = patch_embedding(dim, patch_size, flat=False)
        self.pos_embedding = nn.Parameter(torch.randn(1, rows * rows, dim))
        self.cls_token = nn.Parameter(torch.randn(dim))
        self.dropout = nn.Dropout(emb_dropout)

        def layer() -> tuple[nn.Module, ...]:
            near = LocalPatchInteraction(dim, local_patch_kernel_size)
            return XCAttention(dim, heads, dim_head, dropout), near, FeedForward(dim, mlp_dim, dropout)

        def last() -> tuple[nn.Module, ...]:
            return ClassAttention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)

        self.xcit_transformer = Transformer((dim,), depth, layer, layer_dropout)
        self.final_norm = nn.LayerNorm(dim)
        self.cls_transformer = Transformer((dim,), cls_depth, last, layer_dropout)
        self.mlp_head = norm_head(dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        rows, columns = x.shape[1:3]
        x = x + self.pos_embedding[:, : rows * columns].unflatten(1, (rows, columns))
        x = self.final_norm(self.xcit_transformer(self.dropout(x))).flatten(1, 2)
        token = prepend(self.cls_token[None], x[:, :1])[:, :1]
        return self.mlp_head(self.cls_transformer(token, context=x)[:, 0])
