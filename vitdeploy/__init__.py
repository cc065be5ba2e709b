"""vitdeploy: vision transformers from PyTorch to the devices that run them, proven equal.

    import vitdeploy

    artifact = vitdeploy.export("mobilevit_xs", precision="fp16")
    with vitdeploy.load(artifact.folder) as session:
        logits = session.run({"image": image})["logits"]

Everything is imported on first use: `import vitdeploy` loads neither torch nor a runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitdeploy.api import bench, build, compare, evaluate, export, inspect, load, models, predict, tune, verify
    from vitdeploy.artifact import Artifact
    from vitdeploy.errors import (
        BackendError,
        MissingDependency,
        PrecisionNotApplied,
        UnsupportedModel,
        UsageError,
        VerificationFailed,
        VitdeployError,
    )
    from vitdeploy.spec import InputSpec, ModelSpec

__all__ = [
    "Artifact",
    "BackendError",
    "InputSpec",
    "MissingDependency",
    "ModelSpec",
    "PrecisionNotApplied",
    "UnsupportedModel",
    "UsageError",
    "VerificationFailed",
    "VitdeployError",
    "__version__",
    "bench",
    "build",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "load",
    "models",
    "predict",
    "tune",
    "verify",
]

ROOMS = {"Artifact": "artifact", "InputSpec": "spec", "ModelSpec": "spec"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vitdeploy' has no attribute '{name}'")
    from importlib import import_module

    room = ROOMS.get(name, "api" if name.islower() else "errors")
    return getattr(import_module(f"vitdeploy.{room}"), name)


def __dir__() -> list[str]:
    return __all__
