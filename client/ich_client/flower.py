"""The connection to the server: tasks are fetched over one outbound HTTPS connection, done by the installed ClientApp, answered.

The only module of the client that touches flwr's internals; `require_version` says so when another version is installed.
The bundle that Flower gives every run is compared by its hash and never fetched, let alone unpacked: nothing that a
server sends is ever run. The run's configuration is not read.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, TypeVar, cast
from uuid import uuid4

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fleet_pb2 import (  # pylint: disable=no-name-in-module
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest  # pylint: disable=no-name-in-module
from flwr.proto.message_pb2 import (  # pylint: disable=no-name-in-module
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node  # pylint: disable=no-name-in-module
from flwr.proto.run_pb2 import GetRunRequest  # pylint: disable=no-name-in-module
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from ich_models.errors import Code, ConfigurationError, RunError
from ich_models.protocol import ATTEMPT, PACKAGE, VERSION

log = logging.getLogger(__name__)

FLWR: Final = "1.41.0"
"""The version whose internals this module knows."""

HEARTBEAT: Final = 15.0
"""Seconds after which the server is promised a sign of life. Who has given none for twice as long is gone for it, and may
connect again."""

BEAT: Final = 12.0
"""Seconds between signs of life."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 3.0
"""Seconds between two looks for a task, doubled while there is none."""

FIRST_RETRY, LONGEST_RETRY = 0.5, 30.0
"""Seconds before the next attempt to reach a server that does not answer, doubled each time."""

REFUSED_FOR: Final = 90.0
"""Seconds for which a refusal may mean that the server has not yet noticed this client's own earlier end."""

AHEAD, BEHIND = 4.0, 290.0
"""Seconds that this clock may be off the server's: Flower refuses signatures from further ahead or behind."""

T = TypeVar("T")


def require_version() -> None:
    """Raise ConfigurationError unless the installed flwr is the one that this module knows."""
    found = version("flwr")
    if found != FLWR:
        raise ConfigurationError(
            f"flwr {found} is installed, and this version needs {FLWR}", hint=f"pip install flwr=={FLWR}"
        )


@dataclass(frozen=True)
class Server:
    """Where the server is and whom to believe: `address` host:port, `authorities` PEM certificates of the federation's
    CA (and of an inspecting proxy, if there is one), `bundle` the SHA-256 that every run of it must have."""

    address: str
    authorities: str
    bundle: str


@dataclass(frozen=True)
class Done:
    """One task that was done: what Flower calls it ('train', ...), its round or phase, seconds, and bytes sent."""

    kind: str
    group: str
    seconds: float
    sent: int


def check_server(server: Server, stop: threading.Event, met: Callable[[float], None] = lambda ahead: None) -> None:
    """Wait for a sign of life of the server, before anything else. `met` is told by how many seconds this clock is ahead.

    Raises RunError if what answers is another server than the kit's, or has another time.
    """
    pause = FIRST_RETRY
    while not stop.is_set():
        try:
            began = time.time()
            response = httpx.get(f"https://{server.address}/health", verify=_trust(server), timeout=15.0)
            response.raise_for_status()
            there = parsedate_to_datetime(response.headers["date"]).timestamp()
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                hint = "is this the federation's server? A proxy that inspects TLS needs its own CA given with --ca"
                message = f"the server at {server.address} does not show a certificate of the federation's CA"
                raise RunError(message, hint=hint) from error
            if pause == FIRST_RETRY:
                log.warning("no connection to %s (%s); waiting for it", server.address, error)
                log.warning("if it stays so: is the address right, and is a proxy needed (HTTPS_PROXY, NO_PROXY)?")
            stop.wait(pause)
            pause = min(2 * pause, LONGEST_RETRY)
        except (httpx.HTTPError, KeyError, ValueError) as error:
            hint = "is a proxy in between? HTTPS_PROXY and NO_PROXY say which one is used"
            message = f"what answers at {server.address} is no server of this federation ({type(error).__name__})"
            raise RunError(message, hint=hint) from error
        else:
            ahead = (began + time.time()) / 2 - (there + 0.5)  # the header has whole seconds
            met(ahead)
            _check_clock(ahead)
            return


def _check_clock(ahead: float) -> None:
    if not -BEHIND < ahead < AHEAD:
        where = "ahead of" if ahead > 0 else "behind"
        message = f"this machine's clock is {abs(ahead):.0f} s {where} the server's"
        raise RunError(message, hint="set the clock (NTP): the server refuses messages signed at another time")


def _trust(server: Server) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=server.authorities)
    return context


