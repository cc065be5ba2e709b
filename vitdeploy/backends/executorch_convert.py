"""How a .pte file is made, in a child process: by ExecuTorch's own converter, XNNPACK's partitioner and quantiser."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from vitdeploy.backends.executorch_file import FORWARD, INPUTS, OUTPUTS, REPORT
from vitdeploy.backends.executorch_rewrite import RANK, Spelled, half_plan
from vitdeploy.errors import UnsupportedModel
from vitdeploy.export.program import drop_asserts
from vitdeploy.export.program_norms import fold_norms
from vitdeploy.export.trace import quiet, reason
from vitdeploy.quantize.half_program import HalfReport, islands, weights_of
from vitdeploy.spec import IMAGE, TensorSpec


def convert(
    saved: Path,
    model: Path,
    takes: TensorSpec,
    gives: Sequence[str],
    precision: str,
    images: Path,
    metadata: Mapping[str, str],
) -> None:
    """Make a .pte file of a saved program.

    Args:
        saved: of torch.export.
        takes: its input.
        gives: names of its outputs.
        images: float32 (N, C, H, W), or frames, uint8 (N, ...), .npy, for int8 and fp16: what activations are measured
            on.
        metadata: texts; each is what a method of that name returns.

    Raises:
        UnsupportedModel: ExecuTorch's converter refuses the program.
    """
    logging.disable(logging.WARNING)
    program = torch.export.load(saved)
    constants = {INPUTS: json.dumps([IMAGE]), OUTPUTS: json.dumps(list(gives)), **metadata}
    try:
        with quiet(), torch.no_grad():
            weights = dict(weights_of(program))
            fold_norms(program.graph_module, weights)
            plan = None
            if precision == "fp16":
                samples = batches_of(np.load(images), takes)
                kept = islands(program.graph_module, weights, samples)
                plan = half_plan(program.graph_module, kept)
                constants[REPORT] = json.dumps({precision: HalfReport(list(kept.values()), "fp16").to_dict()})
            spelled = Spelled(program.graph_module, weights, plan).eval()
            exported = folded(export(spelled, takes))
            if precision.startswith("int8"):
                constants[REPORT] = json.dumps({precision: {}})
                seen = [np.zeros(takes.example, takes.dtype)]
                if precision == "int8":
                    seen = batches_of(np.load(images), takes)
                exported = export(quantised(exported, seen, precision), takes)
            lower(exported, model, constants)
            try_once(model, takes)
    except Exception as error:
        model.unlink(missing_ok=True)
        said = reason(error).rstrip(".")
        raise UnsupportedModel(f"ExecuTorch's converter refuses this model: {said}.") from error


def export(module: nn.Module, takes: TensorSpec) -> ExportedProgram:
    example = torch.zeros(takes.example, dtype=getattr(torch, takes.dtype))
    program = torch.export.export(module, (example,), strict=False)
    drop_asserts(program)
    return program


def folded(program: ExportedProgram) -> ExportedProgram:
    """The program with everything in it computed that is made of constants alone."""
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    return constant_prop_pass(program)


def quantised(program: ExportedProgram, samples: Sequence[np.ndarray], precision: str) -> nn.Module:
    """Weights in int8, a scale for each channel: of linear layers, and in 'int8' of convolutions.

    XNNPACK opens convolutions that round their inputs, and fails to run those of MobileViT.

    Args:
        samples: what the ranges of activations are measured on; of 'int8-dynamic', which rounds inputs as they come,
            one of anything.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantiser = XNNPACKQuantizer()
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=precision == "int8-dynamic")
    kinds = [torch.ops.aten.linear.default, *([torch.ops.aten.conv2d.default] if precision == "int8" else [])]
    for kind in kinds:
        quantiser.set_operator_type(kind, config)
    prepared = prepare_pt2e(program.module(), quantiser)
    for sample in samples:
        prepared(torch.from_numpy(np.ascontiguousarray(sample)))
    return convert_pt2e(prepared)


def lower(program: ExportedProgram, model: Path, constants: Mapping[str, str]) -> None:
    """Hand XNNPACK all that it takes, and write the file."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    partitioner = XnnpackPartitioner(configs=[within_rank(config) for config in ALL_PARTITIONER_CONFIGS])
    edge = to_edge_transform_and_lower(program, partitioner=[partitioner], constant_methods=dict(constants))
    with model.open("wb") as file:
        edge.to_executorch().write_to_file(file)


def try_once(model: Path, takes: TensorSpec) -> None:
    """Raises RuntimeError where XNNPACK cannot open or run what its own partitioner took."""
    from executorch.extension.pybindings import portable_lib

    method = portable_lib._load_program(str(model)).load_method(FORWARD)
    method([torch.zeros(takes.example, dtype=getattr(torch, takes.dtype))])


def within_rank(config: type[Any]) -> type[Any]:
    """XNNPACK's own conditions on an op, and no tensor of more dimensions than it can open."""

    def check_constraints(self: Any, node: torch.fx.Node, program: ExportedProgram) -> bool:
        near = [one.meta.get("val") for one in (node, *node.all_input_nodes)]
        fits = all(not isinstance(value, torch.Tensor) or value.ndim <= RANK for value in near)
        return fits and bool(config.check_constraints(self, node, program))

    return type(config.__name__, (config,), {"check_constraints": check_constraints})


def batches_of(pixels: np.ndarray, takes: TensorSpec) -> list[np.ndarray]:
    if takes.dtype == "uint8":
        return list(pixels)
    batch = takes.example[0]
    return [pixels[i : i + batch] for i in range(0, len(pixels), batch)]
