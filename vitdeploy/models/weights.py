"""Checkpoints into models: strict, and in words where they do not fit. Also the door to the rest of the weights code:
read_checkpoint and digest (files), read_hub_folder and download (timm's hub layout), random_weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError
from vitdeploy.models.checkpoint_file import PREFIXES, digest, read_checkpoint
from vitdeploy.models.hub import HubFolder, download, read_hub_folder
from vitdeploy.models.random_weights import random_weights
from vitdeploy.models.recognise import describe

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "CLASSIFIERS",
    "HubFolder",
    "LoadReport",
    "digest",
    "download",
    "head_size",
    "load_into",
    "random_weights",
    "read_checkpoint",
    "read_hub_folder",
    "resample_pos_embed",
]

State = dict[str, "Tensor"]

# Every classifier of the catalog's families, by module name.
CLASSIFIERS = ("head", "head_dist", "head.fc", "head.linear", "head_dist.linear", "head.0", "head.1")


@dataclass(frozen=True)
class LoadReport:
    """What load_into did beyond copying.

    Attributes:
        loaded: number of tensors copied.
        cast_from: dtypes that were converted to the model's ('float16', ...).
        resampled: the position table's (old grid, new grid), or None.
        reshaped: keys turned from Linear to 1x1 convolution weights or back.
        dropped: keys of the checkpoint that the model has no use for (a classifier that was built away, an optimiser's
            or a loss's tensors beside a prefixed model).
    """

    loaded: int
    cast_from: tuple[str, ...] = ()
    resampled: tuple[tuple[int, int], tuple[int, int]] | None = None
    reshaped: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors"]
        if self.cast_from:
            parts.append(f"converted from {', '.join(self.cast_from)}")
        if self.resampled:
            (old, new) = ("x".join(map(str, grid)) for grid in self.resampled)
            parts.append(f"position table resampled from {old} to {new}")
        if self.reshaped:
            parts.append(f"{len(self.reshaped)} reshaped between Linear and 1x1 convolution")
        if self.dropped:
            parts.append(f"{len(self.dropped)} not used")
        return ", ".join(parts)


def load_into(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    num_classes: int | None = None,
    trained_size: tuple[int, int] | None = None,
) -> LoadReport:
    """Copy a checkpoint into a model; every parameter must be there and fit.

    What timm converts is converted: prefixes, LeViT's stored `attention_bias_idxs`, DeiT III's and DINOv2's original
    key names, the position table of another image size (bicubic, antialiased), Linear and 1x1 convolution weights.

    Args:
        model: built; its parameters are overwritten in place and keep their dtype.
        state_dict: what read_checkpoint gave. It is not changed.
        num_classes: the classes that the model was built for, to say so when the checkpoint's head has others.
        trained_size: (height, width) that the checkpoint was trained at; a square where None.

    Raises:
        UsageError: a missing, unexpected or mis-shaped key, another number of classes, another patch size, LeViT biases
            of another image size, integer weights, or a checkpoint of another architecture.
    """
    own = model.state_dict()
    state, dropped = _align_prefix(dict(state_dict), own)
    state = {k: v for k, v in state.items() if not k.endswith("attention_bias_idxs")}
    state = _rename_upstream_keys(state, own)
    if not _has_head(own):
        heads = [k for k in state if k.split(".")[0] in ("head", "head_dist") and k not in own]
        dropped += heads
        state = {k: v for k, v in state.items() if k not in heads}
    state, resampled = _fit_positions(model, state, own, trained_size)
    state, reshaped = _fit_shapes(state, own)
    _check_fit(state, own, num_classes)
    state, cast_from = _cast(state, own)
    model.load_state_dict(state, strict=False)  # strictness was checked above, in better words
    return LoadReport(len(state), cast_from, resampled, reshaped, tuple(dropped))


def head_size(state_dict: Mapping[str, Tensor], classifier_keys: str | Sequence[str] = CLASSIFIERS) -> int | None:
    """The number of classes of a checkpoint's classifier, or None where it has none.

    Args:
        state_dict: what read_checkpoint gave.
        classifier_keys: module names of the classifier's Linear layers ('head.fc'); Entry.classifier has them.

    Raises:
        UsageError: two heads of different widths.
    """
    names = [classifier_keys] if isinstance(classifier_keys, str) else classifier_keys
    sizes = {
        int(w.shape[0]) for w in (state_dict.get(f"{n}.weight") for n in names) if w is not None and w.ndim in (2, 4)
    }
    if len(sizes) > 1:
        raise UsageError(f"The checkpoint's heads disagree about the number of classes: {sorted(sizes)}.")
    return sizes.pop() if sizes else None


def resample_pos_embed(pos: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int) -> Tensor:
    """A position table for another grid of patches: bicubic and antialiased, as timm resamples it.

    Args:
        pos: (1, num_prefix + rows * columns, dim) of `old_grid`, any float dtype.
        old_grid, new_grid: (rows, columns).
        num_prefix: leading tokens (class, registers) that keep their entries.

    Returns:
        (1, num_prefix + rows * columns, dim) of `new_grid`, in pos's dtype.

    Raises:
        UsageError: pos does not have as many tokens as `old_grid` needs.
    """
    import torch
    import torch.nn.functional as F

    if pos.shape[1] != num_prefix + old_grid[0] * old_grid[1]:
        raise UsageError(
            f"A position table of {pos.shape[1]} entries is not {num_prefix} + {old_grid[0]}x{old_grid[1]}."
        )
    if old_grid == new_grid:
        return pos
    prefix, table = pos[:, :num_prefix], pos[:, num_prefix:]
    image = table.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True)
    table = image.permute(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], -1).to(pos.dtype)
    return torch.cat([prefix, table], dim=1)


def _align_prefix(state: State, own: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Match the checkpoint's prefix to the model's; keys without the prefix are another thing's, and dropped."""
    if set(own) & set(state):
        return state, []
    for prefix in PREFIXES:
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if inner and _parameters(own) <= set(inner):
            return inner, [k for k in state if not k.startswith(prefix)]
        if _parameters(own) <= {prefix + k for k in state}:
            return {prefix + k: v for k, v in state.items()}, []
    return state, []


def _parameters(own: Mapping[str, Tensor]) -> set[str]:
    return {k for k in own if not k.endswith("num_batches_tracked")}


def _has_head(own: Mapping[str, Tensor]) -> bool:
    return any(f"{name}.weight" in own for name in CLASSIFIERS)


def _rename_upstream_keys(state: State, own: Mapping[str, Tensor]) -> State:
    """Facebook's own DeiT III and DINOv2 files in timm's names."""
    if "blocks.0.gamma_1" in state and "blocks.0.ls1.gamma" in own:
        state = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", k): v for k, v in state.items()}
    if "mask_token" in state and "mask_token" not in own:  # DINOv2's pretraining only
        state = {k: v for k, v in state.items() if k != "mask_token"}
        state = {re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", k): v for k, v in state.items()}
        state = {re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", k): v for k, v in state.items()}
        if "register_tokens" in state and {"cls_token", "pos_embed"} <= set(state):
            # our table with registers has no class entry, so the class token takes it in
            state["reg_token"] = state.pop("register_tokens")
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def _fit_positions(
    model: Any, state: State, own: Mapping[str, Tensor], trained_size: tuple[int, int] | None
) -> tuple[State, tuple[tuple[int, int], tuple[int, int]] | None]:
    """Resample `pos_embed` where the model's grid is another."""
    patch_embed = getattr(model, "patch_embed", None)
    grid = getattr(patch_embed, "grid", None) or getattr(patch_embed, "grid_size", None)
    pos, kernel = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if (
        grid is None
        or pos is None
        or "pos_embed" not in own
        or pos.ndim != 3
        or pos.shape[2] != own["pos_embed"].shape[2]
    ):
        return state, None
    prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 1))
    tokens, new_grid = pos.shape[1] - prefix, (int(grid[0]), int(grid[1]))
    side = math.isqrt(max(tokens, 0))
    old_grid = (side, side)
    if pos.shape[1] == own["pos_embed"].shape[1]:
        old_grid = new_grid
    if trained_size is not None and kernel is not None and kernel.ndim == 4:
        told = (trained_size[0] // kernel.shape[2], trained_size[1] // kernel.shape[3])
        old_grid = told if told[0] * told[1] == tokens else old_grid
    if old_grid[0] * old_grid[1] != tokens or tokens < 1:
        return state, None  # reported as a mis-shaped key
    if old_grid == new_grid:
        return state, None
    return {**state, "pos_embed": resample_pos_embed(pos, old_grid, new_grid, prefix)}, (old_grid, new_grid)


def _fit_shapes(state: State, own: Mapping[str, Tensor]) -> tuple[State, tuple[str, ...]]:
    """(O, I) to (O, I, 1, 1) and back, and a flat patch projection (O, I*P*P) to its kernel."""
    fitted, reshaped = dict(state), []
    for key, tensor in state.items():
        wanted = own[key].shape if key in own else tensor.shape
        if tensor.shape == wanted or tensor.numel() != wanted.numel():
            continue
        one_by_one = {tensor.ndim, len(wanted)} == {2, 4} and tensor.shape[:2] == wanted[:2]
        if one_by_one or (key == "patch_embed.proj.weight" and tensor.ndim < 4):
            fitted[key] = tensor.reshape(wanted)
            reshaped.append(key)
    return fitted, tuple(reshaped)


def _check_fit(state: State, own: Mapping[str, Tensor], num_classes: int | None) -> None:
    """Raise UsageError, with the likeliest cause first, unless every key is there and fits."""
    missing = sorted(_parameters(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    misshaped = sorted(k for k in set(state) & set(own) if state[k].shape != own[k].shape)
    if not (missing or unexpected or misshaped):
        return
    listing = "; ".join(
        part
        for part in (
            _listing("missing", missing),
            _listing("unexpected", unexpected),
            _listing("mis-shaped", [f"{k} {_size(state[k])} for {_size(own[k])}" for k in misshaped]),
        )
        if part
    )
    fitting = len(set(state) & set(own)) - len(misshaped)
    looks = describe(state)
    if fitting < 0.5 * len(own):
        guess = f" It looks like {looks}." if looks else ""
        raise UsageError(f"This looks like a checkpoint of another architecture: {listing}.", fix=guess.strip() or None)
    _check_known_causes(state, own, missing, unexpected, misshaped, num_classes)
    raise UsageError(f"The checkpoint does not fit the model: {listing}.")


def _check_known_causes(
    state: State,
    own: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
    num_classes: int | None,
) -> None:
    """Raise UsageError where the misfit has one cause that can be named."""
    positions = re.compile(r"pos_embed(_\d+)?$|relative_position_bias_table$")
    if misshaped and not (missing or unexpected) and all(positions.search(k) for k in misshaped):
        raise UsageError(
            "The checkpoint was trained at another image size, and its position embeddings cannot be resampled.",
            fix="Give --image-size, the one that it was trained at.",
        )
    biases = [k for k in misshaped if k.endswith("attention_biases")]
    if biases and all(state[k].ndim == 2 and state[k].shape[0] == own[k].shape[0] for k in biases):
        stride = 16 if "stem.conv4.linear.weight" in state else 8
        trained, built = (math.isqrt(d[biases[0]].shape[1]) * stride for d in (state, own))
        raise UsageError(
            f"The checkpoint was trained at {trained}x{trained} and the model is built for {built}x{built}: LeViT's "
            "attention biases belong to one image size.",
            fix=f"Build it with --image-size {trained}.",
        )
    kernel = "patch_embed.proj.weight"
    if kernel in misshaped and state[kernel].shape[0] == own[kernel].shape[0]:
        raise UsageError(
            f"The checkpoint's patch embedding is {_size(state[kernel])}, the model's {_size(own[kernel])}; "
            "kernels are not resampled.",
            fix="Choose the architecture with that patch size and number of channels.",
        )
    is_head = re.compile(rf"({'|'.join(map(re.escape, CLASSIFIERS))})\.(weight|bias)")
    if all(is_head.fullmatch(k) for k in (*missing, *unexpected, *misshaped)):
        found, classes = head_size(state), num_classes if num_classes is not None else head_size(own)
        if found is not None and found != classes and not unexpected:
            raise UsageError(
                f"The checkpoint has {found} classes and the model {classes}.", fix=f"Build it for {found}."
            )
        if found is None:
            message = "The checkpoint has no classifier: it is a backbone."
            raise UsageError(message, fix="Build the model with num_classes 0, or fine-tune a classifier first.")


def _listing(what: str, keys: list[str]) -> str:
    """'3 missing: a, b, c', with at most five named."""
    if not keys:
        return ""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{len(keys)} {what}: {', '.join(keys[:5])}{more}"


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _cast(state: State, own: Mapping[str, Tensor]) -> tuple[State, tuple[str, ...]]:
    """The tensors in the model's dtypes, and the dtypes that were converted."""
    cast, dtypes = {}, set()
    for key, tensor in state.items():
        wanted = own[key].dtype
        if wanted.is_floating_point and not tensor.is_floating_point():
            raise UsageError(f"'{key}' is stored as {_name(tensor.dtype)}: a quantised checkpoint cannot be loaded.")
        if tensor.dtype != wanted and wanted.is_floating_point:
            dtypes.add(_name(tensor.dtype))
        cast[key] = tensor.to(wanted)
    return cast, tuple(sorted(dtypes))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
