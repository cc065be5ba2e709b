from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.backends import onnxruntime as backend_module
from vitdeploy.backends import ort_libraries
from vitdeploy.backends.base import RunOptions, Session
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.backends.ort_census import check_placement, count_typed, placement
from vitdeploy.errors import BackendError, MissingDependency, UsageError

RNG = np.random.default_rng(0)
BACKEND = OnnxRuntimeBackend()


def block(dtype: type = np.float32) -> onnx.ModelProto:
    """Conv (blocked layout applies), GELU by hand, MatMul, LayerNormalization, MatMul by a transpose: much to fuse."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["g"]),
        helper.make_node("Mul", ["c", "g"], ["silu"]),
        helper.make_node("Reshape", ["silu", "shape"], ["r"]),
        helper.make_node("LayerNormalization", ["r", "scale"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["m"]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["m", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    weights = {
        "k": RNG.standard_normal((32, 16, 3, 3)).astype(dtype),
        "scale": RNG.standard_normal(32).astype(dtype),
        "w": RNG.standard_normal((32, 24)).astype(dtype),
        "shape": np.array([0, 16, 32]),
    }
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", kind, [1, 16, 6, 6])],
        [helper.make_tensor_value_info("y", kind, [1, 16, 16])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized(fused: bool = True) -> onnx.ModelProto:
    """x @ w with Q/DQ pairs around x, w and (when fused) the product."""
    weights = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "ws": np.float32(0.02),
        "wz": np.int8(0),
        "w": RNG.integers(-127, 127, (64, 32)).astype(np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["m" if fused else "y"]),
    ]
    if fused:
        nodes.append(helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 32])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def opened(folder: Path, proto: onnx.ModelProto, options: RunOptions = RunOptions()) -> Session:  # noqa: B008 (frozen)
    return BACKEND.open(BACKEND.compile(ir.from_proto(proto), folder, options)[0], options)


def executed(folder: Path, proto: onnx.ModelProto, level: str) -> dict[str, Counter[str]]:
    """Op: {first floating-point type} over the kernels that ONNX Runtime's own profiler saw running."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    value = session.get_inputs()[0]
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.type]
    session.run(None, {value.name: np.ones(value.shape, dtype)})
    events = json.loads(Path(session.end_profiling()).read_text())
    seen: dict[str, Counter[str]] = {}
    for event in events:
        details = event.get("args", {})
        if "input_type_shape" in details:
            kinds = [k for t in (*details["input_type_shape"], *details["output_type_shape"]) for k in t]
            kind = next((k for k in kinds if k.startswith(("float", "double"))), kinds[0])
            seen.setdefault(details["op_name"], Counter())[kind] += 1
    return seen


