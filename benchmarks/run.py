"""`make benchmark`: what the simulation and its folds cost, as ratios to rivals timed in the same run."""

import os

os.environ.update(  # before torch, flwr and Ray are imported: one thread, and no calls home
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    RAY_USAGE_STATS_ENABLED="0",
)

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import clock
import data
import folds
import overhead
import typer
import whole
from rich.console import Console
from rich.table import Table

from ich_models import console
from ich_models.files import write_json

EXAMPLE = "Example: python benchmarks/run.py --out runs/benchmarks --data ../shared/data"

app = console.application("")
Row = tuple[str, str, str]


@app.command(epilog=EXAMPLE)
def main(
    out: Annotated[Path, typer.Option(help="folder for benchmarks.json; made if needed")] = Path("runs/benchmarks"),
    data_folder: Annotated[
        Path, typer.Option("--data", help="folder with ist/IST.csv; without it, made-up tables of the same shapes")
    ] = Path("../shared/data"),
    repeats: Annotated[int, typer.Option(min=1, help="studies per engine, 8 rounds of each counted")] = 3,
    fold_rounds: Annotated[int, typer.Option(min=1, help="rounds of 50 models that are counted")] = 3,
    flower: Annotated[bool, typer.Option(help="measure Flower's own engine too (needs Ray)")] = True,
) -> None:
    """Measure what docs/benchmarks.md reports. About five minutes; figures are ratios to what ran beside them."""
    screen = Console(highlight=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="work-", dir=out)).resolve()
    try:
        case = data.find(data_folder.resolve(), folder)
        if not case.real:
            screen.print(f"no ist/IST.csv in {data_folder}: made-up tables of the same shapes", markup=False)
        loads = [os.getloadavg()]
        parts: dict[str, Callable[[], Any]] = {
            "rounds": lambda: overhead.measure(case, folder, repeats=repeats, flower=flower),
            "messages": lambda: overhead.measure_messages(case, folder, repeats=repeats),
            "folds": lambda: folds.measure(case, folder, rounds=fold_rounds),
            "whole study": lambda: whole.measure(case, folder),
        }
        found: dict[str, Any] = {}
        for name, part in parts.items():
            screen.print(f"measuring {name}", markup=False)
            found[name] = part()
            loads.append(os.getloadavg())
    finally:
        shutil.rmtree(folder)
    facts = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": "International Stroke Trial" if case.real else "made up",
        "machine": {**clock.machine(), "load averages": loads},
    }
    write_json(out / "benchmarks.json", json.loads(json.dumps({**facts, **found}, default=_plain)))
    table = Table("measured", "result", "target", box=None, pad_edge=False)
    for row in _rows(found):
        table.add_row(*row)
    screen.print(table)
    screen.print(f"written    {out / 'benchmarks.json'}", markup=False)


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(type(value).__name__)


def _rows(found: dict[str, Any]) -> Iterator[Row]:
    """The table's lines: medians with quartiles."""
    for engine, one in found["rounds"].items():
        target = {"in process, direct": "<= 1.25"}.get(engine, "")
        yield (
            f"round over bare loop: {engine}",
            f"{one['over bare']['cpu']} cpu, {one['over bare']['wall']} wall",
            target,
        )
        yield "  largest difference of weights", f"{one['largest difference of weights']:.1e}", ""
        for rival in (key for key in one if key.startswith("over in process")):
            yield f"  {engine} {rival}", f"{one[rival]:.3g} wall", ">= 10" if "direct" in rival else ""
        yield "  seconds per round, and to start", f"{one['round seconds']}, {one['start seconds']}", ""
    for engine, one in found["messages"].items():
        target = "<= 1" if engine == "in process, direct" else "<= 2"
        yield f"ms per message: {engine}", f"{one['cpu']} cpu, {one['wall']} wall", target
    for network, one in found["folds"].items():
        for how, target in (("in one pass", "<= 8"), ("one after another", "")):
            times = one[how]
            yield (
                f"{one['models']} {network} models over one: {how}",
                f"{times['cpu']} cpu, {times['wall']} wall",
                target,
            )
        yield "  largest difference of weights", f"{one['largest difference of weights']:.1e}", "<= 1e-6"
    for phase, seconds in found["whole study"].items():
        yield f"whole study, {phase}", f"{seconds:.2f} s", ""


if __name__ == "__main__":
    console.run(app)
