"""fp8 graphs: E4M3's own rounding, the numbers that Q/DQ stands for, as TensorRT wants them, near eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_fp16 import IMAGES, MODELS, WEIGHTS, eager, rel_l2, traced
from test_int8 import as_images, photos, quantised, written
from test_lint import constant_of, first, graph_of, quantised_gemm, source

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.data.folder import load_npz
from vitdeploy.data.images import preprocess_array
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.graph.edit import constant
from vitdeploy.graph.run import values
from vitdeploy.graph.save import save
from vitdeploy.models.build import BuildOptions, build
from vitdeploy.quantize.grid import GRIDS
from vitdeploy.quantize.int8 import quant_params
from vitdeploy.quantize.lint import PRODUCTS, lint, weight_of
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.ptq import to_int8
from vitdeploy.quantize.schemes import get

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
FP8 = ir.DataType.FLOAT8E4M3FN
PLAIN = Int8Options(method="minmax", correct_bias=False, equalize="none")
# Random weights magnify errors, in MobileViTv2's products of products most.
NEAR = {"deit_tiny_patch16_224": 0.06, "levit_128s": 0.15, "mobilevit_xxs": 0.1, "mobilevitv2_050": 0.3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))


# --- the grid -----------------------------------------------------------------------------------------------------


def all_numbers() -> np.ndarray:
    """Every finite number of E4M3, float32, rising."""
    found = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
    return np.unique(found[np.isfinite(found)])


def cut_and_cast(x: np.ndarray) -> np.ndarray:
    """What ml_dtypes makes of numbers: its cast gives NaN beyond the ends."""
    return x.clip(-448, 448).astype(E4M3).astype(np.float32)


def test_numbers_of_the_grid_stay_and_those_between_go_where_ml_dtypes_puts_them() -> None:
    grid, numbers = GRIDS["fp8"], all_numbers()
    assert len(numbers) == 253
    assert np.array_equal(grid.nearest(numbers), numbers)
    middle = (numbers[1:] + numbers[:-1]) / 2  # to the even one
    beside = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([middle, *beside, np.float32([449, -464, 1e9, -3e38])])
    assert np.array_equal(grid.nearest(x), cut_and_cast(x))


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_is_that_of_ml_dtypes(x: float) -> None:
    one = np.float32([x])
    assert GRIDS["fp8"].nearest(one) == cut_and_cast(one)


def test_spacing_is_the_distance_to_the_next_number() -> None:
    numbers = all_numbers()
    positive = numbers[numbers >= 0]
    assert np.array_equal(GRIDS["fp8"].spacing(positive[:-1]), np.diff(positive))
    assert GRIDS["int8"].spacing(positive) == 1.0


def test_largest_value_becomes_448() -> None:
    params = quant_params((-1.0, 3.0), get("tensorrt-fp8"))
    assert (params.kind, params.zero_point) == ("fp8", 0)
    exact = 3 / 448
    assert float(params.scale) == float(np.float16(params.scale)) >= exact  # the graph's rest is fp16
    assert params.scale <= exact * (1 + 2.0**-10)
    assert params.apply(np.float32([3.0])) == 448 * params.scale


# --- the graph ----------------------------------------------------------------------------------------------------


def linear(rng: np.random.Generator) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """A graph of one linear layer on flat images, 48 to 24 numbers; its weight and its bias."""
    w, b = rng.standard_normal((48, 24)).astype(np.float32) / 7, rng.standard_normal(24).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["image", "rows"], ["x"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 24])],
        [numpy_helper.from_array(a, n) for a, n in ((w, "w"), (b, "b"), (np.array([-1, 48]), "rows"))],
        value_info=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 48])],
    )
    opset = [helper.make_opsetid("", 20)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10)), w, b


def half_up(exact: float) -> np.float32:
    """The next fp16 number."""
    found = np.float16(exact)
    return np.float32(found if float(found) >= exact else np.nextafter(found, np.float16(np.inf)))


def dequantised(x: np.ndarray, scale: np.float32) -> np.ndarray:
    """x as fp8 with this scale has it, in fp16."""
    return (cut_and_cast(x / scale) * scale).astype(np.float16)


def test_layer_computes_what_numpy_does_with_ml_dtypes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model, w, b = linear(rng)
    calib, x = (rng.standard_normal((n, 3, 4, 4)).astype(np.float32) for n in (8, 5))
    x[0, 0, 0] = 9  # beyond what was seen: cut off
    to_int8(model, as_images(calib), get("tensorrt-fp8"), PLAIN)
    rows = x.reshape(5, 48).astype(np.float16).astype(np.float32)
    scale, unit = half_up(float(np.abs(calib).max()) / 448), half_up(float(np.abs(w).max()) / 448)
    x8, w8 = dequantised(rows, scale), dequantised(w, unit)
    gemm = first(model, "Gemm")
    assert gemm.inputs[1] is not None
    names = [str(value.name) for value in gemm.inputs[:2] if value is not None]
    found = dict(values(model, {"image": x}, names))
    assert np.array_equal(found[names[0]], x8)
    assert np.array_equal(found[names[1]], w8)
    exact = x8.astype(np.float64) @ w8.astype(np.float64) + b.astype(np.float16)
    with OnnxRuntimeBackend().open(written(model, tmp_path), RunOptions()) as session:
        got = session.run({"image": x})["logits"]
    assert np.abs(got - exact).max() < 2.0**-9 * np.abs(exact).max()
    assert np.abs(exact - (rows @ w + b)).max() > 2.0**-6  # and fp8 it is


@pytest.mark.parametrize("name", ["levit_128s", "mobilevit_xxs", "deit_tiny_patch16_224"])
def test_graph_keeps_to_its_scheme(name: str, tmp_path: Path) -> None:
    model, report = quantised(name, "tensorrt-fp8", PLAIN)
    written(model, tmp_path)
    seen = 0
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            scale, zero_point = constant(node.inputs[1]), constant(node.inputs[2])
            assert scale is not None
            assert zero_point is not None
            assert (scale.dtype, scale.shape, zero_point.dtype, zero_point.shape) == (np.float16, (), E4M3, ())
            assert zero_point == 0
        weight = weight_of(node, 1) if node.op_type in PRODUCTS else None
        if weight is None:
            continue
        seen += 1
        assert weight.dtype == FP8
        assert weight.scale is not None
        assert weight.scale.shape == ()
        assert np.abs(weight.content.astype(np.float32)).max() == 448
        if node.op_type == "Conv":
            assert min(weight.content.shape[:2]) > 16
            assert np.prod(weight.content.shape[2:]) <= 32
        else:
            assert min(weight.content.shape) >= 16
            assert all(bias is not None and bias.dtype == ir.DataType.FLOAT16 for bias in node.inputs[2:])
    assert seen == sum(op["precision"] == "fp8" for op in report.ops) >= 10
    left = {op["label"]: op["reason"] for op in report.ops if op["precision"] == "float"}
    assert all(left.values())
    if name.startswith("deit"):
        assert "32 pixels" in left["patch_embed.proj"] or "channels" in left["patch_embed.proj"]


@pytest.mark.parametrize("name", MODELS)
def test_file_runs_on_onnxruntime_near_eager(name: str, tmp_path: Path) -> None:
    model, report = quantised(name, "tensorrt-fp8")
    x = photos(name, 8, seed=1)
    with OnnxRuntimeBackend().open(written(model, tmp_path), RunOptions()) as session:
        got = session.run({"image": x})["logits"]
        assert set(session.census().compute) == {"fp32"}
    assert rel_l2(got, eager(name, x)) < NEAR[name]
    assert rel_l2(got, dict(values(model, {"image": x}, ["logits"]))["logits"]) < 0.02  # as the graph says, op by op
    assert report.weight_bytes_after < 0.4 * report.weight_bytes_before


def test_probabilities_are_spread_over_the_whole_range_when_attention_is_asked_for() -> None:
    model, report = quantised(
        "deit_tiny_patch16_224", "tensorrt-fp8", Int8Options(**{**vars(PLAIN), "attention": True})
    )
    products = [op for op in report.ops if op["op_type"] == "MatMul" and op["precision"] == "fp8"]
    assert products
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and source(node).op_type == "Softmax":
            assert float(constant(node.inputs[1])) == half_up(1 / 448)  # type: ignore[arg-type]
    # The last block's class token alone asks: a product of one row.
    assert any("under 16" in op["reason"] for op in report.ops if op["op_type"] == "MatMul")


REFUSED: dict[str, tuple[Int8Options, type[Exception], str]] = {
    "rounding is learned": (Int8Options(rounding="learned"), UsageError, "even steps of int8"),
    "ranges are by entropy": (Int8Options(method="entropy"), UsageError, "even steps of int8"),
    "everything is kept": (Int8Options(keep=("*",)), UnsupportedModel, "Nothing is left for fp8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantised_is_said_when(case: str) -> None:
    options, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text):
        quantised("deit_tiny_patch16_224", "tensorrt-fp8", options)


# --- the linter ---------------------------------------------------------------------------------------------------

Seed = Callable[[ir.Model], ir.Node]


def activation_q(model: ir.Model) -> ir.Node:
    return source(source(quantised_gemm(model)))


def typed(model: ir.Model, node: ir.Node, slot: int, kind: np.dtype) -> None:
    """Make the zero point of a Q or DQ another type's."""
    constant_of(model, node, slot, np.zeros((), kind))


