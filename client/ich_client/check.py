"""What `ich-client check` finds: a hospital's data as the study sees them, what it will be asked for, whether it is ready."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ich_client import egress
from ich_client.budget import Budget, too_open
from ich_client.hospital import HospitalConfig, load_mappings
from ich_client.images import EVERYBODY, Ask, Summary
from ich_client.labels import TYPES
from ich_client.ledger import Ledger
from ich_client.machine import Line
from ich_client.splits import of as split
from ich_client.tables import Hospital, load_hospitals
from ich_client.texts import TextSummary
from ich_models import clinical, privacy_words
from ich_models.errors import Code, ConfigurationError, DataError, Problem
from ich_models.federation import Federation, load_federation
from ich_models.folds import folds_of
from ich_models.metrics import METRICS, SUBGROUP_METRICS, TYPE_METRICS
from ich_models.networks.constants import MEAN, WITH
from ich_models.slice_metrics import having as patients_of
from ich_models.variables import MISSING, Variable
from ich_models.yaml_config import Document, load
from ich_strategies.plan import Plan

EMPTY: Final = Ledger(Path("/nonexistent"), Path("/nonexistent"))
"""Where no hospital's folder is: nothing was spent, and nothing is written."""


@dataclass(frozen=True)
class Predictor:
    """One predictor among the patients that take part. `levels`: patients per level of a category."""

    name: str
    known_at: str | None
    unit: str | None
    missing: int | None
    low: float | None
    high: float | None
    levels: Mapping[str, int]


@dataclass(frozen=True)
class FoldHere:
    """How many of this hospital's patients each model trains, validates and is tested on."""

    fold: str
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Sent:
    """One kind of reply: when it is asked for, and what is in it."""

    when: str
    what: str


@dataclass(frozen=True)
class Told:
    """A line of what privacy promises and costs."""

    word: str
    text: str


@dataclass(frozen=True)
class SmallCells:
    """The larger of the two limits holds."""

    federation: int
    hospital: int

    @property
    def k(self) -> int:
        """The limit that both sides agree to."""
        return max(self.federation, self.hospital)


@dataclass(frozen=True)
class Asked:
    """The study as a hospital meets it."""

    federation: str
    hash: str
    description: str
    outcome: str
    network: str
    strategy: str
    rounds: int
    seeds: tuple[int, ...]
    columns: tuple[str, ...]
    text: str | None
    quorum: str
    privacy: tuple[Told, ...]
    """Nothing where the study promises none."""
    sent: tuple[Sent, ...]


@dataclass(frozen=True)
class Found:
    """One hospital: local counts, in full. `refused`: why it will not take part; `withheld`: what will not leave it."""

    name: str
    patients: int
    events: int
    excluded: Mapping[str, int]
    predictors: tuple[Predictor, ...]
    folds: tuple[FoldHere, ...]
    small_cells: SmallCells
    text: TextSummary | None
    privacy: tuple[Told, ...]
    refused: tuple[Problem, ...]
    withheld: tuple[str, ...]
    warnings: tuple[Problem, ...]
    images: Summary | None


class Verdict(IntEnum):
    """How `ich-client check` ends where files and data can be used; also its exit code. 1 to 4 are errors."""

    READY = 0
    WARNINGS = 10
    NOT_READY = 11

    def __str__(self) -> str:
        return {0: "ready", 10: "ready, with warnings", 11: "not ready"}[self]


def verdict(hospitals: Sequence[Found], machine: Sequence[Line]) -> Verdict:
    """The worst of all that was found."""
    states = {line.state for line in machine}
    if "not ready" in states or any(one.refused for one in hospitals):
        return Verdict.NOT_READY
    if "warning" in states or any(one.warnings for one in hospitals):
        return Verdict.WARNINGS
    return Verdict.READY


