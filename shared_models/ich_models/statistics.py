"""Federated statistics of the table and what goes with it: sums that hospitals exchange before round 1, merged per fold, never subtracted."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from ich_models.batch import Patients
from ich_models.clinical import LARGEST_NUMBER


@dataclass(frozen=True)
class Moments:
    """Counts, means and sums of squared deviations of D columns over some patients, missing values apart.

    `patients`: how many. `labelled`: those of them whose outcomes are counted, `events`: the positive ones among these
    (a hospital may withhold the outcomes of all of its patients). `count`, `mean`, `m2`: (D,) float64, of the values
    that are known and told; `withheld`: (D,) bool, columns of which somebody does not tell.
    """

    patients: int
    labelled: int
    events: int
    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    withheld: NDArray[np.bool_]

    def __add__(self, other: "Moments") -> "Moments":
        """Both sets of patients together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        delta = other.mean - self.mean
        return Moments(
            self.patients + other.patients,
            self.labelled + other.labelled,
            self.events + other.events,
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + delta**2 * self.count * share,
            self.withheld | other.withheld,
        )

    def columns(self, which: slice) -> "Moments":
        """Those of some columns."""
        parts = (self.count[which], self.mean[which], self.m2[which], self.withheld[which])
        return Moments(self.patients, self.labelled, self.events, *parts)

    @property
    def log_odds(self) -> float:
        """Log-odds of the outcome, half an event added on each side so that it is finite (Haldane 1956)."""
        return float(np.log((self.events + 0.5) / (self.labelled - self.events + 0.5)))

    def constants(
        self, *, scaled: bool, ranges: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    ) -> NDArray[np.float64]:
        """(3, D): fill, centre and scale for `Standardise`: mean, mean and 1 / population standard deviation.

        A column that does not vary gets scale 0. Unscaled: fill by the mean, centre 0, scale 1.
        Where nobody tells, and somebody could, mean and variance are those of a value that may lie anywhere within its
        `ranges` (`clinical.bounds`); where these are too wide to mean anything, the column stays unused.
        """
        known = self.count > 0
        low, high = ranges or (np.zeros_like(self.mean), np.full_like(self.mean, np.inf))
        guessed = ~known & self.withheld & (high - low < LARGEST_NUMBER)
        low, high = np.where(guessed, low, 0.0), np.where(guessed, high, 0.0)
        mean = np.where(guessed, (low + high) / 2, self.mean)
        variance = np.divide(self.m2, self.count, out=np.zeros_like(self.m2), where=known)
        variance = np.where(guessed, (high - low) ** 2 / 12, variance)
        if not scaled:
            return np.stack([mean, np.zeros_like(mean), np.ones_like(mean)])
        # what rounding leaves of a constant column must not be blown up to unit variance
        varies = variance > (1e-9 * mean) ** 2
        scale = np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=varies)
        return np.stack([mean, mean, scale])


def moments(patients: Patients, extras: NDArray[np.float64] | None = None) -> Moments:
    """The statistics of some patients; a column without a value has mean 0 and count 0.

    `extras`: (N, E), more columns after the table's.
    """
    table = patients.table if extras is None else np.hstack([patients.table, extras])
    known = ~np.isnan(table)
    count = known.sum(axis=0).astype(np.float64)
    total = np.where(known, table, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    m2 = (np.where(known, table - mean, 0.0) ** 2).sum(axis=0)
    told = np.zeros(table.shape[1], dtype=np.bool_)
    return Moments(len(patients), len(patients), int(patients.labels.sum()), count, mean, m2, told)


def merge(parts: Iterable[Moments]) -> Moments:
    """All of them together, added in the given order: the caller sorts, so that the sum is the same to the byte."""
    return reduce(Moments.__add__, parts)
