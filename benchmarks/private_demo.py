"""What privacy costs a small head on frozen encoders: demo hospitals with head CT, leave-one-hospital-out, at several epsilons."""

import os

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from private_utility import area, summary
from rich.console import Console
from safetensors.torch import save_file

from ich_client.app import build_app
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_deploy import source
from ich_deploy.demo.hospitals import write
from ich_deploy.grid import InProcessGrid
from ich_models import console
from ich_models.accounting import expected, programme
from ich_models.federation import Federation
from ich_models.files import read_json, write_json
from ich_models.folds import ALL
from ich_models.networks.options import TINY_VOLUME
from ich_models.protocol import WEIGHTS
from ich_server.study import run_study
from ich_strategies.plan import Plan

EXAMPLE = "Example: python benchmarks/private_demo.py"
ENCODER: Final = "demo-encoder"
BEFORE: Final = 7
"""Seed of the patients that the encoder learns from: others than those of the study, or no epsilon would hold for these."""
ROUNDS: Final = 10
NETWORKS: Final[dict[str, dict[str, Any]]] = {
    "image": {"name": "image_only", "dimensions": 3},
    "image and table": {"name": "concat", "modalities": ["image", "table"], "hidden": 8, "dropout": 0.0},
}
RATES: Final = {"image": (0.5, 0.5), "image and table": (0.5, 2.0)}
"""Learning rates without privacy, and where gradients are clipped to 1; of .5, 2 and 8, by the patients of `BEFORE`."""

app = console.application("")


def patients(folder: Path, seed: int) -> tuple[Federation, tuple[Hospital, ...]]:
    """The demo's study of images alone and its hospitals, written if they are not there."""
    if not (folder / "demo.json").exists():
        write(folder, "ct", seed)
    document, members = source.load(
        source.Source(folder / "image_only.yaml", folder / "hospitals", folder / "data", folder / "cache")
    )
    return document.value, tuple(replace(one, warnings=()) for one in members)


def encoder(base: Federation, members: Sequence[Hospital], folder: Path) -> Path:
    """An image encoder that three hospitals have trained together, as a file of published weights."""
    path = folder / "encoder.safetensors"
    if not path.exists():
        evaluation = base.evaluation.model_copy(update={"leave_one_hospital_out": False, "test": 0.2})
        plan = Plan(base.model_copy(update={"evaluation": evaluation}), BEFORE)
        sites = [Site(plan, member, folder / "hospitals") for member in members]
        grid = InProcessGrid(
            build_app(lambda context, _: sites[int(context.node_config["number"])]),
            {n + 1: {"number": n} for n in range(len(sites))},
        )
        result = run_study(grid, plan, folder, hospitals=len(sites), resume=False, watch=lambda report: None)
        tensors = plan.weights.unpack(torch.from_numpy(result.of([ALL])[WEIGHTS]))
        inside = "image.net."
        save_file(
            {name.removeprefix(inside): one[0].clone() for name, one in tensors.items() if name.startswith(inside)},
            path,
        )
    return path


def study(base: Federation, head: str, path: Path, limit: float | None, lr: float) -> Federation:
    """Ten rounds of two steps of a head on the frozen encoder; `limit`: epsilon of the whole study, None without privacy."""
    pinned = {"name": ENCODER, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    whole: dict[str, Any] = base.model_dump(mode="json", by_alias=True, exclude_unset=True)
    whole["network"] = {**NETWORKS[head], "bias": "zero", "image": {**TINY_VOLUME, "frozen": True, "weights": pinned}}
    step = {"rounds": ROUNDS, "epochs": 2, "batch": "all", "optimizer": {"name": "sgd", "lr": lr}}
    if limit is not None:
        step["epochs"] = 1  # of which each is two steps, at a rate of a half
        # delta is under one over the patients; all hospitals count alike
        terms = {"epsilon": limit, "delta": 1e-3, "rate": 0.5, "patients": 150, "hospitals": 3, "metrics": "exact"}
        whole["privacy"] = terms
    whole["training"] = {"stages": [step]}
    whole["evaluation"] = {"threshold": 0.5, "small_cells": 0}
    return Federation.model_validate(whole)


@app.command(epilog=EXAMPLE)
def main(
    out: Annotated[
        Path, typer.Option(help="folder for the demo, the encoder and private_demo.json; nothing is done twice")
    ] = Path("runs/private_demo"),
    repeats: Annotated[int, typer.Option(help="runs of each, with noise of their own")] = 5,
    seed: Annotated[int, typer.Option(help="of the demo's patients")] = 42,
    tune: Annotated[
        str, typer.Option(help="learning rates to try, such as '.1 .5 2'; by default those of the file")
    ] = "",
) -> None:
    """Train heads on a frozen encoder without privacy and at epsilon 8, 3 and 1 of the whole study. Some minutes."""
    screen = Console(highlight=False, soft_wrap=True)
    path = encoder(*patients(out / f"demo-{BEFORE}", BEFORE), out / "encoder")
    base, members = patients(out / f"demo-{seed}", seed)
    kept = out / f"private_demo{f'-{seed}' if seed != 42 else ''}.json"
    found: dict[str, list[tuple[float, float]]] = read_json(kept) if kept.exists() else {}
    for head, rates in RATES.items():
        for limit in (None, 8.0, 3.0, 1.0):
            for lr in map(float, tune.split()) if tune else [rates[limit is not None]]:
                settings = study(base, head, path, limit, lr)
                name = (
                    f"{head}, {'without' if limit is None else f'epsilon {limit:g}'}{f', rate {lr:g}' if tune else ''}"
                )
                for repeat in range(len(found.get(name, [])), 1 if limit is None else repeats):
                    began = time.monotonic()
                    folder = out / f"{name.replace(' ', '-')}-{seed}-{repeat}"
                    result = area(settings, members, 42, folder, {ENCODER: path})
                    found.setdefault(name, []).append(result)
                    write_json(kept, found)
                    screen.print(f"{name}: {result[0]:.3f}, spent {result[1]:.2f}   {time.monotonic() - began:.0f} s")
                if limit is not None:
                    weights, plan = Plan(settings, 42, {ENCODER: path}).weights.size, programme(settings)
                    share = expected(plan, 150, weights).share
                    screen.print(
                        f"{name}: noise {plan.sigma:g}, {weights} weights, a step's noise {share:.2g} of the longest step"
                    )
    screen.print(summary(found))


if __name__ == "__main__":
    console.run(app)
