"""A table as a file: which one, and how its cells are written. What `sheets.read` needs to know."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from ich_models.strict import Strict

Title = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


def _encoding(value: str) -> str:
    try:
        "a".encode(value)
    except (LookupError, UnicodeError):
        raise ValueError(f"no encoding '{value}' | utf-8, latin-1, cp1252, ...") from None
    return value


Encoding = Annotated[str, AfterValidator(_encoding)]
"""Of a text file, by a name that Python knows."""


class SheetFile(Strict):
    """A CSV, XLSX or Parquet file."""

    file: Title
    """CSV, XLSX or Parquet (by its ending; others are read as CSV), relative to the data folder."""
    sheet: Title | None = None
    """Sheet of a workbook; the first if it is left out."""
    header: Annotated[list[Title], Field(min_length=1)] | None = None
    """Names of the columns, for a file without a header line."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    encoding: Encoding = "utf-8"
    decimal: Literal[".", ","] = "."

    @property
    def is_typed(self) -> bool:
        """Whether the file has typed cells in numbered rows; a CSV file has text in lines."""
        return Path(self.file).suffix.lower() in (".xlsx", ".xlsm", ".parquet", ".pq")

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if self.separator == self.decimal and not self.is_typed:
            raise ValueError(f"'{self.separator}' separates cells and decimals | set separator or decimal to another")
        return self
