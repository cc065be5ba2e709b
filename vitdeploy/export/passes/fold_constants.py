"""Compute what depends on no input: transposed weights, position tables, gathered attention biases.

Large results are recipes (`ir.LazyTensor`), computed when the file is written, so weights are never held twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import INLINE_BYTES, constant, is_constant, sweep, weight

RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


def fold_constants(model: ir.Model) -> int:
    """Replace every node whose inputs are all constant by its result. Returns how many were replaced."""
    graph, count = model.graph, 0
    opset = graph.opset_imports.get("", 20)
    for node in list(graph):
        if (
            node.domain != ""
            or node.op_type in RANDOM
            or node.op_type == "Constant"
            and node.outputs[0].is_graph_output()
        ):
            continue
        if any(
            isinstance(a, ir.Attr) and a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        ):
            continue
        if not all(value is None or is_constant(value) for value in node.inputs):
            continue
        if node.op_type in ("SequenceConstruct", "SequenceAt", "SplitToSequence", "Loop", "Scan", "If"):
            continue
        if any(out.is_graph_output() for out in node.outputs):
            continue
        count += fold_node(graph, node, opset)
    sweep(model)
    return count


def fold_node(graph: ir.Graph, node: ir.Node, opset: int) -> int:
    first = node.outputs[0]
    if node.op_type == "Transpose" and first.shape is None and node.inputs[0] is not None:
        source = node.inputs[0].shape
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        if source is not None:
            order = perm if perm is not None else range(len(source) - 1, -1, -1)
            first.shape = ir.Shape([source[i] for i in order])
            first.dtype = node.inputs[0].dtype
    known = first.shape is not None and first.shape.is_static() and first.dtype is not None
    size = int(np.prod(first.shape.numpy(), dtype=np.int64)) * 4 if known and first.shape is not None else 0
    values = list(node.inputs)
    if known and size > INLINE_BYTES and len(node.outputs) == 1 and first.dtype is not None and first.shape is not None:
        shape, dtype = first.shape.numpy(), first.dtype
        result = [weight(graph, derived_name(node), dtype, shape, lambda: evaluate(node, values, opset)[0])]
    else:
        arrays = evaluate(node, values, opset)
        result = [
            weight(
                graph,
                derived_name(node) if len(arrays) == 1 else f"{out.name}",
                ir.DataType.from_numpy(a.dtype),
                a.shape,
                lambda a=a: a,
            )
            for out, a in zip(node.outputs, arrays, strict=True)
        ]
    for out, value in zip(node.outputs, result, strict=True):
        out.replace_all_uses_with(value)
    return 1


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
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        return [np.transpose(arrays[0], perm)]
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
