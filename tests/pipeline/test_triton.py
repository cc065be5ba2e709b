"""The Triton layout: what the config says is held against Triton's own schema and against the ONNX file itself.

Triton's schema comes from its client: `pip install --no-deps tritonclient`. A server takes what passes here, see
test_triton_server.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import vitdeploy
from vitdeploy.artifact import Artifact
from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.graph.save import save
from vitdeploy.pipeline.checks import check_request
from vitdeploy.pipeline.request import ExportRequest
from vitdeploy.pipeline.triton import Word, caveats, config, lay_out, text
from vitdeploy.report.reading import TEXTS
from vitdeploy.spec import InputSpec, ModelSpec

SPEC = ModelSpec("some_vit", input=InputSpec(shape=(3, 16, 24)), num_classes=3)
LOGITS = {"logits": np.zeros((2, 3), np.float32)}
NAMES = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16"}


@pytest.fixture(scope="session")
def schema() -> Any:
    """Triton's model_config_pb2, without the rest of its client, which needs gRPC."""
    client = importlib.util.find_spec("tritonclient")
    if client is None or not client.submodule_search_locations:
        pytest.skip("no tritonclient: pip install --no-deps tritonclient")
    file = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def parse(schema: Any) -> Callable[[str], Any]:
    """Read a config as Triton does; unknown fields and wrong kinds are errors."""
    from google.protobuf import text_format

    return lambda content: text_format.Parse(content, schema.ModelConfig())


@pytest.fixture
def net(tmp_path: Path, net_code: str) -> str:
    """The name of a small model: 4 classes, 16 px."""
    (tmp_path / "net.py").write_text(net_code)
    return f"{tmp_path / 'net.py'}:sized"


