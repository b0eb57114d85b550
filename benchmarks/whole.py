"""Where the time of a whole study goes, from the tables to the report."""

import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from data import Case
from engines import plan_of
from flwr.app import Message
from flwr.clientapp import ClientApp

from ich_client.site import Site
from ich_deploy import source
from ich_deploy.arms import compare
from ich_deploy.grid import InProcessGrid
from ich_deploy.simulate import PARTITION, client_app
from ich_models.protocol import EVALUATE, THRESHOLD, TRAIN
from ich_server import results
from ich_server.report.page import write_report
from ich_server.study import run_study


class _Marked(InProcessGrid):
    """Remembers when the first message of each kind was sent."""

    def __init__(self, app: ClientApp, configs: dict[int, dict[str, str | int | float | bool]]) -> None:
        super().__init__(app, configs)
        self.first: dict[str, float] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As ever."""
        ours = list(messages)
        for message in ours:
            self.first.setdefault(message.metadata.message_type, time.perf_counter())
        return super().push_messages(ours)


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Seconds per phase of examples/ist/death_or_dependency.yaml."""
    marks = [("", time.perf_counter())]

    def mark(phase: str) -> None:
        marks.append((phase, time.perf_counter()))

    origin = case.study("whole", 49, {})
    federation, hospitals = source.load(origin)
    mark("loading")
    plan = plan_of(origin)
    configs: dict[int, dict[str, str | int | float | bool]] = {n + 1: {PARTITION: n} for n in range(len(hospitals))}
    grid = _Marked(client_app(origin, folder), configs)
    study = run_study(grid, plan, folder / "whole", hospitals=len(hospitals), resume=False, watch=lambda report: None)
    marks += [
        ("statistics", grid.first[TRAIN]),
        ("rounds", grid.first[THRESHOLD]),
        ("thresholds", grid.first[EVALUATE]),
    ]
    mark("evaluation")
    sites = {hospital.name: Site(plan, hospital, folder) for hospital in hospitals}
    found = {}
    for arm, what in compare(plan, sites, study):
        found[arm] = what
        mark(f"arm: {arm}")
    data = {
        hospital.name: results.HospitalData(
            n=len(hospital.patients), events=int(hospital.patients.labels.sum()), excluded=dict(hospital.excluded)
        )
        for hospital in hospitals
    }
    whole = results.assemble(federation.value, data, [plan.seed], [study], [found])
    results.write(whole, folder)
    write_report(whole, folder)
    mark("results and report")
    phases = {phase: end - start for (_, start), (phase, end) in pairwise(marks)}
    return {**phases, "all": marks[-1][1] - marks[0][1]}
