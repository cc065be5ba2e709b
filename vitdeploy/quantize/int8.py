"""Static int8 and fp8 as explicit Q/DQ: which values carry it, and the nodes that say so."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import add_node, array, constant, dims, fresh_name, reshape_target, sweep
from vitdeploy.quantize.clip import Function, Range
from vitdeploy.quantize.grid import GRIDS
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.targets import Target

TYPES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
TINY = np.float32(2.0**-100)  # below any scale that float32 can multiply by
HALF_RANGE = np.float32(2.0**-24), np.float32(65504)  # of fp16, its subnormal numbers included
BIAS_PEAK = 2.0**30  # an int32 bias keeps a bit to spare for the sum
PROBABILITY = ("Sigmoid", "Softmax")  # whose range needs no measuring

Rounding = Callable[[Target, np.ndarray, np.ndarray], np.ndarray]  # (target, weight, step) -> int8 weight


@dataclass(frozen=True)
class QuantParams:
    """How a tensor becomes 8 bits: q = clip(round(x / scale) + zero_point), rounded to the grid that `kind` names."""

    scale: np.float32
    zero_point: int
    kind: str

    def apply(self, x: np.ndarray) -> np.ndarray:
        """What the tensor is after being quantised and back, float32."""
        q = GRIDS[self.kind].nearest(x / self.scale, self.zero_point)
        return ((q - self.zero_point) * self.scale).astype(np.float32)


def quant_params(found: Range, scheme: Scheme) -> QuantParams:
    """The parameters that cover a range in the scheme's activation type."""
    low, high = found
    grid = scheme.grid
    scale = np.float32(storable(grid.unit(low, high, symmetric=scheme.symmetric), scheme))
    zero_point = 0 if scheme.symmetric else int(np.clip(np.rint(grid.low - low / scale), grid.low, grid.high))
    return QuantParams(scale, zero_point, scheme.activation)


def storable(scale: np.ndarray | float, scheme: Scheme) -> np.ndarray:
    """Scales as the graph can hold them, float32. In fp16 a scale is rounded up, so that nothing is clipped for it.

    What is quantised with the result loses nothing more when the graph becomes fp16. Trained weights do need subnormal
    scales: behind a small BatchNorm gain they stay below 1e-3.
    """
    exact = np.maximum(np.asarray(scale, np.float32), TINY)
    if scheme.rest != "fp16":
        return exact
    low, high = HALF_RANGE
    half = np.clip(exact, low, high).astype(np.float16)
    with np.errstate(over="ignore"):  # behind the largest comes infinity, which is not taken
        half = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
    return np.where(exact < high, half, exact).astype(np.float32)  # beyond, it belongs to an fp32 island


def default_plan(targets: Iterable[Target], precision: str = "int8") -> dict[str, str]:
    """Products with weights in 8 bits; of two activations in float: their inputs quantise badly and gain little."""
    return {t.name: precision if t.axis is not None and not t.unfit else "float" for t in targets}


@dataclass(frozen=True)
class Places:
    """The values that get a Q/DQ pair.

    Attributes:
        inputs: read by quantised nodes; others that read the same value keep it in float.
        outputs: written by quantised nodes that write 8 bits only; everybody reads those.
        axes: of all of them, where their channels are.
    """

    inputs: Mapping[str, ir.Value]
    outputs: Mapping[str, ir.Value]
    axes: Mapping[str, int]


def find_places(targets: Sequence[Target], plan: Mapping[str, str], scheme: Scheme) -> Places:
    """Where Q/DQ pairs go for a plan, in the scheme's dialect."""
    chosen = [target for target in targets if plan.get(target.name) == scheme.precision]
    inputs: dict[str, ir.Value] = {}
    outputs: dict[str, ir.Value] = {}
    axes: dict[str, int] = {}
    for target in chosen:
        for value in target.activations:
            inputs[value.name or ""] = value
            axes[value.name or ""] = target.channels
        if target.node.op_type in scheme.outputs:
            out = target.node.outputs[0]
            outputs[out.name or ""] = out
            axes.setdefault(out.name or "", target.channels)
    for value in _followers(list(outputs.values()), scheme.follow):
        outputs[value.name or ""] = value
        axes.setdefault(value.name or "", 1)
    final = {name: value for name, value in outputs.items() if not value.is_graph_output()}
    return Places({n: v for n, v in inputs.items() if n not in final}, final, axes)


