"""Who may come in by the hospitals' port, and with what: an ASGI middleware before Flower's own interface.

It knows of Flower's messages only where a task is given out, fetched and answered: everything else it passes on or refuses.
"""

import gc
import logging
import re
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from flwr.proto.fleet_pb2 import (  # pylint: disable=no-name-in-module
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.types import ASGIApp, Receive, Scope, Send

from ich_models.protocol import ATTEMPT, VERSION

log = logging.getLogger(__name__)

LARGEST_BODY: Final = 8 * 2**20
"""Bytes of a request: objects travel in pieces of 5 MB."""

STRANGERS_BODY: Final = 2**16
"""The same, of a key that is not admitted: Flower tells it so once it has read the request."""

LARGE_BODY: Final = 2**20
"""Bytes from which on a request is cleared away as soon as it is answered: the web framework leaves it in a circle of
references, and several hundred MB would wait for Python to look for them."""

REPLY_SHARE, REPLY_SLACK = 4, 64 * 2**20
"""What a hospital may upload for a task: so many times the task's own bytes, and so many bytes more. A strategy may return
more blocks than it sends, what stayed at the hospital comes after the last round, and pieces come again after a lost response."""

PIECE: Final = 5000
"""Bytes that the server keeps of every piece that a reply announces, whatever it holds."""

REPLAY_WINDOW: Final = 320.0
"""Seconds for which Flower accepts a signed timestamp, and a little."""


class Door:
    """Only the hospitals' interface, requests and replies of a limited size, and each signature once (ASGI middleware).

    Flower signs the time of a request and nothing else: who has seen a signature could use it for another request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._names: dict[bytes, str] = {}
        """Per admitted public key: the hospital."""
        self._seen: dict[tuple[bytes, bytes], float] = {}
        self._given: dict[bytes, tuple[bytes, list[dict[str, Any]]]] = {}
        """Per public key: the last attempt at a task, and the response to it."""
        self.late: Counter[bytes] = Counter()
        """Per public key: replies that came when nobody waited for them any more."""
        self.versions: dict[bytes, str] = {}
        """Per public key: the package's version that its last successful look for a task named."""
        self._tasks: dict[str, int] = {}
        """Bytes of every task that waits to be fetched."""
        self._left: dict[bytes, int] = {}
        """Per public key: bytes that it may still upload for its last task."""
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            return
        send, path = _dated(send), scope["path"]
        if path == "/health" and scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if not path.startswith("/v1/fleet/") or path.endswith("register-node"):
            await _answer(send, 404)
            return
        headers = _headers(scope)
        signed = None if headers is None else _signature(headers)
        if headers is None or signed is None:  # nothing of it is read, and nothing remembered
            await _answer(send, 401)
            return
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            part = await receive()
            if part["type"] != "http.request":
                return
            parts.append(part.get("body", b""))
            size += len(parts[-1])
            more = part.get("more_body", False)
            if size > (LARGEST_BODY if signed.key in self._names else STRANGERS_BODY):
                await _answer(send, 413)
                return
        if self._replayed(signed):
            await _answer(send, 409)
            return

        async def again() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop(0) if parts else b"", "more_body": bool(parts)}

        if path == "/v1/fleet/push-messages":
            if refused := self._refused(signed.key, size + PIECE * _announced(b"".join(parts))):
                await _answer(send, refused)
                return
            await self._app(scope, again, self._counting(signed.key, send))
            return
        if path == "/v1/fleet/push-object" and (refused := self._refused(signed.key, size)):
            await _answer(send, refused)
            return
        if path != "/v1/fleet/pull-messages":
            await self._app(scope, again, send)
            if size > LARGE_BODY:
                gc.collect()
            return
        key, attempt = signed.key, headers.get(ATTEMPT.encode(), b"")
        known, response = self._given.get(key, (b"", []))
        # its response was lost: Flower would not give the task out again
        if attempt and known == attempt and signed.is_fresh:
            for part in response:
                await send(part)
            return
        given: list[dict[str, Any]] = []

        async def keep(part: Any) -> None:
            given.append(part)
            if part["type"] == "http.response.body" and not part.get("more_body") and given[0]["status"] == 200:
                self._given[key] = (attempt, given)  # before it is sent: the client may ask again at once
                tasks = PullMessagesResponse.FromString(_body(given)).messages_list
                if tasks:
                    size = sum(self._tasks.pop(task.metadata.message_id, 0) for task in tasks)
                    self._left[key] = REPLY_SHARE * size + REPLY_SLACK
                said = headers.get(VERSION.encode(), b"").decode("ascii", "replace")
                self.versions[key] = said if re.fullmatch(r"[0-9A-Za-z.+-]{1,32}", said) else ""
            await send(part)

        await self._app(scope, again, keep)

    def _counting(self, key: bytes, send: Send) -> Send:
        """`send`, and count the reply as late if Flower wants none of its content."""
        parts: list[dict[str, Any]] = []

        async def watched(part: Any) -> None:
            parts.append(part)
            if part["type"] == "http.response.body" and not part.get("more_body") and parts[0]["status"] == 200:
                self.late[key] += not PushMessagesResponse.FromString(_body(parts)).objects_to_push
            await send(part)

        return watched

    def expect(self, task: str, size: int) -> None:
        """A task of so many bytes waits to be fetched: the reply to it may be in proportion."""
        self._tasks[task] = size

    def _refused(self, key: bytes, size: int) -> int:
        """0, and so many bytes are counted as part of the reply to the last task; or the HTTP status that says why not."""
        if key not in self._left:  # its task is of before this server's start, or there was none
            return HTTPStatus.GONE
        left = self._left[key]
        if size <= left:
            self._left[key] = left - size
            return 0
        if left:
            self._left[key] = 0
            log.warning("%s uploads more than a reply to its task can be: refused", self._names.get(key))
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def admit(self, names: Mapping[bytes, str]) -> None:
        """The admitted keys, and whose they are. Nothing is kept for others."""
        self._names = dict(names)
        for key in (self._given.keys() | self._left.keys()) - names.keys():
            self._given.pop(key, None)
            self._left.pop(key, None)

    def _replayed(self, signed: "_Signed") -> bool:
        """Whether this signature was here before; a client signs every attempt anew, with the time of that moment."""
        if not signed.is_fresh:  # Flower refuses it; remembered would be whatever anybody sends
            return False
        mark = (signed.key, signed.moment)
        now = time.monotonic()
        with self._lock:
            while self._seen and next(iter(self._seen.values())) < now - REPLAY_WINDOW:
                del self._seen[next(iter(self._seen))]
            if mark in self._seen:
                return True
            self._seen[mark] = now
            return False


