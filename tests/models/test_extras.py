"""Statistics beside the table: numbers per patient, and the constants of a fold that are made of them."""

from typing import Any

import numpy as np
import pytest
import torch

from ich_models import extras
from ich_models.batch import Patients
from ich_models.image_spec import CtSlices, CtVolume, MrVolume
from ich_models.networks.constants import MEAN, SQUARE, WITH, WITHOUT, Balance, ClassWeights, StandardiseImage, Told
from ich_models.statistics import merge, moments

NAN = np.nan


def patients(image: Any, **more: Any) -> Patients:
    count = len(image)
    return Patients(tuple(map(str, range(count))), np.zeros((count, 0)), np.zeros(count, np.int64), image=image, **more)


def told(*members: Patients, names: Any) -> Told:
    found = merge(moments(member, extras.columns(member, names)) for member in members)
    said = zip(names, found.count.tolist(), found.mean.tolist(), strict=True)
    return Told(np.zeros((3, 0)), {name: (count, mean) for name, count, mean in said})


def test_slices_are_counted_by_type_and_only_where_they_are_labelled() -> None:
    targets = np.full((3, 4, 5), NAN, np.float32)
    targets[0, :3, 0] = 1, 1, 0
    targets[1, :2, 0] = 0
    one = patients(np.zeros((3, 4, 1, 2, 2), np.float16), slices=np.ones((3, 4), np.bool_), targets=targets)
    names = [f"{WITH}intraparenchymal", f"{WITHOUT}intraparenchymal", f"{WITH}epidural"]
    assert extras.columns(one, names).tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_images_have_mean_and_square_of_their_own_slices() -> None:
    image = np.zeros((3, 2, 2, 1, 2), np.float16)
    image[0, 0] = [[[1, 3]], [[0, 4]]]
    image[0, 1] = 100  # padding
    slices = np.array([[True, False], [True, True], [True, True]])
    one = patients(image, slices=slices, present={"image": np.array([True, True, False])})
    names = [f"{MEAN}0", f"{SQUARE}0", f"{MEAN}1", f"{SQUARE}1"]
    assert extras.columns(one, names)[0].tolist() == [2, 5, 2, 8]
    assert extras.columns(one, names)[1].tolist() == [0, 0, 0, 0]
    assert np.isnan(extras.columns(one, names)[2]).all()


def test_an_image_is_scaled_by_all_training_patients_whatever_their_hospital() -> None:
    rng = np.random.default_rng(0)
    volumes = rng.normal(0.4, 0.3, (7, 2, 3, 4, 5))
    layer = StandardiseImage(2).double()
    hospitals = patients(volumes[:2]), patients(volumes[2:])
    for name, values in layer.made_of(told(*hospitals, names=layer.needs)).items():
        getattr(layer, name).copy_(torch.from_numpy(values))
    scaled = layer(torch.from_numpy(volumes)).numpy()
    assert scaled.mean((0, 2, 3, 4)) == pytest.approx([0, 0], abs=1e-12)
    assert scaled.std((0, 2, 3, 4)) == pytest.approx([1, 1], abs=1e-12)


def test_an_image_of_which_nobody_tells_or_that_does_not_vary_stays_as_it_is() -> None:
    layer = StandardiseImage(2)
    said = {f"{MEAN}0": (0.0, 0.0), f"{SQUARE}0": (0.0, 0.0), f"{MEAN}1": (5.0, 0.3), f"{SQUARE}1": (5.0, 0.09)}
    found = layer.made_of(Told(np.zeros((3, 0)), said))
    assert found["centre"].tolist() == [0, 0]
    assert found["scale"].tolist() == [1, 1]


def test_positives_weigh_by_the_slices_of_all_hospitals() -> None:
    """2 of 6 slices at one hospital and 1 of 4 at the other: 7 / 3. A mean of the hospitals' own weights would be 2.5."""
    members = []
    for yes, no in ((2, 4), (1, 3)):
        targets = np.full((1, 8, 5), NAN, np.float32)
        targets[0, : yes + no, 1] = [1] * yes + [0] * no
        members.append(patients(np.zeros((1, 8, 1, 2, 2)), slices=np.ones((1, 8), np.bool_), targets=targets))
    layer = Balance(None)
    assert layer.made_of(told(*members, names=layer.needs))["positive"] == pytest.approx([1, 7 / 3, 1, 1, 1])


def test_positives_that_are_known_beforehand_ask_for_no_counts() -> None:
    layer = Balance(6.0, [1, 2, 3, 4, 9])
    assert list(layer.needs) == []
    assert layer.made_of(Told(np.zeros((3, 0)), {}))["positive"].tolist() == [1, 2, 3, 4, 9]
    assert layer.weight().tolist() == [1, 2, 3, 4, 6]


def test_the_rarer_outcome_weighs_more() -> None:
    table = np.zeros((3, 0))
    assert ClassWeights().made_of(Told(table, {}, (12, 30)))["positive"].tolist() == [2.5]
    for one_class in ((0, 0), (0, 30), (12, 0)):
        assert ClassWeights().made_of(Told(table, {}, one_class))["positive"].tolist() == [1]


def test_counts_of_few_patients_go_together() -> None:
    names = [f"{what}{kind}" for kind in ("intraparenchymal", "epidural") for what in (WITH, WITHOUT)] + [f"{MEAN}0"]
    values = np.array([[n % 2 * 3, 20.0, 4.0 if n < 9 else 0.0, 20.0, 0.5] for n in range(30)])
    assert extras.of_few(values, names, 10).tolist() == [False, False, True, True, False]
    assert extras.of_few(values, names, 9).tolist() == [False] * 5
    assert extras.counted(names).tolist() == [True, True, True, True, False]
    most = values.copy()
    most[:, 2] = 4.0
    most[:3, 2] = 0.0  # three who have it not
    assert extras.of_few(most, names, 10).tolist() == [False, False, True, True, False]


def test_bounds() -> None:
    names = [f"{WITH}epidural", f"{MEAN}0", f"{SQUARE}0"]
    low, high = extras.bounds(names, CtSlices(kind="ct_slices", most=32))
    assert (low.tolist(), high.tolist()) == ([0, 0, 0], [32, 1, 1])
    assert extras.bounds(names, CtVolume(kind="ct"))[1].tolist() == [0, 1, 1]
    assert extras.bounds(names[1:], MrVolume(kind="mr"))[0].tolist() == [-1e9, 0]
