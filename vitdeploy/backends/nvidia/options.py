"""How an engine is built and run: TensorRT's own names, from the KEY=VALUE pairs of `--backend-option`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from vitdeploy.errors import UsageError

UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]


@dataclass(frozen=True)
class Profile:
    """One optimization profile.

    Attributes:
        batch: (min, opt, max) of every dynamic first dimension; None where shapes are given.
        shapes: (min, opt, max) shape of an input, by name.
    """

    batch: tuple[int, int, int] | None = None
    shapes: Mapping[str, Range] | None = None

    def of(self, name: str, shape: Shape) -> Range:
        """The range of an input whose dynamic dimensions are -1. Raises UsageError where this does not tell."""
        given = (self.shapes or {}).get(name)
        if given is None:
            if self.batch is None or -1 in shape[1:] or shape[:1] != (-1,):
                raise UsageError(
                    f"The input '{name}' of shape {list(shape)} has no profile.",
                    fix=f"--backend-option 'profile={name}:MIN:OPT:MAX', each a shape such as 1x3x224x224.",
                )
            given = tuple((size, *shape[1:]) for size in self.batch)  # type: ignore[assignment]
        assert given is not None
        fits = all(len(one) == len(shape) for one in given) and all(
            low <= opt <= high and want in (-1, low) and (want == -1 or low == high)
            for low, opt, high, want in zip(*given, shape, strict=True)
        )
        if not fits:
            raise UsageError(f"The profile {given} does not fit the input '{name}' of shape {list(shape)}.")
        return given

    def to_text(self) -> str:
        """As `--backend-option profile=` takes it."""
        if self.shapes is None:
            return ":".join(map(str, self.batch or ()))
        return ",".join(":".join([name, *map(_shape_text, shapes)]) for name, shapes in self.shapes.items())


@dataclass(frozen=True)
class EngineOptions:
    """Options of the builder, with the names of IBuilderConfig's attributes, flags and pools, and of the session.

    Attributes:
        builder_optimization_level: 0 (fast builds) to 5 (fast engines); None leaves TensorRT's 3.
        avg_timing_iterations: of which a tactic's time is the mean.
        max_aux_streams: streams that an engine may use beside its own.
        workspace, tactic_dram, tactic_shared_memory: bytes, of the memory pools of these names.
        timing_cache: a file; 'off' for none; empty for the one that vitdeploy keeps for this device and version.
        hardware_compatibility_level: 'none', 'ampere_plus' or 'same_compute_capability'.
        version_compatible, exclude_lean_runtime, refit, strip_plan, weight_streaming, tf32, sparse_weights: flags.
            TF32 is off unless asked for, unlike TensorRT's own default: fp32 means fp32.
        profiling_verbosity: 'detailed', 'layer_names_only' or 'none'. Without 'detailed' no census can be taken.
        profile: optimization profiles; where there are none, the batch range of the export.
        compute_capability: GPUs that TensorRT-RTX compiles for, as '8.9'; empty for the one that is here.
        cuda_graph: launch a run as one CUDA graph.
        weight_streaming_budget: bytes of weights that stay on the GPU.
    """

    builder_optimization_level: int | None = None
    avg_timing_iterations: int | None = None
    max_aux_streams: int | None = None
    workspace: int | None = None
    tactic_dram: int | None = None
    tactic_shared_memory: int | None = None
    timing_cache: str = ""
    hardware_compatibility_level: str = "none"
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    refit: bool = False
    strip_plan: bool = False
    weight_streaming: bool = False
    tf32: bool = False
    sparse_weights: bool = False
    profiling_verbosity: str = "detailed"
    profile: tuple[Profile, ...] = ()
    compute_capability: tuple[str, ...] = ()
    cuda_graph: bool = False
    weight_streaming_budget: int | None = None

    @classmethod
    def read(cls, pairs: Mapping[str, str]) -> EngineOptions:
        """From KEY=VALUE. Raises UsageError on an unknown key (with the nearest) or a value that it cannot have."""
        known = {field.name for field in fields(cls)}
        found: dict[str, Any] = {}
        for key, text in pairs.items():
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"One of {', '.join(sorted(known))}."
                raise UsageError(f"TensorRT's backend has no option '{key}'.", fix=hint)
            try:
                found[key] = READERS[key](text)
            except (ValueError, KeyError):
                raise UsageError(f"The option {key}={text} is not {WANTED[READERS[key]]}.") from None
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """JSON values of what differs from the defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.profile:
            changed["profile"] = ";".join(profile.to_text() for profile in self.profile)
        if self.compute_capability:
            changed["compute_capability"] = list(self.compute_capability)
        return changed