_AUTHENTICATION: Final = (b"flwr-public-key", b"flwr-timestamp", b"flwr-signature")


@dataclass(frozen=True)
class _Signed:
    """A request's public key (its bytes: several texts may stand for them) and the time that it has signed."""

    key: bytes
    moment: bytes

    @property
    def is_fresh(self) -> bool:
        """Whether Flower would still accept it."""
        try:
            signed = datetime.fromisoformat(self.moment.decode("ascii"))
            return abs((datetime.now(UTC) - signed).total_seconds()) < REPLAY_WINDOW
        except (ValueError, TypeError):
            return False


def _headers(scope: Scope) -> dict[bytes, bytes] | None:
    """The headers; None if one that authenticates stands there twice: which one counts would be a matter of taste."""
    names = [name for name, _ in scope["headers"]]
    return None if any(names.count(name) > 1 for name in _AUTHENTICATION) else dict(scope["headers"])


def _signature(headers: dict[bytes, bytes]) -> _Signed | None:
    """Whose signature a request carries, if the key that it names has signed the time that it names."""
    try:
        key, moment, signature = (headers[name] for name in _AUTHENTICATION)
        public = b64decode(key, validate=True)
        if verify_signature(bytes_to_public_key(public), moment, b64decode(signature, validate=True)):
            return _Signed(public, moment)
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
        pass
    return None


def _dated(send: Send) -> Send:
    """`send`, with the time of this moment: hospitals hold their clocks against it.

    The web server renews its own date about once a second, and less often when it is busy.
    """

    async def now(part: Any) -> None:
        if part["type"] == "http.response.start":
            date = (b"date", formatdate(usegmt=True).encode())
            part = {**part, "headers": [*part["headers"], date]}
        await send(part)

    return now


def _announced(request: bytes) -> int:
    """The pieces of the replies that a hospital announces."""
    try:
        trees = PushMessagesRequest.FromString(request).message_object_trees
    except DecodeError:  # Flower's to refuse
        return 0
    return sum(1 for tree in trees for _ in iterate_object_tree(tree))


def _body(parts: Iterable[Mapping[str, Any]]) -> bytes:
    """What a response says, of its parts."""
    return b"".join(part.get("body", b"") for part in parts)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
