"""What a backend compiles from: an ONNX graph, or the PyTorch module itself. One strategy each."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vitdeploy.backends.base import Backend, Program, RunOptions
from vitdeploy.errors import UnsupportedModel, VitdeployError
from vitdeploy.export.trace import OPSET
from vitdeploy.models.build import Built
from vitdeploy.pipeline.precision import CONVERSIONS, Job, convert, own_report, range_samples
from vitdeploy.pipeline.request import ExportRequest, Listener, Steps
from vitdeploy.spec import CALIBRATED, ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from torch import nn

    from vitdeploy.verify.bisect import Departure
    from vitdeploy.verify.collect import Case, Collected
    from vitdeploy.verify.compare import Verification
    from vitdeploy.verify.layers import LayerError

MOST_COMPARED = 150_000_000  # parameters: the fp32 graph is held beside the converted one


class Source(ABC):
    """A model on its way to a backend. Making one does the work before compiling.

    It is made of a request, the module with the spec of the file that it becomes, and inputs as the bare model takes
    them, which activation ranges are measured on.

    Attributes:
        passes: what rewrote it, for the manifest.
        applied: what was applied, by name.
        facts: nodes, parameters, macs, as far as there are such.
        layers: error of each layer, where a graph was converted to another precision; see verify.layers.
        unnamed: why no node is named when a verification fails; empty where one can be.
    """

    _request: ExportRequest
    passes: list[dict[str, Any]]
    applied: dict[str, Any]
    facts: dict[str, Any]
    layers: Sequence[LayerError] = ()
    unnamed: str = ""

    @abstractmethod
    def __init__(self, request: ExportRequest, built: Built, steps: Steps, cases: Sequence[Case]) -> None: ...

    @abstractmethod
    def compile(self, backend: Backend, folder: Path) -> list[Path]:
        """Write the backend's files, the model file first."""

    def stand_in(self, backend: Backend, compiled: Path, cases: Sequence[Case]) -> Collected:
        """Outputs of what was compiled, where the compiled file cannot run here: by default of the file's stand-in.

        Raises UnsupportedModel where nothing else runs it.
        """
        return run_candidate(self._request, compiled, cases, stand_in=True)

    @abstractmethod
    def close(self) -> None:
        """Let go of the weights."""

    @staticmethod
    @abstractmethod
    def check(file: Path) -> None:
        """Refuse a finished file that would harm whoever opens it. Raises UsageError."""

    @staticmethod
    @abstractmethod
    def find_departure(
        request: ExportRequest, spec: ModelSpec, file: Path, case: Case, verification: Verification
    ) -> Departure | None:
        """The first node of a finished file that departs from a fresh export; None where there is none to be named."""


class GraphSource(Source):
    """Traces, optimises and converts an ONNX graph."""

    def __init__(self, request: ExportRequest, built: Built, steps: Steps, cases: Sequence[Case]) -> None:
        from vitdeploy.graph.ops import macs, parameters

        self._request = request
        self.graph: ir.Model | None
        self.graph, self.passes, self.applied, self.layers = make_graph(request, built, steps, cases)
        nodes = self.graph.graph.num_nodes()
        self.facts = {"nodes": nodes, "parameters": parameters(self.graph)[0], "macs": macs(self.graph).total}
        self.applied |= embed(self.graph, built.spec, request, steps)

    def compile(self, backend: Backend, folder: Path) -> list[Path]:
        assert self.graph is not None
        files = backend.compile(self.graph, folder, self._request.run, self._request.precision)
        self.applied |= backend.compile_report(files[0])
        return files

    def stand_in(self, backend: Backend, compiled: Path, cases: Sequence[Case]) -> Collected:
        assert self.graph is not None
        return run_stand_in(self._request, self.graph, compiled, cases)

    def close(self) -> None:
        self.graph = None
        gc.collect()

    @staticmethod
    def check(file: Path) -> None:
        from vitdeploy.graph.load import check_external_data

        check_external_data(file)

    @staticmethod
    def find_departure(
        request: ExportRequest, spec: ModelSpec, file: Path, case: Case, verification: Verification
    ) -> Departure | None:
        """From a fresh export, or else from the traced program itself; an engine shows no tensors but its outputs."""
        from vitdeploy.backends import registry
        from vitdeploy.export.trace import trace
        from vitdeploy.graph.feeds import feeds_of
        from vitdeploy.graph.load import load
        from vitdeploy.models.build import rebuild
        from vitdeploy.verify.bisect import bisect

        if registry.get(request.backend).made(file):
            return None
        built = rebuild(spec)
        candidate = load(file)
        bound = max(verification.bounds.rel_max or 0.0, 1e-4)
        fresh, *_ = make_graph(replace(request, precision="fp32", io_precision="fp32"), built, None, [case])
        embed(fresh, spec, request, Steps(Listener()))
        inputs = feeds_of(fresh, case.image)
        found = bisect(fresh, candidate, inputs, rel_bound=bound)
        if found is not None:
            return found
        program = trace(built.module, spec.bare.input, batch=request.batch, opset=request.opset or OPSET)
        embed(program, spec, request, Steps(Listener()))
        return bisect(program, candidate, inputs, rel_bound=bound)


