"""Ops by executed precision, read from the graph that ONNX Runtime's optimiser made."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitdeploy.backends.base import Census
from vitdeploy.errors import BackendError

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
CPU = "CPUExecutionProvider"
# Providers that compile nodes of the types that the graph gives them: ONNX Runtime's name.
TYPED = {"tensorrt": "TensorrtExecutionProvider", "tensorrt-rtx": "NvTensorRTRTXExecutionProvider"}


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


def count_typed(model: onnx.ModelProto, native: Any) -> Census:
    """Count the ops of the model file that a session of one of the TYPED providers was opened on.

    TensorRT's types are the graph's, but for fp32 products, which run in TF32 unless the environment forbids it. Raises
    BackendError where products are quantised: which of them run in int8 is for TensorRT to choose.
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise BackendError(
            "ONNX Runtime does not tell which products TensorRT computes in int8.",
            fix="Use --backend tensorrt, whose engine tells.",
        )
    census = count(model)
    if os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        census = as_tf32(census)
    placed = placement(native)
    taken = sum(sum(placed.get(name, Counter()).values()) for name in TYPED.values())
    whose = f"; {taken} of {sum(sum(ops.values()) for ops in placed.values())} nodes are TensorRT's" if placed else ""
    return replace(census, source=f"ONNX graph, whose types TensorRT keeps{whose}")


def as_tf32(census: Census) -> Census:
    """The census where the units of a GPU round the factors of fp32 products to TF32."""
    ops = {op: _renamed(found) if op in COMPUTE else found for op, found in census.ops.items()}
    return replace(census, ops=ops, compute=_renamed(census.compute))


def _renamed(found: Mapping[str, int]) -> dict[str, int]:
    return {"tf32" if kind == "fp32" else kind: n for kind, n in found.items()}


def placement(native: Any) -> dict[str, Counter[str]]:
    """Nodes by provider (ONNX Runtime's name) and op type, as the graph was divided among them, before it was fused.

    Empty where the session was not asked to record it, or is of an ONNX Runtime that cannot (before 1.24).
    """
    if not hasattr(native, "get_provider_graph_assignment_info"):
        return {}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for part in native.get_provider_graph_assignment_info():
        found[part.ep_name].update(node.op_type for node in part.get_nodes())
    return dict(found)


def check_placement(native: Any, provider: str) -> None:
    """Raise BackendError where compute that was meant for a GPU was left to the CPU."""
    placed = placement(native)
    left = {op: n for op, n in sorted(placed.get(CPU, Counter()).items()) if op in COMPUTE}
    if left:
        total = sum(n for ops in placed.values() for op, n in ops.items() if op in COMPUTE)
        which = ", ".join(f"{n} {op}" for op, n in left.items())
        raise BackendError(
            f"{sum(left.values())} of {total} compute ops have no kernel on {provider}, and would run on the CPU: "
            f"{which}.",
            fix="Use --device cpu, or a precision that this provider computes in: fp32 or fp16.",
        )


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
