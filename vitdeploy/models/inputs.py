"""Tensors for a run that only tells what a model makes of their shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitdeploy.spec import TensorSpec


def zeros(inputs: Sequence[TensorSpec], batch: int = 1) -> tuple[Tensor, ...]:
    """Zeros for each input, of so many items."""
    return tuple(torch.zeros(batch, *spec.shape[1:], dtype=getattr(torch, spec.dtype)) for spec in inputs)  # type: ignore[arg-type]
