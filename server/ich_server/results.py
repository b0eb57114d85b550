"""`results.json`: what a study found, per arm, hospital and metric, over its seeds; versioned, and the same bytes for the same run."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from scipy.stats import norm

from ich_models import accounting, privacy_words
from ich_models.federation import Federation
from ich_models.files import write_atomic
from ich_models.metrics import METRICS, RANGES, TYPE_METRICS, Estimate, Evaluation
from ich_models.strict import Strict
from ich_server.study import StudyResult

SCHEMA: Final = 1

Z: Final = float(norm.ppf(0.975))

TYPE_INTERVALS: Final = (
    "95 %. One seed: of slices percentiles over 1000 samples of patients, each with all its slices, from 10 patients with the"
    " type and 10 without on; of patients DeLong on the logit scale (AUROC), bootstrap over patients (AUPRC, F1, F2), Wilson"
    " (proportions) and Wald (Brier). Several seeds: value is their mean, and each half of the interval is sqrt(mean of the"
    " seeds' squared halves + 1.96^2 (1 + 1/m) B), with B the variance of the m values (Rubin's rules), within the range."
)
"""Of a study of slices."""

INTERVALS: Final = (
    "95 %. One seed: the interval of its own patients (AUROC: DeLong on the logit scale; AUPRC and F1: bootstrap over"
    " patients; proportions: Wilson; the others: Wald). Several seeds: value is their mean, and each half of the"
    " interval is sqrt(mean of the seeds' squared halves + 1.96^2 (1 + 1/m) B), with B the variance of the m values"
    " (Rubin's rules), within the metric's range. No AUROC interval under 10 events or 10 non-events."
)

ARMS: Final = {
    "loho": "Leave-one-hospital-out: the federated model that never saw this hospital, tested on all its patients.",
    "federated": "The federated model of all hospitals, tested on patients that it did not learn from.",
    "local": "A model trained at this hospital alone, tested on its patients that it did not learn from.",
    "pooled": "The same network trained on the hospitals' patients in one place; tested like loho, or without it like"
    " federated. Simulation only.",
    "without_privacy": "The same federation trained without clipping and noise, and tested alike: what privacy costs."
    " Simulation only.",
    "pooled_within": "The same network trained on all hospitals' patients in one place, tested like federated."
    " Simulation only.",
}


Level = Literal["slices", "patients"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""What a type of haemorrhage is told of."""


class Figure(Strict):
    """One metric of one hospital or of all test patients: null where it cannot be estimated."""

    value: float | None
    low: float | None
    high: float | None
    per_seed: list[float | None]


class Group(Strict):
    """Slices, or patients, with a label of one type: `n`, `events` of them with the type (null: withheld), the metrics."""

    n: Annotated[int, Field(ge=0)]
    events: Annotated[int, Field(ge=0)] | None
    auroc: Figure
    auprc: Figure
    brier: Figure
    f1: Figure
    f2: Figure
    recall: Figure
    precision: Figure
    specificity: Figure


class TypeFigures(Strict):
    """One type of haemorrhage, by slice and by patient."""

    slices: Group
    patients: Group


class Figures(Strict):
    """All metrics on `n` patients of whom `events` had the positive outcome (null: withheld, too few of a class)."""

    n: Annotated[int, Field(ge=0)]
    events: Annotated[int, Field(ge=0)] | None
    auroc: Figure
    auprc: Figure
    brier: Figure
    calibration_slope: Figure
    calibration_intercept: Figure
    accuracy: Figure
    f1: Figure
    recall: Figure
    precision: Figure
    specificity: Figure
    types: dict[str, TypeFigures] = {}
    """In a study of slices: each type of haemorrhage. Nothing is known of the metrics above then."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study of one outcome has no types, and its file does not speak of them."""
        written: dict[str, Any] = plain(self)
        if not self.types:
            del written["types"]
        return written


class Arm(Strict):
    """One way to train: per hospital, and all its test patients together (`pooled`; in simulation only)."""

    description: str
    hospitals: dict[str, Figures]
    pooled: Figures | None


class Study(Strict):
    """Which study this is."""

    name: str
    description: str
    federation: str
    """Hash of the federation file."""
    outcome: str
    network: str
    strategy: str
    rounds: int
    threshold: Literal["youden"] | float
    """How the threshold was chosen, as in the federation file."""


class Quarantined(Strict):
    """A reply that was set aside."""

    seed: int
    when: str
    """'statistics' (the hospital takes no part), 'round N', 'thresholds' or 'evaluation'."""
    hospital: str
    reason: str


class Training(Strict):
    """Training loss of every fold after each round, and the thresholds that the training hospitals chose."""

    losses: dict[str, list[float | None]]
    thresholds: dict[str, float]


class HospitalData(Strict):
    """The patients that a hospital brought, and those that it left out, by reason; null: withheld, they are few."""

    n: int
    events: int | None
    excluded: dict[str, int | None]


