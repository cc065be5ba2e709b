"""NVIDIA's ONNX parser and ahead-of-time builder, which need no GPU: the package tensorrt-rtx-cu13."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# What a machine without a GPU can build for; also the oldest that TensorRT 10 and 11 know.
CAPABILITY = "SM89"


def parse(path: str) -> tuple[Any, Any, Any, list[str]]:
    """(builder, network, logger, the parser's errors)."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(path)
    errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    return builder, network, logger, errors if errors or parsed else ["the parser gives no reason"]


def build(path: str, batches: tuple[int, int, int], capability: str = CAPABILITY) -> int:
    import tensorrt_rtx as trt

    builder, network, logger, errors = parse(path)
    if errors: raise RuntimeError('; '.join(errors))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    if image.shape[0] == -1:
        profile.set_shape(image.name, *((n, *image.shape[1:]) for n in batches))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None: raise RuntimeError('no plan')
    return plan.nbytes
