"""One exchange: a common deadline, and who is not admitted any more."""

import time
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from ich_server.rounds import NO_REPLY, NOBODY, NOT_ADMITTED, Failure, Request, exchange


@pytest.fixture(autouse=True)
def identity() -> None:
    """A message belongs to a run, also one that never travels."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class Silent:
    """A grid on which nobody ever answers."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [str(number) for number, _ in enumerate(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return []


def test_the_deadline_is_of_the_exchange_and_not_of_each_hospital() -> None:
    grid: Any = Silent()
    nodes = {name: number + 1 for number, name in enumerate("abcde")}
    began = time.monotonic()
    found = list(exchange(grid, nodes, [(Request(name, ()), RecordDict()) for name in nodes], "train", 0.3, "x"))
    assert time.monotonic() - began < 3 * 0.3
    assert [reply for _, reply in found] == [Failure(NO_REPLY)] * 5


def test_who_is_not_admitted_any_more_is_not_asked() -> None:
    grid: Any = Silent()
    ((_, reply),) = exchange(grid, {"a": NOBODY}, [(Request("a", ()), RecordDict())], "train", 60.0, "x")
    assert reply == Failure(NOT_ADMITTED)
