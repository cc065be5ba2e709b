"""The contract between vitdeploy and a runtime: Backend, Session, and the plain data that passes between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import BackendError, UnsupportedModel, UsageError
from vitdeploy.export.trace import OPSET
from vitdeploy.spec import IMAGE
from vitdeploy.spec import TensorSpec as TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from vitdeploy.quantize.schemes import Scheme


PROFILED = 10  # runs
PREPROCESSING, ANY_SIZE, POSTPROCESSING = EMBEDS = "preprocessing", "preprocessing of any size", "postprocessing"


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do on this machine.

    Attributes:
        installed: whether it can run at all here.
        version: of the runtime, or None.
        devices: usable device names, best first ('cpu', 'cuda:0').
        precisions: precisions that it accepts, each with a word on how they run ('fp16': 'fp32 compute').
        reason: why it cannot run; empty when it can.
        fix: the install command or setting that mends it.
    """

    installed: bool
    version: str | None = None
    devices: tuple[str, ...] = ()
    precisions: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class RunOptions:
    """How a Session runs.

    Attributes:
        device: 'cpu', 'cuda', 'cuda:1', ...; each backend says which it has. Empty takes the
            backend's usual one.
        threads: intra-op threads; 0 leaves it to the runtime.
        optimization: the runtime's own graph optimisation: 'all', 'extended', 'basic' or 'off'.
        provider: ONNX Runtime execution provider by short name ('cpu', 'cuda', 'tensorrt', ...); None follows `device`.
        provider_options: passed to that provider, or to the backend where it has none, as they are.
    """

    device: str = ""
    threads: int = 1
    optimization: str = "all"
    provider: str | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """What a backend that starts from PyTorch compiles.

    Attributes:
        module: fp32, in eval mode; takes (B, C, H, W) and returns (B, classes), or whatever `takes` and `gives` say. It
            is not to be changed.
        shape: (C, H, W).
        batch: a fixed size, or (min, opt, max).
        io_precision: of the input and the output: 'fp32' or 'fp16'.
        samples: float32 (B, C, H, W), as the model within takes them, real ones first.
        images: a fresh pass over the images to calibrate on, at most so many at once: float32 (n, C, H, W), or one
            frame, uint8 (1, ...).
        frame: what the module takes in place of that, where its preprocessing is inside (see export.ends).
        gives: names of its outputs.
        metadata: what the file is to tell of itself, where its format has room for that (see export.metadata).
    """

    module: nn.Module
    shape: tuple[int, ...]
    batch: int | tuple[int, int, int]
    io_precision: str
    samples: Sequence[np.ndarray]
    images: Callable[[int], Iterable[np.ndarray]] = field(default=lambda size: ())
    frame: TensorSpec | None = None
    gives: tuple[str, ...] = ("logits",)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes(self) -> TensorSpec:
        """The module's input, of a fixed batch."""
        if self.frame is not None:
            return self.frame
        assert isinstance(self.batch, int)
        return TensorSpec(IMAGE, "float32", (self.batch, *self.shape))


