"""Running means against numpy, and every way in which an update can be wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ich_strategies.aggregate import Fault, WeightedMeans, fault

Rows = NDArray[np.floating]
Update = tuple[tuple[str, ...], dict[str, Rows], list[int]]
"""What one hospital sends: its folds, rows per name (F, size), patients per fold."""

FOLDS = ("all", "without:a", "without:b")


@st.composite
def updates(draw: st.DrawFn) -> list[Update]:
    """Several hospitals' updates of one dtype; each takes part in some folds, all in 'all'."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    size = draw(st.integers(1, 5))
    numbers = st.floats(-1e3, 1e3, width=32)
    result: list[Update] = []
    for _ in range(draw(st.integers(1, 5))):
        folds = ("all", *(fold for fold in FOLDS[1:] if draw(st.booleans())))
        rows = {name: draw(arrays(dtype, (len(folds), size), elements=numbers)) for name in ("weights", "variate")}
        result.append((folds, rows, [draw(st.integers(1, 10**6)) for _ in folds]))
    return result


def means_of(several: Sequence[Update]) -> dict[str, Mapping[str, Rows]]:
    means = WeightedMeans()
    for folds, rows, patients in several:
        means.add(folds, rows, patients)
    return {fold: means.mean(fold) for fold in means.weights}


def parts_of(several: Sequence[Update], fold: str, name: str) -> tuple[Rows, list[int]]:
    """What the hospitals sent for one fold: (K, size), and their patients."""
    parts = [(rows[name][folds.index(fold)], n[folds.index(fold)]) for folds, rows, n in several if fold in folds]
    return np.stack([part for part, _ in parts]), [n for _, n in parts]


@given(updates())
def test_equals_numpy_and_keeps_the_dtype(several: list[Update]) -> None:
    got = means_of(several)
    assert set(got) == {fold for folds, _, _ in several for fold in folds}
    for fold, named in got.items():
        assert set(named) == {"weights", "variate"}
        for name, mean in named.items():
            parts, patients = parts_of(several, fold, name)
            expected = np.average(parts.astype(np.float64), axis=0, weights=patients).astype(parts.dtype)
            assert mean.dtype == parts.dtype
            # a float64 sum in another order may fall on the other side of the last float32 digit, no further
            assert np.all(np.abs(mean - expected) <= np.spacing(np.abs(parts).max().astype(parts.dtype)) * 4)


@given(updates(), st.randoms(use_true_random=False))
def test_order_matters_by_rounding_only_and_the_same_order_not_at_all(several: list[Update], random: Any) -> None:
    shuffled = list(several)
    random.shuffle(shuffled)
    first, again, other = means_of(several), means_of(several), means_of(shuffled)
    for fold in first:
        for name in first[fold]:
            assert first[fold][name].tobytes() == again[fold][name].tobytes()
            np.testing.assert_allclose(first[fold][name], other[fold][name], rtol=1e-6, atol=1e-9)


def test_sums_are_float64() -> None:
    """1 + 2^-24 + 2^-24 is 1 in float32 arithmetic; a hundred thousand such hospitals would lose a tenth of the mean."""
    means = WeightedMeans()
    for value in (1.0, *[2.0**-24] * 4):
        means.add(["all"], {"weights": np.array([[value]], np.float32)}, [1])
    assert means.mean("all")["weights"][0] == np.float32((1 + 2.0**-22) / 5)


def test_folds_have_their_own_participants() -> None:
    """Hospital a: 2 patients, not in without:a; b: 6 patients, in both."""
    means = WeightedMeans()
    means.add(["all"], {"weights": np.array([[8.0, 0.0]])}, [2])
    means.add(["all", "without:a"], {"weights": np.array([[4.0, 4.0], [1.0, -1.0]])}, [6, 5])
    assert means.weights == {"all": 8, "without:a": 5}
    assert means.replies == {"all": 2, "without:a": 1}
    np.testing.assert_array_equal(means.mean("all")["weights"], [5.0, 3.0])
    np.testing.assert_array_equal(means.mean("without:a")["weights"], [1.0, -1.0])


def test_an_update_may_be_reused_by_its_owner() -> None:
    """The sum is a copy: the message's buffer can be overwritten, and is not written to."""
    rows = np.array([[1.0, 2.0]])
    means = WeightedMeans()
    means.add(["all"], {"weights": rows}, [1])
    means.add(["all"], {"weights": rows}, [1])
    np.testing.assert_array_equal(rows, [[1.0, 2.0]])
    rows[:] = 77.0
    np.testing.assert_array_equal(means.mean("all")["weights"], [1.0, 2.0])


