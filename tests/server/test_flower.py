"""The server's port and link as strangers, revoked and admitted hospitals meet them: a real server over TLS on loopback."""

import asyncio
import hashlib
import socket
import ssl
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import httpx
import pytest
import small
import uvicorn
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from proxy import proxy

from ich_client import audit, policy
from ich_client import flower as client
from ich_client.app import OPEN, refusal
from ich_models.errors import Code, ConfigurationError, RunError
from ich_models.protocol import STATISTICS, VERSION, StatisticsReply, is_refusal
from ich_server import door, pki
from ich_server import flower as server
from ich_server.flower import Link, open_link
from ich_server.members import meet
from ich_server.rounds import MALFORMED, NO_REPLY, Failure, Request, exchange, read
from ich_strategies.plan import Plan

Key = ec.EllipticCurvePrivateKey


def openssh(key: Key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@dataclass
class Place:
    """An open server: its link, its address, its CA, and the keys that it admits."""

    link: Link
    address: str
    authority: str
    keys: dict[str, Key]

    def server(self, **changes: str) -> client.Server:
        facts = {"address": self.address, "authorities": self.authority, "bundle": server.bundle()[1], **changes}
        return client.Server(**facts)

    def url(self, path: str) -> str:
        return f"https://{self.address}{path}"

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.authority)
        return context

    def fleet(self, key: Key) -> FleetHttpClient:
        """Flower's own client with this key."""
        signed = [NodeAuthHttpInterceptor(key, key.public_key())]
        return FleetHttpClient(f"https://{self.address}", interceptors=signed, verify=self.context())

    def newcomer(
        self, name: str, watch: Callable[[httpx.Request], None] = lambda request: None
    ) -> tuple[FleetHttpClient, int]:
        """Flower's own client with a new key, admitted and connected, and its node. `watch`: told of its requests."""
        self.keys[name] = ec.generate_private_key(ec.SECP384R1())
        self.link.refresh()
        fleet = self.fleet(self.keys[name])
        fleet._client.event_hooks["request"].append(watch)
        key = public_key_to_bytes(self.keys[name].public_key())
        return fleet, fleet.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=15)).node_id


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server that admits east, north and south."""
    folder = tmp_path_factory.mktemp("server")
    certificate, key = pki.server_certificate(folder / "pki", "127.0.0.1", "study")
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("east", "north", "south")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def admitted() -> dict[str, bytes]:
        return {name: openssh(key) for name, key in keys.items()}

    with open_link(folder / "state", ("127.0.0.1", port), certificate, key, admitted) as link:
        yield Place(link, f"127.0.0.1:{port}", (folder / "pki" / "ca.pem").read_text(), keys)


@pytest.fixture
def place(opened: Place) -> Iterator[Place]:
    """The same, with the keys as they were after the test."""
    keys = dict(opened.keys)
    yield opened
    opened.keys.clear()
    opened.keys.update(keys)
    opened.link.refresh()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that may pass is waited for so long."""
    monkeypatch.setattr(client, "REFUSED_FOR", 1.0)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.2)


NOTHING = ClientApp()
UNRECORDED = partial(refusal, OPEN)
"""A hospital without a record."""


def echoing() -> ClientApp:
    """Answers every question with nothing."""
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return app


def join(place: Place, key: Key, stop: threading.Event | None = None, **changes: str) -> None:
    client.stay_joined(place.server(**changes), key, NOTHING, {}, UNRECORDED, stop or threading.Event())


