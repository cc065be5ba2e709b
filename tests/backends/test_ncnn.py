"""The ncnn backend: what the contract does not ask of every backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from vitdeploy import api
from vitdeploy.artifact import Manifest
from vitdeploy.backends import ncnn as backend_module
from vitdeploy.backends import ncnn_file
from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.ncnn import NcnnBackend
from vitdeploy.backends.ncnn_writer import LEVELS, in_table, merged, parameter
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError
from vitdeploy.report import snippet

SMALL: dict[str, Any] = {"image_size": (64, 64), "num_classes": 10}
PRECISIONS = ("fp32", "fp16", "int8-weights")
RNG = np.random.default_rng(0)
IMAGE = (1, 4, 6, 8)
# Of fp32's bytes, at most: a table of 1 KiB comes with the 8-bit weights of each layer.
SIZES = {"fp32": 1.0, "fp16": 0.52, "int8-weights": 0.3}


@pytest.fixture
def backend() -> NcnnBackend:
    pytest.importorskip("ncnn", reason="ncnn is not installed")
    return NcnnBackend()


def graph(
    nodes: list[Any],
    shape: tuple[int | str, ...] = IMAGE,
    constants: dict[str, np.ndarray] | None = None,
    kind: int = TensorProto.FLOAT,
) -> ir.Model:
    """A graph from `image` to `logits`, both float32; shapes in between are not noted."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def image(shape: tuple[int, ...] = IMAGE) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def near(got: np.ndarray, want: np.ndarray) -> None:
    """Within fp32's rounding of the largest number, and alive."""
    assert got.shape == want.shape
    assert want.std() > 0
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def one(
    op: str, *constants: np.ndarray, order: tuple[str, ...] = (), kind: int = TensorProto.FLOAT, **attributes: Any
) -> ir.Model:
    """A graph of one node that reads the image and constants."""
    named = {f"c{i}": value for i, value in enumerate(constants)}
    node = helper.make_node(op, order or ["image", *named], ["logits"], **attributes)
    return graph([node], constants=named, kind=kind)


def chain(*nodes: tuple[str, list[str], dict[str, Any]], **constants: np.ndarray) -> ir.Model:
    """Nodes that each read what the one before made, first, and then the constants of these names."""
    made, value = [], "image"
    for i, (op, more, attributes) in enumerate(nodes):
        out = "logits" if i == len(nodes) - 1 else f"v{i}"
        made.append(helper.make_node(op, [value, *more], [out], **attributes))
        value = out
    return graph(made, constants=constants)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


