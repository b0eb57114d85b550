"""Table 1: the training patients of each hospital as their federated statistics describe them, small cells hidden."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ich_models.variables import MISSING
from ich_server.report.parts import Cell, Row, Table
from ich_server.results import Column, HospitalData, Results
from ich_server.summary import NOTHING, WITHHELD, count, natural, spread, total

MOST_BESIDE: Final = 6
"""Hospitals that fit beside each other; of more, the table describes how they differ."""


@dataclass(frozen=True)
class _Line:
    """One line: a number's column, or the columns of one level; `level` None: a number."""

    head: str
    column: str
    level: str | None = None
    reference: tuple[str, ...] = ()
    """Of a reference level, which has no column: the columns of the others."""


def tables(results: Results) -> list[Table]:
    """The table, and of many hospitals a second one with each hospital's own line; none where nobody told anything."""
    told = {name: results.hospitals[name] for name in sorted(results.hospitals, key=natural)}
    if not any(one.columns for one in told.values()):
        return []
    lines = _lines(results.study.settings, list(next(one.columns for one in told.values() if one.columns)))
    k = int(results.study.settings.get("evaluation", {}).get("small_cells", 0))
    shown = {name: _cells(one, lines, k) for name, one in told.items()}
    about = any(each.text.startswith(_ABOUT) for cells in shown.values() for each in cells)
    note = _note(k, about=about)
    if len(told) <= MOST_BESIDE:
        return [_beside(told, lines, shown, note)]
    return [_described(told, lines, shown, note), _each(told, lines, shown)]


def _note(k: int, *, about: bool) -> str:
    hidden = f" Under {k} patients with or without something are told as few." if k else ""
    if about:
        hidden += (
            f" {_ABOUT}may stand for fewer: a hospital that asks for a larger k tells half of it in place of every count below it, so"
            " that the smallest count that it tells may be none."
        )
    return (
        "Training patients of the model of all hospitals. Numbers: mean (standard deviation); levels: patients (share of those"
        f" for whom it is known).{hidden} Rounded where an exact figure would point at a few (docs/egress.md)."
    )


# --- lines ------------------------------------------------------------------------------------------------------------


def _lines(settings: Mapping[str, Any], columns: Sequence[str]) -> list[_Line]:
    """The columns in words, each variable's reference level before its others."""
    variables = settings.get("modalities", {}).get("table", {}).get("variables", {})
    lines: list[_Line] = []
    seen: set[str] = set()
    for column in columns:
        stem, is_level, level = column.partition("=")
        if not is_level:
            if column.endswith("?") and column[:-1] in columns:
                lines.append(_Line(f"{column[:-1]}: missing", column, MISSING))
            else:
                unit = (variables.get(column) or {}).get("unit")
                lines.append(_Line(f"{column}, {unit}" if unit else column, column))
            continue
        if stem not in seen:
            seen.add(stem)
            others = tuple(name for name in columns if name.partition("=")[0] == stem and "=" in name)
            if reference := _reference(variables.get(stem) or {}):
                lines.append(_Line(f"{stem}: {reference}", "", reference, others))
        lines.append(_Line(f"{stem}: {level}", column, level))
    return lines


def _reference(variable: Mapping[str, Any]) -> str:
    """The level that has no column; of a yes or no, no."""
    levels = variable.get("levels") or []
    return str(levels[0]) if levels else "no" if variable.get("type") == "yes_no" else ""


# --- cells ------------------------------------------------------------------------------------------------------------

_FEW: Final = "few"
_MANY: Final = "nearly all"
_ABOUT: Final = "≈ "


@dataclass(frozen=True)
class _Told:
    """What a line says of one hospital: its text, and its number (a mean, or a share) where it is shown."""

    text: str
    around: str = ""
    number: float | None = None


def _cells(data: HospitalData, lines: Sequence[_Line], k: int) -> list[_Told]:
    doubtful = _doubtful(data.columns, [line.column for line in lines if line.level is not None and line.column], k)
    found = [_told(data.columns, line, k, doubtful) for line in lines]
    return _hidden_twice(found, lines)


def _doubtful(columns: Mapping[str, Column], names: Sequence[str], k: int) -> frozenset[str]:
    """Columns of yes and no whose counts may be half of a larger k that the hospital asks for, in place of a smaller count.

    Under a rule K every count from 1 to K - 1 is told as K / 2, so a count c can be such a half only where nothing else is told between
    0 and 2 c: it is the smallest. One that is not whole is a half for certain.
    """
    counts = {name: _counts(columns[name]) for name in names if columns[name].mean is not None}
    told = sorted({count for pair in counts.values() for count in pair if count > 0})
    halves = {count for count in told if abs(count - round(count)) > 1e-6}
    if k and told and told[0] >= k and not any(count < 2 * told[0] for count in told[1:]):
        halves.add(told[0])
    return frozenset(name for name, pair in counts.items() if halves & set(pair))


