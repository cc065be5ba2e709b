"""What an app does with logits, inside the graph: softmax, and the best classes with their scores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UnsupportedModel
from vitdeploy.export.nodes import FLOAT, INT64, Nodes
from vitdeploy.export.trace import OUTPUT
from vitdeploy.spec import INDICES, SCORES


def embed_postprocessing(model: ir.Model, top: int) -> None:
    """Add the outputs `scores`, float32 (batch, top), best first, and `indices`, int64, to `logits`, which stays.

    Raises:
        UnsupportedModel: the logits are not float32 (batch, classes).
    """
    graph = model.graph
    logits = next((value for value in graph.outputs if value.name == OUTPUT), None)
    if logits is None or logits.shape is None or len(logits.shape) != 2 or logits.dtype != FLOAT:
        raise UnsupportedModel("Postprocessing is for models whose logits are float32 (batch, classes).")
    nodes = Nodes(graph, "postprocess")
    odds = nodes("Softmax", logits, axis=1)
    shape = [logits.shape[0], top]
    scores = ir.Value(name=SCORES, shape=ir.Shape(shape), type=ir.TensorType(FLOAT))
    indices = ir.Value(name=INDICES, shape=ir.Shape(shape), type=ir.TensorType(INT64))
    best = ir.node("TopK", [odds, nodes.constant(np.array([top]))], {"axis": 1}, outputs=[scores, indices])
    best.name = "postprocess/TopK"
    graph.extend([*nodes.written, best])
    graph.outputs.extend([scores, indices])