def seen_through(value: ir.Value) -> Function | None:
    """The activation function that alone reads a value, if there is one."""
    users = {node.op_type for node, _ in value.uses()}
    if users == {"Sigmoid", "Mul"} and len(list(value.uses())) == 2:
        return silu
    return FUNCTIONS.get(users.pop()) if len(users) == 1 and not value.is_graph_output() else None


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x.clip(-80, 80)))


FUNCTIONS: Mapping[str, Function] = {
    "HardSwish": lambda x: x * (x / 6 + 0.5).clip(0, 1),
    "Relu": lambda x: x.clip(0, None),
    # Within 0.02 of the exact one, which is near enough to weigh errors by.
    "Gelu": lambda x: x / (1 + np.exp(-(1.702 * x).clip(-80, 80))),
}


def _followers(quantised: list[ir.Value], follow: Collection[str]) -> list[ir.Value]:
    """Outputs of `follow` nodes that read nothing but quantised values, one after another."""
    known = set(quantised)
    found: list[ir.Value] = []
    queue = list(quantised)
    while queue:
        for node, _ in queue.pop(0).uses():
            out = node.outputs[0]
            if node.op_type in follow and out not in known and all(value in known for value in node.inputs):
                known.add(out)
                found.append(out)
                queue.append(out)
    return found


def insert(
    model: ir.Model,
    targets: Sequence[Target],
    plan: Mapping[str, str],
    places: Places,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    rounding: Rounding | None = None,
) -> dict[str, QuantParams]:
    """Write a plan into the graph, in place.

    Args:
        places: from `find_places` for the same plan and scheme.
        ranges: what each of the places' values covers.
        rounding: how weights are rounded; None takes the nearest step.

    Returns:
        The parameters of each quantised activation.
    """
    graph = model.graph
    chosen = [target for target in targets if plan.get(target.name) == scheme.precision]
    params = all_params(places, ranges, scheme)
    slots_of = {(target.node, i) for target in chosen for i in range(len(target.activations))}
    products = {target.node for target in chosen if target.node.op_type not in scheme.outputs}
    for name, value in places.inputs.items():
        slots = [(node, i) for node, i in value.uses() if (node, i) in slots_of]
        shared = len(slots) < len(list(value.uses())) or value.is_graph_output()
        _pair(graph, value, params[name], slots, apart=scheme.apart and shared and value.producer() in products)
    for name, value in places.outputs.items():
        _pair(graph, value, params[name], list(value.uses()))
    for target in chosen:
        if target.axis is not None:
            source = target.node.inputs[0]
            assert source is not None
            _quantise_weight(graph, target, params[_origin(source)], scheme, rounding)
    sweep(model)
    return params


def all_params(places: Places, ranges: Mapping[str, Range], scheme: Scheme) -> dict[str, QuantParams]:
    """The parameters of every value that is quantised, by name."""
    values = [*places.inputs.items(), *places.outputs.items()]
    return {name: quant_params(_known_range(value, ranges), scheme) for name, value in values}


def _known_range(value: ir.Value, ranges: Mapping[str, Range]) -> Range:
    producer = value.producer()
    if producer is not None and producer.op_type in PROBABILITY:
        return 0.0, 1.0
    return ranges[value.name or ""]


def _origin(dequantised: ir.Value) -> str:
    """The name of the float value behind a Q/DQ pair."""
    value: ir.Value | None = dequantised
    for _ in range(2):
        node = value.producer() if value is not None else None
        assert node is not None
        value = node.inputs[0]
    assert value is not None
    return (value.name or "").removesuffix("/apart")


