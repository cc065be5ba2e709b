from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.backends import openvino as backend_module
from vitdeploy.backends.base import Backend, RunOptions, Session
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.backends.openvino import OpenVinoBackend
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError
from vitdeploy.quantize.weight_only import to_weight_only

RNG = np.random.default_rng(0)
BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}


@pytest.fixture
def backend() -> Backend:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return OpenVinoBackend()


def parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return proto


def opened(backend: Backend, folder: Path, proto: onnx.ModelProto, **options: Any) -> Session:
    options = {"device": "cpu", **options}
    return backend.open(backend.compile(ir.from_proto(proto), folder, RunOptions())[0], RunOptions(**options))


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def transformer(batch: int | str = "b", dtype: type = np.float32) -> onnx.ModelProto:
    """A patch embedding, attention over four heads, and an MLP: all that a vision transformer multiplies."""
    kind = "float" if dtype is np.float32 else "float16"
    weights: dict[str, np.ndarray] = {"kernel": normal(64, 3, 4, 4) / 7, "ones": np.ones(64)}
    weights |= {name: normal(64, 64) / 8 for name in ("wq", "wk", "wv", "wo", "w1")}
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    weights |= {"flat": np.array([0, 64, -1]), "heads": np.array([0, 0, 4, 16]), "joined": np.array([0, 0, 64])}
    return parsed(
        f"""g ({kind}[{batch}, 3, 32, 32] image) => ({kind}[{batch}, 64, 64] logits) {{
            c = Conv<strides = [4, 4]>(image, kernel)
            r = Reshape(c, flat)
            t = Transpose<perm = [0, 2, 1]>(r)
            n = LayerNormalization<axis = -1>(t, ones)
            q = MatMul(n, wq)    k = MatMul(n, wk)    v = MatMul(n, wv)
            qr = Reshape(q, heads)    kr = Reshape(k, heads)    vr = Reshape(v, heads)
            qt = Transpose<perm = [0, 2, 1, 3]>(qr)
            kt = Transpose<perm = [0, 2, 3, 1]>(kr)
            vt = Transpose<perm = [0, 2, 1, 3]>(vr)
            s = MatMul(qt, kt)
            p = Softmax(s)
            a = MatMul(p, vt)
            at = Transpose<perm = [0, 2, 1, 3]>(a)
            ar = Reshape(at, joined)
            o = MatMul(ar, wo)
            m = MatMul(o, w1)
            g = Gelu(m)
            logits = Add(g, t)
        }}""",
        **weights,
    )


def quantized(activations: bool = True, weights: bool = True) -> onnx.ModelProto:
    """x @ w with Q/DQ pairs around x and w."""
    values: dict[str, Any] = {"s": np.float32(0.02), "z": np.uint8(128), "ws": np.full(128, 0.01, np.float32)}
    integers = RNG.integers(-127, 127, (256, 128)).astype(np.int8)
    lines = ["q = QuantizeLinear(x, s, z)", "a = DequantizeLinear(q, s, z)"] if activations else []
    if weights:
        values |= {"wi": integers, "wz": np.zeros(128, np.int8)}
        lines.append("w = DequantizeLinear<axis = 1>(wi, ws, wz)")
    else:
        values["w"] = integers.astype(np.float32) * np.float32(0.01)
    lines.append(f"y = MatMul({'a' if activations else 'x'}, w)")
    text = "\n".join(lines)
    return parsed(
        f"g (float[b, 16, 256] x) => (float[b, 16, 128] y) {{ {text} }}",
        **{name: np.asarray(value) for name, value in values.items()},
    )


