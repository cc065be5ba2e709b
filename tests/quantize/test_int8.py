"""int8 graphs: near eager PyTorch, standard ONNX, as each runtime wants them, and really run in int8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from test_fp16 import MODELS, eager, rel_l2, traced
from this_cpu import COARSER, SCHEME

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.graph.edit import constant
from vitdeploy.graph.run import values
from vitdeploy.graph.save import save
from vitdeploy.quantize import ptq
from vitdeploy.quantize.bias import correctable
from vitdeploy.quantize.int8 import weight_step
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.ptq import Images, measure_sensitivity, prepare, to_int8
from vitdeploy.quantize.rounding import gather, rounding
from vitdeploy.quantize.schemes import SCHEMES, get
from vitdeploy.quantize.targets import find_targets, to_gemm
from vitdeploy.spec import InputSpec

# Random weights magnify errors, in MobileViTv2's products of products most; trained ones are in tests/models.
NEAR = {"deit_tiny_patch16_224": 0.03, "levit_128s": 0.08, "mobilevit_xxs": 0.1, "mobilevitv2_050": 0.3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))


def photos(name: str, count: int, seed: int) -> np.ndarray:
    size = MODELS[name][0]
    return synthetic_images(InputSpec((3, size, size), (0.5,) * 3, (0.25,) * 3), count, seed)


def as_images(array: np.ndarray, digest: str = "") -> Images:
    def batches(size: int) -> Iterable[np.ndarray]:
        return (array[i : i + size] for i in range(0, len(array), size))

    return Images(batches, len(array), digest or str(array.sum()), "test")


def quantised(name: str, scheme: str, options: Int8Options | None = None) -> tuple[ir.Model, ptq.Int8Report]:
    model = traced(name)
    return model, to_int8(model, as_images(photos(name, 16, seed=0)), get(scheme), options)


def written(model: ir.Model, folder: Path) -> Path:
    (path,) = save(model, folder / "model.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": x})[0]


def planned(report: ptq.Int8Report) -> int:
    return sum(op["precision"] == "int8" for op in report.ops)


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_runs_every_planned_op_in_int8_and_stays_near_eager(name: str, tmp_path: Path) -> None:
    model, report = quantised(name, SCHEME.name)
    path = written(model, tmp_path)
    x = photos(name, 8, seed=1)
    assert rel_l2(run(path, x), eager(name, x)) < NEAR[name] * COARSER
    with OnnxRuntimeBackend().open(path, RunOptions()) as session:
        assert session.census().compute["int8"] == planned(report)
    assert report.quantised_macs > 0.8 * report.macs
    assert report.weight_bytes_after < 0.4 * report.weight_bytes_before


@pytest.mark.parametrize("name", MODELS)
def test_openvino_runs_every_planned_op_in_int8_and_stays_near_eager(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from vitdeploy.backends.openvino import OpenVinoBackend

    model, report = quantised(name, OpenVinoBackend().scheme(RunOptions()).name)
    path = written(model, tmp_path)
    x = photos(name, 3, seed=1)
    with OpenVinoBackend().open(path, RunOptions()) as session:
        assert rel_l2(session.run({"image": x})["logits"], eager(name, x)) < NEAR[name] * COARSER
        assert session.census().compute["int8"] >= planned(report)


@pytest.mark.parametrize("scheme", [name for name, scheme in SCHEMES.items() if scheme.precision == "int8"])
@pytest.mark.parametrize("name", ["levit_128s", "mobilevit_xxs"])
def test_graph_keeps_to_its_scheme(name: str, scheme: str, tmp_path: Path) -> None:
    model, _ = quantised(name, scheme)
    written(model, tmp_path)
    wanted = SCHEMES[scheme]
    kinds = {"uint8": np.uint8, "int8": np.int8}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            zero_point = constant(node.inputs[2])
            assert zero_point is not None
            assert zero_point.dtype == kinds[wanted.activation]
            assert zero_point.ndim == 0
            assert not (wanted.symmetric and zero_point != 0)
        if node.op_type != "DequantizeLinear" or (content := constant(node.inputs[0])) is None:
            continue
        (user, slot) = next(iter(node.outputs[0].uses()))
        scale = constant(node.inputs[1])
        assert scale is not None
        if slot == 2:
            assert wanted.bias == "int32"
            unit = constant(user.inputs[0].producer().inputs[1]) * constant(user.inputs[1].producer().inputs[1])  # type: ignore[union-attr, operator]
            assert np.array_equal(scale, unit.astype(np.float32))
            continue
        axis = (
            0 if user.op_type == "Conv" or ("transB" in user.attributes and user.attributes["transB"].as_int()) else 1
        )
        assert node.attributes["axis"].as_int() == axis
        assert scale.shape == (content.shape[axis],)
        assert np.abs(content.astype(int)).max() <= wanted.weight_peak
    if wanted.bias == "float":
        assert not any(n.op_type == "DequantizeLinear" and n.inputs[0].dtype == ir.DataType.INT32 for n in model.graph)  # type: ignore[union-attr]


def test_same_images_give_the_same_bytes_and_are_swept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(quantised("deit_tiny_patch16_224", "onnxruntime")[0], tmp_path).read_bytes()
    monkeypatch.setattr(ptq, "calibrate", lambda *_, **__: pytest.fail("swept again"))
    assert written(quantised("deit_tiny_patch16_224", "onnxruntime")[0], tmp_path).read_bytes() == first
    with pytest.raises(pytest.fail.Exception):  # other images are another matter
        to_int8(traced("deit_tiny_patch16_224"), as_images(photos("deit_tiny_patch16_224", 4, 5)), get("onnxruntime"))


def mean_outputs(model: ir.Model, axes: Mapping[str, int], x: np.ndarray) -> dict[str, np.ndarray]:
    means = {}
    for name, value in values(model, {"image": x}, list(axes)):
        rows = np.moveaxis(value, axes[name], -1)
        means[name] = rows.reshape(-1, rows.shape[-1]).mean(axis=0, dtype=np.float64)
    return means


def test_biases_give_every_product_the_mean_that_it_has_in_float() -> None:
    name, calib = "levit_128s", photos("levit_128s", 16, seed=0)
    off: dict[bool, float] = {}
    for correct in (False, True):
        model, _ = quantised(name, "onnxruntime", Int8Options(correct_bias=correct, equalize="none"))
        axes = correctable(model)
        reference = traced(name)
        to_gemm(reference)
        want, got = mean_outputs(reference, axes, calib), mean_outputs(model, axes, calib)
        off[correct] = max(float(np.linalg.norm(got[n] - want[n]) / np.linalg.norm(want[n])) for n in axes)
    assert off[True] < 1e-3
    assert off[False] > 10 * off[True]


def test_learned_rounding_brings_a_product_nearer_than_nearest() -> None:
    name = "deit_tiny_patch16_224"
    model, calib = traced(name), photos("deit_tiny_patch16_224", 16, seed=0)
    to_gemm(model)
    target = next(t for t in find_targets(model, get("onnxruntime")) if t.label.endswith("mlp.fc1"))
    source = target.activations[0].name or ""
    statistics = ptq.calibrate(model, {source: -1}, [calib])[source]
    from vitdeploy.quantize.int8 import quant_params

    params = quant_params((statistics.minimum, statistics.maximum), get("onnxruntime"))
    moments = gather(model, [target], {source: params}, [calib])
    w = constant(target.node.inputs[1])
    assert w is not None
    step = weight_step(w, 1, 7, None, params.scale)  # 4 bits, where rounding is what matters
    x = dict(values(model, {"image": photos(name, 8, seed=3)}, [source]))[source].reshape(-1, len(w))

    def missed(q: np.ndarray) -> float:
        error = params.apply(x) @ (q * step) - x @ w
        return float(np.linalg.norm(error - error.mean(axis=0)))

    nearest = np.clip(np.rint(w / step), -7, 7)
    learned = rounding(moments, 7, centred=True)(target, w, step)
    assert learned.dtype == np.int8
    assert np.abs(learned).max() <= 7
    assert missed(learned) < 0.8 * missed(nearest)


def test_layers_that_are_kept_stay_in_float() -> None:
    model, report = quantised("deit_tiny_patch16_224", "onnxruntime", Int8Options(keep=("head", "blocks.0.mlp.*")))
    kept = {
        op["label"]: op["reason"] for op in report.ops if op["precision"] == "float" and op["reason"] == "asked for"
    }
    assert sorted(kept) == ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "head"]
    names = {value.name for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT8}
    assert not any("head" in (name or "") or "blocks.0.mlp" in (name or "") for name in names)


def test_attention_is_quantised_when_it_is_asked_for(tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    model, report = quantised(name, "onnxruntime", Int8Options(attention=True))
    assert planned(report) == len(report.ops)
    x = photos(name, 3, seed=1)
    assert rel_l2(run(written(model, tmp_path), x), eager(name, x)) < 0.1


def broken(images: np.ndarray, bad: float) -> Images:
    images = images.copy()
    images[2, 0, 0, 0] = bad
    return as_images(images, f"broken {bad}")


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a pattern that matches nothing": (
        lambda: quantised("deit_tiny_patch16_224", "onnxruntime", Int8Options(keep=("neck",))),
        UsageError,
        "No layer matches 'neck'.*patch_embed",
    ),
    "an unknown method": (
        lambda: quantised("deit_tiny_patch16_224", "onnxruntime", Int8Options(method="best")),
        UsageError,
        "'best'",
    ),
    "an unknown rounding": (
        lambda: quantised("deit_tiny_patch16_224", "onnxruntime", Int8Options(rounding="up")),
        UsageError,
        "'up'",
    ),
    "NaN in an image": (
        lambda: to_int8(
            traced("deit_tiny_patch16_224"),
            broken(photos("deit_tiny_patch16_224", 4, 0), np.nan),
            get("onnxruntime"),
        ),
        UsageError,
        "image 2 has NaN",
    ),
    "Inf behind an image": (
        lambda: to_int8(
            traced("deit_tiny_patch16_224"),
            broken(photos("deit_tiny_patch16_224", 8, 0) * 8e37, 3e38),
            get("onnxruntime"),
        ),
        UsageError,
        "NaN or Inf in",
    ),
    "everything kept": (
        lambda: quantised("deit_tiny_patch16_224", "onnxruntime", Int8Options(keep=("*",))),
        UnsupportedModel,
        "int8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantised_is_said(case: str) -> None:
    act, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text):
        act()


def test_scheme_is_refused_when_the_opset_is_too_old_for_it() -> None:
    model = traced("deit_tiny_patch16_224")
    model.graph.opset_imports[""] = 18
    with pytest.raises(UsageError, match="opset 18: QuantizeLinear knows fp16"):
        to_int8(model, as_images(photos("deit_tiny_patch16_224", 2, 0)), get("tensorrt"))


def test_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="tensorrt"):
        get("tensort")


def test_plans_of_one_calibration_do_not_know_of_each_other() -> None:
    images, scheme = as_images(photos("mobilevit_xxs", 4, seed=0)), get("onnxruntime")
    options = Int8Options(equalize="none", method="minmax", correct_bias=False)
    prepared = prepare(traced("mobilevit_xxs"), images, scheme, options)
    alone = prepared.model.clone()
    to_int8(alone, images, scheme, options, prepared=prepared)
    measure_sensitivity(replace(prepared, few=prepared.few[:1]))
    for keep, graph in ((("head*",), prepared.model.clone()), ((), prepared.model.clone()), ((), prepared.model)):
        to_int8(graph, images, scheme, replace(options, keep=keep), prepared=prepared)
        if not keep:
            assert [node.name for node in graph.graph] == [node.name for node in alone.graph]
