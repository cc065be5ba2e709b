"""Which architecture a checkpoint belongs to, guessed from its keys and shapes. For error messages only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.models import catalog

if TYPE_CHECKING:
    from torch import Tensor

# A key that only one kind of foreign checkpoint has, and what to call that kind.
FOREIGN = {
    r"(vit|deit|dinov2)\.embeddings\.|^embeddings\.patch_embeddings\.": "a ViT of the transformers library",
    r"^to_patch_embedding\.": "a ViT of the vit-pytorch library",
    r"^conv_proj\.weight$": "a ViT of torchvision",
    r"blocks\.\d+\.attn\.relative_position_bias_table$": "a Swin or BEiT",
    r"^visual\.": "a CLIP model with its text tower",
    r"^layer1\.0\.conv1\.weight$": "a ResNet",
    r"^conv_stem\.weight$": "an EfficientNet or MobileNet of timm",
    r"^stages\.0\.blocks\.0\.conv_dw\.weight$": "a ConvNeXt",
    r"^(encoder\.)?layer_1\.": "a MobileViT of Apple's cvnets",
}


# A key that only one family of the catalog has; its members are told apart by how many parameters they have.
BY_COUNT = {
    r"^blocks_token_only\.": "cait",
    r"^cls_attn_blocks\.": "xcit",
    r"^transformers\.\d\.blocks\.": "pit",
    r"^patch_embeds\.\d\.": "twins",
    r"^levels\.\d\.transformer_encoder\.": "nest",
    r"^cls_token_\d$": "crossvit",
    r"^stages\.\d\.blocks\.\d+\.attn(_block|_grid)?\.": "maxvit",
}


def describe(state: Mapping[str, Tensor]) -> str | None:
    """What the checkpoint looks like, as words for the middle of a sentence; None where nothing is recognised."""
    names = matching_names(state)
    if names:
        more = f" (or {', '.join(names[1:3])})" if len(names) > 1 else ""
        return f"{names[0]}{more}"
    return next((what for pattern, what in FOREIGN.items() if any(re.search(pattern, k) for k in state)), None)


def matching_names(state: Mapping[str, Tensor]) -> list[str]:
    """The catalog's names whose sizes fit the checkpoint's, whatever its image size and classes."""
    for pattern, family in BY_COUNT.items():
        if "stages.0.blocks.0.attn.attention_biases" not in state and any(re.match(pattern, key) for key in state):
            statistics = ("running_mean", "running_var", "num_batches_tracked")
            count = sum(tensor.numel() for key, tensor in state.items() if not key.endswith(statistics))
            entries = (catalog.find(name)[0] for name in catalog.names())
            return [entry.name for entry in entries if entry.family == family and entry.params == count]
    for families, read in (
        (("levit", "levit_conv"), _levit),
        (("mobilevit",), _mobilevit),
        (("mobilevitv2",), _mobilevitv2),
        (("vit", "dinov2", "deit", "deit3"), _vit),
    ):
        found = read(state)
        if found is not None:
            entries = (catalog.find(name)[0] for name in catalog.names())
            candidates = [entry for entry in entries if entry.family in families]
            return [entry.name for entry in candidates if _fits(entry, found)]
    return []


def _fits(entry: catalog.Entry, found: Mapping[str, Any]) -> bool:
    defaults = {"reg_tokens": 0, "class_token": True, "pre_norm": False, "use_conv": False, "init_values": None}
    config = {**defaults, **entry.config, "distilled": "Distilled" in entry.target}
    config["init_values"] = config["init_values"] is not None
    return all(config.get(key) == value for key, value in found.items())


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """The shape of state[key]; zeros where it is missing or not of the usual rank."""
    shape = tuple(state[key].shape) if key in state else ()
    return shape + (0,) * (4 - len(shape))


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the group of `pattern` takes over all keys."""
    return len({m[1] for m in (re.match(pattern, key) for key in state) if m})


def _vit(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if "patch_embed.proj.weight" not in state or "blocks.0.attn.qkv.weight" not in state:
        return None
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight")
    return {
        "embed_dim": width,
        "patch_size": patch,
        "depth": _count(state, r"blocks\.(\d+)\."),
        "class_token": "cls_token" in state,
        "reg_tokens": _shape(state, "reg_token")[1],
        "init_values": any(f"blocks.0.{gamma}" in state for gamma in ("ls1.gamma", "gamma_1")),
        "pre_norm": "norm_pre.weight" in state,
        "distilled": "dist_token" in state,
    }


def _levit(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if "stages.0.blocks.0.attn.attention_biases" not in state:
        return None
    stages = range(_count(state, r"stages\.(\d+)\."))
    projections = [f"stages.{i}.blocks.0.attn.proj.ln.linear.weight" for i in stages]
    return {
        "embed_dim": [_shape(state, key)[0] for key in projections],
        "depth": [_count(state, rf"stages\.{i}\.blocks\.(\d+)\.") for i in stages],
        "num_heads": [_shape(state, f"stages.{i}.blocks.0.attn.attention_biases")[0] for i in stages],
        "use_conv": projections[0] in state and state[projections[0]].ndim == 4,
    }


def _mobilevit(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if not any(".conv_fusion." in key for key in state):
        return None
    return {"num_features": _shape(state, "final_conv.conv.weight")[0]}


def _mobilevitv2(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if not any(".attn.qkv_proj." in key for key in state):
        return None
    return {"width": _shape(state, "stages.4.1.conv_proj.conv.weight")[0] / 512}