class Joined:
    """A client in a thread, and what ended it."""

    def __init__(
        self,
        place: Place,
        name: str,
        app: ClientApp = NOTHING,
        refuse: Callable[[Code], RecordDict] = UNRECORDED,
        changes: Mapping[str, str] = MappingProxyType({}),
        **config: int,
    ) -> None:
        """`changes`: of what the client believes of the server."""
        self.stop = threading.Event()
        self.failure: Exception | None = None
        self.told: bool | None = None
        there = place.server(**changes)
        self._thread = threading.Thread(target=self._run, args=(there, place.keys[name], app, config, refuse))
        self._thread.start()
        end = time.monotonic() + 20
        while not place.link.seen()[name].online and self.failure is None:
            assert time.monotonic() < end
            time.sleep(0.05)

    def _run(
        self,
        there: client.Server,
        key: Key,
        app: ClientApp,
        config: dict[str, int],
        refuse: Callable[[Code], RecordDict],
    ) -> None:
        try:
            self.told = client.stay_joined(there, key, app, dict(config), refuse, self.stop)
        except RunError as error:
            self.failure = error

    def end(self) -> Exception | None:
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.failure


# --- who is let in ----------------------------------------------------------------------------------------------------


def test_an_admitted_hospital_is_seen_by_its_name_and_leaves_politely(place: Place) -> None:
    joined = Joined(place, "north")
    assert [name for name, seen in place.link.seen().items() if seen.online] == ["north"]
    assert [place.link.names[node] for node in place.link.grid.get_node_ids()] == ["north"]
    assert joined.end() is None
    assert joined.told
    assert not any(seen.online for seen in place.link.seen().values())


def test_who_leaves_while_the_server_is_away_does_not_say_that_it_was_told(place: Place) -> None:
    with proxy(int(place.address.rpartition(":")[2])) as link:
        joined = Joined(place, "south", changes={"address": f"127.0.0.1:{link.port}"})
        link.closed = True
        assert joined.end() is None
        assert joined.told is False
    place.fleet(place.keys["south"]).DeactivateNode(DeactivateNodeRequest(node_id=place.link.seen()["south"].node))


def test_an_unknown_key_is_refused(place: Place) -> None:
    with pytest.raises(RunError, match="the server does not admit this hospital's key"):
        join(place, ec.generate_private_key(ec.SECP384R1()))


def test_a_hospital_that_is_admitted_while_the_server_runs_is_let_in(place: Place) -> None:
    place.keys["west"] = ec.generate_private_key(ec.SECP384R1())
    place.link.refresh()
    joined = Joined(place, "west")
    assert joined.end() is None


def test_a_key_that_is_revoked_is_out_at_once(place: Place) -> None:
    place.keys["leaving"] = ec.generate_private_key(ec.SECP384R1())
    place.link.refresh()
    joined = Joined(place, "leaving")
    revoked = place.keys.pop("leaving")
    place.link.refresh()
    end = time.monotonic() + 20
    while joined.failure is None and time.monotonic() < end:
        time.sleep(0.05)
    assert "does not admit this hospital's key" in str(joined.failure)
    joined.end()
    assert "leaving" not in place.link.names.values()
    place.keys["leaving"] = revoked
    place.link.refresh()
    assert "leaving" not in place.link.names.values(), "nor ever again"


def test_one_key_cannot_be_connected_twice(place: Place) -> None:
    first = Joined(place, "east")
    with pytest.raises(RunError, match="or another ich-client is connected with the same key"):
        join(place, place.keys["east"])
    assert first.end() is None


def test_a_hospital_cannot_speak_for_another_node(place: Place) -> None:
    """East's signature under a request for north's messages."""
    joined = Joined(place, "north")
    (north,) = place.link.grid.get_node_ids()
    with pytest.raises(httpx.HTTPStatusError) as caught:
        place.fleet(place.keys["east"]).PullMessages(PullMessagesRequest(node=Node(node_id=north)))
    assert caught.value.response.status_code == 401
    joined.end()


def test_a_hospital_cannot_answer_under_anothers_name(place: Place, tmp_path: Path) -> None:
    """The key admitted as north, whose client says that it is south."""
    plan = Plan(small.federation(evaluation={"leave_one_hospital_out": False, "test": 0.2}), 42)
    app = small.app(small.sites(plan, small.hospitals(), tmp_path))
    joined = Joined(place, "north", app, **{"partition-id": 2})
    with pytest.raises(RunError) as caught:
        meet(place.link.grid, plan, 1, place.link.names)
    assert "north: replied under another hospital's name" in str(caught.value)
    joined.end()


