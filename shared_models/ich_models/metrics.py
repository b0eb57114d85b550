"""What a hospital computes about one evaluated binary model: fifteen metrics with 95 % intervals, DeLong, Youden.

Everything is computed from two arrays of shape (patients,): the label (1 = event) and the predicted probability of the
event. Only scalars come out. Patients are put in one order first, so that the order of the file they came from changes
nothing, not even the last bit; given the same inputs, the same machine and the same numpy, a result is identical.
An interval that cannot be computed, or that would have no width, is not given: None, never a made-up certainty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import exp, inf, isfinite, nan, sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import binomtest, rankdata

from ich_models import calibration
from ich_models.curves import Bin, Decision

METRICS: Final = (
    "auroc",
    "auprc",
    "prevalence",
    "brier",
    "scaled_brier",
    "observed_expected",
    "calibration_slope",
    "calibration_intercept",
    "accuracy",
    "f1",
    "f2",
    "recall",
    "precision",
    "specificity",
    "npv",
)
"""The metrics of `Evaluation`, in the order in which they are sent and reported."""

RANGES: Final[Mapping[str, tuple[float, float]]] = dict.fromkeys((*METRICS, "auroc_difference"), (0.0, 1.0)) | {
    "auroc_difference": (-1.0, 1.0),
    "scaled_brier": (-1e9, 1.0),
    "observed_expected": (0.0, 1e9),
    "calibration_slope": (-1e9, 1e9),
    "calibration_intercept": (-1e9, 1e9),
}
"""Smallest and largest possible value of each metric (of calibration: that means anything); intervals are cut there.