def _pair(
    graph: ir.Graph,
    value: ir.Value,
    params: QuantParams,
    slots: Sequence[tuple[ir.Node, int]],
    *,
    apart: bool = False,
) -> None:
    """Q and DQ behind `value`, for these of its users; with `apart` behind a Reshape that changes nothing."""
    if not slots:
        return
    name = value.name or ""
    scale = array(graph, f"{name}/scale", np.array(params.scale, np.float32))
    kind = TYPES[params.kind]
    zero_point = array(graph, f"{name}/zero_point", np.array(params.zero_point, kind.numpy()))
    shape = dims(value)
    if apart and shape is not None and sum(not isinstance(d, int) for d in shape) <= 1:
        target = reshape_target(graph, shape, f"{name}/apart")
        value = _after(graph, value, "Reshape", [value, target], f"{name}/apart", ir.DataType.FLOAT)
    q = _after(graph, value, "QuantizeLinear", [value, scale, zero_point], f"{name}/q", kind)
    dq = _after(graph, q, "DequantizeLinear", [q, scale, zero_point], f"{name}/dq", ir.DataType.FLOAT)
    for node, i in slots:
        node.replace_input_with(i, dq)


def _after(
    graph: ir.Graph, value: ir.Value, op_type: str, inputs: Sequence[ir.Value], name: str, dtype: ir.DataType
) -> ir.Value:
    """A node right behind the one that makes `value`; its output has that shape."""
    out = ir.Value(name=fresh_name(graph, name), shape=value.shape, type=ir.TensorType(dtype))
    node = ir.node(op_type, inputs, outputs=[out], name=fresh_name(graph, f"{op_type}:{out.name}"))
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        node.metadata_props.update(producer.metadata_props)
        graph.insert_after(producer, node)
    return out


def weight_step(w: np.ndarray, axis: int | None, peak: int, bias: np.ndarray | None, scale: np.float32) -> np.ndarray:
    """The scale of each output channel, float32 (channels,), or () with no axis: one for the whole weight.

    It is wide enough that an int32 bias in its unit fits.
    """
    others = tuple(i for i in range(w.ndim) if i != axis)
    step = np.abs(w).max(axis=others, initial=0).astype(np.float64) / peak
    if bias is not None:
        step = np.maximum(step, np.abs(bias) / (float(scale) * BIAS_PEAK))
    step = np.where(step > 0, step, 1.0)  # a channel of zeros
    return np.maximum(step.astype(np.float32), TINY)


def along(vector: np.ndarray, axis: int | None, ndim: int) -> np.ndarray:
    """A vector shaped so that it multiplies along `axis`; a scalar as it is."""
    if axis is None:
        return vector
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def scale_axis(target: Target, scheme: Scheme) -> int | None:
    """The axis of a weight that has scales; None where there is one for all of it."""
    return target.axis if scheme.weight_scales == "channel" else None


def _quantise_weight(
    graph: ir.Graph, target: Target, params: QuantParams, scheme: Scheme, rounding: Rounding | None
) -> None:
    node, axis = target.node, scale_axis(target, scheme)
    source = node.inputs[1]
    assert source is not None
    w = constant(source)
    assert w is not None
    b = node.inputs[2] if len(node.inputs) > 2 else None
    found = constant(b)
    bias = None if found is None else found.reshape(-1).astype(np.float64)
    integer = scheme.bias == "int32"
    step = storable(weight_step(w, axis, scheme.weight_peak, bias if integer else None, params.scale), scheme)
    if rounding is None:
        q = scheme.weight_grid.nearest(w / along(step, axis, w.ndim)).astype(TYPES[scheme.precision].numpy())
    else:
        q = rounding(target, w, step)
    node.replace_input_with(1, _dequantised(node, source, q, step, axis))
    if bias is None or b is None or not integer:
        return
    unit = (params.scale * step).astype(np.float32)
    q = np.clip(np.rint(bias / unit.astype(np.float64)), -(2.0**31), 2.0**31 - 1).astype(np.int32)
    node.replace_input_with(2, _dequantised(node, b, q, unit, 0))


def _dequantised(node: ir.Node, source: ir.Value, q: np.ndarray, scale: np.ndarray, axis: int | None) -> ir.Value:
    """A DequantizeLinear of a constant, per channel of an axis where there is one."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = source.name or ""
    content = array(graph, f"{name}/{q.dtype.name}", q)
    unit = array(graph, f"{name}/scale", scale)
    zeros = array(graph, f"{name}/zero_point", np.zeros(scale.shape, q.dtype))
    by = {} if axis is None else {"axis": axis}
    return add_node(node, "DequantizeLinear", [content, unit, zeros], f"{name}/dq", source, q.shape, **by)
