"""A .tflite file: how one is made, in a child process, and what is in it."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.backends.base import Census, TensorSpec
from vitdeploy.errors import UsageError
from vitdeploy.spec import IMAGE

WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
PRODUCTS = (*WEIGHTED, "TRANSPOSE_CONV", "CONV_3D", "BATCH_MATMUL")
MOVES = ("QUANTIZE", "DEQUANTIZE", "CAST")  # of activations they are casts, of weights a part of reading them
SHORT = {"float32": "fp32", "float16": "fp16", "int8": "int8", "int16": "int16", "int4": "int4"}
WIDTH = 8  # bits
IDENTIFIER = b"TFL3"  # of the flatbuffer, from its fifth byte on


def convert(saved: Path, model: Path, takes: TensorSpec, gives: Sequence[str], precision: str, images: Path) -> None:
    """Make a .tflite file of a saved program.

    Args:
        saved: of torch.export.
        takes: its input.
        gives: names of its outputs.
        images: float32 (N, C, H, W), or frames, uint8 (N, ...), .npy, for int8: what activations are measured on.
    """
    import litert_torch
    import torch

    from vitdeploy.backends.litert_rewrite import fold_constants, spell_attention

    program = torch.export.load(saved).module()
    assert isinstance(program, torch.fx.GraphModule)
    fold_constants(program)
    spell_attention(program)

    class Named(torch.nn.Module):
        """With the names that the file's signature shall have."""

        def __init__(self) -> None:
            super().__init__()
            self.program = program

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            out = self.program(image)
            return dict(zip(gives, out if isinstance(out, tuple) else (out,), strict=True))

    example = torch.zeros(*takes.example, dtype=getattr(torch, takes.dtype))
    made = litert_torch.convert(Named(), sample_kwargs={IMAGE: example})
    if precision == "fp32":
        made.export(str(model))
        return
    plain = model.with_suffix(".float")
    try:
        made.export(str(plain))
        quantise(plain, model, 1 if takes.dtype == "uint8" else takes.example[0], precision, images)
    finally:
        plain.unlink(missing_ok=True)


def quantise(plain: Path, model: Path, batch: int, precision: str, images: Path) -> None:
    """Store weights in fewer bits, and multiply in them where `precision` says so, by AI Edge Quantizer."""
    from ai_edge_quantizer import qtyping, quantizer

    kinds = qtyping.TFLOperationName
    names = [kinds.FULLY_CONNECTED, kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D]
    work = quantizer.Quantizer(str(plain))
    for name in names:
        if precision == "int8":
            work.add_static_config(".*", name, WIDTH, WIDTH)
        elif precision == "int8-dynamic":
            work.add_dynamic_config(".*", name, WIDTH)
        elif precision == "int8-weights":
            work.add_weight_only_config(".*", name, WIDTH)
        else:
            half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
            floats = qtyping.ComputePrecision.FLOAT
            config = qtyping.OpQuantizationConfig(
                weight_tensor_config=half, compute_precision=floats, explicit_dequantize=True
            )
            work.update_quantization_recipe(".*", name, config, "float_casting")
    measured = None
    if work.need_calibration:
        pixels = np.load(images, mmap_mode="r")
        batches = [pixels[i : i + batch] for i in range(0, len(pixels), batch)]
        feeds = [{IMAGE: one[0] if one.dtype == np.uint8 else one} for one in batches]  # it goes over them twice
        measured = work.calibrate({"serving_default": feeds}, num_threads=os.cpu_count() or 1)
    work.quantize(measured, enable_progress_report=False).export_model(str(model))