def quantized_attention(softmax: bool = True) -> onnx.ModelProto:
    """Attention over int8 q, k and v; the scores after the softmax are uint8 or stay float."""
    weights = {"s": np.float32(0.02), "z": np.int8(0), "ps": np.float32(1 / 255), "pz": np.uint8(0)}
    pair = "pq = QuantizeLinear(p0, ps, pz) p = DequantizeLinear(pq, ps, pz)" if softmax else "p = Identity(p0)"
    return parsed(
        f"""g (float[1, 4, 64, 16] q0, float[1, 4, 16, 64] k0, float[1, 4, 64, 16] v0) => (float[1, 64, 4, 16] y) {{
            qq = QuantizeLinear(q0, s, z)    q = DequantizeLinear(qq, s, z)
            kq = QuantizeLinear(k0, s, z)    k = DequantizeLinear(kq, s, z)
            vq = QuantizeLinear(v0, s, z)    v = DequantizeLinear(vq, s, z)
            sc = MatMul(q, k)
            p0 = Softmax(sc)
            {pair}
            a = MatMul(p, v)
            y = Transpose<perm = [0, 2, 1, 3]>(a)
        }}""",
        **{name: np.asarray(value) for name, value in weights.items()},
    )


def island() -> onnx.ModelProto:
    """Three fp16 products, the middle one in fp32 on purpose: its result would overflow fp16."""
    weights = {name: normal(64, 64).astype(np.float16) for name in "ac"} | {"big": np.eye(64, dtype=np.float32) * 1e5}
    return parsed(
        """g (float16[b, 8, 64] x) => (float16[b, 8, 64] y) {
            m = MatMul(x, a)
            w = Cast<to = 1>(m)
            l = MatMul(w, big)
            p = Softmax(l)
            h = Cast<to = 10>(p)
            y = MatMul(h, c)
        }""",
        **weights,
    )


