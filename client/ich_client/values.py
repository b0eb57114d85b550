"""One variable of one table: the hospital's cells to the study's values, or what is wrong with them."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from ich_client.cells import meaning, number
from ich_client.hospital import Cases, Column, HospitalConfig, Interval, TableFile
from ich_client.sheets import Sheet, likely
from ich_client.units import conversion, unit_name
from ich_models.clinical import LARGEST_NUMBER, Value
from ich_models.errors import Problem
from ich_models.variables import Variable
from ich_models.yaml_config import Document

Parse = Callable[[tuple[str, ...]], Value]
"""From the cells of one row, in the order of the mapping's columns, to a value; raises _Bad."""

_SHOWN = 5
"""Unknown codes of one variable that are named one by one."""

_FORMULA = "a formula of which the workbook does not hold the value: open it in Excel or LibreOffice and save it"


@dataclass
class _Bad(Exception):
    """Cells that are no value. Those of one kind make one problem."""

    kind: str
    message: str
    hint: str
    is_code: bool = False
    """Whether it is one of a variable's unknown codes: these are counted, with more lines named."""


def faults(name: str, variable: Variable, sheet: Sheet, document: Document[HospitalConfig]) -> list[Problem]:
    """What is wrong with a variable's mapping, before any value is read."""
    mapping = document.value.table.columns[name]
    problems = [
        Problem(f"no column '{column}' in {sheet.name}", _where(document, name, *key), sheet.known(column))
        for key, column in mapping.sources(name)
        if column not in sheet.header
    ]
    targets: list[tuple[tuple[str | int, ...], str]] = []
    match mapping:
        case Column():
            targets = [(("codes", code), target) for code, target in mapping.codes.items()]
            unit = ("unit", mapping.unit, variable.unit) if mapping.unit else None
        case Interval():
            unit = ("date", "days", variable.unit)
        case Cases():
            targets = [(("cases", index, "value"), case.value) for index, case in enumerate(mapping.cases)]
            unit = None
    for key, target in targets:
        if variable.codes and target not in variable.codes:
            hint = likely(target, variable.codes, "levels")
            problems.append(Problem(f"'{target}' is not a level of '{name}'", _where(document, name, *key), hint))
        elif not variable.codes and number(target) is None:
            problems.append(Problem(f"'{target}' is not a number", _where(document, name, *key), f"'{name}' is one"))
    if unit:
        problems += _unit_faults(name, variable, _where(document, name, unit[0]), unit[1], unit[2])
    return problems


def _unit_faults(name: str, variable: Variable, where: str, source: str, target: str | None) -> Iterator[Problem]:
    if variable.codes or target is None:
        kind = "is no number" if variable.codes else "has no unit"
        yield Problem(
            f"'{name}' {kind} in the study, and here it is in {source}",
            where,
            "map another column, or correct the study",
        )
        return
    try:
        conversion(source, target)
    except ValueError as error:
        message, _, hint = str(error).partition(" | ")
        yield Problem(message, where, hint)


def convert(
    name: str, variable: Variable, sheet: Sheet, rows: Sequence[int], document: Document[HospitalConfig]
) -> tuple[list[Value], list[Problem]]:
    """A variable's values at these rows, None where missing, and the problems of the cells that are no value."""
    table = document.value.table
    mapping = table.columns[name]
    columns = list(dict.fromkeys(column for _, column in mapping.sources(name)))
    match mapping:
        case Column():
            parse = _column(name, variable, mapping, table)
        case Interval():
            parse = _interval(name, variable, mapping, table)
        case Cases():
            parse = _cases(name, variable, mapping, columns)
    cells = [sheet.column(column) for column in columns]
    known: dict[tuple[str, ...], Value | _Bad] = {}
    bad: dict[str, tuple[_Bad, list[int]]] = {}
    values: list[Value] = []
    for row in rows:
        raw = tuple(column[row] for column in cells)
        if raw not in known:
            try:
                known[raw] = parse(raw)
            except _Bad as error:
                known[raw] = error
        value = known[raw]
        if isinstance(value, _Bad):
            bad.setdefault(value.kind, (value, []))[1].append(row)
            value = None
        values.append(value)
    problems = [Problem(one.message, sheet.place(found), one.hint) for one, found in bad.values() if not one.is_code]
    codes = sorted(((one, found) for one, found in bad.values() if one.is_code), key=lambda pair: -len(pair[1]))
    for one, found in codes[:_SHOWN]:
        count = f"{len(found)} row{'s' if len(found) > 1 else ''}"
        problems.append(Problem(f"{one.message} ({count})", sheet.place(found, 3), one.hint))
    if len(codes) > _SHOWN:
        message = f"{name} has {len(codes) - _SHOWN} more such values"
        problems.append(Problem(message, sheet.name, "is this the right column?"))
    return values, problems