def int8_pair(model: ir.Model) -> ir.Node:
    q = activation_q(model)
    for node in (q, source(quantised_gemm(model))):
        typed(model, node, 2, np.dtype(np.int8))
    return q


def e5m2_pair(model: ir.Model) -> ir.Node:
    q = activation_q(model)
    for node in (q, source(quantised_gemm(model))):
        typed(model, node, 2, np.dtype(ml_dtypes.float8_e5m2))
    return q


def shifted(model: ir.Model) -> ir.Node:
    q = activation_q(model)
    for node in (q, source(quantised_gemm(model))):
        constant_of(model, node, 2, np.array(2, E4M3))
    return q


def unsaturated(model: ir.Model) -> ir.Node:
    q = activation_q(model)
    q.attributes["saturate"] = ir.AttrInt64("saturate", 0)
    return q


def weight_dq(model: ir.Model) -> ir.Node:
    return source(quantised_gemm(model), 1)


def content(dq: ir.Node) -> np.ndarray:
    found = constant(dq.inputs[0])
    assert found is not None
    return found


def int8_weight(model: ir.Model) -> ir.Node:
    dq = weight_dq(model)
    constant_of(model, dq, 0, np.ones(content(dq).shape, np.int8))
    typed(model, dq, 2, np.dtype(np.int8))
    return dq