@pytest.mark.parametrize("optimization", ["all", "extended", "basic", "off"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_census_equals_the_profiler_when_floats_run(tmp_path: Path, dtype: type, optimization: str) -> None:
    proto = block(dtype)
    census = opened(tmp_path, proto, RunOptions(optimization=optimization)).census()
    level = {"all": "ORT_ENABLE_ALL", "off": "ORT_DISABLE_ALL"}.get(optimization, f"ORT_ENABLE_{optimization.upper()}")
    names = {"fp32": "float", "fp16": "float16"}
    counted = {op: {names[kind]: n for kind, n in found.items()} for op, found in census.ops.items()}
    assert counted == executed(tmp_path, proto, level)
    assert census.compute == {"fp32": 3}


def test_census_tells_fp32_compute_and_casts_when_the_graph_is_fp16_on_the_cpu(tmp_path: Path) -> None:
    census = opened(tmp_path, block(np.float16)).census()
    assert census.compute == {"fp32": 3}
    assert census.casts > 0


def test_census_tells_int8_when_the_runtime_fuses_the_pairs(tmp_path: Path) -> None:
    assert opened(tmp_path, quantized()).census().compute == {"int8": 1}
    assert opened(tmp_path, quantized(fused=False)).census().compute == {"int8": 1}


def test_census_tells_fp32_when_the_pairs_stay_unfused(tmp_path: Path) -> None:
    census = opened(tmp_path, quantized(), RunOptions(optimization="off")).census()
    assert census.compute == {"fp32": 1}
    assert census.ops["QuantizeLinear"] == {"fp32": 2}


def test_census_looks_into_branches_when_the_model_has_them(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (bool c, float[4,4] x) => (float[4,4] y) {
            y = If (c) <
                then_branch = t () => (float[4,4] a) { a = MatMul(x, x) },
                else_branch = e () => (float[4,4] b) { b = Identity(x) }
            >
        }""")
    assert opened(tmp_path, proto).census().compute == {"fp32": 1}


def test_census_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = opened(tmp_path, block())
    session.census()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_open_raises_missing_dependency_when_the_wheel_lacks_the_provider(tmp_path: Path) -> None:
    file = BACKEND.compile(ir.from_proto(block()), tmp_path, RunOptions())[0]
    for options in (RunOptions(device="cuda:1"), RunOptions(provider="tensorrt"), RunOptions(device="directml")):
        with pytest.raises(MissingDependency) as caught:
            BACKEND.open(file, options)
        assert (caught.value.fix or "").startswith("pip install onnxruntime-")


@pytest.mark.parametrize("device", ["cuda:x", "cpu:1", "gpu", "cuda:"])
def test_open_raises_when_the_device_is_no_device(tmp_path: Path, device: str) -> None:
    file = BACKEND.compile(ir.from_proto(block()), tmp_path, RunOptions())[0]
    with pytest.raises((UsageError, MissingDependency)):
        BACKEND.open(file, RunOptions(device=device))
    with pytest.raises(UsageError, match="cannot run on"):
        BACKEND.open(file, RunOptions(device="cuda", provider="cpu"))


def test_providers_carry_the_device_number_and_fall_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    short, chain = backend_module._providers(
        RunOptions(device="cuda:1", provider="tensorrt", provider_options={"trt_fp16_enable": "0"})
    )
    assert short == "tensorrt"
    assert chain == [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "0", "device_id": "1"}),
        ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}),
        "CPUExecutionProvider",
    ]


def test_tf32_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert backend_module._providers(RunOptions("cuda"))[1][0][1] == {"use_tf32": "0"}
    asked = RunOptions("cuda", provider_options={"use_tf32": "1"})
    assert backend_module._providers(asked)[1][0][1] == {"use_tf32": "1"}


@pytest.mark.parametrize("key", ["trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable"])
def test_tensorrt_is_not_let_choose_precisions(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    with pytest.raises(UsageError, match=key):
        backend_module._providers(RunOptions("cuda", provider="tensorrt", provider_options={key: "True"}))


def test_open_raises_missing_dependency_when_the_provider_falls_back_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BACKEND.compile(ir.from_proto(block()), tmp_path, RunOptions())[0]
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        ort, "InferenceSession", lambda path, options, **_: real(path, options, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(MissingDependency, match="has the cuda provider but cannot use it"):
        BACKEND.open(file, RunOptions(device="cuda"))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("libcuda.so.1", "Install NVIDIA's driver"),
        ("libcudnn.so.9", r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"),
        ("libnvinfer.so.10", "pip install 'tensorrt<11'"),
        ("libelse.so.1", "Install the libraries that onnxruntime-gpu needs"),
    ],
)
def test_open_names_the_library_and_what_brings_it_when_one_is_missing(
    missing: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BACKEND.compile(ir.from_proto(block()), tmp_path, RunOptions())[0]
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").touch()
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))

    def load(name: str, **_: object) -> None:
        if "shared" not in name:
            raise OSError(f"{missing}: cannot open shared object file: No such file or directory")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Please install the libraries\nas mentioned somewhere")

    monkeypatch.setattr(ort_libraries.ctypes, "CDLL", load)
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(MissingDependency, match=f"cannot use it: {missing}: cannot open") as caught:
        BACKEND.open(file, RunOptions("cuda", provider="tensorrt"))
    assert re.match(says, caught.value.fix or "")
    assert "\n" not in str(caught.value)


def test_open_raises_missing_dependency_when_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = BACKEND.compile(ir.from_proto(block()), tmp_path, RunOptions())[0]
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(MissingDependency, match="no CUDA-capable device"):
        BACKEND.open(file, RunOptions("cuda"))


@pytest.mark.parametrize("found", [True, False])
def test_pytorchs_libraries_are_taken_when_onnxruntime_finds_none(found: bool, tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    code = (
        "import ctypes, sys\n"
        "from vitdeploy.backends import ort_libraries\n"
        "def load(name):\n"
        f"    if not {found}: raise OSError(name)\n"
        "ctypes.CDLL = load\n"
        "ort_libraries.load_cuda()\n"
        "print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(not found)


def recorded(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry(backend_module.RECORD, "1")
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_compute_on_the_cpu_is_an_error_when_a_gpu_was_asked_for() -> None:
    with pytest.raises(BackendError, match=r"3 of 3 compute ops have no kernel on cuda.*1 Conv, 2 MatMul"):
        check_placement(recorded(block()), "cuda")


def test_ops_on_the_cpu_are_no_error_when_they_multiply_nothing() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n,4] x) => (int64[2] y) { y = Shape(x) }""")
    native = recorded(proto)
    assert sum(sum(ops.values()) for ops in placement(native).values()) == 1
    check_placement(native, "cuda")


def test_census_is_of_the_graphs_types_when_tensorrt_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        ep_name = "TensorrtExecutionProvider"

        def get_nodes(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(op_type="MatMul")] * 8

    part = Part()
    other = SimpleNamespace(ep_name="CUDAExecutionProvider", get_nodes=lambda: [SimpleNamespace(op_type="Softmax")])
    native = SimpleNamespace(get_provider_graph_assignment_info=lambda: [part, other])
    census = count_typed(block(np.float16), native)
    assert census.compute == {"fp16": 3}
    assert census.source.endswith("8 of 9 nodes are TensorRT's")
    assert count_typed(block(), native).compute == {"tf32": 3}
    assert count_typed(block(), native).ops["Softmax"] == {"fp32": 1}
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert count_typed(block(), native).compute == {"fp32": 3}
    with pytest.raises(BackendError, match="does not tell which products"):
        count_typed(quantized(), native)


def test_capabilities_tell_the_fix_when_onnxruntime_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from vitdeploy.backends.registry import get\n"
        "print(get('onnxruntime').capabilities())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "installed=False" in done.stdout
    assert "pip install onnxruntime" in done.stdout


def test_open_raises_backend_error_with_the_node_when_the_runtime_refuses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = block()
    proto.graph.node[1].op_type = "NoSuchOp"
    proto.graph.node[1].name = "the_culprit"
    with pytest.raises(BackendError, match="NoSuchOp") as caught:
        opened(tmp_path, proto)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_run_raises_backend_error_with_the_node_when_a_kernel_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n,m] x, int64[k] shape) => (float[a,b] y) { y = Reshape(x, shape) }""")
    proto.graph.node[0].name = "the_culprit"
    session = opened(tmp_path, proto)
    with pytest.raises(BackendError, match="the_culprit"):
        session.run({"x": np.ones((2, 3), np.float32), "shape": np.array([5, 5])})
    assert capfd.readouterr() == ("", "")


def test_open_refuses_when_external_data_leads_outside(tmp_path: Path) -> None:
    proto = block()
    tensor = proto.graph.initializer[0]
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    (tmp_path / "model").mkdir()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UsageError, match="outside the model's folder"):
        BACKEND.open(path, RunOptions())


def test_unnamed_dynamic_dimensions_are_not_held_equal_when_shapes_differ(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[?,?] x) => (float[?,?] y) { y = Neg(x) }""")
    session = opened(tmp_path, proto)
    assert session.run({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


def test_scalars_keep_their_shape_when_fed(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float x) => (float y) { y = Neg(x) }""")
    assert opened(tmp_path, proto).run({"x": np.float32(2).reshape(())})["y"] == -2


@pytest.mark.slow
def test_backend_and_census_work_when_the_weights_exceed_two_gigabytes(tmp_path: Path) -> None:
    x = ir.Value(name="x", shape=ir.Shape([1, 17408]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(np.ones((17408, 32768), np.float32), name="w"))
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    files = BACKEND.compile(ir.Model(graph, ir_version=10), tmp_path, RunOptions())
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    with BACKEND.open(files[0], RunOptions()) as session:
        assert session.run({"x": np.ones((1, 17408), np.float32)})["y"][0, 0] == 17408
        assert session.census().compute == {"fp32": 1}


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_weights_are_dequantised_once_when_nothing_else_is_quantised(op: str, tmp_path: Path) -> None:
    shape = (64, 32) if op == "MatMul" else (32, 64, 1, 1)
    axis = 1 if op == "MatMul" else 0
    w = RNG.integers(-127, 127, shape).astype(np.int8)
    step = RNG.random(32).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["dw"], axis=axis),
        helper.make_node(op, ["x", "dw"], ["y"]),
    ]
    x = RNG.standard_normal((8, 64) if op == "MatMul" else (1, 64, 4, 4)).astype(np.float32)
    out = [8, 32] if op == "MatMul" else [1, 32, 4, 4]
    graph = helper.make_graph(
        nodes,
        "packed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(step, "s")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with opened(tmp_path, proto) as session:
        census = session.census()
        got = session.run({"x": x})["y"]
    assert census.compute == {"fp32": 1}
    assert "DequantizeLinear" not in census.ops
    wide = w.astype(np.float64) * step.reshape((1, -1) if op == "MatMul" else (-1, 1, 1, 1))
    want = x @ wide if op == "MatMul" else np.einsum("nchw,oc->nohw", x, wide[:, :, 0, 0])
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