# --- the three kinds of mapping ---------------------------------------------------------------------------------------


def _column(name: str, variable: Variable, mapping: Column, table: TableFile) -> Parse:
    def same(code: str) -> Decimal | str:
        return meaning(code, mapping.ignore_case)

    # the more particular rule wins: the column's codes, its missing values, the table's missing values, the levels
    meanings: dict[Decimal | str, str | None] = {same(level): level for level in variable.codes}
    meanings |= {same(code): None for code in ("", *table.missing, *mapping.missing)}
    meanings |= {same(code): level for code, level in mapping.codes.items()}
    to_study = conversion(mapping.unit or "", variable.unit or "") if mapping.unit else float

    def parse(raw: tuple[str, ...]) -> Value:
        text = raw[0]
        code = meaning(text, mapping.ignore_case, table.decimal)
        if code in meanings and (variable.codes or meanings[code] is None):
            return meanings[code]
        if variable.codes:
            raise _unknown_code(name, text, [*mapping.codes, *variable.codes])
        if code in meanings:
            value = number(meanings[code] or "")
        else:
            value = number(text, table.decimal)
        if value is None:
            raise _no_number(name, text, table)
        value = to_study(value)
        converted = mapping.unit is not None and mapping.unit != variable.unit
        said = f"{text} {mapping.unit} = {value:g} {variable.unit}" if converted else text
        return _within(name, variable, value, said, mapping.out_of_range)

    return parse


