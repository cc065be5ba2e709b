"""NVIDIA's own ONNX parser and ahead-of-time builder, which need no GPU: the package tensorrt-rtx-cu13."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitdeploy.backends import isolate
from vitdeploy.backends.nvidia.layers import NARROW, Layer, from_log, precisions
from vitdeploy.errors import BackendError
from vitdeploy.graph.save import save


def engine(
    model: ir.Model, folder: Path, batches: tuple[int, int, int] = (1, 2, 8), capability: str = "SM89"
) -> list[Layer]:
    """The layers that a graph becomes on GPUs of a compute capability; a dynamic batch ranges over `batches`.

    Raises BackendError with the parser's or builder's words, or when either crashes.
    """
    (path,) = save(model, folder / "model.onnx")
    return isolate.call(_build, str(path), batches, capability, what="TensorRT-RTX", timeout=300)


def _build(path: str, batches: tuple[int, int, int], capability: str) -> list[Layer]:
    """What the child process runs."""
    import tensorrt_rtx as trt

    logger = _listener(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BackendError(f"The parser refuses the graph: {' '.join(reasons)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    image = network.get_input(0)
    if image.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, *((n, *image.shape[1:]) for n in batches))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"The builder refuses the graph: {' '.join(logger.errors)}")
    return from_log(logger.layers)


def _listener(trt: Any) -> Any:
    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            self.layers += [line for line in message.splitlines() if "LayerType: " in line]

    return Listener()


def runs_in(precision: str, layers: list[Layer], node: str) -> bool:
    """Whether a product of the graph multiplies in a precision: both of its operands are of it."""
    return precisions(layers, {node: ""})[node] == precision


def float_products(layers: list[Layer]) -> set[str]:
    """Precisions of the activations in products that run in neither int8 nor fp8."""
    return {kind for layer in layers if layer.multiplies for kind in layer.inputs} - {*NARROW}
