"""What is learnt on generated hospitals: each study leave-one-hospital-out on fresh seeds, and the same with images mixed up."""

import os

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import typer
from flwr.app import Context
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from ich_client.app import build_app
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_deploy import source
from ich_deploy.demo import hospitals as demo
from ich_deploy.grid import InProcessGrid
from ich_deploy.source import Source
from ich_models import console
from ich_models.files import read_json, write_json
from ich_models.folds import LOHO
from ich_server.study import run_study
from ich_strategies.plan import Plan

EXAMPLE = "Example: python benchmarks/learning.py --seeds 101,102,103"
STUDIES = ("logistic", "image_only", "concat", "ichpro")
SHUFFLED = "ichpro, images of others"

app = console.application("")


def shuffled(members: Sequence[Hospital], seed: int) -> list[Hospital]:
    """Every patient with the image of another one of the hospital: what an image can tell is gone, and nothing else."""
    found = []
    for number, member in enumerate(members):
        rows = np.random.default_rng((seed, number)).permutation(len(member.patients))
        image = member.patients.image
        assert image is not None
        present = {**member.patients.present}
        if "image" in present:
            present["image"] = present["image"][rows]
        found.append(replace(member, patients=replace(member.patients, image=np.asarray(image)[rows], present=present)))
    return found


def areas(study: Path, data: Path, folder: Path, seed: int, *, mixed: bool) -> dict[str, float]:
    """AUROC of the model that never saw the hospital, at each hospital."""
    federation, members = source.load(Source(study, study.parent / "hospitals", data))
    if mixed:
        members = tuple(shuffled(members, seed))
    plan = Plan(federation.value, seed)
    sites = [Site(plan, member, folder / "hospitals") for member in members]

    def site_of(context: Context, _seed: int) -> Site:
        return sites[int(context.node_config["number"])]

    grid = InProcessGrid(build_app(site_of), {n + 1: {"number": n} for n in range(len(sites))})
    result = run_study(grid, plan, folder, hospitals=len(sites), resume=True, watch=lambda report: None)
    return {
        name: answer.metrics["auroc"][0] or 0.5
        for name, given in sorted(result.answers.items())
        for answer in given
        if answer.arm == LOHO
    }


def gain(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the paired differences with its 95 % interval (Student's t)."""
    differences = np.array(one) - np.array(other)
    width = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(differences.mean() - width), float(differences.mean() + width)


@app.command(epilog=EXAMPLE)
def main(
    seeds: Annotated[str, typer.Option(help="of the generated hospitals and of the training")] = "101,102,103",
    out: Annotated[Path, typer.Option(help="folder for learning.json; what is there already is not done again")] = Path(
        "runs/learning"
    ),
) -> None:
    """Generate head CT hospitals for each seed and train every study on them. About ten minutes per seed on two cores."""
    screen = Console(highlight=False, soft_wrap=True)
    path = out / "learning.json"
    found: dict[str, dict[str, dict[str, float]]] = read_json(path) if path.exists() else {}
    for seed in map(int, seeds.split(",")):
        folder = out.resolve() / f"seed-{seed}"
        if not (folder / "ichpro.yaml").exists():
            demo.write(folder, "ct", seed)
        for name in (*STUDIES, SHUFFLED):
            if str(seed) in found.get(name, {}):
                continue
            began = time.monotonic()
            study = folder / f"{name.split(',')[0]}.yaml"
            work = folder / "work" / name.replace(", ", "-").replace(" ", "-")
            each = areas(study, folder / "data", work, seed, mixed=name == SHUFFLED)
            found.setdefault(name, {})[str(seed)] = each
            write_json(path, found)
            text = " ".join(f"{hospital} {area:.3f}" for hospital, area in each.items())
            screen.print(f"seed {seed} {name:<26} {text}   {time.monotonic() - began:.0f} s", markup=False)
    _show(screen, found)


def _show(screen: Console, found: dict[str, dict[str, dict[str, float]]]) -> None:
    pairs: dict[str, list[float]] = {
        name: [area for each in by_seed.values() for area in each.values()] for name, by_seed in found.items()
    }
    table = Table("study", "mean AUROC", "gain over logistic (95 %)", "gain over mixed-up images", box=None)
    rows: list[Any] = []
    for name, values in pairs.items():
        over = [
            "" if name == other else "{:+.3f} ({:+.3f} to {:+.3f})".format(*gain(values, pairs[other]))
            for other in ("logistic", SHUFFLED)
        ]
        rows.append((name, f"{mean(values):.3f}", *over))
    for row in rows:
        table.add_row(*row)
    screen.print(table)
    screen.print(json.dumps({name: round(mean(values), 4) for name, values in pairs.items()}), markup=False)


if __name__ == "__main__":
    console.run(app)
