"""What a graph is made of: ops, parameters, multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitdeploy.graph.shapes import TensorInfo, infer

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int, ...]

DTYPE_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64", "FLOAT8E4M3FN": "fp8"}


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one run at batch 1.

    Attributes:
        nodes: {node name (its first output's name where it has none): MACs}, only of the nodes that have any.
        unknown: names of compute nodes whose MACs cannot be told: shapes unknown, or inside a branch or a loop.
    """

    nodes: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.nodes.values())


def op_counts(model: ir.Model) -> Counter[str]:
    """Nodes by operator, subgraphs included; 'domain::Op' where the domain is not ONNX's own."""
    return Counter(op_name(node) for node in _all_nodes(model))


def op_name(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def parameters(model: ir.Model) -> tuple[int, int]:
    """(elements, bytes) of the weights: numeric initializers and Constant nodes.

    int64 tensors of one dimension or none are shapes, axes and indices, not weights.
    """
    sizes = [(tensor.size, tensor.nbytes) for tensor in _weights(model)]
    return sum(size for size, _ in sizes), sum(nbytes for _, nbytes in sizes)


def parameter_dtypes(model: ir.Model) -> dict[str, int]:
    """Bytes of the weights by type ('fp32', 'fp16', 'bf16', 'int8', ...)."""
    found: Counter[str] = Counter()
    for tensor in _weights(model):
        found[dtype_name(tensor.dtype)] += tensor.nbytes
    return dict(found.most_common())


def dtype_name(dtype: ir.DataType) -> str:
    return DTYPE_NAMES.get(dtype.name, dtype.name.lower())


def macs(model: ir.Model) -> Macs:
    """Multiply-accumulates per node, from the shapes at batch 1 (each symbolic input dimension counts as 1)."""
    found = infer(model)
    inside = {id(node) for node in model.graph}
    nodes: dict[str, int] = {}
    unknown: list[str] = []
    functions = {(f.domain, f.name) for f in model.functions.values()}
    for node in _all_nodes(model):
        name = node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
        rule = RULES.get(node.op_type) if _is_runtime_domain(node) else None
        if (node.domain, node.op_type) in functions:
            continue  # Its body is among the nodes.
        if rule is None and node.op_type not in UNCOUNTED:
            continue
        count = None
        if rule is not None and id(node) in inside:
            try:
                count = rule(_Sizes(node, found))
            except (_Unknown, IndexError, KeyError):
                count = None
        if count is None:
            unknown.append(name)
        else:
            nodes[name] = nodes.get(name, 0) + count
    return Macs(nodes, tuple(unknown))


def summarize(model: ir.Model) -> dict[str, Any]:
    """Everything that `vitdeploy inspect` prints, as JSON values."""
    import onnx_ir as ir

    elements, size = parameters(model)
    work = macs(model)
    weights = (value.const_value for value in model.graph.initializers.values())
    files = {str(tensor.location) for tensor in weights if isinstance(tensor, ir.ExternalTensor)}
    counts = op_counts(model)
    return {
        "opset": dict(sorted(model.opset_imports.items())),
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": [_described(v) for v in model.graph.inputs if v.name not in model.graph.initializers],
        "outputs": [_described(v) for v in model.graph.outputs],
        "nodes": sum(counts.values()),
        "ops": dict(counts.most_common()),
        "parameters": elements,
        "weight_bytes": size,
        "weight_bytes_by_dtype": parameter_dtypes(model),
        "macs": work.total,
        "macs_unknown": list(work.unknown),
        "metadata": dict(model.metadata_props),
        "external_data": sorted(files),
    }


def _described(value: ir.Value) -> dict[str, Any]:
    shape = None if value.shape is None else [n if isinstance(n, int) else n.value for n in value.shape]
    return {"name": value.name, "dtype": dtype_name(value.dtype) if value.dtype else None, "shape": shape}


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    import onnx_ir as ir

    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield from ir.traversal.RecursiveGraphIterator(graph)


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    import onnx_ir as ir

    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    constants = (node.attributes.get("value") for node in _all_nodes(model) if node.op_type == "Constant")
    tensors += [value.as_tensor() for value in constants if value is not None and not value.is_ref()]
    for tensor in tensors:
        if tensor.dtype in (ir.DataType.STRING, ir.DataType.BOOL):
            continue
        if tensor.dtype != ir.DataType.INT64 or len(tensor.shape) > 1:
            yield tensor


# --- MACs, operator by operator -----------------------------------------------------------------------------------


class _Unknown(Exception):
    """A size that the rule needs is not known."""


class _Sizes:
    """Shapes and attributes of one node, as the rules ask for them."""

    def __init__(self, node: ir.Node, found: dict[str, TensorInfo]) -> None:
        self.node = node
        self._found = found

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def input(self, index: int) -> Shape:
        return self._shape(self.node.inputs[index])

    def output(self, index: int = 0) -> Shape:
        return self._shape(self.node.outputs[index])

    def attribute(self, name: str, default: Any = None) -> Any:
        value = self.node.attributes.get(name)
        return default if value is None else value.value

    def _shape(self, value: ir.Value | None) -> Shape:
        info = self._found.get(value.name or "") if value is not None else None
        if info is None or info.shape is None or None in info.shape:
            raise _Unknown
        return tuple(n for n in info.shape if n is not None)


def _conv(x: int, weight: int) -> Callable[[_Sizes], int]:
    def rule(s: _Sizes) -> int:
        w = s.input(weight)
        return math.prod(_conv_output(s, s.input(x), w)) * math.prod(w[1:])

    return rule


def _conv_output(s: _Sizes, x: Shape, w: Shape) -> Shape:
    """The output's shape; from the attributes where inference does not know the operator (com.microsoft)."""
    try:
        return s.output()
    except _Unknown:
        if s.attribute("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
            raise
    rank = len(w) - 2
    strides = s.attribute("strides", [1] * rank)
    dilations = s.attribute("dilations", [1] * rank)
    pads = s.attribute("pads", [0] * rank * 2)
    size = [
        (x[i + 2] + pads[i] + pads[i + rank] - dilations[i] * (w[i + 2] - 1) - 1) // strides[i] + 1 for i in range(rank)
    ]
    return (x[0], w[0], *size)


def _conv_transpose(s: _Sizes) -> int:
    return math.prod(s.input(0)) * math.prod(s.input(1)[1:])


def _matmul(a: int, b: int) -> Callable[[_Sizes], int]:
    return lambda s: _product(s.input(a), s.input(b))


def _product(a: Shape, b: Shape) -> int:
    """MACs of numpy's matmul of two shapes."""
    a = (1, *a) if len(a) == 1 else a
    b = (*b, 1) if len(b) == 1 else b
    return math.prod(_broadcast(a[:-2], b[:-2])) * a[-2] * a[-1] * b[-1]


def _broadcast(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    padded = ((1,) * (rank - len(s)) + s for s in (a, b))
    return tuple(n if m == 1 else m for m, n in zip(*padded, strict=True))


def _gemm(a: int, b: int) -> Callable[[_Sizes], int]:
    def rule(s: _Sizes) -> int:
        left, right = s.input(a), s.input(b)
        left = left[::-1] if s.attribute("transA", 0) else left
        right = right[::-1] if s.attribute("transB", 0) else right
        return _product(left, right)

    return rule


def _fused_matmul(s: _Sizes) -> int:
    left, right = s.input(0), s.input(1)
    if s.attribute("transBatchA", 0) or s.attribute("transBatchB", 0):
        raise _Unknown
    left = (*left[:-2], left[-1], left[-2]) if s.attribute("transA", 0) else left
    right = (*right[:-2], right[-1], right[-2]) if s.attribute("transB", 0) else right
    return _product(left, right)


def _matmul_nbits(s: _Sizes) -> int:
    return math.prod(s.input(0)) * int(s.attribute("N"))


def _einsum(s: _Sizes) -> int:
    """Of two operands: the product of all label sizes. A single operand multiplies nothing."""
    count = len(s.node.inputs)
    if count == 1:
        return 0
    if count > 2:
        raise _Unknown
    terms = str(s.attribute("equation")).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    batch: Shape = ()
    for term, shape in zip(terms, (s.input(0), s.input(1)), strict=True):
        before, _, after = term.partition("...")
        middle = shape[len(before) : len(shape) - len(after)] if "..." in term else ()
        batch = _broadcast(batch, middle)
        ends = shape[: len(before)] + (shape[len(shape) - len(after) :] if after else ())
        for label, size in zip(before + after, ends, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values()) * math.prod(batch)


def _attention(s: _Sizes) -> int:
    """ONNX's Attention (opset 23): inputs of 4 dimensions (batch, heads, length, width) or 3 (batch, length, all)."""
    q, k, v = s.input(0), s.input(1), s.input(2)
    past = s.input(4)[2] if s.has(4) else 0
    if len(q) == 4:
        return q[0] * q[1] * q[2] * (k[2] + past) * (q[3] + v[3])
    groups = s.attribute("q_num_heads") // s.attribute("kv_num_heads")
    return q[0] * q[1] * (k[1] + past) * (q[2] + v[2] * groups)


def _packed_attention(s: _Sizes) -> int:
    """com.microsoft Attention and QAttention: projections included."""
    x, w = s.input(0), s.input(1)
    if s.attribute("qkv_hidden_sizes") is not None or any(s.has(i) for i in (4,) if s.node.op_type == "Attention"):
        raise _Unknown
    batch, length, width = x
    return batch * length * width * w[1] + 2 * batch * length * length * (w[1] // 3)


def _multi_head_attention(s: _Sizes) -> int:
    if not (s.has(1) and s.has(2)) or s.has(6):
        raise _Unknown
    q, k, v = s.input(0), s.input(1), s.input(2)
    keys, width = (k[1], v[2]) if len(k) == 3 else (k[2], v[1] * v[3])
    return q[0] * q[1] * keys * (q[2] + width)


def _any_attention(s: _Sizes) -> int:
    return _packed_attention(s) if s.node.domain == "com.microsoft" else _attention(s)


RULES: dict[str, Callable[[_Sizes], int]] = {
    "Conv": _conv(0, 1),
    "FusedConv": _conv(0, 1),
    "ConvInteger": _conv(0, 1),
    "QLinearConv": _conv(0, 3),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul(0, 1),
    "MatMulInteger": _matmul(0, 1),
    "DynamicQuantizeMatMul": _matmul(0, 1),
    "MatMulIntegerToFloat": _matmul(0, 1),
    "QLinearMatMul": _matmul(0, 3),
    "FusedMatMul": _fused_matmul,
    "MatMulNBits": _matmul_nbits,
    "Gemm": _gemm(0, 1),
    "FusedGemm": _gemm(0, 1),
    "QGemm": _gemm(0, 3),
    "Einsum": _einsum,
    "Attention": _any_attention,
    "QAttention": _packed_attention,
    "MultiHeadAttention": _multi_head_attention,
}
# Operators that multiply and accumulate, but by no rule here: named as unknown rather than counted as nothing.
UNCOUNTED = {"LSTM", "GRU", "RNN", "DeformConv", "NhwcConv", "NhwcFusedConv", "GroupQueryAttention", "PackedAttention"}


def _is_runtime_domain(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
