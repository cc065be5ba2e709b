"""SimpleViT with several residual streams, which each branch reads and writes by weights that it learns
(hyper-connections: Zhu et al., 2409.19606), and with registers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models import simple_vit_with_register_tokens
from vitdeploy.models.blocks import Block, parts


class HyperConnection(nn.Module):
    """What a branch reads from the streams (B, n, streams, dim), and how it writes to them.

    Weights are learned constants plus what each token says. A new one reads stream `layer_index % streams`.
    """

    def __init__(self, dim: int, num_residual_streams: int, layer_index: int) -> None:
        super().__init__()
        streams = torch.eye(num_residual_streams)
        read = streams[:, layer_index % num_residual_streams, None]
        self.norm = nn.LayerNorm(dim, bias=False)
        self.static_beta = nn.Parameter(torch.ones(num_residual_streams))
        self.static_alpha = nn.Parameter(torch.cat([read, streams], dim=1))
        self.dynamic_alpha_fn = nn.Parameter(torch.zeros(dim, num_residual_streams + 1))
        self.dynamic_alpha_scale = nn.Parameter(torch.tensor(1e-2))
        self.dynamic_beta_fn = nn.Parameter(torch.zeros(dim))
        self.dynamic_beta_scale = nn.Parameter(torch.tensor(1e-2))

    def forward(self, x: Tensor, branch: nn.Module) -> Tensor:
        normed = self.norm(x)
        alpha = (normed @ self.dynamic_alpha_fn).tanh() * self.dynamic_alpha_scale + self.static_alpha
        beta = (normed @ self.dynamic_beta_fn).tanh() * self.dynamic_beta_scale + self.static_beta
        mixed = alpha.transpose(-1, -2) @ x
        return branch(mixed[:, :, 0])[:, :, None] * beta[..., None] + mixed[:, :, 1:]


class HyperTransformer(nn.Module):
    """Blocks on `num_residual_streams` copies of the tokens, whose sum is normed."""

    def __init__(self, dim: int, blocks: list[Block], num_residual_streams: int) -> None:
        super().__init__()
        self.num_residual_streams = num_residual_streams
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                part for branch in block for part in (HyperConnection(dim, num_residual_streams, index), branch)
            )
            for index, block in enumerate(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x] * self.num_residual_streams, dim=2)
        for read_attn, attn, read_ff, ff in parts(self.layers):
            x = read_ff(read_attn(x, attn), ff)
        return self.norm(x.sum(dim=2))


class SimpleViT(simple_vit_with_register_tokens.SimpleViT):
    """As simple_vit_with_register_tokens.SimpleViT. Raises ValueError where there is no residual stream."""

    def __init__(self, *, num_residual_streams: int, **vit: Any) -> None:
        if num_residual_streams < 1:
            raise ValueError(f"num_residual_streams ({num_residual_streams}) must be at least 1")
        self.streams = num_residual_streams
        super().__init__(**vit)

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return HyperTransformer(dim, blocks, self.streams)
