"""Write a graph to a file and run it: what the tests of this folder compare with eager PyTorch."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.spec import InputSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

BOUND = 1e-5  # of the largest logit


def export_file(module: nn.Module, shape: tuple[int, int, int], batch: Any, path: Path, opset: int = 20) -> ir.Model:
    """Trace, optimise and save; returns the graph."""
    from vitdeploy.export.passes import optimise
    from vitdeploy.export.trace import trace
    from vitdeploy.graph.save import save

    graph = trace(module, shape, batch=batch, opset=opset)
    optimise(graph)
    save(graph, path)
    return graph


def run_file(path: Path, image: np.ndarray) -> np.ndarray:
    """The only output of a file, from ONNX Runtime on the CPU as users run it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


def images(shape: tuple[int, int, int], count: int, seed: int = 0) -> np.ndarray:
    """Synthetic images (count, C, H, W)."""
    return synthetic_images(InputSpec(shape, (0.5,) * shape[0], (0.25,) * shape[0]), count, seed)


def eager(module: nn.Module, image: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return module.eval()(torch.from_numpy(image)).numpy()


def eager_double(module: nn.Module, image: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return deepcopy(module).eval().double()(torch.from_numpy(image).double()).numpy()


def assert_file_equals_eager(path: Path, module: nn.Module, shape: tuple[int, int, int], *batches: int) -> None:
    """Equal on two synthetic images a batch size, on outputs that depend on the image."""
    outputs = []
    for batch in batches:
        for seed in range(1 if batch > 1 else 2):
            image = images(shape, batch, seed)
            expected = eager(module, image)
            got = run_file(path, image)
            assert got.shape == expected.shape
            assert got.dtype == np.float32
            difference = float(np.abs(got - expected).max())
            scale = float(np.abs(expected).max())
            if difference > BOUND * scale:  # eager float32 is one rounding of the model; the exact function decides
                difference = float(np.abs(got - eager_double(module, image)).max())
            assert difference <= BOUND * scale, f"batch {batch}: {difference / scale:.1e} of the largest output"
            outputs.append(expected[:1])
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01 * np.abs(outputs[0]).max(), "it sees no images: a dead test"
