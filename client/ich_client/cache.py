"""What is made once of a hospital's images, kept on disk: entries under a key, whole or absent, the oldest removed when full."""

import errno
import fcntl
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

MANIFEST: Final = "entry.json"
"""What an entry holds: its files' sizes and CRC-32. Its time of change is when the entry was last used."""

_BLOCK: Final = 1 << 20


class Cache:
    """A folder of entries; an entry is a folder of files under its key. For any number of threads and processes at once.

    A key says all that the content depends on, so two who write the same key write the same. An entry appears in one
    step, and one that is damaged counts as absent. What another process removes stays readable for who has it open.
    A context manager: at its end the folder is let go.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        """`limit`: bytes of all entries together; what was not used for longest is removed beyond it."""
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # patients' images: for their owner alone
        self._entries, self._work = folder / "entries", folder / "work"
        for part in (self._entries, self._work):
            part.mkdir(exist_ok=True)
        self._size: float | None = None
        # Closed with the cache. Shared by all who use the folder; whoever finds nobody else removes what a killed one left half-written.
        self._lock = (folder / "lock").open("w")
        with suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in self._work.iterdir():
                shutil.rmtree(left, ignore_errors=True)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def get(self, key: str) -> Path | None:
        """The folder of an entry, every byte of it verified, or None."""
        entry = self._entry(key)
        try:
            seen = _which(entry)
        except FileNotFoundError:
            return None
        try:
            files = json.loads((entry / MANIFEST).read_bytes())["files"]
            if {path.name for path in entry.iterdir()} != {*files, MANIFEST}:
                raise ValueError("other files than were written")
            for name, (size, check) in files.items():
                if (entry / name).stat().st_size != size or _check(entry / name) != check:
                    raise ValueError(f"{name} is damaged")
            os.utime(entry / MANIFEST)
        except (ValueError, TypeError, KeyError, AttributeError, OSError):
            self._remove(entry, seen)
            return None
        return entry

    def put(self, key: str, write: Callable[[Path], None]) -> Path:
        """The folder of a new entry. `write` fills an empty folder; if it raises, nothing is kept.

        Raises OSError if the disk cannot take it.
        """
        entry = self._entry(key)
        draft = self._work / f"{key}.{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
        draft.mkdir()
        try:
            write(draft)
            files = {}
            for path in sorted(draft.iterdir()):
                _to_disk(path)
                files[path.name] = [path.stat().st_size, _check(path)]
            manifest = draft / MANIFEST
            manifest.write_text(json.dumps({"files": files}, sort_keys=True))
            _to_disk(manifest)
            _to_disk(draft)
            with suppress(FileExistsError):
                entry.parent.mkdir()
            while True:
                try:
                    draft.rename(entry)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    if self.get(key) is None:  # it was damaged; looking at it has removed it
                        continue
                break
            _to_disk(entry.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._make_room(entry, sum(size for size, _ in files.values()))
        return entry

    def drop(self, key: str) -> None:
        """Remove an entry, if it is there."""
        self._remove(self._entry(key))

    def size(self, key: str) -> int:
        """Bytes of an entry; 0 if it is not there."""
        try:
            return sum(path.stat().st_size for path in self._entry(key).iterdir())
        except OSError:
            return 0

    def _entry(self, key: str) -> Path:
        return self._entries / key[:2] / key

    def _all(self) -> Iterator[tuple[float, str, int]]:
        """(last used, key, bytes) of every entry."""
        for group in self._entries.iterdir():
            for entry in group.iterdir():
                with suppress(OSError):
                    sizes = sum(path.stat().st_size for path in entry.iterdir())
                    manifest = entry / MANIFEST
                    used = manifest.stat().st_mtime_ns if manifest.exists() else 0
                    yield used, entry.name, sizes

    def _make_room(self, new: Path, size: int) -> None:
        """Remove what was not used for longest, but not the entry that has just been written."""
        if self._size is not None:
            self._size += size
        if self._size is None or self._size > self.limit:  # others write here, too: count anew before anything goes
            found = sorted(self._all())
            self._size = sum(size for _, _, size in found)
            for _, key, own in found:
                if self._size <= self.limit:
                    break
                if key != new.name:
                    self.drop(key)
                    self._size -= own

    def _remove(self, entry: Path, seen: tuple[int, int] | None = None) -> None:
        """Out of sight in one step, then piece by piece. `seen`: not if another has been put in its place meanwhile."""
        aside = self._work / f"{entry.name}.{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
        with suppress(FileNotFoundError):
            if seen not in (None, _which(entry)):
                return
            entry.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def _which(entry: Path) -> tuple[int, int]:
    """What tells a folder from another of its name. Raises FileNotFoundError."""
    found = entry.stat()
    return found.st_ino, found.st_ctime_ns


def _check(path: Path) -> int:
    """CRC-32: as fast as the memory, and told from disk errors; entries are not protected against their owner."""
    check = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            check = zlib.crc32(block, check)
    return check


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
