"""`--layout triton`: the artifact's model as a model repository that an NVIDIA Triton server loads as it is.

What is written here follows Triton's model_config.proto and the documentation of its backends (26.09).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import __version__
from vitdeploy.artifact import REPOSITORY
from vitdeploy.errors import UnsupportedModel, UsageError

if TYPE_CHECKING:
    import numpy as np

    from vitdeploy.pipeline.request import ExportRequest
    from vitdeploy.spec import ModelSpec

VERSION = "1"
CONFIG = "config.pbtxt"
LABELS = "labels.txt"


@dataclass(frozen=True)
class Server:
    """How Triton serves what one of our backends compiles.

    Attributes:
        backend: Triton's name of its backend.
        platform: Triton's name of the kind of file; empty where the backend has but one.
        batches: whether it can put requests together in a batch of any size.
        numbered: it knows inputs and outputs by number only.
    """

    backend: str
    platform: str = ""
    batches: bool = True
    numbered: bool = False


SERVERS = {
    "onnxruntime": Server("onnxruntime", "onnxruntime_onnx"),
    # With a max_batch_size, Triton's OpenVINO backend makes the model's batch that size and refuses smaller ones.
    "openvino": Server("openvino", batches=False),
    "tensorrt": Server("tensorrt", "tensorrt_plan"),
    "inductor": Server("pytorch", "torch_aoti", batches=False, numbered=True),
}
NOT_SERVED = {"tensorrt-rtx": "Triton's TensorRT backend has not the runtime that opens engines of TensorRT-RTX"}
# Execution providers of ONNX Runtime that Triton's backend can be told to use, and where in the config.
ACCELERATORS = {"cuda": "gpu_execution_accelerator", "tensorrt": "gpu_execution_accelerator"}
ACCELERATORS |= {"openvino": "cpu_execution_accelerator"}
GRAPH_LEVELS = {"extended": 1, "basic": -1, "off": 2}  # Triton's numbers for ONNX Runtime's levels; none is 'all'


class Word(str):
    """The name of an enum's value, which stands in a config without quotes."""


def check_triton(request: ExportRequest) -> None:
    """Raise UnsupportedModel or UsageError where Triton cannot serve what is asked for as it is asked for."""
    from vitdeploy.backends import registry

    registry.get(request.backend)
    if request.backend not in SERVERS:
        why = NOT_SERVED.get(request.backend, f"Triton has no backend for what {request.backend} compiles")
        raise UnsupportedModel(f"{why}.", fix=f"Use --backend {', '.join(SERVERS)}, or --layout plain.")
    provider = provider_of(request)
    if request.backend == "onnxruntime" and provider not in ("cpu", *ACCELERATORS):
        raise UnsupportedModel(
            f"ONNX Runtime within Triton has no {provider} provider.",
            fix=f"It has cpu, {', '.join(ACCELERATORS)}.",
        )
    # TensorRT's are of the builder, and in the plan; Triton knows those of ONNX Runtime's cuda.
    carried = request.backend == "tensorrt" or (request.backend, provider) == ("onnxruntime", "cuda")
    if request.run.provider_options and not carried:
        raise UsageError(
            f"Triton cannot be told backend options of {request.backend} on {provider}.",
            fix="Leave --backend-option out, and set in config.pbtxt what Triton's backend knows.",
        )


def lay_out(
    request: ExportRequest, spec: ModelSpec, files: list[Path], folder: Path, outputs: Mapping[str, np.ndarray]
) -> list[Path]:
    """Move compiled files to where the request's layout has them, and write what belongs to it.

    Args:
        files: in `folder`, the model file first.
        outputs: what the model returns for some batch, by name: (B, ...) each.

    Returns:
        The files where they are now, the model file first.
    """
    if request.layout != "triton":
        return files
    home = folder / REPOSITORY / model_name(request)
    places = [home / VERSION / file.relative_to(folder) for file in files]
    for file, place in zip(files, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)
    about = {CONFIG: text(config(request, spec, files[0].relative_to(folder).as_posix(), outputs))}
    if spec.labels:
        about[LABELS] = "".join(" ".join(label.splitlines()) + "\n" for label in spec.labels)
    for name, content in about.items():
        (home / name).write_text(content, encoding="utf-8", newline="\n")
    return [*places, *(home / name for name in about)]


def caveats(request: ExportRequest) -> list[str]:
    """In what Triton cannot be told to run the file as it was verified here."""
    if request.layout != "triton":
        return []
    if request.backend == "onnxruntime" and request.precision.endswith("-weights"):
        return ["Triton cannot keep ONNX Runtime from rounding activations to int8 too before these weights."]
    if request.backend == "openvino" and "bf16" not in request.precision:
        return ["Triton cannot keep OpenVINO to the file's types: what is fp32 runs in bf16 on a CPU that has it."]
    if request.backend == "inductor":
        return ["Triton 26.05 and newer, with the PyTorch that compiled it: .pt2 is in beta there."]
    return []


