"""Folds by name: which hospital or which part of the patients a model never learns from, and what each is asked for."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from ich_models.federation import Evaluation
from ich_models.strict import NAME

ALL: Final = "all"
WITHOUT: Final = "without:"
"""Before the name of the hospital that a fold holds out."""

_NAME: Final = re.compile(rf"{ALL}|without:(?P<hospital>{NAME})|part:(?P<part>[1-9][0-9]{{0,3}})")

FoldName = Annotated[str, Field(pattern=f"^({ALL}|without:{NAME}|part:[1-9][0-9]{{0,3}})$")]
"""In a message."""

LOHO: Final = "loho"
"""The arm of the folds that each hold one hospital out, tested there."""

FEDERATED: Final = "federated"
"""The arm of the model of all hospitals, tested on patients that it did not learn from."""


@dataclass(frozen=True)
class Fold:
    """One model of a study: `all`, `without:HOSPITAL` (leave-one-hospital-out) or `part:I` (cross-validation)."""

    name: str
    hospital: str | None = None
    """The hospital that is held out."""
    part: int | None = None
    """The part of every hospital's patients that is held out, from 1."""

    def trains_at(self, hospital: str) -> bool:
        """Whether the model learns from this hospital."""
        return hospital != self.hospital


def parse(name: str) -> Fold:
    """The fold of that name. Raises ValueError for any other text."""
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f"{name!r} is not a fold")
    return Fold(name, match["hospital"], int(match["part"]) if match["part"] else None)


def threshold_name(fold: str, label: str) -> str:
    """Under which name a fold's threshold is kept: the fold's, or with the type after it where there are several."""
    return f"{fold}/{label}" if label else fold


def folds_of(evaluation: Evaluation, hospitals: Iterable[str]) -> tuple[Fold, ...]:
    """Every fold of a study, in the order in which they travel: all, one per hospital, one per part."""
    names = [ALL]
    if evaluation.leave_one_hospital_out:
        names += [f"without:{hospital}" for hospital in sorted(hospitals)]
    names += [f"part:{part}" for part in range(1, (evaluation.folds or 0) + 1)]
    return tuple(map(parse, names))


def questions(evaluation: Evaluation, hospital: str) -> dict[str, list[str]]:
    """Which folds answer for which arm at a hospital: arm -> folds."""
    asked: dict[str, list[str]] = {}
    if evaluation.leave_one_hospital_out:
        asked[LOHO] = [f"without:{hospital}"]
    if evaluation.folds:
        asked[FEDERATED] = [f"part:{part}" for part in range(1, evaluation.folds + 1)]
    elif evaluation.test is not None:
        asked[FEDERATED] = [ALL]
    return asked