def scale_a_channel(model: ir.Model) -> ir.Node:
    dq = weight_dq(model)
    width = content(dq).shape[1]
    constant_of(model, dq, 1, np.full(width, 0.01, np.float16))
    constant_of(model, dq, 2, np.zeros(width, E4M3))
    dq.attributes["axis"] = ir.AttrInt64("axis", 1)
    return dq


def scale_an_input(model: ir.Model) -> ir.Node:
    dq = weight_dq(model)
    constant_of(model, dq, 1, np.full(content(dq).shape[0], 0.01, np.float16))
    dq.attributes["axis"] = ir.AttrInt64("axis", 0)
    return dq


def nan_weight(model: ir.Model) -> ir.Node:
    dq = weight_dq(model)
    with_nan = content(dq).copy()
    with_nan.reshape(-1)[0] = np.nan
    constant_of(model, dq, 0, with_nan)
    return dq


def lonely_q(model: ir.Model) -> ir.Node:
    q = activation_q(model)
    source(quantised_gemm(model)).op_type = "Cast"
    return q


def narrow_conv(model: ir.Model) -> ir.Node:
    conv = first(model, "Conv", lambda n: weight_of(n, 1) is not None)
    constant_of(model, source(conv, 1), 0, np.ones((16, *content(source(conv, 1)).shape[1:]), E4M3))
    return conv


def wide_window(model: ir.Model) -> ir.Node:
    conv = first(model, "Conv", lambda n: weight_of(n, 1) is not None)
    constant_of(model, source(conv, 1), 0, np.ones((*content(source(conv, 1)).shape[:2], 7, 7), E4M3))
    return conv