def stay_joined(
    server: Server,
    key: EllipticCurvePrivateKey,
    app: ClientApp,
    node_config: dict[str, str | int | float | bool],
    refuse: Callable[[Code], RecordDict],
    stop: threading.Event,
    done: Callable[[Done], None] = lambda task: None,
    met: Callable[[float], None] = lambda ahead: None,
) -> bool:
    """Answer the server's tasks until `stop` is set; whether the server knows of the end. One that goes away is waited for.

    `refuse`: what goes out, and is written down, for a task that never comes to the app. `met`: as in `check_server`.
    Raises RunError if the server does not admit this key, and what `check_server` raises.
    """
    require_version()
    check_server(server, stop, met)
    if stop.is_set():
        return False
    connection = _Connection(server, key, stop)
    with suppress(_StoppedError), connection:
        pause = FIRST_PAUSE
        while not stop.is_set():
            task = connection.fetch()
            if task is None:
                stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            began = time.monotonic()
            if connection.bundle_of(task) == server.bundle:
                reply = _answer(
                    app, task, Context(task.metadata.run_id, connection.node, node_config, RecordDict(), {}), refuse
                )
            else:
                log.error("a run with another bundle than the kit's: refused, nothing of it was fetched")
                reply = Message(refuse(Code.PROTOCOL), reply_to=task)
            sent = connection.send(reply)
            metadata = task.metadata
            done(Done(metadata.message_type, metadata.group_id, time.monotonic() - began, sent))
    return connection.told


def _answer(app: ClientApp, task: Message, context: Context, refuse: Callable[[Code], RecordDict]) -> Message:
    """What the installed ClientApp says; it catches its own exceptions, and of one that escapes nothing is told.

    Flower's error replies would carry a text of their own, and would be in no hospital's record.
    """
    try:
        return app(task, context)
    except ValueError as error:  # Flower's word for a kind of task that the app does not know
        log.error("refused: %s", error)
        return Message(refuse(Code.MALFORMED), reply_to=task)
    except Exception:
        log.exception("the task could not be done")
        return Message(refuse(Code.INTERNAL), reply_to=task)


class _Attempt:
    """Names each look for a task, the same in every repetition: a server that has answered it already says so again.

    Flower gives a task out once; were the response lost, the task would be.
    """

    def __init__(self) -> None:
        self.name = ""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Part of flwr's interface."""
        context.request.headers[ATTEMPT] = self.name
        context.request.headers[VERSION] = PACKAGE
        return call_next(context)


