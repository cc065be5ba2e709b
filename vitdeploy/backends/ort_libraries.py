"""The shared libraries that ONNX Runtime's providers need: making them findable, and telling which is missing."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

NEEDS_CUDA = {"cuda", "tensorrt"}
SILENT = 4  # Errors come as exceptions; at 3 ONNX Runtime would print them to stderr as well.
# Part of a library's name, and what brings it.
BROUGHT_BY = {
    "libcuda.so": "Install NVIDIA's driver",
    "libnvinfer": "pip install 'tensorrt<11' (this provider needs TensorRT 10)",
    "libnvonnxparser": "pip install 'tensorrt<11' (this provider needs TensorRT 10)",
    "libcu": "pip install 'onnxruntime-gpu[cuda,cudnn]', or a PyTorch for the same CUDA",
}


@contextlib.contextmanager
def ready(provider: str) -> Iterator[None]:
    """Make the provider's libraries findable, and keep ONNX Runtime from printing while it loads them."""
    if provider == "cpu":
        yield
        return
    import onnxruntime as ort

    ort.set_default_logger_severity(SILENT)
    try:
        if provider in NEEDS_CUDA:
            load_cuda()
        if provider == "tensorrt":
            with contextlib.suppress(Exception):
                import_module("tensorrt")
        yield
    finally:
        ort.set_default_logger_severity(2)


def load_cuda() -> None:
    """Load CUDA's libraries: those that pip installed beside ONNX Runtime, or else PyTorch's."""
    import onnxruntime as ort

    with contextlib.redirect_stdout(None), contextlib.suppress(Exception):
        ort.preload_dlls()
    major = str(getattr(ort, "cuda_version", "")).partition(".")[0]
    try:
        ctypes.CDLL(f"libcublasLt.so.{major}")
    except OSError:
        # A loaded library serves everyone who asks for its name, wherever it lies.
        with contextlib.suppress(Exception):
            import_module("torch")


def why_not_loaded(provider: str) -> str:
    """What the dynamic loader says about a provider's library; empty where it has none or loads."""
    import onnxruntime as ort

    folder = Path(ort.__file__).parent / "capi"
    library = folder / f"libonnxruntime_providers_{provider}.so"
    if not library.exists():
        return ""
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def fix(why: str, package: str) -> str:
    """What to do about it; `package` is the wheel with the provider."""
    brought = next((by for part, by in BROUGHT_BY.items() if part in why), "")
    return f"{brought or f'Install the libraries that {package} needs'}, or use --device cpu."
