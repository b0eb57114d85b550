"""Reads a CSV, XLSX or Parquet file as text cells with their line numbers, or says why it cannot be read."""

import codecs
import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from ich_client.cells import as_text
from ich_client.sheet_file import SheetFile
from ich_models.errors import DataError
from ich_models.yaml_config import suggest


@dataclass(frozen=True)
class Sheet:
    """The rows of a file as text. `lines`: where each row begins, counted from 1 as editors and Excel do."""

    name: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]
    counted: str = "line"

    def column(self, name: str) -> list[str]:
        """The cells of a column, without the spaces around them."""
        index = self.header.index(name)
        return [row[index].strip() for row in self.rows]

    def place(self, rows: Sequence[int], shown: int = 1) -> str:
        """These rows as a place, the first of them named: "north.csv: line 14 (and 3 more)"."""
        named = [str(self.lines[row]) for row in rows[:shown]]
        more = f" (and {len(rows) - len(named)} more)" if len(rows) > len(named) else ""
        return f"{self.name}: {self.counted}{'s' if len(named) > 1 else ''} {', '.join(named)}{more}"

    def known(self, name: str) -> str:
        """A hint at the columns that there are, the likely one first."""
        if len(self.header) == 1:
            others = ", ".join(repr(mark) for mark in (";", "\t", "|") if mark in self.header[0])
            if others:
                return f"the header is one column, {self.header[0][:60]!r}: set table.separator to {others}"
        return likely(name, self.header, "columns")


def likely(name: str, known: Sequence[str], title: str) -> str:
    """A hint at what there is, the likely one first, and no more than a screen takes."""
    if len(known) <= 20:
        return suggest(name, known, title)
    nearest = get_close_matches(name, known, n=20, cutoff=0.0)
    return suggest(name, nearest, f"the nearest of {len(known)} {title}")


Where = Callable[[str], str]
"""The place of one of a file's keys in hospital.yaml."""


def read(path: Path, table: SheetFile, where_is: Where) -> Sheet:
    """Read a file as a hospital's mapping describes it. Raises DataError with what is wrong with it."""
    where = where_is("file")
    if not path.is_file():
        names = [other.name for other in sorted(path.parent.glob("*")) if other.is_file()]
        kind = "is a folder" if path.is_dir() else "does not exist"
        hint = likely(path.name, names, "files there") if names else "correct table.file, or the folder of the data"
        raise DataError(f"{path} {kind}", where=where, hint=hint)
    try:
        match path.suffix.lower():
            case ".xlsx" | ".xlsm":
                lines, rows = _workbook(path, table, where_is)
            case ".parquet" | ".pq":
                lines, rows = _parquet(path, table)
            case ".xls" | ".ods" | ".sav" | ".dta":
                hint = "save it as CSV (UTF-8) or XLSX, and name that file"
                raise DataError(f"{path.name} is of a kind that is not read here", where=where, hint=hint)
            case _:
                lines, rows = _csv(path, table, where_is)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise DataError(message, where=where, hint="make it readable for the user who runs this") from None
    return _sheet(path, lines, rows, table, where_is)


def _sheet(path: Path, lines: Sequence[int], rows: Sequence[Sequence[str]], table: SheetFile, where_is: Where) -> Sheet:
    """Set empty lines aside, name the columns, and refuse what is no table of patients."""
    where, name = where_is("file"), path.name
    filled = [(line, row) for line, row in zip(lines, rows, strict=True) if any(cell.strip() for cell in row)]
    if not filled:
        raise DataError(f"{name} is empty", where=where, hint="export it again")
    if table.header is None:
        (_, names), *filled = filled
        header = tuple(column.strip() for column in names)
    else:
        header = tuple(table.header)
    counted = "row" if table.is_typed else "line"
    sheet = Sheet(name, header, [row for _, row in filled], [line for line, _ in filled], counted)
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        message = f"the header names {', '.join(map(repr, twice))} more than once"
        raise DataError(message, where=name, hint="rename or delete one of the columns")
    if not filled:
        raise DataError(f"{name} has a header but no patients", where=where, hint="export it again")
    ragged = [index for index, row in enumerate(sheet.rows) if len(row) != len(header)]
    if len(ragged) == len(filled) and table.header is not None:
        message = f"{len(header)} names for the {len(filled[0][1])} columns of {name}"
        raise DataError(message, where=where_is("header"), hint="name every column, in order")
    if ragged:
        message = f"{len(sheet.rows[ragged[0]])} cells where the header has {len(header)}"
        hint = "a cell that holds the separator needs quotation marks; check table.separator too"
        raise DataError(message, where=sheet.place(ragged), hint=hint)
    return sheet


_Rows = tuple[Sequence[int], Sequence[Sequence[str]]]
"""Line numbers and cells."""


