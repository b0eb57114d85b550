"""`python -m ich_deploy.demo FOLDER`: generates the demo's hospitals and study, and says what to run next."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ich_deploy.demo import tables
from ich_models import console

EXAMPLE = "Example: python -m ich_deploy.demo runs/demo"

app = console.application("")


@app.command(epilog=EXAMPLE)
def demo(
    folder: Annotated[Path, typer.Argument(help="folder for the study and its data; made if needed", metavar="FOLDER")],
    seed: Annotated[
        int, typer.Option(min=0, help="other patients for another number; the same patients for the same")
    ] = tables.SEED,
) -> None:
    """Generate three hospitals with intracerebral haemorrhage patients, and a federated study of them.

    Writes federation.yaml, hospitals/*.yaml and data/*. Nobody in the data is real. A file that is there already with
    other content is not replaced: the command stops.
    """
    cohorts = tables.write(folder, seed)
    screen = Console(highlight=False, soft_wrap=True)
    for name, patients in cohorts.items():
        known = [patient.mrs for patient in patients if patient.mrs is not None]
        poor = sum(grade >= 3 for grade in known) / len(known)
        file = folder / "data" / tables.TABLES[name][0]
        screen.print(f"{name:<10} {len(patients)} patients, {poor:.0%} with a poor outcome   {file}", markup=False)
    screen.print(f"study      {folder / 'federation.yaml'}, {folder / 'hospitals'}{'/'}*.yaml", markup=False)
    arguments = (folder / "federation.yaml", "--data", folder / "data", "--out", folder / "results")
    screen.print(f"next       ich-simulate {shlex.join(map(str, arguments))}", markup=False)


if __name__ == "__main__":
    console.run(app)
