"""What is known of a plan file: `engine.json` beside it, which needs no GPU to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vitdeploy.backends.base import Census
from vitdeploy.backends.nvidia.gpus import Driver
from vitdeploy.backends.nvidia.install import TITLES
from vitdeploy.backends.nvidia.layers import BUILDER, Layer, count
from vitdeploy.backends.nvidia.options import Range
from vitdeploy.errors import BackendError, UsageError

PLAN = "model.plan"
FACTS = "engine.json"


@dataclass(frozen=True)
class Facts:
    """Where a plan file came from, where it runs, and what is in it.

    Attributes:
        runtime: 'tensorrt' or 'tensorrt_rtx'.
        version: of the runtime that built it.
        compute_capabilities: of the GPUs that it is for, as '8.9'.
        gpu, driver: what it was built on; empty where it was built ahead of time.
        options: what differed from the builder's defaults.
        profiles: (min, opt, max) shape by dynamic input, of each optimization profile.
        products: op type by name, of the ONNX nodes that multiply.
        layers: of the engine.
        source: who told of the layers.
    """

    runtime: str
    version: str
    compute_capabilities: tuple[str, ...] = ()
    gpu: str = ""
    driver: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    profiles: tuple[Mapping[str, Range], ...] = ()
    products: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    source: str = BUILDER

    def census(self) -> Census | None:
        """None where the layers are not known: the engine was built with less than detailed verbosity."""
        return count(self.layers, self.products, self.source) if self.layers else None

    def to_dict(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"layers": [layer.to_dict() for layer in self.layers]}

    def to_summary(self) -> dict[str, Any]:
        """JSON values for people: with the precision of each layer, and the census."""
        census = self.census()
        layers = [layer.to_dict() | {"precision": layer.precision} for layer in self.layers]
        return self.to_dict() | {"layers": layers, "census": census.to_dict() if census is not None else None}

    def write(self, plan: Path) -> Path:
        """Beside the plan file; returns the path."""
        file = plan.with_name(FACTS)
        file.write_text(json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return file

    @classmethod
    def read(cls, plan: Path) -> Facts | None:
        """None where there is no `engine.json`. Raises UsageError on one that cannot be read."""
        file = plan.with_name(FACTS)
        if not file.is_file():
            return None
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            data["layers"] = tuple(Layer.from_dict(layer) for layer in data["layers"])
            data["compute_capabilities"] = tuple(map(str, data["compute_capabilities"]))
            data["profiles"] = tuple(
                {name: tuple(tuple(map(int, shape)) for shape in three) for name, three in profile.items()}
                for profile in data["profiles"]
            )
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file} is damaged: {type(error).__name__}: {error}.") from None

    def check_fits(self, plan: Path, version: str, driver: Driver, index: int) -> None:
        """Raise BackendError where this machine's runtime or GPU cannot run the plan, rather than have it crash."""
        title = TITLES.get(self.runtime, self.runtime)
        again = "Export it again on this machine."
        loose = self.options.get("version_compatible")
        if not loose and _release(self.version) != _release(version):
            raise BackendError(f"{plan} was built by {title} {self.version}, and here is {version}.", fix=again)
        gpu = driver.gpus[index]
        level = self.options.get("hardware_compatibility_level", "none")
        newer = level == "ampere_plus" and gpu.compute_capability >= (8, 0)
        if self.compute_capabilities and gpu.sm not in self.compute_capabilities and not newer:
            wanted = " or ".join(self.compute_capabilities)
            made = f" ({self.gpu})" if self.gpu else ""
            raise BackendError(
                f"{plan} is for GPUs of compute capability {wanted}{made}, and here is {gpu.sm} ({gpu.name}).",
                fix=again,
            )


def _release(version: str) -> tuple[str, ...]:
    """Plans are portable between builds of one release: 10.16.1.11 and 10.16.1.12."""
    return tuple(version.split(".")[:3])