def model_name(request: ExportRequest) -> str:
    """The model's name on the server: the artifact's, in characters that need no quoting in a URL."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", request.folder.absolute().name).strip("-.") or "model"


def config(request: ExportRequest, spec: ModelSpec, file: str, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Triton's ModelConfig as nested values, ready for `text`.

    Args:
        file: the model file, relative to the version's folder.
        outputs: see `lay_out`.
    """
    server = SERVERS[request.backend]
    most, batch = batching(request)
    kind = Word(f"TYPE_{request.io_precision.upper()}")
    shapes = {name: [*batch, *array.shape[1:]] for name, array in outputs.items()}
    results = [
        {"name": f"OUTPUT__{i}" if server.numbered else name, "data_type": kind, "dims": dims}
        for i, (name, dims) in enumerate(shapes.items())
    ]
    if spec.labels:
        results[0]["label_filename"] = LABELS
    inputs = [
        {
            "name": f"INPUT__{i}" if server.numbered else tensor.name,
            "data_type": kind if tensor.dtype == "float32" else Word(f"TYPE_{tensor.dtype.upper()}"),
            "dims": [*batch, *tensor.shape[1:]],
        }
        for i, tensor in enumerate(spec.input.tensors)
    ]
    message: dict[str, Any] = {"name": model_name(request), "backend": server.backend}
    if server.platform:
        message["platform"] = server.platform
    message |= {"default_model_filename": file, "max_batch_size": most, "input": inputs, "output": results}
    message["instance_group"] = [instances(request)]
    if most:
        message["dynamic_batching"] = preferences(request)
    if request.backend == "onnxruntime":
        message |= optimization(request)
    facts = {"vitdeploy.model": spec.full_name, "vitdeploy.precision": request.precision}
    settings = runtime_settings(request) | facts | {"vitdeploy.version": __version__}
    message["parameters"] = [{"key": key, "value": {"string_value": value}} for key, value in settings.items()]
    return message


def batching(request: ExportRequest) -> tuple[int, list[int]]:
    """`max_batch_size`, and the batch as it stands in front of every tensor's dims.

    A max_batch_size tells Triton that any batch up to it runs, one image included, and is then left out of the dims.
    Where that is not so it is 0, the dims are whole, and each request is a batch of its own.
    """
    if isinstance(request.batch, int):
        return 0, [request.batch]
    low, _, high = request.batch
    return (high, []) if low == 1 and SERVERS[request.backend].batches else (0, [-1])


def preferences(request: ExportRequest) -> dict[str, Any]:
    """The batches to form: any, but for TensorRT the one that its kernels were chosen for, and the largest."""
    if request.backend != "tensorrt" or isinstance(request.batch, int):
        return {}
    # A preferred batch of 1 would be sent off alone, however many requests wait.
    return {"preferred_batch_size": sorted({*request.batch[1:]} - {1})}


def instances(request: ExportRequest) -> dict[str, Any]:
    """One instance on each GPU (or on the one that was named), or one on the CPU; Triton would make two of some."""
    device, _, number = request.run.device.partition(":")
    if request.backend == "openvino" or not (request.backend == "tensorrt" or on_gpu(request)):
        return {"kind": Word("KIND_CPU"), "count": 1}
    gpus = {"gpus": [int(number)]} if device == "cuda" and number.isdecimal() else {}
    return {"kind": Word("KIND_GPU"), "count": 1, **gpus}


def optimization(request: ExportRequest) -> dict[str, Any]:
    """ONNX Runtime's level of graph optimisation and its provider, where they are not Triton's usual ones."""
    found: dict[str, Any] = {}
    if request.run.optimization in GRAPH_LEVELS:
        found["graph"] = {"level": GRAPH_LEVELS[request.run.optimization]}
    provider, options = provider_of(request), dict(request.run.provider_options)
    if provider == "cuda":
        options = {"use_tf32": "0", **options}  # as the session has it here: fp32 is fp32
    if provider in ("tensorrt", "openvino") or options:
        pairs = [{"key": key, "value": value} for key, value in options.items()]
        accelerator = {"name": provider, "parameters": pairs}
        found["execution_accelerators"] = {ACCELERATORS[provider]: [accelerator]}
    return {"optimization": found} if found else {}


def runtime_settings(request: ExportRequest) -> dict[str, str]:
    """Parameters that have the runtime do as it did when the file was verified and measured."""
    threads = str(request.run.threads) if request.run.threads else ""
    if request.backend == "onnxruntime" and threads and not on_gpu(request):
        return {"intra_op_thread_count": threads, "inter_op_thread_count": "1"}
    if request.backend != "openvino":
        return {}
    found = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    found |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    found |= {"HINT_BF16": "YES"} if "bf16" in request.precision else {}
    return found | {"TARGET_DEVICE": request.run.device.upper().replace(":", ".")}


def provider_of(request: ExportRequest) -> str:
    """The execution provider's short name, or the kind of device."""
    return request.run.provider or request.run.device.partition(":")[0] or "cpu"


def on_gpu(request: ExportRequest) -> bool:
    return provider_of(request) in ("cuda", "tensorrt")


def text(message: Mapping[str, Any], indent: int = 0) -> str:
    """A message in protobuf's text format. A list of mappings is a repeated field, a list of numbers stands in line."""
    pad = "  " * indent
    lines = []
    for key, value in message.items():
        several = isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
        for one in value if several else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{pad}{key} {{\n{text(one, indent + 1)}{pad}}}\n")
            else:
                lines.append(f"{pad}{key}: {scalar(one)}\n")
    return "".join(lines)


def scalar(value: str | int | Sequence[int]) -> str:
    if isinstance(value, str):
        return value if isinstance(value, Word) else quoted(value)
    return str(value) if isinstance(value, int) else f"[ {', '.join(map(str, value))} ]"


def quoted(value: str) -> str:
    """A string literal of plain ASCII: every other byte of its UTF-8, quote and backslash in octal."""
    data = value.encode("utf-8", "replace")
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in data) + '"'
