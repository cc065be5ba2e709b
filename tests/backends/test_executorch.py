"""The ExecuTorch backend: what the contract does not ask of every backend."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitdeploy import api
from vitdeploy.backends import executorch as backend_module
from vitdeploy.backends.base import Program, RunOptions
from vitdeploy.backends.executorch import ExecuTorchBackend
from vitdeploy.backends.executorch_file import check_whole, read
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError

PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic")
# How far outputs may be off, as a part of the largest.
BOUNDS = {"fp32": 1e-5, "fp16": 0.01, "int8": 0.1, "int8-dynamic": 0.05}


@pytest.fixture
def backend() -> ExecuTorchBackend:
    pytest.importorskip("executorch", reason="executorch is not installed")
    return ExecuTorchBackend()


class Mixed(nn.Module):
    """One of each product, a norm and attention; products' multiply-accumulates are easily counted."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.layer = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        maps = nn.functional.hardswish(self.deep(nn.functional.silu(self.norm(self.wide(image)))))
        tokens = self.layer(maps.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(len(image), 64, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(image), 64, 16)
        return self.head(nn.functional.gelu(tokens + mixed).mean(1))


MACS = {"Conv2d": 64 * 16 * 27, "DepthwiseConv2d": 64 * 16 * 9, "FullyConnected": 64 * 16 * 48 + 16 * 5}
MACS |= {"BatchMatrixMultiply": 2 * 2 * 64 * 64 * 8}


def mixed() -> Mixed:
    torch.manual_seed(0)
    net = Mixed().eval()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    return net


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


def compiled(backend: ExecuTorchBackend, folder: Path, precision: str = "fp32", **more: Any) -> Path:
    samples = pictures(8)
    given = {"batch": 1, "io_precision": "fp32", "samples": [samples[:1]], "images": lambda n: [samples], **more}
    module = given.pop("module", None) or mixed()
    (file,) = backend.compile_program(Program(module, (3, 8, 8), **given), folder, RunOptions(), precision)
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`files(precision)`: the same program in each precision, made once."""
    pytest.importorskip("executorch", reason="executorch is not installed")
    made: dict[str, Path] = {}

    def file(precision: str) -> Path:
        if precision not in made:
            labels = {"labels": '["cat", "dog"]'}
            made[precision] = compiled(
                ExecuTorchBackend(), tmp_path_factory.mktemp(precision), precision, metadata=labels
            )
        return made[precision]

    return file


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_are_pytorch_s(backend: ExecuTorchBackend, files: Any, precision: str) -> None:
    with backend.open(files(precision), RunOptions()) as session, torch.no_grad():
        for image in pictures(8)[:, None]:
            wanted = mixed()(torch.from_numpy(image)).numpy()
            got = session.run({"image": image})["logits"]
            assert np.ptp(got) > 0.1
            assert np.abs(got - wanted).max() <= BOUNDS[precision] * np.abs(wanted).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_counted_and_computed_as_asked(backend: ExecuTorchBackend, files: Any, precision: str) -> None:
    file = files(precision)
    told = backend.describe(file)
    report = backend.compile_report(file)
    assert backend.made(file)
    assert told["macs"] == sum(MACS.values())
    census = read(file).census
    kind = {"fp32": {"fp32": 6}, "fp16": {"fp16": 6}, "int8": {"int8": 4, "fp32": 2}}
    assert census.compute == {**kind, "int8-dynamic": {"int8": 2, "fp32": 4}}[precision]
    if precision.startswith("int8"):
        convolutions = ["Conv2d", "DepthwiseConv2d"] if precision == "int8" else []
        weighted = sum(MACS[op] for op in ("FullyConnected", *convolutions))
        assert report[precision]["quantised_macs"] == weighted
        assert report[precision]["macs"] == told["macs"]
    else:
        assert report == ({} if precision == "fp32" else {"fp16": {"islands": [], "storage": "fp16"}})
    if precision == "fp32":
        assert told["portable"] == 0
        assert census.notes == (f"XNNPACK runs all {told['delegated']} ops",)
    elif precision == "fp16":
        assert census.ops["native_layer_norm (portable)"] == {"fp16": 1}
        assert "native_layer_norm 1" in census.notes[0]


def test_file_tells_of_itself(files: Any) -> None:
    found = read(files("fp32"))
    assert [(spec.name, spec.shape) for spec in found.inputs] == [("image", (1, 3, 8, 8))]
    assert [(spec.name, spec.shape) for spec in found.outputs] == [("logits", (1, 5))]
    assert found.constants["labels"] == '["cat", "dog"]'


class Strange(nn.Module):
    """Seven dimensions, every other token, a mean over two dimensions, an integer scalar, and a product of matrices."""

    def forward(self, image: Tensor) -> Tensor:
        folded = image.reshape(1, 3, 2, 2, 2, 2, 4).permute(0, 5, 3, 1, 6, 2, 4).reshape(1, 8, 24)
        chosen = folded[:, ::3].softmax(-1) @ image.reshape(1, 24, 8)[:, 1::2].repeat(1, 2, 1)
        return torch.cat([chosen.pow(2).mean((0, 1)) / 3, chosen.sum(-1)[0], image.unbind(1)[2].mean((1, 2))])[None]


def test_what_the_delegate_lacks_is_spelled_out(backend: ExecuTorchBackend, tmp_path: Path) -> None:
    file = compiled(backend, tmp_path, module=Strange().eval())
    image = pictures(1)
    with backend.open(file, RunOptions()) as session:
        got = session.run({"image": image})["logits"]
    np.testing.assert_allclose(got, Strange()(torch.from_numpy(image)).numpy(), rtol=1e-4, atol=1e-6)
    assert {op.name for op in read(file).ops if op.portable} <= {"repeat", "expand_copy", "cat"}


def test_sessions_of_different_threads_live_side_by_side(backend: ExecuTorchBackend, files: Any) -> None:
    """They share one pool of threads, which is made anew for the other's number."""
    image = pictures(1)
    with (
        backend.open(files("fp32"), RunOptions(threads=1)) as one,
        backend.open(files("fp32"), RunOptions(threads=2)) as two,
    ):
        wanted = one.run({"image": image})["logits"]
        for session in (two, one, one, two, one):
            np.testing.assert_allclose(session.run({"image": image})["logits"], wanted, rtol=1e-4)
            pool = one._library._threadpool_get_thread_count()  # type: ignore[attr-defined]
            assert pool == (1 if session is one else 2)


def test_file_of_another_maker_is_opened(backend: ExecuTorchBackend, tmp_path: Path) -> None:
    from executorch.exir import to_edge_transform_and_lower

    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh()).eval()
    x = torch.randn(2, 8)
    program = to_edge_transform_and_lower(torch.export.export(net, (x,))).to_executorch()
    (tmp_path / "other.pte").write_bytes(program.buffer)
    with backend.open(tmp_path / "other.pte", RunOptions()) as session:
        got = session.run({"input_0": x.numpy()})["output_0"]
        assert set(session.census().compute) == {"fp32"}
    np.testing.assert_allclose(got, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch": (1, 2, 4)}, "fixed batch"),
        ({"io_precision": "fp16"}, "Inputs and outputs of ExecuTorch.s files are fp32"),
        ({"precision": "bf16"}, "no bf16"),
        ({"precision": "int8-weights"}, "no int8-weights"),
    ],
)
def test_program_is_refused(backend: ExecuTorchBackend, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        compiled(backend, tmp_path, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file_is_told_in_a_sentence(
    backend: ExecuTorchBackend, files: Any, tmp_path: Path, kept: float
) -> None:
    whole = files("fp32").read_bytes()
    file = tmp_path / "short.pte"
    file.write_bytes(whole[: int(kept * len(whole))])
    for use in (partial(backend.open, options=RunOptions()), backend.describe, check_whole):
        with pytest.raises(UsageError, match=r"short.pte.* end is missing"):
            use(file)


def test_damaged_file_is_told_in_a_sentence(backend: ExecuTorchBackend, files: Any, tmp_path: Path) -> None:
    whole = files("fp32").read_bytes()
    file = tmp_path / "damaged.pte"
    told = []
    for at in range(40, 1500, 37):
        file.write_bytes(whole[:at] + bytes(8 * [255]) + whole[at + 8 :])
        try:
            backend.describe(file)
        except (UsageError, BackendError) as error:
            told.append(error.message)
    assert told
    assert all(len(message.splitlines()) == 1 for message in told)


def test_run_refuses_another_shape_and_another_batch(backend: ExecuTorchBackend, files: Any) -> None:
    with backend.open(files("fp32"), RunOptions()) as session:
        for wrong in (pictures(2), pictures(1)[..., :4]):
            with pytest.raises(UsageError, match="shape"):
                session.run({"image": wrong})


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["mobilevit_xs", "levit_256", "deit_tiny_patch16_224"])
def test_whole_model_is_proven(backend: ExecuTorchBackend, tmp_path: Path, name: str, precision: str) -> None:
    int8 = {"calib_random": True, "calib_images": 16} if precision == "int8" else {}
    made = api.export(name, precision=precision, backend="executorch", bench=False, out=tmp_path / "made", **int8)
    assert made.manifest.verification is not None
    assert made.manifest.verification["passed"]
    portable = {op for op in made.manifest.applied["census"]["ops"] if op.endswith("(portable)")}
    casts = {
        "_to_dim_order_copy (portable)",
        "native_layer_norm (portable)",
        "gelu (portable)",
        "_clone_dim_order (portable)",
    }
    assert portable <= (casts if precision == "fp16" else set())


def test_absent_package_is_told_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend_module, "installed", lambda package: None)
    can = ExecuTorchBackend().capabilities()
    assert not can.installed
    assert can.fix == "pip install 'vitdeploy[executorch]'"
    file = tmp_path / "model.pte"
    file.write_bytes(bytes(64))
    with pytest.raises(MissingDependency, match="executorch"):
        ExecuTorchBackend().open(file, RunOptions())
    with pytest.raises(MissingDependency, match="executorch"):
        ExecuTorchBackend().compile_program(Program(Mixed(), (3, 8, 8), 1, "fp32", []), tmp_path, RunOptions(), "fp32")
