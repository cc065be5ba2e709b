"""What every backend must do, from whatever it compiles. A new backend is tested here as soon as it is registered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vitdeploy.backends.base import Backend, Program, RunOptions, Session
from vitdeploy.backends.registry import backends
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError
from vitdeploy.export.metadata import BATCH

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((8, 3, 1, 1)).astype(np.float32)
FIXED = 2  # the batch of backends that have no dynamic one
WEIGHT = RNG.standard_normal((8, 5)).astype(np.float32)


def graph(batch: int | str = "batch") -> ir.Model:
    """A 1x1 convolution, ReLU, mean over the map, and a linear layer; a second output taken in between."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["c"]),
        helper.make_node("Relu", ["c"], ["map"]),
        helper.make_node("ReduceMean", ["map", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, 8, 4, 4]),
        ],
        [
            numpy_helper.from_array(KERNEL, "kernel"),
            numpy_helper.from_array(WEIGHT, "weight"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    model = ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    model.metadata_props[BATCH] = "1:2:8"
    return model


class Net(nn.Module):
    """The same in PyTorch, for backends that start there, with its first output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.from_numpy(KERNEL))
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT))

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(nn.functional.conv2d(image, self.kernel)).mean((2, 3)) @ self.weight


def expected(image: np.ndarray) -> dict[str, np.ndarray]:
    feature_map = np.maximum(np.einsum("nchw,oc->nohw", image, KERNEL[:, :, 0, 0]), 0)
    return {"logits": feature_map.mean((2, 3)) @ WEIGHT, "map": feature_map}


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, 4, 4)).astype(np.float32)


@pytest.fixture(params=list(backends()))
def backend(request: pytest.FixtureRequest) -> Backend:
    found = backends()[request.param]
    capabilities = found.capabilities()
    if found.stand_in and capabilities.installed and not capabilities.devices:
        return stood_in(found)
    if not capabilities.installed or not capabilities.devices:
        pytest.skip(f"{request.param}: {capabilities.reason or 'no device'}")
    return found


def stood_in(backend: Backend) -> Backend:
    """The same, opening files as its stand-in does, where it cannot run them itself."""

    class StoodIn(type(backend)):  # type: ignore[misc]
        def _open(self, model: Path, options: RunOptions) -> Session:
            return self._open_stand_in(model, options)

    return StoodIn()


Make = Callable[..., list[Path]]
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture
def compiled(once: Once) -> Make:
    """`compiled(backend, options, batch)`: the files, compiled once and only to be read, the model first."""

    def make(backend: Backend, options: RunOptions, batch: int | str = "batch") -> list[Path]:
        def fill(folder: Path) -> None:
            files = compile_one(backend, options, batch, folder)
            assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
            (folder / "files").write_text("\n".join(str(file.relative_to(folder)) for file in files))

        try:
            folder = once(f"contract-{backend.name}-{batch}", fill)
        except MissingDependency as error:
            pytest.skip(f"{backend.name}: {error.message}")
        return [folder / name for name in (folder / "files").read_text().splitlines()]

    return make


def compile_one(backend: Backend, options: RunOptions, batch: int | str, folder: Path) -> list[Path]:
    if backend.source == "graph":
        return backend.compile(graph(batch), folder, options)
    sizes = batch if isinstance(batch, int) else (1, 2, 4) if backend.dynamic_batch else FIXED
    samples = [images(sizes if isinstance(sizes, int) else sizes[0])]
    return backend.compile_program(Program(Net().eval(), (3, 4, 4), sizes, "fp32", samples), folder, options)


@pytest.fixture
def options(backend: Backend) -> RunOptions:
    return RunOptions(device=next(iter(backend.capabilities().devices), backend.usual_device))


@pytest.fixture
def file(backend: Backend, options: RunOptions, compiled: Make) -> Path:
    return compiled(backend, options)[0]


@pytest.fixture
def session(backend: Backend, options: RunOptions, file: Path) -> Session:
    return backend.open(file, options)


def test_every_backend_lists_itself_when_installed_or_not() -> None:
    for name, backend in backends().items():
        capabilities = backend.capabilities()
        assert backend.name == name
        assert backend.source in ("graph", "program")
        if capabilities.installed:
            assert capabilities.version
        else:
            assert capabilities.reason
            assert capabilities.fix


def test_compile_writes_only_the_files_it_names(backend: Backend, options: RunOptions, compiled: Make) -> None:
    files = compiled(backend, options)  # which compares them
    assert files
    assert all(file.stat().st_size for file in files)


def test_compile_raises_unsupported_model_when_given_what_it_does_not_start_from(
    backend: Backend, options: RunOptions, tmp_path: Path
) -> None:
    program = Program(Net(), (3, 4, 4), 1, "fp32", [])
    of_graph = backend.source == "graph"
    compile_other = partial(backend.compile_program, program) if of_graph else partial(backend.compile, graph())
    with pytest.raises(UnsupportedModel, match=backend.name):
        compile_other(tmp_path, options)
    assert not list(tmp_path.iterdir())


def test_run_equals_numpy_when_the_batch_changes(backend: Backend, session: Session) -> None:
    for batch in (1, 3, 2) if backend.dynamic_batch else (FIXED,):
        image = images(batch)
        got = session.run({"image": image})
        assert list(got) == [spec.name for spec in session.outputs]
        for name, value in got.items():
            np.testing.assert_allclose(value, expected(image)[name], rtol=1e-4, atol=1e-5)


def test_specs_tell_names_types_and_dynamic_dimensions(backend: Backend, session: Session) -> None:
    (image,) = session.inputs
    assert (image.name, image.dtype, image.shape[1:]) == ("image", "float32", (3, 4, 4))
    assert isinstance(image.shape[0], str) if backend.dynamic_batch else image.shape[0] == FIXED
    names = ["logits", "map"] if backend.source == "graph" else ["logits"]
    assert {spec.name: spec.dtype for spec in session.outputs} == dict.fromkeys(names, "float32")


def test_run_refuses_another_batch_when_the_batch_is_static(
    backend: Backend, options: RunOptions, compiled: Make
) -> None:
    with backend.open(compiled(backend, options, 2)[0], options) as session:
        assert session.inputs[0].shape == (2, 3, 4, 4)
        assert session.run({"image": images(2)})["logits"].shape == (2, 5)
        with pytest.raises(UsageError, match="shape"):
            session.run({"image": images(1)})


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({"picture": images(1)}, "inputs"),
        ({}, "inputs"),
        ({"image": images(1), "more": images(1)}, "inputs"),
        ({"image": images(1).astype(np.float64)}, "float32"),
        ({"image": images(1)[:, :2]}, "shape"),
        ({"image": images(1)[0]}, "shape"),
    ],
)
def test_run_raises_usage_error_when_a_name_type_or_shape_is_wrong(
    session: Session, feeds: dict[str, np.ndarray], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        session.run(feeds)
    image = images(FIXED)
    np.testing.assert_allclose(session.run({"image": image})["logits"], expected(image)["logits"], rtol=1e-4)


def test_run_reads_arrays_right_when_they_are_strided_or_byte_swapped(session: Session) -> None:
    image = images(2)
    wide = np.zeros((2, 3, 4, 8), np.float32)
    wide[..., ::2] = image
    for odd in (wide[..., ::2], np.asfortranarray(image), image.astype(image.dtype.newbyteorder())):
        got = session.run({"image": odd})["logits"]
        np.testing.assert_allclose(got, expected(image)["logits"], rtol=1e-4, atol=1e-5)


def test_outputs_belong_to_the_caller_when_the_session_runs_again_or_closes(session: Session) -> None:
    first = session.run({"image": images(2)})
    kept = {name: value.copy() for name, value in first.items()}
    session.run({"image": images(2) + 1})
    session.close()
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
        value[...] = 0


def test_resident_runs_again_and_again_and_checks_its_inputs(session: Session) -> None:
    run = session.resident({"image": images(2)})
    run()
    run()
    assert "no copies" in session.includes(transfers=False)
    with pytest.raises(UsageError):
        session.resident({"image": images(2)[0]})
    np.testing.assert_allclose(session.run({"image": images(2)})["logits"], expected(images(2))["logits"], atol=1e-5)


def test_closed_session_raises_backend_error_when_used(session: Session) -> None:
    with session:
        pass
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"image": images(FIXED)})
    with pytest.raises(BackendError, match="closed"):
        session.census()


def test_open_raises_usage_error_when_the_file_is_missing_or_corrupt(
    backend: Backend, options: RunOptions, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="nothing"):
        backend.open(tmp_path / "nothing.onnx", options)
    file = Path(shutil.copytree(file.parent, tmp_path / "copy")) / file.name
    capfd.readouterr()
    whole = file.read_bytes()
    for content in (b"", b"no model at all", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=file.name):
            backend.open(file, options)
    with pytest.raises(UsageError):
        backend.open(tmp_path, options)
    assert capfd.readouterr() == ("", "")


def test_census_counts_the_compute_nodes_when_all_is_float(session: Session) -> None:
    census = session.census()
    assert census.source
    assert sum(census.compute.values()) == 2
    assert set(census.compute) <= {"fp32", "tf32"}
    assert census.casts == 0
    assert sum(sum(found.values()) for found in census.ops.values()) >= 3
    assert session.census().to_dict() == census.to_dict()


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_open_takes_a_number_of_threads(backend: Backend, options: RunOptions, file: Path, threads: int) -> None:
    image = images(FIXED)
    with backend.open(file, RunOptions(device=options.device, threads=threads)) as session:
        for name, value in session.run({"image": image}).items():
            np.testing.assert_allclose(value, expected(image)[name], rtol=1e-4, atol=1e-5)


def test_open_raises_usage_error_when_an_option_is_wrong(backend: Backend, options: RunOptions, file: Path) -> None:
    for wrong in (RunOptions(device="toaster"), RunOptions(device=options.device, threads=-1)):
        with pytest.raises(UsageError):
            backend.open(file, wrong)
