"""`ich-simulate`: several hospitals on one machine."""

import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ich_deploy import source
from ich_deploy.simulate import Engine, Options, Watch, simulate
from ich_models import console
from ich_models.errors import ConfigurationError
from ich_models.files import write_json
from ich_server.study import RoundReport
from ich_server.terminal import summary_table

EXAMPLE = "Example: ich-simulate examples/ist/death_or_dependency.yaml --data DIR --out runs/ist"

app = console.application("")


@app.command(epilog=EXAMPLE)
def simulation(
    federation: Annotated[Path, typer.Argument(help="the federation file", metavar="FEDERATION.yaml")],
    data: Annotated[Path, typer.Option(help="folder that the hospitals' relative paths start from")],
    out: Annotated[Path, typer.Option(help="folder for results, checkpoints and report; made if needed")],
    hospitals: Annotated[
        Path | None, typer.Option(help="folder of hospital files; by default hospitals/ beside the federation file")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="in place of training.seeds; may be given several times")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the study in OUT where it stopped")] = False,
    engine: Annotated[
        Engine, typer.Option(help="in-process, or Flower's own simulation engine on Ray (extra [ray])")
    ] = "in-process",
    serialise: Annotated[
        bool,
        typer.Option("--serialise", envvar="ICH_SERIALISE", help="put every message on the wire, as in a deployment"),
    ] = False,
) -> None:
    """Run a federated study with several hospitals on this machine, and write its results and report."""
    began = time.perf_counter()
    origin = source.locate(federation, data, hospitals)
    document, loaded = source.load(origin)
    for hospital in loaded:
        console.warn(hospital.warnings)
    seeds = _seeds(seed, document.value.training.seeds)
    study = document.value
    patients = sum(len(hospital.patients) for hospital in loaded)
    screen = Console(emoji=False, highlight=False)
    screen.print(
        f"study      {study.name}: {len(loaded)} hospitals, {patients:,} patients, {study.network.name}", markup=False
    )
    if images := [hospital.images for hospital in loaded if hospital.images]:
        found_images, asked = (
            sum(map(count, images)) for count in (lambda one: len(one.chosen), lambda one: one.asked)
        )
        caches = ", ".join(dict.fromkeys(one.cache for one in images))
        screen.print(
            f"images     {found_images:,} of {asked:,} patients, kept in {caches}", markup=False, soft_wrap=True
        )
    bar, watch = _progress(len(seeds) * study.training.rounds)
    with bar:
        found = simulate(origin, out, seeds, Options(engine, serialise, resume), watch)
    screen.print(summary_table(found))
    screen.print(f"report     {out / 'report.html'}", markup=False, soft_wrap=True)
    _write_run_facts(out / "run.json", began, engine, serialise=serialise)


def _seeds(given: list[int] | None, configured: list[int]) -> list[int]:
    seeds = given or configured
    if len(set(seeds)) != len(seeds) or any(not 0 <= seed < 2**32 for seed in seeds):
        raise ConfigurationError(f"--seed {seeds}: seeds must differ and lie within 0 and 4294967295")
    return seeds


def _progress(rounds: int) -> tuple[Progress, Watch]:
    """A bar over all rounds of all seeds, on the error stream so that the output stays clean."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(emoji=False, stderr=True, highlight=False),
    )
    task = bar.add_task("rounds", total=rounds, note="")

    def round_done(report: RoundReport) -> None:
        for reply in report.quarantined:
            bar.console.print(f"{reply.when}: {reply.hospital} set aside: {reply.reason}", markup=False)
        loss = "" if report.loss is None else f"loss {report.loss:.4f}"
        bar.update(task, advance=1, note=f"seed {report.seed}  {report.replied}/{report.hospitals} hospitals  {loss}")

    def arm_done(seed: int, arm: str) -> None:
        bar.update(task, note=f"seed {seed}  {arm} evaluated")

    return bar, Watch(round_done, arm_done)


def _write_run_facts(path: Path, began: float, engine: Engine, *, serialise: bool) -> None:
    """Times and machine: what differs between two runs with the same numbers."""
    facts: dict[str, Any] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 3),
        "command": sys.argv,
        "engine": engine,
        "serialised": serialise,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("ich-federation", "flwr", "torch", "numpy", "scikit-learn")},
    }
    write_json(path, facts)


def main() -> None:
    """Entry point of the console script."""
    console.run(app)


if __name__ == "__main__":
    main()
