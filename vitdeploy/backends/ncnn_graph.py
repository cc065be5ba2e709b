"""The ONNX graph as ncnn's layers need it: at batch 1, with constants as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.backends.ncnn_writer import Shape
from vitdeploy.errors import UnsupportedModel
from vitdeploy.export.metadata import read_batch
from vitdeploy.graph.edit import constant, copy_of, dims
from vitdeploy.spec import LARGEST_BATCH


def check_borders(graph: ir.Model) -> list[int]:
    """(min, opt, max) of the batch. Raises UnsupportedModel on inputs and outputs that ncnn's files do not have."""
    inputs = [value for value in graph.graph.inputs if value.name not in graph.graph.initializers]
    if len(inputs) != 1:
        raise UnsupportedModel(f"ncnn's files are of one input here, and this model has {len(inputs)}.")
    for value in (*inputs, *graph.graph.outputs):
        if value.dtype != ir.DataType.FLOAT:
            kind = value.dtype.name.lower() if value.dtype is not None else "of no type"
            raise UnsupportedModel(f"ncnn's inputs and outputs are fp32, and `{value.name}` is {kind}.")
    shape = dims(inputs[0])
    if shape is None or not all(isinstance(n, int) for n in shape[1:]):
        raise UnsupportedModel(f"ncnn's files are of fixed sizes, and `{inputs[0].name}` has none.")
    if isinstance(shape[0], int):
        return [shape[0]] * 3
    return list(read_batch(graph.metadata_props) or (1, 1, LARGEST_BATCH))


def at_one(graph: ir.Model) -> ir.Model:
    """A copy of the graph at batch 1, whose shapes are yet to be inferred."""
    model = copy_of(graph)
    (image,) = (value for value in model.graph.inputs if value.name not in model.graph.initializers)
    assert image.shape is not None
    batch = image.shape[0]
    image.shape = ir.Shape([1, *image.shape[1:]])
    for node in model.graph:
        if isinstance(batch, int) and batch > 1 and node.op_type in ("Reshape", "Expand"):
            target = constant(node.inputs[1])
            if target is not None and target.size and target[0] > 0:
                if target[0] % batch:
                    raise UnsupportedModel(f"{named(node)} mixes the images of a batch, and ncnn runs them one by one.")
                fixed = np.array([target[0] // batch, *target[1:]], np.int64)
                value = ir.Value(name=f"{node.outputs[0].name}/at_one", const_value=ir.Tensor(fixed))
                value.shape, value.type = ir.Shape(fixed.shape), ir.TensorType(ir.DataType.INT64)
                model.graph.register_initializer(value)
                node.replace_input_with(1, value)
        for out in node.outputs:
            out.shape = None
    return model


def natural(shape: Shape) -> Shape:
    """A shape without the ones that it begins with, of which a blob has no need."""
    at = 0
    while at < len(shape) - 1 and shape[at] == 1:
        at += 1
    return shape[at:] or (1,)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def named(node: ir.Node) -> str:
    return f"the node `{node.name or node.outputs[0].name}` ({node.op_type})"


def weight(node: ir.Node, index: int) -> np.ndarray | None:
    """A constant input in fp32; None where it is absent or no constant."""
    return numbers_of(node.inputs[index]) if index < len(node.inputs) else None


def numbers_of(value: ir.Value | None) -> np.ndarray | None:
    """A constant in fp32, also one that is stored in fp16 behind a Cast; else None."""
    if value is None:
        return None
    made = value.producer()
    found = constant(made.inputs[0] if made is not None and made.op_type == "Cast" else value)
    return None if found is None else np.asarray(found, np.float32)


def whole_numbers(node: ir.Node, index: int) -> list[int] | None:
    """A constant input of integers, as a list."""
    found = constant(node.inputs[index]) if index < len(node.inputs) else None
    return None if found is None else [int(n) for n in np.asarray(found).reshape(-1)]
