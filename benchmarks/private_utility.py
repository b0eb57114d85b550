"""What privacy costs on real hospitals: IST, logistic regression, leave-one-hospital-out, at several epsilons."""

import os

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Annotated, Any

import typer
from flwr.app import Context
from rich.console import Console
from rich.table import Table

from ich_client.app import build_app
from ich_client.ledger import spent
from ich_client.site import Site, ledger_in
from ich_client.tables import Hospital
from ich_deploy import source
from ich_deploy.arms import compare
from ich_deploy.grid import InProcessGrid
from ich_models import console
from ich_models.accounting import epsilon, programme
from ich_models.federation import Federation
from ich_models.files import read_json, write_json
from ich_models.folds import LOHO
from ich_server.study import run_study
from ich_strategies.plan import Plan

EXAMPLE = "Example: python benchmarks/private_utility.py --data DATA"
STUDY = Path(__file__).resolve().parent.parent / "examples/ist/death_or_dependency.yaml"
ROUNDS = 20
LEARNING_RATE, CLIPPED = 0.5, 5.0
"""Without privacy, and where gradients are clipped to 1; about the best of .5, 2, 5 and 10 for either."""

app = console.application("")


def study(base: Federation, hospitals: int, limit: float | None, per: str) -> Federation:
    """Twenty rounds of one step over all patients each; `limit`: epsilon, None without privacy."""
    whole: dict[str, Any] = base.model_dump(mode="json", by_alias=True)
    whole["network"] = {"name": "logistic", "bias": "zero"}
    step = {
        "rounds": ROUNDS,
        "epochs": 1,
        "batch": "all",
        "optimizer": {"name": "sgd", "lr": LEARNING_RATE if limit is None else CLIPPED},
    }
    whole["training"] = {"stages": [step]}
    whole["evaluation"] = {"threshold": 0.5, "small_cells": 0}
    if limit is not None:
        # all hospitals count alike, with the public number that is about theirs; delta is under one over it
        terms = {"epsilon": limit, "delta": 1e-3, "rate": 1.0, "patients": 300, "hospitals": hospitals}
        whole["privacy"] = {**terms, "per": per, "metrics": "exact"}
    return Federation.model_validate(whole)


def area(
    settings: Federation,
    members: Sequence[Hospital],
    seed: int,
    folder: Path,
    weights: Mapping[str, Path] = MappingProxyType({}),
) -> tuple[float, float]:
    """AUROC over all patients, each under the model that never saw the hospital; and the epsilon that a ledger holds.

    `weights`: files of published weights, by the name that the study has for them.
    """
    plan = Plan(settings, seed, weights)
    sites = [Site(plan, member, folder / "hospitals") for member in members]

    def site_of(context: Context, _seed: int) -> Site:
        return sites[int(context.node_config["number"])]

    grid = InProcessGrid(build_app(site_of), {n + 1: {"number": n} for n in range(len(sites))})
    result = run_study(grid, plan, folder, hospitals=len(sites), resume=False, watch=lambda report: None)
    found = dict(compare(plan, {site.hospital.name: site for site in sites}, result))[LOHO].pooled
    assert found is not None
    assert not result.quarantined
    charges = ledger_in(folder / "hospitals", members[0].name).read().charges
    return found.metrics["auroc"].value or 0.5, epsilon(spent(charges), 1e-3)


def summary(found: Mapping[str, Sequence[tuple[float, float]]]) -> Table:
    """What `area` said of the runs of each case, a line each."""
    table = Table("", "AUROC, mean of runs", "lowest to highest", "epsilon in the ledger", box=None)
    for name, runs in found.items():
        areas = [each[0] for each in runs]
        table.add_row(name, f"{mean(areas):.3f}", f"{min(areas):.3f} to {max(areas):.3f}", f"{runs[0][1]:.2f}")
    return table


@app.command(epilog=EXAMPLE)
def main(
    data: Annotated[Path, typer.Option(help="folder that holds ist/IST.csv")],
    out: Annotated[Path, typer.Option(help="folder for private_utility.json; what is there is not done again")] = Path(
        "runs/private_utility"
    ),
    hospitals: Annotated[int, typer.Option(help="the largest so many")] = 16,
    repeats: Annotated[int, typer.Option(help="runs of each, with noise of their own")] = 3,
) -> None:
    """Train on the largest hospitals of the International Stroke Trial without privacy and at epsilon 8, 3 and 1."""
    screen = Console(highlight=False, soft_wrap=True)
    document, members = source.load(source.locate(STUDY, data, None))
    members = tuple(sorted(sorted(members, key=lambda one: -len(one.patients))[:hospitals], key=lambda one: one.name))
    sizes = [len(one.patients) for one in members]
    screen.print(f"{len(members)} hospitals of {min(sizes)} to {max(sizes)} patients, {sum(sizes):,} in all")
    path = out / "private_utility.json"
    found: dict[str, list[tuple[float, float]]] = read_json(path) if path.exists() else {}
    cases: list[tuple[str, float | None]] = [("study", None)]
    cases += [(per, limit) for per in ("model", "study") for limit in (8.0, 3.0, 1.0)]
    for per, limit in cases:
        name = "without" if limit is None else f"epsilon {limit:g} per {per}"
        settings = study(document.value, len(members), limit, per)
        for repeat in range(len(found.get(name, [])), 1 if limit is None else repeats):
            began = time.monotonic()
            result = area(settings, members, 42, out / f"{name.replace(' ', '-')}-{repeat}")
            found.setdefault(name, []).append(result)
            write_json(path, found)
            noise = "" if limit is None else f", noise {programme(settings).sigma:g}"
            screen.print(f"{name}: {result[0]:.3f}, spent {result[1]:.2f}{noise}   {time.monotonic() - began:.0f} s")
    screen.print(summary(found))


if __name__ == "__main__":
    console.run(app)
