"""The LiteRT backend: what the contract does not ask of every backend."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitdeploy import api
from vitdeploy.backends import litert as backend_module
from vitdeploy.backends.base import Program, RunOptions
from vitdeploy.backends.litert import LiteRtBackend
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError

SMALL: dict[str, Any] = {"image_size": (64, 64), "num_classes": 10}
PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int8-weights")
# Of fp32's bytes, at most: small models keep biases, tables and the graph itself as they are.
SIZES = {"fp32": 1.0, "fp16": 0.6, "int8": 0.4, "int8-dynamic": 0.4, "int8-weights": 0.4}


@pytest.fixture
def backend() -> LiteRtBackend:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("litert_torch", reason="litert-torch is not installed")
    return LiteRtBackend()


class Mixed(nn.Module):
    """One of each product, whose multiply-accumulates are easily counted."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.deep(self.wide(image).relu()).flatten(2).transpose(1, 2)
        return self.head((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).mean(1)


MACS = {"conv_2d": 64 * 16 * 27, "depthwise_conv_2d": 64 * 16 * 9, "fully_connected": 64 * 16 * 5}


def compiled(backend: LiteRtBackend, folder: Path, precision: str = "fp32", **more: Any) -> Path:
    torch.manual_seed(0)
    samples = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    given = {"batch": 1, "io_precision": "fp32", "samples": [samples[:1]], "images": lambda n: [samples], **more}
    program = Program(Mixed().eval(), (3, 8, 8), **given)
    (file,) = backend.compile_program(program, folder, RunOptions(), precision)
    return file


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_counted_and_stored_as_asked(backend: LiteRtBackend, tmp_path: Path, precision: str) -> None:
    file = compiled(backend, tmp_path, precision)
    told = backend.describe(file)
    products = 2 * 64 * 64 * 16
    assert told["macs"] == sum(MACS.values()) + products
    assert backend.made(file)
    report = backend.compile_report(file)
    # The converter makes a FULLY_CONNECTED of one of the products of activations too.
    weighted = {"int8": 4, "int8-dynamic": 3}.get(precision, 0)
    with backend.open(file, RunOptions()) as session:
        census = session.census()
    assert census.compute.get("int8", 0) == weighted
    assert sum(census.compute.values()) == 5
    if precision in ("int8", "int8-dynamic"):
        assert report[precision]["quantised_macs"] >= sum(MACS.values())
        assert {one["op_type"].lower(): one["macs"] for one in report[precision]["ops"]}.items() >= MACS.items()
        assert bool(census.casts) == (precision == "int8")
    elif precision == "int8-weights":
        assert [one["precision"] for one in report[precision]["ops"]].count("int8") == 3
        assert census.casts == 0
    else:
        assert report == {}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_model_is_exported_and_verified_again(backend: LiteRtBackend, tmp_path: Path, precision: str) -> None:
    int8 = {"calib_random": True, "tolerance": 0.6} if precision == "int8" else {}  # few tokens, random weights
    more: dict[str, Any] = {**SMALL, **int8, "bench": False, "out": tmp_path / "made"}
    made = api.export("vit_tiny_patch16_224", precision=precision, backend="litert", **more)
    assert made.manifest.verification is not None
    assert made.manifest.verification["passed"]
    weights = made.manifest.graph["parameters"] * 4
    assert made.model_path.stat().st_size <= SIZES[precision] * weights * 1.1 + 100_000
    assert api.verify(made.folder, tolerance=int8.get("tolerance"))


def test_file_of_another_maker_is_opened_by_its_own_names(backend: LiteRtBackend, tmp_path: Path) -> None:
    import litert_torch

    image = torch.randn(1, 3, 8, 8)
    net = Mixed().eval()
    litert_torch.convert(net, (image,)).export(str(tmp_path / "other.tflite"))
    with backend.open(tmp_path / "other.tflite", RunOptions()) as session:
        (entry,), (out,) = session.inputs, session.outputs
        got = session.run({entry.name: image.numpy()})[out.name]
    np.testing.assert_allclose(got, net(image).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"batch": (1, 2, 4)}, UnsupportedModel, "fixed batch"),
        ({"io_precision": "fp16"}, UnsupportedModel, "Inputs and outputs of LiteRT.s files are fp32"),
        ({"precision": "bf16"}, UnsupportedModel, "no bf16"),
    ],
)
def test_program_is_refused(
    backend: LiteRtBackend, tmp_path: Path, more: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        compiled(backend, tmp_path, **more)
    assert not list(tmp_path.iterdir())


def test_damaged_file_is_told_in_a_sentence(backend: LiteRtBackend, tmp_path: Path) -> None:
    whole = compiled(backend, tmp_path).read_bytes()
    file = tmp_path / "damaged.tflite"
    told = []
    for at in range(8, 500, 61):
        file.write_bytes(whole[:at] + bytes(8 * [255]) + whole[at + 8 :])
        try:
            backend.describe(file)
        except (UsageError, BackendError) as error:
            told.append(error.message)
    assert told
    assert all(len(message.splitlines()) == 1 for message in told)


def test_absent_packages_are_told_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend_module, "installed", lambda package: None)
    can = LiteRtBackend().capabilities()
    assert not can.installed
    assert can.fix == "pip install 'vitdeploy[litert]'"
    file = tmp_path / "model.tflite"
    file.write_bytes(bytes(64))
    for use in (partial(LiteRtBackend().open, options=RunOptions()), LiteRtBackend().describe):
        with pytest.raises(MissingDependency, match="ai-edge-litert"):
            use(file)
    monkeypatch.setattr(backend_module, "installed", lambda package: "2.3.0" if "edge" in package else None)
    can = LiteRtBackend().capabilities()
    assert can.installed
    assert "litert-torch is not installed" in can.reason
    with pytest.raises(MissingDependency, match="litert-torch"):
        LiteRtBackend().compile_program(Program(Mixed(), (3, 8, 8), 1, "fp32", []), tmp_path, RunOptions(), "fp32")
