"""The onnxruntime-mobile backend: what the contract does not ask of every backend."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy import api
from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime_mobile import PRECISIONS, OnnxRuntimeMobileBackend
from vitdeploy.backends.ort_file import check, read
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.models.build import BuildOptions, build

SMALL: dict[str, Any] = {"image_size": (64, 64), "num_classes": 10}
# Of fp32's bytes, at most: biases, tables and the graph stay as they are, and in int8-dynamic convolutions too.
SIZES = {"fp32": 1.0, "fp16": 0.5, "int8": 0.25, "int8-dynamic": 0.6, "int8-weights": 0.25}
BACKEND = OnnxRuntimeMobileBackend()


def small() -> ir.Model:
    """A linear layer of 4 to 3, and softmax."""
    w = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["y"])]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", size]) for n, size in (("x", 4), ("y", 3))]
    made = helper.make_graph(nodes, "g", sides[:1], sides[1:], [w])
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BACKEND.compile(small(), tmp_path_factory.mktemp("small"), RunOptions())[0]


def needed(config: Path) -> dict[tuple[str, str], set[int]]:
    """What a reduced build includes: the versions of each operator, as ONNX Runtime's build reads the file."""
    from onnxruntime.tools.reduced_build_config_parser import parse_config

    found: dict[tuple[str, str], set[int]] = {}
    operators, _ = parse_config(str(config), True)
    for domain, by_version in operators.items():
        for version, names in by_version.items():
            for name in names:
                found.setdefault((domain, name), set()).add(version)
    return found


def test_file_tells_its_graph_types_and_shapes(file: Path) -> None:
    proto = read(file)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Softmax"]
    assert [(tensor.name, list(tensor.dims)) for tensor in proto.graph.initializer] == [("w", [4, 3])]
    told = BACKEND.describe(file)
    assert told["inputs"] == [{"name": "x", "dtype": "fp32", "shape": ["b", 4]}]
    assert told["ops"] == {"MatMul": 1, "Softmax": 1}
    assert told["opset"] == {"": 20}
    assert told["compute"] == {"fp32": 1}


def test_reduced_build_gets_every_operator_of_the_file_and_no_path_of_this_machine(file: Path) -> None:
    config = file.with_name("required_operators.config")
    assert needed(config) == {("ai.onnx", "MatMul"): {13}, ("ai.onnx", "Softmax"): {13}}
    text = config.read_text("utf-8")
    assert str(file.parent) not in text
    assert 'MatMul{"inputs": {"0": ["float"]}}' in text


def test_same_graph_gives_the_same_operators(file: Path, tmp_path: Path) -> None:
    """The .ort file itself differs in the order of its tables, which ONNX Runtime draws anew in each process."""
    model, config = BACKEND.compile(small(), tmp_path, RunOptions())
    assert config.read_bytes() == file.with_name(config.name).read_bytes()
    assert BACKEND.describe(model) == BACKEND.describe(file)


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_model_is_exported_and_verified_again(tmp_path: Path, precision: str) -> None:
    int8 = {"calib_random": True} if precision == "int8" else {}
    more: dict[str, Any] = {**SMALL, **int8, "bench": False, "out": tmp_path / "made"}
    made = api.export("levit_128s", precision=precision, backend="onnxruntime-mobile", **more)
    manifest = made.manifest
    assert manifest.verification is not None
    assert manifest.verification["passed"]
    assert made.model_path.name == "model.ort"
    assert made.model_path.stat().st_size <= SIZES[precision] * manifest.graph["parameters"] * 4 * 1.1
    compute = manifest.applied["census"]["compute"]
    assert (compute.get("int8", 0) > 0) == (precision in ("int8", "int8-dynamic"))
    assert set(compute) <= {"int8", "fp32"}
    operators = {(node.domain or "ai.onnx", node.op_type) for node in read(made.model_path).graph.node}
    assert set(needed(made.folder / "required_operators.config")) == operators
    assert api.verify(made.folder)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["mobilevit_xs", "levit_256", "deit_tiny_patch16_224"])
def test_whole_model_is_proven(tmp_path: Path, name: str, precision: str) -> None:
    int8 = {"calib_random": True} if precision == "int8" else {}
    out = tmp_path / "made"
    made = api.export(name, precision=precision, backend="onnxruntime-mobile", bench=False, out=out, **int8)
    assert made.manifest.verification is not None
    assert made.manifest.verification["passed"]
    parameters = build(name, BuildOptions()).parameters
    maps = made.manifest.graph["parameters"] - parameters  # LeViT's attention biases, laid out: no weights of a product
    assert made.model_path.stat().st_size <= SIZES[precision] * parameters * 4 * 1.1 + maps * 4 + 400_000


def test_damaged_file_is_told_in_a_sentence(file: Path, tmp_path: Path) -> None:
    whole, damaged, told = file.read_bytes(), tmp_path / "model.ort", []
    draw = random.Random(0)
    for _ in range(8):
        at = draw.randrange(8, len(whole) - 4)
        damaged.write_bytes(whole[:at] + bytes(4 * [255]) + whole[at + 4 :])
        try:
            BACKEND.open(damaged, RunOptions()).close()
        except UsageError as error:
            told.append(error.message)
    assert told
    assert all(len(message.splitlines()) == 1 for message in told)


def test_file_of_another_format_or_name_is_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    other.write_bytes(file.read_bytes())
    for use in (BACKEND.describe, lambda path: BACKEND.open(path, RunOptions())):
        with pytest.raises(UsageError, match="suffix"):
            use(other)
    other = tmp_path / "model.ort"
    other.write_bytes(b"\x08\x0a")
    with pytest.raises(UsageError, match=r"not an \.ort file"):
        BACKEND.describe(other)
    other.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UsageError, match="can open"):
        check(other)


@pytest.mark.parametrize(
    "wrong",
    [{"device": "cuda"}, {"provider": "cuda"}, {"provider_options": {"speed": "high"}}, {"optimization": "some"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BACKEND.compile(small(), tmp_path, RunOptions(**wrong))
    assert not list(tmp_path.iterdir())


def test_precision_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no int4-weights"):
        BACKEND.compile(small(), tmp_path, RunOptions(), "int4-weights")
