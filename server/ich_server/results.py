"""`results.json`: what a study found, per arm, hospital and metric, over its seeds; versioned, and the same bytes for the same run."""

import csv
import io
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from scipy.stats import norm

from ich_models import accounting, clinical, privacy_words
from ich_models.curves import net_benefit
from ich_models.federation import Federation
from ich_models.files import write_atomic
from ich_models.folds import ALL, FEDERATED, LOHO
from ich_models.metrics import METRICS, RANGES, SUBGROUP_METRICS, TYPE_METRICS, Estimate, Evaluation
from ich_models.protocol import PACKAGE, rows_hash
from ich_models.strict import Strict
from ich_server.study import StudyResult, Taking

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
    " patients, as of scaled Brier and F2; O/E: log scale; proportions: Wilson; the others: Wald). Several seeds: value is their mean, and each half of the"
    " interval is sqrt(mean of the seeds' squared halves + 1.96^2 (1 + 1/m) B), with B the variance of the m values"
    " (Rubin's rules), within the metric's range. No AUROC interval under 10 events or 10 non-events."
)

ARMS: Final = {
    "loho": "Leave-one-hospital-out: the federated model that never saw this hospital, tested on all its patients.",
    "federated": "The federated model of all hospitals, tested on patients that it did not learn from.",
    "local": "A model trained at this hospital alone, tested on its patients that it did not learn from.",
    "pooled": "The same network trained on the hospitals' patients in one place; tested like loho, or without it like"
    " federated. Simulation only.",
    "tabular": "A logistic regression on the table alone, trained on the hospitals' patients in one place; tested like loho,"
    " or without it like federated. Simulation only.",
    "ich_score": "The ICH score (Hemphill et al. 2001) of every patient's five items, nothing trained; tested like loho, or"
    " without it like federated. Its probabilities are of 30-day mortality. Simulation only.",
    "without_privacy": "The same federation trained without clipping and noise, and tested alike: what privacy costs."
    " Simulation only.",
    "pooled_within": "The same network trained on all hospitals' patients in one place, tested like federated."
    " Simulation only.",
}


Matrix = Mapping[str, Mapping[str, Estimate]]
"""Trained at -> tested at -> AUROC."""

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


class Bin(Strict):
    """Patients with about the same predicted probability, lowest first: how many, with the event, mean probability."""

    patients: int
    events: int
    mean: float


class Decision(Strict):
    """Who would be treated from this threshold on, and the net benefit of that (Vickers & Elkin 2006)."""

    threshold: float
    true_positives: int
    false_positives: int
    net_benefit: float


class Subgroup(Strict):
    """A subgroup's figures; `n` null: withheld, it or what follows from it by subtraction is small."""

    n: int | None
    events: int | None
    auroc: Figure
    brier: Figure
    observed_expected: Figure
    calibration_slope: Figure
    calibration_intercept: Figure


NO_FIGURE: Final = Figure(value=None, low=None, high=None, per_seed=[])
"""Of a metric that a file from before it was computed does not have."""


class Figures(Strict):
    """All metrics on `n` patients of whom `events` had the positive outcome (null: withheld, too few of a class)."""

    n: Annotated[int, Field(ge=0)]
    events: Annotated[int, Field(ge=0)] | None
    auroc: Figure
    auprc: Figure
    prevalence: Figure = NO_FIGURE
    brier: Figure
    scaled_brier: Figure = NO_FIGURE
    observed_expected: Figure = NO_FIGURE
    calibration_slope: Figure
    calibration_intercept: Figure
    accuracy: Figure
    f1: Figure
    f2: Figure = NO_FIGURE
    recall: Figure
    precision: Figure
    specificity: Figure
    npv: Figure = NO_FIGURE
    bins: list[list[Bin]] = []
    """Calibration, per seed."""
    decisions: list[list[Decision]] = []
    """Decision curve, per seed: at those of the study's thresholds that may be told."""
    subgroups: dict[str, dict[str, Subgroup]] = {}
    """By variable and level."""
    types: dict[str, TypeFigures] = {}
    """In a study of slices: each type of haemorrhage. Nothing is known of the metrics above then."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study of one outcome has no types, one of slices no bins, and its file does not speak of them."""
        written: dict[str, Any] = plain(self)
        for name in ("bins", "decisions", "subgroups", "types"):
            if not written[name]:
                del written[name]
        return written


