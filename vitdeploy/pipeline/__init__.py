"""The one path that every verb walks, or a stretch of it."""

from vitdeploy.pipeline.checks import check_request
from vitdeploy.pipeline.compare import Comparison, compare
from vitdeploy.pipeline.evaluate import EvalRequest, evaluate
from vitdeploy.pipeline.export import export
from vitdeploy.pipeline.files import (
    backend_of,
    bench_files,
    inspect_file,
    lint_file,
    mobile_file,
    model_file,
    predict_images,
)
from vitdeploy.pipeline.lab import LabRequest, lab
from vitdeploy.pipeline.package import package_app, package_web
from vitdeploy.pipeline.request import ExportRequest, Listener, request_record
from vitdeploy.pipeline.tune import TuneRequest, tune
from vitdeploy.pipeline.verify import verify_artifact

__all__ = [
    "Comparison",
    "EvalRequest",
    "ExportRequest",
    "LabRequest",
    "Listener",
    "TuneRequest",
    "backend_of",
    "bench_files",
    "check_request",
    "compare",
    "evaluate",
    "export",
    "inspect_file",
    "lab",
    "lint_file",
    "mobile_file",
    "model_file",
    "package_app",
    "package_web",
    "predict_images",
    "request_record",
    "tune",
    "verify_artifact",
]
