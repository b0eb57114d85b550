"""The variables of a clinical table to numbers: one column per number, one per level of a category but its first."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ich_models.variables import MISSING, Table, Variable

LARGEST_NUMBER: Final = 1e9
"""No value of a variable without a range lies further from 0."""

Value = float | str | None
"""A number, a level by its name, or None where missing (NaN counts as missing too)."""


def columns(table: Table) -> tuple[str, ...]:
    """Names of the encoded columns: the predictors' in their order, then the indicators of missing values."""
    names: list[str] = []
    for name, variable in table.chosen.items():
        names += [f"{name}={level}" for level in _dummies(variable)] if variable.codes else [name]
    return (*names, *(f"{name}?" for name in _indicated(table)))


def categories(table: Table) -> tuple[slice, ...]:
    """Of each category with several columns, the places of these among `columns`: one per level but the first."""
    found, place = [], 0
    for variable in table.chosen.values():
        width = len(_dummies(variable)) if variable.codes else 1
        if width > 1:
            found.append(slice(place, place + width))
        place += width
    return tuple(found)


def bounds(table: Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D,) each: the smallest and the largest value that each encoded column can have.

    A number without a range lies within `LARGEST_NUMBER` of 0.
    """
    ends: list[tuple[float, float]] = []
    for variable in table.chosen.values():
        if variable.codes:
            ends += [(0.0, 1.0)] * len(_dummies(variable))
        else:
            ends.append(variable.range or (-LARGEST_NUMBER, LARGEST_NUMBER))
    ends += [(0.0, 1.0)] * len(_indicated(table))
    low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    return low, high


def encode(values: Mapping[str, Sequence[Value]], table: Table) -> NDArray[np.float64]:
    """The predictors' values of N patients as an array (N, D), its columns as `columns` names them.

    An imputed predictor that is missing is NaN, in all its dummies.
    """
    encoded: list[list[float]] = []
    for name, variable in table.chosen.items():
        cells = [None if _is_missing(value) else value for value in values[name]]
        if variable.codes:
            if strangers := set(cells) - {*variable.codes, None}:
                raise ValueError(f"'{name}' has no level {', '.join(sorted(repr(cell) for cell in strangers))}")
            encoded += [[_dummy(cell, level, variable) for cell in cells] for level in _dummies(variable)]
        else:
            encoded.append([math.nan if cell is None else float(cell) for cell in cells])
    for name in _indicated(table):
        encoded.append([float(_is_missing(value)) for value in values[name]])
    return np.array(encoded, dtype=np.float64).T


def _dummies(variable: Variable) -> tuple[str, ...]:
    """The levels that get a column: all but the reference, and missing where it is a level."""
    return (*variable.codes[1:], *((MISSING,) if variable.missing == "level" else ()))


def _dummy(cell: Value, level: str, variable: Variable) -> float:
    if cell is None and variable.missing == "impute":
        return math.nan
    return float((MISSING if cell is None else cell) == level)


def _indicated(table: Table) -> list[str]:
    """The predictors with a column that says whether their value is missing."""
    return [
        name for name, variable in table.chosen.items() if table.missing_indicators and variable.missing == "impute"
    ]


def _is_missing(value: Value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
