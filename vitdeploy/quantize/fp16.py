"""fp16 weights and compute, with deliberate fp32 islands.

The graph itself says which precision runs where: fp16 tensors, fp32 tensors, and a Cast wherever they meet. No runtime
has to be asked for anything. See docs/fp16.md for the reasons that make an island.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.graph.edit import INLINE_BYTES, fresh_name, sweep
from vitdeploy.graph.ops import parameters
from vitdeploy.graph.shapes import infer
from vitdeploy.quantize.fp16_gauges import LARGEST
from vitdeploy.quantize.fp16_islands import Island, Survey, find_islands
from vitdeploy.quantize.fp16_types import (
    FLOAT,
    FLOAT16,
    READS_ANY,
    Slot,
    convertible,
    input_slot,
    is_float32,
    output_slot,
    retype,
)

Users = dict[ir.DataType, list[tuple[ir.Node, int]]]  # who reads a value, by the precision that they need
SUFFIX = {FLOAT: "fp32", FLOAT16: "fp16"}


@dataclass(frozen=True)
class Fp16Report:
    """What to_fp16 did.

    Attributes:
        islands: the nodes kept in fp32, in the graph's order, each with its reason.
        converted: nodes that now compute in fp16.
        casts: Cast nodes inserted.
        weight_bytes_before, weight_bytes_after: of all weights.
    """

    islands: Sequence[Island]
    converted: int
    casts: int
    weight_bytes_before: int
    weight_bytes_after: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def to_fp16(
    model: ir.Model,
    samples: Sequence[np.ndarray],
    *,
    io_precision: str = "fp32",
    force_fp32: Container[str] = (),
    slow_in_fp16: Mapping[str, str] | None = None,
) -> Fp16Report:
    """Turn an fp32 graph into fp16, in place, but for the nodes that the samples show to need fp32.

    Args:
        model: the graph. Its weights become recipes that read the fp32 ones; no second copy is held.
        samples: float32 inputs (N, C, H, W), prepared as for the model. N is free where the graph's batch is dynamic,
            and otherwise a multiple of it.
        io_precision: of the graph's own inputs and outputs, 'fp32' or 'fp16'.
        force_fp32: names of nodes, values or weights that must stay in fp32.
        slow_in_fp16: op types that the runtime in mind is better off with in fp32, each with its reason.

    Raises:
        UsageError: no samples, samples that do not fit, or an io_precision that cannot hold the input or output.
        VerificationFailed: a tensor has NaN or Inf in fp32 already.
    """
    if io_precision not in SUFFIX.values():
        raise UsageError(f"io_precision is '{io_precision}': give fp32 or fp16.")
    half_io = io_precision == "fp16"
    before = parameters(model)[1]
    settle_types(model)
    survey = Survey(model, model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))
    survey.measure(samples)
    if half_io:
        _check_io(model, survey)
    islands = find_islands(survey, force_fp32, slow_in_fp16 or {}, half_io)
    converted, casts = convert(model, survey.nodes, islands, survey.opset, half_io)
    return Fp16Report(tuple(islands.values()), converted, casts, before, parameters(model)[1])


def settle_types(model: ir.Model) -> None:
    """Make every type explicit: infer what is not noted, lift float constants into weights, turn CastLike into Cast."""
    nodes = list(model.graph)
    if any(value.dtype is None for node in nodes for value in node.outputs):
        found = infer(model)
        for value in (value for node in nodes for value in node.outputs if value.type is None):
            if (info := found.get(value.name or "")) and info.dtype:
                value.dtype = ir.DataType(info.dtype)
    for node in nodes:
        out = node.outputs[0]
        if node.op_type == "CastLike" and node.domain in ("", "ai.onnx") and out.dtype is not None:
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = ir.AttrInt64("to", out.dtype.value)
        elif node.op_type == "Constant" and not out.is_graph_output():
            tensor = ir.convenience.get_const_tensor(out)
            if tensor is not None and tensor.dtype == FLOAT:
                _lift(model.graph, node, tensor)


def convert(
    model: ir.Model, nodes: Iterable[ir.Node], kept: Container[ir.Node], opset: int, half_io: bool
) -> tuple[int, int]:
    """Give `nodes` but for `kept` their float16 form, and cast where fp16 and fp32 meet.

    Returns:
        How many nodes were converted and how many Casts inserted.
    """
    graph = model.graph
    chosen = {node for node in nodes if node not in kept and convertible(node, opset)}
    floats = [v for v in graph.inputs if is_float32(v)]
    floats += [v for v in graph.initializers.values() if is_float32(v) and v not in set(floats)]
    floats += [v for node in graph for v in node.outputs if is_float32(v)]
    outputs = {v for v in graph.outputs if is_float32(v)}
    for node in chosen:
        retype(node, opset)
        for i, value in enumerate(node.outputs):
            if is_float32(value) and output_slot(node, i, opset) is Slot.HALF:
                value.dtype = FLOAT16
    for value in graph.inputs if half_io else ():
        if is_float32(value):
            value.dtype = FLOAT16
    casts = 0
    for value in floats:
        users: Users = {FLOAT: [], FLOAT16: []}
        for node, i in value.uses():
            slot = input_slot(node, i, opset) if node in chosen or node.op_type in READS_ANY else Slot.FULL
            if slot is not Slot.ANY:
                users[FLOAT16 if slot is Slot.HALF else FLOAT].append((node, i))
        wanted = (FLOAT16 if half_io else FLOAT) if value in outputs else None
        if value.is_initializer() and wanted is None:
            _convert_weight(graph, value, users)
        else:
            casts += _cast(graph, value, users, wanted)
    _drop_idle_casts(model)
    return len(chosen), casts


def _cast(graph: ir.Graph, value: ir.Value, users: Users, wanted: ir.DataType | None) -> int:
    """Where users, or the graph's output (`wanted`), need the other precision: one Cast for them all, or none."""
    other = FLOAT if value.dtype == FLOAT16 else FLOAT16
    is_output = wanted == other
    if not users[other] and not is_output:
        return 0
    producer, source = value.producer(), value
    if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        source = producer.inputs[0]  # two Casts in a row would be one too many
    name = value.name or ""
    if is_output:  # the name belongs to the graph's interface
        value.name = fresh_name(graph, f"{name}/{SUFFIX[FLOAT if other == FLOAT16 else FLOAT16]}")
    if source.dtype == other and not is_output:
        cast = source
    else:
        new_name = name if is_output else fresh_name(graph, f"{name}/{SUFFIX[other]}")
        cast = _new_cast(graph, source, other, new_name, after=producer)
        cast.shape = value.shape
    for user, i in users[other]:
        user.replace_input_with(i, cast)
    for i, output in enumerate(graph.outputs):
        if output is value and is_output:
            graph.outputs[i] = cast
    return 0 if cast is source else 1


