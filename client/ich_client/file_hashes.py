"""SHA-256 of files; one that has been hashed is not read again while it is, to all that its file system tells, the same."""

import hashlib
import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

SETTLED: Final = 3.0
"""Seconds for which a file must have been left alone to be believed later: within a tick of the clock two versions of it
look alike. (Some file systems' ticks are of two seconds.)"""


class FileHashes:
    """What is known of files, in a database that any number of threads and programs share. A context manager.

    A file is the same if its size, its inode and the times of its last change are: of its content, and of anything about it,
    which no program can set back. What the database cannot tell or keep, for whatever reason, is found out anew.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._known = _open(str(path))
        except sqlite3.Error:
            self._known = _open(":memory:")
        with suppress(sqlite3.Error):
            self._known.execute("PRAGMA synchronous = OFF")  # after a crash there is less to know, or nothing
            self._known.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, mark TEXT, sha256 TEXT)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._known.close()

    def of(self, path: Path) -> str:
        """The file's SHA-256. Raises OSError if it cannot be read."""
        where = str(path.absolute())
        with path.open("rb") as file:
            mark = _mark(file)
            if (known := self._ask(where, mark)) is not None:
                return known
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if _mark(file) == mark and _settled(file):
                self._keep(where, mark, found)
            return found

    def _ask(self, where: str, mark: str) -> str | None:
        with self._lock, suppress(sqlite3.Error):
            row = self._known.execute("SELECT sha256 FROM files WHERE path = ? AND mark = ?", (where, mark)).fetchone()
            return None if row is None else str(row[0])
        return None

    def _keep(self, where: str, mark: str, found: str) -> None:
        with self._lock, suppress(sqlite3.Error):
            self._known.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (where, mark, found))


def _open(name: str) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=5, check_same_thread=False, isolation_level=None)


def _mark(file: BinaryIO) -> str:
    told = os.fstat(file.fileno())
    return f"{told.st_size} {told.st_ino} {told.st_mtime_ns} {told.st_ctime_ns}"


def _settled(file: BinaryIO) -> bool:
    told = os.fstat(file.fileno())
    return max(told.st_mtime, told.st_ctime) < time.time() - SETTLED
