"""`ich-client`: what hospital IT runs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from rich.console import Console
from rich.table import Table

from ich_client import check as checks
from ich_client import commands_join, commands_model, commands_privacy, commands_records, machine, needs
from ich_client import home as homes
from ich_client.check import Asked, FoldHere, Found, Predictor, Verdict
from ich_client.check_images import images_tables
from ich_client.check_page import page
from ich_client.hospital import HospitalConfig
from ich_client.images import Ask
from ich_client.machine import Line
from ich_client.progress import watched
from ich_client.terminal import add, pairs, table_of
from ich_client.texts import TextSummary
from ich_models import console
from ich_models.errors import ConfigurationError, Problem
from ich_models.files import write_atomic
from ich_strategies.plan import Plan

app = console.application(
    "A hospital's side of a federated study. Only `join` speaks with anybody outside, and only the federation's server.\n\n"
    "Example: ich-client init north-kit.zip"
)
commands_join.register(app)
commands_records.register(app)
commands_privacy.register(app)
commands_model.register(app)

MOST_IN_FULL: Final = 8
"""Hospitals up to which each is shown in full; beyond that each has one line."""


@app.command(epilog="Example: ich-client check federation.yaml hospital.yaml --data /data/registry")
def check(
    federation: Annotated[
        Path | None, typer.Argument(metavar="[FEDERATION.yaml]", help="the study; by default that of --home")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder that the hospitals' relative paths start from")
    ] = None,
    mappings: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[HOSPITAL.yaml]...", help="where a table is, and what its columns mean"),
    ] = None,
    hospitals: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="folder of hospital files, in place of or beside HOSPITAL.yaml"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="everything as JSON on the standard output, for local eyes only")
    ] = False,
    folder: Annotated[Path, typer.Option("--home", metavar="DIR", help="the hospital's folder")] = Path(),
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="read the images of the first N patients alone")
    ] = None,
    patient: Annotated[
        str | None, typer.Option(metavar="ID", help="read the images of this patient alone, and say all about them")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also write a page with pictures, for local eyes only")
    ] = None,
) -> None:
    """Check a study's FEDERATION.yaml, one or more HOSPITAL.yaml, their tables and images and this machine, before any contact.

    Without arguments: the study and the hospital.yaml of the hospital's folder (ich-client init made it).

    Prints every problem at once, or else each hospital's patients as the study sees them and what will be sent. The
    counts are shown in full: they are for the hospital itself. Exit code 0: ready; 10: ready, with warnings; 11: not
    ready; 2 to 4: a file, the data or the disk cannot be used.
    """
    opened = None
    if federation is None:
        opened = homes.open_home(folder)
        homes.load_mapping(opened)
        federation, mappings, data = opened.federation.path, [opened.hospital], data or folder
    cache = None if opened is None else opened.cache
    if data is None:
        raise ConfigurationError("--data is missing", hint="name the folder that the hospitals' paths start from")
    with watched() as watch:
        study, loaded, documents = checks.read(
            federation, mappings or (), hospitals, data, cache, Ask(limit, patient, watch)
        )
    found = checks.examine(study, loaded, checks.EMPTY if opened is None else opened.ledger)
    asked = checks.asked(study)
    home, clock = (None, None) if opened is None else (opened.folder, opened.clock)
    plan = Plan(study, study.training.seeds[0])
    lines = machine.examine(needs.of(plan, loaded, documents, data, cache, home, clock))
    if html is not None:
        write_atomic(html, page(asked, found, lines, study.modalities.image, loaded).encode())
    verdict = checks.verdict(found, lines)
    if as_json:
        sys.stdout.write(json.dumps(checks.as_json(asked, found, lines), indent=2, allow_nan=False) + "\n")
    else:
        _show(asked, found, lines)
        _say(found, lines, verdict)
    raise typer.Exit(int(verdict))


@app.command(epilog="Example: ich-client schema > hospital.schema.json")
def schema() -> None:
    """Print the JSON Schema of hospital.yaml, for editors that complete and check as you type."""
    sys.stdout.write(json.dumps(hospital_schema(), indent=2) + "\n")


# --- the terminal -----------------------------------------------------------------------------------------------------


def _say(found: Sequence[Found], lines: Sequence[Line], verdict: Verdict) -> None:
    """Warnings and what stands in the way, on the error stream; the verdict, last, on the other."""
    for hospital in found:
        console.warn(hospital.warnings)
    console.warn(line.problem for line in lines if line.state == "warning")
    against: dict[Problem, None] = dict.fromkeys(problem for hospital in found for problem in hospital.refused)
    console.warn([*against, *(line.problem for line in lines if line.state == "not ready")], "not ready")
    sys.stderr.flush()
    sys.stdout.write(f"\n{verdict}\n")


def _machine(lines: Sequence[Line]) -> Table:
    table = table_of("This machine", "", "", "")
    table.show_header = False
    for line in lines:
        add(table, line.name, line.told, "" if line.state == "well" else line.state)
    return table


def _show(asked: Asked, found: Sequence[Found], lines: Sequence[Line]) -> None:
    screen = Console(emoji=False, highlight=False)
    screen.print(_study(asked))
    tables = [_sent(asked)]
    if len(found) > MOST_IN_FULL:
        tables.append(_overview(found))
    else:
        for one in found:
            tables += [_facts(one), _predictors(one), *([_folds(one)] if one.folds else [])]
            if one.images is not None:
                tables += images_tables(one.images)
    for table in (*tables, _machine(lines)):
        screen.print()
        screen.print(table)


def _study(asked: Asked) -> Table:
    return pairs(
        asked.description or asked.federation,
        study=asked.federation,
        hash=asked.hash,
        outcome=asked.outcome,
        network=f"{asked.network} on {len(asked.columns)} columns",
        **({} if asked.text is None else {"text": asked.text}),
        strategy=asked.strategy,
        rounds=asked.rounds,
        quorum=asked.quorum,
        **{each.word: each.text for each in asked.privacy},
        seeds=", ".join(map(str, asked.seeds)) + (f" ({len(asked.seeds)} whole studies)" if asked.seeds[1:] else ""),
    )


def _sent(asked: Asked) -> Table:
    table = table_of(
        "What the study takes from each hospital" + (", for each seed" if asked.seeds[1:] else ""), "when", "what"
    )
    for each in asked.sent:
        add(table, each.when, each.what)
    return table


def _facts(found: Found) -> Table:
    cells = found.small_cells
    return pairs(
        f"Hospital {found.name}",
        patients=f"{found.patients:,}",
        events=f"{found.events:,} ({found.events / found.patients:.1%})".replace("%", " %"),
        left_out=", ".join(f"{reason}: {count:,}" for reason, count in found.excluded.items()) or "nobody",
        **({} if found.text is None else {"text": _text(found.text, found.patients)}),
        small_cells=f"k = {cells.k}, the larger of the study's {cells.federation} and this hospital's {cells.hospital}"
        + ("" if cells.k else ": every count is sent as it is"),
        **({"withheld": "; ".join(found.withheld)} if found.withheld else {}),
        **{f"privacy: {each.word}": each.text for each in found.privacy},
        **({"takes_part": "no: " + "; ".join(one.message for one in found.refused)} if found.refused else {}),
        warnings=len(found.warnings),
    )


def _text(text: TextSummary, patients: int) -> str:
    shares = f"{text.cut:.1%} cut off, {text.unknown:.1%} of their words unknown".replace("%", " %")
    told = f"{text.patients:,} of {patients:,} patients, {text.tokens:.1f} tokens on average, {shares}"
    if not text.writer:
        return told
    others = "".join(f"; template, {reason}: {count:,}" for reason, count in text.by_template.items())
    return f"{told}; written by {text.writer}: {text.by_model:,}{others}"


def _overview(found: Sequence[Found]) -> Table:
    table = table_of(
        f"{len(found)} hospitals (--json has each in full)",
        *("hospital", "takes part", "patients", "events", "left out", "k", "warnings"),
        numbers=5,
    )
    for one in found:
        counts = (one.patients, one.events, sum(one.excluded.values()), one.small_cells.k, len(one.warnings))
        add(table, one.name, "no" if one.refused else "yes", *(f"{count:,}" for count in counts))
    totals = (
        sum(one.patients for one in found),
        sum(one.events for one in found),
        sum(sum(one.excluded.values()) for one in found),
    )
    add(
        table,
        "all",
        f"{sum(not one.refused for one in found):,}",
        *(f"{count:,}" for count in totals),
        "",
        f"{sum(len(one.warnings) for one in found):,}",
    )
    return table


def _predictors(found: Found) -> Table:
    table = table_of("", "predictor", "known at", "missing", "smallest to largest, or patients per level")
    for one in found.predictors:
        add(table, one.name, one.known_at, "?" if one.missing is None else f"{one.missing:,}", _values(one))
    return table


def _values(one: Predictor) -> str:
    if one.low is not None and one.high is not None:
        return f"{one.low:g} to {one.high:g}" + (f" {one.unit}" if one.unit else "")
    return ", ".join(f"{level}: {count:,}" for level, count in one.levels.items())


def _folds(found: Found) -> Table:
    table = table_of("", "model", "this hospital", "train", "validate", "test", numbers=3)
    for one in found.folds:
        add(table, one.fold, _role(one), f"{one.train:,}", f"{one.validation:,}", f"{one.test:,}")
    return table


def _role(fold: FoldHere) -> str:
    if not fold.train:
        return "is held out"
    return "trains; one model for each other hospital" if fold.fold == checks.OTHERS else "trains"


# --- the schema -------------------------------------------------------------------------------------------------------


class _AsWritten(GenerateJsonSchema):
    """A value that is converted before it is checked may be written shorter than its type says: a code as 1 or yes."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        short = ["string", "number", "boolean", "null"]
        if inner == {"type": "string"}:
            return {"type": short}
        if schema["schema"]["type"] == "function-after":  # a condition: a code, or a list of codes
            short.append("array")
        return {"anyOf": [inner, {"type": short}]}


def hospital_schema() -> dict[str, Any]:
    """JSON Schema of `hospital.yaml`, its short forms included."""
    found = HospitalConfig.model_json_schema(by_alias=True, schema_generator=_AsWritten)
    return {"$schema": GenerateJsonSchema.schema_dialect, **found}


def main() -> None:
    """Entry point of the console script."""
    console.run(app)


if __name__ == "__main__":
    main()
