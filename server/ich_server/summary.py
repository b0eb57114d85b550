"""What `Results` add up to over hospitals: medians, random-effects means, paired differences, hospitals with few patients."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import logit, stdtrit

from ich_models.metrics import METRICS, MIN_PER_CLASS
from ich_server.meta_analysis import Summary, random_effects, summarise_auroc, summarise_ratio
from ich_server.results import Arm, Figure, Figures, Level, Results, Z

FEW: Final = 100
"""Events, or non-events, under which a hospital's own figures are too uncertain to judge it by (Collins et al. 2016)."""

FEW_HOSPITALS: Final = 6
"""Hospitals under which a random-effects summary is a rough guess."""

POOLED_METRICS: Final = ("auroc", "observed_expected", "calibration_slope", "calibration_intercept")
"""Metrics whose hospitals are summarised by random effects: AUROC on the logit scale, O/E on the log scale, calibration as it is."""

REFERENCES: Final = ("loho", "federated")
"""The federated model's own arms: the first one present is the headline, and what other arms are compared with."""


SHOWN_BY_TYPE: Final[tuple[tuple[Level, str], ...]] = (
    ("slices", "auroc"),
    ("patients", "auroc"),
    ("slices", "f2"),
)
"""What of a type of haemorrhage is shown where there is little room."""

MEAN: Final = "mean"
"""Of the types; which do not weigh by how many patients have them."""


@dataclass(frozen=True)
class Spread:
    """One number per hospital, described; quartiles interpolate linearly."""

    k: int
    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Pooled:
    """A metric's random-effects summary (None: no hospital can enter) and each hospital's part in it.

    weights: share of each hospital that entered, summing to 1. without_interval: hospitals with a value that did not
    enter. not_estimable: hospitals without a value.
    """

    summary: Summary | None
    weights: dict[str, float]
    without_interval: tuple[str, ...]
    not_estimable: tuple[str, ...]