def read(
    study: Path,
    mappings: Sequence[Path],
    folder: Path | None,
    data: Path,
    cache: Path | None = None,
    ask: Ask = EVERYBODY,
) -> tuple[Federation, tuple[Hospital, ...], tuple[Document[HospitalConfig], ...]]:
    """The study, the hospitals of all mappings, and these; `cache` and `ask` as in `load_hospitals`.

    Raises ConfigurationError with every problem of every configuration file, or, where these are sound, DataError with
    every problem of every table.
    """
    problems: list[Problem] = []
    federation: Document[Federation] | None = None
    documents: list[Document[HospitalConfig]] = []
    try:
        federation = load_federation(study)
    except ConfigurationError as error:
        problems += error.problems
    for path in mappings:
        try:
            documents.append(load(path, HospitalConfig))
        except ConfigurationError as error:
            problems += error.problems
    if folder is not None:
        try:
            documents += load_mappings(folder)
        except ConfigurationError as error:
            problems += error.problems
    if not mappings and folder is None:
        problems.append(Problem("no hospital is named", hint="give a HOSPITAL.yaml, or --hospitals FOLDER"))
    if not data.is_dir():
        problems.append(
            Problem("there is no such folder", str(data), "give the folder of the hospitals' tables as --data")
        )
    if problems or federation is None:
        raise ConfigurationError(problems)
    found = load_hospitals(documents, data, federation, cache, ask)
    if ask.patient is not None and not any(ask.patient in hospital.patients.ids for hospital in found):
        hint = "it must be written as in the column table.patient, and have a known outcome"
        raise DataError(f"no patient '{ask.patient}' takes part", where="--patient", hint=hint)
    return federation.value, found, tuple(documents)


# --- the study --------------------------------------------------------------------------------------------------------


def asked(federation: Federation) -> Asked:
    """What a study computes, and what leaves every hospital that takes part in it."""
    plan = Plan(federation, federation.training.seeds[0])
    outcome = federation.task.outcome
    cut = outcome.poor if isinstance(outcome.poor, str) else " or ".join(outcome.poor)
    return Asked(
        federation=federation.name,
        hash=federation.hash,
        description=" ".join(federation.description.split()),  # it cannot pose as lines of ours
        outcome=f"{outcome.positive} outcome at {outcome.at} ({outcome.variable}: poor is {cut})",
        network=federation.network.name,
        strategy=federation.training.strategy.name,
        rounds=federation.training.rounds,
        seeds=tuple(federation.training.seeds),
        columns=plan.columns,
        text=_text(federation),
        quorum=_quorum(federation),
        privacy=_promised(plan),
        sent=tuple(_sent(plan)),
    )


def _promised(plan: Plan) -> tuple[Told, ...]:
    """What the study promises of privacy, and what that takes."""
    if plan.federation.privacy is None:
        return ()
    return tuple(Told(*line) for line in privacy_words.told(plan.federation, plan.weights.size))


def _text(federation: Federation) -> str | None:
    """What the study reads as text; None if it reads none."""
    text = federation.modalities.text
    if text is None:
        return None
    read = f"reports of {text.known_at}" if text.source == "report" else f"sentences of {', '.join(federation.spoken)}"
    vocabulary = f"the vocabulary {text.vocabulary.name}" if text.vocabulary else "the built-in vocabulary"
    if text.writer == "allowed":
        read += ", or what a language model inside the hospital writes from the image, if the hospital has one"
    return f"{read}; {text.tokens} tokens of {vocabulary}"


def _quorum(federation: Federation) -> str:
    """With how many hospitals the study begins and goes on."""
    least = federation.quorum.hospitals
    if least is None:
        return "begins with every admitted hospital; a round needs more than half of them"
    return f"begins, and goes on, with {least} hospitals or more"


def _sent(plan: Plan) -> list[Sent]:
    """Every reply of `protocol.py`, in words; each is sent once more for every further seed."""
    evaluation, strategy = plan.federation.evaluation, plan.strategy
    each_round = f"per model that trains here: {plan.weights.size:,} weights ({plan.federation.network.dtype})"
    if strategy.sends:
        each_round += f", {', '.join(strategy.sends)} of the same size"
    private = plan.federation.privacy
    validation = ", validation loss" if evaluation.validation is not None else ""
    if private is None:
        counted = f"training patients, training loss{validation}{_seen(plan)}"
    else:
        counted = "noised as privacy says, and the number of patients that everybody may know"
    sent = [Sent("before round 1", _statistics(plan)), Sent("each round", f"{each_round}, {counted}")]
    if plan.local.size:
        sent.append(
            Sent("last round", f"per model: {plan.local.size:,} weights of the layers that stayed here till then")
        )
    if isinstance(evaluation.threshold, str) or evaluation.choose_round == "best":
        chosen = (
            "the threshold" if plan.federation.task.kind == "binary" else "the threshold of each type of haemorrhage"
        )
        sent.append(Sent("after training", f"per model that trained here: {chosen} chosen here{validation}"))
    if evaluation.recalibrate != "none":
        line = "intercept" if evaluation.recalibrate == "intercept" else "intercept and slope"
        sent.append(
            Sent("recalibration", f"per model that trained here: the {line} that would make its log-odds right here")
        )
    if private is None or private.metrics != "not_sent":
        sent.append(Sent("evaluation", _figures(plan.federation)))
    sent.append(Sent("if it cannot", f"a code in place of the reply, without a text: {', '.join(Code)}"))
    return sent


