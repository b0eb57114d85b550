"""SHA-256 of files without reading them again: whatever changes a file is noticed, whatever happens to the database is borne."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from image_hospital import brains, load_one, make

from ich_client import file_hashes
from ich_client.file_hashes import FileHashes


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a file to settle, but for the one about that."""
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every hash that was computed."""
    found: list[str] = []
    digest = hashlib.file_digest

    def counted(file: object, name: str) -> object:
        made = digest(file, name)  # type: ignore[arg-type]
        found.append(made.hexdigest())
        return made

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return found


def test_a_file_is_read_once_by_all_programs(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    for _ in range(2):
        with FileHashes(tmp_path / "db") as hashes:
            assert hashes.of(file) == hashlib.sha256(b"abc").hexdigest()
            assert hashes.of(file) == hashlib.sha256(b"abc").hexdigest()
    assert len(reads) == 1


def in_place(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.write(b"x")


def replaced(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"xbc")
    other.rename(file)


def with_its_old_time(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def changed(file: Path) -> None:
        told = file.stat()
        change(file)
        os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))

    return changed


@pytest.mark.parametrize("change", [in_place, replaced, with_its_old_time(in_place), with_its_old_time(replaced)])
def test_a_change_is_noticed_also_where_size_and_time_are_those_of_before(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    with FileHashes(tmp_path / "db") as hashes:
        hashes.of(file)
        time.sleep(0.02)  # a tick of the file system's clock
        change(file)
        assert hashes.of(file) == hashlib.sha256(b"xbc").hexdigest()


def test_what_was_changed_just_now_is_not_believed_later(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED", 3.0)
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    with FileHashes(tmp_path / "db") as hashes:
        hashes.of(file)
        hashes.of(file)
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"no database" * 1000])
def test_without_a_usable_database_files_are_read(tmp_path: Path, content: bytes, reads: list[str]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    (tmp_path / "db").write_bytes(content)
    with FileHashes(tmp_path / "db") as hashes:
        assert hashes.of(file) == hashes.of(file) == hashlib.sha256(b"abc").hexdigest()
    assert len(reads) == (2 if content else 1)


def test_a_second_start_reads_no_file_for_its_hash_and_finds_the_same(tmp_path: Path, reads: list[str]) -> None:
    folder = make(tmp_path, 2)
    first = load_one(folder)
    files = len(reads)
    assert files >= 20
    second = load_one(folder)
    assert len(reads) == files
    assert second.images.kept == 2
    assert brains(second) == brains(first)


def test_a_database_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    with FileHashes(tmp_path / "none" / "db") as hashes:
        assert hashes.of(file) == hashlib.sha256(b"abc").hexdigest()


def test_a_file_that_cannot_be_read_is_said_as_ever(tmp_path: Path) -> None:
    with FileHashes(tmp_path / "db") as hashes, pytest.raises(FileNotFoundError):
        hashes.of(tmp_path / "none")
