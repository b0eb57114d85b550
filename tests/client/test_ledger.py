"""The ledger: what was reserved counts until it is settled, whoever dies; and whoever changes it is found out."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ich_client.ledger import Charge, Ledger, anchors, spent
from ich_models import hash_chain
from ich_models.accounting import Steps
from ich_models.errors import DataError

NORTH = [f"patient-{number}" for number in range(20)]
STUDY = "a" * 64


def ledger(folder: Path) -> Ledger:
    return Ledger(folder / "privacy", folder / "audit" / "log.jsonl")


def reserve(book: Ledger, steps: int = 10, patients: Sequence[str] = NORTH, study: str = STUDY) -> Charge:
    with book.writing(patients) as writer:
        return writer.reserve(study, 42, "round 1", ["all"], Steps(2.0, 0.25, steps), 1e-3)


def total(book: Ledger, patients: Sequence[str] = NORTH) -> int:
    with book.writing(patients) as writer:
        return sum(row.steps for row in spent(writer.charges))


# --- counting ---------------------------------------------------------------------------------------------------------


def test_reserved_counts_until_it_is_settled(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first = reserve(book)
    assert total(book) == 10
    book.settle(first, 4)
    reserve(book, 7)
    assert total(ledger(tmp_path)) == 11  # another program, after a restart
    for steps in (4, 11, -1):
        with pytest.raises(ValueError, match=r"settled before|steps of 10"):
            book.settle(first, steps)


@pytest.mark.parametrize(("settled", "each"), [(None, 8), (24, 8), (8, 8), (0, 0)])
def test_each_of_several_models_had_its_own_steps_or_all_that_were_made_once(
    tmp_path: Path, settled: int | None, each: int
) -> None:
    """Of three models in a round of 8 steps: where all began alike one was trained, and each of them is that one."""
    book = ledger(tmp_path)
    with book.writing(NORTH) as writer:
        charge = writer.reserve(STUDY, 42, "round 1", ["all", "a", "b"], Steps(2.0, 0.25, 24), 1e-3)
    if settled is not None:
        book.settle(charge, settled)
    (found,) = book.read().charges
    assert found.of_each_model == Steps(2.0, 0.25, each)
    assert found.folds == ("all", "a", "b")


def test_groups_that_share_a_patient_are_charged_together(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    reserve(book, 10, NORTH)
    reserve(book, 5, [*reversed(NORTH)], "b" * 64)  # the same patients in another order, in another study
    reserve(book, 3, [NORTH[0], "newcomer"])
    reserve(book, 2, ["somebody", "else"])
    assert (total(book, NORTH), total(book, [NORTH[0], "newcomer"]), total(book, ["somebody", "else"])) == (18, 18, 2)
    assert len(book.read().cohorts) == 3


def test_no_identifier_is_written(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    reserve(book)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"patient-" not in path.read_bytes()
    assert (tmp_path / "privacy" / "salt").stat().st_mode & 0o077 == 0
    again = ledger(tmp_path / "elsewhere")
    assert again.cohort(NORTH)[0] != book.cohort(NORTH)[0]  # a salt of its own: digests cannot be compared


# --- whoever changes it -----------------------------------------------------------------------------------------------


def edited(folder: Path) -> None:
    path = folder / "privacy" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"sigma":2.0', '"sigma":9.0', 1))


def rewritten(folder: Path) -> None:
    """By somebody who knows the format: chain and seal anew, with more noise than there was."""
    path = folder / "privacy" / "ledger.jsonl"
    contents = [entry.content for entry in hash_chain.read(path)]
    deleted(folder, "ledger.jsonl", "ledger.jsonl.seal")
    for content in contents:
        hash_chain.append(path, {**content, "sigma": 9.0} if content["event"] == "reserve" else content)


def settled_anew(folder: Path) -> None:
    """By the same: the last line alone, as if none of the last round's steps had been made. All other hashes stay."""
    path = folder / "privacy" / "ledger.jsonl"
    *before, last = hash_chain.read(path)
    assert last.content["event"] == "settle"
    cut(folder)
    hash_chain._write_seal(path, hash_chain._Seal(before[-1].number, before[-1].hash, path.stat().st_size))
    hash_chain.append(path, {**last.content, "steps": 0})


def deleted(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "privacy" / name).unlink()


def rolled_back(folder: Path) -> None:
    shutil.rmtree(folder / "privacy")
    shutil.copytree(folder / "before", folder / "privacy")


def cut(folder: Path) -> None:
    path = folder / "privacy" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


