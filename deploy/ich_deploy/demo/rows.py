"""Rows of patients to the bytes of a registry's table: CSV and XLSX, the same bytes for the same rows."""

import csv
import io
import re
import zipfile
from collections.abc import Sequence

from openpyxl import Workbook

Row = dict[str, object]


def csv_bytes(rows: Sequence[Row], separator: str = ",", encoding: str = "utf-8") -> bytes:
    """A CSV file with a header line."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode(encoding)


def workbook(rows: Sequence[Row]) -> bytes:
    """An XLSX file of two sheets. openpyxl writes the time of day into it, here it is always the same one."""
    book = Workbook()
    notes = book.active
    notes.title = "Legende"
    notes.append(["Hirnblutungsregister Ost: erfundene Patienten", "99, 9, 0, k.A. = keine Angabe"])
    sheet = book.create_sheet("Register")
    sheet.append(list(rows[0]))
    for row in rows:
        sheet.append(list(row.values()))
    fresh, fixed = io.BytesIO(), io.BytesIO()
    book.save(fresh)
    with zipfile.ZipFile(fresh) as source, zipfile.ZipFile(fixed, "w") as target:
        for name in source.namelist():
            content = re.sub(rb"20\d\d-\d\d-\d\dT[\d:]+Z", b"2025-01-01T00:00:00Z", source.read(name))
            target.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's own date is 1980, and it does not compress
    return fixed.getvalue()


def comma(value: float) -> str:
    """A number with a decimal comma."""
    return f"{value:g}".replace(".", ",")


def otherwise(value: object, code: object) -> object:
    """The value, or the registry's code for what is unknown."""
    return code if value is None else value
