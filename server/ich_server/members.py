"""Who takes part in a study: each hospital says its name and its statistics before round 1."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flwr.serverapp import Grid

from ich_models.errors import Problem, RunError
from ich_models.protocol import STATISTICS, PartStatistics, StatisticsReply, StatisticsTask, to_record
from ich_models.statistics import Moments
from ich_server.rounds import Failure, Request, exchange, read
from ich_strategies.plan import Plan

POLL: Final = 0.1
"""Seconds between looks at who is there."""


@dataclass(frozen=True)
class Member:
    """A hospital that takes part: its node in the grid, and the statistics of its training patients per part."""

    node: int
    moments: Mapping[int, Moments]

    def facts(self) -> dict[str, Any]:
        """The statistics as JSON values, exact to the last digit."""
        return {str(part): PartStatistics.of(moments).model_dump() for part, moments in self.moments.items()}


def meet(grid: Grid, plan: Plan, expected: int) -> dict[str, Member]:
    """Wait for `expected` nodes, at most until the quorum's deadline, and ask each who it is; members sorted by name.

    Raises RunError if two have one name, or if too few can take part: all must unless the quorum says otherwise.
    """
    federation = plan.federation
    parts = list(range((federation.evaluation.folds or 0) + 1))
    nodes = {str(node): node for node in _gathered(grid, expected, federation.quorum.deadline)}
    task = to_record(StatisticsTask(federation=plan.hash, seed=plan.seed, parts=parts))
    requests = [Request(node, (), task) for node in nodes]
    members: dict[str, Member] = {}
    absent: list[Problem] = []
    for request, reply in exchange(grid, nodes, requests, STATISTICS, federation.quorum.deadline, "statistics"):
        answer = read(reply, StatisticsReply)
        failure = answer if isinstance(answer, Failure) else _unsound(answer[0], plan, parts)
        if failure is not None:
            absent.append(Problem(failure.reason, f"node {request.hospital}", "its own log says more"))
        elif not isinstance(answer, Failure):
            name = answer[0].hospital
            if name in members:
                raise RunError(f"two hospitals call themselves '{name}'", hint="give each a name of its own")
            moments = {part: answer[0].parts[part].moments() for part in parts}
            members[name] = Member(nodes[request.hospital], moments)
    needed = federation.quorum.hospitals or expected
    if federation.evaluation.leave_one_hospital_out:
        needed = max(2, needed)
    if len(members) < needed:
        count = Problem(f"{len(members)} of {expected} hospitals can take part, and the study needs {needed}")
        raise RunError([count, *absent])
    return dict(sorted(members.items()))


def _gathered(grid: Grid, expected: int, deadline: float) -> list[int]:
    """The nodes that are there when enough are, or when the time is up; in a fixed order."""
    end = time.monotonic() + deadline
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < end:
        time.sleep(POLL)
    return nodes


def _unsound(reply: StatisticsReply, plan: Plan, parts: Sequence[int]) -> Failure | None:
    """Statistics that are not of this federation's network and table."""
    widths = {len(column) for p in reply.parts.values() for column in (p.count, p.mean, p.m2)}
    counts = [(p.patients, p.events) for p in reply.parts.values()]
    if reply.schema_hash != plan.schema or sorted(reply.parts) != list(parts) or widths != {len(plan.columns)}:
        return Failure("another network or table than this federation's")
    if not all(0 < patients <= plan.federation.checks.patients and events <= patients for patients, events in counts):
        return Failure("patient counts that cannot be")
    if not all(0 <= known <= p.patients for p in reply.parts.values() for known in p.count):
        return Failure("more values than patients")
    if not all(squares >= 0 for p in reply.parts.values() for squares in p.m2):
        return Failure("negative sums of squares")
    return None
