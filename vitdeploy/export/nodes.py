"""Nodes written one after another, for graphs that are made by hand."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import array, fresh_name

FLOAT, INT64, UINT8, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8, ir.DataType.BOOL
Number: TypeAlias = "int | ir.Value"  # known now, or int64 (1,) in the graph
Operand: TypeAlias = "ir.Value | np.ndarray | np.generic"


class Nodes:
    """Writes nodes of the default domain for a graph, without putting them into it.

    Attributes:
        written: the nodes, in order.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.written: list[ir.Node] = []
        self._graph, self._prefix = graph, prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(self, op_type: str, *inputs: Operand, kind: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        """The output of one more node. Its type is `kind`, or that of the first input."""
        values = [one if isinstance(one, ir.Value) else self.constant(one) for one in inputs]
        out = self._value(op_type, kind or values[0].dtype)
        self.written.append(ir.node(op_type, values, attributes or None, outputs=[out], name=out.name))
        return out

    def constant(self, data: np.ndarray | np.generic) -> ir.Value:
        """An initializer; equal ones are one."""
        data = np.asarray(data)
        key = (data.dtype.str, data.shape, data.tobytes())
        if key not in self._constants:
            self._constants[key] = array(self._graph, f"{self._prefix}/constant", data)
        return self._constants[key]

    def slice(self, data: ir.Value, start: Number, stop: Number, axis: int) -> ir.Value:
        """data[start:stop] along an axis."""
        return self("Slice", data, self.number(start), self.number(stop), np.array([axis]))

    def number(self, value: Number) -> ir.Value:
        return self.constant(np.array([value], np.int64)) if isinstance(value, int) else value

    def split(self, data: ir.Value, parts: int) -> list[ir.Value]:
        """Equal parts along the first axis."""
        outputs = [self._value("Split", data.dtype) for _ in range(parts)]
        attributes = {"axis": 0, "num_outputs": parts}
        self.written.append(ir.node("Split", [data], attributes, outputs=outputs, name=outputs[0].name))
        return outputs

    def minus(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return self("Sub", self.number(a), self.number(b))

    def _value(self, op_type: str, kind: ir.DataType | None) -> ir.Value:
        return ir.Value(name=fresh_name(self._graph, f"{self._prefix}/{op_type}"), type=ir.TensorType(kind or FLOAT))
