"""Records on the wire: large models share what they have in common, and a hash covers names as well as numbers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_models.protocol import LARGE, MalformedError, StatisticsTask, TrainTask, from_record, rows_hash, to_record

HASH = "a" * 64


def rows(folds: int, width: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return {
        "weights": generator.normal(size=(folds, width)).astype(np.float32),
        "constants": generator.normal(size=(folds, 7)).astype(np.float32),
    }


def task(folds: list[str]) -> TrainTask:
    return TrainTask(federation=HASH, seed=1, round=1, folds=folds, final=False)


@pytest.mark.parametrize("width", [5, LARGE // 4 + 1])
def test_what_is_packed_is_read_again_as_often_as_one_likes(width: int) -> None:
    sent = rows(3, width)
    record = to_record(task(["all", "without:a", "without:b"]), sent)
    assert len(record["arrays"]) == (1 if width == 5 else 3)  # type: ignore[arg-type]
    for _ in range(2):
        message, found = from_record(record, TrainTask)
        assert message.folds == ["all", "without:a", "without:b"]
        assert all(np.array_equal(found[name], sent[name]) for name in sent)


def test_folds_that_two_hospitals_share_are_the_same_objects_on_the_wire() -> None:
    """So that a server stores each large fold once, whoever gets which."""
    whole = rows(3, LARGE // 4 + 1)
    records = [
        to_record(task(["all"] * 0 + names), {name: block[rows_of] for name, block in whole.items()})
        for names, rows_of in ((["all", "without:a"], [0, 1]), (["all", "without:b"], [0, 2]))
    ]
    one, other = ({array.object_id for array in record["arrays"].values()} for record in records)  # type: ignore[union-attr]
    assert len(one & other) == 1


def test_arrays_that_do_not_belong_together_are_malformed() -> None:
    record = to_record(task(["all", "without:a"]), rows(2, LARGE // 4 + 1))
    other = to_record(task(["all"]), rows(1, LARGE // 4 + 2))
    record["arrays"]["rows1"] = other["arrays"]["rows"]  # type: ignore[index]
    with pytest.raises(MalformedError):
        from_record(record, TrainTask)
    del record["arrays"]["rows1"]  # type: ignore[attr-defined]
    record["arrays"]["rows7"] = other["arrays"]["rows"]  # type: ignore[index]
    with pytest.raises(MalformedError):
        from_record(record, TrainTask)


def test_a_hash_of_rows_covers_their_names() -> None:
    block = np.ones((1, 3), np.float32)
    assert rows_hash({"weights": block}) != rows_hash({"local": block})
    assert rows_hash({"a": block, "b": block * 2}) == rows_hash({"b": block * 2, "a": block})


def test_a_study_is_named_by_a_hash_and_by_nothing_longer() -> None:
    record = to_record(StatisticsTask(federation=HASH, seed=1, parts=[0]))
    text = str(record["message"]["json"])  # type: ignore[index]
    for other in ("A" * 64, "a" * 65, "a" * 2_000_000):
        record["message"]["json"] = text.replace(HASH, other)  # type: ignore[index]
        with pytest.raises(MalformedError) as caught:
            from_record(record, StatisticsTask)
        assert len(str(caught.value)) < 1000


def test_what_a_stranger_writes_is_shown_on_one_line() -> None:
    record = to_record(StatisticsTask(federation=HASH, seed=1, parts=[0]))
    text = str(record["message"]["json"])  # type: ignore[index]
    record["message"]["json"] = text[:-1] + ', "x\\n2026-11-21 I all is well\\u001b[31m": 1}'  # type: ignore[index]
    with pytest.raises(MalformedError) as caught:
        from_record(record, StatisticsTask)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
