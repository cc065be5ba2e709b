"""Which nodes of an ONNX file the execution providers of phones take, as far as ONNX Runtime's tables tell.

The tables say which operators a provider knows, with notes. What of the notes can be checked in the file is checked;
the rest is handed on. Partitions are found by ONNX Runtime's own tool, which divides a graph as its runtime does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import MissingDependency

if TYPE_CHECKING:
    import onnx

OWN = Path(__file__).parent / "providers"
LARGE = 4096  # bytes of a weight that no shape depends on
FLOATS, BYTES = ("float", "float16"), ("int8", "uint8")


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        table: its operators; a name alone is of ONNX Runtime's wheel.
        types: of a node's first input that it takes.
        fixed: whether shapes have to be known.
        rank: the most dimensions that it takes.
    """

    name: str
    table: str | Path
    types: Sequence[str]
    fixed: bool = False
    rank: int = 99


PROVIDERS = (
    Provider("NNAPI", "nnapi_supported_ops.md", ("float", *BYTES, "int32"), fixed=True, rank=4),
    Provider("CoreML MLProgram", "coreml_supported_mlprogram_ops.md", (*FLOATS, "int32", "int64", "bool"), rank=5),
    Provider("CoreML NeuralNetwork", "coreml_supported_neuralnetwork_ops.md", ("float", "int32", "int64"), rank=5),
    Provider("XNNPACK", OWN / "xnnpack.md", ("float", *BYTES)),
    Provider("QNN", OWN / "qnn.md", (*FLOATS, *BYTES, "int16", "uint16", "int32", "int64", "bool"), fixed=True, rank=5),
)


def providers(model: Path) -> list[dict[str, Any]]:
    """What each provider takes of an ONNX file, as JSON values. For a child process: the tool changes onnx itself.

    Returns:
        One dict a provider: 'provider', 'nodes', 'taken', 'partitions' (their sizes), 'left' ([{'op', 'reason',
        'nodes'}], most first) and 'unchecked' (notes on operators that it takes).
    """
    import onnx

    from vitdeploy.graph.load import check_external_data

    proto = check_external_data(model)
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) > LARGE:
            tensor.ClearField("raw_data")
    typed = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return [_taken(provider, typed.graph) for provider in PROVIDERS]


def _taken(provider: Provider, graph: onnx.GraphProto) -> dict[str, Any]:
    tool = _tool()
    place = provider.table if isinstance(provider.table, Path) else Path(tool.__file__).parent / provider.table
    table = read_table(place)
    checker = Checker(provider, table, Facts(graph, unpacks="ai.onnx:dequantizelinear" in table))
    found = tool.check_partitioning(graph, checker, False)
    left = Counter((op, reason) for op, reason in checker.left.values())
    return {
        "provider": provider.name,
        "nodes": found.num_nodes,
        "taken": found.num_supported_nodes,
        "partitions": sorted((len(group) for group in found.supported_groups), reverse=True),
        "left": [{"op": op, "reason": reason, "nodes": n} for (op, reason), n in left.most_common()],
        "unchecked": sorted(checker.unchecked),
    }


def _tool() -> Any:
    try:
        from onnxruntime.tools.mobile_helpers import usability_checker
    except ImportError as error:
        raise MissingDependency(
            f"ONNX Runtime's tools for phones cannot be imported: {error}.", fix="pip install --upgrade onnxruntime"
        ) from None
    return usability_checker


def read_table(path: Path) -> dict[str, list[str]]:
    """Notes by operator ('ai.onnx:conv', in small letters: the tables are not of one mind about them)."""
    rows = (line.strip().split("|") for line in path.read_text("utf-8").splitlines() if line.startswith("|"))
    return {
        row[1].lower(): [note.strip() for note in row[2].split("<br/>") if note.strip()]
        for row in rows
        if len(row) == 4 and ":" in row[1]
    }


