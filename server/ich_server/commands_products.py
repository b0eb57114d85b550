"""The coordinator's commands on a finished run: report, export, log, dossier, verify."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ich_models import console
from ich_models import dossier as dossiers
from ich_models.errors import ConfigurationError, Problem
from ich_server import comparison, home, results, results_file, tracking
from ich_server import dossiers as making
from ich_server.export.write import export as write_export
from ich_server.report.compare import write_page
from ich_server.report.page import write_report
from ich_server.terminal import comparison_table, summary_table

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="folder that ich-simulate wrote, or the federation folder")
]


def register(app: typer.Typer) -> None:
    """Put the commands on the application."""
    for command, example in (
        (report, "ich-server report runs/demo/results"),
        (export, "ich-server export runs/demo/results --to exported --onnx --monai"),
        (log, "ich-server log runs/demo/results --tensorboard runs/tensorboard"),
        (dossier, "ich-server dossier runs/demo/results"),
        (verify, "ich-server verify demo.dossier.zip"),
    ):
        app.command(epilog=f"Example: {example}")(command)


def _say(word: str, text: object) -> None:
    Console(emoji=False, highlight=False, soft_wrap=True).print(f"{word:<10} {text}", markup=False)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="folder that ich-simulate wrote, or the federation folder")
    ],
    compare: Annotated[bool, typer.Option("--compare", help="two RUNs: the second against the first")] = False,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="of --compare; by default compared/ in the second RUN")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="that ich-client audit-privacy wrote: put it into the results")
    ] = None,
) -> None:
    """Write report.html and results.csv anew from results.json in the folder RUN.

    With --compare RUN1 RUN2: compare.html, compare.json and compare.csv instead, with what was set otherwise and the paired
    differences within each hospital that brought the same patients to both.
    """
    if compare and audit is None:
        _compare(runs, to)
        return
    if len(runs) != 1 or to is not None or compare:
        hint = "ich-server report RUN [--audit FILE], or --compare RUN1 RUN2 [--to DIR]"
        raise ConfigurationError("a report is of one run", hint=hint)
    (out,) = runs
    found = results_file.read(out / "results.json")
    if audit is not None:
        found = _with_audit(found, audit)
        results.write(found, out)
    results.write_csv(found, out)
    write_report(found, out)
    Console(emoji=False, highlight=False).print(summary_table(found))
    for name in ("report.html", "results.csv"):
        _say("written", out / name)


def _with_audit(found: results.Results, path: Path) -> results.Results:
    """Raises ConfigurationError if the study promises no privacy, or the file is another."""
    if found.privacy is None:
        raise ConfigurationError("the study promises no privacy", where=str(path), hint="leave --audit out")
    try:
        bound = results.AuditBound.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        hint = "give the file that ich-client audit-privacy --out wrote"
        raise ConfigurationError("not the finding of an audit", where=str(path), hint=hint) from error
    return found.model_copy(update={"privacy": found.privacy.model_copy(update={"audit": bound})})


def _compare(runs: list[Path], to: Path | None) -> None:
    if len(runs) != 2:
        raise ConfigurationError(f"{len(runs)} runs cannot be compared", hint="ich-server report --compare RUN1 RUN2")
    found = comparison.compare(*(results_file.read(run / "results.json") for run in runs))
    folder = to or runs[1] / "compared"
    comparison.write(found, folder)
    write_page(found, folder / "compare.html")
    screen = Console(emoji=False, highlight=False)
    screen.print(comparison_table(found))
    console.warn(map(Problem, comparison.warnings(found)))
    for name in ("compare.html", "compare.json", "compare.csv"):
        _say("written", folder / name)


def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="an empty folder, or one of an earlier export")],
    onnx: Annotated[bool, typer.Option("--onnx", help="also as ONNX, compared with the model by onnxruntime")] = False,
    monai: Annotated[bool, typer.Option("--monai", help="also as a MONAI bundle (TorchScript)")] = False,
    seed: Annotated[int | None, typer.Option(metavar="N", help="of several seeds; the first if left out")] = None,
) -> None:
    """Write the model of all hospitals for others: weights, preparation, model card, hashes; research use only.

    The folder is also a model for ich-client predict --model.
    """
    found = results_file.read(run / "results.json")
    if seed is not None and seed not in found.seeds:
        raise ConfigurationError(f"no seed {seed} in this run", hint=f"it has {', '.join(map(str, found.seeds))}")
    weights = home.open_home(run).weights if (run / home.SETTINGS).exists() else {}
    lines = write_export(run, found, to, seed=seed, as_onnx=onnx, as_monai=monai, weights=weights)
    for line in lines:
        digest, _, name = line.partition("  ")
        _say(digest[:8], to / name)
    if onnx:
        _say("verified", "onnxruntime gives the same probabilities, in a process without this package")
    _say("use", "research only; MODEL_CARD.md says what the model is and is not")


def log(
    run: RunArgument,
    mlflow: Annotated[Path | None, typer.Option(metavar="DIR", help="MLflow's file store")] = None,
    tensorboard: Annotated[Path | None, typer.Option(metavar="DIR", help="TensorBoard's log folder")] = None,
) -> None:
    """Write a run's curves and figures as files for MLflow and TensorBoard; also while it runs, as often as wanted.

    Nothing is sent anywhere. Losses and bytes of every round so far; at the end every hospital's figures.
    """
    if mlflow is None and tensorboard is None:
        raise ConfigurationError("nowhere to log to", hint="--mlflow DIR, --tensorboard DIR, or both")
    found = tracking.read(run)
    if mlflow is not None:
        tracking.to_mlflow(found, mlflow, run)
        _say("mlflow", f"{mlflow}: MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {mlflow}")
    if tensorboard is not None:
        tracking.to_tensorboard(found, tensorboard)
        _say("board", f"{tensorboard}: tensorboard --logdir {tensorboard}")
    for each in found:
        _say("logged", f"seed {each.seed}: {each.rounds} rounds, {len(each.figures)} figures")


def dossier(
    run: RunArgument,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="by default STUDY.dossier.zip in the run's folder")
    ] = None,
    audit: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="a hospital's export of its audit log; may be given several times"),
    ] = None,
) -> None:
    """Put a run's findings into one signed file: results, report, study, versions, hashes of the models.

    It is signed with the federation's CA; of a simulation with one that is made for it. Of an audit log only its head
    is taken over. Anybody can check the file with verify.
    """
    name = results_file.read(run / "results.json").study.name
    path = to or run / f"{name}.dossier.zip"
    manifest = making.write(run, path, audit or ())
    _say("written", path)
    for hospital, head in sorted(manifest.audits.items()):
        _say("audit", f"{hospital}: {head.lines} replies, head {head.replies[:16]}")
    _say("next", f"whoever has the file runs: ich-server verify {path.name}, or ich-client verify {path.name}")


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="that ich-server dossier wrote")],
    folder: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="the federation folder whose CA must have signed it")
    ] = None,
) -> None:
    """Check a dossier: every byte, the signature, the hashes, the study. Says in one line who signed what.

    A second line says whether the page is what this version makes of the results. Exit code 3 if anything is not as it was signed.
    """
    own = None if folder is None else (home.open_home(folder).pki / "ca.pem").read_bytes()
    found = dossiers.verify(file, own)
    _say("verified", dossiers.said(found, own is not None))
    if dossiers.REPORT in found.files:
        _say("page", _of_the_page(found))


def _of_the_page(found: dossiers.Verified) -> str:
    try:
        same = making.made_again(found)
    except ConfigurationError:
        return "not made again: another version wrote these results"
    if same:
        return "made again from the results: the same to the byte"
    return (
        "made again from the results, it differs: another version wrote it, or somebody by hand; results.json decides"
    )
