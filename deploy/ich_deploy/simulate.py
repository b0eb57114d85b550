"""A whole study on one machine: the ClientApp and round engine of a deployment, every arm, every seed, the results."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from ich_client.app import build_app
from ich_client.site import LEDGERS, REPLIES, Site
from ich_client.tables import Hospital
from ich_deploy import source
from ich_deploy.arms import compare, cross_site
from ich_deploy.grid import InProcessGrid, run_on_flower
from ich_deploy.pictures import pictures
from ich_deploy.source import Source
from ich_deploy.without_privacy import WITHOUT_PRIVACY, without_privacy
from ich_models import accounting
from ich_models.errors import ConfigurationError, RunError
from ich_models.federation import Federation
from ich_models.files import read_json, write_json
from ich_models.metrics import Estimate
from ich_models.protocol import Answer
from ich_server import results
from ich_server.handover import keep
from ich_server.report import photos
from ich_server.report.page import write_report
from ich_server.results import ArmFound, Matrix
from ich_server.study import RoundReport, StudyResult, run_study
from ich_strategies.plan import Plan

Engine = Literal["in-process", "flower"]

PARTITION = "partition-id"
"""Flower's name, in a node's configuration, for the number that tells simulated nodes apart."""


@dataclass(frozen=True)
class Options:
    """How a simulation runs; none of it changes a number."""

    engine: Engine = "in-process"
    serialise: bool = False
    """Put every message on the wire (in-process engine; Flower's own always does)."""
    resume: bool = False


@dataclass(frozen=True)
class Watch:
    """What a simulation tells while it runs: each round, and each arm (seed, name) when it is done."""

    round_done: Callable[[RoundReport], None] = lambda report: None
    arm_done: Callable[[int, str], None] = lambda seed, arm: None


def simulate(origin: Source, out: Path, seeds: Sequence[int], options: Options, watch: Watch) -> results.Results:
    """Run the study of every seed and write `results.json`, `results.csv`, `report.html` and the models to `out`.

    Raises ConfigurationError, DataError or RunError. With `options.resume` the finished parts of an earlier run in
    `out` are taken over, and the numbers are those of an uninterrupted run.
    """
    federation, hospitals = source.load(origin)
    if federation.value.privacy is not None:
        _check_plan(federation.value, seeds)
        if not options.resume:
            _forget(out)
    studies: list[StudyResult] = []
    found: list[dict[str, ArmFound]] = []
    matrices: list[Matrix] = []
    for seed in seeds:
        plan = Plan(federation.value, seed, _weights(hospitals))
        folder = out / "seeds" / f"seed-{seed}"
        studies.append(_study(origin, plan, out, folder, options, watch))
        keep(plan, studies[-1], out / "model" / f"seed-{seed}")
        arms, matrix = _arms(plan, _sites(origin, seed, out), studies[-1], folder / "arms.json", options, watch)
        found.append(arms)
        matrices += [matrix] if matrix else []
    whole = results.assemble(federation.value, seeds, studies, found, matrices)
    results.write(whole, out)
    photos.keep(pictures(_sites(origin, seeds[0], out), studies[0], origin.federation), out)
    write_report(whole, out)
    return whole


def _check_plan(federation: Federation, seeds: Sequence[int]) -> None:
    """Raise ConfigurationError for a private study that no noise makes private, or that would run more than it planned."""
    planned = accounting.programme(federation).seeds
    if len(seeds) > planned:
        message = f"{len(seeds)} seeds, and the noise is planned for {planned}"
        raise ConfigurationError(message, hint="write them as training.seeds: each is one more study to pay for")


def _forget(out: Path) -> None:
    """A simulation that begins anew spends what nobody has spent before: its ledgers are of the study in `out` alone.

    So are its replies: with those of an earlier run its first rounds would cost nothing, and have that run's noise.
    """
    hospitals = out / "hospitals"
    for folder in (hospitals / LEDGERS, *hospitals.glob(f"*/seed-*/*/{REPLIES}")):
        shutil.rmtree(folder, ignore_errors=True)


# --- the federated study, on either engine ----------------------------------------------------------------------------


def _study(origin: Source, plan: Plan, out: Path, folder: Path, options: Options, watch: Watch) -> StudyResult:
    hospitals = source.load(origin)[1]
    names = {node + 1: hospital.name for node, hospital in enumerate(hospitals)}

    def run(grid: Grid, names: Mapping[int, str]) -> StudyResult:
        return run_study(
            grid,
            plan,
            folder,
            hospitals=len(hospitals),
            resume=options.resume,
            watch=watch.round_done,
            names=lambda: names,
        )

    if options.engine == "flower":
        return run_on_flower(client_app(origin, out), len(hospitals), lambda grid: run(grid, {}))
    configs = {node: {PARTITION: node - 1} for node in names}
    return run(InProcessGrid(client_app(origin, out), configs, serialise=options.serialise), names)


def client_app(origin: Source, out: Path) -> ClientApp:
    """The hospitals' ClientApp; which hospital it is follows from the node. Usable in any process that sees the files."""

    def site_of(context: Context, seed: int) -> Site:
        return _sites(origin, seed, out)[int(context.node_config[PARTITION])]

    return build_app(site_of)


@lru_cache(maxsize=8)
def _sites(origin: Source, seed: int, out: Path) -> tuple[Site, ...]:
    """Every hospital at work, sorted by name, made once per process; they share one plan, hence one network."""
    federation, hospitals = source.load(origin)
    plan = Plan(federation.value, seed, _weights(hospitals))
    return tuple(Site(plan, hospital, out / "hospitals") for hospital in hospitals)


def _weights(hospitals: Sequence[Hospital]) -> dict[str, Path]:
    """Published weights, from whichever hospital names them: the study pins what is in them."""
    return {name: path for hospital in hospitals for name, path in hospital.weights.items()}


# --- the arms ---------------------------------------------------------------------------------------------------------


def _arms(
    plan: Plan, sites: Sequence[Site], study: StudyResult, path: Path, options: Options, watch: Watch
) -> tuple[dict[str, ArmFound], Matrix]:
    """Every arm's evaluations and the cross-site matrix, kept in `path` so that a resumed run need not train them again."""
    about = {"federation": plan.hash, "seed": plan.seed, "data": {site.hospital.name: _digest(site) for site in sites}}
    if options.resume and path.exists():
        return _kept_arms(path, about)
    found: dict[str, ArmFound] = {}
    by_name = {site.hospital.name: site for site in sites}
    for arm, whole in compare(plan, by_name, study):
        found[arm] = whole
        watch.arm_done(plan.seed, arm)
    if plan.federation.evaluation.comparisons.without_privacy:
        found[WITHOUT_PRIVACY] = without_privacy(plan, [site.hospital for site in sites], path.parent / WITHOUT_PRIVACY)
        watch.arm_done(plan.seed, WITHOUT_PRIVACY)
    arms = {
        arm: {
            "hospitals": {
                name: Answer.of(arm, evaluation).model_dump() for name, evaluation in whole.hospitals.items()
            },
            "pooled": Answer.of(arm, whole.pooled).model_dump() if whole.pooled else None,
            "reference": whole.reference,
            "differences": {name: astuple(one) for name, one in whole.differences.items()},
        }
        for arm, whole in found.items()
    }
    matrix: Matrix = {}
    evaluation = plan.federation.evaluation
    if evaluation.cross_site and evaluation.comparisons.local:
        matrix = cross_site(plan, by_name, evaluation.comparisons.local, found["local"])
        watch.arm_done(plan.seed, "cross-site matrix")
    told = {trained: {tested: astuple(one) for tested, one in row.items()} for trained, row in matrix.items()}
    write_json(path, {**about, "arms": arms, "cross_site": told})
    return found, matrix


def _kept_arms(path: Path, about: Mapping[str, Any]) -> tuple[dict[str, ArmFound], Matrix]:
    """What an earlier run found of the same study on the same data. Raises RunError if it was another."""
    again = "start the study anew, without --resume"
    try:
        kept = read_json(path)
        changed = [name for name, value in about.items() if kept[name] != value]
        if changed:
            raise RunError(f"an earlier run had another {' and '.join(changed)}", where=str(path), hint=again)
        arms = {
            arm: ArmFound(
                {name: Answer.model_validate(answer).evaluation() for name, answer in one["hospitals"].items()},
                Answer.model_validate(one["pooled"]).evaluation() if one["pooled"] else None,
                one["reference"],
                {name: Estimate(*three) for name, three in one["differences"].items()},
            )
            for arm, one in kept["arms"].items()
        }
        rows = kept["cross_site"].items()
        return arms, {trained: {tested: Estimate(*three) for tested, three in row.items()} for trained, row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"the file cannot be read ({type(error).__name__})", where=str(path), hint=again) from error


def _digest(site: Site) -> str:
    """SHA-256 of a hospital's patients; it stays on this machine."""
    patients = site.hospital.patients
    content = hashlib.sha256("\n".join(patients.ids).encode())
    content.update(patients.table.tobytes())
    content.update(patients.labels.tobytes())
    if site.hospital.images is not None:
        content.update("\n".join(f"{one.patient} {one.key}" for one in site.hospital.images.chosen).encode())
    if patients.targets is not None:
        content.update(patients.targets.tobytes())
    return content.hexdigest()
