"""A batch by the names of inputs: an array belongs to the only one, a structured array has a field for each.

Of camera frames, which are uint8 and come one by one, a batch is (1, ...), and the file is given what is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def feeds(batch: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Arrays by input name; `name` is that of the only input, where the batch is no structured array."""
    if batch.dtype == np.uint8:
        (frame,) = batch
        return {name: frame}
    if batch.dtype.names is None:
        return {name: batch}
    return {field: np.ascontiguousarray(batch[field]) for field in batch.dtype.names}


def feeds_of(model: ir.Model, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays by the names of the graph's inputs."""
    return feeds(batch, model.graph.inputs[0].name or "")


def finite(batch: np.ndarray) -> np.ndarray:
    """bool (N,): which items hold neither NaN nor Inf."""
    parts = [np.isfinite(part).reshape(len(batch), -1).all(axis=1) for part in feeds(batch, "").values()]
    return np.logical_and.reduce(parts)
