"""Inductor, PyTorch's own compiler: an AOTInductor package (.pt2) for a CPU or an NVIDIA GPU, by torch.export."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends import inductor_package as package
from vitdeploy.backends.base import (
    Backend,
    Capabilities,
    Census,
    Program,
    RunOptions,
    Session,
    TensorSpec,
    closed_session_error,
)
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT = "image", "logits"
DTYPES = {"fp32": "float32", "fp16": "float16"}
MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}
# Instructions that multiply 16 bits as they are; without them the kernels convert to fp32 and multiply there.
UNITS = {"fp16": {"avx512_fp16", "amx_fp16", "fphp"}, "bf16": {"avx512_bf16", "amx_bf16", "bf16"}}
SETTINGS = {
    # Weights never change: they are laid out for their kernels, and what follows from them alone is computed once.
    "freezing": True,
    # As many threads as the session that runs it has, not as many as compiled it.
    "cpp.dynamic_threads": True,
    # They pay when they serve many compiles; this one's temporary files go with it.
    "aot_inductor.precompile_headers": False,
}
COMPILER = "Install g++ (apt install g++), or name a C++ compiler in CXX."
TIMED_RUNS = 10  # at least


class InductorBackend(Backend):
    """The artifact is a .pt2 package, which is native code. `provider_options`: mode=default or max-autotune."""

    name = "inductor"
    source = "program"
    runs_code = True

    def capabilities(self) -> Capabilities:
        import torch

        devices = [*gpus(), "cpu"]
        able = {device: precisions(device) for device in devices}
        found: dict[str, str] = {}
        for precision in ("fp32", "fp16", "bf16"):
            words: dict[str, list[str]] = {}
            for device in devices:
                if precision in able[device]:
                    words.setdefault(able[device][precision], []).append(device)
            if words:
                said = ", ".join(f"{word} on {' and '.join(where)}" for word, where in words.items())
                found[precision] = said if len(words) > 1 else next(iter(words))
        can = Capabilities(True, torch.__version__, tuple(devices), found)
        if package.compiler() is None:
            can = replace(can, reason="packages can be opened but not compiled: no C++ compiler", fix=COMPILER)
        return can

    def compile_report(self, model: Path) -> dict[str, Any]:
        facts = package.read_facts(model)
        return {facts.precision: dict(facts.report)} if facts.report else {}

    def describe(self, model: Path) -> dict[str, Any]:
        facts = asdict(package.read_facts(model))
        tensors = {
            which: [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}]
            for which, spec in zip(("inputs", "outputs"), specs(package.read_facts(model)), strict=True)
        }
        told = ("device", "capability", "system", "machine", "torch", "precision", "batch", "casts")
        ops = {op: sum(found.values()) for op, found in facts["ops"].items()}
        return {"format": "AOTInductor package", **{key: facts[key] for key in told}, **tensors, "ops": ops}

    def _compile_program(self, program: Program, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.backends import isolate

        settings = {**SETTINGS, **settings_of(options)}
        check_device(options.device)
        if package.compiler() is None:
            raise MissingDependency("Inductor compiles with a C++ compiler, and there is none.", fix=COMPILER)
        if precision not in precisions(options.device):
            raise UnsupportedModel(f"Inductor has no {precision} on {options.device}.")
        model = folder / "model.pt2"
        with TemporaryDirectory(prefix="vitdeploy-") as name:
            saved = Path(name) / "program.pt2"
            facts = save_program(program, precision, options.device, saved)
            told: dict[str, Any] = {"threads": options.threads, "device": options.device}
            isolate.call(package.build, saved, model, facts, settings, **told, what="Inductor")
        return [model]

    def _open(self, model: Path, options: RunOptions) -> Session:
        settings_of(options)
        check_device(options.device)
        facts = package.read_facts(model)
        package.check_machine(model, facts, options.device)
        return InductorSession(model, facts, options)


class InductorSession(Session):
    """A loaded package. `native` is torch's AOTICompiledModel, None once closed.

    Torch's number of threads is the session's while it runs, and then what it was before.
    """

    def __init__(self, model: Path, facts: package.Facts, options: RunOptions) -> None:
        from torch._inductor import aoti_load_package

        self._facts, self._options = facts, options
        kind, _, index = options.device.partition(":")
        self._device = f"cuda:{index or 0}" if kind == "cuda" else "cpu"
        image, logits = specs(facts)
        self.inputs, self.outputs = [image], [logits]
        try:
            self.native: Any = aoti_load_package(str(model), device_index=int(index or -1))
        except Exception as error:
            raise BackendError(f"Inductor cannot load {model}: {package.words(error)}.") from error

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        image = self._tensor(feeds)
        try:
            with self._settings():
                out = self.native(image.to(self._device)).cpu()
        except Exception as error:
            raise BackendError(f"Inductor failed: {package.words(error)}.") from error
        return {OUTPUT: out.numpy().copy()}

    def _resident(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        import torch

        image = self._tensor(feeds).to(self._device)

        def run() -> None:
            with self._settings():
                self.native(image)
                if self._device != "cpu":
                    torch.cuda.synchronize(self._device)

        return run

    def _tensor(self, feeds: Mapping[str, np.ndarray]) -> torch.Tensor:
        import torch

        if self.native is None:
            raise closed_session_error("Inductor")
        array, batch = feeds[INPUT], self._facts.batch
        if not isinstance(batch, int) and not batch[0] <= len(array) <= batch[-1]:
            raise UsageError(f"This package takes batches from {batch[0]} to {batch[-1]}, not {len(array)}.")
        native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(native if native.flags.writeable else native.copy())

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """The session's threads, and fp32 that is fp32: cuDNN would take TF32 for convolutions."""
        import torch

        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        threads, rounds = torch.get_num_threads(), (cudnn.allow_tf32, matmul.allow_tf32)
        if self._options.threads:
            torch.set_num_threads(self._options.threads)
        if self._device != "cpu":
            cudnn.allow_tf32 = matmul.allow_tf32 = False
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)
            if self._device != "cpu":
                cudnn.allow_tf32, matmul.allow_tf32 = rounds

    def census(self) -> Census:
        """The kernels that were scheduled when the package was compiled, by the precision that they have here."""
        from vitdeploy.backends.inductor_census import census

        if self.native is None:
            raise closed_session_error("Inductor")
        emulated = {p: "fp32" for p in UNITS if self._device == "cpu" and not has_units(p)}
        return census(self._facts.ops, self._facts.casts, emulated)

    def parts(self, feeds: Mapping[str, np.ndarray], seconds: float) -> dict[str, list[float]]:
        """Empty on a CPU; on a GPU from CUDA's own events, 'enqueue' from the host's clock."""
        import torch

        self.check(feeds)
        if self._device == "cpu":
            return {}
        found: dict[str, list[float]] = {name: [] for name in ("h2d", "compute", "d2h", "latency", "enqueue")}
        end = time.perf_counter() + seconds
        with self._settings(), torch.cuda.device(self._device):
            while time.perf_counter() < end or len(found["latency"]) < TIMED_RUNS:
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
                marks[0].record()
                image = self._tensor(feeds).to(self._device)
                marks[1].record()
                start = time.perf_counter()
                out = self.native(image)
                found["enqueue"].append(time.perf_counter() - start)
                marks[2].record()
                out.cpu()
                marks[3].record()
                marks[3].synchronize()
                times = [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
                for name, taken in zip(("h2d", "compute", "d2h"), times, strict=True):
                    found[name].append(taken)
                found["latency"].append(sum(times))
        return found

    def close(self) -> None:
        self.native = None


def save_program(program: Program, precision: str, device: str, file: Path) -> package.Facts:
    """Trace the module in its precision, save that, and return what is known of the package before it is compiled."""
    import torch

    from vitdeploy.export.program import export_program
    from vitdeploy.export.trace import quiet

    traced = export_program(program.module, program.shape, batch=program.batch)
    report: dict[str, Any] = {}
    if precision != "fp32":
        from vitdeploy.quantize.half_program import TYPES, to_half

        module, made = to_half(traced, precision, program.samples, io_precision=program.io_precision)
        dtype = TYPES[program.io_precision]
        traced, report = export_program(module, program.shape, batch=program.batch, dtype=dtype), made.to_dict()
    with quiet():
        torch.export.save(traced, file)
    (logits,) = (node.args[0][0] for node in traced.graph.find_nodes(op="output"))
    return package.Facts(
        device=device.partition(":")[0],
        torch=torch.__version__,
        precision=precision,
        io=DTYPES[program.io_precision],
        shape=program.shape,
        batch=program.batch,
        classes=logits.meta["val"].shape[-1],
        report=report,
    )


def specs(facts: package.Facts) -> tuple[TensorSpec, TensorSpec]:
    batch: int | str = facts.batch if isinstance(facts.batch, int) else "batch"
    return TensorSpec(INPUT, facts.io, (batch, *facts.shape)), TensorSpec(OUTPUT, facts.io, (batch, facts.classes))


def settings_of(options: RunOptions) -> dict[str, Any]:
    """Inductor's settings that the options mean. Raises UsageError on those that mean nothing to it."""
    if options.threads < 0:
        raise UsageError(f"threads is {options.threads}: give 0 (torch's own number) or more.")
    if options.provider is not None:
        raise UsageError(f"Inductor has no provider '{options.provider}'.", fix="It has --device cpu or cuda.")
    if options.optimization != "all":
        raise UsageError(f"Inductor always optimises the whole graph: it has no '{options.optimization}'.")
    given = dict(options.provider_options)
    mode = given.pop("mode", "default")
    if given or mode not in MODES:
        wrong = next(iter(given), f"mode={mode}")
        raise UsageError(f"Inductor does not take the option {wrong}.", fix=f"It has mode={' or mode='.join(MODES)}.")
    if mode == "default":
        return {}
    from torch._inductor import list_mode_options

    return dict(list_mode_options(MODES[mode]))


def check_device(device: str) -> None:
    """Raises UsageError on a device that Inductor cannot know, MissingDependency on one that is not here."""
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not index.isdecimal())):
        raise UsageError(f"Inductor knows no device '{device}'.", fix="One of cpu, cuda, cuda:1.")
    found = gpus()
    if kind == "cuda" and f"cuda:{index or 0}" not in found:
        have = f"only {', '.join(found)}" if found else "no GPU that this torch can use"
        raise MissingDependency(f"There is no {device} here: {have}.", fix="See vitdeploy doctor, or use --device cpu.")


def gpus() -> list[str]:
    """NVIDIA GPUs for which Inductor has a code generator."""
    from importlib.util import find_spec

    import torch

    if not torch.cuda.is_available() or find_spec("triton") is None:
        return []
    return [f"cuda:{i}" for i in range(torch.cuda.device_count()) if torch.cuda.get_device_capability(i) >= (7, 0)]


def precisions(device: str) -> dict[str, str]:
    """What can run on a device, each with how it does."""
    import torch

    if device != "cpu":
        index = int(device.partition(":")[2] or 0)
        able = ["fp32", "fp16", *(["bf16"] if torch.cuda.get_device_capability(index) >= (8, 0) else [])]
        return {precision: f"{precision} compute" for precision in able}
    half = "fp16 compute" if has_units("fp16") else "fp16 storage, fp32 compute, slowly"
    return {"fp32": "fp32 compute", "fp16": half} | ({"bf16": "bf16 compute"} if has_units("bf16") else {})


def has_units(precision: str) -> bool:
    """Whether this CPU multiplies that type."""
    return bool(UNITS[precision] & set(package.cpu_features()))