class Arm(Strict):
    """One way to train: per hospital, and `pooled` all test patients together of the hospitals that tell theirs (simulation only)."""

    description: str
    hospitals: dict[str, Figures]
    pooled: Figures | None
    reference: str | None = None
    """The arm of the federated model that was tested on the same patients, in simulation."""
    differences: dict[str, Figure] = {}
    """AUROC of this arm minus that of `reference` on the same patients, per hospital; DeLong's paired interval."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is compared with nothing says nothing of it."""
        written: dict[str, Any] = plain(self)
        for name in ("reference", "differences"):
            if not written[name]:
                del written[name]
        return written


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
    threshold: Literal["youden", "f2"] | float
    """How the threshold was chosen, as in the federation file."""
    settings: dict[str, Any] = {}
    """The federation file in the form that its hash is taken of."""


class Quarantined(Strict):
    """A reply that was set aside."""

    seed: int
    when: str
    """'statistics' (the hospital takes no part), 'round N', 'thresholds' or 'evaluation'."""
    hospital: str
    reason: str


class Drift(Strict):
    """One round of the model of all hospitals: L2 norm of each hospital's update and of the model's own step.

    `agreement`: that step over the patient-weighted root mean square of the updates. Under plain averaging 1 where all
    hospitals pull the same way, near 0 where they pull against each other.
    """

    updates: dict[str, float]
    step: float
    agreement: float | None


class Training(Strict):
    """Training loss of every fold after each round, and the thresholds that the training hospitals chose."""

    losses: dict[str, list[float | None]]
    thresholds: dict[str, float]
    drift: list[Drift] = []
    """One per round."""
    recalibration: dict[str, tuple[float, float]] = {}
    """Intercept and slope that each fold's log-odds were given after training, if the study recalibrates."""


class Column(Strict):
    """One column of the table as a hospital told it: patients with a value, mean and standard deviation of these.

    Null: withheld. What points at a few was told so that it does not (docs/egress.md), a rare yes as k / 2 patients.
    """

    known: float | None
    mean: float | None
    sd: float | None


class HospitalData(Strict):
    """The patients that a hospital brought, and those that it left out, by reason; null: withheld, they are few.

    `training`: how many the model of all hospitals learnt from; `columns`: of these, the table's, by name.
    """

    n: int
    events: int | None
    excluded: dict[str, int | None]
    training: int | None = None
    columns: dict[str, Column] = {}


class Traffic(Strict):
    """Bytes of text and numbers in every round, to and from one hospital."""

    sent: list[int]
    received: list[int]


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
    cross_site: dict[str, dict[str, Figure]] = {}
    """AUROC of the model trained at one hospital alone, tested at another: trained at -> tested at. Simulation only."""
    quarantined: list[Quarantined]
    traffic: dict[str, dict[str, Traffic]] = {}
    """Per seed and hospital, as the server counted it."""
    models: dict[str, str] = {}
    """Per seed the SHA-256 of the model of all hospitals, as every hospital confirms it."""
    software: dict[str, str] = {}
    """What computed these numbers at the server: package or program and version."""
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
    reference: str | None = None
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    """As in `Arm`."""


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
    cross_site: Sequence[Matrix] = (),
) -> Results:
    """Results from what each seed's study and arms found, and in simulation the local models at each other's hospitals."""
    columns = clinical.columns(federation.modalities.table)
    data = {name: _data(one, columns) for study in studies for name, one in sorted(study.hospitals.items())}
    by_seed = list(zip(seeds, studies, strict=True))
    return Results(
        study=describe(federation),
        seeds=list(seeds),
        intervals=TYPE_INTERVALS if federation.task.kind == "slices" else INTERVALS,
        hospitals=data,
        arms={name: _arm(name, [found[name] for found in arms]) for name in arms[0]},
        training={str(seed): _training(study) for seed, study in by_seed},
        cross_site=_matrix(cross_site),
        quarantined=[Quarantined(seed=seed, **asdict(reply)) for seed, study in by_seed for reply in study.quarantined],
        traffic={str(seed): found for seed, study in by_seed if (found := _traffic(study))},
        models={str(seed): rows_hash(study.of([ALL])) for seed, study in by_seed},
        software=software(),
        privacy=None if federation.privacy is None else promised(federation, list(data), shown=_shown_to_nobody(arms)),
    )


def _shown_to_nobody(arms: Sequence[Mapping[str, ArmFound]]) -> bool:
    """Whether there are figures that a deployment does not have: of patients of several hospitals, or of other training."""
    return any(
        name not in (LOHO, FEDERATED) or found.pooled is not None for each in arms for name, found in each.items()
    )


def promised(federation: Federation, hospitals: Sequence[str], *, shown: bool = False) -> PrivacyPromise:
    """What a study with privacy has promised. `shown`: with figures that only a simulation has."""
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
        assumptions=[*privacy_words.assumptions(privacy), *([privacy_words.SIMULATED] if shown else [])],
    )


