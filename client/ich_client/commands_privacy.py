"""The hospital's commands on privacy: what its patients have borne (ledger), and whether the promise holds (audit-privacy)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ich_client import home as homes
from ich_client.commands_join import HERE, HomeOption
from ich_client.home import Home
from ich_client.ledger import Book, Charge, Ledger, anchors, spent
from ich_client.privacy_audit import audit
from ich_models import accounting
from ich_models.accounting import epsilon
from ich_models.errors import ConfigurationError, Problem, RunError
from ich_models.files import write_json


def register(app: typer.Typer) -> None:
    """Put the commands on the application."""
    app.command(epilog="Example: ich-client ledger --home /srv/ich")(ledger)
    app.command(epilog="Example: ich-client audit-privacy --home /srv/ich --out privacy-audit.json")(audit_privacy)


@dataclass(frozen=True)
class Borne:
    """What the patients who bore most have borne: epsilon at `delta`, and the charges it is made of."""

    epsilon: float
    delta: float
    charges: tuple[Charge, ...]


def borne(book: Book) -> Borne:
    """The worst of all groups of patients; nothing where nothing was spent."""
    found = [Borne(0.0, 0.0, ())]
    for cohort in book.cohorts:
        charges = book.of(cohort)
        if charges:
            delta = min(charge.delta for charge in charges)
            found.append(Borne(epsilon(spent(charges), delta), delta, charges))
    return max(found, key=lambda one: one.epsilon)


def summary(ledger: Ledger) -> str:
    """What was spent, in a line. Raises DataError if the ledger was changed."""
    book = ledger.read()
    found = borne(book)
    if not found.charges:
        return "nothing so far"
    studies = len({charge.study for charge in found.charges})
    return f"epsilon {found.epsilon:.2f} (delta {found.delta:g}) by {studies} studies, of the patients who bore most"


def ledger(
    folder: HomeOption = HERE,
    verify: Annotated[bool, typer.Option("--verify", help="say only whether ledger and audit log agree")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
) -> None:
    """Show what private studies have taken from this hospital's patients, what this one will, and what is left.

    Every private step is in it before it is made. The audit log knows each line: a ledger that was deleted, rolled back or
    changed by itself is told here (exit code 3), and no private round is trained until it is back.
    """
    opened = homes.open_home(folder)
    book = opened.ledger.read()
    known = len(list(anchors(opened.ledger.anchor)))
    if verify:
        _say(
            "verified", f"{book.lines} lines; this folder's audit log knows {known} of them, and they are as they were"
        )
        _say("head", book.head)
        return
    limit = homes.load_mapping(opened).value.limits.epsilon
    if as_json:
        sys.stdout.write(json.dumps(_whole(opened, book, limit), indent=2) + "\n")
        return
    found = borne(book)
    _say("ledger", opened.ledger.said)
    _say("spent", summary(opened.ledger))
    _say("limit", "none" if limit is None else f"epsilon {limit:g} for all studies together (limits.epsilon)")
    if limit is not None:
        _say(
            "left",
            f"epsilon {max(0.0, limit - found.epsilon):.2f}, at the least: epsilons of several studies add up to less",
        )
    for word, text in _study(opened, book):
        _say(word, text)
    if book.charges:
        Console(emoji=False, highlight=False, soft_wrap=True).print(_history(book.charges))
    _say("verified", f"{book.lines} lines, {known} of them in this folder's audit log; head {book.head}")


def _study(opened: Home, book: Book) -> list[tuple[str, str]]:
    """What the study of this folder plans, and has spent."""
    federation = opened.federation.value
    if federation.privacy is None:
        return [("study", f"{federation.name} promises no privacy, and is not in the ledger")]
    plan = accounting.programme(federation)
    done = spent([charge for charge in book.charges if charge.study == federation.hash])
    lines = [("planned", f"epsilon {plan.study:.2f} (delta {plan.delta:g}) for study {federation.name}")]
    return [*lines, ("of which", f"epsilon {epsilon(done, plan.delta):.2f} is spent")] if done else lines


def _history(charges: Sequence[Charge]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("when", "study", "seed", "what", "models", "noise", "chance", "steps", "settled"):
        table.add_column(title, overflow="fold")
    for charge in charges:
        row = charge.reserved
        settled = "no: all of it counts" if charge.settled is None else f"{charge.settled:,}"
        numbers = (f"{row.sigma:g}", f"{row.rate:g}", f"{row.steps:,}")
        cells = (charge.time[:19], charge.study[:12], charge.seed, charge.what, len(charge.folds), *numbers, settled)
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def _whole(opened: Home, book: Book, limit: float | None) -> dict[str, Any]:
    found = borne(book)
    federation = opened.federation.value
    plan = None if federation.privacy is None else accounting.programme(federation)
    mine = [charge for charge in book.charges if charge.study == federation.hash]
    return {
        "hospital": opened.name,
        "spent": {"epsilon": found.epsilon, "delta": found.delta},
        "limit": limit,
        "study": None
        if plan is None
        else {
            "federation": federation.hash,
            "planned": plan.study,
            "spent": epsilon(spent(mine), plan.delta),
            "delta": plan.delta,
        },
        "ledger": str(opened.ledger.path.parent),
        "folders": len(book.homes | {opened.ledger.home}),
        "head": book.head,
        "lines": book.lines,
        "groups": {name: len(patients) for name, patients in book.cohorts.items()},
        "history": [_line(charge) for charge in book.charges],
    }


def _line(charge: Charge) -> dict[str, Any]:
    return {
        "number": charge.number,
        "time": charge.time,
        "group": charge.cohort,
        "study": charge.study,
        "seed": charge.seed,
        "what": charge.what,
        "models": list(charge.folds),
        "noise": charge.reserved.sigma,
        "rate": charge.reserved.rate,
        "reserved": charge.reserved.steps,
        "settled": charge.settled,
        "delta": charge.delta,
    }


def audit_privacy(
    folder: HomeOption = HERE,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="also write what was found, for the report")] = None,
) -> None:
    """Try to refute the study's promise on this machine: plant patients in a small run, and guess who took part.

    The run has the study's epsilon, clip and chance, the programs that are installed here, and generated patients alone:
    nothing is read, spent or sent. It catches a clip or noise that is missing (exit code 4); it proves nothing.
    """
    federation = homes.open_home(folder).federation.value
    if federation.privacy is None:
        raise ConfigurationError(f"study '{federation.name}' promises no privacy", hint="there is nothing to audit")
    found = audit(federation.privacy)
    if out is not None:
        write_json(out, found.facts)
    _say("promised", f"epsilon {found.promised:.2f}, in this run")
    _say(
        "shown",
        f"epsilon {found.bound:.2f} or more (95 % confidence): {found.right} of {found.guesses} guesses were right",
    )
    _say("canaries", f"{found.canaries:,} planted patients, of whom half took part")
    _say("noise", f"{found.noise:.2f} times what it should be")
    _say(
        "patients",
        f"moved the weights {found.contribution:.2f} times as far as they should ({2 * found.error:.2f} by chance)",
    )
    if found.faults:
        hint = "do not take part in private studies with this installation, and report it"
        raise RunError([Problem(fault, "audit-privacy", hint) for fault in found.faults])
    _say("verdict", "nothing speaks against the promise")


def _say(word: str, text: object) -> None:
    Console(emoji=False, highlight=False).print(f"{word:<10} {text}", markup=False, soft_wrap=True)
