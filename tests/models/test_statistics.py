"""Hospitals' sums against numpy on all their patients together."""

import warnings
from collections.abc import Mapping, Sequence
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ich_models.batch import Patients
from ich_models.exchange import constants
from ich_models.folds import Fold, parse
from ich_models.networks.constants import Standardise
from ich_models.statistics import Moments, merge, moments

Array = NDArray[np.float64]
NAN = float("nan")


def patients(table: Array | Sequence[Sequence[float]], labels: Sequence[int] | None = None) -> Patients:
    rows = np.asarray(table, dtype=np.float64)
    outcome = np.zeros(len(rows), np.int64) if labels is None else np.asarray(labels, np.int64)
    return Patients(tuple(map(str, range(len(rows)))), rows, outcome)


@st.composite
def hospitals(draw: st.DrawFn) -> list[Patients]:
    """Up to five hospitals, empty ones among them, with missing values and far-off means."""
    columns = draw(st.integers(1, 3))
    offset = draw(st.sampled_from([0.0, 1e4, -3e5]))
    cell = st.one_of(st.floats(-100, 100, width=32).map(lambda x: x + offset), st.just(NAN))
    result = []
    for _ in range(draw(st.integers(1, 5))):
        count = draw(st.integers(0, 6))
        table = draw(arrays(np.float64, (count, columns), elements=cell))
        result.append(patients(table, draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))))
    return result