def run_both(backend: Backend, folder: Path, proto: onnx.ModelProto, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """By OpenVINO, and by ONNX Runtime as the graph is written."""
    plain = {"optimization": "off"}
    with opened(backend, folder, proto) as session, opened(OnnxRuntimeBackend(), folder, proto, **plain) as other:
        (spec,) = session.inputs
        shape = [batch, *map(int, spec.shape[1:])]
        feeds = {spec.name: np.random.default_rng(1).standard_normal(shape).astype(spec.dtype)}
        return next(iter(session.run(feeds).values())), next(iter(other.run(feeds).values()))


@pytest.mark.parametrize("batch", [1, 3])
def test_run_equals_onnxruntime_when_the_graph_is_fp32(backend: Backend, tmp_path: Path, batch: int) -> None:
    got, expected = run_both(backend, tmp_path, transformer(), batch)
    assert got.shape == (batch, 64, 64)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_run_equals_onnxruntime_when_the_batch_is_fixed(backend: Backend, tmp_path: Path) -> None:
    got, expected = run_both(backend, tmp_path, transformer(2), 2)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_run_equals_onnxruntime_when_only_weights_are_int8(backend: Backend, tmp_path: Path) -> None:
    """OpenVINO's own default would quantise the activations too, an error of a percent."""
    got, expected = run_both(backend, tmp_path, quantized(activations=False), 2)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_session_serves_another_batch_when_the_batch_is_dynamic(backend: Backend, tmp_path: Path) -> None:
    image = normal(5, 3, 32, 32)
    with opened(backend, tmp_path, transformer("n")) as session:
        whole = session.run({"image": image})["logits"]
        for size in (1, 4, 2):
            part = session.run({"image": image[:size]})["logits"]
            np.testing.assert_allclose(part, whole[:size], rtol=1e-4, atol=1e-5)


def test_census_counts_each_fused_attention_once_when_all_is_fp32(backend: Backend, tmp_path: Path) -> None:
    census = opened(backend, tmp_path, transformer(1)).census()
    fused = census.ops.get("Subgraph(MatMul)", {}).get("fp32", 0)
    # Eight products and a convolution; the two of attention may be one node.
    assert census.compute == {"fp32": 8 - fused}
    assert census.casts == 0
    assert not {"Const", "Input", "Output"} & set(census.ops)


def test_census_tells_int8_when_both_sides_are_quantised(backend: Backend, tmp_path: Path) -> None:
    assert opened(backend, tmp_path, quantized()).census().compute == {"int8": 1}


@pytest.mark.parametrize("kept", ["activations", "weights"])
def test_census_tells_fp32_when_one_side_alone_is_quantised(backend: Backend, tmp_path: Path, kept: str) -> None:
    proto = quantized(activations=kept == "activations", weights=kept == "weights")
    assert opened(backend, tmp_path, proto).census().compute == {"fp32": 1}


def packed(inner: int, outputs: int, precision: str = "", bits: int = 8) -> onnx.ModelProto:
    """x @ w with the weights alone in int8, or in blocks of 32 in 4 bits; `precision` as vitdeploy notes it."""
    proto = parsed(
        f"g (float[b, 16, {inner}] x) => (float[b, 16, {outputs}] y) {{ y = MatMul(x, w) }}", w=normal(inner, outputs)
    )
    proto.opset_import[0].version = 21
    proto.metadata_props.add(key="vitdeploy.precision", value=precision)
    model = ir.from_proto(proto)
    to_weight_only(model, bits)
    return ir.to_proto(model)


def test_census_finds_out_what_the_device_quantises_by_itself(backend: Backend, tmp_path: Path) -> None:
    options = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
    assert opened(backend, tmp_path, packed(256, 128)).census().compute == {"fp32": 1}
    assert opened(backend, tmp_path, packed(256, 128), provider_options=options).census().compute == {"int8": 1}
    narrow, x = packed(16, 64), normal(2, 16, 16)
    results = []
    for settings in ({}, options):
        with opened(backend, tmp_path, narrow, provider_options=settings) as session:
            assert session.census().compute == {"fp32": 1}
            results.append(session.run({"x": x})["y"])
    assert np.array_equal(*results)  # the census is right: nothing was rounded to 8 bits


def test_census_does_not_guess_when_four_bits_may_be_multiplied_by_eight(backend: Backend, tmp_path: Path) -> None:
    options = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
    assert opened(backend, tmp_path, packed(64, 32, bits=4)).census().compute == {"fp32": 1}
    census = opened(backend, tmp_path, packed(64, 32, bits=4), provider_options=options).census()
    assert census.compute == {"unknown": 1}


def test_file_for_dynamic_int8_is_quantised_at_run_time_however_it_is_opened(backend: Backend, tmp_path: Path) -> None:
    proto, x = packed(256, 128, "int8-dynamic"), normal(2, 16, 256)
    with opened(backend, tmp_path, proto) as session:
        got, census = session.run({"x": x})["y"], session.census()
    with opened(backend, tmp_path, proto, provider_options={"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}) as session:
        exact, refused = session.run({"x": x})["y"], session.census()
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert 1e-3 < error < 2e-2
    assert census.compute == {"int8": 1}
    assert refused.compute == {"fp32": 1}


def test_file_for_bf16_runs_in_it_however_it_is_opened(backend: Backend, tmp_path: Path) -> None:
    if "bf16" not in backend.capabilities().precisions:
        pytest.skip("this CPU has no bf16")
    proto = transformer(1)
    assert set(opened(backend, tmp_path, proto).census().compute) == {"fp32"}
    proto.metadata_props.add(key="vitdeploy.precision", value="bf16")
    assert set(opened(backend, tmp_path, proto).census().compute) == {"bf16"}


def test_file_for_bf16_is_refused_when_the_device_has_none() -> None:
    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    with pytest.raises(UnsupportedModel, match="bf16, which cpu has no instructions for"):
        backend_module._settings(core, "CPU", RunOptions(), "bf16")


def test_census_tells_fp32_when_a_product_of_fused_attention_is_float(backend: Backend, tmp_path: Path) -> None:
    compute = opened(backend, tmp_path, quantized_attention(softmax=False)).census().compute
    assert compute.get("fp32", 0) >= 1
    compute = opened(backend, tmp_path, quantized_attention()).census().compute
    assert compute in ({"int8": 1}, {"int8": 2})


def test_census_finds_fused_products_when_what_follows_took_their_names(backend: Backend, tmp_path: Path) -> None:
    proto = transformer(1)
    for position, (value, scaled) in enumerate({"s": "s_scaled", "a": "a_scaled"}.items()):
        index = next(i for i, node in enumerate(proto.graph.node) if value in node.output)
        for node in proto.graph.node:
            node.input[:] = [scaled if name == value else name for name in node.input]
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.5 + position), f"factor{position}"))
        proto.graph.node.insert(index + 1, helper.make_node("Mul", [value, f"factor{position}"], [scaled]))
    census = opened(backend, tmp_path, proto).census()
    assert census.compute == {"fp32": 8 - census.ops.get("Subgraph(MatMul)", {}).get("fp32", 0)}


