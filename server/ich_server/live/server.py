"""Serves the live page on loopback: four fixed addresses, read-only, nothing from elsewhere, no name but the machine's own."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ich_models.errors import ConfigurationError, RunError
from ich_server import status

log = logging.getLogger(__name__)

PORT: Final = 8643
"""Where the page is looked for if nobody says where; any free port if this one is taken."""

LOOPBACK: Final = "127.0.0.1"

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_FILES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "/": ("page.html", "text/html; charset=utf-8"),
        "/live.css": ("live.css", "text/css; charset=utf-8"),
        "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    }
)

STATUS: Final = "/status.json"


class _Server(ThreadingHTTPServer):
    """Knows whose state it tells of, and by which names it may be asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, state: Path, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.state = state
        bound = self.server_address[1]
        self.names = {f"{name}:{bound}" for name in (LOOPBACK, "localhost")}
        self.pages = {
            path: (files("ich_server.live").joinpath(name).read_bytes(), kind) for path, (name, kind) in _FILES.items()
        }


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of what there is. A page elsewhere that has its own name point here (DNS rebinding) is refused."""

    server: _Server
    timeout = 10  # seconds that a connection may say nothing
    protocol_version = "HTTP/1.1"
    server_version = "ich-server"
    sys_version = ""

    def do_GET(self) -> None:
        if self.headers.get_all("Host") not in [[name] for name in self.server.names]:
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"not a name of this machine\n", "text/plain; charset=utf-8")
        elif self.path == STATUS:
            self._status()
        elif self.path in self.server.pages:
            self._answer(HTTPStatus.OK, *self.server.pages[self.path])
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not here\n", "text/plain; charset=utf-8")

    do_HEAD = do_GET

    def _status(self) -> None:
        try:
            content = json.dumps(status.as_json(status.read(self.server.state)))
        except ConfigurationError:  # in the moment before the first status
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"{}", "application/json")
            return
        self._answer(HTTPStatus.OK, content.encode(), "application/json")

    def _answer(self, code: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(code)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: who looked at the page when is nobody's business."""


@contextmanager
def serve(state: Path, port: int | None = None) -> Iterator[str]:
    """Serve the page of the federation whose state folder this is; its address. Ends with the block.

    Raises RunError if `port` is taken; without one `PORT` is tried, then any that is free.
    """
    server = _open(state, port)
    thread = threading.Thread(target=server.serve_forever, name="live page", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _open(state: Path, port: int | None) -> _Server:
    try:
        return _Server(state, PORT if port is None else port)
    except OSError as error:
        if port is None:
            return _Server(state, 0)
        hint = "name another port, or leave it out: a free one is taken"
        raise RunError(f"port {port} of the live page cannot be opened: {error.strerror}", hint=hint) from error
