"""Which nodes the execution providers of phones take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.backends import isolate
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.cli import main
from vitdeploy.errors import UsageError
from vitdeploy.graph import mobile
from vitdeploy.graph.mobile import OWN, PROVIDERS, read_table
from vitdeploy.pipeline import mobile_file

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(kind, batch, last)`: a file with Conv, Erf, Softmax on axis `last`, and a MatMul of what was made."""

    def save(kind: int = TensorProto.FLOAT, batch: int | str = 1, last: int = -1, *, fed: bool = False) -> Path:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        weights = [numpy_helper.from_array(np.ones((8, 3, 1, 1), dtype), "w")] if not fed else []
        inputs = [helper.make_tensor_value_info("x", kind, [batch, 3, 4, 4])]
        inputs += [helper.make_tensor_value_info("w", kind, [8, 3, 1, 1])] if fed else []
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Erf", ["c"], ["e"]),
            helper.make_node("Softmax", ["e"], ["s"], axis=last),
            helper.make_node("MatMul", ["s", "e"], ["y"]),
        ]
        out = helper.make_tensor_value_info("y", kind, [batch, 8, 4, 4])
        graph = helper.make_graph(nodes, "g", inputs, [out], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return save


def found(model: Path) -> dict[str, dict[str, Any]]:
    return {one["provider"]: one for one in isolate.call(mobile.providers, model)}


def left(one: dict[str, Any]) -> dict[str, str]:
    return {part["op"]: part["reason"] for part in one["left"]}


def test_reasons_and_partitions_are_told_by_provider(write: Write) -> None:
    told = found(write())
    assert list(told) == [provider.name for provider in PROVIDERS]
    # Erf stands between what NNAPI knows; Core ML's ML programs know all four.
    assert left(told["NNAPI"]) == {"Erf": "the operator is not supported"}
    assert (told["NNAPI"]["taken"], told["NNAPI"]["partitions"]) == (3, [2, 1])
    assert (told["CoreML MLProgram"]["taken"], told["CoreML MLProgram"]["partitions"]) == (4, [4])
    assert left(told["CoreML NeuralNetwork"])["MatMul"] == "Input B should be constant"
    assert left(told["XNNPACK"]) == {
        "Erf": "the operator is not supported",
        "MatMul": "Only 2D inputs are supported",
    }
    assert left(told["QNN"]) == {"Erf": "the operator is not supported"}


def test_type_shape_and_place_of_weights_are_reasons(write: Write) -> None:
    assert left(found(write(TensorProto.FLOAT16))["NNAPI"])["Conv"] == "the type float16 is not supported"
    told = found(write(batch="n"))
    assert left(told["NNAPI"])["Conv"] == left(told["QNN"])["Conv"] == "an input has a dynamic shape"
    assert "Conv" not in left(told["CoreML MLProgram"])
    told = found(write(fed=True, last=1))
    assert left(told["NNAPI"])["Conv"] == "Weights and bias should be constant"
    assert left(told["XNNPACK"])["Softmax"] == "Only the last axis is supported"


def test_weights_that_are_unpacked_count_as_constant_where_the_provider_unpacks(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.ones((8, 3, 1, 1), np.int8), "q"),
        numpy_helper.from_array(np.float32(0.5), "s"),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("Conv", ["x", "w"], ["y"])]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 4, 4]) for n, c in (("x", 3), ("y", 8))]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "m.onnx")
    told = found(tmp_path / "m.onnx")
    assert left(told["NNAPI"]) == {}
    assert left(told["XNNPACK"])["Conv"] == "Weights and bias should be constant"


@pytest.mark.parametrize("name", ["xnnpack.md", "qnn.md"])
def test_own_tables_name_operators_that_there_are(name: str) -> None:
    standard = {schema.name.lower() for schema in onnx.defs.get_all_schemas()}
    operators = [key.partition(":") for key in read_table(OWN / name)]
    assert len(operators) > 10
    # Inverse is ONNX Runtime's own.
    assert {op for domain, _, op in operators if domain == "ai.onnx"} - standard <= {"inverse"}
    assert "https://onnxruntime.ai/docs/" in (OWN / name).read_text("utf-8")


def test_inspect_prints_it_as_a_table_and_as_json(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(write())
    for flags in (["--json"], []):
        monkeypatch.setattr("sys.argv", ["vitdeploy", "inspect", file, "--mobile", *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        out = capsys.readouterr().out
        if flags:
            assert [one["provider"] for one in json.loads(out)["mobile"]] == [p.name for p in PROVIDERS]
        else:
            assert "nodes taken" in out
            assert "Only 2D inputs are supported" in out


def test_compiled_file_is_refused(tmp_path: Path, write: Write) -> None:
    from vitdeploy.backends.base import RunOptions
    from vitdeploy.backends.onnxruntime_mobile import OnnxRuntimeMobileBackend
    from vitdeploy.graph.load import load

    assert OnnxRuntimeBackend().describe(write()) is None
    file = OnnxRuntimeMobileBackend().compile(load(write()), tmp_path, RunOptions())[0]
    with pytest.raises(UsageError, match="is compiled"):
        mobile_file(file)