_PACKED: Final = ((b"\x1f\x8b", "gzip", "gunzip"), (b"BZh", "bzip2", "bunzip2"), (b"\xfd7zXZ\0", "xz", "unxz"))
"""How compressed files begin, what they are, and what unpacks them."""

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encoding that each is the beginning of."""

_TOLD: Final = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


def _csv(path: Path, table: SheetFile, where_is: Where) -> _Rows:
    """Python's own reader: it keeps line numbers, and neither renames columns nor fills short rows."""
    name, data, where = path.name, path.read_bytes(), where_is("file")
    if data.startswith((b"PK\x03\x04", b"PAR1", b"\xd0\xcf\x11\xe0")):
        kind = "a Parquet file" if data.startswith(b"PAR1") else "an Excel workbook or an archive"
        raise DataError(f"{name} is {kind}, not CSV", where=where, hint="give it its own ending (.xlsx, .parquet)")
    for start, kind, tool in _PACKED:
        if data.startswith(start):
            hint = f"unpack it ({tool}) and name the file that comes out"
            raise DataError(f"{name} is compressed ({kind})", where=where, hint=hint)
    _mark(name, data, table, where_is)
    try:
        text = data.decode(table.encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"the byte 0x{data[error.start]:02x} is not {table.encoding}"
        hint = "set table.encoding to what the file was saved in (latin-1, cp1252, ...)"
        raise DataError(message, where=f"{name}: line {line}", hint=hint) from None
    if "\0" in text:
        raise DataError(f"{name} is not text", where=where, hint="export it as CSV, or set table.encoding: utf-16")
    lines: list[int] = []
    rows: list[list[str]] = []
    begin = 1
    if told := _TOLD.match(text):  # Excel's own way to name the separator; no row of the table
        if told[1] != table.separator:
            hint = f"set table.separator to {told[1]!r}"
            message = f"its first line says that the separator is {told[1]!r}, and it is read with {table.separator!r}"
            raise DataError(message, where=f"{name}: line 1", hint=hint)
        text, begin = text[told.end() :], 2
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=table.separator, strict=True)
    before = begin - 1
    try:
        for row in reader:
            lines.append(begin)
            rows.append(row)
            begin = before + reader.line_num + 1
    except csv.Error as error:
        hint = "look for a quotation mark that is not closed, or doubled inside a cell"
        raise DataError(f"not CSV: {error}", where=f"{name}: line {begin}", hint=hint) from None
    return lines, rows


def _mark(name: str, data: bytes, table: SheetFile, where_is: Where) -> None:
    """Refuse a file that says by its first bytes that it is of another encoding: the mark would become part of a name."""
    for mark, encoding in _MARKS:
        if data.startswith(mark) and not codecs.lookup(table.encoding).name.startswith(encoding):
            message = f"{name} begins with the mark of {encoding}, and it is read as {table.encoding}"
            raise DataError(message, where=where_is("encoding"), hint=f"set table.encoding: {encoding}")


def _workbook(path: Path, table: SheetFile, where_is: Where) -> _Rows:
    import openpyxl

    try:
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            found = {page.title.strip(): page for page in book.worksheets}  # charts are sheets, too, but hold no cells
            if not found:
                hint = "name the workbook that holds the table"
                raise DataError(f"{path.name} holds charts alone, no table", where=where_is("file"), hint=hint)
            if table.sheet is not None and table.sheet not in found:
                chart = table.sheet in (name.strip() for name in book.sheetnames)
                message = f"no sheet '{table.sheet}' in {path.name}"
                message = f"sheet '{table.sheet}' of {path.name} is a chart" if chart else message
                raise DataError(message, where=where_is("sheet"), hint=likely(table.sheet, list(found), "sheets"))
            page = found[table.sheet] if table.sheet else book.worksheets[0]
            page.reset_dimensions()  # some programs write wrong ones
            rows = [[_typed(cell, table) for cell in row] for row in page.iter_rows(values_only=True)]
            if _has_formulas(path):
                _show_formulas(path, page.title, rows)
    except (DataError, OSError):
        raise
    except Exception as error:  # openpyxl raises whatever its parser meets in a damaged file
        message, where = f"{path.name} is not an XLSX workbook: {error}", where_is("file")
        raise DataError(message, where=where, hint="save it again as .xlsx, or as CSV") from None
    width = max(map(len, rows), default=0)
    return range(1, len(rows) + 1), [[*row, *[""] * (width - len(row))] for row in rows]


def _has_formulas(path: Path) -> bool:
    """Whether any sheet has a formula: few have, and only these are read twice."""
    with zipfile.ZipFile(path) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        return any(b"<f" in archive.read(name) for name in sheets)


def _show_formulas(path: Path, title: str, rows: list[list[str]]) -> None:
    """Put the formula itself where the workbook does not hold its value, which would else read as missing."""
    import openpyxl

    with path.open("rb") as file:
        page = openpyxl.load_workbook(file, read_only=True, data_only=False)[title]
        page.reset_dimensions()
        for row, formulas in zip(rows, page.iter_rows(values_only=True), strict=False):
            for index, formula in enumerate(formulas):
                if index < len(row) and not row[index] and isinstance(formula, str) and formula.startswith("="):
                    row[index] = formula


def _parquet(path: Path, table: SheetFile) -> _Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        content = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        first = str(error).splitlines()[0]
        raise DataError(f"not a Parquet file: {first}", where=path.name, hint="export it again, or as CSV") from None
    cells = [[_typed(cell, table) for cell in column.to_pylist()] for column in content.columns]
    header = [] if table.header else [content.column_names]
    return range(1 - len(header), content.num_rows + 1), [*header, *zip(*cells, strict=True)]


def _typed(cell: object, table: SheetFile) -> str:
    """A typed number in the table's decimal notation, so that numbers and written numbers read alike."""
    text = as_text(cell)
    return text.replace(".", table.decimal) if isinstance(cell, float | Decimal) else text
