"""The value of any tensor of a graph, streamed: what calibration, bisection and constant checks read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import BackendError, UsageError
from vitdeploy.graph.save import skeleton_of, weights, write_data, write_model
from vitdeploy.graph.shapes import TensorInfo, infer

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


def values(
    model: ir.Model,
    feeds: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    threads: int = 1,
    chunk_bytes: int = 256 << 20,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, value) for each of `names`, in that order. See Probe, which serves many feeds."""
    with Probe(model, names, threads=threads, chunk_bytes=chunk_bytes) as probe:
        yield from probe.run(feeds)


class Probe:
    """Reads tensors of one graph, feeds after feeds, on ONNX Runtime's CPU with graph optimisation off.

    The weights lie once in a temporary file, which ONNX Runtime maps into memory; no copy is held here.

    Args:
        model: the graph; it is not changed.
        names: tensors of the main graph: node outputs, inputs or initializers. bfloat16 values come as float32.
        threads: intra-op threads.
        chunk_bytes: about how many bytes of values are alive at once; each chunk reruns the nodes before it.

    Raises:
        UsageError: a name is not in the graph, or the feeds do not fit its inputs.
        BackendError: ONNX Runtime refuses the graph.
    """

    def __init__(
        self, model: ir.Model, names: Sequence[str], *, threads: int = 1, chunk_bytes: int = 256 << 20
    ) -> None:
        self._model = model
        self._names = list(dict.fromkeys(names))
        self._threads = threads
        self._chunk_bytes = chunk_bytes
        self._made = {value.name for node in model.graph for value in node.outputs if value.name}
        self._inputs = [v.name for v in model.graph.inputs if v.name not in model.graph.initializers]
        known = self._made | set(self._inputs) | set(model.graph.initializers)
        for name in self._names:
            if name not in known:
                raise UsageError(f"The graph has no tensor '{name}'.")
        self._skeleton = skeleton_of(model)
        self._tensors = weights(model)
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._plans: dict[tuple[tuple[int, ...], ...], list[list[str]]] = {}
        self._bfloat16: set[str] = set()
        self._places: dict[str, dict[str, str]] | None = None
        self._temporary = TemporaryDirectory(prefix="vitdeploy-")

    def run(self, feeds: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, value) in the order of `names`. Node outputs belong to the caller; weights are read-only."""
        if sorted(feeds) != sorted(name for name in self._inputs if name):
            raise UsageError(f"This graph takes the inputs {self._inputs}, not {sorted(feeds)}.")
        for chunk in self._plan(feeds):
            yield from self._run_chunk(chunk, feeds)

    def close(self) -> None:
        self._sessions.clear()
        self._temporary.cleanup()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _plan(self, feeds: Mapping[str, np.ndarray]) -> list[list[str]]:
        """`names` cut into runs whose values fit into chunk_bytes together."""
        key = tuple(feeds[name].shape for name in sorted(feeds))
        if key not in self._plans:
            found = infer(self._model, {name: array.shape for name, array in feeds.items()})
            self._bfloat16 = {name for name, info in found.items() if info.dtype == BFLOAT16}
            chunks: list[list[str]] = [[]]
            alive = 0
            for name in self._names:
                size = self._bytes(found.get(name)) if name in self._made else 0
                if chunks[-1] and alive + size > self._chunk_bytes:
                    chunks.append([])
                    alive = 0
                chunks[-1].append(name)
                alive += size
            self._plans[key] = chunks
        return self._plans[key]

    def _bytes(self, info: TensorInfo | None) -> int:
        if info is None or info.size is None or not info.dtype:
            return self._chunk_bytes // 4 + 1
        import onnx_ir as ir

        dtype = ir.DataType(info.dtype)
        return 0 if dtype == ir.DataType.STRING else -(-info.size * dtype.bitwidth // 8)

    def _run_chunk(self, chunk: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

        wanted = tuple(name for name in chunk if name in self._made)
        outputs: list[Any] = []
        if wanted:
            session = self._session(wanted)
            try:
                outputs = session.run(None, dict(feeds))[::-1]
            except ort_state.InvalidArgument as error:
                raise UsageError(f"The inputs do not fit the graph: {error}.") from error
            except Exception as error:
                raise BackendError(f"ONNX Runtime cannot run the graph: {error}.") from error
        for name in chunk:
            if name in self._made:
                value = outputs.pop()
            elif name in feeds:
                value = feeds[name]
            else:
                value = self._model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
            if not isinstance(value, np.ndarray):
                raise UsageError(f"'{name}' is not a tensor.")
            yield name, value

    def _session(self, wanted: tuple[str, ...]) -> Any:
        """A session of just the nodes that make `wanted`."""
        if wanted not in self._sessions:
            import onnxruntime as ort

            folder = Path(self._temporary.name)
            try:
                if self._places is None:
                    self._places = write_data(self._tensors, folder / "weights.data", "weights.data")
                part = _part(self._skeleton, wanted, self._bfloat16)
                read = {name for node in part.graph.node for name in _reads(node)}
                needed = [tensor for tensor in self._tensors if tensor.name in read]
                path = folder / f"{len(self._sessions)}.onnx"
                write_model(part, needed, path, self._places)
            except OSError as error:
                raise UsageError(f"Cannot write the graph to the temporary folder {folder}: {error}.") from error
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 4
            # Prepacked weights would be a second copy of the mapped ones.
            options.add_session_config_entry("session.disable_prepacking", "1")
            try:
                self._sessions[wanted] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise BackendError(f"ONNX Runtime refuses the graph: {error}.") from error
        return self._sessions[wanted]


def _part(skeleton: onnx.ModelProto, wanted: Iterable[str], bfloat16: set[str]) -> onnx.ModelProto:
    """The model reduced to the nodes that `wanted` needs, with `wanted` as its outputs (types left to the runtime)."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(skeleton)
    graph = part.graph
    del graph.output[:]
    needed = set(wanted)
    kept = []
    for node in reversed(skeleton.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _reads(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    taken = {name for node in skeleton.graph.node for name in node.output}
    for name in wanted:
        output = name
        if name in bfloat16:  # numpy has no such type, and neither does ONNX Runtime's Python API.
            output = next(n for n in (f"{name}_float32_{i}" for i in range(len(taken) + 1)) if n not in taken)
            graph.node.append(onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT))
        graph.output.add(name=output)
    return part


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, those that its subgraphs may take from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names |= _reads(inner)
    return names