def _new_cast(graph: ir.Graph, source: ir.Value, to: ir.DataType, name: str, after: ir.Node | None) -> ir.Value:
    out = ir.Value(name=name, type=ir.TensorType(to))
    node = ir.node("Cast", [source], {"to": to.value}, outputs=[out], name=fresh_name(graph, f"Cast:{name}"))
    if after is None:
        graph.insert_before(graph[0], node)
    else:
        node.metadata_props.update(after.metadata_props)
        graph.insert_after(after, node)
    return out


def _convert_weight(graph: ir.Graph, value: ir.Value, users: Users) -> None:
    """fp16 for the nodes that compute in fp16. Islands that read the same weight get it in fp32, under a new name."""
    if not users[FLOAT16]:
        return
    name, tensor = value.name or "", value.const_value
    assert tensor is not None
    if users[FLOAT]:
        full = ir.Value(
            name=fresh_name(graph, f"{name}/fp32"), shape=value.shape, type=ir.TensorType(FLOAT), const_value=tensor
        )
        graph.register_initializer(full)
        for user, i in users[FLOAT]:
            user.replace_input_with(i, full)

    def half() -> ir.Tensor:
        with np.errstate(over="ignore"):  # a bound beyond fp16 becomes infinity
            return ir.Tensor(tensor.numpy().astype(np.float16), dtype=FLOAT16, name=name)

    lazy = ir.LazyTensor(half, dtype=FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=name)
    value.const_value = half() if tensor.size * 2 <= INLINE_BYTES else lazy
    value.dtype = FLOAT16


def _lift(graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    """Turn a Constant node into a weight of the same name."""
    out = node.outputs[0]
    value = ir.Value(name=out.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(FLOAT), const_value=tensor)
    out.replace_all_uses_with(value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)


def _drop_idle_casts(model: ir.Model) -> None:
    """Remove Casts of the original graph that now cast to the type that they read."""
    for node in list(model.graph):
        source, out = (node.inputs[0] if node.inputs else None), node.outputs[0]
        if node.op_type == "Cast" and source is not None and source.dtype == out.dtype and not out.is_graph_output():
            out.replace_all_uses_with(source)
    sweep(model)


def _check_io(model: ir.Model, survey: Survey) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        found = survey.ranges.get(value.name or "")
        if found is not None and found.peak > LARGEST:
            raise UsageError(
                f"'{value.name}' reaches {found.peak:.2g}, which fp16 cannot hold.", fix="Use io_precision fp32."
            )
