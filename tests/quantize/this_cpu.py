"""The scheme whose int8 this machine's CPU computes exactly in ONNX Runtime."""

from __future__ import annotations

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend

SCHEME = OnnxRuntimeBackend().scheme(RunOptions(), "int8")