def _counts(column: Column) -> tuple[float, float]:
    """Patients with a yes and with a no, as the hospital told them: rounded, so that equal ones are equal."""
    known, share = column.known or 0.0, column.mean or 0.0
    return round(known * share, 6), round(known * (1 - share), 6)


def _told(columns: Mapping[str, Column], line: _Line, k: int, doubtful: frozenset[str]) -> _Told:
    if line.level is None:
        column = columns[line.column]
        if column.mean is None:
            return _Told(WITHHELD if column.known is None else NOTHING)
        return _Told(_number(column.mean), "" if column.sd is None else _number(column.sd), column.mean)
    of = [columns[name] for name in line.reference or (line.column,)]
    if any(one.mean is None or not one.known for one in of):
        return _Told(WITHHELD if any(one.known is None for one in of) else NOTHING)
    known = min(one.known or 0.0 for one in of)
    with_it = sum((one.known or 0.0) * (one.mean or 0.0) for one in of)
    patients = known - with_it if line.reference else with_it
    if 0 < round(patients) < k:
        return _Told(_FEW)
    if 0 < round(known - patients) < k:
        return _Told(_MANY)
    about = _ABOUT if doubtful & set(line.reference or (line.column,)) else ""
    return _Told(f"{about}{round(patients):,}", f"{100 * patients / known:.0f} %", 100 * patients / known)


def _hidden_twice(found: list[_Told], lines: Sequence[_Line]) -> list[_Told]:
    """Of a variable with one hidden level the smallest of the others is hidden, too: else the hidden one follows."""
    for stem in dict.fromkeys(line.head.partition(":")[0] for line in lines if line.level is not None):
        places = [
            place for place, line in enumerate(lines) if line.level is not None and line.head.startswith(f"{stem}:")
        ]
        hidden = [place for place in places if found[place].number is None]
        open_ones = [place for place in places if (found[place].number or 0) > 0]
        if len(hidden) == 1 and len(places) > 2 and open_ones:
            smallest = min(open_ones, key=lambda place: found[place].number or 0)
            found[smallest] = _Told(WITHHELD)
    return found


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


# --- tables -----------------------------------------------------------------------------------------------------------

Shown = Mapping[str, Sequence[_Told]]


def _beside(told: Mapping[str, HospitalData], lines: Sequence[_Line], shown: Shown, note: str) -> Table:
    heads = [
        Row("Patients that take part", tuple(Cell(f"{one.n:,}") for one in told.values())),
        Row("With the event", tuple(Cell(count(one.events)) for one in told.values())),
        Row(
            "Learnt from",
            tuple(Cell(NOTHING if one.training is None else f"{one.training:,}") for one in told.values()),
        ),
    ]
    rows = [
        Row(line.head, tuple(Cell(shown[name][place].text, shown[name][place].around) for name in told))
        for place, line in enumerate(lines)
    ]
    return Table("Table 1: patients of each hospital", ("", *told), (*heads, *rows), note)


def _described(told: Mapping[str, HospitalData], lines: Sequence[_Line], shown: Shown, note: str) -> Table:
    """Over hospitals: how the means and shares are spread; each hospital counts once."""
    columns = ("", "Hospitals that tell", "Median", "Quartiles", "Least", "Greatest")
    rows = [
        _spread("Patients that take part", [float(one.n) for one in told.values()], "0"),
        _spread("With the event", [float(one.events) for one in told.values() if one.events is not None], "0"),
    ]
    for place, line in enumerate(lines):
        numbers = [number for name in told if (number := shown[name][place].number) is not None]
        rows.append(
            _spread(line.head if line.level is None else f"{line.head}, %", numbers, "" if line.level is None else "0")
        )
    return Table(
        "Table 1: how the hospitals differ", columns, tuple(rows), f"Over hospitals, each counting once. {note}"
    )


def _spread(head: str, numbers: Sequence[float], digits: str) -> Row:
    def text(value: float) -> str:
        return f"{value:,.{digits}f}" if digits else _number(value)

    found = spread(numbers)
    if found is None:
        return Row(head, (Cell("0"), *(Cell(NOTHING),) * 4))
    quartiles = f"{text(found.lower_quartile)}–{text(found.upper_quartile)}"
    cells = (str(found.k), text(found.median), quartiles, text(found.minimum), text(found.maximum))
    return Row(head, tuple(map(Cell, cells)))


def _each(told: Mapping[str, HospitalData], lines: Sequence[_Line], shown: Shown) -> Table:
    columns = ("Hospital", "Patients", "With the event", *(line.head for line in lines))
    rows = [
        Row(
            name,
            (Cell(f"{one.n:,}"), Cell(count(one.events)), *(Cell(each.text, each.around) for each in shown[name])),
        )
        for name, one in told.items()
    ]
    everybody = Row(
        "All hospitals",
        (
            Cell(f"{sum(one.n for one in told.values()):,}"),
            Cell(total(one.events for one in told.values())),
            *(Cell(""),) * len(lines),
        ),
        total=True,
    )
    return Table("Table 1, each hospital’s own line", columns, (*rows, everybody))