def _data(one: Taking, columns: Sequence[str]) -> HospitalData:
    told = one.moments
    if told is None:
        return HospitalData(n=one.patients, events=one.events, excluded=dict(one.excluded))
    each = zip(columns, told.count.tolist(), told.mean.tolist(), told.m2.tolist(), told.withheld, strict=False)
    return HospitalData(
        n=one.patients,
        events=one.events,
        excluded=dict(one.excluded),
        training=told.patients,
        columns={name: _column(count, mean, m2, hidden=bool(hidden)) for name, count, mean, m2, hidden in each},
    )


def _column(count: float, mean: float, m2: float, *, hidden: bool) -> Column:
    if hidden or not count:
        return Column(known=None if hidden else 0.0, mean=None, sd=None)
    return Column(known=count, mean=mean, sd=math.sqrt(m2 / (count - 1)) if count > 1 else None)


def _traffic(study: StudyResult) -> dict[str, Traffic]:
    """Nothing of a study that an older version began: it did not count."""
    if any("bytes" not in entry for entry in study.history):
        return {}
    return {
        name: Traffic(
            sent=[entry["bytes"][name][0] for entry in study.history],
            received=[entry["bytes"][name][1] for entry in study.history],
        )
        for name in study.hospitals
    }


def software() -> dict[str, str]:
    """Versions of what computes here."""
    packages = ("flwr", "torch", "numpy", "scipy", "scikit-learn")
    return {
        "ich-federation": PACKAGE,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _arm(name: str, found: Sequence[ArmFound]) -> Arm:
    """One arm over the seeds; a hospital that failed to answer for one of them is left out."""
    answered = [hospital for hospital in found[0].hospitals if all(hospital in one.hospitals for one in found)]
    return Arm(
        description=ARMS[name],
        hospitals={hospital: figures([one.hospitals[hospital] for one in found]) for hospital in answered},
        pooled=None
        if any(one.pooled is None for one in found)
        else figures([one.pooled for one in found if one.pooled]),
        reference=found[0].reference,
        differences={
            hospital: combine("auroc_difference", [one.differences[hospital] for one in found])
            for hospital in found[0].differences
            if all(hospital in one.differences for one in found)
        },
    )


def _matrix(found: Sequence[Matrix]) -> dict[str, dict[str, Figure]]:
    """The cross-site matrix over the seeds."""
    if not found:
        return {}
    return {
        trained: {tested: combine("auroc", [one[trained][tested] for one in found]) for tested in row}
        for trained, row in found[0].items()
    }


def _training(study: StudyResult) -> Training:
    losses = {fold: [entry["losses"][fold] for entry in study.history] for fold in study.folds}
    drift = [Drift(**entry["drift"]) for entry in study.history if "drift" in entry]
    return Training(losses=losses, thresholds=dict(study.thresholds), drift=drift, recalibration=dict(study.lines))


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
        bins=[[Bin(**asdict(one)) for one in found.bins] for found in evaluations] if first.bins else [],
        decisions=[_decisions(found) for found in evaluations] if first.decisions else [],
        subgroups={
            variable: {
                level: _subgroup([found.subgroups[variable][level] for found in evaluations]) for level in levels
            }
            for variable, levels in first.subgroups.items()
        },
        types={
            kind: TypeFigures(
                slices=_group([evaluation.types[kind].slices for evaluation in evaluations]),
                patients=_group([evaluation.types[kind].patients for evaluation in evaluations]),
            )
            for kind in first.types
        },
    )


def _decisions(found: Evaluation) -> list[Decision]:
    return [
        Decision(
            **asdict(one),
            net_benefit=net_benefit(one.true_positives, one.false_positives, found.n, one.threshold),
        )
        for one in found.decisions
    ]


def _subgroup(found: Sequence[Evaluation | None]) -> Subgroup:
    told = [one for one in found if one is not None]
    if len(told) < len(found):  # the same patients with every seed: withheld once, withheld always
        return Subgroup(n=None, events=None, **dict.fromkeys(SUBGROUP_METRICS, NO_FIGURE))
    metrics = {name: combine(name, [one.metrics[name] for one in told]) for name in SUBGROUP_METRICS}
    return Subgroup(n=told[0].n, events=told[0].events, **metrics)


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
        settings=json.loads(federation.canonical()),
    )


def write(results: Results, folder: Path) -> None:
    """`results.json`, and `results.csv` beside it."""
    text = json.dumps(results.model_dump(by_alias=True), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(folder / "results.json", (text + "\n").encode())
    write_csv(results, folder)


def write_csv(results: Results, folder: Path) -> None:
    """The same figures as tidy `results.csv`."""
    write_atomic(folder / "results.csv", as_csv(results))


def as_csv(results: Results) -> bytes:
    """One line per arm, hospital and metric; of slices also per type and level."""
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
    return lines.getvalue().encode()


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
