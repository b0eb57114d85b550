"""What the report's pages are put together from: tables, their rows and cells, pictures, and sections of these."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A number and, on a line below it, its interval. `style`: of a cell that is coloured by its number."""

    value: str
    around: str = ""
    style: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is about, then its cells."""

    head: str
    cells: tuple[Cell, ...]
    total: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption; `open`: not folded away."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with the text under it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own: what it shows, in words, pictures, and the same numbers in tables."""

    name: str
    title: str
    text: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
