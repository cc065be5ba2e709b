"""Rewrites of the traced graph, one a file, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.export.passes.drop_attention_bias import drop_attention_bias
from vitdeploy.export.passes.flatten_tokens import flatten_tokens
from vitdeploy.export.passes.fold_affine import fold_affine
from vitdeploy.export.passes.fold_batchnorm import fold_batchnorm
from vitdeploy.export.passes.fold_constants import fold_constants
from vitdeploy.export.passes.fold_scale import fold_scale
from vitdeploy.export.passes.narrow_tokens import narrow_tokens
from vitdeploy.export.passes.simplify import simplify
from vitdeploy.export.passes.split_linear import split_linear
from vitdeploy.export.passes.tidy_layout import tidy_layout
from vitdeploy.graph.edit import settle_names

Pass = Callable[[ir.Model], int]

PASSES: tuple[Pass, ...] = (
    fold_constants,  # first, so that weights keep their names and stay unread until they are written
    simplify,
    fold_constants,
    tidy_layout,
    fold_batchnorm,
    tidy_layout,
    split_linear,
    fold_scale,
    drop_attention_bias,
    narrow_tokens,
    fold_affine,
    flatten_tokens,
    fold_constants,
    tidy_layout,
)


@dataclass(frozen=True)
class PassResult:
    """What one pass did: its name and how many places it rewrote."""

    name: str
    rewrites: int


def optimise(model: ir.Model, *, flat: bool = True) -> list[PassResult]:
    """Run every pass on the graph, in place; without `flat`, tokens keep their batch."""
    passes = [apply for apply in PASSES if flat or apply is not flatten_tokens]
    results = [PassResult(apply.__name__, apply(model)) for apply in passes]
    settle_names(model)
    return results