@dataclass(frozen=True)
class Paired:
    """Differences of one metric, arm minus `reference`, in every hospital that has both.

    mean, low, high: mean over hospitals, each counting once, with its paired t interval (k - 1 degrees of freedom);
    without interval under 3 hospitals. same_patients: both arms were tested on the same number of patients and events
    at each hospital.
    """

    reference: str
    differences: dict[str, float]
    mean: float
    low: float | None
    high: float | None
    same_patients: bool


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which h2 comes before h10, whatever the case."""
    parts = [part for part in re.split(r"([0-9]+)", name.casefold()) if part]
    return [*((0, int(part)) if part.isdecimal() and part.isascii() else (1, part) for part in parts), (-1, name)]


def main_arm(results: Results) -> str | None:
    """The arm of the headline: the first of `REFERENCES` with hospitals, else the first arm that has any."""
    names = [*(name for name in REFERENCES if name in results.arms), *results.arms]
    return next((name for name in names if results.arms[name].hospitals), None)


def in_order(results: Results) -> list[str]:
    """The arms that have hospitals, the headline first."""
    main = main_arm(results)
    return [] if main is None else [main, *(n for n, arm in results.arms.items() if n != main and arm.hospitals)]


def hospitals_of(arm: Arm) -> dict[str, Figures]:
    """The hospitals in natural order: never in the order of their figures."""
    return {name: arm.hospitals[name] for name in sorted(arm.hospitals, key=natural)}


def metric(figures: Figures, name: str) -> Figure:
    """One metric by its name in `METRICS`. Raises KeyError for another."""
    if name not in METRICS:
        raise KeyError(name)
    figure = getattr(figures, name)
    assert isinstance(figure, Figure)
    return figure


def values(arm: Arm, name: str) -> dict[str, float]:
    """A metric of every hospital that has it, in natural order."""
    found = {hospital: metric(figures, name).value for hospital, figures in hospitals_of(arm).items()}
    return {hospital: value for hospital, value in found.items() if value is not None}


def spread(numbers: Sequence[float]) -> Spread | None:
    """Median, quartiles and ends; None without numbers."""
    if not numbers:
        return None
    low, middle, high = (float(q) for q in np.percentile(numbers, [25, 50, 75]))
    return Spread(len(numbers), middle, low, high, min(numbers), max(numbers))


def standard_error(name: str, figure: Figure) -> float | None:
    """The standard error that a 95 % interval stands for, of the AUROC's logit, of O/E's logarithm and of any other metric itself.

    An end that lies on the border of the AUROC's range has no logit: the other half of the interval decides alone.
    """
    if figure.value is None or figure.low is None or figure.high is None:
        return None
    ends: tuple[float, ...] = (figure.low, figure.value, figure.high)
    if name == "auroc":
        ends = tuple(float(logit(end)) for end in ends)
    elif name == "observed_expected":
        ends = tuple(math.log(end) if end > 0 else -math.inf for end in ends)
    low, value, high = ends
    if not math.isfinite(value):
        return None
    halves = [half for half in (value - low, high - value) if math.isfinite(half)]
    error = sum(halves) / (len(halves) * Z) if halves else 0.0
    return error if error > 0 else None


def pooled(arm: Arm, name: str) -> Pooled:
    """Random-effects summary of a metric of `POOLED_METRICS` over the hospitals with `MIN_PER_CLASS` of each class."""
    found = values(arm, name)
    errors = {hospital: _entering_error(arm.hospitals[hospital], name) for hospital in found}
    entering = {hospital: error for hospital, error in errors.items() if error is not None}
    missing = tuple(hospital for hospital in hospitals_of(arm) if hospital not in found)
    outside = tuple(hospital for hospital in found if hospital not in entering)
    if not entering:
        return Pooled(None, {}, outside, missing)
    effects = np.array([found[hospital] for hospital in entering])
    variances = np.array(list(entering.values())) ** 2
    if name == "auroc":
        summary = summarise_auroc(effects, variances * (effects * (1 - effects)) ** 2)
    elif name == "observed_expected":
        summary = summarise_ratio(effects, variances)
    else:
        summary = random_effects(effects, variances)
    weights = 1 / (variances + (summary.tau or 0.0) ** 2)
    shares = dict(zip(entering, (weights / weights.sum()).tolist(), strict=True))
    return Pooled(summary, shares, outside, missing)


def _entering_error(figures: Figures, name: str) -> float | None:
    if _fewer(figures) < MIN_PER_CLASS:
        return None
    return standard_error(name, metric(figures, name))


def paired(results: Results, arm: str, reference: str, name: str = "auroc") -> Paired | None:
    """`arm` minus `reference` within each hospital; None if no hospital has both."""
    ours, theirs = values(results.arms[arm], name), values(results.arms[reference], name)
    differences = {hospital: ours[hospital] - theirs[hospital] for hospital in ours if hospital in theirs}
    if not differences:
        return None
    numbers = list(differences.values())
    count, mean = len(numbers), math.fsum(numbers) / len(numbers)
    half = None
    if count >= 3:
        deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (count - 1))
        half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Paired(reference, differences, mean, low, high, _same_patients(results, arm, reference, list(differences)))


def compared(results: Results, arm: str) -> Paired | None:
    """`arm` minus the reference that was tested on the same patients, or else minus the headline's arm."""
    main = main_arm(results)
    names = [main, *(name for name in REFERENCES if name in results.arms)]
    found = [paired(results, arm, name) for name in dict.fromkeys(names) if name not in (None, arm)]
    candidates = [difference for difference in found if difference is not None]
    if arm == main or not candidates:
        return None
    return next((difference for difference in candidates if difference.same_patients), candidates[0])


def _same_patients(results: Results, first: str, second: str, hospitals: Sequence[str]) -> bool:
    def counts(arm: str) -> list[tuple[int, int | None]]:
        return [(results.arms[arm].hospitals[name].n, results.arms[arm].hospitals[name].events) for name in hospitals]

    return counts(first) == counts(second)


def same_patient_groups(results: Results) -> list[list[str]]:
    """The arms with hospitals, headline first, grouped by the patients that they were tested on (as far as counts tell)."""
    groups: list[list[str]] = []
    for arm in in_order(results):
        for group in groups:
            shared = [name for name in results.arms[arm].hospitals if name in results.arms[group[0]].hospitals]
            if shared and _same_patients(results, arm, group[0], shared):
                group.append(arm)
                break
        else:
            groups.append([arm])
    return groups


def by_type(arm: Arm) -> bool:
    """Whether its figures are those of types of haemorrhage."""
    return any(found.types for found in arm.hospitals.values())


def type_medians(arm: Arm, kind: str) -> dict[tuple[Level, str], float | None]:
    """Of each of `SHOWN_BY_TYPE` the median over the hospitals that have it, for one type."""
    found: dict[tuple[Level, str], float | None] = {}
    for level, name in SHOWN_BY_TYPE:
        figures = [getattr(getattr(one.types[kind], level), name).value for one in arm.hospitals.values()]
        described = spread([value for value in figures if value is not None])
        found[level, name] = described.median if described else None
    return found


