"""A log that shows when it was changed: each line carries the hash of the one before, and a seal beside it the last one's.

Whoever can write both files can write a new history; an export that the hospital keeps elsewhere is what shows that.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from ich_models.errors import DataError
from ich_models.files import write_json

START: Final = "0" * 64
"""What the first line has in place of the hash before it."""


@dataclass(frozen=True)
class Entry:
    """One line: its number from 1, when it was written (UTC, ISO 8601), what it says, and the hash over all of that."""

    number: int
    time: str
    content: dict[str, Any]
    hash: str


@dataclass(frozen=True)
class _Seal:
    """The last line that was written whole: its number and hash, and the size of the file then."""

    number: int = 0
    hash: str = START
    size: int = 0


def append(path: Path, content: dict[str, Any]) -> Entry:
    """Add a line, on disk before this returns. Processes may share the file.

    What a crash has left behind the seal is mended: a whole line is sealed, half a line was never written.
    Raises DataError if the log has been cut or its seal changed, and OSError if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released with the file
        seal = _mended(path, file)
        entry = _entry(seal.number + 1, datetime.now(UTC).isoformat(timespec="milliseconds"), content, seal.hash)
        file.write(_line(entry, seal.hash))
        file.flush()
        os.fsync(file.fileno())
        _write_seal(path, _Seal(entry.number, entry.hash, file.tell()))
    return entry


def read(path: Path) -> Iterator[Entry]:
    """Every line, verified. Raises DataError at the first that was changed, moved or removed. No log is an empty one."""
    if not path.exists():
        if sealed := _read_seal(path).number:
            raise _broken(path, f"it is gone, and its seal says {sealed} lines")
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        seal = _read_seal(path)
        last = _Seal()
        for raw in file:
            if last.size >= seal.size and not raw.endswith(b"\n"):
                break  # half a line behind the seal: a crash
            entry = _parse(raw, last, path)
            last = _Seal(entry.number, entry.hash, last.size + len(raw))
            if last.number == seal.number and last != seal:
                raise _broken(path, f"line {last.number} is not the one that was sealed")
            yield entry
        if last.number < seal.number or last.number > seal.number + 1:
            raise _broken(path, f"it has {last.number} lines, and its seal says {seal.number}")


def _mended(path: Path, file: BinaryIO) -> _Seal:
    """The seal, brought up to what a crash between line and seal has left."""
    seal = _read_seal(path)
    size = file.seek(0, os.SEEK_END)
    if size < seal.size:
        raise _broken(path, f"it is shorter than at its line {seal.number}")
    file.seek(seal.size)
    rest = file.read()
    if rest.endswith(b"\n"):
        entry = _parse(rest, seal, path)
        seal = _Seal(entry.number, entry.hash, size)
        _write_seal(path, seal)
    elif rest:
        file.truncate(seal.size)
    file.seek(0, os.SEEK_END)
    return seal


def _entry(number: int, time: str, content: dict[str, Any], previous: str) -> Entry:
    text = json.dumps([number, time, content, previous], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Entry(number, time, content, hashlib.sha256(text.encode()).hexdigest())


def _line(entry: Entry, previous: str) -> bytes:
    line = {"n": entry.number, "time": entry.time, "content": entry.content, "previous": previous, "hash": entry.hash}
    return (json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _parse(raw: bytes, before: _Seal, path: Path) -> Entry:
    number = before.number + 1
    try:
        line = json.loads(raw)
        entry = _entry(line["n"], line["time"], line["content"], line["previous"])
        sound = (line["n"], line["previous"], line["hash"]) == (number, before.hash, entry.hash)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken(path, f"line {number} cannot be read") from error
    if not sound:
        raise _broken(path, f"line {number} is not what was written there")
    return entry


def _seal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal")


def _write_seal(path: Path, seal: _Seal) -> None:
    write_json(_seal_path(path), {"number": seal.number, "hash": seal.hash, "size": seal.size})


def _read_seal(path: Path) -> _Seal:
    try:
        facts = json.loads(_seal_path(path).read_text())
        return _Seal(int(facts["number"]), str(facts["hash"]), int(facts["size"]))
    except FileNotFoundError:
        return _Seal()
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, "its seal cannot be read") from error


def _broken(path: Path, what: str) -> DataError:
    return DataError(
        f"the log has been changed: {what}",
        where=str(path),
        hint="keep it as it is and compare it with the last export; move log and seal aside to begin a new one",
    )