def test_graph_keeps_its_precisions_when_it_is_fp16_with_an_fp32_island(backend: Backend, tmp_path: Path) -> None:
    proto = island()
    with opened(backend, tmp_path, proto) as session:
        assert np.isfinite(session.run({"x": normal(2, 8, 64).astype(np.float16)})["y"]).all()
        census = session.census()
    if backend.capabilities().precisions["fp16"] == "fp16 compute":
        assert census.compute == {"fp16": 2, "fp32": 1}
    else:
        assert set(census.compute) == {"fp32"}
    assert census.casts == 2


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits the instructions of an x86 CPU")
def test_census_and_capabilities_tell_fp32_compute_when_the_cpu_has_no_fp16(backend: Backend, tmp_path: Path) -> None:
    file = backend.compile(ir.from_proto(transformer(1, np.float16)), tmp_path, RunOptions())[0]
    code = (
        "import sys; from pathlib import Path\n"
        "from vitdeploy.backends.base import RunOptions; from vitdeploy.backends.registry import get\n"
        "backend = get('openvino')\n"
        "print(backend.capabilities().precisions['fp16'])\n"
        "print(*backend.open(Path(sys.argv[1]), RunOptions()).census().compute)"
    )
    limited = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=limited)
    assert done.stdout.split("\n")[:2] == ["fp32 compute", "fp32"]


def test_census_tells_bf16_when_the_option_asks_for_it(backend: Backend, tmp_path: Path) -> None:
    if "bf16" not in backend.capabilities().precisions:
        pytest.skip("this CPU has no bf16")
    census = opened(backend, tmp_path, transformer(1), provider_options=BF16).census()
    assert set(census.compute) == {"bf16"}
    assert census.casts > 0


def test_census_ignores_what_runs_once_when_weights_are_converted(backend: Backend, tmp_path: Path) -> None:
    if "bf16" not in backend.capabilities().precisions:
        pytest.skip("this CPU has no bf16")
    proto = parsed("g (float[2, 64] x) => (float[2, 64] y) { y = MatMul(x, w) }", w=normal(64, 64))
    census = opened(backend, tmp_path, proto, provider_options=BF16).census()
    assert census.compute == {"bf16": 1}
    assert census.casts <= 2  # the input and the output, not the weights


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"NO_SUCH_PROPERTY": "1"}, "NO_SUCH_PROPERTY=1: .*Unsupported property"),
        ({"NUM_STREAMS": "many"}, "NUM_STREAMS=many: "),
        ({"FULL_DEVICE_NAME": "x"}, "FULL_DEVICE_NAME"),
    ],
)
def test_open_raises_usage_error_with_the_reason_when_a_provider_option_is_wrong(
    backend: Backend, tmp_path: Path, options: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        opened(backend, tmp_path, quantized(), provider_options=options)
    assert "\n" not in str(caught.value)
    assert "Exception from" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "cpu:1", "gpu:", "gpu:x", "auto", "CPU"])
def test_open_raises_usage_error_when_the_device_is_none_of_openvinos(
    backend: Backend, tmp_path: Path, device: str
) -> None:
    with pytest.raises(UsageError, match="knows no device"):
        opened(backend, tmp_path, quantized(), device=device)