def with_few(arm: Arm) -> list[str]:
    """Hospitals with under `FEW` events or non-events among the patients tested."""
    return [name for name, found in hospitals_of(arm).items() if _fewer(found) < FEW]


def _fewer(figures: Figures) -> int:
    """Events or non-events, whichever are fewer; 0 where they are withheld for being few."""
    return 0 if figures.events is None else min(figures.events, figures.n - figures.events)


# --- as text ----------------------------------------------------------------------------------------------------------

LABELS: Final = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "prevalence": "Prevalence",
    "brier": "Brier score",
    "scaled_brier": "Scaled Brier",
    "observed_expected": "O/E ratio",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "accuracy": "Accuracy",
    "f1": "F1",
    "f2": "F2",
    "recall": "Recall (sensitivity)",
    "precision": "Precision (PPV)",
    "specificity": "Specificity",
    "npv": "NPV",
}

ARM_LABELS: Final = {
    "loho": "Leave-one-hospital-out",
    "federated": "Federated",
    "local": "Local only",
    "tabular": "Table alone",
    "ich_score": "ICH score",
    "pooled": "Pooled data",
    "pooled_within": "Pooled data, all hospitals",
    "without_privacy": "Without privacy",
}

NOTHING: Final = "–"
"""Stands for a number that cannot be estimated."""

WITHHELD: Final = "withheld"
"""Stands for a count that a hospital does not give, since it is small."""


def arm_label(arm: str) -> str:
    """The name of an arm for people."""
    return ARM_LABELS.get(arm, arm)


def number(name: str, value: float | None) -> str:
    """Two decimals for calibration and O/E, three for all else; a true minus sign, never -0."""
    return NOTHING if value is None else f"{value:z.{_digits(name)}f}".replace("-", "−")


def _digits(name: str) -> int:
    return 2 if name.startswith("calibration") or name == "observed_expected" else 3


def interval(name: str, low: float | None, high: float | None) -> str:
    """`0.741–0.808`, or `−0.31 to 0.12` for a metric that may be negative; empty without an interval, or where it has no width."""
    if low is None or high is None or low == high:
        return ""
    signed = name.startswith("calibration") or name in ("scaled_brier", "auroc_difference")
    return f"{number(name, low)}{' to ' if signed else '–'}{number(name, high)}"


def estimate(name: str, value: float | None, low: float | None, high: float | None) -> str:
    """`0.776 (0.741–0.808)`."""
    around = interval(name, low, high)
    return f"{number(name, value)} ({around})" if around else number(name, value)


def difference(found: Paired) -> str:
    """`+0.011 (−0.002 to +0.024)`."""

    def signed(value: float) -> str:
        return f"{value:+z.3f}".replace("-", "−")

    if found.low is None or found.high is None:
        return signed(found.mean)
    return f"{signed(found.mean)} ({signed(found.low)} to {signed(found.high)})"


def signed(name: str, value: float) -> str:
    """A difference of one metric: `+0.012`, `−0.31`; as many digits as the metric has."""
    return f"{value:+z.{_digits(name)}f}".replace("-", "−")


def between(name: str, low: float | None, high: float | None) -> str:
    """`−0.002 to +0.024`, or nothing without an interval, or where it has no width."""
    return "" if low is None or high is None or low == high else f"{signed(name, low)} to {signed(name, high)}"


def count(number: int | None) -> str:
    """`1,234`, or that it is withheld."""
    return WITHHELD if number is None else f"{number:,}"


def total(numbers: Iterable[int | None]) -> str:
    """`1,234`, or `≥ 1,234` where some are withheld."""
    found = list(numbers)
    text = f"{sum(number for number in found if number is not None):,}"
    return f"≥ {text}" if None in found else text


def needs_four(found: Summary) -> str:
    """Why there is no prediction interval: only hospitals with an interval of their own count."""
    return f"needs 4 hospitals, has {found.k}"


def some(hospitals: Sequence[str]) -> str:
    """The first dozen by name, and how many more."""
    shown = ", ".join(hospitals[:12])
    return shown if len(hospitals) <= 12 else f"{shown} and {len(hospitals) - 12} more"


def many(count: int, noun: str) -> str:
    """`1 hospital`, `8,178 patients`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
