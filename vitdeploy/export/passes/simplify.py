"""onnxscript's optimiser: constant folding, shape arithmetic, inlined functions, dead code."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.edit import forget_names


def simplify(model: ir.Model) -> int:
    """Run onnxscript's optimiser. Returns how many nodes went."""
    from onnxscript import optimizer

    before = model.graph.num_nodes()
    optimizer.optimize(model)
    forget_names(model.graph)  # it names values without asking `fresh_name`
    return before - model.graph.num_nodes()
