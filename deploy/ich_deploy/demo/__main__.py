"""`python -m ich_deploy.demo FOLDER`: generates the demo's hospitals and study, and says what to run next."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ich_deploy.demo import hospitals, tables
from ich_models import console

EXAMPLE = "Example: python -m ich_deploy.demo runs/demo"

app = console.application("")


class Kind(StrEnum):
    """What the hospitals hold."""

    TABLE = "table"
    CT = "ct"
    SLICES = "slices"
    MR = "mr"
    XRAY = "xray"


@app.command(epilog=EXAMPLE)
def demo(
    folder: Annotated[Path, typer.Argument(help="folder for the study and its data; made if needed", metavar="FOLDER")],
    kind: Annotated[
        Kind,
        typer.Option(
            help="tables alone; head CT with clinical text; labelled CT slices; MR with reports; radiographs with a table"
        ),
    ] = Kind.TABLE,
    seed: Annotated[
        int, typer.Option(min=0, help="other patients for another number; the same patients for the same")
    ] = tables.SEED,
) -> None:
    """Generate three hospitals with invented patients, and federated studies of them.

    Writes federation files, hospitals/*.yaml and data/*; with images also truth/*, which no hospital reads. Nobody in the
    data is real. A file that is there already with other content is not replaced: the command stops.
    """
    screen = Console(emoji=False, highlight=False, soft_wrap=True)
    if kind is Kind.TABLE:
        _tables(folder, seed, screen)
        studies: tuple[str, ...] = ("federation.yaml",)
    else:
        with screen.status(f"writing the images of {sum(hospitals.KINDS[kind].patients.values())} patients"):
            cohorts = hospitals.write(folder, kind.value, seed)  # plain text: workers cannot import __main__
        for name, cases in cohorts.items():
            scanned = sum(case.scanned for case in cases)
            where = folder / "data" / name
            screen.print(f"{name:<10} {len(cases)} patients, {scanned} with images   {where}", markup=False)
        studies = hospitals.KINDS[kind].studies
    files = ", ".join(str(folder / name) for name in (*studies, "hospitals/*.yaml"))
    screen.print(f"study      {files}", markup=False)
    arguments = (folder / studies[0], "--data", folder / "data", "--out", folder / "results")
    screen.print(f"next       ich-simulate {shlex.join(map(str, arguments))}", markup=False)


def _tables(folder: Path, seed: int, screen: Console) -> None:
    """The demo without images."""
    for name, patients in tables.write(folder, seed).items():
        known = [patient.mrs for patient in patients if patient.mrs is not None]
        poor = sum(grade >= 3 for grade in known) / len(known)
        file = folder / "data" / tables.TABLES[name][0]
        screen.print(f"{name:<10} {len(patients)} patients, {poor:.0%} with a poor outcome   {file}", markup=False)


if __name__ == "__main__":
    console.run(app)
