"""Compute what depends on no input: transposed weights, position tables, gathered attention biases.

Large results are recipes (`ir.LazyTensor`), computed when the file is written, so weights are never held twice."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import INLINE_BYTES, array, constant, ints, is_constant, sweep, weight

RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


SEQUENCES = {"SequenceConstruct", "SequenceAt", "SequenceLength", "SplitToSequence", "ConcatFromSequence"}
SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def fold_constants(model: ir.Model) -> int:
    """Replace every node whose inputs are all constant by its result. Returns how many were replaced."""
    graph, count = model.graph, 0
    opset = graph.opset_imports.get("", 20)
    for node in list(graph):
        if foldable(node) and all(value is None or is_constant(value) for value in node.inputs):
            count += fold_node(graph, node, opset)
    sweep(model)
    return count


def foldable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type in RANDOM or node.op_type in SEQUENCES or node.op_type == "Constant":
        return False
    if any(isinstance(a, ir.Attr) and a.type in SUBGRAPHS for a in node.attributes.values()):
        return False
    return not any(out.is_graph_output() for out in node.outputs)


def fold_node(graph: ir.Graph, node: ir.Node, opset: int) -> int:
    first, values = node.outputs[0], list(node.inputs)
    infer_transpose(node)
    if first.shape is not None and first.shape.is_static() and first.dtype is not None and len(node.outputs) == 1:
        shape = first.shape.numpy()
        if prod(shape) * first.dtype.bitwidth > INLINE_BYTES * 8:
            later = weight(graph, derived_name(node), first.dtype, shape, lambda: evaluate(node, values, opset)[0])
            first.replace_all_uses_with(later)
            return 1
    try:
        results = evaluate(node, values, opset)
    except Exception:  # the reference implementation lacks it or gets it wrong: it is the runtime's to run
        return 0
    for out, result in zip(node.outputs, results, strict=True):
        name = derived_name(node) if out is first else out.name or node.op_type
        out.replace_all_uses_with(array(graph, name, result))
    return 1


def infer_transpose(node: ir.Node) -> None:
    """The exporter leaves transposed weights without a shape; with one they can stay a recipe."""
    source, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    if node.op_type == "Transpose" and out.shape is None and source is not None and source.shape is not None:
        perm = ints(node, "perm") or range(len(source.shape) - 1, -1, -1)
        out.shape = ir.Shape([source.shape[i] for i in perm])
        if source.dtype is not None:
            out.dtype = source.dtype


def derived_name(node: ir.Node) -> str:
    """Name a transposed weight after the weight; anything else after the value that it was."""
    source = node.inputs[0] if node.inputs else None
    if (
        node.op_type in ("Transpose", "Identity", "Cast")
        and source is not None
        and source.name
        and source.is_initializer()
    ):
        return source.name if node.op_type != "Transpose" else f"{source.name}.T"
    return node.outputs[0].name or node.op_type


def evaluate(node: ir.Node, values: list[ir.Value | None], opset: int) -> list[np.ndarray]:
    """Run one node on its constant inputs with ONNX's reference implementation."""
    arrays = [constant(value) for value in values]
    if node.op_type == "Transpose" and arrays[0] is not None:  # by far the most common, and a view
        return [np.transpose(arrays[0], ints(node, "perm"))]
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [f"i{i}" if a is not None else "" for i, a in enumerate(arrays)]
    outputs = [f"o{i}" for i in range(len(node.outputs))]
    attributes: list[Any] = [ir.to_proto(a) for a in node.attributes.values()]
    proto = helper.make_node(node.op_type, names, outputs)
    proto.attribute.extend(attributes)
    graph = helper.make_graph([proto], "fold", [], [helper.make_empty_tensor_value_info(o) for o in outputs])
    for name, a in zip(names, arrays, strict=True):
        if a is not None:
            graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape))
    single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    feeds = {name: a for name, a in zip(names, arrays, strict=True) if a is not None}
    return [np.asarray(result) for result in ReferenceEvaluator(single).run(None, feeds)]
