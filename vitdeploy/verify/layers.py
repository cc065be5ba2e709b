"""How far each layer of a converted graph is from the same layer in fp32: where error comes in, and where it heals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.run import Probe
from vitdeploy.verify.bisect import cast_feeds, pairs_of, side_by_side
from vitdeploy.verify.cause import bare_name, node_name
from vitdeploy.verify.metrics import json_safe

LAYERS = ("Conv", "MatMul", "Gemm", "Attention", "LayerNormalization", "Softmax", "Gelu", "HardSwish", "MatMulInteger")


@dataclass(frozen=True)
class LayerError:
    """One layer's output.

    Attributes:
        layer: its name in both graphs.
        op_type: of the node that makes it.
        rel_l2: the L2 norm of its error relative to the fp32 output's.
    """

    layer: str
    op_type: str
    rel_l2: float

    def to_dict(self) -> dict[str, Any]:
        return json_safe(asdict(self))


def layer_errors(reference: ir.Model, candidate: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[LayerError]:
    """Of every layer that both graphs have, in the candidate's order, on one batch; both run on ONNX Runtime's CPU.

    Raises:
        UsageError, BackendError: as graph.run.Probe does.
    """
    pairs = pairs_of(reference, candidate)
    made = {out.name: node for node in candidate.graph for out in node.outputs}
    wanted = [name for name in pairs if made[name].op_type in LAYERS]
    pairs = {name: pairs[name] for name in wanted}
    found = []
    with Probe(candidate, wanted) as ours, Probe(reference, list(dict.fromkeys(pairs.values()))) as theirs:
        both = ours.run(cast_feeds(feeds, candidate)), theirs.run(cast_feeds(feeds, reference))
        for name, got, want in side_by_side(*both, pairs):
            if want is not None and want.size == got.size and got.dtype.kind == "f":
                error = _rel_l2(want, got)
                found.append(LayerError(bare_name(name) or node_name(made[name]), made[name].op_type, error))
    return found


def _rel_l2(want: np.ndarray, got: np.ndarray) -> float:
    """Infinite where either is not finite."""
    flat = want.astype(np.float64).ravel()
    size, off = np.linalg.norm(flat), np.linalg.norm(got.astype(np.float64).ravel() - flat)
    return float(off / size) if size > 0 and np.isfinite(off) else (0.0 if off == 0 else float("inf"))
