"""timm, for the tests that compare with it. It is no dependency: without it they are skipped."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

_library: Any = None


def import_timm() -> ModuleType:
    """timm, or a skip of the calling module.

    timm imports torchvision, whose package wheel does not load beside a CPU build of torch unless the two operators
    that its compiled part would define exist. They are declared here where they are missing, and never run.
    """
    global _library
    import torch

    torchvision_ops = torch.ops.torchvision
    if _library is None and not hasattr(torchvision_ops, "nms"):
        try:
            import torchvision  # noqa: F401
        except ImportError:
            pass
        except RuntimeError:
            _forget("torchvision")
            _library = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as its operators are needed
            _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm is not usable here: {error}", allow_module_level=True)
    return timm


def _forget(package: str) -> None:
    """Drop a half-imported package, so that it can be imported again."""
    import sys

    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        del sys.modules[name]