# --- the port ---------------------------------------------------------------------------------------------------------


def test_a_server_that_the_ca_does_not_vouch_for_is_not_spoken_to(place: Place, tmp_path: Path) -> None:
    other, _ = pki.authority(tmp_path, "other")
    with pytest.raises(RunError, match="does not show a certificate of the federation's CA"):
        join(place, place.keys["north"], authorities=other.decode())


def test_a_server_with_the_certificate_of_another_machine_is_not_spoken_to(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CA vouches for one address, not for whoever has the certificate of another. 0.0.0.0 leads to this machine, too."""
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(RunError, match="does not show a certificate of the federation's CA"):
        client.check_server(place.server(address=place.address.replace("127.0.0.1", "0.0.0.0")), threading.Event())


def test_plain_http_is_not_answered(place: Place) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{place.address}/health", timeout=5)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/redoc", "/v1/fleet/register-node", "/v1/fleet", "/v1/fleet/../control/x"),
        *("/v1/control/list-runs", "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/push-messages"),
        *("/v1/runtime/acquire-task", "/v1/fleet/%2e%2e/control/start-run", "//v1/control/start-run", "/health/x"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_there_is_nothing_but_the_hospitals_part(place: Place, method: str, path: str) -> None:
    answer = httpx.request(method, place.url(path), verify=place.context(), content=b"x" if method == "POST" else None)
    assert answer.status_code in (401, 404, 405)
    assert answer.content in (b"", b'{"detail":"Not Found"}', b'{"detail":"Method Not Allowed"}')


def test_the_health_of_the_port_says_nothing_else(place: Place) -> None:
    answer = httpx.get(place.url("/health"), verify=place.context())
    assert answer.status_code == 200
    assert "flwr" not in answer.text.lower()
    assert "server" not in answer.headers


def test_a_body_has_a_limit(place: Place) -> None:
    """A lower one for those who are not admitted: anybody can make a key."""

    def sent(size: int) -> int:
        address, context = place.url("/v1/fleet/pull-object"), place.context()
        return httpx.post(address, verify=context, content=b"x" * size, headers=signature(place)).status_code

    assert sent(door.STRANGERS_BODY + 1) != 413, "this is Flower's to answer"
    assert sent(door.LARGEST_BODY + 1) == 413
    place.link._door.admit({})
    assert sent(door.STRANGERS_BODY + 1) == 413
    assert sent(1) != 413
    place.link.refresh()
    assert httpx.get(place.url("/health"), verify=place.context()).status_code == 200


def signature(place: Place, name: str = "north", age: float = 0.0) -> dict[str, str]:
    """A hospital's headers for one request of this moment, or of `age` seconds ago."""
    key = place.keys[name]
    moment = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": b64encode(key.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
        "content-type": "application/protobuf",
    }


def test_of_a_request_without_a_signature_nothing_is_read_or_remembered(place: Place) -> None:
    """Not even 8 MB of its body, and nothing of its headers: anybody could fill the server's memory."""
    remembered = len(place.link._door._seen)
    for number in range(20):
        forged = {**signature(place), "flwr-timestamp": f"{datetime.now(UTC).isoformat()}{number}"}
        answer = httpx.post(
            place.url("/v1/fleet/push-object"), verify=place.context(), content=b"x" * 2**20, headers=forged
        )
        assert answer.status_code == 401
    assert len(place.link._door._seen) == remembered


