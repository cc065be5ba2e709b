"""The Core ML backend: what the contract does not ask of every backend."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy import api
from vitdeploy.backends import coreml as backend_module
from vitdeploy.backends.base import Program, RunOptions
from vitdeploy.backends.coreml import CoreMlBackend
from vitdeploy.backends.coreml_file import PACKAGE, WEIGHTS, blob_of, read, root
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError, VerificationFailed

SMALL: dict[str, Any] = {"image_size": (64, 64), "num_classes": 10}
PRECISIONS = ("fp32", "fp16", "int8-weights")
# Of fp32's bytes, at most: small models keep biases, tables and the program itself as they are.
SIZES = {"fp32": 1.0, "fp16": 0.6, "int8-weights": 0.4}
ERRORS = {"fp32": 1e-5, "fp16": 5e-3, "int8-weights": 3e-2}
CORE_ML = sys.platform == "darwin"
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture
def backend() -> CoreMlBackend:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    return CoreMlBackend()


class Mixed(nn.Module):
    """One of each product, whose multiply-accumulates are easily counted."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.deep(self.wide(image).relu())).flatten(2).transpose(1, 2)
        return self.head((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).mean(1)


MACS = {"conv": 64 * 16 * (27 + 9), "linear": 64 * 16 * 5, "matmul": 2 * 64 * 64 * 16}


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


def image(size: int = 8, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((batch, 3, size, size)).astype(np.float32)


def compiled(
    backend: CoreMlBackend, folder: Path, precision: str = "fp32", net: nn.Module | None = None, **more: Any
) -> Path:
    given = {"batch": 1, "io_precision": "fp32", "samples": [], **more}
    program = Program(net or mixed(), (3, 8, 8), **given)
    return backend.compile_program(program, folder, RunOptions(), precision)[0]


@pytest.fixture
def plain(backend: CoreMlBackend, once: Once) -> Path:
    """The model file of Mixed in fp32, which is only to be read."""
    metadata = {"vitdeploy.input": "an image", "labels": '["a"]'}
    return root(once("coreml-plain", lambda folder: compiled(backend, folder, metadata=metadata)) / PACKAGE)


def ran(backend: CoreMlBackend, file: Path, pixels: np.ndarray) -> np.ndarray:
    with backend.open_stand_in(file, RunOptions()) as session:
        return session.run({"image": pixels})["logits"]


def copied(file: Path, folder: Path) -> Path:
    """A copy of a package, to be damaged; returns its model file."""
    import shutil

    return root(Path(shutil.copytree(file.parents[2], folder / PACKAGE)))


def largest(file: Path) -> np.ndarray:
    return max((one for one in read(file).constants.values() if isinstance(one, np.ndarray)), key=lambda one: one.size)


def erase(file: Path, value: np.ndarray) -> None:
    """Overwrite a constant with zeros where it lies in the package's weights."""
    content = value.tobytes()
    weights = file.parent / WEIGHTS
    whole = weights.read_bytes()
    assert whole.count(content) == 1
    weights.write_bytes(whole.replace(content, bytes(len(content))))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_counted_and_stored_as_asked(backend: CoreMlBackend, tmp_path: Path, precision: str) -> None:
    file = compiled(backend, tmp_path, precision)
    told = backend.describe(file)
    assert backend.made(file)
    assert backend.made(tmp_path / PACKAGE)
    assert told["macs"] == sum(MACS.values())
    assert told["runs_on"] == "iOS 16, macOS 13 and newer"
    assert told["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 3, 8, 8]}]
    assert told["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 5]}]
    assert "batch_norm" not in told["ops"]
    assert told["bytes"] == sum(path.stat().st_size for path in file.parent.rglob("*") if path.is_file())
    report = backend.compile_report(file)
    with backend.open_stand_in(file, RunOptions()) as session:
        census = session.census()
        got = session.run({"image": image()})["logits"]
    assert census.compute == {"fp16" if precision == "fp16" else "fp32": 5}
    assert census.casts == (2 if precision == "fp16" else 0)
    if precision == "int8-weights":
        assert [one["precision"] for one in report[precision]["ops"]] == ["int8"] * 3
    else:
        assert report == {}
    want = mixed()(torch.from_numpy(image())).detach().numpy()
    assert np.abs(got - want).max() <= ERRORS[precision] * np.abs(want).max()


def test_package_tells_of_itself_and_of_nothing_that_changes(
    backend: CoreMlBackend, plain: Path, tmp_path: Path
) -> None:
    found = read(plain)
    assert found.metadata["vitdeploy.input"] == "an image"
    assert found.metadata["labels"] == '["a"]'
    assert not [key for key in found.metadata if "date" in key]
    index = json.loads((plain.parents[2] / "Manifest.json").read_bytes())
    assert {one["path"] for one in index["itemInfoEntries"].values()} == {
        "com.apple.CoreML/model.mlmodel",
        "com.apple.CoreML/weights",
    }
    again = compiled(backend, tmp_path, metadata={"vitdeploy.input": "an image", "labels": '["a"]'})
    for name in ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", f"Data/com.apple.CoreML/{WEIGHTS}"):
        assert (plain.parents[2] / name).read_bytes() == (again.parents[2] / name).read_bytes()


def test_every_weight_of_the_file_is_read(backend: CoreMlBackend, plain: Path, tmp_path: Path) -> None:
    """Of the norm nothing is left: it is within the convolution before it."""
    floats = [one for one in read(plain).constants.values() if getattr(one, "dtype", None) == np.float32]
    large = [np.array(one) for one in floats if one.size > 10]
    net = mixed()
    assert sorted(one.size for one in large) == sorted(
        p.numel() for name, p in net.named_parameters() if p.numel() > 10 and not name.startswith("norm")
    )
    want = ran(backend, plain, image())
    for i, value in enumerate(large):
        file = copied(plain, tmp_path / str(i))
        erase(file, value)
        assert np.abs(ran(backend, file, image()) - want).max() > 1e-3 * np.abs(want).max()


class Windows(nn.Module):
    """Convolutions, pools, pads and slices of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.apart = nn.Conv2d(8, 8, 3, dilation=2, padding=2, groups=2)
        self.norm = nn.GroupNorm(1, 8)
        self.map = nn.Conv2d(8, 4, (1, 3), padding="same")

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.apart(F.hardswish(self.steps(image))))
        x = torch.cat([F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2), x[:, :, ::2, 1::2]], 1)
        x = self.map(F.pad(x, (1, 2, 0, 1))[:, 4:12])
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") * F.relu6(x.flatten(1).sum(-1))[:, None, None, None]
        return torch.roll(x, (1, -1), (2, 3)).flatten(2).amax(-1)


class Tokens(nn.Module):
    """Norms, activations, attention and their like."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, 1e-6)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 6)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(image[:, 0])
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        x = F.normalize(x, dim=-1) + F.gelu(x, approximate="tanh") * torch.sigmoid(x) - F.silu(x.abs().sqrt())
        x = torch.einsum("bnc,bmc->bnm", x, x.exp().clamp(0.1, 2.0)) / (1 + x.square().mean(-1, keepdim=True))
        x = torch.where(x > 0.3, x, 0.1 * x.tanh()) + torch.stack([x, -x], 1).sum(1) + x.std(-1, keepdim=True)
        return self.head(torch.maximum(F.gelu(x), torch.rsqrt(1 + x * x)) @ x.mT).softmax(1)[:, -2]


class Cut(nn.Module):
    """Attention in windows, which are cut and put together in six dimensions: one more than Core ML has."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 24)

    def forward(self, image: Tensor) -> Tensor:
        x = image.reshape(-1, 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 16, 3)
        q, k, v = (part.reshape(-1, 4, 16, 2, 4).transpose(2, 3) for part in self.qkv(x).chunk(3, -1))
        x = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(-1, 2, 2, 4, 4, 8)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, 8, 8, 8).mean(3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [Windows, Tokens, Cut])
def test_stand_in_does_what_pytorch_does(
    backend: CoreMlBackend, tmp_path: Path, kind: type[nn.Module], precision: str
) -> None:
    torch.manual_seed(1)
    net = kind().eval()
    want = net(torch.from_numpy(image(8, 2))).detach().numpy()
    got = ran(backend, compiled(backend, tmp_path, precision, net, batch=2), image(8, 2))
    assert np.abs(got - want).max() <= 2 * ERRORS[precision] * np.abs(want).max()


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), *PRECISIONS[1:]])
def test_model_is_exported_and_verified_again(backend: CoreMlBackend, tmp_path: Path, precision: str) -> None:
    more: dict[str, Any] = {**SMALL, "bench": False, "out": tmp_path / "made"}
    made = api.export("vit_tiny_patch16_224", precision=precision, backend="coreml", **more)
    found = made.manifest.verification
    assert found is not None
    assert found["passed"]
    assert found["stand_in"] == ("" if CORE_ML else backend.stand_in)
    assert made.manifest.model_file == f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"
    package = [entry["bytes"] for name, entry in made.manifest.files.items() if name.startswith(PACKAGE)]
    assert len(package) == 3
    assert sum(package) <= SIZES[precision] * made.manifest.graph["parameters"] * 4 * 1.1 + 150_000
    texts = [(made.folder / name).read_text("utf-8") for name in ("report.md", "report.html", "model-card.md")]
    if not CORE_ML:
        assert "**not run**" in texts[0]
        assert "and not Core ML" in texts[0]
        assert "and not Core ML" in texts[1]
        assert "has not run yet" in texts[2]
    again = api.verify(made.folder / PACKAGE)
    assert again
    assert again.stand_in == found["stand_in"]
    erase(made.model_path, largest(made.model_path))
    with pytest.raises(VerificationFailed):
        api.verify(made.folder)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["mobilevit_xs", "levit_256", "deit_tiny_patch16_224"])
def test_whole_model_is_proven(backend: CoreMlBackend, tmp_path: Path, name: str, precision: str) -> None:
    made = api.export(name, precision=precision, backend="coreml", bench=False, out=tmp_path / "made")
    assert made.manifest.verification is not None
    assert made.manifest.verification["passed"]


def test_gelu_stays_of_the_kind_that_it_is(backend: CoreMlBackend, tmp_path: Path) -> None:
    """The exact one and that by tanh differ by 2e-4: in fp32 they are not to be taken for each other."""
    net = nn.Sequential(nn.GELU(approximate="tanh"), nn.GELU(), nn.Flatten(2)).eval()
    got = ran(backend, compiled(backend, tmp_path, net=net), image())
    np.testing.assert_allclose(got, net(torch.from_numpy(image())).numpy(), rtol=1e-6, atol=1e-6)
    assert [path.name for path in tmp_path.rglob("weight.bin")] == []


def test_package_of_another_maker_is_opened_by_its_own_names(backend: CoreMlBackend, tmp_path: Path) -> None:
    import coremltools as ct

    net, pixels = nn.Conv2d(3, 5, 3), torch.from_numpy(image())
    program = torch.export.export(net, (pixels,)).run_decompositions({})
    made = ct.convert(program, inputs=[ct.TensorType("picture", shape=(1, 3, 8, 8))], skip_model_load=True)
    made.save(str(tmp_path / "other.mlpackage"))
    assert backend.made(tmp_path / "other.mlpackage")
    with backend.open_stand_in(tmp_path / "other.mlpackage", RunOptions()) as session:
        (entry,), (out,) = session.inputs, session.outputs
        assert entry.name == "picture"
        got = session.run({entry.name: image().astype(entry.dtype)})[out.name]
    np.testing.assert_allclose(got, net(pixels).detach().numpy(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"batch": (1, 2, 4)}, "fixed batch"),
        ({"io_precision": "fp16"}, "fp32 here"),
        ({"precision": "bf16"}, "no bf16"),
    ],
)
def test_program_is_refused(backend: CoreMlBackend, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        compiled(backend, tmp_path, **more)
    assert not list(tmp_path.iterdir())


def test_op_that_the_converter_lacks_is_told_in_a_sentence(backend: CoreMlBackend, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.special.bessel_j0(image).mean((2, 3))

    with pytest.raises(UnsupportedModel, match=r"cannot convert.*bessel") as raised:
        compiled(backend, tmp_path, net=Odd())
    assert len(raised.value.message.splitlines()) == 1


def test_op_that_the_stand_in_lacks_is_told_in_a_sentence(
    backend: CoreMlBackend, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.backends import coreml_stand_in

    monkeypatch.delitem(coreml_stand_in.OPS, "softmax")
    with pytest.raises(UnsupportedModel, match="does not know the op softmax"):
        backend.open_stand_in(plain, RunOptions())


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "header"])
def test_damaged_weights_are_told_in_a_sentence(
    backend: CoreMlBackend, plain: Path, tmp_path: Path, damage: str
) -> None:
    file = copied(plain, tmp_path)
    weights = file.parent / WEIGHTS
    whole = weights.read_bytes()
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes({"cut": whole[:-64], "empty": b"", "header": bytes(128) + whole[128:]}[damage])
    for use in (backend.describe, partial(backend.open_stand_in, options=RunOptions())):
        with pytest.raises(UsageError, match=r"model\.mlmodel is a damaged Core ML model: .+") as raised:
            use(file)
        assert len(raised.value.message.splitlines()) == 1


def test_damaged_program_is_told_in_a_sentence(backend: CoreMlBackend, plain: Path, tmp_path: Path) -> None:
    whole, file = plain.read_bytes(), copied(plain, tmp_path)
    told = []
    for at in range(8, len(whole), len(whole) // 40):
        file.write_bytes(whole[:at] + bytes(8 * [255]) + whole[at + 8 :])
        try:
            read(file)
        except UsageError as error:
            told.append(error.message)
    assert len(told) > 10
    assert all(len(message.splitlines()) == 1 for message in told)


@pytest.mark.parametrize("index", ["", "{}", '{"rootModelIdentifier": 1, "itemInfoEntries": {}}', "gone", "outside"])
def test_package_without_its_index_is_no_package(
    backend: CoreMlBackend, plain: Path, tmp_path: Path, index: str
) -> None:
    package = copied(plain, tmp_path).parents[2]
    if index == "gone":
        (package / "Manifest.json").unlink()
    else:
        entries = {"itemInfoEntries": {"a": {"path": "../../../else"}}, "rootModelIdentifier": "a"}
        (package / "Manifest.json").write_text(json.dumps(entries) if index == "outside" else index)
    with pytest.raises(UsageError, match="not a Core ML package"):
        backend.open_stand_in(package, RunOptions())


def test_four_bits_are_unpacked_low_half_first() -> None:
    import struct

    header = struct.pack("<IIQQQ", 0xDEADBEEF, 8, 2, 64, 0).ljust(64, b"\0")
    blob = np.frombuffer(header + bytes([0x21, 0xF8]), np.uint8)
    assert blob_of(blob, 0, "int4", (2, 2)).tolist() == [[1, 2], [-8, -1]]


@pytest.mark.skipif(CORE_ML, reason="Core ML is here")
def test_file_does_not_run_where_core_ml_is_not(backend: CoreMlBackend, plain: Path) -> None:
    can = backend.capabilities()
    assert can.installed
    assert can.devices == ()
    assert "macOS alone" in can.reason
    with pytest.raises(MissingDependency, match="macOS alone"):
        backend.open(plain, RunOptions())


@pytest.mark.skipif(not CORE_ML, reason="Core ML runs on macOS alone")
@pytest.mark.parametrize("device", ["all", "cpu", "cpu+gpu", "cpu+ane"])
def test_core_ml_agrees_with_the_stand_in(backend: CoreMlBackend, plain: Path, device: str) -> None:
    with backend.open(plain, RunOptions(device)) as session:
        got = session.run({"image": image()})["logits"]
    np.testing.assert_allclose(got, ran(backend, plain, image()), rtol=1e-3, atol=1e-3)


def test_session_hands_core_ml_what_it_takes(
    backend: CoreMlBackend, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With something in place of Core ML's own class that has the same methods."""
    import coremltools as ct

    opened: list[tuple[str, Any]] = []

    class Native:
        def __init__(self, path: str, compute_units: Any) -> None:
            opened.append((path, compute_units))

        def predict(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert given["image"].flags.c_contiguous
            if np.isnan(given["image"]).any():
                raise RuntimeError("Error computing NN outputs.\nmore")
            return {"logits": ran(backend, plain, given["image"]).astype(np.float64), "other": np.zeros(1)}

    monkeypatch.setattr(backend_module, "runs_here", lambda: True)
    monkeypatch.setattr(ct.models, "MLModel", Native)
    can = backend.capabilities()
    assert can.devices == ("all", "cpu", "cpu+gpu", "cpu+ane")
    assert not backend.compiles_ahead(RunOptions())
    session = backend.open(plain.parents[2], RunOptions("cpu+ane"))
    assert opened == [(str(plain.parents[2]), ct.ComputeUnit.CPU_AND_NE)]
    got = session.run({"image": np.asfortranarray(image())})
    assert list(got) == ["logits"]
    assert got["logits"].dtype == np.float32
    np.testing.assert_array_equal(got["logits"], ran(backend, plain, image()))
    assert session.census().compute == {"fp32": 5}
    with pytest.raises(BackendError, match=r"^Core ML failed: Error computing NN outputs\.$"):
        session.run({"image": image() * np.float32(np.nan)})
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"image": image()})


def test_absent_package_is_told_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend_module, "installed", lambda package: None)
    can = CoreMlBackend().capabilities()
    assert not can.installed
    assert can.fix == "pip install 'vitdeploy[coreml]'"
    file = tmp_path / "model.mlmodel"
    file.write_bytes(b"\x08\x07")
    uses = (partial(CoreMlBackend().open, options=RunOptions()), CoreMlBackend().describe)
    for use in (*uses, partial(CoreMlBackend().open_stand_in, options=RunOptions())):
        with pytest.raises(MissingDependency, match="coremltools"):
            use(file)
    with pytest.raises(MissingDependency, match="coremltools"):
        compiled(CoreMlBackend(), tmp_path)
