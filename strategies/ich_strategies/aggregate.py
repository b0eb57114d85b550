"""Updates to one mean: each is checked, folded into a running sum and dropped, so memory does not grow with hospitals."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ich_models.protocol import WEIGHTS


class Fault(StrEnum):
    """Why an update is quarantined."""

    PATIENTS = "patients"
    """It claims no patients, more than the limit, or another number than before round 1."""
    SHAPE = "shape"
    """Its arrays are not the ones that were asked for."""
    NOT_FINITE = "not finite"
    """It holds NaN or infinity."""
    NORM = "norm"
    """It moved the weights, or carries other numbers, further than the limit."""


def fault(
    sent: NDArray[np.floating],
    returned: Mapping[str, NDArray[np.floating]],
    widths: Mapping[str, int],
    patients: Sequence[int],
    expected_patients: Sequence[int],
    *,
    most_patients: int,
    largest_norm: float,
    largest_state: float,
) -> Fault | None:
    """The first thing wrong with an update of F folds, or None.

    `sent`: (F, size) weights before training. `returned`: per name (F, width); `widths`: what must be there, and how wide.
    `patients`: what the update claims per fold; `expected_patients`: what the hospital said before round 1.
    `largest_norm`: of returned minus sent weights; `largest_state`: of any other block's row.
    """
    if list(patients) != list(expected_patients) or not all(0 < count <= most_patients for count in patients):
        return Fault.PATIENTS
    if set(returned) != set(widths):
        return Fault.SHAPE
    for name, rows in returned.items():
        if rows.shape != (len(sent), widths[name]) or rows.dtype != sent.dtype:
            return Fault.SHAPE
    if not all(np.isfinite(rows).all() for rows in returned.values()):
        return Fault.NOT_FINITE
    for name, rows in returned.items():
        limit, base = (largest_norm, sent) if name == WEIGHTS else (largest_state, None)
        if max(norm(row, None if base is None else base[index]) for index, row in enumerate(rows)) > limit:
            return Fault.NORM
    return None


PIECE: Final = 2**20
"""Numbers that are computed with at once: a model of 100 MB would be copied several times over in float64."""


def _pieces(part: slice) -> Iterator[slice]:
    return (slice(start, min(start + PIECE, part.stop)) for start in range(part.start, part.stop, PIECE))


def norm(row: NDArray[np.floating], base: NDArray[np.floating] | None = None) -> float:
    """L2 norm of `row - base` in float64, piece by piece."""
    squares = 0.0
    with np.errstate(over="ignore"):  # infinite is above any limit
        for piece in _pieces(slice(0, len(row))):
            moved = row[piece].astype(np.float64)
            if base is not None:
                moved -= base[piece]
            squares += float(moved @ moved)
    return math.sqrt(squares)


class WeightedMeans:
    """Running patient-weighted means of named rows, one set per fold.

    Sums are float64 and results have the dtype that came in; they depend on the order of `add`, so callers keep it fixed.
    An encoder's part of a row counts each hospital by the patients who have its modality. `segments`: these parts of rows
    that are `size` wide, with the modality.
    """

    def __init__(self, segments: Sequence[tuple[slice, str]] = (), size: int = 0) -> None:
        self._segments, self._size = segments, size
        self._sums: dict[str, dict[str, NDArray[np.float64]]] = {}
        self._dtypes: dict[str, np.dtype[np.floating]] = {}
        self._seen: dict[str, dict[str, int]] = {}
        self.weights: dict[str, int] = {}
        """Patients so far, per fold."""
        self.replies: dict[str, int] = {}
        """Updates so far, per fold."""

    def add(
        self,
        folds: Sequence[str],
        rows: Mapping[str, NDArray[np.floating]],
        patients: Sequence[int],
        seen: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        """Fold one update in: `rows` per name (F, size), `patients` per fold.

        `seen`: per modality those of them who have it, per fold; all of them where it is left out.
        """
        for index, (fold, weight) in enumerate(zip(folds, patients, strict=True)):
            sums = self._sums.setdefault(fold, {})
            having = {modality: seen[modality][index] if modality in seen else weight for _, modality in self._segments}
            whose = self._seen.setdefault(fold, {})
            for what, count in having.items():
                whose[what] = whose.get(what, 0) + count
            self.weights[fold] = self.weights.get(fold, 0) + weight
            self.replies[fold] = self.replies.get(fold, 0) + 1
            for name, values in rows.items():
                self._dtypes[name] = values.dtype
                if name not in sums:
                    sums[name] = np.zeros(values.shape[1])
                whole = sums[name]
                for part, modality in self._parts(values.shape[1]):
                    times = weight if modality is None else having[modality]
                    for piece in _pieces(part):
                        whole[piece] += values[index, piece].astype(np.float64) * times

    def _parts(self, width: int) -> Iterator[tuple[slice, str | None]]:
        """A row of this width in stretches that are weighted alike."""
        start = 0
        for part, modality in self._segments if width == self._size else ():
            if part.start > start:
                yield slice(start, part.start), None
            yield part, modality
            start = part.stop
        if start < width:
            yield slice(start, width), None

    def mean(self, fold: str) -> dict[str, NDArray[np.floating]]:
        """The means of one fold, whose sums are given up; NaN in an encoder's part that nobody has seen a patient for."""
        total, seen = self.weights[fold], self._seen[fold]
        found = self._sums.pop(fold)
        for sums in found.values():
            for part, modality in self._parts(len(sums)):
                count = total if modality is None else seen[modality]
                sums[part] = sums[part] / count if count else np.nan
        return {name: found.pop(name).astype(self._dtypes[name]) for name in list(found)}


Combine = Callable[[str, Sequence[NDArray[np.floating]], Sequence[int], Sequence[float]], NDArray[np.floating]]
"""Fold, its hospitals' weights (size,) in the order of `add`, their patients, their training losses (NaN: none) -> what
stands in place of the mean."""

LOSS: Final = "loss"
"""Row (1,) of an update beside its blocks: the training loss that it reports."""


class Buffered(WeightedMeans):
    """The same, but the weights are kept one by one and combined at once; everything else is a mean as before."""

    def __init__(self, combine: Combine) -> None:
        super().__init__()
        self._combine = combine
        self._kept: dict[str, list[tuple[NDArray[np.floating], int, float]]] = {}

    def add(
        self,
        folds: Sequence[str],
        rows: Mapping[str, NDArray[np.floating]],
        patients: Sequence[int],
        seen: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        """Keep one update's weights, and fold the rest of it in. Hospitals without a modality count as all others."""
        for index, (fold, count) in enumerate(zip(folds, patients, strict=True)):
            loss = float(rows[LOSS][index, 0]) if LOSS in rows else np.nan
            self._kept.setdefault(fold, []).append((rows[WEIGHTS][index].copy(), count, loss))
        super().add(folds, {name: block for name, block in rows.items() if name != WEIGHTS}, patients, seen)

    def mean(self, fold: str) -> dict[str, NDArray[np.floating]]:
        """What is combined, and the means of the rest."""
        kept, counts, losses = zip(*self._kept.pop(fold), strict=True)
        return {WEIGHTS: self._combine(fold, kept, counts, losses), **super().mean(fold)}
