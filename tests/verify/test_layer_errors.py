"""Errors layer by layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.graph.edit import copy_of
from vitdeploy.quantize.fp16 import to_fp16
from vitdeploy.verify.layers import layer_errors

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6)).astype(np.float32)


def graph() -> ir.Model:
    """Two linear layers and softmax."""
    weights = [numpy_helper.from_array(RNG.standard_normal((6, 6)).astype(np.float32), f"w{i}") for i in range(2)]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 6]) for name in ("x", "y")]
    made = helper.make_graph(nodes, "g", sides[:1], sides[1:], weights)
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_equal_graphs_have_no_error_in_any_layer() -> None:
    model = graph()
    found = layer_errors(model, copy_of(model), {"x": X})
    assert [(one.layer, one.op_type, one.rel_l2) for one in found] == [
        ("a", "MatMul", 0.0),
        ("b", "MatMul", 0.0),
        ("y", "Softmax", 0.0),
    ]


def test_error_shows_from_the_layer_that_was_changed_on() -> None:
    model = graph()
    other = copy_of(model)
    weight = other.graph.initializers["w1"]
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy() * np.float32(1.1), name="w1")
    first, second, last = layer_errors(model, other, {"x": X})
    assert first.rel_l2 == 0
    np.testing.assert_allclose(second.rel_l2, 0.1, rtol=1e-4)
    assert last.rel_l2 > 0


def test_layers_of_fp16_are_compared_and_the_copy_keeps_its_types() -> None:
    model = graph()
    before = copy_of(model)
    to_fp16(model, [X])
    found = layer_errors(before, model, {"x": X})
    assert [one.op_type for one in found] == ["MatMul", "MatMul", "Softmax"]
    assert all(0 < one.rel_l2 < 2e-3 for one in found)
    assert {value.dtype for node in before.graph for value in node.outputs if value.dtype} <= {ir.DataType.FLOAT}


def test_error_that_is_not_finite_becomes_none_in_json() -> None:
    model = graph()
    other = copy_of(model)
    other.graph.initializers["w0"].const_value = ir.Tensor(np.full((6, 6), np.inf, np.float32), name="w0")
    found = layer_errors(model, other, {"x": X})
    assert found[0].to_dict()["rel_l2"] is None
