"""Weights stored in 8 or 4 bits behind a DequantizeLinear: a smaller file, and the same float products.

Four bits need a scale and a zero point for every few weights, as in Dettmers and Zettlemoyer 2023, "The case for 4-bit
precision" (arXiv:2212.09720): blocks along the inner dimension, in ONNX's blocked DequantizeLinear (opset 21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.graph.edit import add_node, array, constant, dims, sweep, weight
from vitdeploy.graph.ops import macs, parameter_dtypes, parameters
from vitdeploy.quantize.int8 import TINY, along, weight_step
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.targets import Target, find_targets, matching

BITS = (8, 4)
BLOCK = 32  # weights that share a scale, where that divides the inner width
BLOCK_OPSET = 21  # the first whose DequantizeLinear has blocks and 4 bits
TOP = 15  # the largest of 16 levels
SHARES = np.linspace(1.0, 0.5, 21)  # of a block's range, that the search for its scale tries
ANY = Scheme("any")  # a runtime that multiplies floats has no dialect


@dataclass(frozen=True)
class WeightReport:
    """What to_weight_only did.

    Attributes:
        bits, block: as they were given.
        ops: each product with constant weights: its label, op type, the precision that its weights are stored in, MACs,
            and why it is not the one asked for where it is not.
        macs: of all these products.
        weight_bytes_before, weight_bytes_after: of all weights.
        weight_bytes_by_dtype: after, by the type that they are stored in.
    """

    bits: int
    block: int
    ops: Sequence[Mapping[str, Any]]
    macs: int
    weight_bytes_before: int
    weight_bytes_after: int
    weight_bytes_by_dtype: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def to_weight_only(model: ir.Model, bits: int, *, keep: Sequence[str] = (), block: int = BLOCK) -> WeightReport:
    """Store the weights of every convolution and linear layer of an fp32 graph in fewer bits, in place.

    With 8 bits: one scale an output channel, symmetric. With 4: one scale and zero point a block along the inner
    dimension, by least squares over the block; convolutions and widths that no block divides take 8.

    Args:
        model: the graph; for 4 bits of opset 21 or newer.
        keep: patterns of layer names that stay in float.

    Raises:
        UsageError: bits that are neither, an opset that cannot express them, a pattern that matches nothing.
        UnsupportedModel: no layer has constant weights, or all of them are kept.
    """
    if bits not in BITS:
        raise UsageError(f"Weights are stored in 8 or 4 bits, not in {bits}.")
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    if bits == 4 and opset < BLOCK_OPSET:
        raise UsageError(f"4-bit weights need opset {BLOCK_OPSET}; this graph has {opset}.")
    before = parameters(model)[1]
    targets = [target for target in find_targets(model, ANY) if target.axis is not None]
    kept = matching(targets, keep)
    work = macs(model).nodes
    ops, stored = [], {}
    for target in targets:
        asked = target.name in kept
        width, reason = (0, "") if asked or bits == 8 else _block_of(target, block)
        precision = "float" if asked else "int4" if width else "int8"
        ops.append(target.described(precision, work, "asked for" if asked else reason))
        if not asked:
            source = target.node.inputs[1]
            key = (source, target.axis)
            if key not in stored:
                stored[key] = store_blocks(target, width) if width else store_channels(target)
            target.node.replace_input_with(1, stored[key])
    if not stored:
        raise UnsupportedModel("Nothing is left to compress in this graph: no layer with constant weights.")
    if bits == 4:
        model.ir_version = max(model.ir_version, 10)  # the first that knows 4-bit types
    sweep(model)
    total = sum(op["macs"] for op in ops)
    return WeightReport(bits, block, ops, total, before, parameters(model)[1], parameter_dtypes(model))


def store_channels(target: Target, peak: int = 127) -> ir.Value:
    """A DequantizeLinear of the target's weight in int8, with one scale an output channel."""
    source, axis = _weight(target)
    w = constant(source)
    assert w is not None
    graph = target.node.graph
    assert isinstance(graph, ir.Graph)
    step = weight_step(w, axis, peak, None, TINY)
    q = np.clip(np.rint(w / along(step, axis, w.ndim)), -peak, peak).astype(np.int8)
    inputs = [array(graph, f"{source.name}/int8", q), array(graph, f"{source.name}/scale", step)]
    return add_node(target.node, "DequantizeLinear", inputs, f"{source.name}/dq", source, axis=axis)


def store_blocks(target: Target, block: int) -> ir.Value:
    """A DequantizeLinear of the target's weight in 4 bits, with a scale and a zero point a block of the inner axis."""
    source, axis = _weight(target)
    w = constant(source)
    assert w is not None
    graph = target.node.graph
    assert isinstance(graph, ir.Graph)
    inner = 1 - axis
    q, scale, zero_point = (np.moveaxis(part, 0, inner) for part in quantise_blocks(np.moveaxis(w, inner, 0), block))
    kind, name = ir.DataType.UINT4, source.name
    inputs = [
        weight(graph, f"{name}/uint4", kind, q.shape, lambda: q),
        array(graph, f"{name}/scale", np.ascontiguousarray(scale)),
        weight(graph, f"{name}/zero_point", kind, zero_point.shape, lambda: zero_point),
    ]
    return add_node(target.node, "DequantizeLinear", inputs, f"{name}/dq", source, axis=inner, block_size=block)


def quantise_blocks(w: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each block's 16 levels, by the least squared error of its weights.

    Args:
        w: float32 (K, N); `block` divides K.

    Returns:
        q, uint8 (K, N), from 0 to 15; scale, float32 (K / block, N); zero point, uint8 (K / block, N), so that
        (q - zero point) * scale is near w.
    """
    blocks = w.reshape(-1, block, w.shape[1]).astype(np.float64)
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    best = [np.zeros(blocks.shape), np.zeros(low.shape), np.zeros(low.shape)]
    least = np.full(low.shape, np.inf)
    for share in SHARES:
        step = np.maximum((high - low) * share / TOP, TINY)
        zero_point = np.clip(np.rint(-low * share / step), 0, TOP)
        q = np.clip(np.rint(blocks / step[:, None]) + zero_point[:, None], 0, TOP)
        levels = q - zero_point[:, None]
        norm = np.maximum((levels**2).sum(axis=1), 1)
        # The scale that fits these levels best, which need not be the one that made them.
        scale = np.maximum((levels * blocks).sum(axis=1) / norm, TINY).astype(np.float32)
        error = ((blocks - levels * scale[:, None]) ** 2).sum(axis=1)
        better = error < least
        least = np.where(better, error, least)
        found = (q, scale, zero_point)
        best = [np.where(better[:, None] if b.ndim == 3 else better, f, b) for f, b in zip(found, best, strict=True)]
    q, scale, zero_point = best
    return q.reshape(w.shape).astype(np.uint8), scale.astype(np.float32), zero_point.astype(np.uint8)


def _block_of(target: Target, block: int) -> tuple[int, str]:
    """The block that a target's weight is cut into; or 0, and why it takes 8 bits instead."""
    if target.node.op_type == "Conv":
        return 0, "a convolution: its kernels are small, and 8 bits per channel cost it less"
    source, axis = _weight(target)
    shape = dims(source)
    width = shape[1 - axis] if shape is not None else None
    for size in (block, block // 2):
        if isinstance(width, int) and size and width % size == 0:
            return size, ""
    return 0, f"its inner width {width} is no multiple of {block // 2}"


def _weight(target: Target) -> tuple[ir.Value, int]:
    source = target.node.inputs[1]
    assert source is not None
    assert target.axis is not None
    return source, target.axis
