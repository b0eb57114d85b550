"""What noise is worth: epsilon of all that was done with a hospital's patients, and the noise that a whole programme needs.

By Opacus: its PRV accountant (Gopi, Lee and Wutschitz 2021) composes the privacy losses themselves; its RDP accountant
(Mironov 2017) is looser and takes anything. Both bound epsilon from above, so the smaller one holds. Opacus is imported
where a number is asked for, so that a study without privacy does not need it.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ich_models.errors import ConfigurationError
from ich_models.federation import Federation
from ich_models.privacy import Privacy

ERROR: Final = 0.003
"""What PRV may add to epsilon by working on a grid, as a share of what RDP says."""

CLOSE: Final = 1.002
"""How near the noise that is found is to the smallest that is enough."""

ROUGH: Final = 1.05
"""The same where it is first looked for, by RDP."""

TRIES: Final = 12
"""Of the search for it, at the most; five are the rule."""

HOPELESS: Final = 100.0
"""An epsilon beyond which nobody needs it exactly, and PRV's grid would not fit into memory."""

DIGITS: Final = 4
"""Significant digits of a noise multiplier: what people read is what is done."""

SMALLEST, LARGEST = 0.05, 2000.0
"""Noise multipliers that are looked at: with more than the largest nothing is learnt of anybody."""


@dataclass(frozen=True, order=True)
class Steps:
    """So many steps of the Poisson-subsampled Gaussian mechanism: noise of `sigma` times the clip, sampling rate `rate`."""

    sigma: float
    rate: float
    steps: int


def merged(rows: Iterable[Steps]) -> tuple[Steps, ...]:
    """The same with one row for each noise and rate: what order they came in costs nothing, and many rows would."""
    found: dict[tuple[float, float], int] = {}
    for row in rows:
        found[row.sigma, row.rate] = found.get((row.sigma, row.rate), 0) + row.steps
    return tuple(Steps(sigma, rate, steps) for (sigma, rate), steps in sorted(found.items()) if steps)


def epsilon(rows: Iterable[Steps], delta: float) -> float:
    """Epsilon, from above, of all these steps on the same patients. Infinite where there was no noise.

    Raises ConfigurationError if Opacus is not installed.
    """
    whole = merged(rows)
    if not whole:
        return 0.0
    if any(row.sigma <= 0 for row in whole):
        return math.inf
    loose = _rdp(whole, delta)
    return min(loose, _prv(whole, delta)) if loose < HOPELESS else loose


def affordable(rows: Iterable[Steps], delta: float, limit: float) -> bool:
    """Whether epsilon stays within the limit; PRV is asked where RDP alone cannot say so."""
    whole = merged(rows)
    if not whole:
        return True
    return all(row.sigma > 0 for row in whole) and (_rdp(whole, delta) <= limit or epsilon(whole, delta) <= limit)


def noise_for(limit: float, delta: float, rate: float, steps: int, others: Iterable[Steps] = ()) -> float | None:
    """The smallest noise multiplier, to four digits, with which so many steps and the `others` stay within `limit`.

    None if no noise is enough: the others alone are beyond it.
    """
    beside = merged(others)
    if beside and not affordable(beside, delta, limit):
        return None

    def bound(sigma: float) -> float:
        return _rdp(merged((*beside, Steps(sigma, rate, steps))), delta)

    low, high = SMALLEST, 1.0
    while bound(high) > limit:
        low, high = high, 2 * high
        if high > LARGEST:
            return None
    while high / low > ROUGH:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if bound(middle) <= limit else (middle, high)
    return _tightened(lambda sigma: epsilon((*beside, Steps(sigma, rate, steps)), delta), limit, _up(high))


def _tightened(exact: Callable[[float], float], limit: float, enough: float) -> float:
    """A noise that is `enough` by RDP, brought down to what the exact epsilon asks for.

    By the secant on logarithms, where the curve is nearly a line. What is returned was itself found to be enough.
    """
    found = exact(enough)
    too_little, slope = 0.0, -1.0
    for _ in range(TRIES):
        if found >= limit * (2 - CLOSE):
            break
        tried = _up(enough * math.exp(math.log(limit / found) / slope))
        if not max(too_little, 0.2 * enough) < tried < enough:
            tried = _up(math.sqrt(max(too_little, 0.5 * enough) * enough))
            if not tried < enough:
                break
        cost = exact(tried)
        slope = min(-0.2, math.log(cost / found) / math.log(tried / enough)) if math.isfinite(cost) else slope
        if cost <= limit:
            enough, found = tried, cost
        else:
            too_little = tried
    return enough