def _seen(plan: Plan) -> str:
    """Counts of who has what an encoder reads."""
    read = sorted({modality for _, modality in plan.segments})
    return f", how many of these patients have {' and '.join(read)} (unless all have)" if read else ""


def _statistics(plan: Plan) -> str:
    if plan.federation.privacy is not None:
        return "the hospital's name, a hash of what may travel, and the number of patients that everybody may know"
    parts = plan.federation.evaluation.folds
    return (
        "the hospital's name, a hash of what may travel, patients, events, patients left out by reason, and for each of"
        f" {len(plan.columns)} columns{_extras(plan)} how many values are known, their mean and sum of squared deviations: of the"
        f" training"
        f" patients{f', and of these without each of {parts} parts' if parts else ''}"
    )


def _extras(plan: Plan) -> str:
    """What statistics hold beside the table, in words."""
    said = []
    if any(name.startswith(WITH) for name in plan.extras):
        said.append("of each patient's slices with and without each type of haemorrhage")
    if any(name.startswith(MEAN) for name in plan.extras):
        said.append("of the mean and mean square of each patient's image")
    return f", {' and '.join(said)}," if said else ""


def _figures(federation: Federation) -> str:
    evaluation = federation.evaluation
    tested = []
    if evaluation.leave_one_hospital_out:
        tested.append("the model that never saw this hospital")
    if evaluation.folds:
        tested.append(f"the models without each of {evaluation.folds} parts, together")
    elif evaluation.test is not None:
        tested.append("the model of all hospitals")
    each = f"patients, events and {len(METRICS)} metrics with 95 % intervals ({', '.join(METRICS)})"
    if federation.privacy is not None and federation.privacy.metrics == "noised":
        each = (
            "patients, events and metrics, made of counts with noise, without intervals, calibration or decision curves"
        )
    elif federation.task.kind == "slices":
        each = (
            "patients, events, and for each type of haemorrhage slices and patients with a label, those with the type and"
            f" {len(TYPE_METRICS)} metrics with 95 % intervals ({', '.join(TYPE_METRICS)})"
        )
    else:
        each += "; counts and mean probability in groups of patients by predicted probability"
        if evaluation.decision_thresholds:
            each += f"; true and false positives at {len(evaluation.decision_thresholds)} thresholds at most"
        if federation.subgroups:
            names = ", ".join(federation.subgroups)
            each += f"; patients, events and {len(SUBGROUP_METRICS)} metrics by {names} ({', '.join(SUBGROUP_METRICS)})"
    return f"for {' and for '.join(tested)}: {each}"


# --- one hospital -----------------------------------------------------------------------------------------------------


def examine(federation: Federation, hospitals: Sequence[Hospital], ledger: Ledger = EMPTY) -> tuple[Found, ...]:
    """What every hospital brings. `ledger`: of the hospital's folder, where it is one."""
    weights = Plan(federation, federation.training.seeds[0]).weights.size
    budgets = {
        hospital.name: Budget(federation, hospital.name, hospital.limits, hospital.patients.ids, ledger)
        for hospital in hospitals
        if federation.privacy is not None
    }
    refused = {
        hospital.name: tuple(_refused(federation, hospital, budgets.get(hospital.name))) for hospital in hospitals
    }
    willing = sum(not problems for problems in refused.values())
    short = tuple(_too_few(federation, willing, len(hospitals)))
    refused = {name: (*problems, *short) for name, problems in refused.items()}
    return tuple(
        Found(
            name=hospital.name,
            patients=len(hospital.patients),
            events=int(hospital.patients.labels.sum()),
            excluded={str(reason): count for reason, count in hospital.excluded.items()},
            predictors=_predictors(federation, hospital.patients.table),
            folds=() if refused[hospital.name] else _folds(federation, hospital),
            small_cells=SmallCells(federation.evaluation.small_cells, hospital.limits.small_cells),
            text=hospital.text,
            privacy=() if refused[hospital.name] else _cost(budgets.get(hospital.name), weights),
            refused=refused[hospital.name],
            withheld=() if refused[hospital.name] else tuple(_withheld(federation, hospital)),
            warnings=(*hospital.warnings, *_noticed(budgets.get(hospital.name), weights)),
            images=hospital.images,
        )
        for hospital in hospitals
    )


