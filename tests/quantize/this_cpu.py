"""The scheme whose int8 this machine's CPU computes exactly in ONNX Runtime, and what its weights cost."""

from __future__ import annotations

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend

SCHEME = OnnxRuntimeBackend().scheme(RunOptions(), "int8")
COARSER = 1.0 if SCHEME.weight_peak == 127 else 1.5  # errors of 7 bits a weight over those of 8