class ProgramSource(Source):
    """Hands the module to a backend that traces and converts it in its own way."""

    unnamed = "No node is named: the compiled program shows no tensors but its outputs."

    def __init__(self, request: ExportRequest, built: Built, steps: Steps, cases: Sequence[Case]) -> None:
        from vitdeploy.export.ends import Ends
        from vitdeploy.export.metadata import metadata
        from vitdeploy.pipeline.calibration import as_images, calibration_images

        self._request = request
        if len(built.spec.input.tensors) > 1:
            raise UnsupportedModel(f"{request.backend} compiles models of one input, and this takes packed images.")
        shape, samples = built.spec.input.shape, range_samples(request, cases)
        self._steps = steps
        calibrated = request.precision in CALIBRATED
        self._images = calibration_images(request, built.spec.input) if calibrated else None
        program = Program(built.module, shape, request.batch, request.io_precision, samples)
        program = replace(program, metadata=metadata(built.spec, request.precision, request.batch))
        if self._images is not None:
            program = replace(program, images=as_images(self._images).batches)
        self.passes, self.applied = [], {"precision": request.precision}
        self.facts = {"parameters": built.parameters, "macs": module_macs(built.module, shape)}
        if built.spec != built.spec.bare:
            ends = Ends(built.module, built.spec)
            frame = built.spec.input.tensors[0] if built.spec.input.frame is not None else None
            program = replace(program, module=ends, frame=frame, gives=ends.output_names)
            self.applied["embed"] = {"products": ends.products}
        self.program: Program | None = program

    def compile(self, backend: Backend, folder: Path) -> list[Path]:
        assert self.program is not None
        files = backend.compile_program(self.program, folder, self._request.run, self._request.precision)
        self.applied |= backend.compile_report(files[0])
        if self._images is not None:
            from vitdeploy.pipeline.calibration import RANDOM_NOTE, tell_skipped

            tell_skipped(self._images, self._steps)
            if self._request.calib_random:
                self._steps.note(RANDOM_NOTE)
            seen = {"images": len(self._images.kept), "source": self._images.source, "digest": self._images.digest()}
            self.applied.setdefault(self._request.precision, {}).update(seen)
        return files

    def close(self) -> None:
        self.program = None
        gc.collect()

    @staticmethod
    def check(file: Path) -> None:
        """Nothing to look at: such a file belongs to its runtime alone."""

    @staticmethod
    def find_departure(
        request: ExportRequest, spec: ModelSpec, file: Path, case: Case, verification: Verification
    ) -> Departure | None:
        return None


SOURCES: Mapping[str, type[Source]] = {"graph": GraphSource, "program": ProgramSource}


def source_of(backend: str) -> type[Source]:
    """The strategy of a backend, by its name."""
    from vitdeploy.backends import registry

    return SOURCES[registry.get(backend).source]


def make_graph(
    request: ExportRequest, built: Built, steps: Steps | None, cases: Sequence[Case]
) -> tuple[ir.Model, list[dict[str, Any]], dict[str, Any], Sequence[LayerError]]:
    """Trace, optimise and convert the model alone. The same request gives the same graph, name for name.

    Returns:
        The graph, what the passes did, what was applied, and the error of each layer where it was converted.
    """
    from vitdeploy.graph.edit import copy_of
    from vitdeploy.graph.ops import parameters

    steps = steps or Steps(Listener())
    graph, passes = trace_and_optimise(request, built, steps)
    compared = CONVERSIONS[request.precision].convert is not None and parameters(graph)[0] <= MOST_COMPARED
    before = copy_of(graph) if compared else None
    applied = convert(Job(graph, built.spec.bare, request, steps, range_samples(request, cases)))
    if before is None or not own_report(request.precision, applied):
        return graph, passes, applied, []
    return graph, passes, applied, compare_layers(before, graph, cases[0].image, steps)


