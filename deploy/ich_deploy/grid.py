"""A Flower Grid inside one process: the same ClientApp, called directly, with an option to put every message on the wire.

The only module here that touches flwr's internals (flwr 1.41): message identifiers, and serialised objects.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, cast
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo  # pylint: disable=no-name-in-module
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ich_models.errors import ConfigurationError

R = TypeVar("R")

RUN, SERVER, TASK = 1, 1, 1


class InProcessGrid(Grid):
    """Nodes 1..N that run `app` when their reply is pulled, one after another: one reply in memory at a time.

    `serialise`: every message becomes bytes and is read back, as between machines, and `bytes_sent` counts them.
    `failing`: called with node and message before the app; an Error that it returns is the reply, as of a lost node.
    """

    def __init__(
        self,
        app: ClientApp,
        node_configs: Mapping[int, Mapping[str, str | int | float | bool]],
        *,
        serialise: bool = False,
        failing: Callable[[int, Message], Error | None] | None = None,
    ) -> None:
        self._app = app
        self._serialise = serialise
        self._failing = failing
        self._contexts = {
            node: Context(run_id=RUN, node_id=node, node_config=dict(config), state=RecordDict(), run_config={})
            for node, config in node_configs.items()
        }
        self._waiting: dict[str, Message] = {}
        self._run: Run | None = None
        self.messages = 0
        self.bytes_sent = 0
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER, TASK

    def set_run(self, run: Run) -> None:
        """Part of flwr's interface; nothing here depends on the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """What `set_run` was given."""
        if self._run is None:
            raise ValueError("no run was set")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of flwr's interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes, as flwr describes them."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = _identify(message)
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the app for each message asked for and return the replies."""
        return [
            self._execute(self._waiting.pop(identifier)) for identifier in message_ids if identifier in self._waiting
        ]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull at once; `timeout` does not apply, since nothing is waited for."""
        return self.pull_messages(self.push_messages(messages))

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.messages += 1
        if self._failing and (error := self._failing(node, message)):
            reply = Message(error, reply_to=message)
        else:
            received = self._through_the_wire(message) if self._serialise else message
            try:
                reply = self._app(received, self._contexts[node])
            except Exception as error:
                reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=received)
        _identify(reply)
        return self._through_the_wire(reply) if self._serialise and reply.has_content() else reply

    def _through_the_wire(self, message: Message) -> Message:
        """The message as bytes and back: what the other side would hold."""
        with no_object_id_recompute():
            identifier = message.object_id
            objects = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
        self.bytes_sent += sum(map(len, objects.values()))
        copy = cast(Message, inflate_object_from_contents(identifier, objects))
        copy.metadata.__dict__["_message_id"] = message.metadata.message_id
        return copy


def _identify(message: Message) -> str:
    """Give a message its identifier, which in a deployment the SuperLink does."""
    identifier = uuid4().hex
    message.metadata.__dict__["_message_id"] = identifier
    return identifier


def run_on_flower(app: ClientApp, nodes: int, run: Callable[[Grid], R]) -> R:
    """Run `run` with the grid of Flower's own simulation engine, which spreads the nodes over a Ray cluster.

    Raises ConfigurationError if Ray is not installed, and whatever `run` raises.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "the flower engine needs Ray, which is not installed", hint="pip install 'ich-federation[ray]'"
        ) from error
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its notices on starting and on its newer command line
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own advice, which silences its warning
    outcome: list[R] = []
    failure: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:
        try:
            outcome.append(run(grid))
        except BaseException as error:  # carried to the caller's thread
            failure.append(error)

    run_simulation(
        server, app, num_supernodes=nodes, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    )
    if failure:
        raise failure[0]
    return outcome[0]
