"""Flower's SuperLink inside this process: a TLS port for admitted keys alone, and a Grid over its state.

With `door.py` before it, all that touches flwr's internals here; `require_version` says so when another version is installed.
Of Flower's three programming interfaces only the one for hospitals (Fleet) is built: there is no interface through which
runs could be listed or code submitted, on any port.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from fastapi import FastAPI
from flwr.app import Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, TRANSPORT_TYPE_GRPC_RERE, SubStatus
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest  # pylint: disable=no-name-in-module
from flwr.proto.node_pb2 import NodeInfo  # pylint: disable=no-name-in-module
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.serverapp import Grid
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.error import http_error_translator
from flwr.supercore.fab import Fab
from flwr.supercore.grpc_health import run_health_server_grpc_no_tls
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.routers import health
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import get_federation_manager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.superlink.servicer.control import control_handlers
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from ich_models.errors import ConfigurationError, RunError
from ich_models.protocol import size
from ich_server.door import Door

log = logging.getLogger(__name__)

FLWR: Final = "1.41.0"
"""The version whose internals this module knows."""

HEARTBEAT: Final = 10.0
"""Seconds between the run's own signs of life."""

CLOSING: Final = 5
"""Seconds that requests under way get at the end."""


def require_version() -> None:
    """Raise ConfigurationError unless the installed flwr is the one that this module knows."""
    found = version("flwr")
    if found != FLWR:
        raise ConfigurationError(
            f"flwr {found} is installed, and this version needs {FLWR}", hint=f"pip install flwr=={FLWR}"
        )


# --- the bundle -------------------------------------------------------------------------------------------------------

_BUNDLE: Final = """[project]
name = "ich-federation-study"
version = "1.0.0"
description = "no code: hospitals run what they have installed"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "ich-federation"
[tool.flwr.app.components]
serverapp = "ich_server.app:app"
clientapp = "ich_client.app:app"
[tool.flwr.app.config]
"""


def bundle() -> tuple[bytes, str]:
    """The app bundle that Flower wants every run to have, and its SHA-256. It holds this text and no code."""
    content, _ = build_fab_from_files({"pyproject.toml": _BUNDLE.encode()})
    return content, hashlib.sha256(content).hexdigest()


# --- the public port --------------------------------------------------------------------------------------------------


