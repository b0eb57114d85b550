"""Folds by name: which hospital or which part of the patients a model never learns from."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ich_models.federation import Evaluation

_NAME = re.compile(r"all|without:(?P<hospital>.+)|part:(?P<part>[1-9][0-9]*)")


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
        raise ValueError(f"'{name}' is not a fold")
    return Fold(name, match["hospital"], int(match["part"]) if match["part"] else None)


def folds_of(evaluation: Evaluation, hospitals: Iterable[str]) -> tuple[Fold, ...]:
    """Every fold of a study, in the order in which they travel: all, one per hospital, one per part."""
    names = ["all"]
    if evaluation.leave_one_hospital_out:
        names += [f"without:{hospital}" for hospital in sorted(hospitals)]
    names += [f"part:{part}" for part in range(1, (evaluation.folds or 0) + 1)]
    return tuple(map(parse, names))
