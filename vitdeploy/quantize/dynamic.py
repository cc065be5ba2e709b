"""int8 without calibration images: weights in int8 in the file, activations quantised at run time, by their own range.

In ONNX's words: DynamicQuantizeLinear finds the range of a tensor and quantises it, MatMulInteger multiplies, and one
Mul brings the sums back. A runtime that quantises activations by itself is given int8 weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UnsupportedModel
from vitdeploy.graph.edit import add_node, array, constant, dims, fresh_name, sweep, take_over
from vitdeploy.graph.ops import macs, parameters
from vitdeploy.quantize.int8 import TINY, weight_step
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.targets import Target, find_targets, matching
from vitdeploy.quantize.weight_only import store_channels

FLOAT, INT32, UINT8 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.UINT8
CONV = "a convolution: no runtime's dynamic int8 convolution beats its float one"
TWO_ACTIVATIONS = "the product of two activations: quantising both costs more than it saves"


@dataclass(frozen=True)
class Quantised:
    """What DynamicQuantizeLinear makes of an activation: uint8 levels, and the scale and zero point it chose."""

    levels: ir.Value
    scale: ir.Value
    zero_point: ir.Value


@dataclass(frozen=True)
class DynamicReport:
    """What to_int8_dynamic did.

    Attributes:
        scheme: by name.
        ops: each product: its label, op type, precision, MACs, and why it is in float where it is.
        macs: of all products; quantised_macs: of those in int8.
        weight_bytes_before, weight_bytes_after: of all weights.
    """

    scheme: str
    ops: Sequence[Mapping[str, Any]]
    macs: int
    quantised_macs: int
    weight_bytes_before: int
    weight_bytes_after: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def to_int8_dynamic(model: ir.Model, scheme: Scheme, *, keep: Sequence[str] = ()) -> DynamicReport:
    """Turn the linear layers of an fp32 graph into int8 with activations quantised at run time, in place.

    Weights have one scale an output channel and no zero point. An activation has one scale a tensor, so what an image
    gets depends a little on the others of its batch. Products that read the same activation share its quantisation.

    Args:
        model: the graph.
        scheme: how the runtime wants it.
        keep: patterns of layer names that stay in float.

    Raises:
        UsageError: a pattern that matches nothing.
        UnsupportedModel: the runtime has no such int8, or no linear layer is left for it.
    """
    if not scheme.dynamic:
        raise UnsupportedModel(f"{scheme.name} has no int8-dynamic: {scheme.reasons.get('dynamic', 'not written')}.")
    before = parameters(model)[1]
    targets = find_targets(model, scheme)
    kept = matching(targets, keep)
    reasons = {t.name: "asked for" if t.name in kept else _why_float(t, scheme) for t in targets}
    chosen = [target for target in targets if not reasons[target.name]]
    if not chosen:
        raise UnsupportedModel("Nothing is left for int8 in this graph: no linear layer with constant weights.")
    work = macs(model).nodes
    ops = [t.described("float" if reasons[t.name] else "int8", work, reasons[t.name]) for t in targets]
    shared: dict[ir.Value, Quantised] = {}
    for target in chosen:
        if scheme.dynamic == "weights":
            target.node.replace_input_with(1, store_channels(target, scheme.weight_peak))
            continue
        x = target.activations[0]
        if x not in shared:  # in the graph's order, so this is the first to read it
            shared[x] = _quantise(target.node, x)
        _multiply(target, shared[x], scheme.weight_peak)
    sweep(model)
    total, integer = sum(op["macs"] for op in ops), sum(op["macs"] for op in ops if op["precision"] == "int8")
    return DynamicReport(scheme.name, ops, total, integer, before, parameters(model)[1])


def _why_float(target: Target, scheme: Scheme) -> str:
    """Why a product stays in float; empty where it runs in int8."""
    if target.axis is None:
        return TWO_ACTIVATIONS
    if target.node.op_type == "Conv":
        return CONV
    shape = dims(target.node.inputs[1])
    assert shape is not None
    widths = (shape[1 - target.axis], shape[target.axis])
    if any(isinstance(n, int) and n < least for n, least in zip(widths, scheme.dynamic_smallest, strict=True)):
        return scheme.reasons["dynamic_smallest"]
    return target.unfit


def _quantise(before: ir.Node, x: ir.Value) -> Quantised:
    """A DynamicQuantizeLinear of `x`, before the node that reads it first."""
    graph, name = before.graph, x.name or ""
    assert isinstance(graph, ir.Graph)
    kinds = (("q", UINT8, x.shape), ("scale", FLOAT, ir.Shape([])), ("zero_point", UINT8, ir.Shape([])))
    outputs = [
        ir.Value(name=fresh_name(graph, f"{name}/{part}"), shape=shape, type=ir.TensorType(kind))
        for part, kind, shape in kinds
    ]
    node = ir.node(
        "DynamicQuantizeLinear", [x], outputs=outputs, name=fresh_name(graph, f"DynamicQuantizeLinear:{name}")
    )
    node.metadata_props.update(before.metadata_props)
    graph.insert_before(before, node)
    return Quantised(*outputs)


def _multiply(target: Target, x: Quantised, peak: int) -> None:
    """MatMulInteger in the place of a product; its sums times both scales, and the bias of a Gemm."""
    node, out, source = target.node, target.node.outputs[0], target.node.inputs[1]
    graph, name, w = node.graph, out.name or "", constant(source)
    assert isinstance(graph, ir.Graph)
    assert source is not None
    assert w is not None
    rows = w.T if target.axis == 0 else w  # (K, N)
    step = weight_step(rows, 1, peak, None, TINY)
    q = np.clip(np.rint(rows / step), -peak, peak).astype(np.int8)
    integers = array(graph, f"{source.name}/int8", np.ascontiguousarray(q))
    sums = add_node(node, "MatMulInteger", [x.levels, integers, x.zero_point], f"{name}/sums", out)
    sums.dtype = INT32
    cast = add_node(node, "Cast", [sums], f"{name}/cast", out, to=FLOAT.value)
    unit = array(graph, f"{source.name}/scale", step)
    scale = add_node(node, "Mul", [x.scale, unit], f"{name}/scale", x.scale, step.shape)
    result = add_node(node, "Mul", [cast, scale], f"{name}/product", out)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = add_node(node, "Add", [result, bias], f"{name}/sum", out)
    take_over(out, result)
    graph.remove(node, safe=True)