def _cost(budget: Budget | None, weights: int) -> tuple[Told, ...]:
    """What the study costs this hospital's patients."""
    if budget is None:
        return ()
    lines = [*budget.told(weights), *([] if budget.ledger is EMPTY else [("ledger", budget.ledger.said)])]
    return tuple(Told(*line) for line in lines)


def _noticed(budget: Budget | None, weights: int) -> Iterator[Problem]:
    """Warnings on privacy."""
    if budget is not None:
        yield from privacy_words.warnings(budget.federation, weights)
        if budget.refusal() is None:
            yield from budget.warnings()


def _refused(federation: Federation, hospital: Hospital, budget: Budget | None) -> Iterator[Problem]:
    """Why this hospital's client would answer with a code (SMALL_CELLS, POLICY, BUDGET) in place of its part in the study."""
    if (why := too_open(hospital.limits, federation.privacy)) is not None:
        message = f"hospital '{hospital.name}' will not take part: it asks for privacy, and {why}"
        hint = "limits.privacy: optional, if people here agree; or ask for a private study"
        if federation.privacy is not None:
            hint += " with metrics: noised or not_sent, or write send_metrics: false"
        yield Problem(message, hint=hint)
    if budget is not None and (problem := budget.refusal()) is not None:
        yield problem
    k = max(federation.evaluation.small_cells, hospital.limits.small_cells)
    smallest = egress.smallest_group(hospital.patients, federation)
    if smallest < k:
        yield Problem(
            f"hospital '{hospital.name}' will not take part: sums over {smallest} patients would leave, and k is {k}",
            hint="a study with fewer folds needs fewer patients; k is small_cells of the study and of this hospital",
        )
    studies = hospital.limits.studies
    if studies is not None and federation.name not in studies:
        message = f"hospital '{hospital.name}' will not take part: its limits.studies does not name '{federation.name}'"
        yield Problem(message, hint=f"add {federation.name} to limits.studies, if people here want to take part")


def _too_few(federation: Federation, willing: int, all_of_them: int) -> Iterator[Problem]:
    """Where hospitals are looked at together: whether they make a quorum. A single one cannot know."""
    least = federation.quorum.hospitals or 1
    if all_of_them > 1 and willing < least:
        message = f"{willing} of these {all_of_them} hospitals would take part, and the study needs {least}"
        yield Problem(message, hint="lower quorum.hospitals in federation.yaml, or find more hospitals")


def _withheld(federation: Federation, hospital: Hospital) -> Iterator[str]:
    """What the small-cell rule (egress.py) will keep here of what the study asks for, as far as the table tells."""
    evaluation, labels = federation.evaluation, hospital.patients.labels
    k = max(evaluation.small_cells, hospital.limits.small_cells)
    events = int(labels.sum())
    targets = hospital.patients.targets
    if federation.privacy is not None:  # nothing else of what follows is told by a private study
        if not hospital.limits.send_metrics:
            yield "every figure of every evaluation (limits.send_metrics)"
        elif federation.privacy.metrics == "exact" and egress.few_of_a_class(labels, k):
            yield "every figure of the model that never saw this hospital"
        return
    if federation.task.kind == "slices" and targets is not None:
        for kind, n, having in zip(TYPES, *patients_of(targets), strict=True):
            if egress.few_have(int(n), int(having), k):
                yield f"threshold and figures of {kind} ({int(having):,} of {int(n):,} patients with a label have it)"
    elif egress.few_of_a_class(labels, k):
        yield f"the number of events ({events:,} of {len(labels):,})"
        if evaluation.leave_one_hospital_out:
            yield "every figure of the model that never saw this hospital"
    first = split(hospital.patients, federation, 0)
    chosen = first.validation if len(first.validation) else first.train
    binary = federation.task.kind == "binary"
    if binary and isinstance(evaluation.threshold, str) and egress.few_of_a_class(labels[chosen], k):
        yield f"the threshold chosen here, among {len(chosen):,} patients with {int(labels[chosen].sum()):,} events"
    if evaluation.validation is not None and len(first.validation) < k:
        yield f"the validation loss, of {len(first.validation):,} patients"
    if binary and evaluation.test is not None and (len(first.test) < k or egress.few_of_a_class(labels[first.test], k)):
        yield f"every figure of the test, of {len(first.test):,} patients with {int(labels[first.test].sum()):,} events"
    for reason, count in hospital.excluded.items():
        if 0 < count < k:
            yield f"how many were left out: {reason}"
    looked_at = (
        {"table"} if hospital.images is None or hospital.images.asked == len(labels) else {"table", "image", "text"}
    )
    for modality in sorted({*federation.network.uses} - looked_at):
        if egress.few_of_a_class(hospital.patients.holding(modality)[first.train].astype(np.int64), k):
            yield f"how many training patients have {modality}"
    if not hospital.limits.send_metrics:
        yield "every figure of every evaluation (limits.send_metrics)"