def _up(value: float) -> float:
    """Rounded up to `DIGITS` significant digits."""
    scale = 10.0 ** (DIGITS - 1 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale


@lru_cache(maxsize=4096)
def _rdp(rows: tuple[Steps, ...], delta: float) -> float:
    return _opacus("rdp", rows, delta)


@lru_cache(maxsize=4096)
def _prv(rows: tuple[Steps, ...], delta: float) -> float:
    try:
        found = _opacus("prv", rows, delta, eps_error=ERROR * _rdp(rows, delta))
    except (RuntimeError, ValueError, MemoryError):  # a grid that does not serve; RDP's bound holds
        return math.inf
    return found if math.isfinite(found) and found >= 0 else math.inf


def _opacus(kind: str, rows: Sequence[Steps], delta: float, **options: float) -> float:
    try:
        from opacus.accountants import create_accountant
    except ImportError as error:
        hint = "pip install 'ich-federation[privacy]'"
        raise ConfigurationError("a private study needs Opacus, which is not installed", hint=hint) from error
    accountant = create_accountant(mechanism=kind)
    accountant.history = [(row.sigma, row.rate, row.steps) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RDP says where its best order lies; it is a bound all the same
        return float(accountant.get_epsilon(delta=delta, **options))


# --- the whole programme ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Programme:
    """All that a study will do with one hospital's patients, and what that costs. The same for every hospital.

    `rounds`: steps of each model in each round. `models`: that a hospital trains with each seed. `figures`: the counts
    that noised figures are made of. `model` and `study`: epsilon of one model of one seed, and of everything together.
    """

    sigma: float
    rate: float
    delta: float
    rounds: tuple[int, ...]
    models: int
    seeds: int
    figures: tuple[Steps, ...]
    model: float
    study: float

    @property
    def steps(self) -> int:
        """Of all rounds, models and seeds."""
        return sum(self.rounds) * self.models * self.seeds

    @property
    def whole(self) -> tuple[Steps, ...]:
        """Everything that the ledger will hold at the end."""
        return self.with_noise(self.sigma)

    def with_noise(self, sigma: float) -> tuple[Steps, ...]:
        """The same with another noise of the training."""
        return merged([Steps(sigma, self.rate, self.steps), *self.figures])


def models_of(federation: Federation) -> int:
    """Models of one seed that a hospital's patients train: of all, without each other hospital, without each part."""
    evaluation, privacy = federation.evaluation, _privacy(federation)
    others = privacy.planned_hospitals - 1 if evaluation.leave_one_hospital_out else 0
    return 1 + others + (evaluation.folds or 0)


def questions_of(federation: Federation) -> int:
    """Evaluations of one seed that a hospital answers."""
    evaluation = federation.evaluation
    return int(evaluation.leave_one_hospital_out) + int(evaluation.folds is not None or evaluation.test is not None)


def programme(federation: Federation) -> Programme:
    """The plan of a study with `privacy`: noise for all its rounds, epochs, models and seeds.

    Raises ConfigurationError if no noise is enough: the noised figures alone cost more than epsilon.
    """
    return _programme(federation.canonical(), federation)


_KNOWN: dict[str, Programme] = {}


def _programme(canonical: str, federation: Federation) -> Programme:
    if canonical not in _KNOWN:
        _KNOWN[canonical] = _planned(federation)
    return _KNOWN[canonical]


def _planned(federation: Federation) -> Programme:
    privacy, training = _privacy(federation), federation.training
    rounds = tuple(privacy.steps(stage) for stage in training.stages for _ in range(stage.rounds))
    models, seeds = models_of(federation), len(training.seeds)
    each = questions_of(federation) if privacy.metrics == "noised" else 0

    def figures(studies: int) -> tuple[Steps, ...]:
        return merged([Steps(privacy.metrics_noise, 1.0, each * studies)])

    runs, asked = (1, figures(1)) if privacy.per == "model" else (models * seeds, figures(seeds))
    sigma = noise_for(privacy.epsilon, privacy.delta, privacy.rate, sum(rounds) * runs, asked)
    if sigma is None:
        raise ConfigurationError(
            f"no noise makes this study private with epsilon {privacy.epsilon:g}",
            where="privacy.epsilon",
            hint="raise privacy.metrics_noise or epsilon, write metrics: not_sent, or plan fewer models and seeds",
        )
    one = epsilon([Steps(sigma, privacy.rate, sum(rounds)), *figures(1)], privacy.delta)
    every = epsilon([Steps(sigma, privacy.rate, sum(rounds) * models * seeds), *figures(seeds)], privacy.delta)
    return Programme(sigma, privacy.rate, privacy.delta, rounds, models, seeds, figures(seeds), model=one, study=every)


def _privacy(federation: Federation) -> Privacy:
    if federation.privacy is None:
        raise ValueError("a study without privacy has no programme")
    return federation.privacy


# --- what to expect ---------------------------------------------------------------------------------------------------

WEAK, USELESS = 0.5, 5.0
"""Noise of a step, over the longest step that a hospital's patients can make together."""


@dataclass(frozen=True)
class Expected:
    """How loud the noise is. `share`: of one step's noise, over all weights, to the longest step of `patients` patients."""

    patients: int
    weights: int
    share: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.share > USELESS:
            return (
                "useless: the noise drowns what so few patients can teach so many weights;"
                " freeze the encoders and train a small head, or find more patients"
            )
        if self.share > WEAK:
            return "weak: expect a clearly worse model than without privacy; fewer weights or models would help"
        return "fair: expect little loss"


def expected(plan: Programme, patients: int, weights: int, sigma: float | None = None) -> Expected:
    """What the noise of `plan` does to `weights` trainable numbers at a hospital of so many patients."""
    loudness = (sigma or plan.sigma) * math.sqrt(weights)
    return Expected(patients, weights, loudness / (plan.rate * patients))
