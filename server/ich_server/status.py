"""What a running server says of itself, and what it is told: two files in its folder, readable also when it is dead."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from ich_models.errors import ConfigurationError
from ich_models.files import write_atomic
from ich_models.strict import Strict

FRESH: Final = 15.0
"""Seconds after which a status that was not renewed is of a server that has died."""

Phase = Literal["waiting", "training", "paused", "stopped", "failed", "finished"]


class HospitalStatus(Strict):
    """One admitted hospital."""

    name: str
    connected: bool
    last_seen: str | None
    """UTC, ISO 8601; None: never."""
    version: str = ""
    """Of its package; empty until it has asked for a task."""
    late: int = 0
    """Replies after the deadline, since this server runs: it works, but too slowly."""


class SetAside(Strict):
    """One reply that was set aside."""

    seed: int
    when: str
    hospital: str
    reason: str


class RoundStatus(Strict):
    """One finished round of the present seed. `losses`: training loss by fold; `replied`: hospitals whose reply was used."""

    round: int
    seconds: float
    hospitals: int
    replied: int
    losses: dict[str, float | None]


class Found(Strict):
    """What one hospital has answered of one arm: patients, events (null: withheld), AUROC (of slices: by type)."""

    seed: int
    hospital: str
    arm: str
    patients: int
    events: int | None
    auroc: dict[str, float | None]
    """By type of haemorrhage; of one outcome under the name ''."""


class Status(Strict):
    """The whole file."""

    study: str
    federation: str
    """Hash of the federation file."""
    package: str
    address: str
    process: int
    phase: Phase
    updated: str
    """UTC, ISO 8601."""
    seeds: list[int]
    seed: int | None = None
    round: int = 0
    rounds: int
    loss: float | None = None
    """Training loss of the all-hospital model in the last round."""
    round_seconds: float | None = None
    """Duration of the last round."""
    history: list[RoundStatus] = []
    """Of the present seed, since this server runs."""
    seconds_left: float | None = None
    """Until the last round of the last seed, at the pace of the rounds so far."""
    found: list[Found] = []
    """Figures as they come."""
    hospitals: list[HospitalStatus] = []
    set_aside: list[SetAside] = []
    message: str = ""
    """Why it stopped, where it did."""

    @property
    def alive(self) -> bool:
        """Whether the server that wrote this still renews it."""
        return _age(self.updated) < FRESH and self.phase in ("waiting", "training", "paused")


def now() -> str:
    """The time as it stands in the file."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _age(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def write(folder: Path, status: Status) -> None:
    """Replace the file."""
    write_atomic(folder / "status.json", (status.model_dump_json(indent=2) + "\n").encode())


def read(folder: Path) -> Status:
    """The last status. Raises ConfigurationError if no server has ever run here."""
    path = folder / "status.json"
    try:
        return Status.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        hint = "begin with ich-server run, or name the federation folder with --home"
        raise ConfigurationError("no server has run here", where=str(path), hint=hint) from None
    except ValidationError as error:
        raise ConfigurationError("not a status of this version", where=str(path)) from error


def as_json(found: Status) -> dict[str, Any]:
    """What `status --json` and the live page tell: the file, and whether the server that wrote it still renews it."""
    return {**found.model_dump(), "alive": found.alive}


def last(folder: Path) -> Status | None:
    """The last status, if there is one that can be read."""
    try:
        return read(folder)
    except ConfigurationError:
        return None


# --- requests ---------------------------------------------------------------------------------------------------------

PAUSE: Final = "pause"
STOP: Final = "stop"


def ask(folder: Path, request: str) -> None:
    """Leave a request for the running server, which looks for it between rounds."""
    write_atomic(folder / request, f"{os.getpid()}\n".encode())


def asked(folder: Path, request: str) -> bool:
    """Whether it stands."""
    return (folder / request).exists()


def withdraw(folder: Path, request: str) -> None:
    """Take it back."""
    (folder / request).unlink(missing_ok=True)


def wait_while_paused(folder: Path, tell: Callable[[bool], None]) -> None:
    """Return when no pause is asked for, or a stop is. `tell` hears of the beginning (True) and the end of a wait."""
    if not asked(folder, PAUSE):
        return
    tell(True)
    while asked(folder, PAUSE) and not asked(folder, STOP):
        time.sleep(0.5)
    tell(False)
