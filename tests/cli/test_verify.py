"""A broken graph fails verification with exit code 4, and the message names the node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vitdeploy.report.reading import TEXTS

Cli = Callable[..., Any]
MADE = ("--model", "tiny.py:make")


@pytest.fixture
def copy(exported: Path, work: Path) -> Path:
    """An artifact of one's own, to spoil."""
    return Path(shutil.copytree(exported / "artifact", work / "artifact"))


def spoil_weight(model: onnx.ModelProto, value: Callable[[float], float]) -> onnx.NodeProto:
    """Change one number of the second matrix product's weight; returns the node that reads it."""
    names = {i.name: i for i in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in names]
    node = products[-1]
    tensor = names[node.input[1]]
    array = numpy_helper.to_array(tensor).copy()
    array[3, 2] = value(array[3, 2])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return node


def perturbed(model: onnx.ModelProto) -> onnx.NodeProto:
    return spoil_weight(model, lambda number: number + 0.05)


def not_a_number(model: onnx.ModelProto) -> onnx.NodeProto:
    return spoil_weight(model, lambda number: np.nan)


def wrong_axis(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = [n for n in model.graph.node if n.op_type == "Softmax"]
    (axis,) = [a for a in node.attribute if a.name == "axis"]
    axis.i = 1
    return node


@pytest.mark.parametrize("spoil", [perturbed, not_a_number, wrong_axis])
def test_verify_fails_and_names_the_node_when_the_graph_is_broken(
    refused: Callable[..., str], copy: Path, spoil: Callable[[onnx.ModelProto], onnx.NodeProto]
) -> None:
    model = onnx.load(copy / "model.onnx")
    node = spoil(model)
    onnx.save(model, copy / "model.onnx")
    said = refused("verify", "artifact", *MADE, code=4)
    assert f"{node.op_type} '{node.name or node.output[0]}'" in said
    assert "departs first" in said
    if spoil is not_a_number:
        assert "NaN" in said


def test_verify_fails_when_the_file_holds_another_graph(refused: Callable[..., str], copy: Path) -> None:
    meant = onnx.load(copy / "model.onnx").graph
    weight = numpy_helper.from_array(np.ones((768, 10), np.float32), "other.weight")
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["other.flat"]),
        onnx.helper.make_node("MatMul", ["other.flat", "other.weight"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "other", list(meant.input), list(meant.output), [weight])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), copy / "model.onnx")
    assert "error: " in refused("verify", "artifact", *MADE, code=4)


def test_verify_passes_on_an_artifact_and_on_its_model_file(cli: Cli, copy: Path) -> None:
    run = cli("verify", "artifact", *MADE)
    assert run.code == 0, run.err
    assert run.out.startswith("artifact: 4 inputs, batch 1   max error ")
    assert run.out.endswith("   PASS\n")
    (copy / "manifest.json").unlink()
    found = json.loads(cli("verify", "artifact/model.onnx", *MADE, "--json").out)
    assert found["passed"] is True
    assert found["outputs"]["logits"]["logits"]["top1_matches"] == 4


@pytest.mark.parametrize("name", ["trap.py:make", "trap:make", "package.trap:make", "./trap.py:make"])
def test_code_that_only_the_artifact_names_is_not_run(refused: Callable[..., str], copy: Path, name: str) -> None:
    """Who made the artifact may not be who verifies it."""
    (copy.parent / "trap.py").write_text("open('owned', 'w').close()")
    (copy.parent / "package").mkdir()
    (copy.parent / "package" / "trap.py").write_text("open('owned', 'w').close()")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["name"] = name
    (copy / "manifest.json").write_text(json.dumps(manifest))
    said = refused("verify", "artifact")
    assert f"vitdeploy verify artifact --model {name}" in said
    assert not (copy.parent / "owned").exists()


def test_model_of_another_name_is_refused(refused: Callable[..., str], copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["name"] = "mobilevit_xs"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "is of mobilevit_xs, not of tiny.py:make." in refused("verify", "artifact", *MADE)


def test_changed_file_is_noted_when_it_still_verifies(cli: Cli, copy: Path) -> None:
    model = onnx.load(copy / "model.onnx")
    model.doc_string = "touched"
    onnx.save(model, copy / "model.onnx")
    run = cli("verify", "artifact", *MADE)
    assert run.code == 0
    assert "artifact/model.onnx has changed since it was exported." in run.err


def test_failed_export_is_kept_apart_with_its_report(cli: Cli, work: Path) -> None:
    """A bound that float32 cannot meet."""
    run = cli("export", "tiny.py:make", "--tolerance", "1e-12", "--no-bench", "--out", "out")
    assert run.code == 4
    assert run.out == ""
    assert "Traceback" not in run.err
    assert "error: The largest error" in run.err
    assert "The artifact is kept apart in out.failed/ with its report." in run.err
    assert not (work / "out").exists()
    assert {path.name for path in (work / "out.failed").iterdir()} == {"manifest.json", "model.onnx", *TEXTS}
    assert "Failed verification" in (work / "out.failed" / "report.html").read_text()
    manifest = json.loads((work / "out.failed" / "manifest.json").read_text())
    assert manifest["verification"]["passed"] is False
    assert "**FAILED verification**" in (work / "out.failed" / "report.md").read_text()
