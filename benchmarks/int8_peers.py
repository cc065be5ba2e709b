"""The peers that vitdeploy's int8 is held against, and how all of them are run: for the int8_*.py scripts.

- ONNX Runtime's `quantize_static`: Q/DQ, u8 activations, s8 weights, one scale an output channel, extremes as ranges.
- NNCF's `quantize` with the TRANSFORMER preset (SmoothQuant and fast bias correction included), on OpenVINO.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.graph.load import load
from vitdeploy.graph.ops import macs

BATCH = 32
PRODUCTS = ["MatMul", "Gemm", "Conv"]
Run = Callable[[np.ndarray], np.ndarray]


def bare_export(module: torch.nn.Module, size: tuple[int, ...], path: Path) -> None:
    """torch.onnx.export as it comes, with a fixed batch of 32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.randn(BATCH, *size, generator=torch.Generator().manual_seed(0)),),
            str(path),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
        )


def batches(images: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    """Batches of which the last starts over where it is short."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield part if len(part) == size else part[np.arange(size) % len(part)]


def quantize_static(
    bare: Path, images: np.ndarray, out: Path, ops: list[str] | None, *, attention: bool = True, batch: int = BATCH
) -> None:
    """ONNX Runtime's own static int8 of an exported file: all ops that it can quantise, or these types.

    Without `attention`, products of two activations stay in float, as they do in vitdeploy.
    """
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = ({"image": part} for part in batches(images, batch))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    prepared = out.with_suffix(".prepared.onnx")
    q.shape_inference.quant_pre_process(str(bare), str(prepared))
    graph = onnx.load(str(prepared)).graph
    known = {initializer.name for initializer in graph.initializer}
    both = [n.name for n in graph.node if n.op_type == "MatMul" and not known & set(n.input)]
    q.quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        op_types_to_quantize=ops,
        nodes_to_exclude=[] if attention else both,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )


def nncf_quantize(bare: Path, images: np.ndarray, out: Path, *, batch: int = BATCH) -> None:
    """NNCF's static int8 of an exported file, as OpenVINO IR."""
    import nncf
    import openvino

    model = openvino.convert_model(str(bare))
    parts = list(batches(images, batch))
    found = nncf.quantize(model, nncf.Dataset(parts), subset_size=len(parts), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(found, str(out), compress_to_fp16=False)


def on_onnxruntime(path: Path, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: together(lambda batch: session.run(None, {"image": batch})[0], images)


def on_openvino(path: Path, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "EXECUTION_MODE_HINT": "ACCURACY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: together(lambda batch: compiled(batch)[0].copy(), images)


def together(run: Run, images: np.ndarray) -> np.ndarray:
    return np.concatenate([run(batch) for batch in batches(images)])[: len(images)]


def int8_share(path: Path) -> float:
    """The share of an ONNX file's MACs whose two factors both come from a DequantizeLinear."""
    model = load(path)
    work = macs(model)
    done = 0
    for node in model.graph:
        makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
        if all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            done += work.nodes.get(node.name or node.outputs[0].name or "", 0)
    return done / max(work.total, 1)


def ran_in_int8(path: Path) -> str:
    """Products that run in int8 and all products, as ONNX Runtime's optimised graph has them."""
    with OnnxRuntimeBackend().open(path, RunOptions()) as session:
        compute = session.census().compute
    return f"{compute.get('int8', 0)} of {sum(compute.values())}"


def ran_in_int8_on_openvino(path: Path) -> str:
    """The same of what OpenVINO executes."""
    import openvino

    from vitdeploy.backends.openvino_census import count

    core = openvino.Core()
    model = core.read_model(str(path))
    compiled = core.compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    compute = count(compiled.get_runtime_model(), model, False).compute
    return f"{compute.get('int8', 0)} of {sum(compute.values())}"
