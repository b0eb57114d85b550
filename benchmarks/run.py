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
from engines import DIRECT, SERIALISED
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
            "messages": lambda: overhead.measure_messages(case, folder, repeats=repeats, flower=flower),
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
        yield f"round over bare loop, {engine}", _clocks(one["over bare"]), "<= 1.25" if engine == DIRECT else ""
        yield (
            "    largest difference of weights from the bare loop's",
            f"{one['largest difference of weights']:.1e}",
            "",
        )
        yield "    seconds per round", str(one["round seconds"]), ""
        yield "    seconds before round 1", str(one["start seconds"]), ""
        if "rounds over direct" in one:
            yield "    over in process, direct", f"{one['rounds over direct']:.3g}", ">= 10"
            yield "    9 rounds with start over in process, direct", f"{one['9 rounds with start over direct']:.3g}", ""
    for engine, one in found["messages"].items():
        yield f"ms per message, {engine}", _clocks(one), {DIRECT: "<= 1", SERIALISED: "<= 2"}.get(engine, "")
    for network, one in found["folds"].items():
        yield f"{one['models']} {network} models over one, in one pass", _clocks(one["in one pass"]), "<= 8"
        yield "    one after another", _clocks(one["one after another"]), ""
        yield "    largest difference of weights", f"{one['largest difference of weights']:.1e}", "<= 1e-6"
    for phase, seconds in found["whole study"].items():
        yield f"whole study, {phase}", f"{seconds:.2f} s", ""


def _clocks(figures: dict[str, clock.Spread]) -> str:
    return ", ".join(f"{name} {figure}" for name, figure in sorted(figures.items()))


if __name__ == "__main__":
    console.run(app)
