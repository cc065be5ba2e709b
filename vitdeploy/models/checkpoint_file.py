"""Checkpoint files to plain dictionaries of tensors. Files are hostile until read: nothing in them is ever executed."""

from __future__ import annotations

import argparse
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# Where training scripts put the weights inside what they save; averaged weights first, as timm prefers them.
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module")

# What DataParallel, torch.compile and Lightning put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.")

SAFER = "Convert it to safetensors where you trust it: save only its state_dict with safetensors.torch.save_file."


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by key, on the CPU and in their stored dtypes.

    Args:
        path: `.safetensors`, or whatever torch.save wrote under any name. The content decides, not the suffix.

    Returns:
        The state dict: wrappers such as {'model': ...} are opened (averaged weights are preferred), and a prefix that
        every key has (`module.`, `_orig_mod.`, `model.`) is cut off. Entries that are no tensors are left out.

    Raises:
        UsageError: the file is missing, a folder, empty, truncated, no checkpoint, wants to run code, holds no tensors,
            or holds a tensor that is not finite, sparse, quantised, complex or without data.
    """
    path = Path(path)
    loaded = _load(path)
    tensors = {str(k): v for k, v in unwrap(loaded).items() if _is_tensor(v)}
    if not tensors:
        raise UsageError(f"{path} holds no tensors.", fix="Point to the file with the model's state_dict.")
    for key, tensor in tensors.items():
        _check_tensor(path, key, tensor)
    return {key: tensor.detach() for key, tensor in strip_prefixes(tensors).items()}


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hex, read in pieces.

    Raises:
        UsageError: the file cannot be read.
    """
    sha = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(1 << 20):
                sha.update(piece)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from None
    return sha.hexdigest()


def unwrap(loaded: Any) -> Mapping[Any, Any]:
    """Open {'model': {...}} and the like until the dictionary that holds the tensors; empty where there is none."""
    while isinstance(loaded, Mapping):
        inner = next((loaded[w] for w in WRAPPERS if isinstance(loaded.get(w), Mapping) and loaded[w]), None)
        if inner is None:
            return loaded
        loaded = inner
    return {}


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut off, again and again, a prefix of PREFIXES that every key has."""
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _load(path: Path) -> Any:
    """The file's content as safetensors or torch wrote it."""
    if not path.exists():
        raise UsageError(f"There is no file {path}.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a checkpoint file.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from None
    if not head:
        raise UsageError(f"{path} is empty.", fix="Download it again.")
    if head == b"version h":
        raise UsageError(
            f"{path} looks like a Git LFS pointer, not weights.", fix="Run 'git lfs pull' where it came from."
        )
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _load_safetensors(path)
    if head.startswith(b"PK"):
        return _load_zip(path)
    if head.startswith(b"\x80"):  # pickle's first byte: torch.save before 1.6
        return _load_torch(path, mmap=False)
    raise UsageError(f"{path} is not a checkpoint: neither safetensors nor a file that torch.save wrote.")


def _load_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        if "not fully covered" in str(error) or "too small" in str(error):
            raise UsageError(f"{path} is truncated: {_line(error)}.", fix="Download it again.") from None
        raise UsageError(f"{path} is not a safetensors file: {_line(error)}.") from None
    except Exception as error:  # a dtype that this torch does not know, a file that shrinks while it is read
        raise UsageError(f"Cannot read {path}: {_line(error)}.") from None


def _load_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise UsageError(f"{path} is truncated or damaged.", fix="Download it again.") from None
    if any(name.endswith("/constants.pkl") for name in members):
        raise UsageError(
            f"{path} is a TorchScript program, not a checkpoint.", fix="Save the model's state_dict instead."
        )
    if not any(name.endswith("/data.pkl") for name in members):
        raise UsageError(f"{path} is a zip archive, but not one that torch.save wrote.")
    return _load_torch(path, mmap=True)


def _load_torch(path: Path, mmap: bool) -> Any:
    import pickle
    import warnings

    import torch

    # Training scripts save their argparse options beside the weights; a Namespace is data without behaviour.
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UsageError(f"{path} is not a checkpoint that can be read safely.", fix=SAFER) from None
        raise UsageError(f"{path} runs code when it is loaded ({found[1]}), so it was not.", fix=SAFER) from None
    except EOFError:
        raise UsageError(f"{path} is truncated.", fix="Download it again.") from None
    except Exception as error:  # a damaged pickle can raise anything
        if "EOF" in str(error):
            raise UsageError(f"{path} is truncated.", fix="Download it again.") from None
        raise UsageError(f"{path} is not a readable checkpoint: {_line(error)}.") from None


def _check_tensor(path: Path, key: str, tensor: Tensor) -> None:
    import torch

    kind = None
    if tensor.layout != torch.strided:
        kind = "sparse"
    elif tensor.is_meta:
        kind = "without data (on the meta device)"
    elif tensor.is_quantized:
        kind = "quantised"
    elif tensor.is_complex():
        kind = "complex"
    if kind is not None:
        raise UsageError(f"'{key}' in {path} is {kind}; weights must be plain dense tensors.")
    if not tensor.is_floating_point():
        return
    probe = tensor if tensor.element_size() > 1 else tensor.float()  # isfinite knows no 8-bit floats
    if not torch.isfinite(probe).all():
        raise UsageError(
            f"'{key}' in {path} holds NaN or Inf.", fix="The training diverged: use an earlier checkpoint."
        )


def _line(error: BaseException) -> str:
    """The first line of a message, without a closing full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ")[:200] if lines else type(error).__name__
