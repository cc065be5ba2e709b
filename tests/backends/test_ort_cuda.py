"""ONNX Runtime's CUDA provider on a real GPU: parity with the CPU, precisions that run, batches, CUDA graphs, parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import vitdeploy
from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import BackendError, MissingDependency, UsageError

pytestmark = pytest.mark.gpu
NAMES = ("vit_tiny_patch16_224", "mobilevit_xxs", "levit_128s")
BOUND = {"fp32": 1e-4, "fp16": 1e-2}  # of the largest logit
GRAPH = {"enable_cuda_graph": "1"}


@pytest.fixture(scope="module", autouse=True)
def cuda() -> None:
    devices = registry.get("onnxruntime").capabilities().devices
    if not any(device.startswith("cuda") for device in devices):
        pytest.skip(f"ONNX Runtime has no CUDA device here, only {', '.join(devices)}")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def artifact(request: pytest.FixtureRequest, session_folder: Path) -> vitdeploy.Artifact:
    return exported("vit_tiny_patch16_224", request.param, session_folder / f"cuda-{request.param}", batch=(1, 2, 4))


def exported(name: str, precision: str, folder: Path, batch: int | tuple[int, int, int] = 1) -> vitdeploy.Artifact:
    return vitdeploy.export(name, precision=precision, device="cuda", batch=batch, duration=0.3, out=folder)


def image(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 224, 224), np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_export_is_proven_and_runs_what_was_asked_for_on_the_gpu(name: str, precision: str, tmp_path: Path) -> None:
    manifest = exported(name, precision, tmp_path / "artifact").manifest
    assert manifest.verification is not None
    assert manifest.verification["passed"]
    census = manifest.applied["census"]
    assert census["compute"].get(precision, 0) > 0
    assert precision == "fp16" or set(census["compute"]) == {"fp32"}
    assert not {"MemcpyFromHost", "MemcpyToHost"} & set(census["ops"])
    assert manifest.bench is not None
    assert set(manifest.bench["parts"]) == {"h2d", "compute", "d2h", "latency"}


def test_outputs_equal_the_cpus_at_every_batch(artifact: vitdeploy.Artifact) -> None:
    bound = BOUND[artifact.manifest.request["precision"]]
    with vitdeploy.load(artifact.folder) as host, vitdeploy.load(artifact.folder, device="cuda") as device:
        for batch in (1, 4, 2, 3, 1):
            want, got = (session.run({"image": image(batch, batch)})["logits"] for session in (host, device))
            assert np.abs(want - got).max() < bound * np.abs(want).max()


def test_cuda_graph_replays_with_new_inputs_and_refuses_another_shape(artifact: vitdeploy.Artifact) -> None:
    with (
        vitdeploy.load(artifact.folder, device="cuda") as plain,
        vitdeploy.load(artifact.folder, device="cuda", provider_options=GRAPH) as graph,
    ):
        for seed in range(4):
            want, got = (session.run({"image": image(2, seed)})["logits"] for session in (plain, graph))
            assert np.abs(want - got).max() < 1e-3 * np.abs(want).max()
        with pytest.raises(UsageError, match="CUDA graph"):
            graph.run({"image": image(3)})
        parts = graph.parts({"image": image(2)}, 0.1)
        got = graph.run({"image": image(2, 9)})["logits"]
        assert np.abs(plain.run({"image": image(2, 9)})["logits"] - got).max() < 1e-3 * np.abs(got).max()
    assert all(seconds > 0 for part in parts.values() for seconds in part)


def test_census_tells_tf32_when_it_is_asked_for(artifact: vitdeploy.Artifact) -> None:
    with vitdeploy.load(artifact.folder, device="cuda", provider_options={"use_tf32": "1"}) as session:
        assert "fp32" not in session.census().compute


def test_compute_without_a_kernel_on_the_gpu_is_an_error(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (uint8[1,3,8,8] x, uint8[4,3,3,3] w) => (int32[1,4,6,6] y) { y = ConvInteger(x, w) }""")
    backend = registry.get("onnxruntime")
    file = backend.compile(ir.from_proto(proto), tmp_path, RunOptions("cuda"))[0]
    with pytest.raises(BackendError, match="1 ConvInteger"):
        backend.open(file, RunOptions("cuda"))


def test_tensorrt_provider_equals_cuda_and_keeps_the_graphs_types(artifact: vitdeploy.Artifact) -> None:
    precision = artifact.manifest.request["precision"]
    try:
        session = vitdeploy.load(artifact.folder, device="cuda", provider="tensorrt")
    except MissingDependency as error:
        pytest.skip(str(error))
    with session, vitdeploy.load(artifact.folder, device="cuda") as plain:
        want, got = (one.run({"image": image(2)})["logits"] for one in (plain, session))
        assert np.abs(want - got).max() < 1e-2 * np.abs(want).max()
        assert {"fp32": "tf32", "fp16": "fp16"}[precision] in session.census().compute
