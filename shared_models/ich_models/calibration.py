"""Calibration of predicted probabilities: slope and intercept with their standard errors, and the line that mends both.

Arrays are of shape (patients,): `event` bool, `p` float64 within [0, 1], both classes present, in a fixed order. For
logits p is kept within [1e-12, 1 - 1e-12].
"""

from dataclasses import dataclass
from math import inf, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

_PROBABILITY_FLOOR: Final = 1e-12  # a probability of 0 or 1 has no logit

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Line:
    """logit P(event) = intercept + slope logit(p), with the standard error of the last one that was fitted."""

    intercept: float
    slope: float
    error: float


def slope(event: _Bools, p: _Floats) -> Line | None:
    """Both coefficients by maximum likelihood (Cox, Biometrika 1958); `error` is the slope's.

    None for a constant score, or classes that the score separates: the likelihood then has no maximum.
    """
    x = _logit(p)
    of_events, of_others = x[event], x[~event]
    if of_others.max() <= of_events.min() or of_events.max() <= of_others.min():
        return None  # constant, or separated completely or but for a tie (Albert & Anderson 1984)
    spread, middle = float(np.std(x)), float(np.mean(x))
    columns = np.stack([np.ones_like(x), (x - middle) / spread])
    fit = _logistic(event, columns, np.zeros_like(x), np.array([_log_odds(event), 0.0]))
    if fit is None:
        return None
    (first, last), error = fit
    return Line(first - last * middle / spread, last / spread, error / spread)


def in_the_large(event: _Bools, p: _Floats) -> Line | None:
    """The intercept by maximum likelihood with a slope of 1; `error` is the intercept's. Over 0: more events than predicted."""
    x = _logit(p)
    fit = _logistic(event, np.ones((1, x.size)), x, np.array([_log_odds(event) - float(np.mean(x))]))
    return None if fit is None else Line(fit[0][0], 1.0, fit[1])


def _logit(p: _Floats) -> _Floats:
    return np.asarray(logit(np.clip(p, _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)))


def _log_odds(event: _Bools) -> float:
    return float(logit(np.mean(event)))


def _logistic(event: _Bools, columns: _Floats, offset: _Floats, start: _Floats) -> tuple[list[float], float] | None:
    """Maximum likelihood of a logistic regression: its coefficients and the last one's standard error; None = no fit.

    `columns` (coefficients, patients), `offset` (patients,), `start` (coefficients,). Newton's method, a step that
    overshoots being halved. Sums, not matrix products: a BLAS may add in another order with more threads.
    """

    def linear(beta: _Floats) -> _Floats:
        return np.asarray(offset + np.sum(beta[:, None] * columns, axis=0))

    def log_likelihood(beta: _Floats) -> float:
        eta = linear(beta)
        return float(np.sum(event * eta - np.logaddexp(0.0, eta)))

    beta, likelihood = start, log_likelihood(start)
    for _ in range(100):
        eta = linear(beta)
        gradient = np.sum(columns * (event - expit(eta)), axis=1)
        information = np.sum(columns[:, None] * columns * (expit(eta) * expit(-eta)), axis=2)
        try:
            covariance = np.linalg.inv(information)
        except np.linalg.LinAlgError:
            return None
        step = np.sum(covariance * gradient, axis=1)
        decrement = float(np.sum(gradient * step))  # squared distance to the maximum, in standard errors
        if not 0 <= decrement < inf:
            return None
        if decrement < 1e-18:
            return (beta + step).tolist(), sqrt(covariance[-1, -1])
        while (trial := log_likelihood(beta + step)) < likelihood - 1e-12 * abs(likelihood):
            step = step / 2
        beta, likelihood = beta + step, trial
    return None
