"""TensorRT-RTX: compiles ahead of time, on any machine, for GPUs that are named; runs where there is such a GPU.

Its engines are finished on the device when they are first run there. See vitdeploy.backends.nvidia.
"""

from __future__ import annotations

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.nvidia.backend import EngineBackend
from vitdeploy.backends.nvidia.gpus import Gpu, driver
from vitdeploy.backends.nvidia.options import EngineOptions
from vitdeploy.errors import UnsupportedModel, UsageError

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# They want the device, or a runtime that TensorRT-RTX does not have.
NEED_GPU = ("refit", "strip_plan", "version_compatible", "weight_streaming")


class TensorRtRtxBackend(EngineBackend):
    """The artifact is a plan file for the compute capabilities that were named, or for the GPU that is here."""

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
    magic = b"vtrt"
    fix = "pip install 'vitdeploy[tensorrt-rtx]'"
    no_gpu = (
        "Name the GPU to compile for: --backend-option compute_capability=8.9 (it knows "
        f"{', '.join(CAPABILITIES)}; several with commas)."
    )

    def compiles_ahead(self, options: RunOptions) -> bool:
        named = EngineOptions.read(options.provider_options).compute_capability
        return bool(named) and not any(gpu.sm in named for gpu in driver().gpus)

    def _target(self, options: RunOptions, wanted: EngineOptions) -> Gpu | None:
        if not self.compiles_ahead(options):
            return self._gpu(options)[1]
        self._index(options)
        unknown = [one for one in wanted.compute_capability if one not in CAPABILITIES]
        if unknown:
            raise UsageError(
                f"TensorRT-RTX does not compile for compute capability {unknown[0]}.",
                fix=f"It does for {', '.join(CAPABILITIES)}.",
            )
        refused = [name for name in NEED_GPU if getattr(wanted, name)]
        if refused:
            raise UnsupportedModel(f"TensorRT-RTX builds with {refused[0]} only where there is a GPU.")
        if wanted.timing_cache not in ("", "off"):
            raise UsageError("Timings are of a GPU, and none is used in a build ahead of time: leave timing_cache out.")
        return None
