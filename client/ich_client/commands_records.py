"""The hospital's commands on agreement and record: approve, withdraw, audit, verify, purge."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ich_client import audit as log
from ich_client import check, policy
from ich_client import home as homes
from ich_client.commands_privacy import summary
from ich_client.home import Home
from ich_models import dossier as dossiers
from ich_models import privacy_words
from ich_models.errors import ConfigurationError, DataError
from ich_models.files import write_json
from ich_models.hash_chain import Entry
from ich_models.protocol import PACKAGE, PROTOCOL
from ich_strategies.plan import Plan

HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="the hospital's folder")]
YesOption = Annotated[bool, typer.Option("--yes", help="do not ask")]
HERE = Path()
START_OF_LOG = "nothing has left"


def register(app: typer.Typer) -> None:
    """Put the commands on the application."""
    app.command(epilog="Example: ich-client approve --home /srv/ich")(approve)
    app.command(epilog="Example: ich-client withdraw --home /srv/ich")(withdraw)
    app.command(epilog="Example: ich-client audit --export 2027-03.json")(audit)
    app.command(epilog="Example: ich-client verify demo.dossier.zip --home /srv/ich")(verify)
    app.command(epilog="Example: ich-client purge --home /srv/ich")(purge)


def _screen() -> Console:
    return Console(emoji=False, highlight=False, soft_wrap=True)


def _say(word: str, text: object) -> None:
    _screen().print(f"{word:<11} {text}", markup=False)


# --- agreement --------------------------------------------------------------------------------------------------------


def approve(folder: HomeOption = HERE, yes: YesOption = False) -> None:
    """Show what would run here, everything that would be sent and this hospital's limits; ask; record the answer.

    The approval is of exactly this study and this version: after any change of either the client asks again.
    """
    opened = homes.open_home(folder)
    limits = homes.load_mapping(opened).value.limits
    _show(opened, limits.model_dump())
    if not yes and not typer.confirm("approve?"):
        raise ConfigurationError("not approved", hint="nothing was recorded; the server is refused (code APPROVAL)")
    policy.approve(opened.audit / "approvals.jsonl", opened.facts.federation, limits)
    _say("approved", f"{opened.facts.study}, hash {opened.facts.federation}, version {PACKAGE}")


def _show(opened: Home, limits: dict[str, Any]) -> None:
    asked = check.asked(opened.federation.value)
    k = max(opened.federation.value.evaluation.small_cells, int(limits["small_cells"]))
    for word, text in (
        ("study", f"{asked.federation}: {asked.description or 'no description'}"),
        ("hash", asked.hash),
        ("server", opened.facts.address),
        (
            "runs",
            f"the code that is installed here, version {PACKAGE}, protocol {PROTOCOL}; nothing is loaded from afar",
        ),
        ("outcome", asked.outcome),
        ("network", f"{asked.network} on {len(asked.columns)} columns: {', '.join(asked.columns)}"),
        *([] if asked.text is None else [("text", asked.text)]),
        ("strategy", f"{asked.strategy}, {asked.rounds} rounds, seeds {', '.join(map(str, asked.seeds))}"),
        ("small cells", f"k = {k}: smaller counts do not leave (docs/egress.md)"),
        *(_privacy(opened) if asked.privacy else [("privacy", "no differential privacy in this study")]),
        ("limits", ", ".join(f"{name}: {value}" for name, value in limits.items() if name != "small_cells")),
    ):
        _say(word, text)
    _say("sent", "")
    for each in asked.sent:
        _say("", f"{each.when}: {each.what}")


def _privacy(opened: Home) -> list[tuple[str, str]]:
    """What the study promises, and what the ledger knows."""
    federation = opened.federation.value
    plan = Plan(federation, federation.training.seeds[0])
    spent = summary(opened.ledger)
    lines = [*privacy_words.told(federation, plan.weights.size), ("spent", spent), ("ledger", opened.ledger.said)]
    return lines + [("warning", problem.message) for problem in privacy_words.warnings(federation, plan.weights.size)]


def withdraw(folder: HomeOption = HERE) -> None:
    """Take the approval back: from the next task on the server is refused (code APPROVAL), also while the client runs."""
    opened = homes.open_home(folder)
    policy.withdraw(opened.audit / "approvals.jsonl", opened.facts.federation)
    _say("withdrawn", f"{opened.facts.study}, hash {opened.facts.federation}")


# --- record -----------------------------------------------------------------------------------------------------------


def audit(
    folder: HomeOption = HERE,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write everything to FILE, for the hospital's records")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="every line as it was written")] = False,
) -> None:
    """Show what left this hospital, when and how large, and verify that the log was not changed.

    Keep an export elsewhere now and then: only that shows a log that was written anew as a whole.
    """
    opened = homes.open_home(folder)
    whole_log = list(log.entries(opened.audit / "log.jsonl"))
    lines = [entry for entry in whole_log if entry.content["event"] == "reply"]  # the others are the ledger's anchors
    approvals = list(log.entries(opened.audit / "approvals.jsonl"))
    whole = {
        "hospital": opened.name,
        "replies": [_line(entry) for entry in lines],
        "approvals": [_line(entry) for entry in approvals],
        "ledger": [_line(entry) for entry in whole_log if entry.content["event"] != "reply"],
        "heads": {"replies": _head(whole_log), "approvals": _head(approvals)},
    }
    if as_json:
        sys.stdout.write(json.dumps(whole, indent=2) + "\n")
        return
    if export is not None:
        write_json(export, whole)
        _say("written", export)
    else:
        _screen().print(_table(lines))
    sent = sum(log.size(entry.content) for entry in lines)
    _say("verified", f"{len(lines)} replies, {sent:,} bytes of numbers; {len(approvals)} approvals and withdrawals")
    _say("head", _head(whole_log))


def _line(entry: Entry) -> dict[str, Any]:
    return {"number": entry.number, "time": entry.time, "hash": entry.hash, "content": entry.content}


def _head(lines: Sequence[Entry]) -> str:
    return lines[-1].hash if lines else START_OF_LOG


def _table(lines: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("when", "asked", "seed", "round", "folds", "left"):
        table.add_column(title, overflow="fold")
    for entry in lines:
        said = entry.content
        left = said["message"]["code"] if said["reply"] == "Refusal" else said["reply"]
        numbers = log.size(said)
        cells = (
            entry.time[:19],
            said.get("task") or "?",
            said.get("seed", ""),
            said.get("round", ""),
            ", ".join(said.get("folds", [])),
            f"{left}, {numbers:,} bytes" if numbers else left,
        )
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a study's dossier, that ich-server dossier wrote")],
    folder: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="the hospital's folder, whose CA must have signed it")
    ] = None,
) -> None:
    """Check a study's dossier: every byte, the signature, the hashes, the study. Says in one line who signed what.

    With the hospital's folder also that its own CA signed, and that the record of what left this hospital is the one that
    the dossier names. Exit code 3 if anything is not as it was signed.
    """
    opened = None if folder is None else homes.open_home(folder)
    found = dossiers.verify(file, None if opened is None else opened.authority.encode())
    _say("verified", dossiers.said(found, opened is not None))
    if opened is not None and opened.name in found.manifest.audits:
        _check_head(opened, found.manifest.audits[opened.name].replies)


def _check_head(opened: Home, head: str) -> None:
    """Say that the dossier's head stands in this hospital's own log. Raises DataError if it does not."""
    lines = list(log.entries(opened.audit / "log.jsonl"))
    if head not in {START_OF_LOG, *(entry.hash for entry in lines)}:
        hint = "compare the log with the hospital's last export; tell the coordinator"
        raise DataError("the dossier names a record that is not this hospital's", where=str(opened.audit), hint=hint)
    _say("record", f"the audit log of {opened.name} has the head that the dossier names")


def purge(folder: HomeOption = HERE, yes: YesOption = False) -> None:
    """Remove what the client keeps of a study: state between rounds, models, prepared images. Key, audit log, ledger and mapping stay."""
    opened = homes.open_home(folder)
    there = [path for path in (opened.state, opened.models, opened.cache) if path.exists()]
    if not there:
        _say("nothing", "there is nothing to remove")
        return
    if not yes and not typer.confirm(f"remove {' and '.join(map(str, there))}?"):
        raise ConfigurationError("nothing was removed", hint="--yes removes without asking")
    for path in there:
        shutil.rmtree(path)
        _say("removed", path)
