"""Runs of ONNX Runtime whose inputs and outputs lie on the device: what is copied is copied here, and can be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitdeploy.backends.base import TensorSpec
from vitdeploy.errors import UsageError

MOST_SHAPES = 8  # sets of input shapes that keep their memory on the device
FEWEST = 10  # runs that a time is taken of
AMD = 0x1002
Feeds = Mapping[str, np.ndarray]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Place:
    """Memory of a device, in ONNX Runtime's words; a vendor of -1 follows from the kind."""

    kind: str
    number: int = 0
    vendor: int = -1

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """An OrtValue there."""
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_shape_and_type(
            list(shape), np.dtype(dtype), self.kind, self.number, self.vendor
        )


PLACES = {"cuda": Place("cuda"), "tensorrt": Place("cuda"), "tensorrt-rtx": Place("cuda")}
PLACES |= {"migraphx": Place("gpu", vendor=AMD), "rocm": Place("gpu", vendor=AMD)}
CERTAIN = {"cuda", "tensorrt"}  # the wheels of the others may not give their memory to Python
CUDA_GRAPH = {"cuda": "enable_cuda_graph", "tensorrt": "trt_cuda_graph_enable", "tensorrt-rtx": "enable_cuda_graph"}


class BoundRuns:
    """Runs of one InferenceSession, a binding for each set of input shapes. One run at a time.

    Args:
        native: the InferenceSession.
        place: where inputs and outputs lie.
        cuda_graph: it records its first run and plays it again: the addresses must stay, and with them the shapes.
    """

    def __init__(
        self,
        native: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        place: Place,
        *,
        cuda_graph: bool = False,
    ) -> None:
        self._native = native
        self._inputs, self._outputs = inputs, outputs
        self._place = place
        self._cuda_graph = cuda_graph
        self._bindings: dict[Shapes, Binding] = {}
        where = "the CPU" if place.kind == "cpu" else "the GPU"
        self.copies = f"copies from host arrays to {where} and back"
        self.launch = "one CUDA graph a run" if cuda_graph else "no CUDA graph"

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Copy in, run, copy out; C-ordered arrays of the specs' dtypes. Raises UsageError for a second shape with
        CUDA graphs, and what ONNX Runtime raises."""
        binding = self._binding(feeds)
        binding.put(feeds)
        binding.compute()
        return binding.take()

    def resident(self, feeds: Feeds) -> Callable[[], None]:
        """Copy in, and return the run by itself."""
        binding = self._binding(feeds)
        binding.put(feeds)
        binding.compute()  # what a first run prepares is done
        return binding.compute

    def parts(self, feeds: Feeds, seconds: float) -> dict[str, list[float]]:
        """As Session.parts, by the host's clock: each part ends when the device has done it."""
        self.run(feeds)  # what a first run prepares is no part of the others
        binding = self._binding(feeds)
        taken: dict[str, list[float]] = {name: [] for name in ("h2d", "compute", "d2h", "latency")}
        end = time.perf_counter() + seconds
        while len(taken["latency"]) < FEWEST or time.perf_counter() < end:
            marks = [time.perf_counter()]
            for part in (lambda: binding.put(feeds), binding.compute, binding.take):
                part()
                marks.append(time.perf_counter())
            for name, first, last in (("h2d", 0, 1), ("compute", 1, 2), ("d2h", 2, 3), ("latency", 0, 3)):
                taken[name].append(marks[last] - marks[first])
        return taken

    def _binding(self, feeds: Feeds) -> Binding:
        shapes = tuple(feeds[spec.name].shape for spec in self._inputs)
        found = self._bindings.pop(shapes, None)
        if found is None:
            self._make_room(shapes)
            found = Binding(self._native, self._inputs, self._outputs, shapes, self._place, fixed=self._cuda_graph)
        self._bindings[shapes] = found  # the one used last is the last
        return found

    def _make_room(self, shapes: Shapes) -> None:
        if self._cuda_graph and self._bindings:
            only, other = (", ".join(str(list(shape)) for shape in one) for one in (next(iter(self._bindings)), shapes))
            raise UsageError(
                f"With its CUDA graph this session runs inputs of shape {only} alone, not {other}.",
                fix="Open another session for them, or leave CUDA graphs off.",
            )
        while len(self._bindings) >= MOST_SHAPES:
            del self._bindings[next(iter(self._bindings))]


