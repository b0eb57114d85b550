"""Who takes part in a study: each hospital says its name and its statistics before round 1."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from flwr.serverapp import Grid

from ich_models.errors import Problem, RunError
from ich_models.protocol import STATISTICS, PartStatistics, StatisticsReply, StatisticsTask, to_record
from ich_models.statistics import Moments
from ich_server.rounds import NOBODY, Failure, Quarantine, Request, exchange, read
from ich_strategies.plan import Plan

POLL: Final = 0.1
"""Seconds between looks at who is there."""

ROUNDING: Final = 1e-9
"""Share of a bound by which a sum may miss it."""

PATIENCE: Final = 60.0
"""Seconds that a study that goes on waits for hospitals that are not there yet; later ones come in as it runs."""


@dataclass(frozen=True)
class Member:
    """A hospital that takes part: its node in the grid, and the statistics of its training patients per part."""

    node: int
    patients: int
    """All that take part, test patients included."""
    events: int | None
    """None, here and below: withheld by the hospital (small cells)."""
    excluded: Mapping[str, int | None]
    moments: Mapping[int, Moments]

    @classmethod
    def absent(cls, node: int, facts: Mapping[str, Any]) -> "Member":
        """A hospital that took part, by its `facts`, and is not there now."""
        moments = {int(part): PartStatistics(**said).moments() for part, said in facts["parts"].items()}
        return cls(node, facts["patients"], facts["events"], facts["excluded"], moments)

    def facts(self) -> dict[str, Any]:
        """What the hospital has said of its data as JSON values, exact to the last digit."""
        parts = {str(part): PartStatistics.of(moments).model_dump() for part, moments in self.moments.items()}
        return {"patients": self.patients, "events": self.events, "excluded": dict(self.excluded), "parts": parts}


def meet(
    grid: Grid,
    plan: Plan,
    expected: int,
    names: Mapping[int, str],
    before: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> tuple[dict[str, Member], list[Quarantine]]:
    """Wait for `expected` nodes, at most until the quorum's deadline, and ask each who it is.

    Members sorted by name, and who cannot take part, with the reason. `names`: of the nodes whose name is known
    beforehand; one of these cannot take another. `before`: name -> facts of the hospitals of a study that goes on: who
    of them is away is a member that does not reply, who is new waits for another study, and a minute is waited.
    Raises RunError if two have one name, or if too few can take part: all must unless the quorum says otherwise; in a
    study that goes on, more than half.
    """
    federation = plan.federation
    parts = list(range((federation.evaluation.folds or 0) + 1))
    deadline = min(PATIENCE, federation.quorum.deadline) if before else federation.quorum.deadline
    nodes = {str(node): node for node in _gathered(grid, expected, deadline)}
    task = to_record(StatisticsTask(federation=plan.hash, seed=plan.seed, parts=parts))
    requests = [(Request(node, ()), task) for node in nodes]
    members: dict[str, Member] = {}
    absent: list[Quarantine] = []
    for request, reply in exchange(grid, nodes, requests, STATISTICS, federation.quorum.deadline, "statistics"):
        node = nodes[request.hospital]
        answer = read(reply, StatisticsReply, names.get(node))
        failure = answer if isinstance(answer, Failure) else _unsound(answer[0], plan, parts)
        if failure is not None:
            absent.append(Quarantine("statistics", names.get(node, f"node {node}"), failure.reason))
        elif not isinstance(answer, Failure):
            said = answer[0]
            if said.hospital in members:
                raise RunError(f"two hospitals call themselves '{said.hospital}'", hint="give each a name of its own")
            moments = {part: said.parts[part].moments() for part in parts}
            excluded = {str(reason): count for reason, count in said.excluded.items()}
            members[said.hospital] = Member(node, said.patients, said.events, excluded, moments)
    away = sorted(set(names.values()) - set(members) - {each.hospital for each in absent})
    absent += [Quarantine("statistics", name, "not connected") for name in away]
    if before:
        for name in sorted(set(members) - set(before)):
            absent.append(Quarantine("statistics", name, "new: this study goes on without it"))
            del members[name]
    expected = len(before) or expected
    needed = federation.quorum.hospitals or (expected // 2 + 1 if before else expected)
    if federation.evaluation.leave_one_hospital_out:
        needed = max(2, needed)
    if len(members) < needed:
        count = Problem(f"{len(members)} of {expected} hospitals can take part, and the study needs {needed}")
        raise RunError([count, *(Problem(each.reason, each.hospital, "its own log says more") for each in absent)])
    privacy = federation.privacy
    if privacy is not None and len(members) > privacy.planned_hospitals:
        message = f"{len(members)} hospitals, and the noise is planned for {privacy.planned_hospitals}"
        raise RunError(message, hint="raise privacy.hospitals: every hospital is one more model, and costs epsilon")
    by_name = {name: node for node, name in names.items()}
    for name in set(before) - set(members):
        members[name] = Member.absent(by_name.get(name, NOBODY), before[name])
    return dict(sorted(members.items())), absent


def _gathered(grid: Grid, expected: int, deadline: float) -> list[int]:
    """The nodes that are there when enough are, or when the time is up; in a fixed order."""
    end = time.monotonic() + deadline
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < end:
        time.sleep(POLL)
    return nodes


def _unsound(reply: StatisticsReply, plan: Plan, parts: Sequence[int]) -> Failure | None:
    """Statistics that are not of this federation's network and table."""
    widths = {len(column) for p in reply.parts.values() for column in (p.count, p.mean, p.m2)}
    if (
        reply.schema_hash != plan.schema
        or sorted(reply.parts) != list(parts)
        or widths != {len(plan.columns) + len(plan.extras)}
    ):
        return Failure("another network or table than this federation's")
    counts = [(reply.patients, reply.events), *((p.patients, p.events) for p in reply.parts.values())]
    most = plan.federation.checks.patients
    if not all(0 < patients <= most and (events or 0) <= patients for patients, events in counts):
        return Failure("patient counts that cannot be")
    known = reply.patients if reply.events is None else reply.events
    if any(patients > reply.patients or (events or 0) > known for patients, events in counts):
        return Failure("more training patients than patients")
    low, high = plan.bounds
    for p in reply.parts.values():
        said = p.moments()
        given = said.count > 0
        if not np.all((said.count >= 0) & (said.count <= p.patients) & (said.count == np.floor(said.count))):
            return Failure("more values than patients")
        slack = ROUNDING * np.maximum(abs(low), abs(high))
        if not np.all(np.where(given, (said.mean >= low - slack) & (said.mean <= high + slack), said.mean == 0)):
            return Failure("means that cannot be")
        widest = said.count * (high - low + slack) ** 2 / 4  # Popoviciu's inequality
        if not np.all((said.m2 >= 0) & (said.m2 <= widest * (1 + ROUNDING))):
            return Failure("sums of squares that cannot be")
    return None