def _fleet(factory: LinkStateFactory) -> Door:
    """Flower's interface for hospitals, and nothing else of it."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.state.linkstate_factory = factory
    app.state.enable_supernode_auth = True
    app.include_router(health.router)
    app.include_router(fleet_router)
    return Door(app)


# --- the grid ---------------------------------------------------------------------------------------------------------


class StateGrid(Grid):
    """A Grid on the SuperLink's state in the same process: nothing is copied through a socket.

    Identical objects are stored once, and a reply's objects are dropped as it is pulled. What an exchange leaves behind (tasks
    that nobody fetched, replies of which a piece never came) is dropped when the next one begins.
    """

    def __init__(
        self, state: LinkState, run: Run, online: Callable[[], Iterable[int]], expect: Callable[[str, int], None]
    ) -> None:
        """`online`: who is connected; `expect`: told of each message and its bytes before it can be fetched."""
        self._state, self._run, self._online, self._expect = state, run, online, expect
        self._arriving: dict[str, Message] = {}
        """Replies of which the state has told, once and never again, while their objects are still on their way."""
        self._group = ""
        """The exchange that the messages belong to."""
        self._open: set[str] = set()
        """Messages of it that nobody has answered."""

    def set_run(self, run: Run) -> None:
        """Part of flwr's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of flwr's interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Admitted hospitals that are connected now."""
        return list(self._online())

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The same, as flwr describes them."""
        return list(self._state.get_node_info(node_ids=list(self._online())))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store the messages for their hospitals to fetch."""
        return [self._push(message) for message in messages]

    def _clear(self) -> None:
        """Forget the last exchange: whoever still works on it is late."""
        self._state.delete_messages(message_ins_ids=self._open)
        self._state.object_store.clear()
        self._open.clear()
        self._arriving.clear()

    def _push(self, message: Message) -> str:
        if message.metadata.group_id != self._group:
            self._clear()
            self._group = message.metadata.group_id
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            tree = get_object_tree(message)
            session = self._state.start_session(self._run.run_id)
            head = remove_content_from_message(message)
            self._expect(message.metadata.message_id, size(message.content))
            stored, missing = self._state.store_message_and_object_tree(head, tree, session)
            if not stored:  # the hospital was revoked, or has never been here: the deadline says so
                return message.metadata.message_id
            self._open.add(message.metadata.message_id)
            objects = get_all_nested_objects(message)
            for identifier in missing:
                self._state.store_object(self._run.run_id, session, identifier, objects[identifier].deflate())
        return message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived whole, each once."""
        asked = set(message_ids)
        for reply in self._state.get_message_res(message_ids=asked - set(self._arriving), run_id=self._run.run_id):
            self._arriving[reply.metadata.reply_to_message_id] = reply
        found = {task: self._inflate(self._arriving[task]) for task in asked & set(self._arriving)}
        whole = {task: reply for task, reply in found.items() if reply is not None}
        for task in whole:
            del self._arriving[task]
        self._state.delete_messages(message_ins_ids=set(whole))
        self._open -= set(whole)
        return list(whole.values())

    def _inflate(self, reply: Message) -> Message | None:
        """A reply with its content, or None while its objects are still being uploaded."""
        if reply.has_error():
            return reply
        identifier = reply.metadata.message_id
        store = self._state.object_store
        try:
            tree = store.get_object_tree(identifier)
        except NoObjectInStoreError:
            return None
        contents: dict[str, bytes] = {}
        for node in iterate_object_tree(tree):
            content = self._state.get_object(self._run.run_id, node.object_id)
            if not content:
                return None
            contents[node.object_id] = content
        store.delete(identifier)
        try:
            whole = inflate_object_from_contents(identifier, contents)
        except Exception as error:  # a hospital's bytes: whatever Flower's parser makes of them
            log.warning("a reply that cannot be read: %s", type(error).__name__)
            whole = None
        if not isinstance(whole, Message) or not whole.has_content():
            return make_message(reply.metadata, RecordDict())  # which is no message of the protocol
        whole.metadata.__dict__["_message_id"] = identifier
        return whole

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull until all have answered or the time is up."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        found: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            replies = list(self.pull_messages(waiting))
            found += replies
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            time.sleep(0.1)
        return found


# --- the link ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A hospital as the link sees it: `node`, whether it is connected, and when it last was (seconds since 1970).

    `version`: of its package, as it says; empty before it has asked for a task. `late`: its replies that came after the
    deadline, since this server runs.
    """

    node: int
    online: bool
    last: float | None
    version: str
    late: int


class Link:
    """An open SuperLink: its grid, and who is there. Made by `open_link`."""

    def __init__(self, state: LinkState, run: Run, keys: Callable[[], Mapping[str, bytes]], door: Door) -> None:
        self._state, self._keys, self._door = state, keys, door
        self._lock = threading.Lock()
        self.names: Mapping[int, str] = {}
        """Node to hospital, of the admitted keys, as of the last `refresh`."""
        self.before_look: Callable[[], None] = lambda: None
        """Called whenever it is asked who is there; may raise, to end the waiting."""
        self.grid = StateGrid(state, run, self._online, door.expect)
        self.refresh()

    def refresh(self) -> None:
        """Let newly admitted keys in, and revoked ones out, also while a study runs; to be called every few seconds."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        names: dict[int, str] = {}
        admitted: dict[bytes, str] = {}
        for name, text in self._keys().items():
            key = public_key_to_bytes(cast(Any, load_ssh_public_key(text)))
            admitted[key] = name
            node = self._state.get_node_id_by_public_key(key)
            if node is None:
                try:
                    node = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
                except ValueError:  # Flower never lets a deleted key in again either
                    log.error("the key of %s was revoked: it must make a new one", name)
                    continue
            names[node] = name
        known = {info.node_id for info in self._state.get_node_info(statuses=["registered", "online", "offline"])}
        for node in known - set(names):
            log.warning("%s is not admitted any more", self.names.get(node, f"node {node}"))
            self._state.delete_node(NOOP_FLWR_AID, node)
        self._door.admit(admitted)
        self.names = names

    def _online(self) -> list[int]:
        self.before_look()
        self.refresh()
        return sorted(set(self._state.get_nodes(self.grid.run.run_id)) & set(self.names))

    def seen(self) -> dict[str, Seen]:
        """Every admitted hospital by name."""
        names = self.names
        infos = {info.node_id: info for info in self._state.get_node_info(node_ids=list(names))}
        return {
            name: Seen(
                node,
                infos[node].status == "online",
                min(infos[node].online_until, time.time()) if infos[node].online_until else None,
                self._door.versions.get(infos[node].public_key, ""),
                self._door.late[infos[node].public_key],
            )
            for node, name in sorted(names.items(), key=lambda pair: pair[1])
            if node in infos
        }


