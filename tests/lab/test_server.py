from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

pytestmark = pytest.mark.usefixtures("ort_web")
Start = Callable[..., str]


def status(address: str, body: bytes | None = None) -> int:
    try:
        with urlopen(Request(address, data=body), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def raw(address: str, path: str) -> int:
    """The answer to a path as it stands, which urllib would tidy."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    return connection.getresponse().status


@pytest.fixture
def address(tiny: Path, start: Start) -> str:
    return start(tiny)


def test_lab_serves_the_page_its_models_and_nothing_else(address: str, tiny: Path) -> None:
    with urlopen(address, timeout=30) as answer:
        assert b"vitdeploy lab" in answer.read()
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    with urlopen(f"{address}config.json", timeout=30) as answer:
        config = json.load(answer)
    model = config["models"][0]
    with urlopen(address + model["file"], timeout=30) as answer:
        assert answer.read() == (tiny / "model.onnx").read_bytes()
    for file in [*model["cases"][0]["inputs"], *model["cases"][0]["outputs"]]:
        assert status(address + file["file"]) == 200
    token = urlsplit(address).path
    for path in ("manifest.json", "models/0/manifest.json", "models/0/../../manifest.json", "../../../../etc/passwd"):
        assert raw(address, token + path) == 404
    assert raw(address, token + "%2e%2e/%2e%2e/etc/passwd") == 404
    assert raw(address, token + "/etc/passwd") == 404


def test_lab_answers_not_found_when_the_token_is_wrong(address: str) -> None:
    parts = urlsplit(address)
    root, token = f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")
    for wrong in ("", "/", f"/{token[:-1]}/", f"/{token}x/", "/config.json", "/%C3%A9/"):
        assert raw(root, wrong or "/") == 404
    assert raw(root, f"/{token[:-1]}/config.json") == 404
    assert status(f"{root}/{token[:-1]}/results", b"{}") == 404


def test_lab_refuses_posts_when_they_are_malformed_or_too_large(address: str, tiny: Path) -> None:
    before = (tiny / "manifest.json").read_bytes()
    assert status(f"{address}results", b"") == 400
    assert status(f"{address}results", b"{}") == 400
    assert status(f"{address}results", b"[" * 100_000) == 400
    assert status(f"{address}index.html", b"{}") == 404
    assert status(f"{address}results") == 404
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as connection:
        path = f"{parts.path}results".encode()
        connection.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        answer = b""
        with suppress(OSError):  # it hung up
            for _ in range(100):
                connection.sendall(b" " * (1 << 16))
        with suppress(OSError):
            answer = connection.recv(4096)
        assert not answer or b" 413 " in answer.splitlines()[0]
    assert (tiny / "manifest.json").read_bytes() == before
    assert status(address) == 200


def test_lab_listens_to_this_machine_alone_when_lan_is_not_given(address: str) -> None:
    assert urlsplit(address).hostname == "127.0.0.1"


def vitdeploy(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitdeploy", "lab", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "No artifact"),
        (("nothing",), "There is no nothing"),
        (("{tiny}", "{tiny}"), "named twice"),
        (("{tiny}", "--certificate", "none.pem"), "--certificate and --key"),
        (("{tiny}", "--certificate", "none.pem", "--key", "none.pem"), "no certificate"),
        (("{tiny}/model.onnx", "--package", "x"), "--package"),
    ],
)
def test_lab_tells_what_is_wrong_in_a_sentence(arguments: tuple[str, ...], words: str, tiny: Path) -> None:
    ended = vitdeploy(*(one.format(tiny=tiny) for one in arguments))
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_lab_tells_when_the_port_is_taken(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = vitdeploy(tiny, "--port", taken.getsockname()[1])
    assert ended.returncode == 2
    assert "cannot be had" in ended.stderr