class AuditBound(Strict):
    """What an attack on the training, in a small federated run with these terms, could show (`ich-client audit-privacy`)."""

    epsilon: float
    """Lower bound, with 95 % confidence."""
    promised: float
    """Epsilon of that run."""
    canaries: int
    right: int
    guesses: int


class PrivacyPromise(Strict):
    """What a private study has promised of each patient, and planned: public numbers, not what a ledger holds."""

    epsilon: float
    delta: float
    per: Literal["study", "model"]
    """What `epsilon` is of."""
    clip: float
    rate: float
    """Chance of a patient to be in a step."""
    noise: float
    """Noise multiplier; a hospital may have used more."""
    steps: int
    """Of all rounds, models and seeds, on one hospital's patients."""
    models: int
    """That one hospital's patients train with each seed."""
    epsilon_model: float
    """Of one model of one seed."""
    hospitals: dict[str, float]
    """Epsilon of the whole study at each hospital, at the most."""
    metrics: Literal["noised", "exact", "not_sent"]
    assumptions: list[str]
    audit: AuditBound | None = None


class Results(Strict):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="ICH Federation results", populate_by_name=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    study: Study
    seeds: list[int]
    intervals: str = INTERVALS
    hospitals: dict[str, HospitalData]
    arms: dict[str, Arm]
    training: dict[str, Training]
    """Per seed."""
    quarantined: list[Quarantined]
    privacy: PrivacyPromise | None = None
    """In a study that promises privacy."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that promises nothing does not speak of it."""
        written: dict[str, Any] = plain(self)
        if self.privacy is None:
            del written["privacy"]
        return written


@dataclass(frozen=True)
class ArmFound:
    """One arm of one seed: per hospital, and all test patients together."""

    hospitals: Mapping[str, Evaluation]
    pooled: Evaluation | None
    """None in a deployment: nobody sees all patients."""


def answered(study: StudyResult) -> dict[str, ArmFound]:
    """The federated model's arms as the hospitals themselves have answered."""
    found: dict[str, dict[str, Evaluation]] = {}
    for name, answers in sorted(study.answers.items()):
        for answer in answers:
            found.setdefault(answer.arm, {})[name] = answer.evaluation()
    return {arm: ArmFound(found[arm], None) for arm in ARMS if arm in found}


def assemble(
    federation: Federation,
    seeds: Sequence[int],
    studies: Sequence[StudyResult],
    arms: Sequence[Mapping[str, ArmFound]],
) -> Results:
    """Results from what each seed's study and arms found."""
    data = {
        name: HospitalData(n=one.patients, events=one.events, excluded=dict(one.excluded))
        for study in studies
        for name, one in sorted(study.hospitals.items())
    }
    by_seed = list(zip(seeds, studies, strict=True))
    return Results(
        study=describe(federation),
        seeds=list(seeds),
        intervals=TYPE_INTERVALS if federation.task.kind == "slices" else INTERVALS,
        hospitals=data,
        arms={name: _arm(name, [found[name] for found in arms]) for name in arms[0]},
        training={str(seed): _training(study) for seed, study in by_seed},
        quarantined=[Quarantined(seed=seed, **asdict(reply)) for seed, study in by_seed for reply in study.quarantined],
        privacy=None if federation.privacy is None else promised(federation, list(data)),
    )


def promised(federation: Federation, hospitals: Sequence[str]) -> PrivacyPromise:
    """What a study with privacy has promised."""
    privacy = federation.privacy
    assert privacy is not None, "a promise of a study that makes none"
    plan = accounting.programme(federation)
    return PrivacyPromise(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        per=privacy.per,
        clip=privacy.clip,
        rate=privacy.rate,
        noise=plan.sigma,
        steps=plan.steps,
        models=plan.models,
        epsilon_model=plan.model,
        hospitals=dict.fromkeys(hospitals, plan.study),
        metrics=privacy.metrics,
        assumptions=list(privacy_words.assumptions(privacy)),
    )


def _arm(name: str, found: Sequence[ArmFound]) -> Arm:
    """One arm over the seeds; a hospital that failed to answer for one of them is left out."""
    answered = [hospital for hospital in found[0].hospitals if all(hospital in one.hospitals for one in found)]
    return Arm(
        description=ARMS[name],
        hospitals={hospital: figures([one.hospitals[hospital] for one in found]) for hospital in answered},
        pooled=None
        if any(one.pooled is None for one in found)
        else figures([one.pooled for one in found if one.pooled]),
    )


def _training(study: StudyResult) -> Training:
    losses = {fold: [entry["losses"][fold] for entry in study.history] for fold in study.folds}
    return Training(losses=losses, thresholds=dict(study.thresholds))


