"""Biases that give every product of the int8 graph the mean that it has in the float graph.

Rounding and clipping shift means, and shifts add up over the depth, where noise averages out. So the products are
corrected in the order in which they feed each other, each after those before it: Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), section 4.2, on images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import array, constant
from vitdeploy.graph.feeds import feeds_of


def mean_output(model: ir.Model, nodes: Sequence[ir.Node], mean: np.ndarray, axis: int) -> np.ndarray:
    """The mean of each channel that a product writes, from the mean of what it reads: products are linear.

    Args:
        nodes: the product, last, behind those that make its constants.
        mean: of its input over the first axis, of length 1 here.
        axis: of its channels.

    Returns:
        float64 (channels,)
    """
    source, made = nodes[-1].inputs[0], nodes[-1].outputs[0].name or ""
    assert source is not None
    known = source.name or ""
    value = _stretch(model, nodes, [known], [made], 1)({known: mean.astype(np.float32)})[made]
    rows = np.moveaxis(value, axis, -1)
    return rows.reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)


def correctable(model: ir.Model) -> dict[str, int]:
    """Products with a bias and quantised weights: {output name: axis of its channels}, in the graph's order."""
    found = {}
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        w = node.inputs[1]
        producer = w.producer() if w is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear":
            found[node.outputs[0].name or ""] = 1 if node.op_type == "Conv" else -1
    return found


def correct_biases(
    model: ir.Model, wanted: Mapping[str, np.ndarray], batches: Iterable[np.ndarray], *, threads: int = 0
) -> None:
    """Correct the biases of an int8 graph, in place.

    The graph runs once, stretch after stretch: up to what the next product reads, on all images, then that product's
    bias, then on with it. Only the values that later stretches read are held.

    Args:
        wanted: the mean of each correctable product in the float graph, by `mean_output` on the same images.
        batches: float32 (N, C, H, W), as the graph takes them.
    """
    axes = correctable(model)
    nodes = list(model.graph)
    last_use = {value.name: i for i, node in enumerate(nodes) for value in node.inputs if value is not None}
    alive = [feeds_of(model, batch) for batch in batches]
    waiting: list[ir.Node] = []
    for i, node in enumerate(nodes):
        waiting.append(node)
        name = node.outputs[0].name or ""
        if name not in axes:
            continue
        product = [one for one in waiting if one is node or _only_feeds(one, node)]
        before = [one for one in waiting if one not in product]
        made = [out.name or "" for one in before for out in one.outputs if last_use.get(out.name, -1) >= i]
        run = _stretch(model, before, list(alive[0]), made, threads)
        alive = [{k: v for k, v in run(values).items() if last_use.get(k, -1) >= i} for values in alive]
        assert node.inputs[0] is not None
        found = [values[node.inputs[0].name or ""] for values in alive]
        total = np.sum([value.sum(axis=0, keepdims=True, dtype=np.float64) for value in found], axis=0)
        mean = total / sum(map(len, found))
        _shift(node, wanted[name] - mean_output(model, product, mean, axes[name]))
        waiting = product


def _only_feeds(node: ir.Node, product: ir.Node) -> bool:
    """Whether a node makes nothing but the product's weight or bias."""
    constants = all(value is None or value.is_initializer() for value in node.inputs)
    return constants and all(user is product for out in node.outputs for user, _ in out.uses())


def _stretch(
    model: ir.Model, nodes: Sequence[ir.Node], known: Sequence[str], made: Sequence[str], threads: int
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Run these nodes on the values that are known: returns them and those of `made`."""
    if not made:
        return dict
    import onnx
    import onnxruntime as ort
    from onnx_ir import serde

    initializers = model.graph.initializers
    read = {value.name or "" for node in nodes for value in node.inputs if value is not None}
    values = {v.name: v for node in nodes for v in node.inputs if v is not None}
    inputs = [name for name in known if name in read]
    graph = onnx.GraphProto(name="stretch", node=[serde.serialize_node(node) for node in nodes])
    for name in sorted(read & set(initializers)):
        tensor = initializers[name].const_value
        assert tensor is not None
        graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
    for name in inputs:
        dtype = values[name].dtype or ir.DataType.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info(name, dtype.value, None))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(alive: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = session.run(list(made), {name: alive[name] for name in inputs})
        return {**alive, **dict(zip(made, found, strict=True))}

    return run


def _shift(node: ir.Node, off: np.ndarray) -> None:
    """Add `off` to a node's bias: a float one, or an int32 one behind a DequantizeLinear."""
    bias, graph = node.inputs[2], node.graph
    assert bias is not None
    assert isinstance(graph, ir.Graph)
    producer = bias.producer()
    if producer is None:
        old = constant(bias)
        assert old is not None
        new = (old.reshape(-1) + off).astype(old.dtype).reshape(old.shape)
        node.replace_input_with(2, array(graph, f"{bias.name}/corrected", new))
        return
    content, unit = _constants(producer.inputs[:2])
    steps = np.rint(content.astype(np.float64) + off / unit.astype(np.float64))
    new = np.clip(steps, -(2.0**31), 2.0**31 - 1).astype(np.int32)
    assert producer.inputs[0] is not None
    producer.replace_input_with(0, array(graph, f"{producer.inputs[0].name}/corrected", new))


def _constants(values: Sequence[ir.Value | None]) -> list[np.ndarray]:
    found = [constant(value) for value in values]
    return [one for one in found if one is not None]
