"""One exchange with the hospitals over any flwr Grid: send, wait until the deadline, take the replies in a fixed order."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ich_models.protocol import MalformedError, Rows, from_record, is_refusal
from ich_models.strict import Strict

_FIRST_POLL, _LONGEST_POLL = 0.002, 1.0
"""Seconds between looks at a reply that is not there yet; doubled each time."""

NOBODY: Final = 0
"""In place of the node of a hospital that is not admitted any more."""

MALFORMED: Final = "malformed reply"
NOT_ADMITTED: Final = "not admitted any more"
NO_REPLY: Final = "no reply before the deadline"
WRONG_NAME: Final = "replied under another hospital's name"

_FLOWER_ERRORS: Final = {
    2: "its client failed",
    3: NO_REPLY,
    4: NO_REPLY,
    5: "it went away",
    7: "it refuses this server's bundle",
}
"""Flower's error codes (flwr.common.constant.ErrorCode, part of its wire format) in words."""

M = TypeVar("M", bound=Strict)


@dataclass(frozen=True)
class Request:
    """One message to one hospital; `folds` is what it is about."""

    hospital: str
    folds: Sequence[str]


Asked = tuple[Request, RecordDict]
"""A message with its content."""


@dataclass(frozen=True)
class Failure:
    """No usable reply, and why: a refusal code, a fault or a time-out; never a text of the hospital's own."""

    reason: str


@dataclass(frozen=True)
class Quarantine:
    """A reply that was set aside: in which exchange, whose, why."""

    when: str
    """'statistics', 'round N', 'thresholds' or 'evaluation'."""
    hospital: str
    reason: str


def exchange(
    grid: Grid, nodes: Mapping[str, int], requests: Iterable[Asked], message_type: str, deadline: float, group: str
) -> Iterator[tuple[Request, RecordDict | Failure]]:
    """Send every request, then yield each with its reply or failure, in the order given.

    Replies are pulled one at a time, so that memory holds one whatever the number of hospitals, and in a fixed order,
    so that sums over them are the same to the byte whoever answers first. After `deadline` seconds whoever has not
    replied has failed; a later reply stays unread.
    """
    end = time.monotonic() + deadline
    sent: list[tuple[Request, str | None]] = []
    for request, record in requests:  # made one by one; what is pushed need not stay here
        if nodes[request.hospital] == NOBODY:
            sent.append((request, None))
            continue
        message = Message(record, nodes[request.hospital], message_type, ttl=deadline, group_id=group)
        sent.append((request, next(iter(grid.push_messages([message])))))
        del message, record
    for request, message_id in sent:
        yield request, Failure(NOT_ADMITTED) if message_id is None else _await(grid, message_id, end)


def _await(grid: Grid, message_id: str, end: float) -> RecordDict | Failure:
    pause = _FIRST_POLL
    while True:
        for reply in grid.pull_messages([message_id]):
            if reply.has_error():
                return Failure(_FLOWER_ERRORS.get(reply.error.code, f"flower error {reply.error.code}"))
            if code := is_refusal(reply.content):
                return Failure(f"refused with code {code}")
            return reply.content
        if time.monotonic() >= end:
            return Failure(NO_REPLY)
        time.sleep(min(pause, max(0.0, end - time.monotonic())))
        pause = min(2 * pause, _LONGEST_POLL)


def read(reply: RecordDict | Failure, kind: type[M], hospital: str | None = None) -> tuple[M, Rows] | Failure:
    """The typed reply, or why there is none. A hospital can answer under its own name alone, if it is known."""
    if isinstance(reply, Failure):
        return reply
    try:
        message, rows = from_record(reply, kind)
    except MalformedError:
        return Failure(MALFORMED)
    if hospital is not None and getattr(message, "hospital", None) != hospital:
        return Failure(WRONG_NAME)
    return message, rows
