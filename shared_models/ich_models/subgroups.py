"""Subgroups of patients by a variable of the table: who belongs to which, and which of them may be told apart."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from ich_models.clinical import Value
from ich_models.strict import Strict
from ich_models.variables import MISSING, Variable

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOST: Final = 20
"""Levels of one variable, and variables, at most."""


class Grouping(Strict):
    """One variable whose subgroups are looked at: the levels of a category or a yes_no, or a number's ranges between `cut`s."""

    variable: str
    cut: Annotated[list[float], Field(max_length=MOST - 1)] = []
    """Where a number is cut: [65, 80] makes < 65, 65 to < 80 and >= 80."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(low >= high for low, high in pairwise(self.cut)):
            raise ValueError(f"the cuts {self.cut} do not rise | write each once, the smallest first")
        return self


def _plain(value: Any) -> Any:
    return {"variable": value} if isinstance(value, str) else value


Groupings = Annotated[list[Annotated[Grouping, BeforeValidator(_plain)]], Field(max_length=MOST)]
"""As in a federation file: `sex` alone, or `{variable: age, cut: [65, 80]}`."""


def levels(grouping: Grouping, variable: Variable) -> tuple[str, ...]:
    """The subgroups by name, in their order; the last one is of the patients whose value is missing."""
    if variable.codes:
        return (*variable.codes, MISSING)
    ends = [f"{cut:g}" for cut in grouping.cut]
    between = [f"{low} to < {high}" for low, high in pairwise(ends)]
    return (f"< {ends[0]}", *between, f">= {ends[-1]}", MISSING)


def members(grouping: Grouping, variable: Variable, values: Sequence[Value]) -> Ints:
    """(N,): each patient's place in `levels`."""
    if variable.codes:
        known = {code: place for place, code in enumerate(variable.codes)}
        return np.array([known.get(str(value), len(known)) for value in values], dtype=np.int64)
    numbers = np.array([math.nan if value is None else float(value) for value in values])
    places = np.searchsorted(np.array(grouping.cut), numbers, side="right")
    return np.where(np.isnan(numbers), len(grouping.cut) + 1, places).astype(np.int64)


def few(inside: Bools, event: Bools, k: int) -> bool:
    """Whether these patients are 1 to k - 1, or 1 to k - 1 of them have the event, or have it not."""
    n, events = int(np.count_nonzero(inside)), int(np.count_nonzero(inside & event))
    return n > 0 and (n < k or 0 < events < k or 0 < n - events < k)


def divided(level: Ints, masks: Sequence[Bools], k: int) -> frozenset[int]:
    """The levels of which 1 to k - 1 patients lie inside or outside of a group that numbers are told of elsewhere; all (N,)."""
    inside = [part for mask in masks for part in (mask, ~mask)]
    sizes = {
        place: [int(np.count_nonzero((level == place) & part)) for part in inside] for place in set(level.tolist())
    }
    return frozenset(place for place, counts in sizes.items() if any(0 < count < k for count in counts))


def hidden(
    of: Mapping[str, Ints], event: Bools, k: int, also: Mapping[str, frozenset[int]]
) -> dict[str, frozenset[int]]:
    """Per variable the levels (by place) that must not be told of these patients; `of`: each one's level, `event`: (N,).

    A level of a few is hidden, and what `also` names. All patients less the levels that are told are the hidden ones
    together: while these are a few, the smallest level that is told is hidden too. Where two variables make nearly the same
    groups, so that some of one's together lie within some of the other's and what remains is a few, the later variable's are
    all hidden.
    """
    found: dict[str, frozenset[int]] = {}
    told: list[list[Bools]] = []
    for name, level in of.items():
        own = _hidden(level, event, k, also.get(name, frozenset()))
        there = frozenset(level.tolist())
        blocks = [level == place for place in sorted(there - own)]
        if blocks and there & own:
            blocks.append(np.isin(level, sorted(own)))
        if any(_nearly(blocks, others, event, k) for others in told):
            own, blocks = there | own, []
        found[name] = own
        told.append(blocks)
    return found


def _hidden(level: Ints, event: Bools, k: int, also: frozenset[int]) -> frozenset[int]:
    sizes = {place: int(np.count_nonzero(level == place)) for place in sorted(set(level.tolist()))}
    own = {*also, *(place for place in sizes if few(level == place, event, k))}
    while (shown := sizes.keys() - own) and few(np.isin(level, sorted(own)), event, k):
        own.add(min(shown, key=lambda place: (sizes[place], place)))
    return frozenset(own)


AT_ONCE: Final = 1 << 12
"""Choices of groups that are looked at together: a variable of twenty has a million."""


def _nearly(these: Sequence[Bools], others: Sequence[Bools], event: Bools, k: int) -> bool:
    """Whether some of these groups together lie within some of the others', and the rest, which follows by subtraction, is a few.

    Both share out all patients, or are none, so that others within these need no second look: the patients outside of either
    lie the other way round, with the same rest. The others that these reach into are enough: one more is no few.
    """
    if not these or not others:
        return False
    inner, outer = sorted((these, others), key=len)
    a, b = (np.array(groups, dtype=np.int64) for groups in (inner, outer))
    touch, having = a @ b.T > 0, event.astype(np.int64)
    for first in range(1, 2 ** len(a), AT_ONCE):
        number = np.arange(first, min(first + AT_ONCE, 2 ** len(a)))
        chosen = number[:, None] >> np.arange(len(a)) & 1
        around = (chosen @ touch > 0).astype(np.int64)
        n, events = (around @ (b @ who) - chosen @ (a @ who) for who in (np.ones_like(having), having))
        if any(np.any((count > 0) & (count < k)) for count in (n, events, n - events)):
            return True
    return False
