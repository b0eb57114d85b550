"""Stand-in until the branch `dpengine` brings the list."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ich_models.variables import Complaint

if TYPE_CHECKING:
    from ich_models.federation import Federation


def refusals(federation: "Federation") -> Iterator[Complaint]:
    yield from ()
