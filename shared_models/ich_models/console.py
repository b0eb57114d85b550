"""What the three commands share: a typer application run so that an error is words and an exit code, not a traceback."""

import logging
import sys
from collections.abc import Iterable
from typing import Final, NoReturn

import typer
import typer.core
from rich.console import Console

from ich_models.errors import IchError, Problem, RunError

typer.core.HAS_RICH = False  # plain help texts: with rich, typer 0.20 prints "\[required]" in them


INTERRUPTED: Final = 130
"""Exit code after Ctrl-C."""


class OneLine(logging.Formatter):
    """Log lines that nobody else can write: what came from outside cannot begin a line, nor move the cursor.

    Further lines of a message are indented, and control characters are written out.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\r\n", "\n")
        shown = "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return shown.replace("\n", "\n    ")


def application(help_text: str) -> typer.Typer:
    """A typer application in the commands' common manner."""
    return typer.Typer(help=help_text, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run(app: typer.Typer) -> None:
    """Run the command and exit: 0 done, 2 configuration or usage, 3 data, 4 run, 130 interrupted (by typer).

    Only the project's own errors and the operating system's are put into words; anything else is a defect of ours, and
    its traceback is what the report of it needs.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its own accounts of what it does
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stderr.write("interrupted; what was finished is kept, and --resume goes on with a study\n")
        raise
    except IchError as error:
        fail(error)
    except OSError as error:
        place = str(error.filename or "")
        fail(RunError(Problem(error.strerror or str(error), place, "check the path, its permissions and free space")))


def fail(error: IchError) -> NoReturn:
    """Print every problem, each with its place and the way out, and exit with the error's code."""
    console = Console(emoji=False, stderr=True, highlight=False, soft_wrap=True)
    for problem in error.problems:
        console.print(str(problem), markup=False)
    if len(error.problems) > 1:
        console.print(f"{len(error.problems)} problems", markup=False)
    sys.stderr.flush()
    sys.exit(error.exit_code)


def warn(problems: Iterable[Problem], word: str = "warning") -> None:
    """Print warnings, or what `word` says; the command goes on."""
    console = Console(emoji=False, stderr=True, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"{word}: {problem}", markup=False)
