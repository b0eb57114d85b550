"""Random-effects meta-analysis of one number per hospital: REML, Hartung-Knapp interval, I2, prediction interval.

Model: effect_i ~ N(mu, variance_i + tau^2), the variances taken as known. tau^2 by restricted maximum likelihood
(Viechtbauer, J Educ Behav Stat 2005); mu by the weights w_i = 1 / (variance_i + tau^2).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, sqrt

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri, stdtrit

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """The mean over `k` hospitals with 95 % intervals; None = cannot be estimated from so few.

    estimate, low, high: the mean effect. k >= 2: Hartung-Knapp interval (Stat Med 2001), t with k - 1 degrees of
    freedom and standard error sqrt(sum w (effect - mean)^2 / ((k - 1) sum w)) as it is, without the max(1, .)
    modification (metafor's `test="knha"`): with few, nearly equal effects it can be shorter than a fixed-effect
    interval, with equal ones it is a point. k = 1: that hospital's own z interval.
    tau: standard deviation of the true effects between hospitals, on the scale of the analysis. None for k = 1.
    i2: tau^2 / (tau^2 + s^2), 0 to 1, s^2 = (k - 1) sum u / ((sum u)^2 - sum u^2), u = 1 / variance, being the typical
    within-hospital variance (Higgins & Thompson, Stat Med 2002). None for k = 1.
    prediction_low, prediction_high: where the true effect of a new hospital lies, mean +- t sqrt(tau^2 + se^2), t with
    k - 2 degrees of freedom (Higgins, Thompson & Spiegelhalter, JRSS A 2009), se the Hartung-Knapp one (Partlett &
    Riley, Stat Med 2017), so that it always contains the interval of the mean. None for k < 4.
    """

    k: int
    estimate: float
    low: float
    high: float
    tau: float | None
    i2: float | None
    prediction_low: float | None
    prediction_high: float | None


def random_effects(effects: npt.ArrayLike, variances: npt.ArrayLike) -> Summary:
    """Pool `effects` with their sampling `variances`, both of shape (hospitals,), on a scale where they are normal.

    Raises ValueError without any hospital, for shapes that differ, for effects that are not finite, and for variances
    that are not positive and finite (a hospital that claims no error would decide everything).
    """
    y, v = np.asarray(effects, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if y.ndim != 1 or y.shape != v.shape:
        raise ValueError(f"effects {y.shape} and variances {v.shape} must be one-dimensional and equally long")
    k = y.size
    if k == 0:
        raise ValueError("a meta-analysis needs at least one hospital")
    if not np.all(np.isfinite(y)):
        raise ValueError("effects must be finite")
    if not np.all((v > 0) & np.isfinite(v)):
        raise ValueError("variances must be positive and finite")
    if k == 1:
        half = float(ndtri(0.975)) * sqrt(v[0])
        return Summary(1, float(y[0]), float(y[0]) - half, float(y[0]) + half, None, None, None, None)
    tau2 = _reml(y, v)
    w = 1 / (v + tau2)
    mean = float(np.sum(w * y) / np.sum(w))
    se2 = float(np.sum(w * (y - mean) ** 2) / ((k - 1) * np.sum(w)))
    half = float(stdtrit(k - 1, 0.975)) * sqrt(se2)
    u = 1 / v
    typical = float((k - 1) * np.sum(u) / (np.sum(u) ** 2 - np.sum(u**2)))
    i2 = tau2 / (tau2 + typical)
    if k < 4:
        return Summary(k, mean, mean - half, mean + half, sqrt(tau2), i2, None, None)
    reach = float(stdtrit(k - 2, 0.975)) * sqrt(tau2 + se2)
    return Summary(k, mean, mean - half, mean + half, sqrt(tau2), i2, mean - reach, mean + reach)


def summarise_ratio(values: npt.ArrayLike, variances: npt.ArrayLike) -> Summary:
    """Pool ratios (O/E) with the variances of their logarithms, both of shape (hospitals,): `random_effects` of the logarithms.

    estimate, low, high and the prediction interval come back as ratios; tau and i2 stay on the log scale. Raises
    ValueError as `random_effects` does, and for a ratio that is not positive.
    """
    ratios = np.asarray(values, dtype=np.float64)
    if not np.all(ratios > 0):
        raise ValueError("a ratio must be positive to be pooled on the log scale")
    return _back(random_effects(np.log(ratios), variances), exp)


def _back(pooled: Summary, scale: Callable[[float], float]) -> Summary:
    """A summary of transformed numbers with its mean and its intervals on their own scale."""
    low, high = pooled.prediction_low, pooled.prediction_high
    return replace(
        pooled,
        estimate=scale(pooled.estimate),
        low=scale(pooled.low),
        high=scale(pooled.high),
        prediction_low=None if low is None else scale(low),
        prediction_high=None if high is None else scale(high),
    )


def summarise_auroc(values: npt.ArrayLike, variances: npt.ArrayLike) -> Summary:
    """Pool AUROCs with their variances (DeLong), both of shape (hospitals,): `random_effects` of their logits.

    The variance of a logit is variance / (auroc (1 - auroc))^2 (delta method). estimate, low, high and the prediction
    interval come back as AUROCs; tau and i2 stay on the logit scale. The caller leaves out hospitals with too few
    events or non-events. Raises ValueError as `random_effects` does, and for an AUROC not strictly between 0 and 1.
    """
    a, v = np.asarray(values, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if a.shape != v.shape:
        raise ValueError(f"values {a.shape} and variances {v.shape} must be equally long")
    if not np.all((a > 0) & (a < 1)):
        raise ValueError("an AUROC must lie strictly between 0 and 1 to be pooled on the logit scale")
    return _back(random_effects(logit(a), v / (a * (1 - a)) ** 2), lambda effect: float(expit(effect)))


def _reml(y: _Floats, v: _Floats) -> float:
    """tau^2 >= 0 with the highest restricted likelihood: the best of a grid, then the root of the score beside it.

    The likelihood may have more than one peak, hence the grid. The score is negative above
    max(largest variance, 2 sum (y - mean)^2 / (k - 1)): there it is at most S / t^2 - (k - 1) / (2 t).
    """
    top = max(float(np.max(v)), 2 * float(np.sum((y - np.mean(y)) ** 2)) / (y.size - 1))
    grid = np.append(0.0, np.geomspace(1e-8 * top, top, 400))
    best = int(np.argmax(_restricted_likelihood(grid, y, v)))
    if best == 0:
        return 0.0
    rising = _score(float(grid[best]), y, v) > 0
    below, above = (best, best + 1) if rising else (best - 1, best)
    if above == grid.size or not _score(float(grid[below]), y, v) > 0 >= _score(float(grid[above]), y, v):
        return float(grid[best])  # a peak narrower than the grid, or one that rounding has flattened
    return float(brentq(_score, grid[below], grid[above], args=(y, v), xtol=1e-300, rtol=1e-14))


def _restricted_likelihood(tau2: _Floats, y: _Floats, v: _Floats) -> _Floats:
    """Twice the restricted log-likelihood at each `tau2` (points,), but for a constant."""
    w = 1 / (v + tau2[:, None])
    total = np.sum(w, axis=1)
    mean = np.sum(w * y, axis=1) / total
    squares = np.sum(w * (y - mean[:, None]) ** 2, axis=1)
    return np.asarray(np.sum(np.log(w), axis=1) - np.log(total) - squares)


def _score(tau2: float, y: _Floats, v: _Floats) -> float:
    """Derivative of twice the restricted log-likelihood."""
    w = 1 / (v + tau2)
    total = np.sum(w)
    mean = np.sum(w * y) / total
    return float(np.sum((w * (y - mean)) ** 2) - total + np.sum(w**2) / total)