`auroc_difference`: between two models on the same patients."""

TYPE_METRICS: Final = ("auroc", "auprc", "brier", "f1", "f2", "recall", "precision", "specificity")
"""The metrics of one type of haemorrhage."""

SUBGROUP_METRICS: Final = ("auroc", "brier", "observed_expected", "calibration_slope", "calibration_intercept")
"""The metrics of a subgroup. None of the threshold: its four cells in each subgroup would be counts of a few."""

MIN_PER_CLASS: Final = 10
"""Events, and non-events, below which no interval of the AUROC is given."""

_BOOTSTRAPPED: Final = ("auprc", "scaled_brier", "f1", "f2")
_Z: Final = float(ndtri(0.975))
_CELLS_AT_ONCE: Final = 1 << 17  # resamples x patients held in memory: 1 MB an array

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; None = cannot be estimated from these patients."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """One model at one hospital: `n` patients, `events` of them with label 1, and all of `METRICS` in their order.

    `events` None: withheld, since they or the others are few; every metric is then unknown.
    `types`: of a model of several types, in whose place nothing is known of METRICS: what it says of each type.
    `bins`, `decisions`: calibration bins and decision curve, as far as they may be told. `subgroups`: by variable and
    level, with `SUBGROUP_METRICS` alone; None: withheld.
    """

    n: int
    events: int | None
    metrics: Mapping[str, Estimate]
    types: Mapping[str, "OfType"] = field(default_factory=dict)
    bins: tuple[Bin, ...] = ()
    decisions: tuple[Decision, ...] = ()
    subgroups: Mapping[str, Mapping[str, "Evaluation | None"]] = field(default_factory=dict)


@dataclass(frozen=True)
class OfType:
    """One type of haemorrhage: its slices and its patients, each with a label of this type, and `TYPE_METRICS` of both."""

    slices: Evaluation
    patients: Evaluation


_UNKNOWN: Final = Estimate(None, None, None)


def evaluate(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    threshold: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Evaluation:
    """Evaluate a model on `labels` and `probabilities`, both of shape (patients,); positive = probability >= threshold.

    `threshold` is one number, or one per patient where the patients' probabilities come from several models.

    - auroc: with both classes; interval by DeLong's variance on the logit scale, from `MIN_PER_CLASS` of each class on.
    - auprc: average precision (the step sum, not interpolated; scikit-learn's definition), with both classes only.
    - prevalence: events among the patients, what an AUPRC is to be read against; Wilson interval.
    - brier: mean squared error of the probabilities; Wald interval from the variance of the squared errors.
    - scaled_brier: 1 - brier / (prevalence (1 - prevalence)): 0 for saying the prevalence of everybody, 1 for certainty
      (Steyerberg et al., Epidemiology 2010), with both classes only.
    - observed_expected: events over the sum of the probabilities (Debray et al., BMJ 2017); interval on the log scale,
      the variance of log O being (1 - O/n) / O; none with one class.
    - calibration_slope: b in logit P(event) = a + b logit(p), Wald interval (Cox 1958); None with one class, a constant
      score, or classes that the score separates (the likelihood then has no maximum).
    - calibration_intercept: calibration-in-the-large, a in logit P(event) = a + logit(p), Wald interval; None with one
      class. Over 0: more events than predicted.
    - accuracy, recall, precision (PPV), specificity, npv: Wilson (1927) interval; None where the denominator is 0.
    - f1: 2 tp / (2 tp + fp + fn), f2: 5 tp / (5 tp + fp + 4 fn); None where the denominator is 0.

    For the logits of both calibration metrics, and for nothing else, p is kept within [1e-12, 1 - 1e-12].
    auprc, scaled_brier, f1 and f2 get percentile intervals from `resamples` bootstrap samples of patients (0: none), drawn by PCG64 from
    `seed`; samples in which the metric has no value are left out. In simulations with about 100 events and more the
    interval of f1 covers 94 to 95 %, that of auprc 93 % (it lies a little high); with a handful both are too short.

    Raises ValueError for shapes that differ, labels other than 0 and 1, probabilities that are not within [0, 1],
    a threshold that is not finite, or negative `resamples`. No patients at all is no error: n = 0 and every value None.
    """
    positive, given = _checked(labels, probabilities)
    if np.any((given < 0) | (given > 1)):
        raise ValueError("probabilities must lie within [0, 1]")
    limits = np.asarray(threshold, dtype=np.float64)
    if not np.all(np.isfinite(limits)) or limits.shape not in ((), given.shape):
        raise ValueError("threshold must be a finite number, or one for each patient")
    if resamples < 0:
        raise ValueError("resamples must not be negative")
    decided = given >= limits
    # highest score first; patients within equal keys are interchangeable
    order = np.lexsort((decided, positive, given))[::-1]
    event, p, called = positive[order], given[order], decided[order]
    n, events = event.size, int(np.count_nonzero(event))
    if n == 0:
        return Evaluation(0, 0, dict.fromkeys(METRICS, _UNKNOWN))
    predicted = int(np.count_nonzero(called))
    tp = int(np.count_nonzero(event & called))
    fp, fn = predicted - tp, events - tp
    tn = n - tp - fp - fn
    both = 0 < events < n
    samples = _bootstrap(event, p, called, seed, resamples)
    auprc = float(average_precision(event, p, np.ones((1, n), dtype=np.int64))[0]) if both else None
    brier = _brier(event, p)
    scaled = 1 - (brier.value or 0.0) / (events * (n - events) / n**2) if both else None
    f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None
    f2 = 5 * tp / (5 * tp + fp + 4 * fn) if tp + fp + fn else None
    found = {
        "auroc": _auroc(event, p) if both else _UNKNOWN,
        "auprc": percentiles("auprc", auprc, samples["auprc"]),
        "prevalence": _proportion(events, n),
        "brier": brier,
        "scaled_brier": percentiles("scaled_brier", scaled, samples["scaled_brier"]),
        "observed_expected": _observed_expected(event, p),
        "calibration_slope": _slope(event, p) if both else _UNKNOWN,
        "calibration_intercept": _intercept(event, p) if both else _UNKNOWN,
        "accuracy": _proportion(tp + tn, n),
        "f1": percentiles("f1", f1, samples["f1"]),
        "f2": percentiles("f2", f2, samples["f2"]),
        "recall": _proportion(tp, events),
        "precision": _proportion(tp, predicted),
        "specificity": _proportion(tn, n - events),
        "npv": _proportion(tn, n - predicted),
    }
    return Evaluation(n, events, {name: found[name] for name in METRICS})


def evaluate_subgroup(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> Evaluation:
    """`SUBGROUP_METRICS` of the patients of a subgroup, as `evaluate` gives them. Raises ValueError as it does."""
    found = evaluate(labels, probabilities, 0.5, resamples=0)
    return Evaluation(found.n, found.events, {name: found.metrics[name] for name in SUBGROUP_METRICS})


def delong(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[float, float]:
    """Area under the ROC curve and its variance, from `labels` and scores of shape (patients,) on any scale.

    The variance is that of DeLong, DeLong & Clarke-Pearson (Biometrics 1988), its placement values taken from midranks
    (Sun & Xu, IEEE Signal Processing Letters 2014): O(n log n), a tied pair counts one half. It is nan with fewer than
    two patients in a class. Raises ValueError for malformed input and where a class is missing.
    """
    positive, scores = _checked(labels, probabilities)
    area, events, others = _placements(positive, scores)
    return area, _placement_variance(events, others)


def delong_paired(labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[float, float, float]:
    """Compare two models on the same patients: AUROC of `first` minus `second`, its variance, the two-sided p-value.

    All three arrays have the shape (patients,). The variance accounts for the correlation (DeLong et al. 1988) and is
    nan with fewer than two patients in a class. Scores in the same order give exactly 0, 0 and p = 1; a difference
    without variance gives p = nan. Raises ValueError as `delong` does.
    """
    positive, scores = _checked(labels, first)
    area, events, others = _placements(positive, scores)
    area_second, events_second, others_second = _placements(*_checked(labels, second))
    difference = area - area_second
    variance = _placement_variance(events - events_second, others - others_second)
    if variance > 0:
        return difference, variance, float(2 * ndtr(-abs(difference) / sqrt(variance)))
    return difference, variance, 1.0 if difference == 0 and variance == 0 else nan


def chosen_threshold(rule: str, labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """The threshold by `evaluation.threshold`, 'youden' or 'f2'."""
    return {"youden": youden_threshold, "f2": f2_threshold}[rule](labels, probabilities)


def youden_threshold(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """The threshold with the largest recall + specificity - 1 (Youden 1950), positive = probability >= threshold.

    It lies midway between two adjacent observed scores, so that it is not itself a patient's score. Of equally good
    thresholds the lowest is taken: it finds more events. None with one class, or one score, only. Raises ValueError for
    malformed input; any finite scores will do.
    """
    # J + 1 = tp/events + tn/others; as whole numbers, so that ties are exact
    return _best_cut(labels, probabilities, lambda tp, tn, events, others: tp * others + tn * events)


def f2_threshold(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """The threshold with the largest F2 = 5 tp / (5 tp + 4 fn + fp); otherwise as `youden_threshold`.

    One below every score, which calls everybody positive, is not among those that are tried: it would be a choice of no model.
    """
    return _best_cut(labels, probabilities, lambda tp, tn, events, others: tp / (tp + 4 * events + others - tn))


def _best_cut(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, worth: Callable[..., npt.NDArray[Any]]
) -> float | None:
    """The cut midway between two scores with the largest `worth` (of tp, tn, each an array, events, others)."""
    positive, scores = _checked(labels, probabilities)
    distinct, place = np.unique(scores, return_inverse=True)
    events = np.bincount(place[positive], minlength=distinct.size)  # per distinct score, ascending
    others = np.bincount(place[~positive], minlength=distinct.size)
    if distinct.size < 2 or not events.any() or not others.any():
        return None
    tp, tn = events.sum() - np.cumsum(events)[:-1], np.cumsum(others)[:-1]
    best = int(np.argmax(worth(tp, tn, events.sum(), others.sum())))  # the first, hence the lowest, maximum
    below, above = float(distinct[best]), float(distinct[best + 1])
    middle = below / 2 + above / 2
    return middle if below < middle <= above else above  # no float between them: the upper one cuts just as well


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[_Bools, _Floats]:
    """Labels as booleans and finite scores, both (patients,); messages name no patient's value."""
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape:
        raise ValueError(f"labels {y.shape} and probabilities {p.shape} must be one-dimensional and equally long")
    if not np.all((y == 0) | (y == 1)):
        raise ValueError("labels must be 0 or 1")
    if not np.all(np.isfinite(p)):
        raise ValueError("probabilities must be finite")
    return y == 1, p


def _estimate(name: str, value: float, low: float, high: float) -> Estimate:
    """An estimate with its interval cut to the metric's range, or without one that is undefined or has no width."""
    if not (isfinite(low) and isfinite(high) and low < high):
        return Estimate(value, None, None)
    lowest, highest = RANGES[name]
    if not lowest <= value <= highest:
        return _UNKNOWN
    return Estimate(value, max(low, lowest), min(high, highest))


def _wald(name: str, value: float, error: float) -> Estimate:
    return _estimate(name, value, value - _Z * error, value + _Z * error)


def _proportion(successes: int, trials: int) -> Estimate:
    if trials == 0:
        return _UNKNOWN
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def _brier(event: _Bools, p: _Floats) -> Estimate:
    squared = (p - event) ** 2
    error = sqrt(float(np.var(squared, ddof=1)) / squared.size) if squared.size > 1 else nan
    return _wald("brier", float(np.mean(squared)), error)


def _auroc(event: _Bools, p: _Floats) -> Estimate:
    area, variance = delong(event, p)
    if min(np.count_nonzero(event), np.count_nonzero(~event)) < MIN_PER_CLASS or not variance > 0:
        return Estimate(area, None, None)
    centre, half = float(logit(area)), _Z * sqrt(variance) / (area * (1 - area))  # delta method
    return _estimate("auroc", area, float(expit(centre - half)), float(expit(centre + half)))


def _placements(positive: _Bools, scores: _Floats) -> tuple[float, _Floats, _Floats]:
    """AUROC; per event the fraction of non-events below it, per non-event of events below it; a tie is one half."""
    events, others = int(np.count_nonzero(positive)), int(np.count_nonzero(~positive))
    if not events or not others:
        raise ValueError("the AUROC needs at least one event and one non-event")
    ranks = rankdata(scores)
    others_below = ranks[positive] - rankdata(scores[positive])  # whole and half numbers: exact
    events_below = ranks[~positive] - rankdata(scores[~positive])
    return float(others_below.sum()) / (events * others), others_below / others, events_below / events


def _placement_variance(events: _Floats, others: _Floats) -> float:
    """Variance of the area, or difference, with these placement values; sorted: the patients' order must not matter."""
    if min(events.size, others.size) < 2:
        return nan
    return float(sum(np.var(np.sort(values), ddof=1) / values.size for values in (events, others)))


def _slope(event: _Bools, p: _Floats) -> Estimate:
    line = calibration.slope(event, p)
    return _UNKNOWN if line is None else _wald("calibration_slope", line.slope, line.error)


def _intercept(event: _Bools, p: _Floats) -> Estimate:
    line = calibration.in_the_large(event, p)
    return _UNKNOWN if line is None else _wald("calibration_intercept", line.intercept, line.error)


def _observed_expected(event: _Bools, p: _Floats) -> Estimate:
    """Interval on the log scale: the variance of log O is (1 - O/n) / O (delta method on a binomial count)."""
    events, expected = int(np.count_nonzero(event)), float(np.sum(p))
    ratio = events / expected if expected > 0 else inf
    if ratio > RANGES["observed_expected"][1]:
        return _UNKNOWN
    if not 0 < events < event.size:
        return _estimate("observed_expected", ratio, nan, nan)
    reach = exp(_Z * sqrt((1 - events / event.size) / events))
    return _estimate("observed_expected", ratio, ratio / reach, ratio * reach)


def _bootstrap(event: _Bools, p: _Floats, called: _Bools, seed: int, resamples: int) -> dict[str, _Floats]:
    """`auprc`, `scaled_brier`, `f1` and `f2`, (resamples,) each, nan where undefined, of samples of n patients with replacement.

    Patients are sorted by falling score; `called` are the ones called positive. A sample is a row of counts: how often
    each patient was drawn.
    """
    n = event.size
    generator = np.random.Generator(np.random.PCG64(seed))
    found: dict[str, list[_Floats]] = {name: [np.empty(0)] for name in _BOOTSTRAPPED}
    squared = (p - event) ** 2
    rows_at_once = max(1, _CELLS_AT_ONCE // n)
    for first in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - first)
        drawn = generator.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        found["auprc"].append(average_precision(event, p, counts))
        events, positive = counts @ event.astype(np.int64), counts @ called.astype(np.int64)
        hits = counts @ (called & event).astype(np.int64)
        with np.errstate(invalid="ignore", divide="ignore"):
            chance = events * (n - events) / n  # n times the Brier score of saying the prevalence
            found["scaled_brier"].append(np.where(chance > 0, 1 - np.sum(counts * squared, axis=1) / chance, nan))
            found["f1"].append(2 * hits / (events + positive))
            found["f2"].append(5 * hits / (4 * events + positive))
    return {name: np.concatenate(samples) for name, samples in found.items()}


def average_precision(event: _Bools, p: _Floats, counts: _Ints | _Floats) -> _Floats:
    """Average precision of each row of `counts` (rows, patients), patients sorted by falling `p`; nan with one class.

    Patients with one score enter together: the sums are read only where a run of equal scores ends.
    """
    ends = np.flatnonzero(np.append(np.diff(p) != 0, True))
    found = np.cumsum(counts * event, axis=1)[:, ends]
    called = np.cumsum(counts, axis=1)[:, ends]
    total = found[:, -1]
    gains = np.sum(np.diff(found, axis=1, prepend=0) * (found / np.maximum(called, 1)), axis=1)
    both = (total > 0) & (total < called[:, -1])
    return np.where(both, gains / np.maximum(total, 1), nan)


def percentiles(name: str, value: float | None, samples: _Floats) -> Estimate:
    """A value with the central 95 % of its bootstrap samples."""
    samples = samples[np.isfinite(samples)]
    if value is None or not samples.size:
        return Estimate(value, None, None)
    low, high = np.percentile(samples, [2.5, 97.5])
    return _estimate(name, value, float(low), float(high))