def _interval(name: str, variable: Variable, mapping: Interval, table: TableFile) -> Parse:
    missing = {meaning(code) for code in ("", *table.missing, *mapping.missing)}
    to_study = conversion("days", variable.unit or "days")
    calendar = {"month": 1, "year": 12}.get(unit_name(variable.unit or "days")) if variable.type == "integer" else None

    def parse(raw: tuple[str, ...]) -> Value:
        texts = (raw[0], mapping.since if mapping.fixed else raw[-1])
        if any(meaning(text) in missing for text in texts):
            return None
        later = _date(name, texts[0], mapping)
        earlier = _date(name, texts[1], mapping, fixed=mapping.fixed)
        if later.tzinfo is not None and mapping.fixed:
            earlier = earlier.replace(tzinfo=later.tzinfo)
        if (later.tzinfo is None) != (earlier.tzinfo is None):
            message = f"{name}: of {_short(texts[0])!r} and {_short(texts[1])!r} one has a time zone and one has none"
            raise _Bad("zone", message, "export both with a time zone, or both without")
        if later.tzinfo is not None:
            earlier = earlier.astimezone(later.tzinfo)
        if calendar:
            months = (later.year - earlier.year) * 12 + later.month - earlier.month
            value = float((months - ((later.day, later.time()) < (earlier.day, earlier.time()))) // calendar)
        else:
            value = to_study((later - earlier).total_seconds() / 86400)
            value = float(math.floor(value)) if variable.type == "integer" else value
        return _within(name, variable, value, f"{value:g}", mapping.out_of_range)

    return parse


def _date(name: str, text: str, mapping: Interval, fixed: bool = False) -> datetime:
    wanted, form = text, None if fixed else mapping.format
    if form and mapping.months:
        names = {month.casefold(): f"{order:02d}" for month, order in mapping.months.items()}
        pattern = "|".join(re.escape(month) for month in sorted(names, key=len, reverse=True))
        wanted = re.sub(pattern, lambda found: names[found[0].casefold()], text, count=1, flags=re.IGNORECASE)
        form = re.sub("%[bB]", "%m", form)
    try:
        if form:
            return datetime.strptime(wanted, form)  # noqa: DTZ007 (a zone, where there is one, is compared by the caller)
        return datetime.fromisoformat(wanted)
    except ValueError:
        hint = "correct the date, add its code to missing, or set format and months"
        message = f"{name}: {_short(text)!r} is not a date like {mapping.format or '2027-01-31'}"
        raise _Bad("date", message, hint) from None


def _cases(name: str, variable: Variable, mapping: Cases, columns: Sequence[str]) -> Parse:
    conditions = [
        [
            (
                columns.index(column),
                {meaning(code, mapping.ignore_case) for code in one.any_of or one.none_of},
                bool(one.any_of),
            )
            for column, one in case.where.items()
        ]
        for case in mapping.cases
    ]

    def parse(raw: tuple[str, ...]) -> Value:
        row = [meaning(text, mapping.ignore_case) for text in raw]
        fitting = [
            index
            for index, tests in enumerate(conditions)
            if all((row[at] in codes) == wanted for at, codes, wanted in tests)
        ]
        if not fitting:
            return None
        if len(fitting) > 1:
            numbers = " and ".join(str(index + 1) for index in fitting)
            raise _Bad("cases", f"{name}: cases {numbers} both fit this row", "make the cases exclude each other")
        value = mapping.cases[fitting[0]].value
        return value if variable.codes else _within(name, variable, number(value) or 0.0, value, "refuse")

    return parse


# --- numbers and codes ------------------------------------------------------------------------------------------------


def _within(name: str, variable: Variable, value: float, said: str, out_of_range: str) -> Value:
    """The value, if the study believes it. `said`: how a message names it, in the hospital's words."""
    if variable.range and not variable.range[0] <= value <= variable.range[1]:
        if out_of_range == "missing":
            return None
        low, high = variable.range
        span = f"{low:g} to {high:g}" if low < 0 else f"{low:g}-{high:g}"
        hint = "correct the value, check the unit, or set out_of_range: missing in the mapping"
        raise _Bad("range", " ".join(filter(None, [name, _short(said), "outside", span, variable.unit])), hint)
    if abs(value) > LARGEST_NUMBER:
        if out_of_range == "missing":
            return None
        hint = "correct the value, or set out_of_range: missing in the mapping"
        raise _Bad("range", f"{name} {_short(said)} is larger than any number may be ({LARGEST_NUMBER:g})", hint)
    if variable.type == "integer" and not value.is_integer():
        raise _Bad(
            "whole", f"{name} {_short(said)} is not a whole number", f"'{name}' counts in whole numbers in the study"
        )
    return value


def _no_number(name: str, text: str, table: TableFile) -> _Bad:
    other = "." if table.decimal == "," else ","
    first = text.partition(" ")[0]
    message = f"{name} {_short(text)!r} is not a number"
    if text.startswith("="):
        return _Bad("formula", message, _FORMULA)
    if number(text, other) is not None:
        hint = f"if '{other}' is the decimal mark of the whole table, set table.decimal: '{other}'"
        return _Bad("decimal", message, hint)
    if first != text and number(first, table.decimal) is not None:
        hint = "the cell holds more than the number: leave the unit out of it, and name it in the mapping (unit)"
        return _Bad("more than a number", message, hint)
    if len(text) > 20:
        return _Bad("number", message, "correct it; is this the right column?")
    hint = f"correct it, or say what it stands for: codes: {{{text!r}: NUMBER}}; if nothing is known, missing: [{text}]"
    return _Bad(f"number {text}", message, hint, is_code=True)


def _unknown_code(name: str, text: str, known: Sequence[str]) -> _Bad:
    hint = f"{likely(text, list(dict.fromkeys(known)), 'known')}; add it to codes or to missing"
    if text.startswith("="):
        hint = _FORMULA
    return _Bad(f"code {text}", f"{name} has the unknown code {_short(text)!r}", hint, is_code=True)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _where(document: Document[HospitalConfig], name: str, *key: str | int) -> str:
    return document.where("table", "columns", name, *key)
