"""onnxscript's optimiser: constant folding, shape arithmetic, inlined functions, dead code."""

from __future__ import annotations

import onnx_ir as ir


def simplify(model: ir.Model) -> int:
    """Run onnxscript's optimiser. Returns how many nodes went."""
    from onnxscript import optimizer

    before = model.graph.num_nodes()
    optimizer.optimize(model)
    model.graph.meta.pop("names", None)  # it names values without asking `edit.fresh_name`
    return before - model.graph.num_nodes()
