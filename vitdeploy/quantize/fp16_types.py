"""Which inputs and outputs of a node may be float16, by the ONNX specification."""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any

import onnx_ir as ir

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

# Where an output's type follows no input: the attribute that says it.
TYPE_ATTRIBUTES = {
    "Cast": "to",
    "EyeLike": "dtype",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
    "Bernoulli": "dtype",
    "DequantizeLinear": "output_dtype",
    "ConstantOfShape": "value",
}
# These read a tensor of any type and give something that does not depend on it.
READS_ANY = {"Cast", "Shape", "Size"}
# The specification allows float16 here, but positions need more than 11 bits.
POSITIONS = {("Resize", 1)}


class Slot(Enum):
    """What a node wants of one float input, or gives as one float output."""

    HALF = "float16"
    FULL = "float32"
    ANY = "either"


def is_float32(value: ir.Value | None) -> bool:
    """Whether the value is a float32 tensor (not a sequence of them, and not of unknown type)."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == FLOAT


def convertible(node: ir.Node, opset: int) -> bool:
    """Whether the node works on float32 tensors and has a float16 form at this opset."""
    schema = _schema(node, opset)
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
    # Sequences hold tensors of one type, and whoever takes them apart must agree.
    if schema is None or _has_subgraph(node) or not all(isinstance(v.type, ir.TensorType) for v in values):
        return False
    slots = [input_slot(node, i, opset) for i, value in enumerate(node.inputs) if is_float32(value)]
    for i, value in enumerate(node.outputs):
        if is_float32(value):
            slots.append(output_slot(node, i, opset))
            # Range and Celu know float32 only; LayerNormalization's optional outputs may stay float32.
            if (i == 0 and slots[-1] is Slot.FULL) or (_free_type(schema, i) and node.op_type not in TYPE_ATTRIBUTES):
                return False
    return Slot.HALF in slots


def input_slot(node: ir.Node, index: int, opset: int) -> Slot:
    """Of a node that is converted: what its float input number `index` must be."""
    schema = _schema(node, opset)
    if schema is None or (node.op_type, index) in POSITIONS:
        return Slot.FULL
    if node.op_type in READS_ANY:
        return Slot.ANY
    return Slot.HALF if _allows_half(schema, _formal(schema.inputs, index)) else Slot.FULL


def output_slot(node: ir.Node, index: int, opset: int) -> Slot:
    """Of a node that is converted: what its float output number `index` becomes."""
    schema = _schema(node, opset)
    if schema is None:
        return Slot.FULL
    return Slot.HALF if _allows_half(schema, _formal(schema.outputs, index)) else Slot.FULL


def retype(node: ir.Node, opset: int) -> None:
    """Change the attribute that says an output's type, where the node has one, from float32 to float16."""
    schema = _schema(node, opset)
    attribute = TYPE_ATTRIBUTES.get(node.op_type)
    if schema is None or attribute is None or not _free_type(schema, 0):
        return
    if attribute == "value":
        import numpy as np

        old = node.attributes.get("value")
        fill = np.zeros(1, np.float32) if old is None else old.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(fill.astype(np.float16)))
    else:
        node.attributes[attribute] = ir.AttrInt64(attribute, FLOAT16.value)


@cache
def _find_schema(op_type: str, opset: int) -> Any:
    from onnx import defs

    try:
        return defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        return None


def _schema(node: ir.Node, opset: int) -> Any:
    return _find_schema(node.op_type, opset) if node.domain in ("", "ai.onnx") else None


def _formal(parameters: Any, index: int) -> str:
    """The type string of a parameter; the last one may stand for many."""
    return parameters[min(index, len(parameters) - 1)].type_str


def _allows_half(schema: Any, type_str: str) -> bool:
    return "tensor(float16)" in _allowed(schema, type_str)


def _allowed(schema: Any, type_str: str) -> list[str]:
    for constraint in schema.type_constraints:
        if constraint.type_param_str == type_str:
            return list(constraint.allowed_type_strs)
    return [type_str]


def _free_type(schema: Any, index: int) -> bool:
    """Whether the output may be float16 and its type follows none of the inputs."""
    type_str = _formal(schema.outputs, index)
    return _allows_half(schema, type_str) and all(parameter.type_str != type_str for parameter in schema.inputs)


def _has_subgraph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