def combine(name: str, estimates: Sequence[Estimate]) -> Figure:
    """One metric over seeds, as `INTERVALS` says; a seed without a value leaves the figure without one."""
    per_seed = [estimate.value for estimate in estimates]
    values = [value for value in per_seed if value is not None]
    if len(values) < len(per_seed):
        return Figure(value=None, low=None, high=None, per_seed=per_seed)
    count = len(values)
    mean = math.fsum(values) / count
    between = math.fsum((value - mean) ** 2 for value in values) / (count - 1) if count > 1 else 0.0

    def end(limits: Sequence[float | None], sign: int) -> float | None:
        halves = [abs(value - limit) for value, limit in zip(values, limits, strict=True) if limit is not None]
        if len(halves) < count:
            return None
        if count == 1:
            return limits[0]
        half = math.sqrt(math.fsum(h * h for h in halves) / count + Z**2 * (1 + 1 / count) * between)
        lowest, highest = RANGES[name]
        return min(highest, max(lowest, mean + sign * half))

    low, high = end([e.low for e in estimates], -1), end([e.high for e in estimates], 1)
    return Figure(value=mean, low=low, high=high, per_seed=per_seed)


def figures(evaluations: Sequence[Evaluation]) -> Figures:
    """One evaluation per seed, on the same patients, to figures."""
    first = evaluations[0]
    return Figures(
        n=first.n,
        events=first.events,
        **{name: combine(name, [evaluation.metrics[name] for evaluation in evaluations]) for name in METRICS},
        types={
            kind: TypeFigures(
                slices=_group([evaluation.types[kind].slices for evaluation in evaluations]),
                patients=_group([evaluation.types[kind].patients for evaluation in evaluations]),
            )
            for kind in first.types
        },
    )


def _group(found: Sequence[Evaluation]) -> Group:
    metrics = {name: combine(name, [one.metrics[name] for one in found]) for name in TYPE_METRICS}
    return Group(n=found[0].n, events=found[0].events, **metrics)


def macro(figures: Figures, level: Level, name: str) -> tuple[float | None, int]:
    """The mean of a metric over the types, and over how many: those with an AUROC, so that all metrics mean the same types.

    None where there is no such type, or where one of them has no such metric.
    """
    groups = [group for one in figures.types.values() if (group := getattr(one, level)).auroc.value is not None]
    values = [getattr(group, name).value for group in groups]
    if not values or None in values:
        return None, len(values)
    return math.fsum(values) / len(values), len(values)


def describe(federation: Federation) -> Study:
    """What the report says about the study itself."""
    outcome = federation.task.outcome
    scale = outcome.scale or outcome.variable
    if federation.task.kind == "slices":
        said = f"{', '.join(federation.labels[:-1])} and {federation.labels[-1]} haemorrhage of each slice"
        return _study(federation, said)
    cut = outcome.poor if isinstance(outcome.poor, str) else ", ".join(outcome.poor)
    return _study(federation, f"{outcome.positive} outcome at {outcome.at} ({scale}: poor is {cut})")


def _study(federation: Federation, outcome: str) -> Study:
    return Study(
        name=federation.name,
        description=federation.description,
        federation=federation.hash,
        outcome=outcome,
        network=federation.network.name,
        strategy=federation.training.strategy.name,
        rounds=federation.training.rounds,
        threshold=federation.evaluation.threshold,
    )


def write(results: Results, folder: Path) -> None:
    """`results.json`, and `results.csv` beside it."""
    text = json.dumps(results.model_dump(by_alias=True), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(folder / "results.json", (text + "\n").encode())
    write_csv(results, folder)


def write_csv(results: Results, folder: Path) -> None:
    """The same figures as tidy `results.csv`, one line per arm, hospital and metric; of slices also per type and level."""
    of_slices = any(found.types for arm in results.arms.values() for found in arm.hospitals.values())
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    more = ("type", "level") if of_slices else ()
    table.writerow(("arm", "hospital", *more, "n", "events", "metric", "value", "low", "high"))
    for arm, found in results.arms.items():
        rows: list[tuple[str, Figures]] = list(found.hospitals.items())
        if found.pooled is not None:
            rows.append(("(all test patients)", found.pooled))
        for hospital, measured in rows:
            if of_slices:
                table.writerows((arm, hospital, *row) for row in _type_rows(measured))
                continue
            for name in METRICS:
                figure: Figure = getattr(measured, name)
                table.writerow(
                    (arm, hospital, measured.n, measured.events, name, figure.value, figure.low, figure.high)
                )
    write_atomic(folder / "results.csv", lines.getvalue().encode())


def _type_rows(measured: Figures) -> Iterator[tuple[object, ...]]:
    """Lines of each type, and of their mean."""
    for level in LEVELS:
        for kind, one in measured.types.items():
            group: Group = getattr(one, level)
            for name in TYPE_METRICS:
                figure: Figure = getattr(group, name)
                yield kind, level, group.n, group.events, name, figure.value, figure.low, figure.high
        for name in TYPE_METRICS:
            yield "(mean)", level, None, None, name, macro(measured, level, name)[0], None, None


def read(path: Path) -> Results:
    """A `results.json` of this version."""
    return Results.model_validate_json(path.read_bytes())


def json_schema() -> Mapping[str, Any]:
    """JSON Schema of `results.json`."""
    return Results.model_json_schema(by_alias=True)
