"""Tables on the terminal, in the commands' common manner."""

from rich.table import Table
from rich.text import Text


def table_of(title: str, *columns: str, numbers: int = 0) -> Table:
    """No box, so that lines can be copied; the last `numbers` columns are set right."""
    table = Table(
        title=Text(title) if title else None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for index, column in enumerate(columns):
        right = index >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table


def add(table: Table, *cells: object) -> None:
    """A row; nothing in it is markup."""
    table.add_row(*(Text(str(cell)) for cell in cells))


def pairs(title: str, **lines: object) -> Table:
    """A name and a value per line."""
    table = table_of(title, "", "")
    table.show_header = False
    for name, value in lines.items():
        add(table, name.replace("_", " "), value)
    return table
