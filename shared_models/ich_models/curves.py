"""Patients in groups by their predicted probability: calibration bins, decision curve, and which cuts between them may be told.

A count of true and false positives at every threshold is a list of patients: subtract neighbours, and what is left is who
lies between them. So all cuts that are told, those of the bins, of the decision curve and the model's one threshold,
are judged together: what lies between any two of them must be nobody, or k patients with the event, and the same without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

BINS: Final = 10
"""Calibration bins, where the patients are enough."""

DIGITS: Final = 3
"""Decimals of a bin's mean probability under a small-cell rule: all of a float's would tell which patients it is the mean of."""

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bin:
    """Patients between two cuts: how many, with the event, and their mean predicted probability."""

    patients: int
    events: int
    mean: float


@dataclass(frozen=True)
class Decision:
    """Who would be treated from a threshold on (probability >= threshold): with the event, and without."""

    threshold: float
    true_positives: int
    false_positives: int


def net_benefit(true_positives: float, false_positives: float, patients: int, threshold: float) -> float:
    """Net benefit tp/n - fp/n t / (1 - t) of treating from the threshold t on (Vickers & Elkin, Med Decis Making 2006)."""
    return true_positives / patients - false_positives / patients * threshold / (1 - threshold)


def groups(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    limits: npt.ArrayLike,
    thresholds: Sequence[float],
    k: int = 0,
) -> tuple[tuple[Bin, ...], tuple[Decision, ...]]:
    """Calibration bins from low to high, and the decision curve at `thresholds`, as far as k lets them be told.

    `labels`, `probabilities` (patients,); `limits`: the threshold that each patient is called positive at, one or (patients,).
    k up to 1: `BINS` bins of equal count (patients with one probability stay together), and every threshold.
    Else one set of cuts serves both, for each costs what the other could have told: the thresholds in their order, and then
    the borders of bins of equal count, are taken up if all cuts so far leave no small cell; bins lie between them, and
    their means are rounded. Without patients, or with 1 to k - 1 of a class: nothing.
    """
    event, p = np.asarray(labels) == 1, np.asarray(probabilities, dtype=np.float64)
    events, n = int(np.count_nonzero(event)), event.size
    if not n or n < k or 0 < events < k or 0 < n - events < k:
        return (), ()
    borders = _equal_borders(p)
    taken = sorted(thresholds)
    if k > 1:
        called = _Called.of(event, p, np.broadcast_to(np.asarray(limits, dtype=np.float64), p.shape), k)
        taken = called.grown([], thresholds)
        borders = called.grown(taken, borders)
    return _bins(event, p, borders, DIGITS if k > 1 else None), tuple(
        Decision(cut, int(np.count_nonzero(event & (p >= cut))), int(np.count_nonzero(~event & (p >= cut))))
        for cut in taken
    )


@dataclass(frozen=True)
class _Called:
    """Probabilities of patients with the event and without, all of them and those called positive or not; and where none may be cut.

    Recall and specificity tell how many are called positive. Where these are 1 to k - 1, a cut within their range would tell
    more of them.
    """

    members: tuple[_Floats, ...]
    uncut: tuple[tuple[float, float], ...]
    k: int

    @classmethod
    def of(cls, event: _Bools, p: _Floats, limits: _Floats, k: int) -> "_Called":
        called = p >= limits
        lowest, highest = float(limits.min()), float(limits.max())
        members, uncut = [p[event], p[~event]], []
        for positive in (called, ~called):
            for outcome in (event, ~event):
                own = p[positive & outcome]
                members.append(own)
                if 0 < own.size < k:
                    uncut.append((lowest, np.inf) if positive is called else (-np.inf, highest))
        return cls(tuple(members), tuple(uncut), k)

    def grown(self, cuts: Sequence[float], more: Sequence[float]) -> list[float]:
        """The cuts, and of `more` one after another those that leave no small cell."""
        taken = sorted(cuts)
        for cut in more:
            tried = sorted({*taken, cut})
            if self._leave_no_small_cell(tried):
                taken = tried
        return taken

    def _leave_no_small_cell(self, cuts: list[float]) -> bool:
        if any(low < cut < high for cut in cuts for low, high in self.uncut):
            return False
        for own in self.members:
            if own.size >= self.k:
                cells = np.bincount(np.searchsorted(cuts, own, side="right"))
                if np.any((cells > 0) & (cells < self.k)):
                    return False
        return True


def _equal_borders(p: _Floats) -> list[float]:
    """Borders of `BINS` groups of equal count: the lowest probability of each group but the first."""
    ordered = np.sort(p)
    places = [round(part * p.size / BINS) for part in range(1, BINS)]
    return sorted({float(ordered[place]) for place in places if 0 < place < p.size and ordered[place] > ordered[0]})


def _bins(event: _Bools, p: _Floats, borders: Sequence[float], digits: int | None) -> tuple[Bin, ...]:
    place = np.searchsorted(np.array(borders), p, side="right")
    found = []
    for each in range(len(borders) + 1):
        inside = place == each
        if inside.any():
            mean = float(np.mean(np.sort(p[inside])))
            events = int(np.count_nonzero(event & inside))
            found.append(Bin(int(np.count_nonzero(inside)), events, mean if digits is None else round(mean, digits)))
    return tuple(found)
