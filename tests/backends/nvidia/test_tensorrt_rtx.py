"""Every family of the catalog through TensorRT-RTX's real parser and builder, which need no GPU: the engine multiplies
in the precision that was asked for, by NVIDIA's own list of its layers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from vitdeploy.backends.base import Census, RunOptions
from vitdeploy.backends.nvidia.engine import Facts
from vitdeploy.backends.nvidia.layers import BUILDER, precisions
from vitdeploy.backends.tensorrt_rtx import TensorRtRtxBackend
from vitdeploy.errors import BackendError, PrecisionNotApplied, UnsupportedModel, UsageError
from vitdeploy.graph.edit import add_node
from vitdeploy.models import catalog
from vitdeploy.models.build import BuildOptions, Built, build
from vitdeploy.pipeline.export import settled, verification_cases
from vitdeploy.pipeline.precision import Job, convert, precision_notes, range_samples
from vitdeploy.pipeline.request import ExportRequest, Listener, Steps
from vitdeploy.pipeline.sources import trace_and_optimise
from vitdeploy.quantize.options import Int8Options

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'vitdeploy[tensorrt-rtx]'")

BACKEND = TensorRtRtxBackend()
# The smallest of each family, at a size that traces soon.
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", 64),
    "dinov2": ("vit_small_patch14_reg4_dinov2", 70),
    "deit": ("deit_tiny_distilled_patch16_224", 64),
    "deit3": ("deit3_small_patch16_224", 64),
    "mobilevit": ("mobilevit_xxs", 128),
    "mobilevitv2": ("mobilevitv2_050", 128),
    "levit": ("levit_128s", 128),
    "levit_conv": ("levit_conv_128s", 128),
}
OTHERS = {
    "cait": ("cait_xxs24_224", 64),
    "xcit": ("xcit_nano_12_p16_224", 64),
    "pit": ("pit_ti_224", 64),
    "twins": ("twins_svt_small", 64),
    "nest": ("nest_tiny_jx", 64),
    "crossvit": ("crossvit_9_240", 240),
    "maxvit": ("maxvit_pico_rw_256", 256),
}
# As they are used.
WHOLE = {
    "vit, whole": ("vit_small_patch16_224", 224),
    "dinov2, whole": ("vit_small_patch14_reg4_dinov2", 518),
    "deit, whole": ("deit_small_distilled_patch16_224", 224),
    "deit3, whole": ("deit3_small_patch16_224", 224),
    "mobilevit, whole": ("mobilevit_s", 256),
    "mobilevitv2, whole": ("mobilevitv2_100", 256),
    "levit, whole": ("levit_256", 224),
    "levit_conv, whole": ("levit_conv_256", 224),
}
MODELS = FAMILIES | OTHERS | WHOLE
QUANTISED = ("int8", "fp8")
STATIC, DYNAMIC = 2, (1, 2, 8)
Batch = int | tuple[int, int, int]


def request_for(family: str, batch: Batch, precision: str, capability: str = "8.9", **options: str) -> ExportRequest:
    name, size = MODELS[family]
    request = ExportRequest(
        model=name,
        build=BuildOptions(image_size=(size, size)),
        precision=precision,
        backend="tensorrt-rtx",
        batch=batch,
        run=RunOptions(provider_options={"compute_capability": capability, **options}),
        calib_random=precision in QUANTISED,
        calib_images=8,
        int8=Int8Options(equalize="none") if precision == "fp8" else Int8Options(),  # which takes the most time
    )
    return settled(request)


@cache
def model(family: str) -> Built:
    name, size = MODELS[family]
    return build(name, BuildOptions(image_size=(size, size)))


@cache
def optimised(family: str, batch: Batch) -> bytes:
    graph, _ = trace_and_optimise(request_for(family, batch, "fp32"), model(family), Steps(Listener()))
    return ir.to_proto(graph).SerializeToString()


def compiled(request: ExportRequest, family: str, folder: Path) -> tuple[Facts, Census, list[str]]:
    """What the engine is made of, and what an export would tell of it."""
    graph = ir.from_proto(onnx.load_from_string(optimised(family, request.batch)))
    samples = range_samples(request, verification_cases(replace(request, precision="fp32"), model(family).spec))
    applied = convert(Job(graph, model(family).spec, request, Steps(Listener()), samples))
    files = BACKEND.compile(graph, folder, request.run, request.precision)
    assert sorted(files) == sorted(folder.iterdir())
    facts, census = Facts.read(files[0]), BACKEND.compiled_census(files[0])
    assert facts is not None
    assert census is not None
    return facts, census, precision_notes(request, applied, census)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_families_are_all_that_the_catalog_has() -> None:
    assert set(FAMILIES | OTHERS) == {catalog.find(name)[0].family for name in catalog.names()}


@pytest.mark.parametrize("batch", [pytest.param(STATIC, marks=pytest.mark.slow), DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", *QUANTISED])
@pytest.mark.parametrize(
    "family",
    [
        *(pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FAMILIES),
        *(pytest.param(name, marks=(pytest.mark.slow, pytest.mark.xdist_group(name))) for name in OTHERS | WHOLE),
    ],
)
def test_engine_runs_what_was_asked_for(family: str, precision: str, batch: Batch, tmp_path: Path) -> None:
    if family == "maxvit" and batch == STATIC:
        pytest.skip("TensorRT-RTX's builder takes more than seven minutes for MaxViT with a fixed batch")
    request = request_for(family, batch, precision)
    facts, census, notes = compiled(request, family, tmp_path)
    assert (facts.source, facts.compute_capabilities) == (BUILDER, ("8.9",))
    assert sum(census.compute.values()) == len(facts.products) > 20
    if precision in QUANTISED:
        assert set(census.compute) <= {precision, "fp16"}
        assert census.compute[precision] > 0.4 * len(facts.products)
        assert f"{precision} compute" in notes[0]
    else:
        assert census.compute == {precision: len(facts.products)}
    shape = model(family).spec.input.shape
    ranges = [{"image": tuple((size, *shape) for size in DYNAMIC)}] if batch == DYNAMIC else []
    assert list(facts.profiles) == ranges


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "12.0", "12.1"])
def test_engine_runs_in_fp16_when_it_is_for_another_gpu(capability: str, tmp_path: Path) -> None:
    facts, census, _ = compiled(request_for("levit", STATIC, "fp16", capability), "levit", tmp_path)
    assert facts.compute_capabilities == (capability,)
    assert set(census.compute) == {"fp16"}


def test_export_fails_when_turing_runs_convolutions_in_fp16_that_were_planned_in_int8(tmp_path: Path) -> None:
    with pytest.raises(PrecisionNotApplied, match="int8 was planned for"):
        compiled(request_for("mobilevit", STATIC, "int8", "7.5"), "mobilevit", tmp_path)


def test_engine_is_for_several_gpus_when_several_are_named(tmp_path: Path) -> None:
    facts, census, _ = compiled(request_for("vit", STATIC, "fp16", "8.6,8.9,12.0"), "vit", tmp_path)
    assert facts.compute_capabilities == ("8.6", "8.9", "12.0")
    assert census.compute == {"fp16": len(facts.products)}


def test_engine_has_several_profiles_when_several_are_given(tmp_path: Path) -> None:
    request = request_for("vit", DYNAMIC, "fp16", profile="1:1:1;image:2x3x64x64:4x3x64x64:8x3x64x64")
    facts, _, _ = compiled(request, "vit", tmp_path)
    assert [[shape[0] for shape in profile["image"]] for profile in facts.profiles] == [[1, 1, 1], [2, 4, 8]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"profile": "mask:1x2:1x2:1x2"}, "names 'mask'"),
        ({"profile": "image:1x3x64x65:2x3x64x65:4x3x64x65"}, "does not fit"),
        ({"profile": "image:1x3x64:2x3x64:4x3x64"}, "does not fit"),
    ],
)
def test_build_refuses_a_profile_that_does_not_fit(options: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        compiled(request_for("vit", DYNAMIC, "fp16", **options), "vit", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_census_tells_fp32_when_a_product_of_an_fp16_graph_is_cast_back(tmp_path: Path) -> None:
    request = request_for("vit", STATIC, "fp16")
    graph = ir.from_proto(onnx.load_from_string(optimised("vit", STATIC)))
    samples = range_samples(request, verification_cases(request, model("vit").spec))
    convert(Job(graph, model("vit").spec, request, Steps(Listener()), samples))
    node = next(node for node in graph.graph if node.op_type in ("MatMul", "Gemm") and node.inputs[0] is not None)
    for slot, value in enumerate(list(node.inputs)):
        assert value is not None
        wide = add_node(node, "Cast", [value], f"wide{slot}", value, to=ir.DataType.FLOAT)
        wide.dtype = ir.DataType.FLOAT
        node.replace_input_with(slot, wide)
    out = node.outputs[0]
    users = list(out.uses())
    narrow = add_node(users[0].node, "Cast", [out], "narrow", out, to=ir.DataType.FLOAT16)
    out.dtype = ir.DataType.FLOAT
    for user, slot in users:
        user.replace_input_with(slot, narrow)
    files = BACKEND.compile(graph, tmp_path, request.run, "fp16")
    facts = Facts.read(files[0])
    assert facts is not None
    found = precisions(facts.layers, facts.products)
    assert {name for name, kind in found.items() if kind != "fp16"} == {node.name}


def broken(op_type: str = "NonMaxSuppressionOfOurs") -> ir.Model:
    graph = ir.from_proto(onnx.load_from_string(optimised("vit", STATIC)))
    node = next(node for node in graph.graph if node.op_type == "Softmax")
    node.op_type, node.domain = op_type, "ours"
    graph.graph.opset_imports["ours"] = 1
    return graph


def test_compile_names_the_node_when_the_parser_has_no_such_operator(tmp_path: Path) -> None:
    with pytest.raises((BackendError, UnsupportedModel), match="NonMaxSuppressionOfOurs") as caught:
        BACKEND.compile(broken(), tmp_path, request_for("vit", STATIC, "fp32").run)
    assert "no such operator" in str(caught.value.fix)
    assert list(tmp_path.iterdir()) == []


def vitdeploy(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitdeploy", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is an NVIDIA driver")
def test_export_ahead_of_time_says_that_the_engine_has_not_run(tmp_path: Path) -> None:
    target = ("--backend", "tensorrt-rtx", "--backend-option", "compute_capability=8.9")
    done = vitdeploy(tmp_path, "export", "vit_tiny_patch16_224", "--image-size", "64", "--fp16", *target, "--out", "a")
    assert done.returncode == 0, done.stderr
    assert "for compute capability 8.9" in done.stderr
    assert "applied: fp16 compute in" in done.stderr
    assert "the compiled file is for another machine and has not run" in done.stderr
    assert "Latency is not measured" in done.stderr
    assert "on the machine that it is for" in done.stdout
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["verification"]["passed"]
    assert "ONNX Runtime" in manifest["verification"]["stand_in"]
    assert manifest["bench"] is None
    assert manifest["applied"]["compiled"]["compute_capabilities"] == ["8.9"]
    assert "**not run**" in (tmp_path / "a" / "report.md").read_text()
    for verb in ("verify", "bench"):
        done = vitdeploy(tmp_path, verb, "a")
        assert done.returncode == 3
        assert "Open it on the machine that it was compiled for." in done.stderr
    done = vitdeploy(tmp_path, "inspect", "a")
    assert done.returncode == 0
    assert "compute_capabilities 8.9" in done.stdout
    done = vitdeploy(tmp_path, "inspect", "a", "--scheme", "tensorrt")
    assert done.returncode == 2
    assert "is compiled" in done.stderr


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is an NVIDIA driver")
@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("compute_capability=9.0",), 2, "does not compile for compute capability 9.0.\n       It does for 7.5"),
        (("compute_capability=ada",), 2, "is not a compute capability such as 8.9"),
        (("compute_capability=8.9", "refit=1"), 7, "builds with refit only where there is a GPU"),
        (("compute_capability=8.9", "timing_cache=x"), 2, "leave timing_cache out"),
        (("compute_capabilities=8.9",), 2, "Did you mean compute_capability?"),
    ],
)
def test_export_ahead_of_time_refuses_before_it_traces(
    options: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    pairs = [word for option in options for word in ("--backend-option", option)]
    done = vitdeploy(tmp_path, "export", "vit_tiny_patch16_224", "--backend", "tensorrt-rtx", *pairs)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "trace" not in done.stderr
