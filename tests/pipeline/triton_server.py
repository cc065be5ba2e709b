"""Triton's own server, from the wheel `nvidia-pytriton`, which has its core and its Python backend alone.

Repository, config, batching, labels and HTTP are Triton's. In place of the backends `onnxruntime` and `openvino` stand
a few lines of Python on ONNX Runtime, which open the file that the config names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

STAND_IN = """
import json, os
import numpy as np
import onnxruntime as ort
import torch
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = os.path.join(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = ort.InferenceSession(file)
        self.input, self.outputs = config["input"][0]["name"], [output["name"] for output in config["output"]]

    def execute(self, requests):
        given = [np.from_dlpack(pb.get_input_tensor_by_name(request, self.input)) for request in requests]
        ends = np.cumsum([len(array) for array in given])[:-1]
        whole = self.session.run(self.outputs, {self.input: np.concatenate(given)})
        parts = zip(*(np.split(array, ends) for array in whole))
        # NumPy 2's arrays have another layout than the one that this backend was compiled for.
        return [pb.InferenceResponse([tensor(*pair) for pair in zip(self.outputs, part)]) for part in parts]

def tensor(name, array):
    return pb.Tensor.from_dlpack(name, torch.from_numpy(array.copy()))
"""


class Server:
    """A running server; `ask` sends one request."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str) -> Any:
        """A JSON answer. Raises OSError, of which HTTPError holds the server's refusal."""
        with urllib.request.urlopen(f"{self.address}/v2/{path}", timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def ask(self, model: str, image: np.ndarray, classes: int = 0) -> Any:
        """Logits as an array, or with `classes` the best ones as 'value:index:label'; a str is the server's refusal."""
        given = {"name": "image", "shape": image.shape, "datatype": "FP32", "data": image.ravel().tolist()}
        wanted = {"name": "logits", "parameters": {"classification": classes} if classes else {}}
        body = json.dumps({"inputs": [given], "outputs": [wanted]}).encode()
        try:
            with urllib.request.urlopen(f"{self.address}/v2/models/{model}/infer", body, timeout=30) as answer:
                (found,) = json.load(answer)["outputs"]
        except urllib.error.HTTPError as error:
            return json.load(error)["error"]
        return np.array(found["data"]).reshape(found["shape"])


def why_not() -> str:
    """Why no server can run here; empty where one can."""
    if importlib.util.find_spec("pytriton") is None:
        return "no Triton server: pip install --no-deps nvidia-pytriton"
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return "Triton's Python backend needs a shared libpython"
    return "" if stub().is_file() else f"Triton's Python backend has none for Python {version()}"


def version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def package() -> Path:
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def stub() -> Path:
    return package() / "tritonserver" / "python_backend_stubs" / version() / "triton_python_backend_stub"


@contextmanager
def running(repository: Path, work: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """A server on `repository`, ready; what it says goes to `work / 'log'`.

    Raises AssertionError with the log when it does not start, or refuses a model.
    """
    backends = work / "backends"
    shutil.copytree(package() / "tritonserver" / "backends", backends)
    shutil.copy(stub(), backends / "python")
    (backends / "python" / stub().name).chmod(0o755)
    for name in ("onnxruntime", "openvino"):
        (backends / name).mkdir()
        (backends / name / "model.py").write_text(STAND_IN)
    program = work / "tritonserver"
    shutil.copy(package() / "tritonserver" / "bin" / "tritonserver", program)
    program.chmod(0o755)
    libraries = [package().parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    own = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)), "PYTHONPATH": os.pathsep.join(sys.path)}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where it finds its modules
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [program, f"--model-repository={repository}", f"--backend-directory={backends}", *options]
    command += ["--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=0", "--allow-metrics=0"]
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        wait(server, process, work / "log")
        yield server
    finally:
        process.terminate()
        process.wait(60)


def wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            return server.get("health/ready")
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
