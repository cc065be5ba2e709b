"""Run a graph over calibration images and gather the statistics of the tensors that matter, all in one sweep."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import cache
from vitdeploy.errors import UsageError
from vitdeploy.graph.feeds import feeds_of, finite
from vitdeploy.graph.run import Probe
from vitdeploy.quantize.observe import BINS, TensorStatistics

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[int], None]  # hears how many images are done
FORMAT = 2  # of the cache's files; part of their key
CACHED = 64  # files kept, the most recently used


def calibrate(
    model: ir.Model,
    axes: Mapping[str, int],
    batches: Iterable[np.ndarray],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, TensorStatistics]:
    """Statistics of tensors over images.

    Args:
        model: the fp32 graph.
        axes: the tensors, each with the axis of its channels.
        batches: float32 (N, C, H, W), prepared as for the model, or of several inputs (see graph.feeds), one at a time
            in memory. N is free where the graph's batch is dynamic, and otherwise a multiple of it.

    Raises:
        UsageError: no images, or NaN or Inf in one or in what the graph makes of it; the message names the tensor.
    """
    found = {name: TensorStatistics(axis) for name, axis in axes.items()}
    shape = model.graph.inputs[0].shape
    fixed = shape[0] if shape is not None and isinstance(shape[0], int) else None
    done = 0
    with Probe(model, list(axes), threads=threads) as probe:
        for batch in batches:
            check_images(batch, done)
            step = fixed or len(batch)
            for start in range(0, len(batch), step):
                for name, value in probe.run(feeds_of(model, batch[start : start + step])):
                    if not found[name].update(value):
                        raise not_finite(name)
            done += len(batch)
            if progress is not None:
                progress(done)
    if not done:
        raise UsageError("There are no calibration images.")
    return found


def check_images(batch: np.ndarray, done: int) -> None:
    """Raise UsageError on NaN or Inf in these images, of which `done` came before."""
    good = finite(batch)
    if not good.all():
        raise UsageError(f"Calibration image {done + int(np.argmin(good))} has NaN or Inf.")


def not_finite(name: str) -> UsageError:
    """What to say when a tensor is not finite."""
    return UsageError(
        f"While calibrating, the model gives NaN or Inf in '{name}'.", fix="Check the checkpoint and the images."
    )


def digest_of(model: ir.Model) -> str:
    """sha256 over a graph's nodes and weights: the key of what was measured on it."""
    from vitdeploy.graph.save import skeleton_of, weights

    whole = hashlib.sha256(skeleton_of(model).SerializeToString(deterministic=True))
    for tensor in weights(model):
        whole.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
        whole.update(tensor.tobytes())
    return whole.hexdigest()


def cache_key(model: ir.Model, images: str, axes: Mapping[str, int]) -> str:
    """What a sweep depends on, as one digest: the graph, the images (their digest), the tensors and their axes."""
    text = json.dumps([FORMAT, digest_of(model), images, sorted(axes.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def cache_folder() -> Path:
    """Where sweeps are kept."""
    return cache.folder("calibration")


def cached(key: str) -> tuple[dict[str, TensorStatistics], int] | None:
    """What `remember` kept under this key; None when there is nothing, or nothing whole."""
    path = cache_folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [str(name) for name in file["names"]]
            found = {name: _read(file, i) for i, name in enumerate(names)}, int(file["images"])
    except Exception:  # a cache that cannot be read is a cache that is not there
        return None
    with suppress(OSError):
        path.touch()
    return found


def remember(key: str, statistics: Mapping[str, TensorStatistics], images: int) -> None:
    """Keep a sweep over so many images for the next time; on a full or read-only disk there is no next time."""
    folder = cache_folder()
    arrays: dict[str, np.ndarray] = {"names": np.array(list(statistics)), "images": np.array(images)}
    for i, one in enumerate(statistics.values()):
        arrays |= {f"{i}.{field.name}": np.asarray(getattr(one, field.name)) for field in fields(one)}
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            Path(name).replace(folder / f"{key}.npz")
        finally:
            Path(name).unlink(missing_ok=True)
        old = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)[:-CACHED]
        for path in old:
            path.unlink(missing_ok=True)


def _read(file: Mapping[str, np.ndarray], i: int) -> TensorStatistics:
    kinds = {field.name: field.type for field in fields(TensorStatistics)}
    values = {name: file[f"{i}.{name}"] for name in kinds}
    plain: dict[str, Any] = {name: values[name].item() if values[name].ndim == 0 else values[name] for name in kinds}
    if plain["counts"].shape != (BINS,):
        raise ValueError("another format")
    return TensorStatistics(**plain)
