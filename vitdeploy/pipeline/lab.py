"""Artifacts on the lab's page: what it runs them on, where it is served, and what becomes of its results."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import MissingDependency, UsageError
from vitdeploy.pipeline.export import verification_cases
from vitdeploy.pipeline.files import backend_of, model_file
from vitdeploy.pipeline.request import Listener, Steps
from vitdeploy.pipeline.verify import relocated, request_of, trusted

if TYPE_CHECKING:
    from vitdeploy.lab.site import Subject

INSTALL = "pip install 'vitdeploy[lab]'"
RUNS = ("onnxruntime", "onnxruntime-mobile")  # backends whose files onnxruntime-web opens
HERE, EVERYWHERE = "127.0.0.1", "0.0.0.0"


@dataclass(frozen=True)
class LabRequest:
    """What `lab` is asked for.

    Attributes:
        artifacts: folders.
        data: images to prove on, beside the synthetic ones.
        model, weights: as of `verify_artifact`.
        lan: listen to the whole network.
        port: 0 takes a free one.
        certificate, key: PEM files, for https; a browser gives threads, WebGPU and the camera to no other address
            than https and its own machine.
        results: end after so many; None goes on until it is interrupted.
    """

    artifacts: Sequence[Path]
    data: Path | None = None
    model: str | None = None
    weights: str | None = None
    lan: bool = False
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    results: int | None = None


def subject_of(path: Path, request: LabRequest) -> Subject:
    """An artifact with inputs and eager PyTorch's outputs.

    Raises UsageError where onnxruntime-web cannot open its file, and as `verify_artifact` does.
    """
    from vitdeploy.lab.site import Subject
    from vitdeploy.models.build import rebuild
    from vitdeploy.verify.collect import eager_outputs

    file, artifact = model_file(path)
    if artifact is None:
        raise UsageError(f"{path} is no artifact of vitdeploy's.", fix="vitdeploy export makes one.")
    if backend_of(artifact) not in RUNS:
        raise UsageError(f"{path} is for {backend_of(artifact)}: a browser opens artifacts of {' and '.join(RUNS)}.")
    artifact.check_files()
    if artifact.manifest.request.get("io_precision", "fp32") != "fp32":
        raise UsageError(f"{path} has inputs of fp16, which browsers have no arrays for.")
    spec = relocated(trusted(artifact.manifest.model, request.model, path, "vitdeploy lab"), request.weights)
    wanted = request_of(artifact, file, RunOptions(), spec, request.data, None)
    wanted = replace(wanted, batch=wanted.batches[0])
    cases = verification_cases(wanted, spec)
    return Subject(artifact, cases, eager_outputs(rebuild(spec).module, cases, spec.input))


def lab(request: LabRequest, say: Callable[[str], None], listener: Listener | None = None) -> int:
    """Serve the page until enough results are in; returns how many came. Results go into manifests and reports.

    Raises:
        MissingDependency: the extra or onnxruntime-web's files are not here.
        UsageError: an artifact that browsers cannot open, a certificate that cannot be read, a port that is taken.
    """
    check(request)
    from vitdeploy.lab.server import Lab, own_address

    steps = Steps(listener or Listener())
    subjects = []
    for path in request.artifacts:
        with steps.step("eager") as detail:
            subjects.append(subject_of(path, request))
            detail.append(f"{path}: {len(subjects[-1].cases)} inputs")
    count = 0

    def keep(index: int, found: dict[str, Any]) -> None:
        nonlocal count
        kept = keep_result(subjects[index].artifact, found)
        count += 1
        say(f"{kept.folder}   {line(found)}")
        if request.results is not None and count >= request.results:
            server.should_exit = True

    served = Lab(subjects, keep)
    with closing(listen(EVERYWHERE if request.lan else HERE, request.port)) as port:
        server = web_server(served.app(), request)
        host = own_address() if request.lan else HERE
        scheme = "https" if request.certificate else "http"
        announce(f"{scheme}://{host}:{port.getsockname()[1]}/{served.token}/", request, say)
        server.run(sockets=[port])
    return count


def check(request: LabRequest) -> None:
    """Raises before any model is built."""
    from vitdeploy.lab import runtime

    try:
        import segno  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependency(f"The lab needs {error.name}, which is not installed.", fix=INSTALL) from None
    runtime.files()
    check_artifacts(request.artifacts)
    if (request.certificate is None) != (request.key is None):
        raise UsageError("A certificate and its key come together.", fix="Give both --certificate and --key.")
    if request.certificate is not None and request.key is not None:
        import ssl

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(request.certificate, request.key)
        except (OSError, ssl.SSLError) as error:
            pair = f"{request.certificate} and {request.key}"
            raise UsageError(f"{pair} are no certificate with its key: {error}.") from None


def check_artifacts(artifacts: Sequence[Path]) -> None:
    """Raises UsageError where one is named twice."""
    names = [path.resolve() for path in artifacts]
    if len(set(names)) < len(names):
        raise UsageError("An artifact is named twice.")


def listen(host: str, port: int) -> socket.socket:
    """Raises UsageError where the port cannot be had."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(128)  # who opens the address as soon as it is told waits a little
    except OSError as error:
        found.close()
        raise UsageError(f"Port {port} cannot be had: {error.strerror}.", fix="Give another with --port.") from None
    return found


def web_server(app: Any, request: LabRequest) -> Any:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=64,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        ssl_certfile=request.certificate,
        ssl_keyfile=request.key,
    )
    return uvicorn.Server(config)


def announce(address: str, request: LabRequest, say: Callable[[str], None]) -> None:
    """The address, for other devices as a picture that their cameras read."""
    import io

    import segno

    say(f"\nOpen {address}")
    if request.lan:
        picture = io.StringIO()
        segno.make(address).terminal(out=picture, compact=True)
        say(picture.getvalue().rstrip("\n"))
    if request.lan and request.certificate is None:
        say("Browsers give threads, WebGPU and the camera to https alone: --certificate and --key. This is plain http.")
    say("Ctrl-C ends it.\n")


def keep_result(artifact: Artifact, found: Mapping[str, Any]) -> Artifact:
    """Write a record into the artifact's manifest and report; an older one of the same device and settings goes."""
    from vitdeploy.report.texts import texts

    artifact = Artifact.load(artifact.folder)  # another lab may have written meanwhile
    same = ("device", "agent", "runtime", "provider", "threads")
    others = [one for one in artifact.manifest.devices if any(one.get(key) != found[key] for key in same)]
    manifest = replace(artifact.manifest, devices=[*others, found])
    return artifact.amend(manifest, texts(manifest))


def line(found: Mapping[str, Any]) -> str:
    """A result in a line."""
    verdict = "PASS" if found["verification"]["passed"] else "FAIL"
    threads = f", {found['threads']} threads" if found["threads"] > 1 else ""
    latency = found["latency"]
    return (
        f"{found['device']}   {found['provider']}{threads}   p50 {latency['p50']:.3g} ms   p95 {latency['p95']:.3g}   "
        f"{latency['count']} runs   {verdict}"
    )