@given(hospitals())
def test_merge_equals_numpy_on_all_patients(several: list[Patients]) -> None:
    merged = merge(moments(each) for each in several)
    table = np.concatenate([each.table for each in several])
    known = (~np.isnan(table)).sum(axis=0)
    assert merged.patients == len(table)
    assert merged.events == sum(int(each.labels.sum()) for each in several)
    np.testing.assert_array_equal(merged.count, known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy on a column without a value
        mean, variance = np.nanmean(table, axis=0), np.nanvar(table, axis=0)
    np.testing.assert_allclose(merged.mean[known > 0], mean[known > 0], rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose((merged.m2 / np.maximum(known, 1))[known > 0], variance[known > 0], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(merged.mean[known == 0], 0)
    np.testing.assert_array_equal(merged.m2[known == 0], 0)


@given(hospitals())
def test_parts_merge_in_any_grouping(several: list[Patients]) -> None:
    """Two patients' hospitals are as good as one hospital of two patients."""
    at_once = merge(map(moments, several))
    backwards = merge(map(moments, reversed(several)))
    singly = merge(
        [merge([moments(each.take(np.array([i]))) for i in range(len(each))] or [moments(each)]) for each in several]
    )
    for other in (backwards, singly):
        assert (other.patients, other.events) == (at_once.patients, at_once.events)
        np.testing.assert_array_equal(other.count, at_once.count)
        np.testing.assert_allclose(other.mean, at_once.mean, rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(other.m2, at_once.m2, rtol=1e-9, atol=1e-8)


def test_by_hand() -> None:
    """Column 0: (1, 3) and (8): mean 4, m2 = 9 + 1 + 16. Column 1: (2) and (missing). Column 2: nobody's."""
    a, b = patients([[1, 2, NAN], [3, NAN, NAN]], [1, 0]), patients([[8, NAN, NAN]], [1])
    both = moments(a) + moments(b)
    assert moments(a).mean.tolist() == [2, 2, 0]
    assert moments(a).m2.tolist() == [2, 0, 0]
    assert (both.patients, both.events) == (3, 2)
    assert both.count.tolist() == [3, 1, 0]
    assert both.mean.tolist() == [4, 2, 0]
    assert both.m2.tolist() == [26, 0, 0]


def test_constants_by_hand() -> None:
    """Values 2 and 6: mean 4, population standard deviation 2, so scale 1/2. A missing column: 0, 0, 0."""
    some = moments(patients([[2, NAN, 7], [6, NAN, 7], [NAN, NAN, 7]]))
    assert some.constants(scaled=True).tolist() == [[4, 0, 7], [4, 0, 7], [0.5, 0, 0]]
    assert some.constants(scaled=False).tolist() == [[4, 0, 7], [0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 98.6, 1e9 / 7, 1e-12 / 3])
def test_constant_column_gets_scale_zero(value: float) -> None:
    """Whatever rounding makes of the same number's mean in hospitals of different size."""
    merged = merge(moments(patients(np.full((size, 1), value))) for size in (3, 7, 11, 1000))
    assert merged.constants(scaled=True)[2].tolist() == [0.0]
    assert merged.mean[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e9])
def test_the_unit_does_not_matter(unit: float) -> None:
    """A hormone in mol/L has a standard deviation of 1e-11 and still predicts."""
    table = np.array([[12.0, 0.0], [15.0, 0.0], [21.0, 1.0]])
    scale = moments(patients(table * unit)).constants(scaled=True)[2]
    np.testing.assert_allclose(scale * unit, 1 / table.std(axis=0), rtol=1e-12)


def test_a_small_spread_far_from_zero_is_kept() -> None:
    """Sodium-like: 140 give or take 1e-3 varies; a spread of 1e-12 around 1 is rounding."""
    kept, dropped = moments(patients([[140.0, 1.0], [140.001, 1.0 + 1e-12]])).constants(scaled=True)[2]
    assert kept == pytest.approx(2000, rel=1e-6)
    assert dropped == 0


def test_standardised_training_patients() -> None:
    """The constants do their work inside the network: mean 0, standard deviation 1, missing values 0."""
    rng = np.random.default_rng(3)
    table = rng.normal([50, -3, 7], [10, 0.1, 0], (40, 3))
    table[rng.random(table.shape) < 0.2] = NAN
    merged = merge(moments(patients(part)) for part in np.split(table, [5, 20]))
    layer = Standardise(3).double()
    numbers = torch.from_numpy(merged.constants(scaled=True).reshape(1, -1))
    layer.load_state_dict({name: value[0] for name, value in constants(layer).unpack(numbers).items()})
    result = layer(torch.from_numpy(table)).numpy()
    known = ~np.isnan(table)
    np.testing.assert_allclose(result[~known], 0, atol=1e-12)
    for column, deviation in enumerate((1, 1, 0)):
        values = result[known[:, column], column]
        assert values.mean() == pytest.approx(0, abs=1e-12)
        assert values.std() == pytest.approx(deviation, abs=1e-12)
    layer.load_state_dict(
        {
            name: value[0]
            for name, value in constants(layer)
            .unpack(torch.from_numpy(merged.constants(scaled=False).reshape(1, -1)))
            .items()
        }
    )
    np.testing.assert_array_equal(layer(torch.from_numpy(table)).numpy(), np.where(known, table, merged.mean))


@pytest.mark.parametrize(
    ("count", "events", "expected"),
    [(10, 3, log(3.5 / 7.5)), (10, 0, log(0.5 / 10.5)), (10, 10, log(10.5 / 0.5)), (8, 4, 0.0), (0, 0, 0.0)],
)
def test_log_odds(count: int, events: int, expected: float) -> None:
    some = moments(patients(np.zeros((count, 1)), [1] * events + [0] * (count - events)))
    assert some.log_odds == pytest.approx(expected, abs=1e-15)


def fold_statistics(everyone: Mapping[str, Patients], fold: Fold) -> Moments:
    """As the server does it: the training hospitals in the order of their names."""
    return merge(moments(everyone[name]) for name in sorted(everyone) if fold.trains_at(name))


def told(some: Moments) -> bytes:
    """Everything that a fold learns from statistics."""
    return b"".join(
        [
            some.constants(scaled=True).tobytes(),
            some.constants(scaled=False).tobytes(),
            some.count.tobytes(),
            some.m2.tobytes(),
            np.float64(some.log_odds).tobytes(),
        ]
    )


def test_a_held_out_hospital_leaves_no_byte() -> None:
    """Statistics are added up per fold and never subtracted: totals minus a hospital of 1e12 would not come back."""
    rng = np.random.default_rng(4)
    everyone = {name: patients(rng.normal(size=(9, 3)), rng.integers(0, 2, 9).tolist()) for name in "cabd"}
    replaced = {**everyone, "b": patients(rng.normal(1e12, 1e9, (50, 3)), [1] * 50)}
    held_out = parse("without:b")
    assert told(fold_statistics(everyone, held_out)) == told(fold_statistics(replaced, held_out))
    for name in ("all", "without:a"):
        assert told(fold_statistics(everyone, parse(name))) != told(fold_statistics(replaced, parse(name)))
    backwards = dict(reversed(everyone.items()))
    assert told(fold_statistics(everyone, parse("all"))) == told(fold_statistics(backwards, parse("all")))


def test_moments_leave_the_patients_alone() -> None:
    some = patients([[1.0, NAN]])
    moments(some)
    np.testing.assert_array_equal(some.table, [[1.0, NAN]])
