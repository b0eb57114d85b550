"""Reads a CSV, XLSX or Parquet file as text cells with their line numbers, or says why it cannot be read."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ich_client.cells import as_text
from ich_client.hospital import TableFile
from ich_models.errors import DataError, Problem
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

    def place(self, rows: Sequence[int]) -> str:
        """These rows as a place: "north.csv: line 14 (and 3 more)"."""
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        return f"{self.name}: {self.counted} {self.lines[rows[0]]}{more}"

    def known(self, name: str) -> str:
        """A hint at the columns that there are, the likely one first."""
        if len(self.header) == 1:
            others = ", ".join(repr(mark) for mark in (";", "\t", "|") if mark in self.header[0])
            if others:
                return f"the header is one column, {self.header[0][:60]!r}: set table.separator to {others}"
        listing = ", ".join(self.header[:20]) + (f" and {len(self.header) - 20} more" if len(self.header) > 20 else "")
        return " ".join(filter(None, [suggest(name, self.header), f"(columns: {listing})"]))


def read(path: Path, table: TableFile, where: str) -> Sheet:
    """Read a file as `table` describes it. Raises DataError with its faults; `where` is the place that names the file."""
    if not path.is_file():
        names = [other.name for other in sorted(path.parent.glob("*")) if other.is_file()]
        kind = "is a folder" if path.is_dir() else "does not exist"
        hint = suggest(path.name, names) or "correct table.file, or the folder of the data"
        raise DataError(f"{path} {kind}", where=where, hint=hint)
    try:
        match path.suffix.lower():
            case ".xlsx" | ".xlsm":
                sheet = _workbook(path, table, where)
            case ".parquet" | ".pq":
                sheet = _parquet(path)
            case ".xls" | ".ods" | ".sav" | ".dta":
                hint = "save it as CSV (UTF-8) or XLSX, and name that file"
                raise DataError(f"{path.name} is of a kind that is not read here", where=where, hint=hint)
            case _:
                sheet = _csv(path, table, where)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", where=where, hint="check permissions") from None
    twice = [name for name, count in Counter(sheet.header).items() if count > 1 and name]
    if twice:
        names = ", ".join(map(repr, twice))
        raise DataError(f"column {names} stands twice in the header", where=sheet.name, hint="rename or delete one of them")
    if not sheet.rows:
        raise DataError(f"{sheet.name} has a header but no patients", where=where, hint="export it again")
    return sheet


def _csv(path: Path, table: TableFile, where: str) -> Sheet:
    """Python's own reader: it keeps line numbers, and neither renames columns nor fills short rows."""
    name, data = path.name, path.read_bytes()
    if data.startswith((b"PK\x03\x04", b"PAR1", b"\xd0\xcf\x11\xe0")):
        kind = "a Parquet file" if data.startswith(b"PAR1") else "an Excel workbook or an archive"
        raise DataError(f"{name} is {kind}, not CSV", where=where, hint="give the file its own ending (.xlsx, .parquet)")
    try:
        text = data.decode("utf-8-sig" if table.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else table.encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"the byte 0x{data[error.start]:02x} is not {table.encoding}"
        hint = "set table.encoding to what the file was saved in (latin-1, cp1252, ...)"
        raise DataError(message, where=f"{name}: line {line}", hint=hint) from None
    if "\0" in text:
        raise DataError(f"{name} is not a text file", where=where, hint="export it as CSV, or set table.encoding: utf-16")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=table.separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    before = 0
    try:
        for row in reader:
            rows.append(row)
            lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        hint = "look for a quotation mark that is not closed, or set table.separator"
        raise DataError(f"not CSV: {error}", where=f"{name}: line {before + 1}", hint=hint) from None
    sheet = _with_header(name, rows, lines, "line", table, where)
    ragged = [index for index, row in enumerate(sheet.rows) if len(row) != len(sheet.header)]
    if ragged:
        cells, width = len(sheet.rows[ragged[0]]), len(sheet.header)
        hint = "a cell that holds the separator needs quotation marks; check table.separator"
        raise DataError(f"{cells} cells, and the header has {width}", where=sheet.place(ragged), hint=hint)
    return sheet


def _workbook(path: Path, table: TableFile, where: str) -> Sheet:
    import openpyxl  # type: ignore[import-untyped, unused-ignore]  # stubs are a package of their own

    try:
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            if table.sheet is not None and table.sheet not in book.sheetnames:
                message, listing = f"no sheet '{table.sheet}' in {path.name}", ", ".join(book.sheetnames)
                raise DataError(message, where=where, hint=" ".join([suggest(table.sheet, book.sheetnames), f"(sheets: {listing})"]).strip())
            page = book[table.sheet] if table.sheet else book.worksheets[0]
            page.reset_dimensions()  # some programs write wrong ones
            rows = [[_typed(cell, table) for cell in row] for row in page.iter_rows(values_only=True)]
    except (DataError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  # openpyxl raises whatever its parser meets in a damaged file
        raise DataError(f"{path.name} is not an XLSX workbook: {error}", where=where, hint="save it again as .xlsx") from None
    width = max(map(len, rows), default=0)
    padded = [[*row, *[""] * (width - len(row))] for row in rows]
    return _with_header(path.name, padded, range(1, len(rows) + 1), "row", table, where)


def _parquet(path: Path) -> Sheet:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]  # has no stubs
    from pyarrow import parquet

    try:
        content = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        first = str(error).splitlines()[0]
        raise DataError(f"not a Parquet file: {first}", where=path.name, hint="export it again") from None
    columns = [[as_text(cell) for cell in column.to_pylist()] for column in content.columns]
    rows = list(zip(*columns, strict=True))
    return Sheet(path.name, tuple(content.column_names), rows, range(1, len(rows) + 1), "row")


def _typed(cell: object, table: TableFile) -> str:
    """A workbook's number in the table's decimal notation, so that typed and written numbers read alike."""
    return as_text(cell).replace(".", table.decimal) if isinstance(cell, float) else as_text(cell)


def _with_header(
    name: str, rows: Iterable[Sequence[str]], lines: Iterable[int], counted: str, table: TableFile, where: str
) -> Sheet:
    """Set empty lines aside, and take the first line as the header unless the mapping names the columns."""
    filled = [(line, row) for line, row in zip(lines, rows, strict=True) if any(cell.strip() for cell in row)]
    if not filled:
        raise DataError(f"{name} is empty", where=where, hint="export it again")
    if table.header is None:
        (_, header), *filled = filled
    else:
        header = table.header
        widths = Counter(len(row) for _, row in filled)
        width = widths.most_common(1)[0][0]
        if width != len(header):
            message = f"{len(header)} names for {width} columns of {name}"
            raise DataError(message, where=where, hint="table.header must name every column, in order")
    return Sheet(
        name, tuple(column.strip() for column in header), [row for _, row in filled], [line for line, _ in filled], counted
    )
