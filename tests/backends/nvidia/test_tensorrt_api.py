"""What we ask of TensorRT, held against the API of NVIDIA's real bindings, of a 10 and an 11: it takes no GPU."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api import VERSIONS, Record, read_api, recorded, stub_libraries

from vitdeploy.backends.nvidia import build as building
from vitdeploy.backends.nvidia.build import Job, build
from vitdeploy.backends.nvidia.cuda import Buffer, Lane
from vitdeploy.backends.nvidia.engine import Facts
from vitdeploy.backends.nvidia.gpus import Gpu
from vitdeploy.backends.nvidia.layers import INSPECTOR
from vitdeploy.backends.nvidia.options import EngineOptions
from vitdeploy.backends.nvidia.session import TensorRtSession
from vitdeploy.errors import BackendError, UnsupportedModel, UsageError

L4 = Gpu("NVIDIA L4", (8, 9), 24 << 30)
PLAN = b"ftrt and the rest"
LAYERS = {
    "Layers": [
        {
            "Name": "__myl_Cast_myl0_0",
            "LayerType": "kgen",
            "Inputs": [{"Name": "image", "Dimensions": [1, 3, 4, 4], "Format/Datatype": "Float"}],
            "Outputs": [{"Name": "x", "Dimensions": [1, 3, 4, 4], "Format/Datatype": "Half"}],
            "Metadata": "[ONNX Layer: cast]",
        },
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 4, 4], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear FP16 format"}],
            "Weights": {"Type": "Half", "Count": 24},
            "TacticName": "sm80_xmma_fprop",
            "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
        },
    ]
}
ENGINE: dict[tuple[str, str], Any] = {
    ("ICudaEngine", "num_io_tensors"): 2,
    ("ICudaEngine", "num_optimization_profiles"): 2,
    ("ICudaEngine", "get_tensor_name"): lambda index: ("image", "logits")[index],
    ("ICudaEngine", "get_tensor_shape"): lambda name: (-1, 3, 4, 4) if name == "image" else (-1, 5),
    ("ICudaEngine", "get_tensor_profile_shape"): lambda name, i: [(n, 3, 4, 4) for n in ((1, 2, 4), (5, 6, 8))[i]],
    ("EngineInspector", "get_engine_information"): json.dumps(LAYERS),
}  # fmt: skip


@pytest.fixture(scope="session")
def apis(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The API of a version, read once."""
    known: dict[str, dict[str, Any]] = {}

    def of(version: str) -> dict[str, Any]:
        if version not in known:
            stubs = stub_libraries(tmp_path_factory.mktemp("stubs"), version.partition(".")[0])
            known[version] = read_api(version, stubs)
        return known[version]

    return of


class Tensorrt:
    """A recorded module in the place of `tensorrt`, which answers as a builder and an engine would."""

    def __init__(self, api: dict[str, Any]) -> None:
        self.record = Record(answers=dict(ENGINE))
        self.module = recorded(api, self.record)
        trt: Any = self.module
        image = object.__new__(trt.ITensor)
        self.record.answers |= {
            ("ICudaEngine", "get_tensor_mode"): lambda name: trt.TensorIOMode["INPUT" if name == "image" else "OUTPUT"],
            ("ICudaEngine", "get_tensor_dtype"): lambda name: trt.DataType.FLOAT,
            ("INetworkDefinition", "num_inputs"): 1,
            ("INetworkDefinition", "get_input"): lambda index: image,
            ("ITensor", "name"): "image",
            ("ITensor", "shape"): (-1, 3, 4, 4),
            ("Builder", "build_serialized_network"): lambda network, config: PLAN,
            ("ITimingCache", "serialize"): lambda: b"timings",
        }


@pytest.fixture(params=VERSIONS)
def tensorrt(
    request: pytest.FixtureRequest, apis: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Tensorrt:
    made = Tensorrt(apis(request.param))
    monkeypatch.setitem(sys.modules, "tensorrt", made.module)
    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))


def job(folder: Path, gpu: Gpu | None = L4, **options: str) -> Job:
    products = {"conv": "Conv"}
    return Job(
        "tensorrt", folder / "model.onnx", folder / "model.plan", EngineOptions.read(options), (1, 8, 32), products, gpu
    )


