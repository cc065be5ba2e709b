from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.errors import UsageError
from vitdeploy.graph.load import load
from vitdeploy.graph.save import save


def linear_proto(inner: int = 64, outer: int = 32) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((inner, outer)).astype(np.float32)
    bias = rng.standard_normal(outer).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"), helper.make_node("Add", ["h", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outer])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"b": "2", "a": "1"})
    return model


def run_file(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("external_above", [1 << 30, 0])
def test_save_keeps_weights_order_and_results_when_read_by_others(tmp_path: Path, external_above: int) -> None:
    proto = linear_proto()
    files = save(ir.from_proto(proto), tmp_path / "model.onnx", external_above=external_above)
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data"][: 1 if external_above else 2]
    onnx.checker.check_model(str(files[0]), full_check=True)
    again = onnx.load(str(files[0]))
    assert [t.name for t in again.graph.initializer] == ["w", "b"]
    for ours, theirs in zip(again.graph.initializer, proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    x = np.ones((3, 64), np.float32)
    w, b = (numpy_helper.to_array(t) for t in proto.graph.initializer)
    np.testing.assert_allclose(run_file(files[0], x), x @ w + b, rtol=1e-4)
    np.testing.assert_array_equal(load(files[0]).graph.initializers["w"].const_value.numpy(), w)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f.name for f in files]


def test_save_aligns_large_and_inlines_small_tensors_when_external(tmp_path: Path) -> None:
    model = ir.from_proto(linear_proto(inner=33, outer=32))
    odd = np.arange(999, dtype=np.float32)
    model.graph.register_initializer(ir.Value(name="odd", const_value=ir.tensor(odd, name="odd")))
    path, data = save(model, tmp_path / "m.onnx", external_above=0)
    tensors = {t.name: t for t in onnx.load(str(path), load_external_data=False).graph.initializer}
    places = {n: {e.key: e.value for e in t.external_data} for n, t in tensors.items()}
    assert places["b"] == {}
    assert places["w"] == {"location": "m.onnx.data", "offset": "0", "length": str(33 * 32 * 4)}
    assert int(places["odd"]["offset"]) == 8192
    assert data.read_bytes()[8192:] == odd.tobytes()


@pytest.mark.parametrize("external_above", [1 << 30, 0])
def test_save_gives_the_same_bytes_when_repeated_and_after_loading(tmp_path: Path, external_above: int) -> None:
    def written(model: ir.Model, name: str) -> list[bytes]:
        folder = tmp_path / name
        folder.mkdir()
        return [f.read_bytes() for f in save(model, folder / "model.onnx", external_above=external_above)]

    model = ir.from_proto(linear_proto())
    first = written(model, "a")
    assert first == written(model, "b") == written(load(tmp_path / "a" / "model.onnx"), "c")


def test_save_leaves_the_graph_as_it_was_when_done(tmp_path: Path) -> None:
    model = ir.from_proto(linear_proto())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    save(model, tmp_path / "m.onnx", external_above=0)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("external_above", [1 << 30, 0])
def test_save_keeps_bits_when_tensors_are_torch_half_bfloat_or_four_bit(tmp_path: Path, external_above: int) -> None:
    torch = pytest.importorskip("torch")
    from onnx_ir.tensor_adapters import TorchTensor

    half = torch.randn(40, 40).half().t()
    bfloat = torch.randn(1024).bfloat16()
    four = np.random.default_rng(0).integers(-8, 8, (63, 65)).astype(ir.DataType.INT4.numpy())
    tensors = {
        "half": TorchTensor(half),
        "bfloat": TorchTensor(bfloat),
        "four": ir.tensor(four, dtype=ir.DataType.INT4),
        "text": ir.tensor(["a", "bc"]),
        "scalar": ir.tensor(np.float32(3)),
        "none": ir.tensor(np.zeros((0, 4), np.float32)),
    }
    model = ir.from_proto(linear_proto())
    for name, tensor in tensors.items():
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
    path = save(model, tmp_path / "m.onnx", external_above=external_above)[0]
    read = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    np.testing.assert_array_equal(read["half"], half.numpy())
    np.testing.assert_array_equal(read["bfloat"].astype(np.float32), bfloat.float().numpy())
    np.testing.assert_array_equal(read["four"].astype(np.int8), four.astype(np.int8))
    assert read["text"].tolist() == ["a", "bc"] or read["text"].tolist() == [b"a", b"bc"]
    assert (read["scalar"].shape, read["scalar"]) == ((), 3)
    assert read["none"].shape == (0, 4)


def test_save_keeps_subgraph_weights_when_the_model_branches(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] a) <float[2] p = {1.0, 2.0}> { a = Identity(p) },
                else_branch = e () => (float[2] b) <float[2] q = {3.0, 4.0}> { b = Identity(q) }
            >
        }""")
    path = save(ir.from_proto(proto), tmp_path / "m.onnx")[0]
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"c": np.array(True)})[0].tolist() == [1, 2]
    assert session.run(None, {"c": np.array(False)})[0].tolist() == [3, 4]
    load(path)


def test_save_raises_usage_error_when_the_folder_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no_such_folder"):
        save(ir.from_proto(linear_proto()), tmp_path / "no_such_folder" / "m.onnx")


def test_save_raises_usage_error_when_an_initializer_has_no_value(tmp_path: Path) -> None:
    model = ir.from_proto(linear_proto())
    model.graph.initializers["w"].const_value = None
    with pytest.raises(UsageError, match="'w' has no value"):
        save(model, tmp_path / "m.onnx")


def test_save_refuses_when_it_would_replace_the_data_that_it_reads(tmp_path: Path) -> None:
    path = save(ir.from_proto(linear_proto()), tmp_path / "m.onnx", external_above=0)[0]
    before = [p.read_bytes() for p in sorted(tmp_path.iterdir())]
    with pytest.raises(UsageError, match="another folder"):
        save(load(path), path, external_above=0)
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir())] == before


@pytest.mark.skipif(sys.platform != "linux", reason="uses RLIMIT_FSIZE")
@pytest.mark.parametrize("external_above", [1 << 30, 0])
def test_save_leaves_nothing_new_when_the_disk_takes_only_a_part(tmp_path: Path, external_above: int) -> None:
    (tmp_path / "m.onnx").write_bytes(b"the old one")
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import onnx_ir as ir
from test_save import linear_proto
from vitdeploy.errors import UsageError
from vitdeploy.graph.save import save
from pathlib import Path
model = ir.from_proto(linear_proto(256, 256))
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    save(model, Path("m.onnx"), external_above={external_above})
except UsageError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "refused: Cannot write m.onnx" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"the old one"


@pytest.mark.parametrize("external_above", [1 << 30, 0])
def test_save_holds_at_most_one_weight_more_in_memory(tmp_path: Path, external_above: int) -> None:
    model = ir.from_proto(linear_proto())
    for i in range(6):
        tensor = ir.tensor(np.full((2 << 20,), i, np.float32), name=f"big{i}")
        proto = ir.to_proto(tensor)  # Read from a file, a weight is held by its protobuf message.
        model.graph.register_initializer(ir.Value(name=f"big{i}", const_value=ir.from_proto(proto)))
    save(model, tmp_path / "warm.onnx", external_above=external_above)
    tracemalloc.start()
    save(model, tmp_path / "m.onnx", external_above=external_above)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * (8 << 20)


@pytest.mark.slow
def test_save_and_load_work_when_the_weights_exceed_two_gigabytes(tmp_path: Path) -> None:
    weight = np.zeros((17408, 32768), np.float32)
    weight[-1, -1] = 5
    x = ir.Value(name="x", shape=ir.Shape([1, 17408]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    files = save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx")
    assert len(files) == 2
    assert run_file(files[0], np.ones((1, 17408), np.float32))[0, -1] == 5
    assert load(files[0]).graph.initializers["w"].const_value.numpy()[-1, -1] == 5
