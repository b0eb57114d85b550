"""One program at a time in a folder: a lock that goes with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ich_models.errors import RunError


@contextmanager
def alone(folder: Path, lock: Path, program: str, hint: str) -> Iterator[None]:
    """Nobody else enters meanwhile. Raises RunError, naming the `program` and its process, if somebody is in there."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            message = f"{program} (process {file.read().strip() or 'unknown'}) runs on this folder already"
            raise RunError(message, where=str(folder), hint=hint) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
