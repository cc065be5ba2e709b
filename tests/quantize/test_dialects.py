"""Every dialect of Q/DQ is standard ONNX: each runtime loads each one and gives nearly the same numbers, or says no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_fp16 import eager, rel_l2
from test_int8 import photos
from test_lint import graph_of, own_cache  # noqa: F401 -- a fixture
from this_cpu import SCHEME

from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UnsupportedModel
from vitdeploy.graph.run import values
from vitdeploy.graph.save import save
from vitdeploy.quantize.schemes import SCHEMES

SMALL = ("deit_tiny_patch16_224", "levit_128s", "mobilevit_xxs")
# Calibrated on two images and with random weights, int8 is far from fp32; 7 bits a weight are farther.
NEAR_FLOAT = {"deit_tiny_patch16_224": 0.1, "levit_128s": 0.6, "mobilevit_xxs": 0.4}
# Between a runtime and the graph's own meaning, run op by op. OpenVINO comes up to 0.17 apart, by the CPU, where
# activations are signed.
SAME = {"onnxruntime": 0.15, "openvino": 0.25}


def outputs(backend: str, path: Path, x: np.ndarray) -> np.ndarray:
    if not registry.get(backend).capabilities().installed:
        pytest.skip(f"{backend} is not installed")
    with registry.get(backend).open(path, RunOptions()) as session:
        return session.run({"image": x})["logits"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SMALL)
def test_runtime_gives_the_graphs_numbers_when_the_dialect_is_anyones(
    name: str, scheme: str, backend: str, tmp_path: Path
) -> None:
    if SCHEMES[scheme].weight_peak > SCHEME.weight_peak:
        pytest.skip("without VNNI, products of weights of 8 bits are added in 16 bits, which overflow")
    model = graph_of(name, scheme)
    (path,) = save(model, tmp_path / "model.onnx")
    x = photos(name, 3, seed=1)
    got = outputs(backend, path, x)
    assert rel_l2(got, eager(name, x)) < NEAR_FLOAT[name]
    assert rel_l2(got, dict(values(model, {"image": x}, ["logits"]))["logits"]) < SAME[backend]


@pytest.mark.parametrize("scheme", ["tensorrt"])
def test_openvino_refuses_the_file_when_it_would_compute_garbage(scheme: str, tmp_path: Path) -> None:
    """A quantised convolution before an InstanceNormalization, as MobileViTv2 has them."""
    (path,) = save(graph_of("mobilevitv2_050", scheme), tmp_path / "model.onnx")
    x = photos("mobilevitv2_050", 2, seed=1)
    with pytest.raises(UnsupportedModel, match=r"garbage.*must not follow"):
        outputs("openvino", path, x)
