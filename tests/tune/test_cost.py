"""The cost model: what was measured is repeated, the rest follows a law."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.backends.base import RunOptions
from vitdeploy.graph.run import values
from vitdeploy.quantize import schemes
from vitdeploy.tune.cost import MEASURED, CostModel, OpShape, law, measure_ops, single, worth_measuring


def linear(rows: int, inner: int, width: int) -> OpShape:
    return OpShape("Gemm", (rows, inner), (inner, width), rows * width, bias=True)


CONV = OpShape(
    "Conv",
    (1, 8, 10, 10),
    (4, 8, 3, 3),
    4 * 5 * 5,
    (("dilations", (1, 1)), ("pads", (1, 1, 1, 1)), ("strides", (2, 2))),
    bias=True,
)


def test_macs_and_families_follow_from_the_shape() -> None:
    assert linear(10, 64, 32).macs == 10 * 64 * 32
    assert CONV.macs == 4 * 5 * 5 * 8 * 9
    assert CONV.family == "conv"
    deep = OpShape("Conv", (1, 8, 10, 10), (8, 1, 3, 3), 8 * 8 * 8, (("group", (8,)),))
    assert deep.family == "depthwise"
    assert deep.macs == 8 * 8 * 8 * 9


def test_law_recovers_the_coefficients_when_the_costs_obey_it() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(12), rng.integers(1e5, 1e8, 12), rng.integers(1e4, 1e6, 12)])
    true = np.array([2e-6, 1e-11, 3e-10])
    assert law(features, features @ true) == pytest.approx(true, rel=1e-6)


def test_law_never_turns_negative_when_larger_ops_were_faster() -> None:
    features = np.array([[1.0, 1e6, 1e4], [1.0, 1e7, 1e5], [1.0, 1e8, 1e6]])
    found = law(features, np.array([3e-3, 2e-3, 1e-3]))
    assert (found >= 0).all()
    assert found.any()


def test_model_repeats_what_was_measured_and_interpolates_the_rest() -> None:
    sizes = [(50, 64, 64), (100, 64, 64), (200, 128, 64), (100, 256, 256)]
    measured = {linear(*size): (1e-11 * linear(*size).macs, 4e-12 * linear(*size).macs + 1e-6) for size in sizes}
    model = CostModel.fit(measured)
    assert model.seconds(linear(50, 64, 64)) == measured[linear(50, 64, 64)]
    new = linear(150, 128, 128)
    assert model.saving(new) == pytest.approx(6e-12 * new.macs - 1e-6, rel=1e-3)
    assert model.seconds(CONV) is None
    assert model.saving(CONV) == 0


def test_every_kind_of_op_is_measured_when_there_are_many() -> None:
    shapes = [linear(n, 64, 64) for n in range(100, 140)] + [CONV]
    chosen = worth_measuring(shapes)
    assert len(chosen) == len(set(chosen)) == MEASURED
    assert CONV in chosen
    assert linear(139, 64, 64) in chosen


@pytest.mark.parametrize("scheme", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("shape", [linear(6, 16, 24), CONV, OpShape("MatMul", (1, 6, 16), (16, 24), 6 * 24)])
def test_single_op_in_int8_gives_nearly_what_it_gives_in_float(shape: OpShape, scheme: str) -> None:
    x = np.random.default_rng(0).standard_normal(shape.x, dtype=np.float32)
    ((_, wanted),) = values(single(shape, None), {"x": x}, ["y"])
    graph = single(shape, schemes.get(scheme))
    assert any(node.op_type == "QuantizeLinear" for node in graph.graph)
    ((_, got),) = values(graph, {"x": x}, [graph.graph.outputs[0].name or ""])
    assert wanted.size == shape.out
    if shape.op_type != "Conv" or scheme != "onnxruntime":  # there the output is cut to the range as well
        assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.03


def test_ops_are_measured_in_both_precisions() -> None:
    shapes = [linear(20, 64, 64), CONV]
    found = measure_ops(shapes, "onnxruntime", RunOptions(), "onnxruntime")
    assert list(found) == shapes
    assert all(seconds > 0 for pair in found.values() for seconds in pair)
