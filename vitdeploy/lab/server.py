"""The lab's server: serves one site to whoever has the token, and takes results of bounded size and number."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from vitdeploy.errors import VitdeployError
from vitdeploy.lab import results
from vitdeploy.lab.site import Site, Subject, site

POST = "results"
MOST_POSTS = 1000
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
HEADERS = {
    # What WebAssembly's threads need.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; "
    "worker-src 'self' blob:; connect-src 'self' blob:; img-src 'self' blob: data:; media-src blob:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address has the token in it
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass
class Lab:
    """What is served, to whom, and what came back.

    Attributes:
        subjects: the artifacts.
        keep: called with the artifact's index and each good record, one at a time; in a thread of its own.
        token: the first part of every address.
        posts: how many came, good and bad.
    """

    subjects: list[Subject]
    keep: Callable[[int, dict[str, Any]], None]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    posts: int = 0

    def __post_init__(self) -> None:
        self.site: Site = site(self.subjects, post=POST)
        self.lock = asyncio.Lock()

    @property
    def largest(self) -> int:
        """Bytes of a post: the outputs of the largest model as base64, its samples, and some texts."""
        outputs = max(sum(a.size for one in s.reference for a in one.values()) for s in self.subjects)
        return outputs * 6 + 24 * results.MOST_SAMPLES + (1 << 14)

    def app(self) -> Starlette:
        route = "/{token}/{path:path}"
        app = Starlette(
            routes=[Route(route, self.get, methods=["GET"]), Route(route, self.post, methods=["POST"])],
            exception_handlers={404: missing, 405: missing},
        )
        app.router.redirect_slashes = False
        return app

    def admits(self, request: Request) -> bool:
        return secrets.compare_digest(request.path_params["token"].encode(), self.token.encode())

    async def get(self, request: Request) -> Response:
        found = self.site.get(request.path_params["path"] or "index.html") if self.admits(request) else None
        if found is None:
            return missing()
        name = request.path_params["path"] or "index.html"
        kind = TYPES.get(Path(name).suffix, "application/octet-stream")
        if isinstance(found, bytes):
            return Response(found, media_type=kind, headers=HEADERS)
        return FileResponse(found, media_type=kind, headers=HEADERS)

    async def post(self, request: Request) -> Response:
        if not self.admits(request) or request.path_params["path"] != POST:
            return missing()
        self.posts += 1
        if self.posts > MOST_POSTS:
            return refusal(429, f"This lab has had its {MOST_POSTS} posts.")
        body = bytearray()
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > self.largest:
                    return refusal(413, f"A post has at most {self.largest} bytes.")
        except ClientDisconnect:
            return refusal(400, "The post is not whole.")
        try:
            async with self.lock:
                found = await run_in_threadpool(self.take, bytes(body))
        except VitdeployError as error:
            return refusal(400, error.message)
        return JSONResponse({"passed": found["verification"]["passed"], **found}, headers=HEADERS)

    def take(self, body: bytes) -> dict[str, Any]:
        index, found = results.record(body, self.subjects)
        self.keep(index, found)
        return found


def missing(request: Request | None = None, error: Exception | None = None) -> Response:
    """The same answer to a wrong token, a wrong path and a wrong method."""
    return Response("Not found.\n", 404, media_type="text/plain", headers=HEADERS)


def refusal(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status, headers={**HEADERS, "Connection": "close"})


def own_address() -> str:
    """This machine's address in its network, as far as the system tells; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