@contextmanager
def open_link(
    state: Path,
    listen: tuple[str, int],
    certificate: Path,
    key: Path,
    keys: Callable[[], Mapping[str, bytes]],
    *,
    health_port: int | None = None,
) -> Iterator[Link]:
    """Open the TLS port `listen` for the hospitals whose OpenSSH public keys `keys` names, and begin a run.

    Nodes and runs are kept in `state`/superlink.db; the models' numbers only in memory (a database of 400 MB rows
    locks itself). `health_port`: Flower's gRPC health service, on loopback. Raises RunError if the port is taken, and
    ConfigurationError for another flwr.
    """
    require_version()
    state.mkdir(parents=True, exist_ok=True)
    factory = LinkStateFactory(
        str(state / "superlink.db"), get_federation_manager(is_simulation=False), ObjectStoreFactory()
    )
    link_state = factory.state()
    for known in link_state.get_node_info(statuses=["online"]):
        link_state.deactivate_node(known.node_id)  # who is still there says so within seconds
    run, task = _begin_run(link_state)
    beating = threading.Event()
    heart = threading.Thread(target=_beat, args=(link_state, task, beating), daemon=True)
    heart.start()
    health_server = run_health_server_grpc_no_tls(f"127.0.0.1:{health_port}") if health_port else None
    door = _fleet(factory)
    server, serving = _serve(door, listen, certificate, key)
    outcome = SubStatus.FAILED
    try:
        yield Link(link_state, run, keys, door)
        outcome = SubStatus.COMPLETED
    finally:
        beating.set()
        link_state.finish_task(task, outcome, "")
        server.should_exit = True
        if health_server is not None:
            health_server.stop(grace=1).wait()
        for thread in (heart, serving):  # one that still runs while Python ends can take the process down with it
            thread.join(2 * CLOSING)


def _begin_run(state: LinkState) -> tuple[Run, int]:
    """A run of our own bundle, claimed by this process: (run, its task)."""
    content, digest = bundle()
    request = StartRunRequest(fab=fab_to_proto(Fab(digest, content, {})), override_config=user_config_to_proto({}))
    account = AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)
    number = control_handlers.start_run(request, account, state, TRANSPORT_TYPE_GRPC_RERE).run_id
    run = state.get_run_info(run_ids=[number])[0]
    task = run.primary_task_id or 0
    if state.claim_task(task) is None or not state.activate_task(task):
        raise RunError("Flower does not begin the run", hint="remove state/superlink.db: it is made anew")
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task, number, 1
    return state.get_run_info(run_ids=[number])[0], task


def _beat(state: LinkState, task: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        try:
            state.acknowledge_task_heartbeat(task)
        except SQLAlchemyError as error:  # a database that is locked for long: the next sign of life is soon
            log.warning("heartbeat of the run: %s", type(error).__name__)


def _serve(
    app: ASGIApp, listen: tuple[str, int], certificate: Path, key: Path
) -> tuple[uvicorn.Server, threading.Thread]:
    """Serve in a thread of its own. Raises RunError if the port cannot be had."""
    host, port = listen
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            timeout_graceful_shutdown=CLOSING,
        )
    )
    failed = threading.Event()

    def run() -> None:
        try:
            server.run()
        except SystemExit:  # uvicorn's way of saying that the port is taken
            pass
        finally:
            failed.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not server.started:
        if failed.wait(0.02):
            raise RunError(
                f"cannot listen on {host}:{port}",
                hint="another program (another ich-server?) has the port, or it needs more rights",
            )
    return server, thread
