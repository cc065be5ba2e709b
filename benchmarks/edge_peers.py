"""What others make of timm's models for phones and edge boxes, and how it is run: for edge.py.

Each is the converter's or quantiser's own example, with its defaults, on timm's model with the same weights. A maker
writes files into a folder; a caller opens them and gives a function that runs one image, float32 (1, C, H, W).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from int8_peers import PRODUCTS, nncf_quantize, quantize_static
from torch import nn

Call = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """One file of someone else's.

    Attributes:
        title: the tool, and what it was told.
        runtime, precision: as vitdeploy names them; it is held against our files of that runtime.
        make: (module, calibration images float32 (N, C, H, W), folder) -> the file.
        open: (file, threads) -> a call.
    """

    title: str
    runtime: str
    precision: str
    make: Callable[[nn.Module, np.ndarray, Path], Path]
    open: Callable[[Path, int], Call]


def bare(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
    file = folder / "bare.onnx"
    if not file.exists():
        example = torch.zeros(1, *images.shape[1:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = {"input_names": ["image"], "output_names": ["logits"]}
            torch.onnx.export(module, (example,), str(file), dynamo=True, verbose=False, **names)
    return file


def static(ops: list[str] | None) -> Callable[[nn.Module, np.ndarray, Path], Path]:
    def make(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
        file = folder / f"static-{'all' if ops is None else 'products'}.onnx"
        quantize_static(bare(module, images, folder), images, file, ops, batch=1)
        return file

    return make


def dynamic(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    file = folder / "dynamic.onnx"
    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(str(bare(module, images, folder)), str(prepared))
    quantize_dynamic(str(prepared), str(file), per_channel=True, weight_type=QuantType.QInt8)
    return file


def ort_format(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
    """ONNX Runtime's own converter, in the style that it recommends for the CPU."""
    source = bare(module, images, folder)
    tool = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(source), "--output_dir"]
    subprocess.run([*tool, str(folder), "--optimization_style", "Fixed"], check=True, capture_output=True)
    return folder / "bare.ort"


def nncf(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
    nncf_quantize(bare(module, images, folder), images, folder / "nncf.xml", batch=1)
    return folder / "nncf.xml"


def litert(recipe: str | None) -> Callable[[nn.Module, np.ndarray, Path], Path]:
    def make(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
        import litert_torch

        plain, file = folder / "bare.tflite", folder / f"{recipe or 'bare'}.tflite"
        if not plain.exists():
            litert_torch.convert(module, (torch.zeros(1, *images.shape[1:]),)).export(str(plain))
        if recipe is not None:
            from ai_edge_quantizer import quantizer
            from ai_edge_quantizer import recipe as recipes
            from ai_edge_quantizer.qtyping import TFLOperationName as kinds

            work = quantizer.Quantizer(str(plain), getattr(recipes, recipe)())
            for kind in (kinds.INPUT, kinds.OUTPUT):  # float32, as in all other files
                work.update_quantization_recipe(".*", kind, algorithm_key="no_quantize")
            feeds = [{"args_0": images[i : i + 1]} for i in range(len(images))]
            measured = work.calibrate({"serving_default": feeds}) if work.need_calibration else None
            work.quantize(measured).export_model(str(file))
        return file

    return make


def executorch(precision: str) -> Callable[[nn.Module, np.ndarray, Path], Path]:
    """XNNPACK's partitioner; int8 as XNNPACKQuantizer marks it, a scale for each channel."""

    def make(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
        from executorch.exir import to_edge_transform_and_lower
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        file = folder / f"{precision}.pte"
        example = (torch.zeros(1, *images.shape[1:]),)
        program = torch.export.export(module, example)
        if precision != "fp32":
            config = xnnpack.get_symmetric_quantization_config(
                is_per_channel=True, is_dynamic=precision == "int8-dynamic"
            )
            prepared = prepare_pt2e(program.module(), xnnpack.XNNPACKQuantizer().set_global(config))
            for image in images:
                prepared(torch.from_numpy(image[None]))
            program = torch.export.export(convert_pt2e(prepared), example)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        file.write_bytes(lowered.buffer)
        return file

    return make


def pnnx(module: nn.Module, images: np.ndarray, folder: Path) -> Path:
    """pnnx of a traced module, fp16 weights as by default."""
    traced = folder / "timm.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, torch.zeros(1, *images.shape[1:])).save(str(traced))
    tool = shutil.which("pnnx", path=str(Path(sys.executable).parent)) or "pnnx"
    shape = ",".join(map(str, (1, *images.shape[1:])))
    subprocess.run([tool, traced.name, f"inputshape=[{shape}]"], cwd=folder, check=True, capture_output=True)
    return folder / "timm.ncnn.param"


def on_onnxruntime(file: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def on_openvino(hint: str) -> Callable[[Path, int], Call]:
    def open_file(file: Path, threads: int) -> Call:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
        request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
        return lambda image: request.infer([image], share_inputs=True, share_outputs=False)[0]

    return open_file


def on_litert(file: Path, threads: int) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(file), num_threads=threads)
    model.allocate_tensors()
    entry, exit_ = model.get_input_details()[0]["index"], model.get_output_details()[0]["index"]

    def run(image: np.ndarray) -> np.ndarray:
        model.set_tensor(entry, image)
        model.invoke()
        return model.get_tensor(exit_)

    return run


def on_executorch(file: Path, threads: int) -> Call:
    from executorch.runtime import Runtime

    method: Any = Runtime.get().load_program(file).load_method("forward")
    return lambda image: method.execute([torch.from_numpy(image)])[0].numpy()


def on_ncnn(file: Path, threads: int) -> Call:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise ValueError("pnnx left ops in the file that ncnn does not have")

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return np.array(extractor.extract("out0")[1])[None]

    return run


PEERS = (
    Peer("torch.onnx.export", "onnxruntime", "fp32", bare, on_onnxruntime),
    Peer("quantize_static, all ops", "onnxruntime", "int8", static(None), on_onnxruntime),
    Peer("quantize_static, MatMul, Gemm, Conv", "onnxruntime", "int8", static(PRODUCTS), on_onnxruntime),
    Peer("quantize_dynamic", "onnxruntime", "int8-dynamic", dynamic, on_onnxruntime),
    Peer("convert_onnx_models_to_ort", "onnxruntime-mobile", "fp32", ort_format, on_onnxruntime),
    Peer("convert_model", "openvino", "fp32", bare, on_openvino("f32")),
    Peer("convert_model, bf16 hint", "openvino", "bf16", bare, on_openvino("bf16")),
    Peer("NNCF, TRANSFORMER preset", "openvino", "int8", nncf, on_openvino("f32")),
    Peer("NNCF, TRANSFORMER preset, bf16 hint", "openvino", "int8+bf16", nncf, on_openvino("bf16")),
    Peer("litert_torch.convert", "litert", "fp32", litert(None), on_litert),
    Peer("AI Edge Quantizer, static", "litert", "int8", litert("static_wi8_ai8"), on_litert),
    Peer("AI Edge Quantizer, dynamic", "litert", "int8-dynamic", litert("dynamic_wi8_afp32"), on_litert),
    Peer("XnnpackPartitioner", "executorch", "fp32", executorch("fp32"), on_executorch),
    Peer("XNNPACKQuantizer", "executorch", "int8", executorch("int8"), on_executorch),
    Peer("XNNPACKQuantizer, dynamic", "executorch", "int8-dynamic", executorch("int8-dynamic"), on_executorch),
    Peer("pnnx", "ncnn", "fp16", pnnx, on_ncnn),
)