EVERYTHING = {
    "builder_optimization_level": "5",
    "avg_timing_iterations": "4",
    "max_aux_streams": "2",
    "workspace": "4G",
    "tactic_dram": "1G",
    "tactic_shared_memory": "48K",
    "hardware_compatibility_level": "ampere_plus",
    "version_compatible": "1",
    "exclude_lean_runtime": "1",
    "refit": "1",
    "strip_plan": "1",
    "weight_streaming": "1",
    "sparse_weights": "1",
    "tf32": "1",
    "profiling_verbosity": "layer_names_only",
    "profile": "1:2:4;image:5x3x4x4:6x3x4x4:8x3x4x4",
}


def test_builder_is_asked_for_a_strongly_typed_network_and_no_more_when_there_are_no_options(
    tensorrt: Tensorrt, tmp_path: Path
) -> None:
    facts = build(job(tmp_path))
    record, trt = tensorrt.record, tensorrt.module.__dict__
    assert record.of("Builder", "create_network") == [(1 << trt["NetworkDefinitionCreationFlag"].STRONGLY_TYPED,)]
    assert record.of("OnnxParser", "parse_from_file") == [(str(tmp_path / "model.onnx"),)]
    assert record.of("IBuilderConfig", "set_flag") == []
    assert record.of("IBuilderConfig", "clear_flag") == [(trt["BuilderFlag"].TF32,)]
    assert record.of("IBuilderConfig", "profiling_verbosity") == [(trt["ProfilingVerbosity"].DETAILED,)]
    assert record.of("IBuilderConfig", "set_memory_pool_limit") == []
    assert record.of("IOptimizationProfile", "set_shape") == [("image", (1, 3, 4, 4), (8, 3, 4, 4), (32, 3, 4, 4))]
    assert len(record.of("IBuilderConfig", "add_optimization_profile")) == 1
    assert (tmp_path / "model.plan").read_bytes() == PLAN
    assert (facts.runtime, facts.version) == ("tensorrt", trt["__version__"])
    assert (facts.compute_capabilities, facts.gpu) == (("8.9",), "NVIDIA L4")


def test_every_option_reaches_the_builder_under_tensorrts_own_name(tensorrt: Tensorrt, tmp_path: Path) -> None:
    build(job(tmp_path, **EVERYTHING))
    record, trt = tensorrt.record, tensorrt.module.__dict__
    flags = ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "REFIT", "STRIP_PLAN", "WEIGHT_STREAMING", "SPARSE_WEIGHTS")
    assert {flag for (flag,) in record.of("IBuilderConfig", "set_flag")} == {
        trt["BuilderFlag"][name] for name in (*flags, "TF32")
    }
    pools = dict(record.of("IBuilderConfig", "set_memory_pool_limit"))
    assert pools == {
        trt["MemoryPoolType"].WORKSPACE: 4 << 30,
        trt["MemoryPoolType"].TACTIC_DRAM: 1 << 30,
        trt["MemoryPoolType"].TACTIC_SHARED_MEMORY: 48 << 10,
    }
    for name, value in (("builder_optimization_level", 5), ("avg_timing_iterations", 4), ("max_aux_streams", 2)):
        assert record.of("IBuilderConfig", name) == [(value,)]
    level = trt["HardwareCompatibilityLevel"].AMPERE_PLUS
    assert record.of("IBuilderConfig", "hardware_compatibility_level") == [(level,)]
    assert record.of("IBuilderConfig", "profiling_verbosity") == [(trt["ProfilingVerbosity"].LAYER_NAMES_ONLY,)]
    shapes = record.of("IOptimizationProfile", "set_shape")
    assert [[shape[0] for shape in three] for _, *three in shapes] == [[1, 2, 4], [5, 6, 8]]


def test_layers_are_read_from_the_inspector_at_the_best_shapes_when_the_engine_opens(
    tensorrt: Tensorrt, tmp_path: Path
) -> None:
    facts = build(job(tmp_path))
    assert facts.source == INSPECTOR
    assert [layer.kind for layer in facts.layers] == ["kgen", "CaskConvolution"]
    assert facts.layers[1].nodes == ("conv", "relu")
    assert tensorrt.record.of("IExecutionContext", "set_input_shape") == [("image", (2, 3, 4, 4))]
    census = facts.census()
    assert census is not None
    assert census.compute == {"fp16": 1}
    written = facts.write(tmp_path / "model.plan")
    assert written.name == "engine.json"
    assert Facts.read(tmp_path / "model.plan") == facts


