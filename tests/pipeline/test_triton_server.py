"""A real Triton server is pointed at what `lay_out` writes, as it is, and answers as the file does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from triton_server import Server, running, why_not

from vitdeploy.backends.base import RunOptions
from vitdeploy.pipeline.request import ExportRequest
from vitdeploy.pipeline.triton import lay_out
from vitdeploy.spec import InputSpec, ModelSpec

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

LABELS = ("tench, tinca", 'a "quoted" name', "пёс")
SPEC = ModelSpec("m", input=InputSpec(shape=(3, 4, 4)), num_classes=3, labels=LABELS)
# Each with another way to say its batch.
MODELS: dict[str, dict[str, Any]] = {
    "any": {"batch": (1, 2, 4)},
    "fixed": {"batch": 2, "run": RunOptions("cpu", 2, "extended")},
    "some": {"batch": (2, 3, 4)},
    "vino": {"batch": (1, 2, 4), "backend": "openvino", "precision": "bf16"},
}


def image(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, 4, 4)).astype(np.float32)


def write(file: Path, batch: int | str) -> None:
    """A mean over the map, and a linear layer."""
    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)


@pytest.fixture(scope="module")
def repository(session_folder: Path) -> Path:
    folder = session_folder / "served"
    folder.mkdir()
    for name, wanted in MODELS.items():
        request = ExportRequest("m", layout="triton", out=Path(name), **{"run": RunOptions("cpu"), **wanted})
        fixed = isinstance(request.batch, int)
        write(folder / "model.onnx", request.batch if isinstance(request.batch, int) else "batch")
        outputs = {"logits": np.zeros((2 if fixed else 1, 3), np.float32)}
        lay_out(request, SPEC, [folder / "model.onnx"], folder, outputs)
    return folder / "triton"


@pytest.fixture(scope="module")
def server(repository: Path, session_folder: Path) -> Iterator[Server]:
    work = session_folder / "server"
    work.mkdir()
    with running(repository, work, ["--disable-auto-complete-config"]) as found:
        yield found


def expected(repository: Path, model: str, batch: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(repository / model / "1" / "model.onnx")
    return session.run(["logits"], {"image": image(batch)})[0]


@pytest.mark.parametrize(
    ("model", "batch"), [("any", 1), ("any", 4), ("fixed", 2), ("some", 2), ("some", 4), ("vino", 1), ("vino", 3)]
)
def test_server_answers_as_the_file_does_when_the_batch_is_one_of_its_own(
    server: Server, repository: Path, model: str, batch: int
) -> None:
    found = server.ask(model, image(batch))
    assert isinstance(found, np.ndarray), found
    np.testing.assert_allclose(found, expected(repository, model, batch), rtol=1e-6)


def test_server_refuses_a_batch_when_the_config_excludes_it(server: Server) -> None:
    assert "batch-size must be <= 4" in server.ask("any", image(5))
    assert "unexpected shape for input 'image'" in server.ask("fixed", image(1))


def test_server_names_classes_when_labels_were_written(server: Server, repository: Path) -> None:
    found = server.ask("any", image(2), classes=1)
    best = expected(repository, "any", 2).argmax(1)
    assert [row[0].split(":")[1:] for row in found] == [[str(i), LABELS[i]] for i in best]


def test_server_took_the_config_as_it_was_meant(server: Server) -> None:
    found = server.get("models/any/config")
    assert (found["max_batch_size"], found["dynamic_batching"]["preferred_batch_size"]) == (4, [4])
    assert [(group["kind"], group["count"]) for group in found["instance_group"]] == [("KIND_CPU", 1)]
    found = server.get("models/fixed/config")
    assert (found["max_batch_size"], found["input"][0]["dims"]) == (0, [2, 3, 4, 4])
    assert found["optimization"]["graph"]["level"] == 1
    assert found["parameters"]["intra_op_thread_count"] == {"string_value": "2"}
    found = server.get("models/vino/config")
    assert found["parameters"]["HINT_BF16"] == {"string_value": "YES"}