def test_open_raises_usage_error_when_an_option_is_onnxruntimes(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no provider 'cuda'"):
        opened(backend, tmp_path, quantized(), provider="cuda")
    with pytest.raises(UsageError, match="'basic'"):
        opened(backend, tmp_path, quantized(), optimization="basic")


def test_open_raises_missing_dependency_when_the_device_is_not_here(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="finds no gpu:63") as caught:
        opened(backend, tmp_path, quantized(), device="gpu:63")
    assert "Install" in (caught.value.fix or "")


def test_open_raises_backend_error_with_the_op_when_the_runtime_refuses(
    backend: Backend, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = quantized()
    proto.graph.node[-1].op_type = "NoSuchOp"
    with pytest.raises(BackendError, match="NoSuchOp") as caught:
        opened(backend, tmp_path, proto)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


MISFITS = {
    "matmul": ("float[n, m] x, float[k, l] z", "MatMul(x, z)", [(2, 3), (3, 4)], [(2, 3), (5, 4)]),
    "reshape": ("float[n, m] x", "Reshape(x, shape)", [(2, 3)], [(3, 3)]),  # a batch of two, traced into the graph
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("misfit", MISFITS)
def test_run_raises_backend_error_with_the_node_when_shapes_do_not_fit_within(
    backend: Backend, tmp_path: Path, capfd: pytest.CaptureFixture[str], misfit: str, threads: int
) -> None:
    inputs, op, right, wrong = MISFITS[misfit]
    proto = parsed(f"g ({inputs}) => (float[a, b] y) {{ m = {op}    y = Softmax(m) }}")
    if misfit == "reshape":
        proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "shape"))
    proto.graph.node[0].name = "the_culprit"
    session = opened(backend, tmp_path, proto, threads=threads)
    good, bad = (
        {spec.name: np.ones(shape, np.float32) for spec, shape in zip(session.inputs, shapes, strict=True)}
        for shapes in (right, wrong)
    )
    for _ in range(2):
        with pytest.raises(BackendError, match="the_culprit") as caught:
            session.run(bad)
        assert "\n" not in str(caught.value)
        assert ".cpp" not in str(caught.value)
        assert session.run(good)["y"].shape[0] == 2
    assert capfd.readouterr() == ("", "")


def test_open_refuses_when_external_data_leads_outside(backend: Backend, tmp_path: Path) -> None:
    proto = transformer()
    tensor = proto.graph.initializer[0]
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    (tmp_path / "model").mkdir()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UsageError, match="outside the model's folder"):
        backend.open(path, RunOptions())


def test_specs_keep_names_and_order_when_outputs_are_one_tensor(backend: Backend, tmp_path: Path) -> None:
    proto = parsed("""g (float[b, 2] x) => (float[b, 2] z, float[b, 2] a, float[b, 2] y) {
        y = Neg(x)    z = Identity(y)    a = Identity(z) }""")
    session = opened(backend, tmp_path, proto)
    assert [spec.name for spec in session.outputs] == ["z", "a", "y"]
    got = session.run({"x": np.ones((1, 2), np.float32)})
    got["z"][...] = 0
    assert (got["a"] == -1).all()


def test_specs_tell_numpy_types_when_inputs_are_no_float32(backend: Backend, tmp_path: Path) -> None:
    proto = parsed("""g (int64[b, 2] i, bool[2] m, float16[2] h) => (int64[b, 2] y, bool[2] k, float16[2] e) {
        y = Neg(i)    k = Not(m)    e = Neg(h) }""")
    session = opened(backend, tmp_path, proto)
    assert [spec.dtype for spec in session.inputs] == ["int64", "bool", "float16"]
    feeds = {"i": np.ones((3, 2), np.int64), "m": np.array([True, False]), "h": np.ones(2, np.float16)}
    assert [value.dtype.name for value in session.run(feeds).values()] == ["int64", "bool", "float16"]


