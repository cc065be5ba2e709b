"""TensorRT 10 and 11: builds an engine on the GPU that runs it. See vitdeploy.backends.nvidia."""

from __future__ import annotations

from vitdeploy.backends.nvidia.backend import EngineBackend

AHEAD = (
    "Without one, compile ahead of time for a GPU that you name: --backend tensorrt-rtx --backend-option "
    "compute_capability=8.9 (pip install 'vitdeploy[tensorrt-rtx]')."
)


class TensorRtBackend(EngineBackend):
    """The artifact is a plan file as trtexec and Triton load it."""

    name = "tensorrt"
    module = "tensorrt"
    magic = b"ftrt"
    fix = f"On a machine with an NVIDIA GPU: pip install 'vitdeploy[tensorrt]'\n{AHEAD}"
    no_gpu = f"Run this on a machine with an NVIDIA GPU and its driver.\n{AHEAD}"
