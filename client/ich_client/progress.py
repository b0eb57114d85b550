"""Shows on the terminal how far the reading of images is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ich_client.image_finds import Watch

TITLES: Final = {"scan": "files of images", "images": "patients' images", "reports": "reports by the language model"}


@contextmanager
def watched() -> Iterator[Watch]:
    """A bar per phase on the error stream, gone when it is done; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(emoji=False, stderr=True, highlight=False), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def watch(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(TITLES.get(phase, phase), total=None)
            bar.update(tasks[phase], completed=done, total=total)

        yield watch