class Binding:
    """Memory for inputs of these shapes and for their outputs.

    Args:
        fixed: every output must have its memory before the first run.
    """

    def __init__(
        self,
        native: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        shapes: Shapes,
        place: Place,
        *,
        fixed: bool,
    ) -> None:
        self._native, self._place = native, place
        self._outputs = outputs
        self._native_binding = native.io_binding()
        self._values = {spec.name: place.empty(shape, spec.dtype) for spec, shape in zip(inputs, shapes, strict=True)}
        for name, value in self._values.items():
            self._native_binding.bind_ortvalue_input(name, value)
        sizes = {
            want: size
            for spec, shape in zip(inputs, shapes, strict=True)
            for want, size in zip(spec.shape, shape, strict=True)
        }
        self._loose: list[str] = []  # outputs whose shape ONNX Runtime finds out in each run
        for spec in outputs:
            shape = tuple(sizes.get(n, -1) if isinstance(n, str) else n for n in spec.shape)
            if -1 not in shape:
                self._native_binding.bind_ortvalue_output(spec.name, place.empty(shape, spec.dtype))
                continue
            if fixed:
                raise UsageError(
                    f"A CUDA graph needs outputs of known shape, and '{spec.name}' is {list(spec.shape)}.",
                    fix="Leave CUDA graphs off.",
                )
            self._loose.append(spec.name)
            self._bind_loose(spec.name)

    def put(self, feeds: Feeds) -> None:
        """Inputs to the device; back when they are there."""
        for name, value in self._values.items():
            value.update_inplace(feeds[name])
        self._native_binding.synchronize_inputs()

    def compute(self) -> None:
        """Run; back when the outputs are there."""
        for name in self._loose:  # bound anew: its memory of the last run may be of another size
            self._bind_loose(name)
        self._native.run_with_iobinding(self._native_binding)
        self._native_binding.synchronize_outputs()

    def take(self) -> dict[str, np.ndarray]:
        """Outputs as arrays of the caller's own."""
        values = self._native_binding.get_outputs()  # in the order in which they were bound
        arrays = {spec.name: value.numpy() for spec, value in zip(self._outputs, values, strict=True)}
        # On the CPU an OrtValue lends its memory, which the next run writes over.
        return {name: array if array.flags.owndata else array.copy() for name, array in arrays.items()}

    def _bind_loose(self, name: str) -> None:
        self._native_binding.bind_output(name, self._place.kind, self._place.number)


def bound_runs(
    native: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], provider: str, settings: Mapping[str, str]
) -> BoundRuns | None:
    """Bound runs on the provider's device; None where it shares the host's memory or does not lend its own.

    Args:
        provider: by short name; settings: its options.

    Raises UsageError for a CUDA graph where runs cannot be bound: it would read and write where nobody looks.
    """
    cuda_graph = settings.get(CUDA_GRAPH.get(provider, ""), "0").lower() in ("1", "true")
    place = PLACES.get(provider)
    if place is not None and all(numeric(spec) for spec in (*inputs, *outputs)):
        place = replace(place, number=int(settings.get("device_id", 0)))
        if provider in CERTAIN or lends(place):
            return BoundRuns(native, inputs, outputs, place, cuda_graph=cuda_graph)
    if cuda_graph:
        raise UsageError("A CUDA graph needs inputs and outputs in the GPU's memory, which they cannot have here.")
    return None


def lends(place: Place) -> bool:
    """Whether this wheel of ONNX Runtime gives memory of the place to Python."""
    try:
        place.empty((1,), "float32")
    except Exception:
        return False
    return True


def numeric(spec: TensorSpec) -> bool:
    """Whether numpy knows its type, and the device can hold it."""
    try:
        return np.dtype(spec.dtype).kind in "fiub"
    except TypeError:
        return False
