"""What can go wrong, said so that the reader can act: message, place, way out, exit code, and the codes that may leave a hospital."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where (file:line:column, a key path, a series), what, and what to do about it."""

    message: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        first = f"{self.where}: {self.message}" if self.where else self.message
        return f"{first}\n    {self.hint}" if self.hint else first


class IchError(Exception):
    """One or more problems that end the command; `exit_code` is stable and documented in docs/commands.md."""

    exit_code: ClassVar[int] = 4

    def __init__(self, problems: Problem | str | Iterable[Problem], *, where: str = "", hint: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(problems, where, hint)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type["IchError"], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # problems survive the trip between worker processes


class ConfigurationError(IchError):
    """A configuration file, a command line or a combination of settings that cannot be used."""

    exit_code = 2


class DataError(IchError):
    """A hospital's data that cannot be used as they are mapped."""

    exit_code = 3


class RunError(IchError):
    """A study that could not go on: too few hospitals, no space, a refused round."""

    exit_code = 4


class Exclusion(StrEnum):
    """The closed list of reasons, that may cross from a hospital to the server, why a patient does not take part."""

    OUTCOME = "outcome unknown"
    PREDICTOR = "a predictor missing"


class Code(StrEnum):
    """The closed list of reasons that may cross from a hospital to the server in place of a result."""

    PROTOCOL = "PROTOCOL"  # another protocol or package version
    FEDERATION = "FEDERATION"  # the configuration is not the one that this hospital holds
    APPROVAL = "APPROVAL"  # people at the hospital have not approved this study with this version
    POLICY = "POLICY"  # the hospital's own limits: hours, studies, metrics, how often the same may be asked
    BUDGET = "BUDGET"  # the hospital's privacy budget does not allow it
    HELD_OUT = "HELD_OUT"  # asked to learn for a fold that holds this hospital out
    MALFORMED = "MALFORMED"  # a message outside the schema
    DATA = "DATA"  # the hospital's data cannot be used
    SMALL_CELLS = "SMALL_CELLS"  # too few patients for anything to be said of them
    EGRESS = "EGRESS"  # the reply was not what may leave; it was dropped
    PRIVACY = "PRIVACY"  # what is asked for would not be private
    DIVERGED = "DIVERGED"  # training gave numbers that are not finite
    RESOURCES = "RESOURCES"  # memory, disk or device
    INTERNAL = "INTERNAL"  # anything else; the traceback stays in the hospital's log