def test_unnamed_dynamic_dimensions_are_not_held_equal_when_shapes_differ(backend: Backend, tmp_path: Path) -> None:
    session = opened(backend, tmp_path, parsed("g (float[?, ?] x) => (float[?, ?] y) { y = Neg(x) }"))
    assert session.run({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


def test_scalars_and_read_only_arrays_are_taken_when_fed(backend: Backend, tmp_path: Path) -> None:
    scalar = opened(backend, tmp_path, parsed("g (float x) => (float y) { y = Neg(x) }"))
    assert scalar.run({"x": np.float32(2).reshape(())})["y"] == np.float32(-2)
    image = normal(1, 3, 32, 32)
    image.flags.writeable = False
    assert opened(backend, tmp_path, transformer()).run({"image": image})["logits"].shape == (1, 64, 64)


def test_capabilities_name_devices_and_how_each_precision_runs(backend: Backend) -> None:
    found = backend.capabilities()
    assert found.installed
    assert "cpu" in found.devices
    assert found.version
    assert found.version[0].isdigit()
    assert "-" not in found.version
    assert {"fp32", "fp16", "int8"} <= set(found.precisions)
    assert all("compute" in how for how in found.precisions.values())


def test_capabilities_tell_devices_apart_when_they_compute_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    can = {
        "CPU": ["FP32", "INT8", "BF16"],
        "GPU.1": ["FP32", "FP16", "INT8"],
        "GPU.0": ["FP32", "FP16", "INT8"],
        "NPU": ["FP16", "INT8"],
        "FPGA": ["FP11"],
    }
    core = SimpleNamespace(available_devices=list(can), get_property=lambda device, _: can[device])
    module = SimpleNamespace(__version__="2026.1.0-1-abc", Core=lambda: core)
    monkeypatch.setitem(sys.modules, "openvino", module)
    found = OpenVinoBackend().capabilities()
    assert found.devices == ("gpu:0", "gpu:1", "cpu", "npu")
    assert found.precisions == {
        "fp32": "fp32 compute on gpu:0 and gpu:1 and cpu, fp16 compute on npu",
        "fp16": "fp16 compute on gpu:0 and gpu:1 and npu, fp32 compute on cpu",
        "bf16": "bf16 compute",
        "int8": "int8 compute",
        "int8+bf16": "int8 compute, the rest bf16 compute",
        "int8-dynamic": "int8 compute in linear layers",
        "int8-weights": "int8 storage, fp32 compute",
        "int4-weights": "int4 storage, fp32 compute",
    }
    for device, name in {"gpu": "GPU", "gpu:1": "GPU.1", "cpu": "CPU"}.items():
        assert backend_module._device(core, RunOptions(device=device)) == name


@pytest.mark.parametrize("error", [ImportError("No module named 'openvino'"), OSError("libtbb.so.12 is missing")])
def test_backend_names_the_install_command_when_the_package_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Refuses:
        def find_spec(self, name: str, *_: object) -> None:
            if name.split(".")[0] == "openvino":
                raise error

    for name in [name for name in sys.modules if name.split(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    backend = OpenVinoBackend()
    found = backend.capabilities()
    assert not found.installed
    assert str(error) in found.reason
    assert found.fix == "pip install 'vitdeploy[openvino]'"
    file = backend.compile(ir.from_proto(quantized()), tmp_path, RunOptions())[0]
    with pytest.raises(MissingDependency) as caught:
        backend.open(file, RunOptions())
    assert caught.value.fix == found.fix


@pytest.mark.slow
def test_backend_and_census_work_when_the_weights_exceed_two_gigabytes(backend: Backend, tmp_path: Path) -> None:
    x = ir.Value(name="x", shape=ir.Shape([1, 17408]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(np.ones((17408, 32768), np.float32), name="w"))
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    files = backend.compile(ir.Model(graph, ir_version=10), tmp_path, RunOptions())
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    with backend.open(files[0], RunOptions()) as session:
        assert session.run({"x": np.ones((1, 17408), np.float32)})["y"][0, 0] == 17408
        assert session.census().compute == {"fp32": 1}
