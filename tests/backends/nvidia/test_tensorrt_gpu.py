"""The whole way on a GPU, where there is one: engines that run, equal eager PyTorch, and tell what they run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.nvidia.gpus import driver
from vitdeploy.backends.nvidia.session import TensorRtSession
from vitdeploy.errors import BackendError, UsageError

pytestmark = pytest.mark.gpu
NAMES = ("vit_tiny_patch16_224", "mobilevit_xxs", "levit_128s")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest) -> str:
    can = registry.get(request.param).capabilities()
    if not can.installed or not can.devices:
        pytest.skip(f"{request.param}: {can.reason}")
    return str(request.param)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_engine_equals_eager_pytorch_and_runs_what_was_asked_for(
    name: str, precision: str, backend: str, tmp_path: Path
) -> None:
    artifact = vitdeploy.export(
        name,
        precision=precision,
        backend=backend,
        batch=(1, 2, 8),
        calib_random=precision == "int8",
        duration=0.3,
        out=tmp_path / "artifact",
    )
    manifest = artifact.manifest
    assert manifest.verification is not None
    assert manifest.verification["passed"]
    assert manifest.verification["stand_in"] == ""
    assert precision in manifest.applied["census"]["compute"]
    assert manifest.applied["compiled"]["gpu"] == driver().gpus[0].name
    assert manifest.bench is not None
    assert {"h2d", "compute", "d2h", "latency", "enqueue"} == set(manifest.bench["parts"])


def test_session_runs_every_batch_of_its_profile_with_and_without_cuda_graphs(backend: str, tmp_path: Path) -> None:
    artifact = vitdeploy.export(
        "vit_tiny_patch16_224", precision="fp16", backend=backend, batch=(1, 2, 4), bench=False, out=tmp_path / "a"
    )
    image = np.random.default_rng(0).standard_normal((4, 3, 224, 224), np.float32)
    with (
        vitdeploy.load(artifact.folder) as plain,
        vitdeploy.load(artifact.folder, provider_options={"cuda_graph": "1"}) as graphed,
    ):
        assert isinstance(plain, TensorRtSession)
        whole = plain.run({"image": image})["logits"]
        for batch in (1, 3, 2, 4, 1):
            for session in (plain, graphed, plain.fork()):
                got = session.run({"image": image[:batch]})["logits"]
                np.testing.assert_allclose(got, whole[:batch], rtol=2e-2, atol=2e-2)
        with pytest.raises(UsageError, match="not of 5x3x224x224"):
            plain.run({"image": np.repeat(image[:1], 5, axis=0)})
        layers = plain.layer_seconds({"image": image})
        assert len(layers) > 10
        assert sum(layers.values()) > 0


def test_engine_of_another_version_or_gpu_is_refused_in_a_sentence(backend: str, tmp_path: Path) -> None:
    artifact = vitdeploy.export(
        "vit_tiny_patch16_224", precision="fp16", backend=backend, bench=False, out=tmp_path / "a"
    )
    file = artifact.folder / "engine.json"
    facts = json.loads(file.read_text())
    for changed, says in (({"version": "1.2.3.4"}, "was built by"), ({"compute_capabilities": ["3.5"]}, "is for GPUs")):
        file.write_text(json.dumps(facts | changed))
        with pytest.raises(BackendError, match=says):
            vitdeploy.load(artifact.folder)


@pytest.mark.parametrize("data", [b"", b"ftrt", b"vtrt" + bytes(100), bytes(1000)])
def test_file_that_is_no_plan_is_refused_in_a_sentence(data: bytes, backend: str, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(data)
    with pytest.raises((UsageError, BackendError)):
        registry.get(backend).open(tmp_path / "model.plan", RunOptions())
