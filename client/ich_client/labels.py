"""Labels of slices: a table keyed by SOPInstanceUID, wide or long, to one row of numbers per slice."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from ich_client import sheets
from ich_client.cells import meaning
from ich_client.image_mapping import Labels
from ich_client.sheets import Sheet, likely
from ich_models.errors import DataError, Problem
from ich_models.image_spec import HaemorrhageType

TYPES: Final = get_args(HaemorrhageType)

_SAID: Final = {"1": 1.0, "yes": 1.0, "true": 1.0, "0": 0.0, "no": 0.0, "false": 0.0, "": np.nan}
"""What a cell may say; an empty one is unlabelled."""

ANY: Final = "any"
"""Not a type: it follows from the others."""

Row = NDArray[np.float32]
Where = Callable[[str], str]


def read(path: Path, labels: Labels, where: Where) -> dict[str, Row]:
    """SOPInstanceUID -> (5,) float32 in the order of `TYPES`, NaN where unlabelled; slices without any label are left out.

    Raises DataError with every problem of the table.
    """
    sheet = sheets.read(path, labels, where)
    named = [("instance", labels.instance), ("type", labels.type), ("label", labels.label)]
    named += [("columns", column) for column in labels.columns.values()]
    problems = [
        Problem(f"no column '{column}' in {sheet.name}", where(key), sheet.known(column))
        for key, column in named
        if column is not None and column not in sheet.header
    ]
    if problems:
        raise DataError(problems)
    return _wide(sheet, labels) if labels.columns else _long(sheet, labels)


def _wide(sheet: Sheet, labels: Labels) -> dict[str, Row]:
    found: dict[str, Row] = {}
    problems: dict[str, list[int]] = {}
    columns = {kind: sheet.column(name) for kind, name in labels.columns.items()}
    for index, instance in enumerate(sheet.column(labels.instance)):
        row = np.full(len(TYPES), np.nan, np.float32)
        for kind, cells in columns.items():
            row[TYPES.index(kind)] = _number(cells[index], index, problems)
        _put(found, instance, row, index, problems)
    return _sound(found, problems, sheet)


def _long(sheet: Sheet, labels: Labels) -> dict[str, Row]:
    assert labels.type is not None, "the long form"
    assert labels.label is not None, "the long form"
    found: dict[str, Row] = {}
    problems: dict[str, list[int]] = {}
    names = {meaning(kind, True): kind for kind in TYPES} | {
        meaning(name, True): kind for name, kind in labels.types.items()
    }
    rows = zip(sheet.column(labels.instance), sheet.column(labels.type), sheet.column(labels.label), strict=True)
    for index, (instance, name, cell) in enumerate(rows):
        kind = names.get(meaning(name, True))
        if kind is None:
            if name.lower() != ANY:
                problems.setdefault(f"'{name[:40]}' is no type", []).append(index)
            continue
        row = np.full(len(TYPES), np.nan, np.float32)
        row[TYPES.index(kind)] = _number(cell, index, problems)
        _put(found, instance, row, index, problems)
    hint = likely("", TYPES, "types") + "; what the table calls otherwise stands in labels.types"
    return _sound(found, problems, sheet, hint)


def _number(cell: str, index: int, problems: dict[str, list[int]]) -> float:
    value = _SAID.get(cell.lower().removesuffix(".0"))
    if value is None:
        problems.setdefault(f"{cell[:40]!r} says neither yes nor no", []).append(index)
        return np.nan
    return value


def _put(found: dict[str, Row], instance: str, row: Row, index: int, problems: dict[str, list[int]]) -> None:
    """Join a row's labels to those that the slice has already."""
    if not instance:
        problems.setdefault("a label without a slice", []).append(index)
        return
    have = found.get(instance)
    if have is None:
        if not np.isnan(row).all():
            found[instance] = row
        return
    if ((have != row) & ~np.isnan(have) & ~np.isnan(row)).any():
        problems.setdefault("one slice has two labels that differ", []).append(index)
    found[instance] = np.where(np.isnan(have), row, have)


def _sound(
    found: dict[str, Row],
    problems: dict[str, list[int]],
    sheet: Sheet,
    hint: str = "write 1 or 0, yes or no; an empty cell is unlabelled",
) -> dict[str, Row]:
    if problems:
        raise DataError([Problem(message, sheet.place(rows), hint) for message, rows in problems.items()])
    return found
