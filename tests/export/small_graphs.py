"""Small graphs written as text, and what a pass must keep of them: validity, names, shapes and numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from vitdeploy.graph.ops import op_counts

Pass = Callable[[ir.Model], int]


def graph(inputs: str, outputs: str, body: str, **constants: np.ndarray) -> ir.Model:
    """A model in ONNX's textual syntax, such as graph('float[B,4] x', 'float[B,3] y', 'y = MatMul(x, w)', w=...).

    float64 constants become float32. Shapes between the nodes are inferred.
    """
    nodes = "\n".join(line.strip() for line in re.split(r"[;\n]", body) if line.strip())
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        single = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(single), name))
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, not one of them near zero in effect."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(0.5, 1.5, size=shape)


def batch_norm(channels: int, seed: int = 0) -> dict[str, np.ndarray]:
    """gain, offset, mean and variance by the names g, o, m, v."""
    return {
        "g": positive(channels, seed=seed),
        "o": weights(channels, seed=seed + 1),
        "m": weights(channels, seed=seed + 2),
        "v": positive(channels, seed=seed + 3),
    }


@dataclass
class Rewritten:
    """A graph after a pass."""

    count: int
    ops: Counter[str]
    model: ir.Model


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def feeds_for(model: ir.Model, batch: int) -> dict[str, np.ndarray]:
    """Random inputs; every symbolic dimension takes the size `batch`."""
    feeds = {}
    for i, value in enumerate(model.graph.inputs):
        assert value.shape is not None
        shape = [n if isinstance(n, int) else batch for n in value.shape]
        feeds[value.name or ""] = np.random.default_rng([i, batch]).normal(size=shape).astype(np.float32)
    return feeds


def apply_and_compare(model: ir.Model, apply: Pass, batches: tuple[int, ...] = (1, 3)) -> Rewritten:
    """Run the pass. The graph stays valid, and its outputs keep their names, shapes and numbers at each batch size."""
    names = [value.name for value in model.graph.outputs]
    feeds = [feeds_for(model, batch) for batch in batches]
    before = [run(model, feed) for feed in feeds]
    count = apply(model)
    assert [value.name for value in model.graph.outputs] == names
    for feed, expected in zip(feeds, before, strict=True):
        for got, want in zip(run(model, feed), expected, strict=True):
            assert got.shape == want.shape
            assert np.isfinite(want).all()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(want).max())))
    return Rewritten(count, op_counts(model), model)


def assert_untouched(model: ir.Model, apply: Pass) -> None:
    """The pass has nothing to do here, says so, and does nothing."""
    before = op_counts(model)
    result = apply_and_compare(model, apply)
    assert result.ops == before
    assert result.count == 0
