"""Which of a hospital's patients train, validate and test, for each fold; by patient, and the same at every call."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from ich_models.batch import Patients
from ich_models.federation import Evaluation, Federation

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers: `train` and `validation` teach, `test` only measures."""

    train: Indices
    validation: Indices
    test: Indices


def split(labels: NDArray[np.int64], evaluation: Evaluation, part: int) -> Split:
    """Split a hospital's patients, by outcome where each class has enough of them.

    `part` 0: all but the test share; `part` I of `evaluation.folds`: part I is the test set.
    """
    everyone = np.arange(len(labels))
    if part:
        test = _parts(labels, evaluation.folds or 0, evaluation.split_seed)[part - 1]
        learning = np.setdiff1d(everyone, test)
    elif evaluation.test is not None:
        learning, test = _share(everyone, labels, evaluation.test, evaluation.split_seed)
    else:
        learning, test = everyone, everyone[:0]
    if evaluation.validation is None:
        return Split(learning, learning[:0], test)
    train, validation = _share(learning, labels[learning], evaluation.validation, evaluation.split_seed)
    return Split(train, validation, test)


def split_by_name(ids: Sequence[str], evaluation: Evaluation, part: int) -> Split:
    """The same where each patient's role must follow from the patient alone: one more patient changes nobody else's.

    By a hash of the identifier, hence in about the shares that are asked for, and without a look at the outcome.
    """
    lots = np.array([_lot(f"{evaluation.split_seed}\n{each}") for each in ids])
    if part:
        tested = np.floor(lots * (evaluation.folds or 1)).astype(np.int64) == part - 1
    else:
        tested = lots < (evaluation.test or 0.0)
    everyone = np.arange(len(ids))
    return Split(everyone[~tested], everyone[:0], everyone[tested])


def _lot(text: str) -> float:
    """Between 0 and 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def of(patients: Patients, federation: Federation, part: int) -> Split:
    """The split of a study's patients: by outcome, or in a private study by each patient's identifier alone."""
    if federation.privacy is not None:
        return split_by_name(patients.ids, federation.evaluation, part)
    return split(patients.labels, federation.evaluation, part)


def too_few(labels: NDArray[np.int64], evaluation: Evaluation) -> str | None:
    """The settings that these patients are too few for, or None."""
    try:
        splits = [split(labels, evaluation, part) for part in range((evaluation.folds or 0) + 1)]
    except ValueError:  # from scikit-learn: fewer patients than it must make groups of
        splits = []
    if splits and all(len(one.train) for one in splits):
        return None
    wanted = evaluation.model_dump(include={"test", "folds", "validation"}, exclude_none=True)
    return ", ".join(f"evaluation.{name}: {value}" for name, value in wanted.items())


def _share(rows: Indices, labels: NDArray[np.int64], share: float, seed: int) -> tuple[Indices, Indices]:
    """The rows without and with a random share, each class in proportion where it has two patients or more."""
    _, counts = np.unique(labels, return_counts=True)
    stratify = labels if counts.min() > 1 else None
    without, chosen = train_test_split(np.arange(len(rows)), test_size=share, random_state=seed, stratify=stratify)
    return rows[np.sort(without)], rows[np.sort(chosen)]


def _parts(labels: NDArray[np.int64], parts: int, seed: int) -> list[Indices]:
    _, counts = np.unique(labels, return_counts=True)
    kind = StratifiedKFold if counts.min() >= parts else KFold
    splitter = kind(parts, shuffle=True, random_state=seed)
    return [test for _, test in splitter.split(np.zeros(len(labels)), labels)]