FAULTS: dict[str, tuple[Seed, str, str]] = {
    "an activation is int8": (int8_pair, "deit_tiny_patch16_224", "activation-type"),
    "an activation is E5M2": (e5m2_pair, "deit_tiny_patch16_224", "activation-type"),
    "a zero point is not 0": (shifted, "deit_tiny_patch16_224", "zero-point"),
    "a Q does not saturate": (unsaturated, "deit_tiny_patch16_224", "saturate"),
    "a Q is alone": (lonely_q, "deit_tiny_patch16_224", "unpaired"),
    "a weight is int8": (int8_weight, "deit_tiny_patch16_224", "weight-type"),
    "a weight has a scale a channel": (scale_a_channel, "deit_tiny_patch16_224", "per-channel-weight"),
    "a weight has a scale an input": (scale_an_input, "deit_tiny_patch16_224", "weight-axis"),
    "a weight holds NaN": (nan_weight, "deit_tiny_patch16_224", "weight-nan"),
    "a convolution is narrow": (narrow_conv, "levit_128s", "smallest-conv"),
    "a window is wide": (wide_window, "levit_128s", "largest-kernel"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_linter_names_the_node_when(fault: str) -> None:
    seed, name, rule = FAULTS[fault]
    model = graph_of(name, "tensorrt-fp8")
    node = seed(model)
    found = lint(model, get("tensorrt-fp8"))
    assert (rule, node.name) in {(f.rule, f.node) for f in found}, [str(f) for f in found]
    assert len({f.rule for f in found}) <= 3, "one fault is not the whole list"


@pytest.mark.parametrize(("made", "held"), [("tensorrt", "tensorrt-fp8"), ("tensorrt-fp8", "tensorrt")])
def test_linter_refuses_the_other_precisions_graph(made: str, held: str) -> None:
    found = lint(graph_of("deit_tiny_patch16_224", made), get(held))
    assert {"activation-type", "weight-type"} <= {f.rule for f in found}
    text = next(f.message for f in found if f.rule == "weight-type")
    assert "int8" in text
    assert "float8e4m3fn" in text


def test_linter_says_that_weights_in_4_bits_are_for_storage() -> None:
    from vitdeploy.quantize.weight_only import to_weight_only

    model = traced("deit_tiny_patch16_224")
    model.opset_imports[""] = 21
    to_weight_only(model, 4)
    found = [f for f in lint(model, get("tensorrt")) if "uint4" in f.message]
    assert found
    assert {f.rule for f in found} == {"weight-only"}
    assert "storage" in found[0].message
    assert "int8" in found[0].reason


# --- accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("deit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("levit_128s", marks=pytest.mark.slow),
        "mobilevit_xxs",
    ],
)
def test_classes_stay_when_the_weights_are_really_trained(name: str, tmp_path: Path) -> None:
    checkpoint = WEIGHTS / f"{name}.fashion_mnist"
    if not checkpoint.is_dir() or not IMAGES.is_file():
        pytest.skip(f"there are no trained checkpoints in {WEIGHTS}")
    built = build(name, BuildOptions(weights=str(checkpoint)))
    model = trace(built.module, built.spec.input.shape, batch=(1, 8, 100))
    optimise(model)
    test, labels = some_images(IMAGES, 1000, built.spec)
    calib, _ = some_images(IMAGES.with_name("fashion_mnist_calib.npz"), 64, built.spec)
    (float_file,) = save(model, tmp_path / "float.onnx")
    to_int8(model, as_images(calib, name), get("tensorrt-fp8"))
    (file,) = save(model, tmp_path / "fp8.onnx")
    float_classes, classes = (classes_of(path, test) for path in (float_file, file))
    assert (float_classes == labels).mean() > 0.75
    assert (classes == float_classes).mean() >= 0.98
    assert (classes == labels).mean() >= (float_classes == labels).mean() - 0.01
    assert (classes != float_classes).any()  # fp8 it is


def some_images(path: Path, count: int, spec: object) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_npz(path)
    assert labels is not None
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
    return preprocess_array(images[chosen], spec.input), labels[chosen]  # type: ignore[attr-defined]


def classes_of(path: Path, images: np.ndarray) -> np.ndarray:
    def batches() -> Iterable[np.ndarray]:
        return (images[i : i + 100] for i in range(0, len(images), 100))

    with OnnxRuntimeBackend().open(path, RunOptions()) as session:
        return np.concatenate([session.run({"image": x})["logits"].argmax(axis=1) for x in batches()])


def test_weights_are_stored_in_fp8(tmp_path: Path) -> None:
    path = written(quantised("deit_tiny_patch16_224", "tensorrt-fp8", PLAIN)[0], tmp_path)
    kinds = [t.data_type for t in onnx.load(path).graph.initializer if np.prod(t.dims) > 10_000]
    assert kinds.count(TensorProto.FLOAT8E4M3FN) == 12
