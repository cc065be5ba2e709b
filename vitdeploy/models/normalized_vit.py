"""nViT: every token and every row of weights has length one, and layers move tokens on that sphere (after Loshchilov et
al., nGPT, 2410.01131)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import reduce
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitdeploy.models.blocks import Size, grid, merge_heads, pair, parts, split_heads, unit
from vitdeploy.models.layers import attend


class Unit(nn.Module):
    """A matrix whose rows, or columns, have length one."""

    def __init__(self, *, rows: bool) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return unit(x) if self.rows else unit(x.t()).t()


class NormLinear(nn.Module):
    """Linear without bias by normed weights; `norm_dim_in` norms what each output reads, else what each input gives."""

    def __init__(self, dim: int, dim_out: int, *, norm_dim_in: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim_out, bias=False)
        parametrize.register_parametrization(self.linear, "weight", Unit(rows=norm_dim_in))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.drop = heads, dropout
        self.to_q, self.to_k, self.to_v = (NormLinear(dim, inner) for _ in range(3))
        self.q_scale, self.k_scale = (nn.Parameter(torch.full((heads, 1, dim_head), dim_head**0.25)) for _ in range(2))
        self.to_out = NormLinear(inner, dim, norm_dim_in=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        dropout = self.drop if self.training else 0.0
        return self.to_out(merge_heads(attend(unit(q) * self.q_scale, unit(k) * self.k_scale, v, 1.0, dropout=dropout)))


class FeedForward(nn.Module):
    """A gated MLP (SwiGLU), two thirds of `hidden` wide."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        hidden = int(hidden * 2 / 3)
        self.scale = dim**0.5
        self.to_hidden, self.to_gate = NormLinear(dim, hidden), NormLinear(dim, hidden)
        self.hidden_scale, self.gate_scale = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        self.dropout = nn.Dropout(dropout)
        self.to_out = NormLinear(hidden, dim, norm_dim_in=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.to_gate(x) * (self.gate_scale * self.scale))
        return self.to_out(self.dropout(gate * (self.to_hidden(x) * self.hidden_scale)))


class nViT(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes). Smaller images take the first of the positions.

    Args:
        residual_lerp_scale_init: how far a layer moves tokens at first; None is 1 / depth.

    Raises:
        ValueError: patches that do not fill the image.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        channels: int = 3,
        dim_head: int = 64,
        residual_lerp_scale_init: float | None = None,
    ) -> None:
        super().__init__()
        rows, columns = grid(image_size, patch_size)
        high, wide = pair(patch_size)
        start = 1 / depth if residual_lerp_scale_init is None else residual_lerp_scale_init
        self.scale = dim**0.5
        self.to_patch_embedding = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (c p1 p2)", p1=high, p2=wide),
            NormLinear(channels * high * wide, dim, norm_dim_in=False),
        )
        self.abs_pos_emb = NormLinear(dim, rows * columns)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)])
            for _ in range(depth)
        )
        self.residual_lerp_scales = nn.ParameterList(
            nn.ParameterList(nn.Parameter(torch.full((dim,), start / self.scale)) for _ in range(2))
            for _ in range(depth)
        )
        self.logit_scale = nn.Parameter(torch.ones(num_classes))
        self.to_pred = NormLinear(dim, num_classes)

    @torch.no_grad()
    def norm_weights_(self) -> None:
        """Write the normed weights back, as one does after each step of training."""
        for module in self.modules():
            if isinstance(module, NormLinear):
                module.linear.parametrizations.weight.original.copy_(module.linear.weight)  # type: ignore[union-attr, operator]

    def forward(self, images: Tensor) -> Tensor:
        x = self.to_patch_embedding(images)
        x = unit(x + self.abs_pos_emb.linear.weight[: x.shape[1]])
        for layer, scales in zip(parts(self.layers), self.residual_lerp_scales, strict=True):
            for part, scale in zip(layer, scales, strict=True):
                x = unit(x + (unit(part(x)) - x) * (scale * self.scale))
        return self.to_pred(reduce(x, "b n d -> b d", "mean")) * (self.logit_scale * self.scale)
