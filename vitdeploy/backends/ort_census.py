"""Ops by executed precision, read from the graph that ONNX Runtime's optimiser made."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.backends.base import Census

if TYPE_CHECKING:
    import onnx

SOURCE = "ONNX Runtime optimised graph"

COMPUTE = {
    *("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger", "QLinearConv"),
    *("QLinearConvTranspose", "MatMul", "FusedMatMul", "FusedMatMulActivation", "MatMulInteger", "QLinearMatMul"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "Gemm", "FusedGemm", "QGemm", "Einsum"),
    *("Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention", "PackedMultiHeadAttention"),
}
INTEGER = {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention", "QGemm"}
PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64", "uint8": "int8"}
FLOATS = {"float", "float16", "bfloat16", "double"}
UNKNOWN = "unknown"


def count(model: onnx.ModelProto) -> Census:
    """Count the nodes of an optimised graph, whose weights need not be loaded.

    The precision of a node is the type of its first floating-point input or output, as the kernels see it; integer
    multiplications count as 'int8' although their scales are floats.
    """
    typing = _Types(model)
    ops: dict[str, Counter[str]] = defaultdict(Counter)
    compute: Counter[str] = Counter()
    casts = typing.walk(model.graph, {}, ops)
    for op, found in ops.items():
        if op in COMPUTE:
            compute.update(found)
    return Census(SOURCE, {op: dict(found) for op, found in sorted(ops.items())}, dict(compute), casts)


class _Types:
    """Element types of values. The optimised file notes none, so they follow from the operators' own schemas."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._schemas: dict[tuple[str, str], Any] = {}
        for schema in sorted(state.get_all_operator_schema(), key=lambda schema: schema.since_version):
            # Domains of ONNX Runtime's own layouts follow ONNX's versions or have a single one.
            if schema.since_version <= opsets.get(schema.domain, opsets.get("", 1)):
                self._schemas[schema.domain, schema.name] = schema

    def walk(self, graph: onnx.GraphProto, outer: Mapping[str, str], ops: dict[str, Counter[str]]) -> int:
        """Count the nodes of `graph` and of its subgraphs into `ops`; return the number of precision casts."""
        types = dict(outer)
        types |= {tensor.name: _name(tensor.data_type) for tensor in graph.initializer}
        types |= {v.name: _name(v.type.tensor_type.elem_type) for v in (*graph.input, *graph.value_info)}
        casts = 0
        for node in graph.node:
            inputs = [types.get(name, UNKNOWN) for name in node.input]
            outputs = self._outputs(node, inputs)
            types.update((name, kind) for name, kind in zip(node.output, outputs, strict=True) if name not in types)
            ops[node.op_type][_precision(node, inputs, outputs)] += 1
            casts += node.op_type == "Cast" and inputs[0] != outputs[0] and {inputs[0], outputs[0]} <= FLOATS
            for attribute in node.attribute:
                for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                    casts += self.walk(inner, types, ops)
        return casts

    def _outputs(self, node: onnx.NodeProto, inputs: list[str]) -> list[str]:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        for name in ("to", "output_dtype", "dtype"):
            if name in attributes and attributes[name].i:
                return [_name(attributes[name].i)] * len(node.output)
        if "value" in attributes and attributes["value"].t.data_type:
            return [_name(attributes["value"].t.data_type)] * len(node.output)
        schema = self._schemas.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
        if schema is None:
            return [inputs[0] if inputs else UNKNOWN] * len(node.output)
        bound = _bound(schema, node, inputs)
        results = schema.outputs
        return [_resolved(schema, results[min(i, len(results) - 1)].typeStr, bound) for i in range(len(node.output))]


def _bound(schema: Any, node: onnx.NodeProto, inputs: list[str]) -> dict[str, str]:
    """Which type each of the schema's type variables took."""
    bound: dict[str, str] = {}
    for position, (name, kind) in enumerate(zip(node.input, inputs, strict=True)):
        if name and kind != UNKNOWN and schema.inputs:
            bound.setdefault(schema.inputs[min(position, len(schema.inputs) - 1)].typeStr, kind)
    return bound


def _resolved(schema: Any, kind: str, bound: Mapping[str, str]) -> str:
    if kind in bound:
        return bound[kind]
    for constraint in schema.type_constraints:
        if constraint.type_param_str == kind:
            allowed = constraint.allowed_type_strs
            # QuantizeLinear without a zero point gives uint8.
            only = "tensor(uint8)" if schema.name == "QuantizeLinear" else allowed[0] if len(allowed) == 1 else ""
            return only.removeprefix("tensor(").removesuffix(")") or UNKNOWN
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else UNKNOWN


def _precision(node: onnx.NodeProto, inputs: list[str], outputs: list[str]) -> str:
    if node.op_type in INTEGER or node.op_type.startswith("QLinear"):
        return "int8"
    if node.op_type == "MatMulNBits" and any(a.name == "accuracy_level" and a.i == 4 for a in node.attribute):
        return "int8"
    kinds = [*inputs, *outputs]
    kind = next((kind for kind in kinds if kind in FLOATS), kinds[0] if kinds else UNKNOWN)
    return PRECISIONS.get(kind, kind)


def _name(dtype: int) -> str:
    import onnx

    name = onnx.TensorProto.DataType.Name(dtype).lower()
    return UNKNOWN if name == "undefined" else name