class Facts:
    """What is known about the values of a graph and its subgraphs.

    Args:
        unpacks: what is dequantised from a constant is one too.
    """

    def __init__(self, graph: onnx.GraphProto, *, unpacks: bool) -> None:
        self._unpacks = unpacks
        self.fixed: set[str] = set()
        self.shapes: dict[str, list[int | None]] = {}
        self.types: dict[str, str] = {}
        for inner in _graphs(graph):
            self._read(inner)

    def _read(self, graph: onnx.GraphProto) -> None:
        from onnx import TensorProto

        for tensor in graph.initializer:
            self.fixed.add(tensor.name)
            self.shapes[tensor.name] = list(tensor.dims)
            self.types[tensor.name] = TensorProto.DataType.Name(tensor.data_type).lower()
        for node in graph.node:
            unpacked = self._unpacks and node.op_type == "DequantizeLinear" and node.input[0] in self.fixed
            if unpacked or node.op_type == "Constant":
                self.fixed |= set(node.output)
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            self.types.setdefault(value.name, TensorProto.DataType.Name(kind.elem_type).lower())
            if kind.HasField("shape"):
                dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
                self.shapes.setdefault(value.name, dims)

    def rank(self, node: onnx.NodeProto, index: int) -> int | None:
        shape = self.shapes.get(node.input[index]) if index < len(node.input) else None
        return None if shape is None else len(shape)

    def constant(self, node: onnx.NodeProto, *indices: int) -> bool:
        """Whether those inputs are known before the graph runs; absent ones are."""
        return all(node.input[i] in self.fixed for i in indices if i < len(node.input) and node.input[i])


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


Rule = Callable[["onnx.NodeProto", Facts], bool]


def _last_axis(node: onnx.NodeProto, facts: Facts) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    return axis in (-1, (facts.rank(node, 0) or 0) - 1)


def _linear(node: onnx.NodeProto, facts: Facts) -> bool:
    return next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"") == b"linear"


# Of a note's sentence: whether a node fulfils it.
RULES: tuple[tuple[str, Rule], ...] = (
    ("2D (Conv|Pool|Resize)", lambda node, facts: facts.rank(node, 0) == 4),
    ("Only 1D/2D Conv", lambda node, facts: facts.rank(node, 0) in (3, 4)),
    ("2D inputs", lambda node, facts: facts.rank(node, 0) == facts.rank(node, 1) == 2),
    ("^Weights? and bias (should|must) be constant", lambda node, facts: facts.constant(node, 1, 2)),
    ("^Bias if provided must be constant", lambda node, facts: facts.constant(node, 2)),
    ("^Input B (should|must) be constant", lambda node, facts: facts.constant(node, 1)),
    ("scalar value is not supported", lambda node, facts: facts.rank(node, 1) != 0),
    ("starts.*constant", lambda node, facts: facts.constant(node, 1, 2, 3, 4)),
    ("`?splits?`?.* (should|must) be constant", lambda node, facts: facts.constant(node, 1)),
    ("^Input (axes|pads|slope)\\b.*constant", lambda node, facts: facts.constant(node, 1, 2)),
    ("scales and zero points should be constant", lambda node, facts: facts.constant(node, 1, 2)),
    ("last axis", _last_axis),
    ("linear mode", _linear),
)


class Checker:
    """Says of each node whether a provider takes it, as ONNX Runtime's tool asks, and keeps why not.

    Attributes:
        left: (operator, reason) of each node that is not taken, by identity.
        unchecked: notes that no rule could check, on operators that are taken.
    """

    def __init__(self, provider: Provider, table: dict[str, list[str]], facts: Facts) -> None:
        self._provider = provider
        self._table = table
        self._facts = facts
        self.left: dict[int, tuple[str, str]] = {}
        self.unchecked: set[str] = set()

    def is_op_supported(self, node: onnx.NodeProto) -> bool:
        reason = self._reason(node)
        if reason:
            self.left[id(node)] = node.op_type, reason
        return not reason

    def _reason(self, node: onnx.NodeProto) -> str:
        notes = self._table.get(f"{node.domain or 'ai.onnx'}:{node.op_type}".lower())
        if notes is None:
            return "the operator is not supported"
        kind = self._facts.types.get(node.input[0], "") if node.input else ""
        if kind not in ("", "undefined", *self._provider.types):
            return f"the type {kind} is not supported"
        for name in filter(None, node.input):
            shape = self._facts.shapes.get(name)
            if self._provider.fixed and name not in self._facts.fixed and (shape is None or None in shape):
                return "an input has a dynamic shape"
            if shape is not None and len(shape) > self._provider.rank:
                return f"an input has more than {self._provider.rank} dimensions"
        return self._broken(node, notes)

    def _broken(self, node: onnx.NodeProto, notes: Sequence[str]) -> str:
        """The first note that the node does not fulfil."""
        for note in notes:
            rules = [rule for pattern, rule in RULES if re.search(pattern, note)]
            if any(not rule(node, self._facts) for rule in rules):
                return note.rstrip(".")
            if not rules:
                self.unchecked.add(f"{node.op_type}: {note}")
        return ""