@pytest.fixture
def told(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """The parsed config of a request."""

    def call(spec: ModelSpec = SPEC, **wanted: Any) -> Any:
        run = RunOptions(**{"device": "cpu", **wanted.pop("run", {})})
        request = ExportRequest("m", layout="triton", run=run, **{"out": Path("m"), **wanted})
        return parse(text(config(request, spec, "model.onnx", LOGITS)))

    return call


def whole(tensor: Any, most: int, schema: Any) -> tuple[str, list[int]]:
    """Type and shape that Triton takes a config's tensor to have: a max_batch_size puts any batch in front."""
    return schema.DataType.Name(tensor.data_type), [-1] * (most > 0) + list(tensor.dims)


def in_file(value: onnx.ValueInfoProto) -> tuple[str, list[int]]:
    kind = value.type.tensor_type
    return NAMES[kind.elem_type], [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]


@pytest.mark.parametrize(
    ("batch", "options", "most"),
    [
        (1, {}, 0),
        (4, {"precision": "fp16"}, 0),
        ((1, 2, 8), {"precision": "fp16", "io_precision": "fp16"}, 8),
        ((2, 3, 8), {}, 0),
        ((1, 2, 8), {"backend": "openvino"}, 0),
    ],
)
def test_config_says_what_the_file_says_when_parsed_by_tritons_schema(
    net: str, tmp_path: Path, schema: Any, parse: Callable[[str], Any], batch: Any, options: dict[str, Any], most: int
) -> None:
    if options.get("backend") == "openvino":
        pytest.importorskip("openvino")
    artifact = vitdeploy.export(net, layout="triton", batch=batch, bench=False, out=tmp_path / "out", **options)
    found = parse((artifact.folder / "triton" / "out" / "config.pbtxt").read_text(encoding="ascii"))
    assert artifact.model_path == artifact.folder / "triton" / found.name / "1" / found.default_model_filename
    file = onnx.load(artifact.model_path)
    assert found.max_batch_size == most
    for ours, theirs in ((found.input, file.graph.input), (found.output, file.graph.output)):
        assert {t.name: whole(t, most, schema) for t in ours} == {v.name: in_file(v) for v in theirs}
    assert found.HasField("dynamic_batching") == (most > 0)
    artifact.check_files()


def test_folder_holds_models_alone_when_it_is_a_repository(net: str, tmp_path: Path) -> None:
    artifact = vitdeploy.export(net, layout="triton", bench=False, out=tmp_path / "été 1+")
    files = sorted(
        path.relative_to(artifact.folder).as_posix() for path in artifact.folder.rglob("*") if path.is_file()
    )
    home = "triton/t-1"
    assert files == sorted(["manifest.json", *TEXTS, f"{home}/1/model.onnx", f"{home}/config.pbtxt"])
    assert artifact.manifest.model_file == f"{home}/1/model.onnx"
    assert artifact.manifest.request["layout"] == "triton"
    assert "- layout: Triton model repository triton/, model t-1\n" in (artifact.folder / "report.md").read_text()


def test_weights_lie_beside_the_model_when_they_are_external(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert save.__kwdefaults__ is not None
    monkeypatch.setitem(save.__kwdefaults__, "external_above", 1)
    artifact = vitdeploy.export(net, layout="triton", bench=False, out=tmp_path / "out")
    version = artifact.folder / "triton" / "out" / "1"
    assert sorted(path.name for path in version.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert set(artifact.manifest.files) >= {"triton/out/1/model.onnx", "triton/out/1/model.onnx.data"}
    image = np.ones((1, 3, 16, 16), np.float32)
    with vitdeploy.load(artifact.folder) as session:
        assert np.isfinite(session.run({"image": image})["logits"]).all()


def test_artifact_is_found_when_a_file_of_its_repository_is_named(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = vitdeploy.export(net, layout="triton", bench=False, out=tmp_path / "out")
    assert Artifact.load(made.model_path).folder == made.folder
    monkeypatch.chdir(made.model_path.parent)
    assert Artifact.load(Path("model.onnx")).folder == made.folder
    assert vitdeploy.verify("model.onnx", model=net)
    # No other folder above a file makes it an artifact's.
    bare = made.folder / "other" / "out" / "1" / "model.onnx"
    bare.parent.mkdir(parents=True)
    bare.write_bytes(made.model_path.read_bytes())
    with pytest.raises(UsageError, match=r"1 has no manifest\.json"):
        Artifact.load(bare)


def test_labels_have_a_line_each_when_the_model_has_names(
    tmp_path: Path, parse: Callable[[str], Any], told: Callable[..., Any]
) -> None:
    spec = ModelSpec("m", input=SPEC.input, num_classes=3, labels=("tench, tinca", "two\nlines", "пёс"))
    (tmp_path / "model.onnx").write_bytes(b"model")
    request = ExportRequest("m", layout="triton", run=RunOptions("cpu"), out=tmp_path / "out")
    files = lay_out(request, spec, [tmp_path / "model.onnx"], tmp_path, LOGITS)
    home = tmp_path / "triton" / "out"
    assert files == [home / "1" / "model.onnx", home / "config.pbtxt", home / "labels.txt"]
    assert files[2].read_text(encoding="utf-8").split("\n") == ["tench, tinca", "two lines", "пёс", ""]
    assert parse(files[1].read_text()).output[0].label_filename == "labels.txt"
    assert told().output[0].label_filename == ""


def test_files_stay_where_they_are_when_the_layout_is_plain(tmp_path: Path) -> None:
    assert lay_out(ExportRequest("m"), SPEC, [tmp_path / "model.onnx"], tmp_path, LOGITS) == [tmp_path / "model.onnx"]
    assert not list(tmp_path.iterdir())


def test_a_backends_side_files_go_with_the_model(tmp_path: Path) -> None:
    for name in ("model.plan", "engine.json"):
        (tmp_path / name).write_text(name)
    request = ExportRequest("m", layout="triton", backend="tensorrt", run=RunOptions("cuda"), out=tmp_path / "out")
    files = lay_out(request, SPEC, [tmp_path / "model.plan", tmp_path / "engine.json"], tmp_path, LOGITS)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "triton/out/1/model.plan",
        "triton/out/1/engine.json",
        "triton/out/config.pbtxt",
    ]
    assert files[1].read_text() == "engine.json"


def test_onnx_runtime_is_told_threads_and_level_when_they_were_set(told: Callable[..., Any]) -> None:
    found = told(run={"threads": 3, "optimization": "extended"})
    assert (found.backend, found.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert found.parameters["intra_op_thread_count"].string_value == "3"
    assert found.optimization.graph.level == 1
    assert [found.instance_group[0].Kind.Name(g.kind) for g in found.instance_group] == ["KIND_CPU"]
    assert found.instance_group[0].count == 1
    usual = told(run={"threads": 0})
    assert "intra_op_thread_count" not in usual.parameters
    assert not usual.HasField("optimization")


def test_gpu_instances_are_asked_for_when_the_device_is_one(told: Callable[..., Any], schema: Any) -> None:
    kind = schema.ModelInstanceGroup.Kind
    for device, gpus in (("cuda", []), ("cuda:1", [1])):
        group = told(run={"device": device}).instance_group[0]
        assert (group.kind, list(group.gpus)) == (kind.Value("KIND_GPU"), gpus)
    found = told(run={"device": "cuda", "provider": "tensorrt", "threads": 2})
    assert found.instance_group[0].kind == kind.Value("KIND_GPU")
    assert [a.name for a in found.optimization.execution_accelerators.gpu_execution_accelerator] == ["tensorrt"]
    assert "intra_op_thread_count" not in found.parameters
    found = told(run={"device": "cuda", "provider_options": {"gpu_mem_limit": "1", 'a"b\\': "ü"}})
    (cuda,) = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0", "gpu_mem_limit": "1", 'a"b\\': "ü"})
    found = told(run={"provider": "openvino"})
    assert [a.name for a in found.optimization.execution_accelerators.cpu_execution_accelerator] == ["openvino"]
    assert found.instance_group[0].kind == kind.Value("KIND_CPU")


def test_tensorrt_prefers_the_batches_that_its_kernels_are_for(told: Callable[..., Any], schema: Any) -> None:
    found = told(backend="tensorrt", batch=(1, 8, 32), run={"device": "cuda"})
    assert (found.backend, found.platform, found.max_batch_size) == ("tensorrt", "tensorrt_plan", 32)
    assert list(found.dynamic_batching.preferred_batch_size) == [8, 32]
    assert found.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    # A preferred batch of 1 would be sent off alone, however many requests wait.
    single = told(backend="tensorrt", batch=(1, 1, 4), run={"device": "cuda"})
    assert list(single.dynamic_batching.preferred_batch_size) == [4]
    assert list(told(batch=(1, 8, 32)).dynamic_batching.preferred_batch_size) == []


def test_openvino_is_told_its_device_and_precision(told: Callable[..., Any], schema: Any) -> None:
    found = told(backend="openvino", precision="bf16", batch=(1, 2, 4), run={"device": "gpu:1", "threads": 2})
    values = {key: value.string_value for key, value in found.parameters.items()}
    assert (found.backend, found.platform, found.max_batch_size) == ("openvino", "", 0)
    assert values["TARGET_DEVICE"] == "GPU.1"
    assert values["HINT_BF16"] == "YES"
    assert values["INFERENCE_NUM_THREADS"] == "2"
    # Triton's OpenVINO backend takes no other kind, whatever the device.
    assert found.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU
    assert list(found.input[0].dims) == [-1, 3, 16, 24]
    assert list(found.output[0].dims) == [-1, 3]
    assert "HINT_BF16" not in told(backend="openvino").parameters


def test_inductor_names_tensors_by_number(told: Callable[..., Any]) -> None:
    found = told(backend="inductor", batch=(1, 2, 4))
    assert (found.backend, found.platform, found.max_batch_size) == ("pytorch", "torch_aoti", 0)
    assert [t.name for t in (*found.input, *found.output)] == ["INPUT__0", "OUTPUT__0"]


def test_strings_survive_when_they_hold_what_a_literal_cannot(parse: Callable[[str], Any]) -> None:
    hard = "a\"b'c\\d\ne\r\tf\x00\x7f é\u2028\U0001f600 \\101"
    message = {"name": hard, "input": [{"name": "x", "data_type": Word("TYPE_FP32"), "dims": [-1, 3]}]}
    content = text(message)
    assert content.isascii()
    found = parse(content)
    assert found.name == hard
    assert list(found.input[0].dims) == [-1, 3]
    assert parse(text({"name": "broken \ud800"})).name == "broken ?"


def test_request_is_refused_when_triton_cannot_serve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    request = ExportRequest("deit_tiny_patch16_224", layout="folders")
    with pytest.raises(UsageError, match="Unknown layout 'folders': one of plain, triton"):
        check_request(request)
    with pytest.raises(UsageError, match="Unknown backend 'onnxrt'"):
        check_request(ExportRequest("deit_tiny_patch16_224", layout="triton", backend="onnxrt"))
    for run, error, words in (
        ({"provider": "coreml"}, UnsupportedModel, "ONNX Runtime within Triton has no coreml provider"),
        ({"device": "directml"}, UnsupportedModel, "no directml provider"),
        ({"provider_options": {"a": "b"}}, UsageError, "cannot be told backend options of onnxruntime on cpu"),
    ):
        with pytest.raises(error, match=words):
            check_request(ExportRequest("deit_tiny_patch16_224", layout="triton", run=RunOptions(**run)))
    monkeypatch.setattr(registry, "get", lambda name: None)
    for backend, words in (
        ("tensorrt-rtx", "has not the runtime that opens engines of TensorRT-RTX"),
        ("litert", "Triton has no backend for what litert compiles"),
    ):
        with pytest.raises(UnsupportedModel, match=words):
            check_request(ExportRequest("deit_tiny_patch16_224", layout="triton", backend=backend))
        check_request(ExportRequest("deit_tiny_patch16_224", backend=backend))
    run = RunOptions("cuda", provider_options={"workspace": "4G"})  # of TensorRT's builder, none of Triton's matter
    check_request(ExportRequest("deit_tiny_patch16_224", layout="triton", backend="tensorrt", run=run))


def test_tune_refuses_another_layout_when_it_is_asked_for(net: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plain layout only"):
        vitdeploy.tune(net, calib_random=True, layout="triton", max_drop=1.0, out=tmp_path / "out")


def test_difference_is_told_when_triton_cannot_be_kept_to_the_files_precision() -> None:
    def said(**wanted: Any) -> str:
        return " ".join(caveats(ExportRequest("m", **{"layout": "triton", **wanted})))

    assert "rounding activations to int8" in said(precision="int4-weights")
    assert "runs in bf16" in said(backend="openvino", precision="fp32")
    assert "beta" in said(backend="inductor")
    assert not said(precision="int8")
    assert not said(backend="openvino", precision="int8+bf16")
    assert not said(backend="openvino", layout="plain")