def test_timing_cache_is_kept_for_the_device_and_merged_when_another_build_ends(
    tensorrt: Tensorrt, tmp_path: Path
) -> None:
    build(job(tmp_path))
    (file,) = (tmp_path / "cache" / "timing").glob("*.cache")
    assert "NVIDIA-L4-8.9" in file.name
    assert tensorrt.module.__dict__["__version__"] in file.name
    assert file.read_bytes() == b"timings"
    build(job(tmp_path))
    cached = [data for (data,) in tensorrt.record.of("IBuilderConfig", "create_timing_cache")]
    assert cached == [b"", b"", b"timings", b"timings"]
    assert len(tensorrt.record.of("ITimingCache", "combine")) == 2


def test_timing_cache_starts_anew_when_the_file_is_of_no_use(tensorrt: Tensorrt, tmp_path: Path) -> None:
    file = tmp_path / "own.cache"
    file.write_bytes(b"garbage")
    tensorrt.record.answers["IBuilderConfig", "set_timing_cache"] = lambda cache, ignore: False
    build(job(tmp_path, timing_cache=str(file)))
    assert [data for (data,) in tensorrt.record.of("IBuilderConfig", "create_timing_cache")][:2] == [b"garbage", b""]
    assert not (tmp_path / "cache").exists()


def test_build_names_node_reason_and_mend_when_the_parser_refuses(tensorrt: Tensorrt, tmp_path: Path) -> None:
    trt: Any = tensorrt.module
    error = object.__new__(trt.ParserError)
    tensorrt.record.answers |= {
        ("OnnxParser", "parse_from_file"): False,
        ("OnnxParser", "num_errors"): 2,
        ("OnnxParser", "get_error"): lambda index: error,
        ("ParserError", "desc"): lambda: "Assertion failed: ok(x): Found unsupported input type of UINT8",
        ("ParserError", "node_name"): lambda: "blocks.0/dq",
        ("ParserError", "node_operator"): lambda: "DequantizeLinear",
        ("ParserError", "code"): lambda: trt.ErrorCode.UNSUPPORTED_NODE,
    }
    with pytest.raises(UnsupportedModel) as caught:
        build(job(tmp_path))
    assert "at the DequantizeLinear 'blocks.0/dq': Found unsupported input type of UINT8 (and 1 more)" in str(
        caught.value
    )
    assert "scheme tensorrt" in str(caught.value.fix)