def test_a_header_that_stands_there_twice_counts_neither_way(place: Place) -> None:
    """Even where both say the same: which of two counts might differ between the door and what is behind it."""
    place.keys["twice"] = ec.generate_private_key(ec.SECP384R1())
    place.link.refresh()
    key = public_key_to_bytes(place.keys["twice"].public_key())
    content = ActivateNodeRequest(public_key=key, heartbeat_interval=15).SerializeToString()
    headers, url = signature(place, "twice"), place.url("/v1/fleet/activate-node")
    with httpx.Client(verify=place.context()) as anybody:
        for name in ("flwr-public-key", "flwr-timestamp", "flwr-signature"):
            twice = anybody.post(url, headers=[*headers.items(), (name, headers[name])], content=content)
            assert twice.status_code == 401
        assert anybody.post(url, headers=headers, content=content).status_code == 200, "nothing was remembered of it"


def other_text(encoded: str) -> str:
    """Another base64 text of the same bytes: the last character before the padding has bits that do not count."""
    bare = encoded.rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for letter in alphabet:
        changed = bare[:-1] + letter + "=" * (len(encoded) - len(bare))
        if changed != encoded and b64decode(changed) == b64decode(encoded):
            return changed
    pytest.skip("this key's length leaves no such text")


def test_a_signature_is_accepted_once_however_it_is_written(place: Place) -> None:
    place.keys["written"] = ec.generate_private_key(ec.SECP384R1())
    place.link.refresh()
    headers = signature(place, "written")
    with httpx.Client(verify=place.context()) as thief:
        first = thief.post(place.url("/v1/fleet/pull-messages"), headers=headers, content=b"")
        assert first.status_code != 409, "it is new, whatever Flower says of its content"
        twice = [*headers.items(), ("flwr-public-key", "junk")]
        assert thief.post(place.url("/v1/fleet/pull-messages"), headers=twice, content=b"").status_code == 401
        for name in ("flwr-signature", "flwr-public-key"):
            try:
                changed = {**headers, name: other_text(headers[name])}
            except pytest.skip.Exception:
                continue
            answer = thief.post(place.url("/v1/fleet/pull-messages"), headers=changed, content=b"")
            assert answer.status_code == 409


def test_signatures_are_remembered_as_long_as_flower_accepts_them() -> None:
    """300 s and a little (flwr.common.constant)."""
    assert door.REPLAY_WINDOW >= TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def test_a_revoked_key_gets_no_response_that_was_kept_for_it(place: Place) -> None:
    fleet, node = place.newcomer("gone")
    place.link.grid.push_messages([Message(RecordDict(), node, STATISTICS, ttl=30.0, group_id="x")])
    fleet._client.headers["ich-attempt"] = "first"
    pull = PullMessagesRequest(node=Node(node_id=node))
    assert len(fleet.PullMessages(pull).messages_list) == 1
    del place.keys["gone"]
    place.link.refresh()
    with pytest.raises(httpx.HTTPStatusError):
        fleet.PullMessages(pull)