def compare_layers(before: ir.Model, graph: ir.Model, batch: np.ndarray, steps: Steps) -> list[LayerError]:
    """Empty where ONNX Runtime's CPU does not run what the graph was converted to."""
    from vitdeploy.graph.feeds import feeds_of
    from vitdeploy.verify.layers import layer_errors

    with steps.step("layers") as detail:
        try:
            found = layer_errors(before, graph, feeds_of(before, batch))
        except VitdeployError as error:
            detail.append(f"cannot be compared one by one: {error.message.splitlines()[0]}")
            return []
        worst = max(found, key=lambda one: one.rel_l2, default=None)
        detail.append(f"{len(found)} compared with fp32")
        detail += [f"farthest off {worst.rel_l2:.2g} at {worst.layer}"] if worst is not None else []
    return found


def embed(graph: ir.Model, spec: ModelSpec, request: ExportRequest, steps: Steps) -> dict[str, Any]:
    """Put around the graph what the spec says is in the file; returns what was put there, for the manifest."""
    from vitdeploy.export.metadata import write_metadata
    from vitdeploy.export.postprocess import embed_postprocessing
    from vitdeploy.export.preprocess import embed_preprocessing

    if spec == spec.bare:
        return {}
    nodes, products = graph.graph.num_nodes(), 0
    with steps.step("embed") as detail:
        if spec.input.frame is not None:
            products = embed_preprocessing(graph, spec.input)
            detail.append(f"preprocessing of {spec.input.frame}")
        if spec.top:
            embed_postprocessing(graph, spec.top)
            detail.append(f"the best {spec.top} classes")
        added = graph.graph.num_nodes() - nodes
        detail.append(f"{added} nodes")
    write_metadata(graph, spec, request.precision, request.batch)
    return {"embed": {"nodes": added, "products": products}}


def trace_and_optimise(request: ExportRequest, built: Built, steps: Steps) -> tuple[ir.Model, list[dict[str, Any]]]:
    """The fp32 graph, and what the passes did."""
    from vitdeploy.export.passes import optimise
    from vitdeploy.export.trace import trace
    from vitdeploy.graph.ops import op_counts
    from vitdeploy.pipeline.calibration import dialect

    flat = isinstance(request.batch, int) or request.precision not in CALIBRATED or dialect(request)[0].flat
    with steps.step("trace") as detail:
        graph = trace(built.module, built.spec.bare.input, batch=request.batch, opset=request.opset or OPSET)
        raw = graph.graph.num_nodes()
        detail += [f"ONNX opset {graph.graph.opset_imports['']}", f"{raw} nodes"]
    before = op_counts(graph)
    with steps.step("optimise") as detail:
        results = optimise(graph, flat=flat)
        after = op_counts(graph)
        detail.append(f"{len({r.name for r in results})} passes   {graph.graph.num_nodes()} nodes")
        detail += [
            f"{op} {before[op]} -> {after[op]}" for op in ("BatchNormalization", "Transpose") if before[op] != after[op]
        ]
    return graph, [asdict(r) for r in results]


def module_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one run at batch 1, counted while it runs once."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # The fused attention of a CPU is not counted; spelled out it is two products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        module(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def run_candidate(request: ExportRequest, model: Path, cases: Sequence[Case], *, stand_in: bool = False) -> Collected:
    """The compiled model's outputs on the cases, from a child process, so that a native crash is an error."""
    from vitdeploy.backends import isolate
    from vitdeploy.verify.collect import collect

    images = [case.image for case in cases]
    return isolate.call(collect, request.backend, model, request.run, images, stand_in=stand_in, what=request.backend)


def run_stand_in(request: ExportRequest, graph: ir.Model, compiled: Path, cases: Sequence[Case]) -> Collected:
    """The outputs of the graph that was compiled, on ONNX Runtime, where the compiled file cannot run.

    The census is the one that was taken when it was compiled.
    """
    from vitdeploy.backends import registry
    from vitdeploy.graph.save import save

    census = registry.get(request.backend).compiled_census(compiled)
    with TemporaryDirectory(prefix="vitdeploy-") as name:
        file = save(graph, Path(name) / "model.onnx")[0]
        own = replace(request, backend="onnxruntime", run=RunOptions("cpu", request.run.threads))
        return replace(run_candidate(own, file, cases), census=census)
