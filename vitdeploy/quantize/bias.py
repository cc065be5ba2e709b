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
from vitdeploy.graph.run import Probe


def mean_outputs(
    model: ir.Model, axes: Mapping[str, int], batches: Iterable[np.ndarray], *, threads: int = 0
) -> dict[str, np.ndarray]:
    """The mean of each channel of these tensors over the images, float64 (channels,)."""
    sums = {name: np.zeros(1) for name in axes}
    counts = dict.fromkeys(axes, 0)
    feed = model.graph.inputs[0].name or ""
    shape = model.graph.inputs[0].shape
    fixed = shape[0] if shape is not None and isinstance(shape[0], int) else None
    with Probe(model, list(axes), threads=threads) as probe:
        for batch in batches:
            step = fixed or len(batch)
            for start in range(0, len(batch), step):
                for name, value in probe.run({feed: batch[start : start + step]}):
                    rows = np.moveaxis(value, axes[name], -1)
                    rows = rows.reshape(-1, rows.shape[-1])
                    sums[name] = sums[name] + rows.sum(axis=0, dtype=np.float64)
                    counts[name] += len(rows)
    return {name: sums[name] / counts[name] for name in axes}


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
) -> dict[str, float]:
    """Correct the biases of an int8 graph, in place.

    The graph runs once, stretch after stretch: up to the next product on all images, then that product's bias, then on
    from what it makes with it. Only the values that later stretches read are held.

    Args:
        wanted: the mean of each correctable product in the float graph, by `mean_outputs` on the same images.
        batches: float32 (N, C, H, W), as the graph takes them.

    Returns:
        How far each mean was off, relative to the size of the means: root mean square over the channels.
    """
    axes = correctable(model)
    nodes = list(model.graph)
    last_use = {value.name: i for i, node in enumerate(nodes) for value in node.inputs if value is not None}
    feed = model.graph.inputs[0].name or ""
    alive: list[dict[str, np.ndarray]] = [{feed: batch} for batch in batches]
    moved = {}
    start = 0
    for stop, node in enumerate(nodes, 1):
        name = node.outputs[0].name or ""
        if name not in axes:
            continue
        product = [one for one in nodes[start:stop] if one is node or _only_feeds(one, node)]
        before = [one for one in nodes[start:stop] if one not in product]
        made = [out.name or "" for one in before for out in one.outputs if last_use.get(out.name, -1) >= stop - 1]
        if made:
            run = _stretch(model, before, list(alive[0]), made, threads)
            alive = [run(values) for values in alive]
        run = _stretch(model, product, list(alive[0]), [name], threads)
        found = [run(values) for values in alive]
        means = [np.moveaxis(v[name], axes[name], -1).reshape(-1, wanted[name].size).mean(0, np.float64) for v in found]
        off = wanted[name] - np.average(means, axis=0, weights=[v[name].size for v in found])
        moved[name] = float(np.linalg.norm(off) / max(np.linalg.norm(wanted[name]), 1e-12))
        _shift(node, off)
        # Again, not shifted by hand: one value that rounds the other way changes a thousand behind it.
        run = _stretch(model, product, list(alive[0]), [name], threads)
        alive = [{k: v for k, v in run(values).items() if last_use.get(k, -1) >= stop} for values in alive]
        start = stop
    return moved


def _only_feeds(node: ir.Node, product: ir.Node) -> bool:
    """Whether a node makes nothing but the product's weight or bias."""
    constants = all(value is None or value.is_initializer() for value in node.inputs)
    return constants and all(user is product for out in node.outputs for user, _ in out.uses())


def _stretch(
    model: ir.Model, nodes: Sequence[ir.Node], known: Sequence[str], made: Sequence[str], threads: int
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Run these nodes on the values that are known: returns them and those of `made`."""
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
