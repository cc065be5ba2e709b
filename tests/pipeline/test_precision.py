"""Asked for is applied, or it fails: each precision held against a census."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from vitdeploy.backends import registry
from vitdeploy.backends.base import Capabilities, Census, RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.backends.registry import backends
from vitdeploy.errors import PrecisionNotApplied, UnsupportedModel, UsageError
from vitdeploy.pipeline.calibration import dialect
from vitdeploy.pipeline.export import check_backend
from vitdeploy.pipeline.precision import CONVERSIONS, lowest_opset, precision_notes
from vitdeploy.pipeline.request import ExportRequest
from vitdeploy.spec import PRECISIONS
from vitdeploy.verify.metrics import BOUNDS

INT8 = {"ops": [{"precision": "int8"}, {"precision": "int8"}, {"precision": "float"}], "quantised_macs": 9, "macs": 10}
STORED = {"bits": 4, "ops": [{"precision": "int4"}, {"precision": "int8"}]}


def notes(precision: str, report: dict[str, Any], compute: dict[str, int]) -> list[str]:
    request = ExportRequest("deit_tiny_patch16_224", precision=precision)
    return precision_notes(request, {precision: report}, Census("a test", {}, compute))


def test_every_precision_has_a_conversion_and_bounds() -> None:
    assert set(CONVERSIONS) == set(PRECISIONS) == set(BOUNDS)
    assert {precision: lowest_opset(precision) for precision in PRECISIONS if lowest_opset(precision) > 18} == {
        "fp8": 19,
        "int4-weights": 21,
    }
    for backend in backends().values():
        assert set(backend.capabilities().precisions) <= set(PRECISIONS)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_int8_is_missed_when_a_planned_product_runs_in_float(precision: str) -> None:
    assert notes(precision, INT8, {"int8": 2, "fp32": 1}) == ["applied: int8 compute in 2 of 3 ops, 90% of the MACs"]
    with pytest.raises(PrecisionNotApplied, match="planned for 2 compute ops, but only 1 of 3"):
        notes(precision, INT8, {"int8": 1, "fp32": 2})


def test_fp8_is_missed_when_a_planned_product_runs_in_float() -> None:
    report = {"ops": [{"precision": "fp8"}, {"precision": "float"}], "quantised_macs": 1, "macs": 2}
    assert notes("fp8", report, {"fp8": 1, "fp16": 1}) == ["applied: fp8 compute in 1 of 2 ops, 50% of the MACs"]
    with pytest.raises(PrecisionNotApplied, match="fp8 was planned for 1 compute ops, but only 0 of 2"):
        notes("fp8", report, {"int8": 1, "fp16": 1})


def test_file_for_another_runtime_is_held_to_no_census() -> None:
    report = {"scheme": "tensorrt-fp8", "native": False}
    assert notes("fp8", report, {"fp32": 2}) == ["written for tensorrt-fp8, verified on onnxruntime"]


DIALECTS: dict[str, tuple[RunOptions, str, str | None, tuple[str, bool]]] = {
    "ONNX Runtime's CPU has int8": (RunOptions("cpu"), "int8", "tensorrt", ("tensorrt", False)),
    "ONNX Runtime's CPU has no fp8": (RunOptions("cpu"), "fp8", None, ("tensorrt-fp8", False)),
    "TensorRT runs in ONNX Runtime": (RunOptions("cuda", provider="tensorrt"), "fp8", None, ("tensorrt-fp8", True)),
    "it is named": (RunOptions("cuda", provider="tensorrt"), "fp8", "tensorrt-fp8", ("tensorrt-fp8", True)),
    "and in int8": (RunOptions("cuda", provider="tensorrt"), "int8", None, ("tensorrt", True)),
}


@pytest.mark.parametrize("case", DIALECTS)
def test_dialect_is_the_backends_own_or_written_for_another_when(case: str) -> None:
    run, precision, scheme, wanted = DIALECTS[case]
    found, native = dialect(ExportRequest("levit_128s", precision=precision, run=run, scheme=scheme))
    assert (found.name, native) == wanted


@pytest.mark.parametrize("name", backends())
def test_backend_gives_a_scheme_of_the_precision_or_says_that_it_has_none(name: str) -> None:
    for precision in ("int8", "fp8"):
        with suppress(UnsupportedModel):
            assert backends()[name].scheme(RunOptions(), precision).precision == precision


def test_bf16_is_missed_when_a_product_runs_in_fp32() -> None:
    assert "bf16 compute in all 5" in notes("bf16", {}, {"bf16": 3, "bfloat16": 2})[0]
    for compute in ({"bf16": 4, "fp32": 1}, {"fp32": 5}, {}):
        with pytest.raises(PrecisionNotApplied, match="bf16 was asked for"):
            notes("bf16", {}, compute)


@pytest.mark.parametrize("run", [RunOptions("cuda"), RunOptions("cuda", provider="tensorrt"), RunOptions("cuda:1")])
def test_fp16_is_missed_on_a_gpu_when_a_product_beyond_the_islands_runs_wider(run: RunOptions) -> None:
    request = ExportRequest("deit_tiny_patch16_224", precision="fp16", run=run)
    report = {"fp16": {"islands": [{"op_type": "MatMul"}, {"op_type": "Softmax"}]}}
    assert precision_notes(request, report, Census("a test", {}, {"fp16": 9, "fp32": 1})) == [
        "applied: fp16 compute in 9 ops, fp32 in 1"
    ]
    for compute in ({"fp16": 8, "fp32": 2}, {"fp32": 10}, {"fp16": 8, "fp32": 1, "tf32": 1}):
        with pytest.raises(PrecisionNotApplied, match="fp16 was asked for"):
            precision_notes(request, report, Census("a test", {}, compute))


@pytest.mark.parametrize("run", [RunOptions(), RunOptions("cpu"), RunOptions("cpu", provider="cpu")])
def test_fp16_is_storage_alone_on_a_cpu_without_its_kernels(run: RunOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    request = ExportRequest("deit_tiny_patch16_224", precision="fp16", run=run)
    assert "fp16 storage, fp32 compute" in precision_notes(request, {}, Census("a test", {}, {"fp32": 10}))[0]


def test_copies_within_the_graph_are_told() -> None:
    ops = {"MemcpyToHost": {"fp32": 2}, "MemcpyFromHost": {"fp32": 1, "int64": 1}}
    request = ExportRequest("deit_tiny_patch16_224", run=RunOptions("cuda"))
    assert precision_notes(request, {}, Census("a test", ops, {"fp32": 3})) == [
        "4 copies between GPU and CPU within the graph"
    ]
    assert precision_notes(request, {}, Census("a test", {"MatMul": {"fp32": 3}}, {"fp32": 3})) == []


def test_storage_is_missed_when_products_run_in_less_than_fp32() -> None:
    assert notes("int4-weights", STORED, {"fp32": 3, "float32": 1}) == [
        "applied: int4 weight storage in 1 of 2 layers, fp32 compute"
    ]
    for compute in ({"int8": 1, "fp32": 2}, {"unknown": 3}):
        with pytest.raises(PrecisionNotApplied, match="is computed in fp32"):
            notes("int4-weights", STORED, compute)


@pytest.mark.parametrize(
    ("can", "fix"),
    [
        (Capabilities(True, "1", ("cpu",), {"bf16": "bf16 compute"}), "Use --backend other."),
        (Capabilities(False, fix="pip install other"), "other may have it: pip install other."),
    ],
    ids=["here", "not installed"],
)
def test_another_backend_is_named_when_this_one_lacks_the_precision(
    can: Capabilities, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(OnnxRuntimeBackend):
        def capabilities(self) -> Capabilities:
            return can

    known = {"onnxruntime": OnnxRuntimeBackend(), "other": Other()}
    monkeypatch.setattr(registry, "backends", lambda: known)
    with pytest.raises(UsageError, match="onnxruntime has no bf16") as caught:
        check_backend(ExportRequest("deit_tiny_patch16_224", precision="bf16"))
    assert fix in str(caught.value.fix)
