"""A federated study on one of the engines, with a pause after each round in which something else can be timed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clock import Seconds, now
from flwr.serverapp import Grid

from ich_client.site import Site
from ich_deploy import source
from ich_deploy.grid import InProcessGrid, run_on_flower
from ich_deploy.simulate import PARTITION, client_app
from ich_deploy.source import Source
from ich_server.study import RoundReport, StudyResult, run_study
from ich_strategies.plan import Plan

DIRECT: Final = "in process, direct"
SERIALISED: Final = "in process, serialised"
FLOWER: Final = "Flower on Ray"


@dataclass
class Timed:
    """What a study took: each of its rounds (the first with all that comes before it), and the pause after each."""

    rounds: list[Seconds] = field(default_factory=list)
    pauses: list[Seconds] = field(default_factory=list)
    result: StudyResult | None = None

    @property
    def pairs(self) -> list[tuple[Seconds, Seconds]]:
        """Each round but the first, beside the pause after it."""
        return list(zip(self.rounds, self.pauses, strict=True))[1:]


def plan_of(origin: Source) -> Plan:
    """The study with its first seed."""
    federation = source.load(origin)[0].value
    return Plan(federation, federation.training.seeds[0])


def sites_of(origin: Source, folder: Path) -> list[Site]:
    """The hospitals at work."""
    plan = plan_of(origin)
    return [Site(plan, hospital, folder) for hospital in source.load(origin)[1]]


def grid_of(origin: Source, folder: Path, *, serialise: bool = False) -> InProcessGrid:
    """The in-process grid, as the simulation has it."""
    configs = {node + 1: {PARTITION: node} for node in range(len(source.load(origin)[1]))}
    return InProcessGrid(client_app(origin, folder), configs, serialise=serialise)


def run(origin: Source, engine: str, folder: Path, pause: Callable[[], object] = lambda: None) -> Timed:
    """Run a study; `pause` is called after each round and timed apart from it."""
    plan, nodes, timed = plan_of(origin), len(source.load(origin)[1]), Timed()
    mark = now()

    def watch(report: RoundReport) -> None:
        nonlocal mark
        assert not report.quarantined, report.quarantined
        end = now()
        timed.rounds.append(end - mark)
        pause()
        mark = now()
        timed.pauses.append(mark - end)

    def study(grid: Grid) -> StudyResult:
        return run_study(grid, plan, folder / "study", hospitals=nodes, resume=False, watch=watch)

    if engine == FLOWER:
        timed.result = run_on_flower(client_app(origin, folder), nodes, study)
    else:
        timed.result = study(grid_of(origin, folder, serialise=engine == SERIALISED))
    return timed