@pytest.mark.parametrize(("visible", "device", "sees"), [("", 1, "1"), ("2,5", 1, "5"), ("2,5", 0, "2,5"), ("", 0, "")])
def test_builder_sees_the_gpu_that_was_named(
    visible: str, device: int, sees: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    building.see_only(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == sees


def test_build_fails_in_a_sentence_when_the_builder_gives_nothing(tensorrt: Tensorrt, tmp_path: Path) -> None:
    tensorrt.record.answers["Builder", "build_serialized_network"] = lambda network, config: None
    with pytest.raises(BackendError, match="builder refuses the graph"):
        build(job(tmp_path))
    assert not (tmp_path / "model.plan").exists()


# --- Uses of what 11.0 removed ----------------------------------------------------------------------------------------

Seed = Callable[[Any, Any], None]
REMOVED: dict[str, Seed] = {
    "BuilderFlag.FP16": lambda trt, config: config.set_flag(trt.BuilderFlag.FP16),
    "BuilderFlag.INT8": lambda trt, config: config.set_flag(trt.BuilderFlag.INT8),
    "OBEY_PRECISION_CONSTRAINTS": lambda trt, config: config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS),
    "int8_calibrator": lambda trt, config: setattr(config, "int8_calibrator", None),
    "EXPLICIT_BATCH": lambda trt, config: 1 << trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
    "TacticSource.CUBLAS": lambda trt, config: config.set_tactic_sources(1 << trt.TacticSource.CUBLAS),
    "OnnxParser.supports_model": lambda trt, config: object.__new__(trt.OnnxParser).supports_model(b""),
    "platform_has_fast_fp16": lambda trt, config: object.__new__(trt.Builder).platform_has_fast_fp16,
    "ICudaEngine.device_memory_size": lambda trt, config: object.__new__(trt.ICudaEngine).device_memory_size,
    "ITensor.set_dynamic_range": lambda trt, config: object.__new__(trt.ITensor).set_dynamic_range(-1.0, 1.0),
    "ILayer.precision": lambda trt, config: setattr(object.__new__(trt.ILayer), "precision", trt.DataType.HALF),
    "context without memory": lambda trt, config: object.__new__(
        trt.ICudaEngine
    ).create_execution_context_without_device_memory(),
}


@pytest.mark.parametrize("name", REMOVED)
def test_use_of_an_api_that_11_removed_fails_a_build_when_it_is_seeded(
    name: str, tensorrt: Tensorrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = building.configure

    def seeded(trt: Any, config: Any, job: Job) -> None:
        ours(trt, config, job)
        REMOVED[name](trt, config)

    monkeypatch.setattr(building, "configure", seeded)
    if tensorrt.module.__dict__["__version__"].startswith("11."):
        with pytest.raises(AttributeError):
            build(job(tmp_path))
    else:
        build(job(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda trt, config: config.set_flag(trt.BuilderFlag.TF32, 1),
        lambda trt, config: config.set_flag(trt.MemoryPoolType.WORKSPACE),
        lambda trt, config: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, "4G"),
        lambda trt, config: config.set_timing_cache(None, ignore=False),
    ],
)
def test_call_that_fits_no_signature_fails_a_build_when_it_is_seeded(
    wrong: Seed, tensorrt: Tensorrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "configure", lambda trt, config, job: wrong(trt, config))
    with pytest.raises(TypeError, match="fits no"):
        build(job(tmp_path))


# --- A session, on a stream that only keeps count ---------------------------------------------------------------------


class CountingLane(Lane):
    """Notes what is put on it; time passes by one millisecond a record."""

    def __init__(self) -> None:
        self.handle = 7
        self.log: list[str] = []
        self.clock = 0

    def buffer(self, size: int) -> Buffer:
        return Buffer(np.zeros(size, np.uint8), 1000 + size)

    def upload(self, buffer: Buffer, size: int) -> None:
        self.log.append(f"up {size}")

    def download(self, buffer: Buffer, size: int) -> None:
        self.log.append(f"down {size}")
        buffer.host[:size] = np.arange(size // 4, dtype=np.float32).view(np.uint8)

    def event(self) -> list[int]:
        return [0]

    def record(self, event: list[int]) -> None:
        self.clock += 1
        event[0] = self.clock

    def seconds(self, begin: list[int], end: list[int]) -> float:
        return (end[0] - begin[0]) / 1e3

    def synchronize(self) -> None:
        self.log.append("wait")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        self.log.append("captured")
        return lambda: self.log.append("launch")

    def close(self) -> None:
        self.log.append("closed")


def session(tensorrt: Tensorrt, **options: str) -> tuple[TensorRtSession, CountingLane]:
    trt: Any = tensorrt.module
    batch = [0]

    def set_input_shape(name: str, shape: tuple[int, ...]) -> bool:
        batch[0] = shape[0]
        return True

    tensorrt.record.answers |= {
        ("IExecutionContext", "set_input_shape"): set_input_shape,
        ("IExecutionContext", "infer_shapes"): list,
        ("IExecutionContext", "get_tensor_shape"): lambda name: (batch[0], *((3, 4, 4) if name == "image" else (5,))),
    }
    lane = CountingLane()
    engine = object.__new__(trt.ICudaEngine)
    return TensorRtSession(trt, engine, lambda: lane, EngineOptions.read(options), {"conv": "Conv"}), lane


def image(batch: int) -> dict[str, np.ndarray]:
    return {"image": np.ones((batch, 3, 4, 4), np.float32)}


def test_run_copies_in_enqueues_copies_out_and_waits(tensorrt: Tensorrt) -> None:
    opened, lane = session(tensorrt)
    got = opened.run(image(2))["logits"]
    assert lane.log == [f"up {2 * 48 * 4}", f"down {2 * 5 * 4}", "wait"]
    np.testing.assert_array_equal(got, np.arange(10, dtype=np.float32).reshape(2, 5))
    assert tensorrt.record.of("IExecutionContext", "execute_async_v3") == [(7,)]
    addresses = dict(tensorrt.record.of("IExecutionContext", "set_tensor_address"))
    assert addresses == {"image": 1000 + 2 * 48 * 4, "logits": 1000 + 2 * 5 * 4}
    opened.run(image(2))
    assert len(tensorrt.record.of("IExecutionContext", "set_input_shape")) == 1
    assert not np.shares_memory(got, opened.run(image(2))["logits"])


def test_run_changes_the_profile_when_the_shape_is_in_another(tensorrt: Tensorrt) -> None:
    opened, _ = session(tensorrt)
    for batch in (1, 6, 8, 4):
        assert opened.run(image(batch))["logits"].shape == (batch, 5)
    assert tensorrt.record.of("IExecutionContext", "set_optimization_profile_async") == [(1, 7), (0, 7)]
    with pytest.raises(UsageError, match="1x3x4x4 to 4x3x4x4; 5x3x4x4 to 8x3x4x4, not of 9x3x4x4"):
        opened.run(image(9))


def test_cuda_graph_is_captured_once_a_shape_and_anew_when_buffers_grow(tensorrt: Tensorrt) -> None:
    opened, lane = session(tensorrt, cuda_graph="1")
    for batch in (2, 2, 1, 2, 4, 2):
        opened.run(image(batch))
    assert lane.log.count("launch") == 6
    # 2, 1, then 4 takes larger buffers, so that 2 is recorded again.
    assert lane.log.count("captured") == 4


def test_parts_are_split_as_trtexec_does(tensorrt: Tensorrt) -> None:
    opened, _ = session(tensorrt)
    parts = opened.parts(image(1), 0.0)
    assert {name: len(samples) for name, samples in parts.items()} == dict.fromkeys(
        ("h2d", "compute", "d2h", "latency", "enqueue"), 10
    )
    assert parts["h2d"] == parts["compute"] == parts["d2h"] == [0.001] * 10
    assert parts["latency"] == [0.003] * 10


def test_resident_run_copies_once_and_waits_for_each(tensorrt: Tensorrt) -> None:
    opened, lane = session(tensorrt)
    run = opened.resident(image(2))
    begun = len(lane.log)
    run()
    run()
    assert [line.split()[0] for line in lane.log[:begun]] == ["up"]
    assert lane.log[begun:] == ["wait", "wait"]
    assert len(tensorrt.record.of("IExecutionContext", "execute_async_v3")) == 2
    assert opened.includes(transfers=False).startswith("no copies")


def test_includes_tells_whether_a_run_is_a_cuda_graph(tensorrt: Tensorrt) -> None:
    assert session(tensorrt)[0].includes().endswith("no CUDA graph; no preprocessing")
    assert session(tensorrt, cuda_graph="1")[0].includes().endswith("one CUDA graph a run; no preprocessing")


def test_smallest_is_what_the_first_profile_takes(tensorrt: Tensorrt) -> None:
    opened, _ = session(tensorrt)
    assert {name: array.shape for name, array in opened.smallest().items()} == {"image": (1, 3, 4, 4)}
    assert opened.run(opened.smallest())["logits"].shape == (1, 5)


def test_fork_runs_on_the_same_engine_with_a_context_of_its_own(tensorrt: Tensorrt) -> None:
    opened, _ = session(tensorrt)
    other = opened.fork()
    assert other.native is opened.native
    assert len(tensorrt.record.of("ICudaEngine", "create_execution_context")) == 2


def test_census_reads_the_engine_and_refuses_when_it_does_not_tell(tensorrt: Tensorrt) -> None:
    opened, lane = session(tensorrt)
    assert opened.census().compute == {"fp16": 1}
    tensorrt.record.answers["EngineInspector", "get_engine_information"] = json.dumps({"Layers": ["conv + relu"]})
    silent, _ = session(tensorrt)
    with pytest.raises(BackendError, match="does not tell"):
        silent.census()
    opened.close()
    assert lane.log == ["closed"]
    with pytest.raises(BackendError, match="closed"):
        opened.run(image(1))


def test_layer_seconds_are_means_over_the_runs(tensorrt: Tensorrt) -> None:
    opened, _ = session(tensorrt)
    heard: list[Any] = []

    def execute(handle: int) -> bool:
        profilers = tensorrt.record.of("IExecutionContext", "profiler")
        heard.append(profilers[-1][0])
        heard[-1].report_layer_time("conv", 2.0)
        return True

    tensorrt.record.answers["IExecutionContext", "execute_async_v3"] = execute
    assert opened.layer_seconds(image(1), runs=4) == {"conv": 0.002}
    assert len(heard) == 4
