"""Patients and batches of several modalities: rows stay together, and who has what."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ich_models.batch import Batch, Patients

PATIENTS = Patients(
    tuple("abcd"),
    np.arange(8.0).reshape(4, 2),
    np.array([0, 1, 0, 1]),
    image=np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1).repeat(3, axis=1),
    text=np.arange(8).reshape(4, 2),
    slices=np.array([[True, False]] * 4),
    targets=np.arange(40.0).reshape(4, 2, 5),
    present={"image": np.array([True, False, True, True])},
)


def test_rows_stay_together() -> None:
    some = PATIENTS.take(np.array([3, 1]))
    batch = some.batch(torch.float64)
    assert some.ids == ("d", "b")
    assert some.labels.tolist() == [1, 1]
    assert batch.table is not None
    assert batch.image is not None
    assert batch.text is not None
    assert batch.slices is not None
    assert batch.table[:, 0].tolist() == [6, 2]
    assert batch.image[:, 0, 0, 0].tolist() == [3, 1]
    assert batch.image.dtype == torch.float32, "as it is kept: a network converts the batch that it computes with"
    assert batch.text.tolist() == [[6, 7], [2, 3]]
    assert batch.text.dtype == torch.int64
    assert batch.slices.tolist() == [[True, False]] * 2
    assert batch.label[:, 0, 0].tolist() == [30, 10]
    assert batch.present["image"].tolist() == [True, False]


def test_join_is_the_inverse_of_take() -> None:
    halves = [PATIENTS.take(np.array([0, 1])), PATIENTS.take(np.array([2, 3]))]
    joined = Patients.join(halves)
    for name in ("ids", "table", "labels", "image", "text", "slices", "targets"):
        assert np.array_equal(getattr(joined, name), getattr(PATIENTS, name))
    assert joined.present["image"].tolist() == [True, False, True, True]


def test_join_counts_a_group_without_a_mask_as_complete() -> None:
    complete = replace(PATIENTS, present={})
    assert Patients.join([PATIENTS, complete]).present["image"].tolist() == [True, False, True, True] + [True] * 4


def test_join_refuses_groups_that_differ() -> None:
    with pytest.raises(ValueError, match="no image"):
        Patients.join([PATIENTS, replace(PATIENTS, image=None)])


@pytest.mark.parametrize("name", ["image", "text", "slices", "targets"])
def test_arrays_of_another_length_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"4 ids, {name}"):
        replace(PATIENTS, **{name: getattr(PATIENTS, name)[:3]})


def test_who_has_what() -> None:
    batch = PATIENTS.batch(torch.float32)
    assert batch.who("image").tolist() == [True, False, True, True]
    assert batch.who("text").tolist() == [True] * 4
    without = replace(batch, image=None, text=None)
    assert without.who("image").tolist() == [False] * 4
    assert without.who("text").tolist() == [False] * 4
    kept = replace(without, features={"text": torch.zeros(4, 3)})
    assert kept.who("text").tolist() == [True] * 4


def test_split_keeps_every_part_of_a_patient_and_copies_nothing() -> None:
    batch = replace(PATIENTS.batch(torch.float32), features={"text": torch.arange(4.0)[:, None]})
    first, second = batch.split([3, 1])
    assert (len(first), len(second)) == (3, 1)
    assert batch.image is not None
    assert second.image is not None
    assert second.text is not None
    assert second.image.data_ptr() == batch.image[3:].data_ptr()
    assert second.text.tolist() == [[6, 7]]
    assert second.features["text"].tolist() == [[3.0]]
    assert second.present["image"].tolist() == [True]
    with pytest.raises(ValueError, match="4 patients in batches of 3"):
        list(Batch(None, batch.label).split([3]))