@pytest.mark.parametrize("content", [b"RecordDict  0\x00", b"Message  0\x00", b"", b"\x00"])
def test_a_reply_that_is_no_message_is_one_hospitals_failure(
    place: Place, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Bytes of a hospital's own under the right hash: they must not end the server."""

    class Garbage:
        def deflate(self) -> bytes:
            return content

    upload = client._Connection._upload
    name = hashlib.sha256(content).hexdigest()

    def spoilt(self: Any, head: Message, tree: ObjectTree, objects: Any) -> int:
        head.metadata.__dict__["_message_id"] = name
        return upload(self, head, ObjectTree(object_id=name), {name: Garbage()})  # type: ignore[dict-item]

    monkeypatch.setattr(client._Connection, "_upload", spoilt)
    joined = Joined(place, "east", echoing())
    try:
        node = place.link.seen()["east"].node
        asked = [(Request("east", ()), RecordDict())]
        ((_, reply),) = exchange(place.link.grid, {"east": node}, asked, STATISTICS, 8.0, "x")
        assert read(reply, StatisticsReply) in (Failure(MALFORMED), Failure(NO_REPLY))
    finally:
        joined.end()


def test_a_request_without_a_signature_is_refused(place: Place) -> None:
    headers = {"content-type": "application/protobuf"}
    answer = httpx.post(place.url("/v1/fleet/pull-messages"), verify=place.context(), content=b"", headers=headers)
    assert answer.status_code in (401, 415)


def test_a_signature_is_accepted_once(place: Place) -> None:
    """A request that somebody has recorded, sent again: as it was, and with another content."""
    recorded: list[httpx.Request] = []
    _, node = place.newcomer("recorded", recorded.append)
    (first,) = recorded
    with httpx.Client(verify=place.context()) as thief:
        again = thief.post(str(first.url), content=first.content, headers=dict(first.headers))
        assert again.status_code == 409
        pull = PullMessagesRequest(node=Node(node_id=node)).SerializeToString()
        headers = {name: value for name, value in first.headers.items() if name != "content-length"}
        other = thief.post(place.url("/v1/fleet/pull-messages"), content=pull, headers=headers)
        assert other.status_code == 409


def test_a_task_whose_response_was_lost_is_given_again(place: Place) -> None:
    """Flower gives a task out once. The same attempt gets the same response; another attempt, nothing more."""
    fleet, node = place.newcomer("losing")
    key = public_key_to_bytes(place.keys["losing"].public_key())
    place.link.grid.push_messages([Message(RecordDict(), node, STATISTICS, ttl=30.0, group_id="x")])
    pull = PullMessagesRequest(node=Node(node_id=node))
    fleet._client.headers["ich-attempt"] = "first"
    fleet._client.headers[VERSION] = "0.1.0<script>"
    given = fleet.PullMessages(pull)
    assert len(given.messages_list) == 1
    assert place.link.seen()["losing"].version == "", "no version, and it would be shown on a page"
    assert fleet.PullMessages(pull) == given, "the same attempt"
    with httpx.Client(verify=place.context(), headers={"ich-attempt": "first"}) as thief:
        stolen = {"flwr-public-key": b64encode(key).decode(), "flwr-timestamp": "x", "flwr-signature": "AAAA"}
        answer = thief.post(place.url("/v1/fleet/pull-messages"), headers=stolen, content=pull.SerializeToString())
        assert answer.status_code in (401, 415), "without the key's signature there is nothing to be had"
        old = signature(place, "losing", door.REPLAY_WINDOW + 1)  # seen long ago, and no more remembered
        answer = thief.post(place.url("/v1/fleet/pull-messages"), headers=old, content=pull.SerializeToString())
        assert answer.status_code == 401, "nor with one that Flower does not accept any more"
    fleet._client.headers["ich-attempt"] = "second"
    assert len(fleet.PullMessages(pull).messages_list) == 0


def replying(sizes: list[int]) -> ClientApp:
    """Answers with so many bytes, in pieces of 50 kB, one size after another."""
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        pieces = {str(n): ConfigRecord({"bytes": n.to_bytes(50, "big") * 1000}) for n in range(sizes.pop(0) // 50_000)}
        return Message(RecordDict(pieces), reply_to=message)

    return app


def large(place: Place, hospital: str, group: str) -> Message:
    """A task of 100 kB, of which one half is equal to the other and is stored once."""
    task = RecordDict({name: ConfigRecord({"bytes": b"y" * 50_000}) for name in ("model", "the same")})
    return Message(task, place.link.seen()[hospital].node, STATISTICS, ttl=20.0, group_id=group)


@pytest.mark.parametrize("size", [100_000, 400_000])
def test_a_reply_may_be_four_times_its_task(place: Place, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(door, "REPLY_SLACK", 80_000)
    joined = Joined(place, "north", replying([size, size]))
    for group in ("one", "two"):  # each task anew
        (reply,) = place.link.grid.send_and_receive([large(place, "north", group)], timeout=20)
        assert not reply.has_error()
    assert joined.end() is None


def test_a_reply_that_is_larger_is_refused_and_everybody_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hospital that uploads without end would fill the server's memory."""
    monkeypatch.setattr(door, "REPLY_SLACK", 80_000)
    joined = Joined(place, "north", replying([550_000, 100_000]))
    place.link.grid.push_messages([large(place, "north", "one")])
    end = time.monotonic() + 20
    while "it is larger than a reply to this task can be" not in caplog.text and time.monotonic() < end:
        time.sleep(0.05)
    assert "the server does not take the reply: it is larger" in caplog.text, "the hospital"
    assert "north uploads more than a reply" in caplog.text, "the server"
    (reply,) = place.link.grid.send_and_receive([large(place, "north", "two")], timeout=20)
    assert not reply.has_error(), "the next task is another one"
    assert joined.end() is None


def test_a_reply_of_endless_pieces_is_refused_when_it_is_announced(place: Place) -> None:
    """A name of 32 bytes costs the server some kilobytes, whether its piece ever comes or not."""
    fleet, node = place.newcomer("endless")
    place.link.grid.push_messages([Message(RecordDict(), node, STATISTICS, ttl=30.0, group_id="x")])
    (task,) = fleet.PullMessages(PullMessagesRequest(node=Node(node_id=node))).messages_list
    reply = Message(RecordDict(), reply_to=message_from_proto(task))
    head = remove_content_from_message(reply)
    head.metadata.__dict__["_message_id"] = "ab" * 32
    names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(door.REPLY_SLACK // door.PIECE)]
    tree = ObjectTree(object_id="ab" * 32, children=[ObjectTree(object_id=name) for name in names])
    before = len(place.link.grid._state.object_store)
    request = PushMessagesRequest(
        node=Node(node_id=node), messages_list=[message_to_proto(head)], message_object_trees=[tree]
    )
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        fleet.PushMessages(request)
    assert len(place.link.grid._state.object_store) == before


def test_without_a_task_nothing_can_be_uploaded(place: Place) -> None:
    fleet, node = place.newcomer("idle")
    with pytest.raises(httpx.HTTPStatusError, match="410"):
        fleet.PushObject(PushObjectRequest(node=Node(node_id=node), object_id="ab" * 32, object_content=b"x"))


def test_a_reply_to_a_server_that_began_anew_is_late_and_not_too_large(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        place.link._door._left.clear()  # what a new process knows of the task
        return Message(RecordDict(), reply_to=message)

    joined = Joined(place, "north", app)
    place.link.grid.push_messages([large(place, "north", "one")])
    end = time.monotonic() + 20
    while "the server does not take the reply" not in caplog.text and time.monotonic() < end:
        time.sleep(0.05)
    assert joined.end() is None
    assert "does not take the reply any more: its run has ended" in caplog.text
    assert "larger" not in caplog.text


def test_what_an_exchange_leaves_behind_is_dropped_when_the_next_begins(place: Place) -> None:
    """A task that was not fetched, and a reply of which the last piece never came."""
    fleet, node = place.newcomer("leaving")
    store = place.link.grid._state.object_store
    place.link.grid.push_messages([large(place, "leaving", "one")])
    pull = PullMessagesRequest(node=Node(node_id=node))
    (task,) = fleet.PullMessages(pull).messages_list
    reply = Message(RecordDict({"m": ConfigRecord({"b": b"z" * 10**6})}), reply_to=message_from_proto(task))
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        head = remove_content_from_message(reply)
    answer = fleet.PushMessages(
        PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[message_to_proto(head)],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
    )
    assert set(answer.objects_to_push) == set(objects)
    for name in set(objects) - {tree.object_id}:
        piece = {"object_id": name, "session_id": answer.session_id, "object_content": objects[name].deflate()}
        fleet.PushObject(PushObjectRequest(node=Node(node_id=node), run_id=task.metadata.run_id, **piece))
    assert place.link.grid.pull_messages([task.metadata.message_id]) == []
    assert set(objects) <= set(store.store)
    place.link.grid.push_messages([Message(RecordDict(), node, STATISTICS, ttl=30.0, group_id="two")])
    assert not set(objects) & set(store.store)
    assert sum(len(entry.content) for entry in store.store.values()) < 2000, "what is there is the new task"
    assert len(fleet.PullMessages(pull).messages_list) == 1, "which can be fetched"


def test_whoever_counts_as_connected_fetches_its_tasks(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a link was down: not asleep until its own next attempt, while its heartbeats say that it is there."""
    monkeypatch.setattr(client, "FIRST_RETRY", 60.0)
    monkeypatch.setattr(client, "BEAT", 1.0)
    with proxy(int(place.address.rpartition(":")[2])) as link:
        joined = Joined(place, "north", echoing(), changes={"address": f"127.0.0.1:{link.port}"})
        node = place.link.seen()["north"].node

        def answers(seconds: float) -> list[bool]:
            message = Message(RecordDict(), node, STATISTICS, ttl=seconds, group_id="x")
            return [not reply.has_error() for reply in place.link.grid.send_and_receive([message], timeout=seconds)]

        try:
            # the server counts a hospital as there before the hospital has heard so: it has once it answers
            assert answers(20.0) == [True]
            link.closed, end = True, time.monotonic() + 20
            while "does not answer" not in caplog.text and time.monotonic() < end:
                time.sleep(0.05)
            link.closed = False
            afterwards = answers(5.0)
        finally:
            joined.end()
    assert "does not answer" in caplog.text
    assert afterwards == [True]


# --- nothing that a server sends is run -------------------------------------------------------------------------------


def ask(place: Place, joined: Joined, kind: str = STATISTICS) -> Message:
    """What the one hospital that is there answers; it leaves."""
    (node,) = place.link.grid.get_node_ids()
    question = Message(RecordDict(), node, kind, ttl=30.0, group_id="x")
    (reply,) = place.link.grid.send_and_receive([question], timeout=20)
    assert joined.end() is None
    return reply


def recorded(folder: Path) -> list[str]:
    """The codes of the refusals in a hospital's record."""
    lines = [entry.content for entry in audit.entries(folder / "log.jsonl")]
    assert {line["reply"] for line in lines} == {"Refusal"}
    return [line["message"]["code"] for line in lines]


def test_a_run_with_another_bundle_is_refused_and_the_bundle_is_not_fetched(place: Place, tmp_path: Path) -> None:
    called: list[Message] = []
    app = ClientApp()

    @app.query()
    def query(message: Message, _context: object) -> Message:
        called.append(message)
        return Message(RecordDict(), reply_to=message)

    refuse = partial(refusal, policy.guard(tmp_path))
    reply = ask(place, Joined(place, "north", app, refuse, {"bundle": "0" * 64}))
    assert is_refusal(reply.content) == Code.PROTOCOL
    assert recorded(tmp_path) == ["PROTOCOL"]
    assert called == []
    assert not hasattr(client, "GetFabRequest"), "there is no way in this module to ask for a bundle"


def test_a_question_of_a_kind_that_nobody_knows_is_refused_and_recorded(place: Place, tmp_path: Path) -> None:
    refuse = partial(refusal, policy.guard(tmp_path))
    reply = ask(place, Joined(place, "north", echoing(), refuse), "query.everything")
    assert is_refusal(reply.content) == Code.MALFORMED
    assert recorded(tmp_path) == ["MALFORMED"]


def test_the_bundle_is_one_text_file_and_always_the_same(tmp_path: Path) -> None:
    import io
    import zipfile

    content, digest = server.bundle()
    assert server.bundle() == (content, digest)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith(".py")]
    assert "pyproject.toml" in names


def test_a_late_reply_is_dropped_and_the_hospital_is_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, _context: object) -> Message:
        time.sleep(4.5)
        return Message(RecordDict(), reply_to=message)

    joined = Joined(place, "north", app)
    before = place.link.seen()["north"].late
    (node,) = place.link.grid.get_node_ids()
    (identifier,) = place.link.grid.push_messages([Message(RecordDict(), node, STATISTICS, ttl=4.0, group_id="x")])
    end = time.monotonic() + 20
    while "does not take the reply any more" not in caplog.text and time.monotonic() < end:
        time.sleep(0.1)
    joined.end()
    assert "does not take the reply any more" in caplog.text
    assert all(reply.has_error() for reply in place.link.grid.pull_messages([identifier]))
    assert place.link.seen()["north"].late == before + 1


def test_replies_in_time_are_not_called_late(place: Place) -> None:
    before = place.link.seen()["east"].late
    assert not ask(place, Joined(place, "east", echoing())).has_error()
    assert place.link.seen()["east"].late == before


def test_an_exception_of_the_app_leaves_no_text(place: Place, tmp_path: Path) -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, _context: object) -> Message:
        raise KeyError("/data/patients/Mustermann.csv")

    reply = ask(place, Joined(place, "north", app, partial(refusal, policy.guard(tmp_path))))
    assert is_refusal(reply.content) == Code.INTERNAL
    assert "Mustermann" not in str(reply)
    assert recorded(tmp_path) == ["INTERNAL"]


# --- clocks and versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("off", "said"), [(10, "10 s ahead of"), (-400, "400 s behind"), (0, None), (-200, None)])
def test_a_clock_that_is_off_is_said(
    place: Place, monkeypatch: pytest.MonkeyPatch, off: float, said: str | None
) -> None:
    # of the client alone: the server is in this process
    monkeypatch.setattr(client, "time", SimpleNamespace(time=lambda: time.time() + off))
    if said is None:
        measured: list[float] = []
        client.check_server(place.server(), threading.Event(), measured.append)
        assert measured == [pytest.approx(off, abs=1.5)], "the hospital keeps it for ich-client check"
        return
    with pytest.raises(RunError, match="this machine's clock is") as caught:
        client.check_server(place.server(), threading.Event())
    number, _, rest = said.partition(" s ")
    assert rest in str(caught.value)
    assert any(f"clock is {about} s" in str(caught.value) for about in range(int(number) - 1, int(number) + 2))


def test_the_servers_time_is_that_of_the_moment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of when a busy server last came to write it down: the hospital would be told that its own clock is wrong."""
    monkeypatch.setattr(uvicorn.Server, "on_tick", lambda self, counter: asyncio.sleep(0, False))
    time.sleep(0.2)  # until the last tick of its own is over
    for _ in range(2):
        before = time.time()
        response = httpx.get(place.url("/health"), verify=place.context())
        (date,) = response.headers.get_list("date")
        assert int(before) <= parsedate_to_datetime(date).timestamp() <= time.time()
        time.sleep(1.1)


@pytest.mark.parametrize("module", [client, server])
def test_another_flower_is_refused_in_words(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both adapters use flwr's internals: that they can be imported is the contract with 1.41.0, and with no other."""
    monkeypatch.setattr(module, "version", lambda name: "1.42.0")
    with pytest.raises(ConfigurationError, match=r"flwr 1.42.0 is installed, and this version needs 1.41.0"):
        module.require_version()  # type: ignore[attr-defined]


def test_a_port_that_is_taken_is_said(place: Place, tmp_path: Path) -> None:
    certificate, key = pki.server_certificate(tmp_path / "pki", "127.0.0.1", "study")
    port = int(place.address.rpartition(":")[2])
    with pytest.raises(RunError, match="cannot listen on"):
        server._serve(NOTHING, ("127.0.0.1", port), certificate, key)  # type: ignore[arg-type]