def test_a_mean_is_given_once() -> None:
    """Its sums are given up, so that F folds of a large model are not held twice."""
    means = WeightedMeans()
    means.add(["all"], {"weights": np.ones((1, 2))}, [1])
    means.mean("all")
    with pytest.raises(KeyError):
        means.mean("all")


def test_counts_must_fit_the_folds() -> None:
    with pytest.raises(ValueError, match="zip"):
        WeightedMeans().add(["all", "without:a"], {"weights": np.ones((2, 2))}, [1])


# --- faults -----------------------------------------------------------------------------------------------------------

SENT = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], np.float32)


def judged(
    returned: Mapping[str, Any] | None = None,
    *,
    patients: Sequence[int] = (10, 20),
    expected: Sequence[int] = (10, 20),
    most: int = 1_000_000,
    norm: float = 1e300,
    state: float = 1e300,
    sent: Rows = SENT,
) -> Fault | None:
    """The verdict on an update of two folds with a variate of the same width; by default it is a good one."""
    good = {"weights": sent + 1, "variate": sent - 1}
    widths = {"weights": 3, "variate": 3}
    result = fault(
        *(sent, good if returned is None else returned, widths, patients, expected),
        most_patients=most,
        largest_norm=norm,
        largest_state=state,
    )
    assert result is None or isinstance(result, Fault)
    return result


def spoilt(name: str, value: Any) -> dict[str, Any]:
    """A good update with one array replaced."""
    return {"weights": SENT + 1, "variate": SENT - 1, name: value}


def with_entry(number: float) -> Rows:
    """An array of the right form whose last number is this one."""
    rows = SENT.copy()
    rows[1, 2] = number
    return rows


def test_a_good_update_passes() -> None:
    assert judged() is None
    assert judged(sent=SENT.astype(np.float64)) is None
    assert judged(spoilt("weights", np.ascontiguousarray(SENT.T).T)) is None, "memory order is not form"


@pytest.mark.parametrize("name", ["weights", "variate"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_not_finite(name: str, number: float) -> None:
    assert judged(spoilt(name, with_entry(number))) is Fault.NOT_FINITE
    assert judged(spoilt(name, with_entry(number)), norm=1.0) is Fault.NOT_FINITE


@pytest.mark.parametrize("name", ["weights", "variate"])
@pytest.mark.parametrize(
    "value",
    [
        SENT[:, :2],
        SENT[:1],
        SENT[:, :1],  # would broadcast
        np.concatenate([SENT, SENT]),
        np.concatenate([SENT, SENT], axis=1),
        SENT.ravel(),
        SENT[0],
        SENT[None],
        SENT[..., None],
        SENT.T,
        np.float32(3) * np.ones((), np.float32),
        np.empty((2, 0), np.float32),
        np.empty((0, 3), np.float32),
        SENT.astype(np.float64),
        SENT.astype(np.float16),
        SENT.astype(np.int32),
        SENT.astype(np.complex64),
        SENT.astype(object),
        SENT.astype(str),
        SENT.astype(">f4"),
    ],
    ids=lambda value: f"{value.dtype.str}{value.shape}",
)
def test_wrong_form(name: str, value: Rows) -> None:
    """Never an exception: one hospital's reply must not end the run."""
    assert judged(spoilt(name, value)) is Fault.SHAPE


def test_each_name_has_its_width() -> None:
    """FedBN's layers travel once, beside weights of another width."""
    widths = {"weights": 3, "local": 1}
    for columns, verdict in ((0, Fault.SHAPE), (1, None), (2, Fault.SHAPE), (3, Fault.SHAPE)):
        returned = {"weights": SENT, "local": SENT[:, :columns]}
        limits = {"most_patients": 9, "largest_norm": 1e300, "largest_state": 1e300}
        assert fault(SENT, returned, widths, [1, 1], [1, 1], **limits) is verdict


def test_wrong_names() -> None:
    good = spoilt("weights", SENT)
    assert judged({"weights": SENT}) is Fault.SHAPE, "the variate is missing"
    assert judged({"variate": SENT}) is Fault.SHAPE, "the weights are missing"
    assert judged({}) is Fault.SHAPE
    assert judged({**good, "extra": SENT}) is Fault.SHAPE
    assert judged({"weights": SENT, "Variate": SENT}) is Fault.SHAPE


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        ((10**9, 20), (10, 20)),
        ((10, 10**9), (10, 10**9)),
        ((10, 1_000_001), (10, 1_000_001)),
        ((10, 0), (10, 0)),
        ((0, 0), (0, 0)),
        ((-10, 20), (-10, 20)),
        ((10, 21), (10, 20)),
        ((20, 10), (10, 20)),
        ((10,), (10, 20)),
        ((10, 20, 30), (10, 20)),
        ((10, float("nan")), (10, float("nan"))),
        ((), (10, 20)),
    ],
    ids=str,
)
def test_unbelievable_patients(patients: Sequence[int], expected: Sequence[int]) -> None:
    assert judged(patients=patients, expected=expected) is Fault.PATIENTS