class _Connection:
    """Flower's interface for hospitals, with patience: every call is repeated, signed anew, until the server answers."""

    def __init__(self, server: Server, key: EllipticCurvePrivateKey, stop: threading.Event) -> None:
        self._server, self._stop = server, stop
        self._key = public_key_to_bytes(key.public_key())
        self._attempt = _Attempt()
        self._client = FleetHttpClient(
            f"https://{server.address}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
                self._attempt,
            ],
            verify=_trust(server),
            timeout=60.0,
        )
        self._bundles: dict[int, str] = {}
        self._ended = threading.Event()
        self._heard = threading.Event()
        """Set by every heartbeat that the server has answered."""
        self.node = 0
        self.told = False
        """Whether the server knows that this is the end."""

    def __enter__(self) -> "_Connection":
        self._activate()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._heart.join(5)  # while Python ends it could take the process down with it
        with suppress(httpx.HTTPError, RuntimeError):  # the server notices by itself
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node))
            self.told = True

    def _activate(self) -> None:
        """Say hello. A client that died is refused until its heartbeats have run out: that long, a refusal is no answer."""
        request = ActivateNodeRequest(public_key=self._key, heartbeat_interval=HEARTBEAT)
        end, pause = time.monotonic() + REFUSED_FOR, FIRST_RETRY
        while not self._stop.is_set():
            try:
                self.node = self._call(self._client.ActivateNode, request).node_id
            except _DeniedError as error:
                if time.monotonic() > end or not error.may_pass:
                    raise RunError(
                        "the server does not admit this hospital's key",
                        hint="send NAME.pub to the coordinator (ich-server admit); or it was revoked, or another"
                        " ich-client is connected with the same key",
                    ) from error
                if pause == FIRST_RETRY:
                    log.warning("the server does not let this key in (yet); trying for %.0f s", REFUSED_FOR)
                self._stop.wait(pause)
                pause = min(2 * pause, 10.0)
            else:
                log.info("connected to %s", self._server.address)
                return

    def _call(self, function: Callable[[Any], T], request: Any) -> T:
        """The server's answer, whenever it comes. Raises _DeniedError for a refusal, _StoppedError once `stop` is set."""
        pause = FIRST_RETRY
        while True:
            self._heard.clear()
            try:
                return function(request)
            except httpx.TransportError as error:
                trouble: Exception = error
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (409, 429, 500, 502, 503, 504):
                    raise _DeniedError(error) from error
                trouble = error
            if self._stop.is_set() or self._ended.is_set():
                raise _StoppedError from trouble
            if pause == FIRST_RETRY:
                log.warning("%s does not answer (%s); waiting for it", self._server.address, type(trouble).__name__)
                if "CERTIFICATE_VERIFY_FAILED" in str(trouble):
                    log.error(
                        "what answers there has no certificate of this federation's CA: another server, or a proxy"
                    )
            self._rest(pause)
            pause = min(2 * pause, LONGEST_RETRY)

    def _rest(self, seconds: float) -> None:
        """Wait so long, or until a heartbeat is answered: from then on the server counts on this hospital, and sends tasks."""
        end = time.monotonic() + seconds
        while not self._stop.is_set() and not self._heard.is_set() and (left := end - time.monotonic()) > 0:
            self._stop.wait(min(left, FIRST_PAUSE))

    def _beat(self) -> None:
        """Signs of life, also while a task is being done."""
        while not self._ended.wait(BEAT):
            request = SendNodeHeartbeatRequest(node=Node(node_id=self.node), heartbeat_interval=HEARTBEAT)
            try:
                self._client.SendNodeHeartbeat(request)
                self._heard.set()
            except (httpx.HTTPError, RuntimeError) as error:
                log.debug("heartbeat: %s", type(error).__name__)

    def fetch(self) -> Message | None:
        """The next task, whole, or None. Raises RunError if the key is not admitted any more."""
        self._attempt.name = uuid4().hex
        try:
            response = self._call(self._client.PullMessages, PullMessagesRequest(node=Node(node_id=self.node)))
        except _DeniedError:
            self._activate()  # a server that was set up anew has forgotten its hospitals; or the key was revoked
            return None
        if not response.messages_list:
            return None
        head = message_from_proto(response.messages_list[0])
        tree = response.message_object_trees[0]
        run = head.metadata.run_id
        try:
            contents = {node.object_id: self._pull(run, node.object_id) for node in iterate_object_tree(tree)}
            confirm = ConfirmMessageReceivedRequest(
                node=Node(node_id=self.node), run_id=run, message_object_id=head.metadata.message_id
            )
            self._call(self._client.ConfirmMessageReceived, confirm)
        except (_DeniedError, _GoneError):
            log.warning("a task was withdrawn before it had arrived")
            return None
        task = cast(Message, inflate_object_from_contents(tree.object_id, contents))
        task.metadata.__dict__["_message_id"] = head.metadata.message_id
        return task

    def _pull(self, run: int, identifier: str) -> bytes:
        request = PullObjectRequest(node=Node(node_id=self.node), run_id=run, object_id=identifier)
        while True:
            response = self._call(self._client.PullObject, request)
            if not response.object_found:
                raise _GoneError
            if response.object_available:
                return bytes(response.object_content)
            self._stop.wait(FIRST_PAUSE)  # the server is still writing it

    def bundle_of(self, task: Message) -> str:
        """The hash of the bundle of a task's run."""
        run = task.metadata.run_id
        if run not in self._bundles:
            request = GetRunRequest(node=Node(node_id=self.node), run_id=run)
            self._bundles[run] = run_from_proto(self._call(self._client.GetRun, request).run).fab_hash
        return self._bundles[run]

    def send(self, reply: Message) -> int:
        """Upload a reply, piece by piece; the bytes of its content. A run that has ended meanwhile takes no reply."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree = get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            head = remove_content_from_message(reply) if reply.has_content() else reply
        try:
            return self._upload(head, tree, objects)
        except _DeniedError as error:
            log.warning(_TOO_LARGE if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else _LATE)
            return 0

    def _upload(self, head: Message, tree: ObjectTree, objects: dict[str, Any]) -> int:
        request = PushMessagesRequest(
            node=Node(node_id=self.node),
            messages_list=[message_to_proto(head)],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
        response = self._call(self._client.PushMessages, request)
        if not response.objects_to_push:
            log.warning(_LATE)
        sent = 0
        for identifier in response.objects_to_push:
            content = objects[identifier].deflate()
            piece = PushObjectRequest(
                node=Node(node_id=self.node),
                run_id=head.metadata.run_id,
                session_id=response.session_id,
                object_id=identifier,
                object_content=content,
            )
            # `stored` is false when the piece is already there: its first response was lost. flwr would drop the reply
            self._call(self._client.PushObject, piece)
            sent += len(content)
        return sent


_TOO_LARGE: Final = "the server does not take the reply: it is larger than a reply to this task can be"
_LATE: Final = "the server does not take the reply any more: its run has ended, or its time was up"


class _StoppedError(Exception):
    """`stop` was set while the server did not answer."""


class _GoneError(Exception):
    """What a task consists of is not there any more."""


class _DeniedError(Exception):
    """The server refuses."""

    def __init__(self, error: httpx.HTTPStatusError) -> None:
        self.status = error.response.status_code
        super().__init__(str(self.status))
        found = FlowerError.from_json(error.response.text)
        self.may_pass = found is not None and found.code == ACTIVATION_FAILED
        """Whether it may be for a while only: the client's own earlier connection counts as alive."""


ACTIVATION_FAILED: Final = 2004
"""Flower's code for a key that it does not know or that is connected already."""