@dataclass(frozen=True)
class Census:
    """Ops by executed precision, read from the *compiled* graph.

    Attributes:
        source: where it was read ('ONNX Runtime optimised graph').
        ops: {op type: {precision: count}} over every node that runs.
        compute: {precision: count} over the nodes that do the MACs (Conv, MatMul, Gemm, attention and their fusions).
        casts: number of precision casts that run.
        notes: what else a user should know of how it runs, a phrase each.
    """

    source: str
    ops: Mapping[str, Mapping[str, int]]
    compute: Mapping[str, int]
    casts: int = 0
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Session(ABC):
    """Something that runs. A context manager; outputs belong to the caller.

    Attributes:
        copies: which of them are a part of `run`.
        launch: how the device is set going, where there is a choice: 'one stream, no CUDA graph'.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    copies: str = "input and output copies between host arrays and the runtime"
    launch: str = ""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises UsageError on a wrong name, dtype or shape and BackendError when the runtime fails."""
        self.check(feeds)
        return self._run(feeds)

    def check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Hold `feeds` against `inputs`; raise UsageError with what differs."""
        names = [spec.name for spec in self.inputs]
        if sorted(feeds) != sorted(names):
            raise UsageError(f"This model takes the inputs {names}, not {sorted(feeds)}.")
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            array = feeds[spec.name]
            if array.dtype.name != spec.dtype:
                raise UsageError(f"Input '{spec.name}' is {spec.dtype}, not {array.dtype.name}.")
            matches = len(array.shape) == len(spec.shape) and all(
                got == sizes.setdefault(want, got) if isinstance(want, str) else got == want
                for got, want in zip(array.shape, spec.shape, strict=True)
            )
            if not matches:
                raise UsageError(f"Input '{spec.name}' has shape {list(spec.shape)}, not {list(array.shape)}.")

    def resident(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """A run by itself: its inputs lie on the device, its outputs stay there, and it ends when the device is done.

        It is good until the session runs with other inputs. On a host's CPU it is a run as any.
        """
        self.check(feeds)
        return self._resident(feeds)

    def includes(self, *, transfers: bool = True) -> str:
        """What the time of a `run` is made of; or, without transfers, of a run by itself."""
        copies = self.copies if transfers else "no copies: inputs and outputs stay on the device"
        frames = ["x".join(map(str, spec.example)) for spec in self.inputs if spec.dtype == "uint8"]
        made = f"preprocessing of a frame of {frames[0]}" if frames else "no preprocessing"
        return f"{copies}{', ' if self.launch else ''}{self.launch}; {made}"

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def _resident(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        return partial(self._run, feeds)

    @abstractmethod
    def census(self) -> Census: ...

    def parts(self, feeds: Mapping[str, np.ndarray], seconds: float) -> dict[str, list[float]]:
        """Where the time of a run goes on a device with memory of its own.

        Returns:
            Seconds of each of several runs, by part: 'h2d' (inputs to the device), 'compute', 'd2h' (outputs back),
            'latency' (their sum) and, where launching work is apart from doing it, 'enqueue'. Empty on a host's CPU.
        """
        return {}

    def op_seconds(self, feeds: Mapping[str, np.ndarray], runs: int = PROFILED) -> dict[str, float]:
        """Mean seconds of a run by type of op, by the runtime's own profiler, which slows it; else empty."""
        self.check(feeds)
        return {}

    def device_state(self) -> dict[str, float]:
        """Clocks, temperature and power of the device now, where it tells: sm_clock_mhz, temperature_c, ..."""
        return {}

    def close(self) -> None:  # noqa: B027 -- most runtimes free their memory when the object goes
        """Give back the runtime's memory. Running a closed session raises BackendError."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Backend(ABC):
    """One runtime. A class per file; instances hold no state.

    Attributes:
        name: as in `--backend`.
        source: 'graph' (compiles from the ONNX graph) or 'program' (from the PyTorch module).
        usual_device: what an empty RunOptions.device means.
        runs_code: opening one of its files runs machine code that is in it.
        dynamic_batch: whether its files can take batches of several sizes.
        embeds: what can be put into its files around a model, of EMBEDS.
        stores_weights: whether it finds the bits of 'int8-weights' itself when it compiles: its graph is then fp32, and
            `compile_report` tells what became of the weights.
        form_of: the backend whose kernels its files run on too; `tune` tries that one, unless this one is named.
        stand_in: what runs the programs of its files where they themselves cannot run (see `open_stand_in`); empty
            where nothing does.
    """

    name: str
    source: str = "graph"
    usual_device: str = "cpu"
    runs_code: bool = False
    dynamic_batch: bool = True
    embeds: Collection[str] = ()
    stores_weights: bool = False
    form_of: str = ""
    stand_in: str = ""

    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    def settled(self, options: RunOptions) -> RunOptions:
        """The options with a device in any case."""
        return options if options.device else replace(options, device=self.usual_device)

    def check(self, options: RunOptions) -> None:
        """Raise UsageError, MissingDependency or UnsupportedModel for options that `compile` could do nothing with."""
        self._check(self.settled(options))

    def compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str = "fp32") -> list[Path]:
        """Write what this runtime loads into `folder`; return the files, the model file first.

        A dynamic batch's range is in the graph's metadata (see export.metadata).

        Raises BackendError when the runtime refuses the graph, UnsupportedModel when it cannot express it.
        """
        return self._compile(graph, folder, self.settled(options), precision)

    def compile_program(
        self, program: Program, folder: Path, options: RunOptions, precision: str = "fp32"
    ) -> list[Path]:
        """As `compile`, for a backend that starts from the PyTorch module (`source` is 'program')."""
        return self._compile_program(program, folder, self.settled(options), precision)

    def open(self, model: Path, options: RunOptions) -> Session:
        """Open a model file (or an artifact's model file) as a Session.

        Raises UsageError when the file is not a model, BackendError when the runtime refuses it.
        """
        if not model.exists():
            raise UsageError(f"No such model file: {model}.")
        return self._open(model, self.settled(options))

    def open_stand_in(self, model: Path, options: RunOptions) -> Session:
        """As `open`, of what runs a file in the runtime's stead.

        Raises UnsupportedModel where there is no such thing, or it does not know an op of the file.
        """
        if not model.exists():
            raise UsageError(f"No such model file: {model}.")
        return self._open_stand_in(model, self.settled(options))

    def stands_in(self, options: RunOptions) -> str:
        """What has to run this backend's files here in its stead; empty where it runs them, or nothing else does."""
        return self.stand_in if self.compiles_ahead(options) else ""

    def compiles_ahead(self, options: RunOptions) -> bool:
        """Whether what it compiles with these options is for another machine, and cannot be opened on this one."""
        return False

    def compiled_census(self, model: Path) -> Census | None:
        """The census that was taken when `model` was compiled, for what cannot be opened here."""
        return None

    def compile_report(self, model: Path) -> dict[str, Any]:
        """What compiling did for its precision, as JSON values by precision, for the manifest's `applied`."""
        return {}

    def made(self, model: Path) -> bool:
        """Whether a file that is no ONNX file looks like one that this backend compiles."""
        return False

    def describe(self, model: Path) -> dict[str, Any] | None:
        """What is in a compiled file, as JSON values; None where it is an ONNX file, which tells by itself."""
        return None

    def layer_seconds(self, model: Path) -> dict[str, float]:
        """Mean seconds of each layer of a compiled file, by name; empty where no device here tells."""
        return {}

    def scheme(self, options: RunOptions, precision: str = "int8") -> Scheme:
        """How this runtime wants 'int8', or another quantised precision, expressed on this machine.

        Raises UnsupportedModel where it does not compute in it.
        """
        return self._scheme(self.settled(options), precision)

    def opset(self, options: RunOptions, precision: str) -> int:
        """The ONNX opset that this runtime is best served with, where the user names none."""
        return self._opset(self.settled(options), precision)

    def slow_in_fp16(self, options: RunOptions) -> Mapping[str, str]:
        """ONNX op types that this runtime runs better in fp32 within an fp16 graph, each with its reason."""
        return self._slow_in_fp16(self.settled(options))

    def _compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        raise UnsupportedModel(f"The backend {self.name} compiles from a PyTorch module, not from an ONNX graph.")

    def _compile_program(self, program: Program, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        raise UnsupportedModel(f"The backend {self.name} compiles from an ONNX graph, not from a PyTorch module.")

    def _check(self, options: RunOptions) -> None:  # noqa: B027 -- most find out when they compile
        pass

    @abstractmethod
    def _open(self, model: Path, options: RunOptions) -> Session: ...

    def _open_stand_in(self, model: Path, options: RunOptions) -> Session:
        raise UnsupportedModel(f"What {self.name} compiles for another machine cannot be verified on this one.")

    def _scheme(self, options: RunOptions, precision: str) -> Scheme:
        raise UnsupportedModel(f"The backend {self.name} says nothing about how it wants {precision} expressed.")

    def _opset(self, options: RunOptions, precision: str) -> int:
        return OPSET

    def _slow_in_fp16(self, options: RunOptions) -> Mapping[str, str]:
        return {}


def closed_session_error(name: str) -> BackendError:
    return BackendError(f"This {name} session is closed.", fix="Open the artifact again.")
