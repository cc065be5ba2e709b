from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.errors import BackendError, UsageError
from vitdeploy.graph.load import load
from vitdeploy.graph.run import Probe, values
from vitdeploy.graph.save import save

RNG = np.random.default_rng(0)
W = RNG.standard_normal((64, 48)).astype(np.float32)
B = RNG.standard_normal(48).astype(np.float32)
X = RNG.standard_normal((3, 64)).astype(np.float32)


def model(dtype: int = TensorProto.FLOAT) -> ir.Model:
    """y = relu(x @ w + b), batch dynamic, no value types noted in between."""
    cast = [helper.make_node("Cast", ["h"], ["c"], to=dtype), helper.make_node("Cast", ["c"], ["d"], to=1)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            *cast,
            helper.make_node("Add", ["d", "b"], ["s"]),
            helper.make_node("Relu", ["s"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48])],
        [numpy_helper.from_array(W, "w"), numpy_helper.from_array(B, "b")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize("chunk_bytes", [1, 1200, 1 << 20])
def test_values_match_numpy_in_the_order_asked_when_chunked(chunk_bytes: int) -> None:
    names = ["s", "x", "h", "w", "y", "b"]
    found = list(values(model(), {"x": X}, names, chunk_bytes=chunk_bytes))
    assert [name for name, _ in found] == names
    got = dict(found)
    expected = {"x": X, "w": W, "b": B, "h": X @ W, "s": X @ W + B, "y": np.maximum(X @ W + B, 0)}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def test_values_are_those_before_fusion_when_ops_would_fuse() -> None:
    got = dict(values(model(TensorProto.FLOAT16), {"x": X}, ["c", "d"]))
    assert got["c"].dtype == np.float16
    np.testing.assert_array_equal(got["c"], dict(values(model(), {"x": X}, ["h"]))["h"].astype(np.float16))


def test_values_come_as_float32_when_the_tensor_is_bfloat16() -> None:
    got = dict(values(model(TensorProto.BFLOAT16), {"x": X}, ["c", "d"]))
    assert got["c"].dtype == np.float32
    np.testing.assert_array_equal(got["c"], got["d"])
    assert (got["c"].view(np.uint32) & 0xFFFF == 0).all()


def test_values_leave_the_graph_as_it_was() -> None:
    graph = model()
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    list(values(graph, {"x": X}, ["h", "y"]))
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


def test_probe_serves_other_batches_when_the_batch_is_dynamic() -> None:
    with Probe(model(), ["h"]) as probe:
        for size in (1, 2, 3):
            (_, value), *_ = probe.run({"x": X[:size]})
            np.testing.assert_allclose(value, X[:size] @ W, rtol=1e-4, atol=1e-5)


def test_probe_keeps_at_most_a_chunk_alive_when_streaming() -> None:
    with Probe(model(), ["h", "d", "s", "y"], chunk_bytes=2 * 3 * 48 * 4) as probe:
        assert [len(chunk) for chunk in probe._plan({"x": X})] == [2, 2]


def test_probe_gives_its_folder_back_when_closed() -> None:
    probe = Probe(model(), ["h"])
    list(probe.run({"x": X}))
    folder = Path(probe._temporary.name)
    assert (folder / "weights.data").exists()
    probe.close()
    gc.collect()
    assert not folder.exists()


def test_values_work_when_the_weights_are_external(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx", external_above=0)[0]
    got = dict(values(load(path), {"x": X}, ["h", "w"]))
    np.testing.assert_allclose(got["h"], X @ got["w"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got["w"], W)


def test_values_work_when_a_branch_reads_an_outer_tensor() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (bool c, float[2] x) => (float[2] z) {
            y = Neg(x)
            v = If (c) <
                then_branch = t () => (float[2] a) { a = Neg(y) },
                else_branch = e () => (float[2] b) { b = Identity(x) }
            >
            z = Neg(v)
        }""")
    feeds = {"c": np.array(True), "x": np.array([1, 2], np.float32)}
    got = dict(values(ir.from_proto(proto), feeds, ["v"]))
    assert got["v"].tolist() == [1, 2]


def test_values_raise_usage_error_when_a_name_or_feed_is_wrong() -> None:
    with pytest.raises(UsageError, match="no tensor 'ghost'"):
        list(values(model(), {"x": X}, ["ghost"]))
    with pytest.raises(UsageError, match="takes the inputs"):
        list(values(model(), {"z": X}, ["h"]))
    with pytest.raises(UsageError, match="do not fit"):
        list(values(model(), {"x": X.astype(np.float64)}, ["h"]))
    with pytest.raises(UsageError, match="do not fit"):
        list(values(model(), {"x": X[:, :3]}, ["h"]))


def test_values_raise_backend_error_when_the_runtime_lacks_an_op(capfd: pytest.CaptureFixture[str]) -> None:
    graph = model()
    node = ir.node("NoSuchOp", [graph.graph.outputs[0]], domain="nowhere")
    node.outputs[0].name = "z"
    graph.graph.append(node)
    graph.opset_imports["nowhere"] = 1
    with pytest.raises(BackendError, match="NoSuchOp"):
        list(values(graph, {"x": X}, ["z"]))
    assert capfd.readouterr() == ("", "")