TOKENS = ("Reshape", ["tokens"], {})  # to (1, 24, 8)
WIDE = ("Reshape", ["wide"], {})  # to (1, 2, 2, 3, 2, 8)
SHAPES = {"tokens": ints(1, 24, 8), "wide": ints(1, 2, 2, 3, 2, 8)}
ALONE = ("HardSwish", "Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Abs", "Neg", "Exp", "Floor", "Ceil", "Sin", "Cos")
ALONE += ("Reciprocal", "GlobalAveragePool")
CASES: dict[str, Callable[[], ir.Model]] = {
    "Conv": lambda: one("Conv", floats(5, 4, 3, 2), floats(5), pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]),
    "Conv depthwise": lambda: one("Conv", floats(4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    "Conv in groups": lambda: one("Conv", floats(6, 2, 1, 1), floats(6), group=2),
    "MatMul rows": lambda: one("MatMul", floats(8, 5)),
    "MatMul one row": lambda: chain(
        ("ReduceMean", ["axes"], {"keepdims": 0}), ("MatMul", ["w"], {}), axes=ints(2, 3), w=floats(4, 3)
    ),
    "Gemm": lambda: chain(
        ("Reshape", ["rows"], {}),
        ("Gemm", ["w", "b"], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("Reshape", ["back"], {}),
        rows=ints(24, 8),
        w=floats(5, 8),
        b=floats(5),
        back=ints(1, 24, 5),
    ),
    "MatMul of activations": lambda: graph(
        [
            helper.make_node("Transpose", ["image"], ["t"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["image", "t"], ["logits"]),
        ]
    ),
    "MatMul with a constant map": lambda: one("MatMul", floats(4, 8, 3)),
    "LayerNormalization": lambda: one("LayerNormalization", floats(8), floats(8), axis=-1),
    "LayerNormalization of maps": lambda: one("LayerNormalization", floats(6, 8), axis=2, epsilon=1e-3),
    "BatchNormalization": lambda: one("BatchNormalization", floats(4), floats(4), floats(4), abs(floats(4)) + 0.5),
    "InstanceNormalization": lambda: one("InstanceNormalization", floats(4), floats(4), epsilon=1e-3),
    "Softmax": lambda: one("Softmax", axis=-1),
    "Softmax of channels": lambda: one("Softmax", axis=1),
    "Softmax of six axes": lambda: chain(WIDE, ("Softmax", [], {"axis": 3}), TOKENS, **SHAPES),
    "Gelu": lambda: one("Gelu"),
    "Gelu tanh": lambda: one("Gelu", approximate="tanh"),
    **{op: partial(one, op) for op in ALONE},
    "Sqrt": lambda: chain(("Abs", [], {}), ("Sqrt", [], {})),
    "Log": lambda: chain(("Exp", [], {}), ("Log", [], {})),
    "HardSigmoid": lambda: one("HardSigmoid", alpha=0.3, beta=0.4),
    "LeakyRelu": lambda: one("LeakyRelu", alpha=0.2),
    "Elu": lambda: one("Elu", alpha=0.7),
    "Clip": lambda: one("Clip", np.float32(-0.5), np.float32(0.7)),
    "Swish": lambda: graph(
        [
            helper.make_node("Sigmoid", ["image"], ["gate"]),
            helper.make_node("Mul", ["gate", "image"], ["logits"]),
        ]
    ),
    "Sigmoid with two uses": lambda: graph(
        [
            helper.make_node("Sigmoid", ["image"], ["gate"]),
            helper.make_node("Mul", ["gate", "image"], ["swish"]),
            helper.make_node("Sub", ["gate", "swish"], ["logits"]),
        ]
    ),
    "Add itself": lambda: one("Add", order=("image", "image")),
    "Add over channels": lambda: one("Add", floats(4, 1, 1)),
    "Add over rows": lambda: one("Add", floats(8)),
    "Add over columns": lambda: one("Add", floats(6, 1)),
    "Add map": lambda: one("Add", floats(1, 1, 6, 8)),
    "Mul over several axes": lambda: one("Mul", floats(4, 1, 8)),
    "Mul of six axes": lambda: chain(WIDE, ("Mul", ["c"], {}), TOKENS, c=floats(2, 1, 1, 1, 8), **SHAPES),
    "Sub from a number": lambda: one("Sub", np.float32(2.5), order=("c0", "image")),
    "Sub from a map": lambda: one("Sub", floats(1, 4, 6, 8), order=("c0", "image")),
    "Div by a number": lambda: one("Div", np.float32(2.5)),
    "Div of a number": lambda: chain(("Exp", [], {}), ("Reciprocal", [], {}), ("Div", ["c"], {}), c=floats(1)),
    "Pow": lambda: one("Pow", np.float32(2)),
    "Max": lambda: one("Max", floats(4, 6, 8)),
    "Min": lambda: one("Min", floats(4, 1, 1)),
    "Expand": lambda: chain(
        ("ReduceMax", ["axes"], {"keepdims": 1}), ("Expand", ["to"], {}), axes=ints(3), to=ints(1, 4, 6, 5)
    ),
    "Transpose": lambda: one("Transpose", perm=[0, 2, 3, 1]),
    "Transpose nothing": lambda: chain(
        ("Reshape", ["to"], {}), ("Transpose", [], {"perm": [0, 2, 1, 3]}), to=ints(1, 1, 24, 8)
    ),
    "Transpose windows": lambda: chain(WIDE, ("Transpose", [], {"perm": [0, 1, 3, 2, 4, 5]}), TOKENS, **SHAPES),
    "Transpose of five places": lambda: chain(WIDE, ("Transpose", [], {"perm": [0, 4, 2, 5, 1, 3]}), TOKENS, **SHAPES),
    "Slice": lambda: one("Slice", ints(1), ints(2**62), ints(2), ints(1)),
    "Slice every other": lambda: one("Slice", ints(0, 1), ints(2**62, 2**62), ints(2, 3), ints(2, 3)),
    "Slice odd": lambda: one("Slice", ints(0), ints(5), ints(2), ints(2)),
    "Slice from behind": lambda: one("Slice", ints(-3), ints(-1), ints(1), ints(1)),
    "Split": lambda: graph(
        [
            helper.make_node("Split", ["image", "parts"], ["a", "b"], axis=1),
            helper.make_node("Relu", ["b"], ["logits"]),
        ],
        constants={"parts": ints(1, 3)},
    ),
    "Gather": lambda: chain(TOKENS, ("Gather", ["at"], {"axis": 1}), at=np.array(-1), **SHAPES),
    "Gather rows": lambda: chain(TOKENS, ("Gather", ["at"], {"axis": 1}), at=ints(3, 4, 0, 7), **SHAPES),
    "Concat": lambda: one("Concat", floats(1, 2, 6, 8), axis=1),
    "Concat of six axes": lambda: chain(
        WIDE,
        ("Concat", ["c"], {"axis": 4}),
        ("Reshape", ["to"], {}),
        c=floats(1, 2, 2, 3, 1, 8),
        to=ints(1, 36, 8),
        **SHAPES,
    ),
    "Pad": lambda: one("Pad", ints(0, 1, 0, 2, 0, 0, 3, 1), np.float32(0.5)),
    "ReduceMean": lambda: one("ReduceMean", ints(2, 3), keepdims=0),
    "ReduceMean of tokens": lambda: chain(TOKENS, ("ReduceMean", ["axes"], {"keepdims": 0}), axes=ints(1), **SHAPES),
    "ReduceMax": lambda: one("ReduceMax", ints(1), keepdims=1),
    "ReduceSum": lambda: one("ReduceSum", ints(-1), keepdims=1),
    "MaxPool": lambda: one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]),
    "AveragePool": lambda: one(
        "AveragePool", kernel_shape=[2, 2], strides=[2, 1], pads=[0, 1, 0, 1], count_include_pad=1
    ),
    "Squeeze and Unsqueeze": lambda: chain(
        ("Unsqueeze", ["axes"], {}), ("Squeeze", ["axes"], {}), ("Relu", [], {}), axes=ints(2)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_node_gives_what_onnx_says(backend: NcnnBackend, tmp_path: Path, name: str) -> None:
    model = CASES[name]()
    (want,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"image": image()})
    backend.compile(model, tmp_path, RunOptions())
    param = tmp_path / "model.ncnn.param"
    (told,) = ncnn_file.read(param).outputs
    (got,) = ncnn_file.run(ncnn_file.opened(param, 1), {"image": image()[0]}, ["logits"])
    assert (1, *got.shape) == told.shape
    near(got[None], want)


MIXED = {"kernel": floats(16, 4, 3, 3), "deep": floats(16, 1, 3, 3), "w": floats(16, 5), "b": floats(5)}
MACS = 48 * 16 * 36 + 48 * 16 * 9 + 2 * 48 * 48 * 16 + 48 * 16 * 5


def mixed(batch: int | str = 1) -> ir.Model:
    """One of each product, whose multiply-accumulates are easily counted, with tokens flattened over the batch."""
    rows = 48 * batch if isinstance(batch, int) else -1
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "deep"], ["d"], pads=[1, 1, 1, 1], group=16),
        helper.make_node("Reshape", ["d", "lines"], ["l"]),
        helper.make_node("Transpose", ["l"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "l"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "t"], ["mix"]),
        helper.make_node("Reshape", ["mix", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"]),
        helper.make_node("Reshape", ["y", "back"], ["logits"]),
    ]
    size = batch if isinstance(batch, int) else -1
    constants = {
        "lines": ints(size, 16, 48),
        "rows": ints(rows, 16),
        "back": ints(size, 48, 5),
        "scale": np.array([0.01], np.float32),
    }
    return graph(nodes, (batch, 4, 6, 8), {**MIXED, **constants})


@pytest.mark.parametrize("batch", [1, 3, "batch"])
def test_images_of_a_batch_are_run_in_turns(backend: NcnnBackend, tmp_path: Path, batch: int | str) -> None:
    model = mixed(batch)
    pixels = image((3, 4, 6, 8)) if batch != 1 else image()
    (want,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"image": pixels})
    file, weights = backend.compile(model, tmp_path, RunOptions())
    assert (file.name, weights.name) == ("model.ncnn.param", "model.ncnn.bin")
    with backend.open(file, RunOptions(threads=1)) as session:
        assert session.inputs[0].shape == (batch, 4, 6, 8)
        assert session.outputs[0].shape == (batch, 48, 5)
        near(session.run({"image": pixels})["logits"], want)
        if batch == 1:
            with pytest.raises(UsageError, match="shape"):
                session.run({"image": np.concatenate([pixels, pixels])})


