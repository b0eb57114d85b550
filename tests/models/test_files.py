"""Files that are whole or absent, also when the disk is full."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ich_models.files import write_atomic, write_rows, write_secret


def test_a_full_disk_names_the_file_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomic(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_for_its_owner_and_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    write_secret(path, b"first")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_secret(path, b"second")
    assert path.read_bytes() == b"first"


def test_rows_are_written_as_numpy_would_and_holes_take_no_space(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float16)
    write_rows(tmp_path / "ours.npy", whole.shape, whole.dtype, enumerate(whole))
    np.save(tmp_path / "theirs.npy", whole)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    write_rows(tmp_path / "holes.npy", (4, 300, 1000), np.float16, [(2, np.ones((100, 1000)))])
    found = np.load(tmp_path / "holes.npy")
    assert np.count_nonzero(found, axis=(1, 2)).tolist() == [0, 0, 100_000, 0]
    assert found[2, :100].all()
    assert (tmp_path / "holes.npy").stat().st_blocks * 512 < 0.3 * found.nbytes