@pytest.mark.parametrize(
    "change",
    [
        edited,
        rewritten,
        settled_anew,
        lambda folder: deleted(folder, "ledger.jsonl"),
        lambda folder: deleted(folder, "ledger.jsonl", "ledger.jsonl.seal"),
        lambda folder: deleted(folder, "ledger.jsonl", "ledger.jsonl.seal", "salt"),
        lambda folder: deleted(folder, "salt"),
        lambda folder: shutil.rmtree(folder / "privacy"),
        rolled_back,
        cut,
        lambda folder: (folder / "privacy" / "salt").write_bytes(b"another" * 4),
    ],
    ids=[
        "edited",
        "rewritten",
        "settled anew",
        "deleted",
        "with seal",
        "all",
        "salt",
        "folder",
        "rolled back",
        "cut",
        "other salt",
    ],
)
def test_a_changed_ledger_is_found_out_before_anything_is_spent(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    book = ledger(tmp_path)
    reserve(book)
    shutil.copytree(tmp_path / "privacy", tmp_path / "before")
    book.settle(reserve(book), 10)
    change(tmp_path)
    anchored = (tmp_path / "audit" / "log.jsonl").read_bytes()
    with pytest.raises(DataError, match="ledger"):
        reserve(book)
    assert (tmp_path / "audit" / "log.jsonl").read_bytes() == anchored


@pytest.mark.parametrize(
    "change",
    [
        lambda log: [path.unlink() for path in log.parent.glob("log.jsonl*")],
        lambda log: shutil.copytree(log.parent.parent / "before", log.parent, dirs_exist_ok=True),
    ],
    ids=["removed", "rolled back"],
)
def test_an_anchor_that_was_changed_is_found_out(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Without it the ledger could be written anew and nobody would see."""
    book = ledger(tmp_path)
    book.settle(reserve(book), 10)
    shutil.copytree(tmp_path / "audit", tmp_path / "before")
    book.settle(reserve(book), 10)
    change(book.anchor)
    lines = book.path.read_bytes()
    for use in (reserve, total, Ledger.read):
        with pytest.raises(DataError, match=r"does not know its line [24]: it has been removed or changed"):
            use(book)
    assert book.path.read_bytes() == lines


def test_a_crash_between_the_two_logs_is_mended(tmp_path: Path) -> None:
    """The reservation stands, counts, and is anchored with the next use; until then it is the only one that may not be."""
    book = ledger(tmp_path)
    book.settle(reserve(book), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "_anchor", lambda *_: None)
        reserve(book)
    assert [number for number, _ in anchors(book.anchor)] == [2, 3]
    assert len(book.read().charges) == 2
    assert total(book) == 14
    assert [number for number, _ in anchors(book.anchor)] == [2, 3, 4]


def test_other_lines_of_the_anchor_are_no_matter(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    hash_chain.append(book.anchor, {"event": "reply", "reply": "TrainReply"})
    reserve(book)
    hash_chain.append(book.anchor, {"event": "reply", "reply": "TrainReply"})
    assert total(book) == 10


# --- whoever dies -----------------------------------------------------------------------------------------------------


def work(folder: Path) -> None:
    """Reserve, make ten private steps, settle; for ever. Each step leaves a byte, as it would leave a trace in a reply."""
    book = ledger(folder)
    while True:
        charge = reserve(book)
        for _ in range(10):
            with (folder / "steps").open("ab", buffering=0) as made:
                made.write(b".")
        book.settle(charge, 10)


def killed(folder: Path, seconds: float) -> None:
    """The same in a process of its own, killed after a while."""
    child = os.fork()
    if child == 0:
        try:
            work(folder)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the work itself went wrong"


def never_under_counts(folder: Path, kills: Sequence[int]) -> None:
    book = ledger(folder)
    for microseconds in kills:
        killed(folder, microseconds / 1e6)
        made = len((folder / "steps").read_bytes()) if (folder / "steps").exists() else 0
        assert made <= total(book) <= made + 10 * (len(kills) + 1)


KILLS = st.lists(st.integers(0, 60_000), min_size=1, max_size=4)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=KILLS)
def test_killed_at_any_moment_it_never_under_counts(tmp_path_factory: pytest.TempPathFactory, kills: list[int]) -> None:
    never_under_counts(tmp_path_factory.mktemp("ledger"), kills)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=KILLS)
def test_killed_at_very_many_moments(tmp_path_factory: pytest.TempPathFactory, kills: list[int]) -> None:
    never_under_counts(tmp_path_factory.mktemp("ledger"), kills)


def test_half_a_line_is_no_charge_and_no_damage(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    reserve(book)
    line = json.dumps({"n": 3, "time": "2027", "content": {"event": "reserve"}})
    with book.path.open("a") as file:
        file.write(line[:20])
    assert total(book) == 10
    reserve(book, 1)
    assert total(book) == 11