def test_file_tells_its_products_and_what_weights_are_stored_in(backend: NcnnBackend, tmp_path: Path) -> None:
    file, weights = backend.compile(mixed(), tmp_path, RunOptions())
    told = backend.describe(file)
    assert told["macs"] == MACS
    assert told["compute"] == {"fp32": 5}
    assert set(told["weight_bytes_by_dtype"]) == {"fp32"}
    assert told["weight_bytes"] == weights.stat().st_size
    assert backend.made(file)
    assert not backend.made(weights)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_model_is_exported_and_verified_again(backend: NcnnBackend, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "made"
    made = api.export("vit_tiny_patch16_224", precision=precision, backend="ncnn", bench=False, out=out, **SMALL)
    verification, graph = made.manifest.verification, made.manifest.graph
    assert verification is not None
    assert verification["passed"]
    assert verification["outputs"]["logits"]["rel_max"] > 0
    told = backend.describe(made.model_path)
    assert told["macs"] == graph["macs"]
    assert made.manifest.applied["census"]["compute"] == {"fp32": told["compute"]["fp32"]}
    kinds = told["weight_bytes_by_dtype"]
    assert kinds.get({"int8-weights": "int8"}.get(precision, precision), 0) > 0.7 * told["weight_bytes"]
    assert told["weight_bytes"] <= SIZES[precision] * graph["parameters"] * 4 * 1.02 + 40_000
    assert api.verify(made.folder)
    if precision == "fp32":
        assert says_the_same_without_vitdeploy(made.folder, made.manifest)


def says_the_same_without_vitdeploy(folder: Path, manifest: Manifest) -> bool:
    """Run the model card's program, beside `predict`."""
    photo = folder / "photo.jpg"
    Image.fromarray(RNG.integers(0, 256, (90, 120, 3), np.uint8)).save(photo)
    done = subprocess.run(
        [sys.executable, "-c", snippet.program(manifest)], cwd=folder, capture_output=True, text=True, check=True
    )
    (told,) = api.predict(folder, [photo], top=1)
    return int(done.stdout) == told["top"][0]["index"]


def test_outputs_in_between_are_given_too(backend: NcnnBackend, tmp_path: Path) -> None:
    wanted = ("logits", "embeddings", "attention")
    made = api.export("vit_tiny_patch16_224", backend="ncnn", bench=False, out=tmp_path / "m", outputs=wanted, **SMALL)
    assert made.manifest.verification is not None
    assert set(made.manifest.verification["outputs"]) == set(wanted)
    assert [spec.name for spec in ncnn_file.read(made.model_path).outputs] == list(wanted)
    assert made.manifest.verification["passed"]


def test_table_is_exact_where_it_can_be_and_else_better_than_even_steps() -> None:
    few = RNG.integers(-100, 100, (40, 30)).astype(np.float32)
    table, which = in_table(few)
    np.testing.assert_array_equal(table[which].reshape(few.shape), few)
    many = floats(200, 300)
    table, which = in_table(many)
    assert table.shape == (LEVELS,)
    step = (many.max() - many.min()) / (LEVELS - 1)
    even = np.rint((many - many.min()) / step) * step + many.min()
    assert ((table[which].reshape(many.shape) - many) ** 2).mean() < 0.5 * ((even - many) ** 2).mean()


def test_axes_that_stay_together_are_one() -> None:
    assert merged((0, 2, 3, 1), (1, 4, 6, 8)) == ((4, 48), (1, 0))
    assert merged((0, 1, 2), (2, 3, 4)) == ((24,), (0,))
    assert merged((0, 2, 4, 1, 3, 5), (1, 8, 2, 8, 4, 30)) == ((8, 2, 8, 4, 30), (1, 3, 0, 2, 4))
    assert parameter(1, 1e-6) == "1=1.0000000e-06"
    assert len(parameter(1, -1.2345678e-30).partition("=")[2]) <= 15


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: chain(WIDE, ("Relu", [], {}), **SHAPES), "no 5 dimensions"),
        (lambda: one("CumSum", np.array(1)), "no layer for CumSum"),
        (lambda: one("Slice", ints(5), ints(0), ints(2), ints(-1)), "backwards"),
        (
            lambda: chain(("Reshape", ["to"], {}), ("Conv", ["w"], {}), to=ints(4, 1, 6, 8), w=floats(2, 1, 1, 1)),
            "4 maps",
        ),
        (lambda: one("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "not written for ncnn"),
        (lambda: one("ReduceMean", ints(1, 3), keepdims=0), "apart from each other"),
        (lambda: one("Cast", to=TensorProto.FLOAT16, kind=TensorProto.FLOAT16), "is float16"),
        (lambda: graph([helper.make_node("Relu", ["image"], ["logits"])], (1, 3, "height", 8)), "fixed sizes"),
        (
            lambda: graph([helper.make_node("Reshape", ["image", "to"], ["logits"])], (2, 3), {"to": ints(3, 2)}),
            "one by one",
        ),
    ],
)
def test_graph_is_refused_in_a_sentence(
    backend: NcnnBackend, tmp_path: Path, model: Callable[[], ir.Model], says: str
) -> None:
    made = model()
    with pytest.raises(UnsupportedModel, match=says) as told:
        backend.compile(made, tmp_path, RunOptions())
    assert len(told.value.message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_precision_that_is_not_there_is_refused(backend: NcnnBackend, tmp_path: Path) -> None:
    for precision in ("int8", "bf16", "int4-weights"):
        with pytest.raises(UnsupportedModel, match=f"no {precision} here"):
            backend.compile(mixed(), tmp_path, RunOptions(), precision)
    with pytest.raises(UnsupportedModel, match="no int8 here"):
        backend.scheme(RunOptions())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("which", ["param", "bin"])
def test_file_that_is_cut_short_is_told_in_a_sentence(
    backend: NcnnBackend, tmp_path: Path, which: str, share: float
) -> None:
    file, weights = backend.compile(mixed(), tmp_path, RunOptions())
    cut = file if which == "param" else weights
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    with pytest.raises(UsageError, match=cut.name) as told:
        backend.open(file, RunOptions())
    assert len(told.value.message.splitlines()) == 1


def test_weights_that_are_absent_are_told(backend: NcnnBackend, tmp_path: Path) -> None:
    file, weights = backend.compile(mixed(), tmp_path, RunOptions())
    weights.write_bytes(weights.read_bytes() + bytes(8))
    with pytest.raises(UsageError, match="beside it tells of"):
        backend.open(file, RunOptions())
    weights.unlink()
    with pytest.raises(UsageError, match="is not there"):
        backend.open(file, RunOptions())


def test_damaged_file_does_no_harm(backend: NcnnBackend, tmp_path: Path) -> None:
    file, _ = backend.compile(mixed(), tmp_path, RunOptions())
    text = file.read_text()
    for good, bad in (("8=5", "8=5000000"), ("6=576", "6=-1"), ("Softmax ", "Softmacs "), ("0=8", "0=-8")):
        assert good in text
        file.write_text(text.replace(good, bad))
        with pytest.raises((UsageError, BackendError)) as told:
            backend.open(file, RunOptions())
        assert len(told.value.message.splitlines()) == 1


def test_absent_package_is_told_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend_module, "installed", lambda package: None)
    can = NcnnBackend().capabilities()
    assert not can.installed
    assert can.fix == "pip install 'vitdeploy[ncnn]'"
    (file, _) = NcnnBackend().compile(mixed(), tmp_path, RunOptions())
    with pytest.raises(MissingDependency, match="ncnn"):
        NcnnBackend().open(file, RunOptions())