OTHERS = "without:OTHER"
"""In place of the folds that hold out the other hospitals, whose names a hospital does not know."""


def _folds(federation: Federation, hospital: Hospital) -> tuple[FoldHere, ...]:
    evaluation, labels = federation.evaluation, hospital.patients.labels
    whole = split(hospital.patients, federation, 0)
    folds = []
    for fold in folds_of(evaluation, (hospital.name,)):
        if not fold.trains_at(hospital.name):
            folds.append(FoldHere(OTHERS, len(whole.train), len(whole.validation), 0))
            folds.append(FoldHere(fold.name, 0, 0, len(labels)))
            continue
        part = split(hospital.patients, federation, fold.part or 0)
        folds.append(FoldHere(fold.name, len(part.train), len(part.validation), len(part.test)))
    return tuple(folds)


def _predictors(federation: Federation, table: NDArray[np.float64]) -> tuple[Predictor, ...]:
    names = clinical.columns(federation.modalities.table)
    columns = dict(zip(names, table.T, strict=True))
    return tuple(
        _category(name, variable, columns) if variable.codes else _number(name, variable, columns[name])
        for name, variable in federation.predictors.items()
    )


def _number(name: str, variable: Variable, column: NDArray[np.float64]) -> Predictor:
    known = column[~np.isnan(column)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
    return Predictor(name, variable.known_at, variable.unit, len(column) - len(known), low, high, {})


def _category(name: str, variable: Variable, columns: Mapping[str, NDArray[np.float64]]) -> Predictor:
    """Levels counted back from the encoded columns, in which the first level has none."""
    dummies = {
        level: columns[f"{name}={level}"] for level in (*variable.codes[1:], MISSING) if f"{name}={level}" in columns
    }
    if not dummies:  # a single level has no column that could tell
        return Predictor(name, variable.known_at, None, None, None, None, {})
    counts = {level: int(np.nansum(column)) for level, column in dummies.items()}
    cells = next(iter(dummies.values()))
    missing = counts.pop(MISSING, 0) + int(np.isnan(cells).sum())
    first = len(cells) - missing - sum(counts.values())
    return Predictor(name, variable.known_at, None, missing, None, None, {variable.codes[0]: first, **counts})


# --- as JSON ----------------------------------------------------------------------------------------------------------


def as_json(study: Asked, hospitals: Sequence[Found], machine: Sequence[Line]) -> dict[str, Any]:
    """Everything, as JSON values."""
    return {
        "verdict": str(verdict(hospitals, machine)),
        "study": asdict(study),
        "machine": [asdict(line) for line in machine],
        "hospitals": [
            {
                **asdict(one),
                "prevalence": one.events / one.patients,
                "small_cells": {**asdict(one.small_cells), "k": one.small_cells.k},
                "images": None if one.images is None else _images(one.images),
            }
            for one in hospitals
        ],
    }


def _images(found: Summary) -> dict[str, Any]:
    """With what to do about each study that was set aside, and the counts by reason."""
    return {
        **asdict(found),
        "aside": [{**asdict(one), "hint": one.hint} for one in found.aside],
        "counts": {str(reason): count for reason, count in found.counts.items()},
    }