def finish(model: Path, metadata: Mapping[str, str]) -> None:
    """Mend a file's signature, and write into the file what it tells of itself.

    AI Edge Quantizer leaves an output that another op reads too named after its int8 form. Labels are also put behind
    the file as the zip archive with `labels.txt` that LiteRT's tools for apps look for.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from vitdeploy.export.metadata import LABELS

    content = model.read_bytes()
    file = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in file.buffers:
        if buffer.offset > 1:  # weights behind the flatbuffer, where older runtimes do not look
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    graph = file.subgraphs[0]
    floats = {op.inputs[0]: op.outputs[0] for op in graph.operators if op.outputs[0] in graph.outputs}
    for output in file.signatureDefs[0].outputs:
        if output.tensorIndex not in graph.outputs:
            output.tensorIndex = floats[output.tensorIndex]
    file.metadata = list(file.metadata or [])
    for name, text in metadata.items():
        one, buffer = schema.MetadataT(), schema.BufferT()
        one.name, one.buffer = name, len(file.buffers)
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        file.metadata.append(one)
        file.buffers.append(buffer)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(file.Pack(builder), IDENTIFIER)
    model.write_bytes(bytes(builder.Output()))
    if LABELS in metadata:
        entry = zipfile.ZipInfo("labels.txt", (1980, 1, 1, 0, 0, 0))
        with zipfile.ZipFile(model, "a") as archive:
            archive.writestr(entry, "".join(f"{name}\n" for name in json.loads(metadata[LABELS])))


@dataclass(frozen=True)
class Found:
    """What is in a file.

    Attributes:
        inputs, outputs: of its signature.
        nodes: (op, tensors that it reads, tensors that it makes), in order.
        shapes, types: of tensors, by number.
        fixed: the numbers of those that are constants.
        unpacked: of constants that are unpacked as they are read, the number of what they are unpacked from.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    nodes: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    shapes: Mapping[int, tuple[int, ...]]
    types: Mapping[int, str]
    fixed: set[int]
    unpacked: Mapping[int, int]

    @property
    def census(self) -> Census:
        """Every op by what it computes in; those that only unpack weights are left out."""
        ops: dict[str, Counter[str]] = defaultdict(Counter)
        compute: Counter[str] = Counter()
        casts = 0
        for node in self.nodes:
            op, reads, _ = node
            if op in MOVES and all(i in self.fixed for i in reads):
                continue
            kind = self.precision(node)
            ops[op][kind] += 1
            casts += op in MOVES and self.types[reads[0]] != "uint8"  # which is a camera's
            compute[kind] += op in PRODUCTS
        source = "LiteRT's graph, which XNNPACK runs"
        return Census(source, {op: dict(kinds) for op, kinds in sorted(ops.items())}, dict(+compute), casts)

    def precision(self, node: tuple[str, Sequence[int], Sequence[int]]) -> str:
        """Of an op: a product of float activations with int8 weights rounds the activations, and multiplies int8."""
        op, reads, makes = node
        kinds = [self.types[i] for i in reads[:2]] if op in PRODUCTS else [self.types[i] for i in makes]
        kind = "int8" if op in PRODUCTS and "int8" in kinds else kinds[0]
        return SHORT.get(kind, kind)


def read(model: Path) -> Found:
    """Raises UsageError on what is no LiteRT file."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        plain = Interpreter(str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        plain.allocate_tensors()  # which gives what is made its shape
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{model} is not a LiteRT file that can be read: {said}.") from None
    (inputs, places), (outputs, _) = specs(plain)
    nodes = [
        (one["op_name"], [i for i in one["inputs"].tolist() if i >= 0], one["outputs"].tolist())
        for one in plain._get_ops_details()
    ]
    tensors = {one["index"]: one for one in plain.get_tensor_details()}
    used = {i for _, reads, makes in nodes for i in (*reads, *makes)}
    details = {i: tensors[i] for i in used if i in tensors}
    shapes = {i: tuple(int(n) for n in one["shape"]) for i, one in details.items()}
    types = {i: np.dtype(one["dtype"]).name for i, one in details.items()}
    made = {i for _, _, makes in nodes for i in makes} | set(places.values())
    fixed = used - made
    unpacked: dict[int, int] = {}
    for op, reads, makes in nodes:
        if op in MOVES and all(i in fixed for i in reads):
            unpacked[makes[0]] = reads[0]
            fixed.update(makes)
    return Found(inputs, outputs, nodes, shapes, types, fixed, unpacked)


Specs = tuple[list[TensorSpec], dict[str, int]]


def specs(interpreter: Any) -> tuple[Specs, Specs]:
    """Inputs and outputs by the names of the signature, or by the tensors' own, each with its number."""
    signatures = interpreter.get_signature_list()
    sides = []
    for which, details in (("inputs", interpreter.get_input_details()), ("outputs", interpreter.get_output_details())):
        names = [one["name"] for one in details]
        if len(signatures) == 1:
            key, signature = next(iter(signatures.items()))
            runner = interpreter.get_signature_runner(key)
            known = runner.get_input_details() if which == "inputs" else runner.get_output_details()
            by_number = {one["index"]: name for name, one in known.items() if name in signature[which]}
            names = [by_number.get(one["index"], one["name"]) for one in details]
        found = [
            TensorSpec(name, np.dtype(one["dtype"]).name, tuple(int(n) for n in one["shape"]))
            for name, one in zip(names, details, strict=True)
        ]
        sides.append((found, {name: one["index"] for name, one in zip(names, details, strict=True)}))
    return sides[0], sides[1]


def products(found: Found) -> list[dict[str, Any]]:
    """Every product: its op, precision, what its weights are stored in, and its multiply-accumulates."""
    rows = []
    for number, node in enumerate(found.nodes):
        op, reads, makes = node
        if op in PRODUCTS:
            size, weight = math.prod(found.shapes[makes[0]]), found.shapes[reads[1]]
            depth = math.prod(weight[1:3] if op == "DEPTHWISE_CONV_2D" else weight[1:])
            if op == "BATCH_MATMUL":  # either operand may be read transposed
                depth = math.prod(found.shapes[reads[0]][-2:]) // found.shapes[makes[0]][-2]
            label = f"{op.lower()}_{number}"
            kind, stored = found.precision(node), found.types[found.unpacked.get(reads[1], reads[1])]
            plan = "float" if kind in ("fp32", "fp16") else kind
            row = {"label": label, "op_type": op, "precision": plan, "stored": SHORT.get(stored, stored)}
            rows.append({**row, "macs": size * depth})
    return rows
