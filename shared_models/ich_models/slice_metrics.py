"""What a hospital computes about a model of slices: each type of haemorrhage by slice and by patient, with 95 % intervals.

The slices of a patient resemble each other: intervals of slices come from samples of patients, each with all its slices.
"""

from math import nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ich_models.image_spec import HAEMORRHAGES
from ich_models.metrics import (
    METRICS,
    MIN_PER_CLASS,
    TYPE_METRICS,
    Estimate,
    Evaluation,
    OfType,
    average_precision,
    chosen_threshold,
    evaluate,
    percentiles,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RESAMPLES: Final = 1000

_CELLS_AT_ONCE: Final = 1 << 20  # resamples x slices held in memory: 8 MB an array
_UNKNOWN: Final = Estimate(None, None, None)


def evaluate_slices(
    patients: int,
    events: int,
    targets: NDArray[np.floating],
    probabilities: NDArray[np.floating],
    thresholds: NDArray[np.floating],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Evaluate a model on `targets` (N, S, 5), NaN where there is no label, and `probabilities` (N, S, 5).

    `thresholds` (N, 5): a slice is called positive at this probability or above. `patients`, `events`: how many were tested,
    and had the outcome that the study counts. Per type:

    - slices: those with a label of this type. Definitions as in `metrics.evaluate`; f2 = 5 tp / (5 tp + 4 fn + fp). Intervals
      are percentiles over samples of patients (cluster bootstrap), from `MIN_PER_CLASS` patients with the type and as many
      without it on.
    - patients: those with such a slice; one has the type if a slice does, and the probability of its most suspicious slice.
      Intervals as in `metrics.evaluate`, that of f2 as that of f1.

    Raises ValueError for shapes that differ.
    """
    if targets.ndim != 3 or targets.shape != probabilities.shape or thresholds.shape != targets.shape[::2]:
        raise ValueError(f"targets {targets.shape}, probabilities {probabilities.shape}, thresholds {thresholds.shape}")
    types = {
        str(kind): _of_type(targets[..., k], probabilities[..., k], thresholds[:, k], seed, resamples)
        for k, kind in enumerate(HAEMORRHAGES)
    }
    return Evaluation(patients, events, dict.fromkeys(METRICS, _UNKNOWN), types)


def having(targets: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Patients with a labelled slice of each type, and those of them who have the type: (N, S, 5) -> (5,), (5,)."""
    known = ~np.isnan(targets)
    return known.any(1).sum(0), (known & (targets == 1)).any(1).sum(0)


def slice_thresholds(
    rule: str, targets: NDArray[np.floating], probabilities: NDArray[np.floating]
) -> list[float | None]:
    """Per type the threshold by `rule` among its labelled slices: (N, S, 5), (N, S, 5) -> 5; None with one class only."""
    known = ~np.isnan(targets)
    return [
        chosen_threshold(rule, targets[..., k][known[..., k]], probabilities[..., k][known[..., k]])
        for k in range(targets.shape[-1])
    ]


def _of_type(
    targets: NDArray[np.floating], given: NDArray[np.floating], limits: NDArray[np.floating], seed: int, resamples: int
) -> OfType:
    """One type: (N, S), (N, S), (N,)."""
    known = ~np.isnan(targets)
    some = known.any(1)
    having = (known & (targets == 1)).any(1)[some]
    highest = np.where(known, given, -np.inf).max(1, initial=-np.inf)[some].astype(np.float64)
    enough = min(int(having.sum()), int((~having).sum())) >= MIN_PER_CLASS
    owner = np.broadcast_to(np.cumsum(some)[:, None] - 1, known.shape)[known]
    called = given >= limits[:, None]
    positive = targets[known] == 1
    slices = _measure(positive, given[known].astype(np.float64), called[known], owner, seed, resamples if enough else 0)
    plain = evaluate(having, highest, limits[some], seed=seed, resamples=resamples)
    own = np.arange(len(having))
    clustered = _measure(having, highest, highest >= limits[some], own, seed, resamples)
    metrics = {name: clustered[name] if name == "f2" else plain.metrics[name] for name in TYPE_METRICS}
    return OfType(
        Evaluation(int(known.sum()), int(positive.sum()), slices),
        Evaluation(int(some.sum()), int(having.sum()), metrics),
    )


def _measure(
    positive: Bools, p: Floats, called: Bools, owner: NDArray[np.int64], seed: int, resamples: int
) -> dict[str, Estimate]:
    """`TYPE_METRICS` of n slices, all (n,). `owner`: whose each is, from 0; intervals by samples of owners."""
    if not len(p):
        return dict.fromkeys(TYPE_METRICS, _UNKNOWN)
    order = np.lexsort((owner, called, positive, p))[::-1]
    positive, p, called, owner = positive[order], p[order], called[order], owner[order]
    exact = _weighted(positive, p, called, np.ones((1, len(p))))
    patients = int(owner.max()) + 1
    generator = np.random.Generator(np.random.PCG64(seed))
    samples: list[Floats] = []
    rows_at_once = max(1, _CELLS_AT_ONCE // len(p))
    for first in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - first)
        drawn = generator.integers(0, patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        samples.append(_weighted(positive, p, called, counts[:, owner].astype(np.float64)))
    found = np.concatenate(samples) if samples else np.empty((0, len(TYPE_METRICS)))
    values = [None if np.isnan(value) else float(value) for value in exact[0]]
    return {
        name: percentiles(name, value, column)
        for name, value, column in zip(TYPE_METRICS, values, found.T, strict=True)
    }


def _weighted(positive: Bools, p: Floats, called: Bools, weight: Floats) -> Floats:
    """(rows, 8): `TYPE_METRICS` under each row of `weight` (rows, n), slices sorted by falling `p`; nan where undefined."""
    total = weight.sum(1)
    events = weight @ positive.astype(np.float64)
    tp, fp = (weight @ (called & which).astype(np.float64) for which in (positive, ~positive))
    fn, others = events - tp, total - events
    ends = np.flatnonzero(np.append(np.diff(p) != 0, True))
    found = np.cumsum(weight * positive, axis=1)[:, ends]
    passed = np.cumsum(weight * ~positive, axis=1)[:, ends]
    here, equal = np.diff(found, axis=1, prepend=0), np.diff(passed, axis=1, prepend=0)
    below = others[:, None] - passed + equal / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = {
            "auroc": (here * below).sum(1) / (events * others),
            "auprc": average_precision(positive, p, weight),
            "brier": (weight @ (p - positive) ** 2) / total,
            "f1": 2 * tp / (2 * tp + fn + fp),
            "f2": 5 * tp / (5 * tp + 4 * fn + fp),
            "recall": tp / events,
            "precision": tp / (tp + fp),
            "specificity": (others - fp) / others,
        }
    return np.stack([np.where(np.isfinite(columns[name]), columns[name], nan) for name in TYPE_METRICS], axis=1)
