"""Ranges by what the products behind lose, and images that are spread evenly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser, shape_inference
from onnx_ir import serde
from onnxruntime import InferenceSession
from test_int8 import as_images

from vitdeploy.quantize import ptq
from vitdeploy.quantize.clip_output import output_ranges, readers
from vitdeploy.quantize.int8 import default_plan, find_places, quant_params
from vitdeploy.quantize.rows import matrix, power, sample
from vitdeploy.quantize.schemes import get
from vitdeploy.quantize.targets import find_targets

RNG = np.random.default_rng(0)


def product(w: np.ndarray) -> ir.Model:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[N, 8] image) => (float[N, 4] y) '
    proto = parser.parse_model(text + "{ r = Relu(image) y = MatMul(r, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return serde.deserialize_model(shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("scheme", ["openvino", "tensorrt"])
def test_range_leaves_out_a_channel_that_the_weights_ignore(scheme: str) -> None:
    chosen = replace(get(scheme), smallest=0)
    w = RNG.standard_normal((8, 4)).astype(np.float32)
    w[0] = 0
    x = np.abs(RNG.standard_normal((512, 8))).astype(np.float32)
    x[:, 0] *= 20
    model = product(w)
    targets = find_targets(model, chosen)
    places = find_places(targets, default_plan(targets), chosen)
    reading = readers(places, targets)
    assert list(reading) == ["r"]
    start = {"r": (0.0, float(x.max()))}
    found = output_ranges(reading, sample(model, targets, [x]), start, chosen, centred=True)
    assert found["r"][1] < 0.5 * start["r"][1]

    def lost(bounds: tuple[float, float]) -> float:
        return float(np.square((quant_params(bounds, chosen).apply(x) - x) @ w).sum())

    assert lost(found["r"]) < 0.5 * lost(start["r"])


def test_sample_is_bounded_and_keeps_extremes_of_all_rows() -> None:
    model = product(np.ones((8, 4), np.float32))
    x = np.abs(RNG.standard_normal((4096, 8))).astype(np.float32)
    (target,) = find_targets(model, get("openvino"))
    found = sample(model, [target], [x[:2048], x[2048:]])
    assert found.rows[target.name].shape == (1, 256, 8)
    assert np.array_equal(found.extremes[target.name][0], x.min(axis=0))
    assert np.array_equal(found.extremes[target.name][1], x.max(axis=0))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_sample_of_a_convolution_of_any_rank_is_what_it_multiplies(axes: int) -> None:
    """Beside it a MatMul reads the same tensor, whose channels are along another axis there."""
    constants = {"w": RNG.standard_normal((8, 2, *(3,) * axes)), "s": RNG.standard_normal((7, 16))}
    pads, strides, side = [*(1,) * axes, *(0,) * axes], [2] * axes, ", 7" * axes
    text = f'<ir_version: 9, opset_import: ["" : 20]> g (float[N, 4{side}] image) => (float[N, 8{", 3" * axes}] y, '
    text += f"float[N, 4{side[:-3]}, 16] z) {{ y = Conv <group = 2, strides = {strides}, pads = {pads}> (image, w) "
    proto = parser.parse_model(text + "z = MatMul(image, s) }")
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    model = serde.deserialize_model(shape_inference.infer_shapes(proto))
    x = RNG.standard_normal((2, 4, *(7,) * axes)).astype(np.float32)
    chosen = get("tensorrt")
    targets = {target.node.op_type: target for target in find_targets(model, replace(chosen, smallest_conv=1))}
    found = sample(model, list(targets.values()), [x])
    conv, product = targets["Conv"].name, targets["MatMul"].name
    got = found.rows[conv] @ matrix(targets["Conv"], constants["w"].astype(np.float32))
    (want,) = InferenceSession(serde.serialize_model(model).SerializeToString()).run(["y"], {"image": x})
    assert np.allclose(np.sort(got.ravel()), np.sort(want.ravel()), atol=1e-4)
    assert np.array_equal(found.extremes[conv][0], x.min(axis=(0, *range(2, x.ndim))))
    assert np.array_equal(found.extremes[product][1], x.max(axis=tuple(range(x.ndim - 1))))


def test_rare_outliers_are_in_the_sample_and_each_row_stands_for_others() -> None:
    model = product(np.ones((8, 4), np.float32))
    x = np.abs(RNG.standard_normal((4096, 8))).astype(np.float32)
    x[1234, 3], x[3456, 5] = 1000, 2000
    (target,) = find_targets(model, get("openvino"))
    found = sample(model, [target], [x[:2048], x[2048:]])
    rows, weights = found.rows[target.name][0], found.weights[target.name]
    assert set(rows.max(axis=1)[rows.max(axis=1) > 100]) == {1000.0, 2000.0}
    assert weights.sum() == pytest.approx(4096)
    want = np.square(x).sum()
    assert power(rows[None], weights, centred=False) == pytest.approx(float(want), rel=0.05)


def test_power_leaves_the_mean_out_when_it_will_be_corrected() -> None:
    y, weights = RNG.standard_normal((2, 50, 3)).astype(np.float32) + 5, np.full(50, 2, np.float32)
    whole = np.repeat(y, 2, axis=1).astype(np.float64)
    assert power(y, weights, centred=False) == pytest.approx(float(np.square(whole).sum()), rel=1e-5)
    off = whole - whole.mean(axis=1, keepdims=True)
    assert power(y, weights, centred=True) == pytest.approx(float(np.square(off).sum()), rel=1e-3)


def test_some_images_are_spread_evenly_when_they_come_sorted() -> None:
    model = product(np.ones((8, 4), np.float32))
    images = np.arange(1000, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    batches = ptq._some(as_images(images), model)
    chosen = np.concatenate(batches)[:, 0]
    assert len(chosen) == ptq.FEW
    assert chosen.min() == 0
    assert chosen.max() == 999
    assert np.diff(np.sort(chosen)).max() < 20
    assert all(batch[:, 0].min() < 200 and batch[:, 0].max() > 800 for batch in batches)


@pytest.mark.parametrize("count", [1, 2, 3, 15])
def test_all_images_are_taken_when_they_are_few(count: int) -> None:
    images = np.arange(count, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    batches = ptq._some(as_images(images), product(np.ones((8, 4), np.float32)))
    assert sorted(np.concatenate(batches)[:, 0]) == list(range(count))
    assert len(batches) == min(count, 2)
