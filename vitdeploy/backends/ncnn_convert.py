"""From an ONNX graph to ncnn's layers.

ncnn's blobs have no batch: the graph is taken at batch 1. A tensor is held as a blob of any shape with the same numbers
in the same order, so ONNX's Reshape is nothing by itself, and one of ncnn's is written only where a layer needs another
shape than the one held.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.backends.ncnn_graph import at_one, check_borders, named, natural, numbers_of
from vitdeploy.backends.ncnn_rules import RULES
from vitdeploy.backends.ncnn_writer import BATCH, LEVELS, MOST, Blob, Shape, Writer, sizes
from vitdeploy.errors import UnsupportedModel
from vitdeploy.graph.shapes import infer

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def convert(graph: ir.Model, param: Path, weights: Path, *, eight_bits: bool = False) -> None:
    """Write the graph as ncnn's two files.

    Args:
        eight_bits: whether the weights of products are stored in 8 bits each, and not as the graph has them.

    Raises UnsupportedModel, with the node's name, on what ncnn's layers cannot express.
    """
    with weights.open("wb") as file:
        text = Converter(graph, Writer(file), eight_bits).text()
    param.write_text(text, encoding="utf-8", newline="\n")


class Converter:
    """A graph on its way into a Writer. `held` is the blob of each tensor by name."""

    def __init__(self, graph: ir.Model, writer: Writer, eight_bits: bool = False) -> None:
        self.writer = writer
        self._eight_bits = eight_bits
        self.batch = check_borders(graph)
        self.model = at_one(graph)
        self.shapes = {
            name: tuple(n for n in found.shape if n is not None)
            for name, found in infer(self.model).items()
            if found.known and found.shape is not None
        }
        self.held: dict[str, Blob] = {}
        self._reshaped: dict[tuple[str, Shape], Blob] = {}
        self._constants: dict[tuple[str, Shape], Blob] = {}

    def text(self) -> str:
        (image,) = self.model.graph.inputs
        shape = self.shape(image)[1:]
        self.held[str(image.name)] = self.writer.add(
            "Input", [], shape, str(image.name), {**sizes(shape), BATCH: self.batch}
        )
        for node in self.model.graph:
            if node.outputs[0].dtype not in (*FLOATS, None) or numbers_of(node.outputs[0]) is not None:
                continue  # a shape, or a weight that is unpacked: whoever reads it knows
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None:
                raise UnsupportedModel(f"ncnn has no layer for {node.op_type}, which {named(node)} is.")
            rule(self, node)
        outputs = {}
        for value in self.model.graph.outputs:
            outputs[str(value.name)] = self.need(value, self.shape(value)[1:] or (1,))
        if len(outputs) > 1:  # layers that do nothing put the file's outputs in the graph's order
            outputs = {name: self.writer.add("Noop", [blob], blob.shape, name) for name, blob in outputs.items()}
        return self.writer.text(outputs)

    # --- tensors ---

    def shape(self, value: ir.Value | None) -> Shape:
        """Of a tensor in the graph, at batch 1."""
        assert value is not None
        found = self.shapes.get(str(value.name))
        if found is None:
            raise UnsupportedModel(f"The shape of `{value.name}` is not known before the graph runs, as ncnn needs it.")
        return found

    def blob(self, value: ir.Value | None) -> Blob:
        """The blob that holds a tensor; of a constant, with the graph's own shape."""
        assert value is not None
        found = self.held.get(str(value.name))
        return self.need(value, natural(self.shape(value))) if found is None else found

    def need(self, value: ir.Value | None, shape: Shape) -> Blob:
        """A tensor as a blob of this shape."""
        assert value is not None
        name = str(value.name)
        if name not in self.held:
            numbers = numbers_of(value)
            if numbers is None:
                raise UnsupportedModel(f"`{name}` is not a number that ncnn computes.")
            key = (name, shape)
            if key not in self._constants:
                self._constants[key] = self.writer.add("MemoryData", [], shape, name, sizes(shape))
                self.writer.raw(numbers)
            return self._constants[key]
        return self.reshaped(self.held[name], shape)

    def reshaped(self, blob: Blob, shape: Shape) -> Blob:
        if blob.shape == shape:
            return blob
        key = (blob.name, shape)
        if key not in self._reshaped:
            self._reshaped[key] = self.writer.add("Reshape", [blob], shape, f"{blob.name}_as", sizes(shape))
        return self._reshaped[key]

    def give(self, node: ir.Node, blob: Blob) -> None:
        """`blob` holds the node's first output."""
        self.held[str(node.outputs[0].name)] = blob

    def map(
        self, node: ir.Node, kind: str, params: dict[int, Any] | None = None, value: ir.Value | None = None
    ) -> None:
        """A layer that changes each number by itself, in whatever shape it is held."""
        blob = self.blob(node.inputs[0] if value is None else value)
        self.give(node, self.writer.add(kind, [blob], blob.shape, str(node.outputs[0].name), params))

    def kernel(self, node: ir.Node, index: int) -> tuple[np.ndarray, str]:
        """The weights of a product in fp32, and what they are to be stored in: 'fp32', 'fp16' or 'int8'.

        Raises UnsupportedModel where they are not constants.
        """
        value = node.inputs[index]
        numbers = numbers_of(value)
        if numbers is None or value is None:
            raise UnsupportedModel(f"The weights of {named(node)} are not constants.")
        if self._eight_bits:
            return numbers, "int8" if 4 * numbers.size > LEVELS * 4 + numbers.size else "fp32"
        half = value.dtype == ir.DataType.FLOAT16 or value.producer() is not None
        return numbers, "fp16" if half else "fp32"

    # --- views ---

    def around(self, value: ir.Value | None, axis: int, shape: Shape | None = None) -> tuple[Blob, int]:
        """A tensor in a shape in which `axis` stands alone, and where it stands there.

        Its own shape where a blob can have that, and else (what is before, axis, what is behind).
        """
        whole = self.shape(value)
        axis %= len(whole)
        plain = natural(whole)
        if len(plain) <= MOST and len(whole) - len(plain) <= axis:
            return self.need(value, plain), axis - (len(whole) - len(plain))
        outer, inner = math.prod(whole[:axis]), math.prod(whole[axis + 1 :])
        return (
            (self.need(value, (whole[axis], inner)), 0)
            if outer == 1
            else (self.need(value, (outer, whole[axis], inner)), 1)
        )

    def crop(self, blob: Blob, axis: int, start: int, end: int, name: str) -> Blob:
        if (start, end) == (0, blob.shape[axis]):
            return blob
        shape = (*blob.shape[:axis], end - start, *blob.shape[axis + 1 :])
        return self.writer.add("Crop", [blob], shape, name, {9: [start], 10: [end], 11: [axis]})
