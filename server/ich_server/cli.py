"""`ich-server`: what the coordinator of a study runs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ich_models import console, privacy_words
from ich_models.federation import Evaluation, Federation, load_federation
from ich_models.folds import FEDERATED, questions
from ich_models.text_spec import TextSpec
from ich_models.tokens import built_in
from ich_models.variables import Variable
from ich_server import commands_products, commands_run, results
from ich_strategies.plan import Plan

Kind = Literal["federation", "results"]

app = console.application("The coordinator's side of a federated study.\n\nExample: ich-server check federation.yaml")
commands_run.register(app)
commands_products.register(app)


@app.command(epilog="Example: ich-server check federation.yaml")
def check(federation: Annotated[Path, typer.Argument(metavar="FEDERATION.yaml", help="the study")]) -> None:
    """Check FEDERATION.yaml and the data dictionary that it names, and print the study that they describe.

    Every hospital that takes part holds the same hash; layout and comments of the file do not change it.
    """
    study = load_federation(federation).value
    screen = Console(emoji=False, highlight=False)
    for index, table in enumerate((_study(study), _predictors(study), _models(study))):
        if index:
            screen.print()
        screen.print(table)
    if study.privacy is not None:
        console.warn(privacy_words.warnings(study, Plan(study, study.training.seeds[0]).weights.size))


@app.command(epilog="Example: ich-server schema federation > federation.schema.json")
def schema(kind: Annotated[Kind, typer.Argument(help="which file")] = "federation") -> None:
    """Print the JSON Schema of federation.yaml (for editors) or of results.json (for programs that read it)."""
    found = federation_schema() if kind == "federation" else dict(results.json_schema())
    text = json.dumps({"$schema": GenerateJsonSchema.schema_dialect, **found}, indent=2)
    sys.stdout.write(text + "\n")


# --- the terminal -----------------------------------------------------------------------------------------------------


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.show_header = any(columns)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(Text(str(cell)) for cell in cells))


def _study(study: Federation) -> Table:
    plan = Plan(study, study.training.seeds[0])
    facts = results.describe(study)
    table = _table(study.description or study.name, "", "")
    _add(table, "study", study.name)
    _add(table, "hash", study.hash)
    _add(table, "outcome", facts.outcome)
    _add(table, "predicts at", study.task.predict_at)
    _add(
        table,
        "network",
        f"{study.network.name} on {len(plan.columns)} columns, {plan.weights.size:,} weights per message",
    )
    if study.modalities.text is not None:
        _add(table, "text", _text(study, study.modalities.text))
    _add(table, "strategy", study.training.strategy.name)
    stages = ", ".join(f"{stage.name} {stage.rounds}" for stage in study.training.stages)
    _add(table, "rounds", f"{study.training.rounds} ({stages})")
    _add(table, "seeds", ", ".join(map(str, study.training.seeds)))
    _add(table, "threshold", study.evaluation.threshold)
    if study.privacy is not None:
        for word, text in privacy_words.told(study, plan.weights.size):
            _add(table, word, text)
    _add(table, "small cells", f"k = {study.evaluation.small_cells}, or more where a hospital asks for more")
    _add(table, "quorum", _quorum(study))
    return table


def _text(study: Federation, text: TextSpec) -> str:
    read = f"sentences of {', '.join(study.spoken)}" if text.source == "template" else f"reports of {text.known_at}"
    if text.vocabulary is not None:
        return f"{read}; the vocabulary {text.vocabulary.name}"
    return f"{read}; the built-in vocabulary of {len(built_in(text, study.modalities.table).words)} words"


def _quorum(study: Federation) -> str:
    wanted = study.quorum.hospitals
    if wanted is None:
        return f"all hospitals to begin, more than half in a round; a round waits {study.quorum.deadline:,g} s"
    return f"{wanted} hospitals; a round waits {study.quorum.deadline:,g} s"


def _predictors(study: Federation) -> Table:
    table = _table("Predictors", "name", "known at", "type", "values", "missing")
    for name, variable in study.predictors.items():
        left_out = study.modalities.table.complete_cases and variable.missing == "impute"
        missing = "patient left out" if left_out else variable.missing
        _add(table, name, variable.known_at, variable.type, _values(variable), missing)
    return table


def _values(variable: Variable) -> str:
    if variable.codes:
        return ", ".join(variable.codes)
    low_to_high = f"{variable.range[0]:g} to {variable.range[1]:g}" if variable.range else ""
    return f"{low_to_high} {variable.unit or ''}".strip()


ANY: Final = "HOSPITAL"
"""In place of the hospitals' names, which the federation file does not know."""


def _models(study: Federation) -> Table:
    evaluation = study.evaluation
    table = _table("Models and arms", "", "")
    parts = evaluation.folds or 0
    count = " + ".join(["1", *(["N"] if evaluation.leave_one_hospital_out else []), *([str(parts)] if parts else [])])
    _add(table, "models", f"{count} for each seed, with N hospitals" if "N" in count else f"{count} for each seed")
    if evaluation.test is None:
        _add(table, "all", "learns from all hospitals' patients, tested on none")
    else:
        _add(table, "all", f"learns from all hospitals, tested on {evaluation.test:.0%} of each one's patients")
    if evaluation.leave_one_hospital_out:
        _add(table, f"without:{ANY}", "one for each hospital: learns from the others, tested on all its patients")
    if parts:
        _add(
            table,
            f"part:1 to part:{parts}",
            f"each learns from all patients but one part of {parts}, tested on that part",
        )
    _add(table, "arms", ", ".join(questions(evaluation, ANY)))
    if alone := simulated_arms(evaluation):
        _add(table, "in simulation", ", ".join(alone))
    return table


def simulated_arms(evaluation: Evaluation) -> list[str]:
    """The arms that only a simulation adds, as `ich_deploy.arms` makes them."""
    within = FEDERATED in questions(evaluation, ANY)
    arms = ["local"] if evaluation.comparisons.local else []
    if evaluation.comparisons.pooled:
        arms += ["pooled"]
        arms += ["pooled_within"] if evaluation.leave_one_hospital_out and within else []
    if evaluation.comparisons.without_privacy:
        arms.append("without_privacy")
    return arms


# --- the schema -------------------------------------------------------------------------------------------------------


class _AsWritten(GenerateJsonSchema):
    """A quantity may be written with its unit, as text; a section to which a preset is added has the section's keys."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        return inner if "properties" in inner else {"anyOf": [inner, {"type": "string"}]}


def federation_schema() -> dict[str, Any]:
    """JSON Schema of `federation.yaml`, its short forms included."""
    return Federation.model_json_schema(by_alias=True, schema_generator=_AsWritten)


def main() -> None:
    """Entry point of the console script."""
    console.run(app)


if __name__ == "__main__":
    main()