def read_bytes(text: str) -> int:
    """'4G' is 4 GiB; M, K and plain bytes likewise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * UNITS[match[2].upper()])


def read_flag(text: str) -> bool:
    return {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}[
        text.strip().lower()
    ]


def read_level(text: str) -> int:
    if text not in {"0", "1", "2", "3", "4", "5"}:
        raise ValueError(text)
    return int(text)


def read_count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def read_path(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


def read_compatibility(text: str) -> str:
    if text.lower() not in ("none", "ampere_plus", "same_compute_capability"):
        raise ValueError(text)
    return text.lower()


def read_verbosity(text: str) -> str:
    if text.lower() not in ("detailed", "layer_names_only", "none"):
        raise ValueError(text)
    return text.lower()


def read_capabilities(text: str) -> tuple[str, ...]:
    """'8.9,12.0' or 'sm89'."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", part.strip().lower())
        if match is None:
            raise ValueError(text)
        found.append(f"{match[1]}.{match[2]}")
    return tuple(dict.fromkeys(found))


def read_profiles(text: str) -> tuple[Profile, ...]:
    """'1:8:32', or 'image:1x3x224x224:8x3x224x224:32x3x224x224' (inputs by commas); several by semicolons."""
    return tuple(_read_profile(part.strip()) for part in text.split(";"))


def _read_profile(text: str) -> Profile:
    sizes = text.split(":")
    if len(sizes) == 3 and all(size.isdecimal() for size in sizes):
        low, opt, high = map(int, sizes)
        if not 1 <= low <= opt <= high:
            raise ValueError(text)
        return Profile(batch=(low, opt, high))
    shapes = {}
    for entry in text.split(","):
        name, *three = entry.rsplit(":", 3)
        if not name or len(three) != 3:
            raise ValueError(text)
        low_shape, opt_shape, high_shape = (tuple(int(n) for n in one.lower().split("x")) for one in three)
        shapes[name] = (low_shape, opt_shape, high_shape)
    return Profile(shapes=shapes)


def _shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape))


READERS: Mapping[str, Callable[[str], Any]] = {
    "builder_optimization_level": read_level,
    "avg_timing_iterations": read_count,
    "max_aux_streams": read_count,
    "workspace": read_bytes,
    "tactic_dram": read_bytes,
    "tactic_shared_memory": read_bytes,
    "timing_cache": read_path,
    "hardware_compatibility_level": read_compatibility,
    "version_compatible": read_flag,
    "exclude_lean_runtime": read_flag,
    "refit": read_flag,
    "strip_plan": read_flag,
    "weight_streaming": read_flag,
    "tf32": read_flag,
    "sparse_weights": read_flag,
    "profiling_verbosity": read_verbosity,
    "profile": read_profiles,
    "compute_capability": read_capabilities,
    "cuda_graph": read_flag,
    "weight_streaming_budget": read_bytes,
}
WANTED: Mapping[Callable[[str], Any], str] = {
    read_level: "a level from 0 to 5",
    read_count: "a whole number",
    read_bytes: "a size such as 4G, 512M or a number of bytes",
    read_path: "a file, or off",
    read_flag: "1 or 0",
    read_compatibility: "one of none, ampere_plus, same_compute_capability",
    read_verbosity: "one of detailed, layer_names_only, none",
    read_capabilities: "a compute capability such as 8.9, or several with commas",
    read_profiles: "min:opt:max such as 1:8:32, or image:1x3x224x224:8x3x224x224:32x3x224x224",
}