def test_patients_within_bounds() -> None:
    assert judged(patients=(1, 1_000_000), expected=(1, 1_000_000)) is None
    assert judged(patients=(10, 20), most=20) is None
    assert judged(patients=(10, 20), most=19) is Fault.PATIENTS


def test_norm_is_of_the_move_in_each_fold() -> None:
    """Fold 0 moves by (3, 4, 0) from (1, 1, 1): norm 5. Fold 1 moves by (0, 0, 2)."""
    returned = spoilt("weights", np.array([[4, 5, 1], [0, 0, 2]], np.float32))
    assert judged(returned, norm=5.0) is None
    assert judged(returned, norm=4.99) is Fault.NORM
    swapped = spoilt("weights", np.array([[1, 1, 3], [3, 4, 0]], np.float32))
    assert judged(swapped, norm=4.99) is Fault.NORM, "the second fold counts too"
    assert judged(spoilt("variate", SENT + 1000), norm=5.0) is None, "the limit is on the weights"


def test_a_move_too_large_for_its_dtype_breaks_the_limit() -> None:
    """From -3e38 to 3e38 is infinite in float32, and its square in float64: a verdict, not a warning."""
    for dtype, huge in ((np.float32, 3e38), (np.float64, 1e308)):
        sent = np.full((2, 3), -huge, dtype)
        assert judged({"weights": -sent, "variate": sent}, sent=sent, norm=1e6) is Fault.NORM


def test_the_first_fault_is_named() -> None:
    assert judged({"weights": with_entry(np.nan)}, patients=(0, 0), expected=(0, 0)) is Fault.PATIENTS
    assert judged({"weights": with_entry(np.nan)}) is Fault.SHAPE


@given(
    arrays(np.float32, (2, 3), elements=st.floats(width=32)),
    arrays(np.float32, (2, 3), elements=st.floats(width=32)),
)
def test_what_passes_cannot_spoil_a_mean(weights: Rows, variate: Rows) -> None:
    """Whatever float32 numbers arrive: either a fault, or a finite mean."""
    returned = {"weights": weights, "variate": variate}
    if judged(returned) is None:
        means = WeightedMeans()
        means.add(["a", "b"], returned, [10, 20])
        means.add(["a", "b"], {"weights": SENT, "variate": SENT}, [1_000_000, 1])
        assert all(np.isfinite(mean).all() for fold in ("a", "b") for mean in means.mean(fold).values())
    else:
        assert not (np.isfinite(weights).all() and np.isfinite(variate).all())


def test_an_encoder_is_weighted_by_the_patients_who_have_its_modality() -> None:
    """Numbers 1 to 3 of five are the image's. a: 10 patients, 8 with an image; b: 30, 2 with one: 8 and 2 of 10 there."""
    means = WeightedMeans([(slice(1, 4), "image")], 5)
    means.add(["all"], {"weights": np.full((1, 5), 1.0), "variate": np.full((1, 5), 1.0)}, [10], {"image": [8]})
    means.add(["all"], {"weights": np.full((1, 5), 2.0), "variate": np.full((1, 5), 2.0)}, [30], {"image": [2]})
    found = means.mean("all")
    for block in ("weights", "variate"):
        assert found[block] == pytest.approx([1.75, 1.2, 1.2, 1.2, 1.75])


def test_who_does_not_say_has_everything() -> None:
    """a says nothing: all of its 10 patients; b has 10 of 30: half each."""
    means = WeightedMeans([(slice(0, 1), "text")], 2)
    means.add(["all"], {"weights": np.array([[1.0, 1.0]])}, [10])
    means.add(["all"], {"weights": np.array([[2.0, 2.0]])}, [30], {"text": [10]})
    assert means.mean("all")["weights"] == pytest.approx([1.5, 1.75])


def test_what_nobody_has_seen_has_no_mean() -> None:
    means = WeightedMeans([(slice(0, 1), "image")], 2)
    means.add(["all"], {"weights": np.array([[1.0, 1.0]]), "loss": np.array([[0.5]])}, [10], {"image": [0]})
    found = means.mean("all")
    assert np.isnan(found["weights"][0])
    assert found["weights"][1] == 1
    assert found["loss"] == 0.5
