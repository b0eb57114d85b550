"""A log that shows when it was changed, however it was changed, and that survives a crash at any byte."""

import hashlib
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_models import hash_chain
from ich_models.errors import DataError

CONTENT = [{"event": "a", "n": 1}, {"event": "b", "text": "Größe\nzwei"}, {"event": "c"}, {"event": "d"}]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of four lines."""
    for content in CONTENT:
        hash_chain.append(tmp_path / "log.jsonl", content)
    return tmp_path / "log.jsonl"


def broken(log: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(hash_chain.read(log))
    return str(caught.value)


def test_what_was_written_is_read_in_order(log: Path) -> None:
    entries = list(hash_chain.read(log))
    assert [entry.content for entry in entries] == CONTENT
    assert [entry.number for entry in entries] == [1, 2, 3, 4]


def test_the_hash_is_sha_256_over_number_time_content_and_the_hash_before(log: Path) -> None:
    """So that anybody can verify an export without this program."""
    previous = "0" * 64
    for raw in log.read_text().splitlines():
        line = json.loads(raw)
        text = json.dumps([line["n"], line["time"], line["content"], previous], sort_keys=True, separators=(",", ":"))
        assert line["previous"] == previous
        assert line["hash"] == hashlib.sha256(text.encode()).hexdigest()
        previous = line["hash"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_changed_line_is_named(log: Path, number: int) -> None:
    lines = log.read_text().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace('"event":"', '"event":"x')
    log.write_text("".join(lines))
    assert f"line {number} is not what was written there" in broken(log)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_line_that_was_taken_out_shows(log: Path, number: int) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: number - 1] + lines[number:]))
    assert f"line {number} is not what was written there" in broken(log)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_line_rewritten_with_a_sound_hash_shows_at_the_next(log: Path, number: int) -> None:
    """Its own hash is right again; what the line after it carries is not."""
    lines = log.read_bytes().splitlines(keepends=True)
    old = json.loads(lines[number - 1])
    forged = hash_chain._entry(number, old["time"], {"event": "forged"}, old["previous"])
    lines[number - 1] = hash_chain._line(forged, old["previous"])
    log.write_bytes(b"".join(lines))
    assert f"line {number + 1} is not what was written there" in broken(log)


@pytest.mark.parametrize("kept", [2, 3])
def test_a_cut_end_shows_when_it_is_read_and_when_it_is_written(log: Path, kept: int) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:kept]))
    assert f"it has {kept} lines, and its seal says 4" in broken(log)
    with pytest.raises(DataError, match="shorter than at its line 4"):
        hash_chain.append(log, {"event": "e"})


def test_an_end_written_anew_shows(log: Path, tmp_path: Path) -> None:
    """A whole new end, with sound hashes, is not the one that was sealed."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    third = json.loads(other.read_text().splitlines()[2])
    forged = hash_chain._entry(4, "2026-01-01T00:00:00.000+00:00", {"event": "forged"}, third["hash"])
    log.write_bytes(other.read_bytes() + hash_chain._line(forged, third["hash"]))
    assert "line 4 is not the one that was sealed" in broken(log)


def test_a_log_that_is_gone_shows(log: Path) -> None:
    log.unlink()
    assert "it is gone, and its seal says 4 lines" in broken(log)


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert list(hash_chain.read(tmp_path / "none.jsonl")) == []


@given(kept=st.integers(0, 200))
def test_a_crash_at_any_byte_of_the_last_line_loses_that_line_at_most(kept: int) -> None:
    """The line is on disk before its seal: cut anywhere in it, or left unsealed, the log goes on."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        hash_chain.append(log, {"event": "first"})
        seal = log.with_name("log.jsonl.seal")
        sealed, size = seal.read_bytes(), log.stat().st_size
        hash_chain.append(log, {"event": "second"})
        seal.write_bytes(sealed)
        end = min(log.stat().st_size, size + kept)
        os.truncate(log, end)
        whole = end == log.stat().st_size and log.read_bytes().endswith(b"\n") and end > size
        expected = ["first", "second"] if whole else ["first"]
        assert [entry.content["event"] for entry in hash_chain.read(log)] == expected
        hash_chain.append(log, {"event": "third"})
        assert [entry.content["event"] for entry in hash_chain.read(log)] == [*expected, "third"]


def _append(argument: tuple[Path, int]) -> None:
    hash_chain.append(argument[0], {"event": argument[1]})


def test_processes_may_share_it(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_append, [(log, number) for number in range(40)]))
    assert sorted(entry.content["event"] for entry in hash_chain.read(log)) == list(range(40))


def test_two_lines_behind_the_seal_are_no_crash(log: Path) -> None:
    """A crash leaves one at most; whoever appends more by hand has no seal for them."""
    seal = log.with_name(f"{log.name}.seal").read_bytes()
    for number in range(2):
        hash_chain.append(log, {"more": number})
    log.with_name(f"{log.name}.seal").write_bytes(seal)
    with pytest.raises(DataError, match="and its seal says"):
        list(hash_chain.read(log))
