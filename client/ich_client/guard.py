"""What a hospital puts before and after its work: leave to do it, and a record of what goes out."""

from collections.abc import Callable
from dataclasses import dataclass

from ich_client.site import Site
from ich_models.protocol import Rows, Task
from ich_models.strict import Strict


@dataclass(frozen=True)
class Guard:
    """By default everything is permitted and nothing recorded: a simulation has no hospital to protect."""

    permit: Callable[[Site, Task], None] = lambda site, task: None
    """Raises RefusedError for a task that the hospital has not agreed to."""
    record: Callable[[Task | None, Strict, Rows], None] = lambda task, reply, rows: None
    """Called before a reply leaves; if it raises, the reply does not leave."""
