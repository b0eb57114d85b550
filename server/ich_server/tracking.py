"""A run's curves and figures for MLflow and TensorBoard, as files; from checkpoints while it runs, from the results at its end."""

import importlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ich_models.errors import ConfigurationError
from ich_models.files import read_facts
from ich_models.metrics import METRICS
from ich_server import checkpoint, results_file
from ich_server.results import Results
from ich_server.summary import by_type, metric

ROUND: Final = "ich.round"
"""Tag of an MLflow run: the last round that was logged."""
RUN: Final = "ich.run"
"""Tag by which a run is found again: study's hash, seed and folder."""

_WORDS: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
"""What MLflow must hear before it is imported: to tell nobody that it is used, and to write plain files."""


@dataclass(frozen=True)
class Point:
    """One number of one round."""

    name: str
    round: int
    value: float


@dataclass(frozen=True)
class Tracked:
    """One seed of a run: its curves so far, and its figures where it has ended."""

    study: str
    federation: str
    seed: int
    points: tuple[Point, ...]
    rounds: int
    figures: Mapping[str, float]
    settings: Mapping[str, str]


def read(run: Path) -> list[Tracked]:
    """What is known of every seed. Raises ConfigurationError where no round is finished yet."""
    results = results_file.read(run / "results.json") if (run / "results.json").exists() else None
    folders = sorted((run / "seeds").glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    found = [tracked for folder in folders if (tracked := _seed(folder, results)) is not None]
    if not found:
        hint = "name the folder that ich-simulate writes to, or the federation folder, when a round is done"
        raise ConfigurationError("no round is finished here", where=str(run), hint=hint)
    return found


def _seed(folder: Path, results: Results | None) -> Tracked | None:
    facts = _facts(folder)
    if facts is None:
        return None
    points = tuple(_points(facts["history"]))
    rounds = max((entry["round"] for entry in facts["history"]), default=0)
    seed = int(facts["seed"])
    known = results is not None and results.study.federation == facts["federation"] and seed in results.seeds
    return Tracked(
        study=results.study.name if results else facts["federation"][:16],
        federation=facts["federation"],
        seed=seed,
        points=points,
        rounds=rounds,
        figures=dict(_figures(results, results.seeds.index(seed))) if results and known else {},
        settings=_settings(results) if results and known else {},
    )


def _facts(folder: Path) -> dict[str, Any] | None:
    """Seed, study and history of a finished seed, or of its last checkpoint."""
    whole, last = folder / "study.safetensors", checkpoint.newest(folder)
    if whole.exists():
        found = read_facts(whole)
        return {name: found[name] for name in ("federation", "seed", "history")}
    if not last:
        return None
    found = read_facts(checkpoint.path_of(folder, last))
    return {"federation": found["federation"], "seed": found["seed"], "history": found["facts"]["history"]}


def _points(history: list[dict[str, Any]]) -> Iterator[Point]:
    for entry in history:
        number = int(entry["round"])
        for fold, loss in entry["losses"].items():
            if loss is not None:
                yield Point(f"loss/{_plain(fold)}", number, float(loss))
        if traffic := entry.get("bytes"):
            yield Point("bytes/sent", number, float(sum(sent for sent, _ in traffic.values())))
            yield Point("bytes/received", number, float(sum(received for _, received in traffic.values())))


def _figures(results: Results, place: int) -> Iterator[tuple[str, float]]:
    """Every metric of every hospital in every arm, as this seed has it."""
    for name, arm in results.arms.items():
        if by_type(arm):
            continue
        for hospital, figures in arm.hospitals.items():
            for each in METRICS:
                value = metric(figures, each).per_seed[place]
                if value is not None:
                    yield f"{name}/{_plain(hospital)}/{each}", value


def _settings(results: Results) -> dict[str, str]:
    study = results.study
    named = {
        "network": study.network,
        "strategy": study.strategy,
        "rounds": str(study.rounds),
        "outcome": study.outcome,
    }
    return {**named, **{f"version.{name}": said for name, said in results.software.items()}}


def _plain(name: str) -> str:
    """A fold's or a hospital's name as both trackers take it."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = "pip install 'ich-federation[tracking]'"
        raise ConfigurationError(
            f"this needs the package '{name.partition('.')[0]}', which is not installed", hint=hint
        ) from error


# --- MLflow -----------------------------------------------------------------------------------------------------------


def to_mlflow(found: list[Tracked], folder: Path, run: Path) -> None:
    """Into MLflow's file store in `folder`: an experiment per study, a run per seed; called again, what is new is added."""
    os.environ.update(_WORDS)
    mlflow = _library("mlflow")
    client = mlflow.MlflowClient(tracking_uri=folder.resolve().as_uri())
    for tracked in found:
        _log(mlflow, client, tracked, f"{tracked.federation}/{tracked.seed}/{run.resolve()}")


def _log(mlflow: Any, client: Any, tracked: Tracked, key: str) -> None:
    known = client.get_experiment_by_name(tracked.federation[:16])
    experiment = known.experiment_id if known else client.create_experiment(tracked.federation[:16])
    there = client.search_runs([experiment], filter_string=f"tags.`{RUN}` = '{key}'")
    run = there[0] if there else client.create_run(experiment, run_name=f"seed-{tracked.seed}", tags={RUN: key})
    done, now = int(run.data.tags.get(ROUND, "0")), int(time.time() * 1000)
    entity = mlflow.entities
    metrics = [entity.Metric(each.name, each.value, now, each.round) for each in tracked.points if each.round > done]
    if not any(name in run.data.metrics for name in tracked.figures):
        metrics += [entity.Metric(name, value, now, tracked.rounds) for name, value in tracked.figures.items()]
    for start in range(0, len(metrics), 1000):  # MLflow takes no more at once
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
    for name, value in tracked.settings.items():
        if name not in run.data.params:
            client.log_param(run.info.run_id, name, value)
    client.set_tag(run.info.run_id, "study", tracked.study)
    client.set_tag(run.info.run_id, ROUND, str(tracked.rounds))
    if tracked.figures:
        client.set_terminated(run.info.run_id)


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def to_tensorboard(found: list[Tracked], folder: Path) -> None:
    """As TensorBoard's event files, a folder per study and seed below `folder`, written anew each time."""
    _library("tensorboard")
    writing = _library("torch.utils.tensorboard")
    for tracked in found:
        own = folder / f"{_plain(tracked.study)}-{tracked.federation[:8]}-seed-{tracked.seed}"
        for old in own.glob("events.out.tfevents.*"):
            old.unlink()
        with writing.SummaryWriter(log_dir=str(own)) as writer:
            for each in tracked.points:
                writer.add_scalar(each.name, each.value, each.round)
            for name, value in tracked.figures.items():
                writer.add_scalar(name, value, tracked.rounds)
