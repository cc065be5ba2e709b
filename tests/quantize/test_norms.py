"""Norms in front of a QuantizeLinear, for a runtime that fuses the two where there are three axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from vitdeploy.quantize.lint import lint
from vitdeploy.quantize.norms import lift_norms
from vitdeploy.quantize.schemes import SCHEMES

GRAPH = """<ir_version: 10, opset_import: ["": 20]>
net (float[rows, 4] x) => (float[rows, 3] y{more})
<float[4] gamma = {{1, 2, 1, 0.5}}, float[4] beta = {{0, 1, 0, -1}}, float s = {{0.05}}, uint8 z = {{100}},
 int8[4, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}, float[3] ws = {{0.1, 0.2, 0.3}}, int8[3] wz = {{0, 0, 0}}>
{{
    n = LayerNormalization <axis = {axis}, epsilon = 0.00001> (x, gamma, beta)
    q = QuantizeLinear (n, s, z)
    dq = DequantizeLinear (q, s, z)
    wdq = DequantizeLinear <axis = 1> (w, ws, wz)
    y = MatMul (dq, wdq)
}}"""


def graph(axis: int = -1, more: str = "") -> ir.Model:
    model = ir.from_onnx_text(GRAPH.format(axis=axis, more=more))
    for node in model.graph:
        rank = ir.Shape(["rows", 3 if node.op_type == "MatMul" else 4])
        if node.outputs[0].name != "wdq":
            node.outputs[0].shape = node.outputs[0].shape or rank
    return model


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("axis", [-1, 1])
def test_norm_of_matrices_is_lifted_and_gives_the_same(axis: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    model = graph(axis)
    before = run(model, x)
    assert lift_norms(model) == 1
    assert [node.op_type for node in model.graph if node.outputs[0].name != "wdq"] == [
        *("Unsqueeze", "LayerNormalization", "QuantizeLinear", "DequantizeLinear", "Squeeze", "MatMul")
    ]
    np.testing.assert_array_equal(run(model, x), before)
    assert lift_norms(model) == 0


def test_lifted_product_still_counts_as_quantised() -> None:
    model = graph()
    assert lint(model, SCHEMES["openvino"]) == []
    lift_norms(model)
    assert lint(model, SCHEMES["openvino"]) == []


@pytest.mark.parametrize(("axis", "more"), [(0, ""), (-1, ", float[rows, 4] n")], ids=["other axis", "other readers"])
def test_other_norms_are_left_alone(axis: int, more: str) -> None:
    model = graph(axis, more)
    count = len(model.graph)
    assert lift_norms(model) == 0
    assert len(model.graph) == count
