"""ViT (Dosovitskiy et al., 2010.11929), and what DeiT (2012.12877), DeiT III (2204.07118), DINOv2 (2304.07193), its
registers (2309.16588) and CLIP's image tower (2103.00020) change about it. Constructor and keys are timm's."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.layers import Attention, Block, PatchEmbed, linspace_rates, to_pair

POOLS = ("", "token", "avg", "max", "avgmax")


def check_image_size(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise UsageError, naming the nearest sizes that fit, unless the patch divides the image."""
    if all(s >= p and s % p == 0 for s, p in zip(size, patch, strict=True)):
        return
    below = [max(p, s // p * p) for s, p in zip(size, patch, strict=True)]
    above = [-(-s // p) * p for s, p in zip(size, patch, strict=True)]
    near = " and ".join(dict.fromkeys("x".join(map(str, pair)) for pair in (below, above)))
    raise UsageError(
        f"Image size {size[0]}x{size[1]} does not divide into {patch[0]}x{patch[1]} patches.",
        fix=f"The nearest sizes that do: {near}.",
    )


def check_pool(global_pool: str, *known: str) -> str:
    """`global_pool`; raises UsageError where it is not known."""
    if global_pool not in known:
        raise UsageError(f"Unknown global_pool '{global_pool}': one of {', '.join(p for p in known if p)}.")
    return global_pool


class VisionTransformer(nn.Module):
    """A plain vision transformer: (B, in_chans, H, W) float -> (B, num_classes) logits.

    Args:
        img_size: H and W; a multiple of `patch_size`.
        global_pool: 'token' (class token), 'avg', 'max', 'avgmax' over patch tokens, or '' for all tokens.
        qkv_bias: bias on the q, k, v projection.
        qk_norm: LayerNorm on q and k per head.
        init_values: LayerScale's start value; None leaves LayerScale out.
        class_token, reg_tokens: prefix tokens, in that order.
        no_embed_class: position table for patch tokens only (DeiT III, registers).
        pre_norm: LayerNorm before the blocks and no bias in the patch embedding (CLIP).
        final_norm, fc_norm: the last LayerNorm stands before pooling, or after it (`fc_norm`; by default when pooling).
        pool_include_prefix: prefix tokens count in avg and max pooling.
        norm_eps: of every LayerNorm.
        act_layer: 'gelu' or 'quick_gelu' (see layers.ACTIVATIONS).
        mlp_layer: 'mlp' or 'swiglu_packed' (DINOv2 giant).
        representation_size: width of a Linear + tanh before the head, as in the paper's pre-training; None for none.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: regularisation while training.

    Raises:
        UsageError: an image size that the patch does not divide, an unknown pool, token pooling without a token.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        class_token: bool = True,
        no_embed_class: bool = False,
        reg_tokens: int = 0,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        pool_include_prefix: bool = False,
        norm_eps: float = 1e-6,
        act_layer: str = "gelu",
        mlp_layer: str = "mlp",
        representation_size: int | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size, patch = to_pair(img_size), to_pair(patch_size)
        check_image_size(size, patch)
        check_pool(global_pool, *POOLS)
        if global_pool == "token" and not class_token:
            raise UsageError("Pooling by class token needs class_token=True.")
        self.global_pool = global_pool
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.no_embed_class = no_embed_class
        self.pool_include_prefix = pool_include_prefix
        norm_after_pool = global_pool in ("avg", "max", "avgmax") if fc_norm is None else fc_norm

        self.patch_embed = PatchEmbed(size, patch, in_chans, embed_dim, bias=not pre_norm)
        positions = self.patch_embed.grid[0] * self.patch_embed.grid[1]
        positions += 0 if no_embed_class else self.num_prefix_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim,
                    Attention(embed_dim, num_heads, qkv_bias, qk_norm, norm_eps, attn_drop_rate, proj_drop_rate),
                    mlp_ratio,
                    act_layer,
                    mlp_layer,
                    norm_eps,
                    init_values,
                    proj_drop_rate,
                    rate,
                )
                for rate in linspace_rates(drop_path_rate, depth)
            )
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm and not norm_after_pool else nn.Identity()
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm and norm_after_pool else nn.Identity()
        self.pre_logits: nn.Module = nn.Identity()
        if representation_size is not None:
            layers = [("fc", nn.Linear(embed_dim, representation_size)), ("act", nn.Tanh())]
            self.pre_logits = nn.Sequential(OrderedDict(layers))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(representation_size or embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_vit_weights)
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def prefix(self) -> list[Tensor]:
        """The learned tokens that stand before the patch tokens, each (1, n, dim)."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def embed(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) to prefix and patch tokens with their positions, (B, N, dim).

        The prefix tokens and the position table are constants, so they are one table, added to patch tokens that were
        padded with zero rows in front: no expand to the batch, and so no shape arithmetic in the graph.
        """
        x = self.patch_embed(x)
        prefix = self.prefix()
        table: Tensor = self.pos_embed
        if prefix:
            tokens = torch.cat(prefix, dim=1)
            if self.no_embed_class:
                table = torch.cat([tokens, table], dim=1)
            else:
                table = table + F.pad(tokens, (0, 0, 0, table.shape[1] - tokens.shape[1]))
            x = F.pad(x, (0, 0, tokens.shape[1], 0))
        return self.pos_drop(x + table)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) to normalised tokens (B, N, dim)."""
        return self.norm(self.blocks(self.norm_pre(self.embed(x))))

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim) to one vector an image, (B, dim); with global_pool '' the tokens themselves."""
        if self.global_pool == "token":
            return x[:, 0]
        if self.global_pool == "":
            return x
        patches = x if self.pool_include_prefix else x[:, self.num_prefix_tokens :]
        if self.global_pool == "avg":
            return patches.mean(dim=1)
        if self.global_pool == "max":
            return patches.amax(dim=1)
        return 0.5 * (patches.mean(dim=1) + patches.amax(dim=1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, dim) to logits; with `pre_logits`, to what the classifier sees."""
        x = self.pre_logits(self.head_drop(self.fc_norm(self.pool(x))))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class VisionTransformerDistilled(VisionTransformer):
    """DeiT with a distillation token (2012.12877): class and teacher heads, averaged in eval, a pair while training.

    Takes VisionTransformer's arguments; pooling is by token.
    """

    def __init__(
        self, num_classes: int = 1000, embed_dim: int = 768, img_size: int | tuple[int, int] = 224, **kwargs: object
    ) -> None:
        if kwargs.get("global_pool", "token") != "token":
            raise UsageError("The distilled DeiT pools by its class and distillation tokens: global_pool is 'token'.")
        super().__init__(num_classes=num_classes, embed_dim=embed_dim, img_size=img_size, **kwargs)  # type: ignore[arg-type]
        self.num_prefix_tokens = 2
        positions = self.pos_embed.shape[1] + (0 if self.no_embed_class else 1)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
        self.head_dist = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.head_dist.apply(init_vit_weights)
        for token in (self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)

    def prefix(self) -> list[Tensor]:
        return [token for token in (self.cls_token, self.dist_token) if token is not None]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        image, teacher = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
        if pre_logits:
            return (image + teacher) / 2
        logits, taught = self.head(image), self.head_dist(teacher)
        return (logits, taught) if self.training else (logits + taught) / 2  # type: ignore[return-value]


def init_vit_weights(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for Linear weights, zero for their biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
