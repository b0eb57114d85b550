"""Metrics from counts: patients with and without the event in each bin of the predicted probability, exact or noised."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ich_models.metrics import METRICS, Estimate, Evaluation

Floats = NDArray[np.float64]

_UNKNOWN: Final = Estimate(None, None, None)


def edges(bins: int, threshold: float) -> Floats:
    """Ends of equal bins over 0 to 1, the threshold among them: patients above it can then be told from those below."""
    return np.unique(np.append(np.linspace(0.0, 1.0, bins + 1), threshold))


def counts(labels: NDArray[np.int64], probabilities: NDArray[np.floating], limits: Floats) -> Floats:
    """(2, B): patients without and with the event in each bin; a probability on an edge belongs above it, 1 to the last."""
    places = np.clip(np.searchsorted(limits, probabilities, side="right") - 1, 0, len(limits) - 2)
    found = np.zeros((2, len(limits) - 1))
    np.add.at(found, (labels, places), 1.0)
    return found


def evaluate(found: Floats, limits: Floats, threshold: float) -> Evaluation:
    """Every metric that (2, B) counts can tell, without intervals.

    Noise makes counts that are negative, and they stay so: cut off at 0 they would add up to more patients than there are.
    What comes out is brought within its range.

    Patients of one bin count as equal: in AUROC and AUPRC as ties, elsewhere at the middle of the bin. The two
    metrics of calibration need the probabilities themselves and are not given.
    """
    without, having = found
    no, yes = max(0, round(float(without.sum()))), max(0, round(float(having.sum())))
    n, events = no + yes, yes
    metrics = dict.fromkeys(METRICS, _UNKNOWN)
    if n == 0:
        return Evaluation(0, 0, metrics)
    called = limits[:-1] >= threshold
    tp, fp = float(having[called].sum()), float(without[called].sum())
    fn, tn = float(having[~called].sum()), float(without[~called].sum())
    middle = (limits[:-1] + limits[1:]) / 2
    whole = tp + fp + fn + tn
    values = {
        "brier": _share(float((having * (1 - middle) ** 2 + without * middle**2).sum()), whole),
        "accuracy": _share(tp + tn, whole),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "recall": _share(tp, tp + fn),
        "precision": _share(tp, tp + fp),
        "specificity": _share(tn, tn + fp),
        "f2": _share(5 * tp, 5 * tp + 4 * fn + fp),
        "npv": _share(tn, tn + fn),
        "prevalence": _share(tp + fn, whole),
    }
    if 0 < events < n:
        expected = float(((having + without) * middle).sum())
        values["observed_expected"] = (tp + fn) / expected if expected > 0 and tp + fn > 0 else None
        brier, prevalence = values["brier"], values["prevalence"] or 0.0
        values["scaled_brier"] = 1 - brier / (prevalence * (1 - prevalence)) if brier and 0 < prevalence < 1 else None
        below = np.cumsum(without) - without
        values["auroc"] = _share(float((having * (below + without / 2)).sum()), float(having.sum() * without.sum()))
        above, seen = np.cumsum(having[::-1]), np.cumsum((having + without)[::-1])
        precision = np.divide(above, seen, out=np.zeros_like(above), where=seen > 0)
        values["auprc"] = _share(float((having[::-1] * precision).sum()), float(having.sum()))
    given = {name: Estimate(value, None, None) for name, value in values.items() if value is not None}
    return Evaluation(n, events, metrics | given)


def _share(part: float, whole: float) -> float | None:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else None
