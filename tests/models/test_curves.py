"""Calibration bins and decision curve by hand, against scikit-learn; and an attacker who subtracts whatever is told."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from ich_models.curves import Bin, Decision, groups, net_benefit

GRID = [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95]
FINE = [cut / 100 for cut in range(5, 100, 5)]
K = 10


def patients(n: int, seed: int, *, prevalence: float = 0.4, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities; `steps` rounds them into ties."""
    generator = np.random.default_rng(seed)
    x = generator.normal(np.log(prevalence / (1 - prevalence)), 1.2, n)
    p = expit(x)
    return (generator.random(n) < p).astype(int), p if steps is None else np.round(p * steps) / steps


# --- figures ----------------------------------------------------------------------------------------------------------


def test_net_benefit_of_a_published_kind_by_hand() -> None:
    """Of 1000 patients 100 have the event; at a threshold of 20 % the model treats 80 of them and 120 others.

    80/1000 - 120/1000 * 0.2/0.8 = 0.05; treating everybody: 0.1 - 0.9 * 0.25 = -0.125.
    """
    assert net_benefit(80, 120, 1000, 0.2) == pytest.approx(0.05)
    assert net_benefit(100, 900, 1000, 0.2) == pytest.approx(-0.125)
    assert net_benefit(0, 0, 1000, 0.2) == 0


def test_bins_and_curve_by_hand() -> None:
    y = [0, 0, 1, 0, 1, 1]
    p = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
    bins, curve = groups(y, p, 0.5, [0.2, 0.5, 0.7, 0.95])
    assert bins == tuple(Bin(1, label, score) for label, score in zip(y, p, strict=True))
    assert curve == (Decision(0.2, 3, 2), Decision(0.5, 2, 1), Decision(0.7, 2, 0), Decision(0.95, 0, 0))


@pytest.mark.parametrize("n", [200, 1000])
def test_bins_agree_with_scikit_learn(n: int) -> None:
    y, p = patients(n, 1)
    bins, _ = groups(y, p, 0.5, [])
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    assert [one.events / one.patients for one in bins] == pytest.approx(observed, abs=1e-12)
    assert [one.mean for one in bins] == pytest.approx(predicted, abs=1e-12)
    assert {one.patients for one in bins} == {n // 10}


def test_the_curve_agrees_with_scikit_learns_confusion_matrix() -> None:
    y, p = patients(300, 2)
    for one in groups(y, p, 0.5, GRID)[1]:
        _, fp, _, tp = confusion_matrix(y, p >= one.threshold).ravel()
        assert (one.true_positives, one.false_positives) == (tp, fp)


def test_patients_with_one_probability_stay_together() -> None:
    y, p = patients(200, 3, steps=4)
    bins, _ = groups(y, p, 0.5, [])
    of_each_score = np.unique(p, return_counts=True)[1]
    assert set(np.cumsum([one.patients for one in bins])) <= set(np.cumsum(of_each_score))
    assert len(bins) == 4  # the highest of the five scores has few patients, who join those below
    assert groups(y, np.full(200, 0.3), 0.5, [])[0] == (Bin(200, int(y.sum()), pytest.approx(0.3)),)


def test_summaries_of_hospitals_add_up_to_those_of_all_patients() -> None:
    """True and false positives, so net benefit too: from three hospitals' counts what all patients in one place give."""
    parts = [patients(n, n) for n in (80, 150, 230)]
    y, p = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    curves = [groups(*part, 0.5, GRID)[1] for part in parts]
    for place, whole in enumerate(groups(y, p, 0.5, GRID)[1]):
        tp, fp = (
            sum(getattr(curve[place], name) for curve in curves) for name in ("true_positives", "false_positives")
        )
        w = whole.threshold / (1 - whole.threshold)
        expected = np.mean((p >= whole.threshold) * np.where(y == 1, 1.0, -w))
        assert net_benefit(tp, fp, len(y), whole.threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("events", "others", "k", "told"),
    [(20, 20, 10, True), (9, 31, 10, False), (31, 9, 10, False), (0, 40, 10, True), (4, 4, 10, False), (1, 3, 0, True)],
)
def test_few_of_a_class_have_no_groups(events: int, others: int, k: int, told: bool) -> None:
    y = np.repeat([1, 0], [events, others])
    bins, curve = groups(y, np.linspace(0.1, 0.9, events + others), 0.5, [0.01], k)
    assert bool(bins) is bool(curve) is told
    assert groups([], [], 0.5, GRID) == ((), ())


# --- an attacker ------------------------------------------------------------------------------------------------------


def told_counts(y: np.ndarray, p: np.ndarray, limit: Any, k: int) -> tuple[list[np.ndarray], list[Bin], list[Decision]]:
    """Every group of patients of which a count is told, as masks: all, called positive, above each threshold, each bin."""
    bins, curve = groups(y, p, limit, FINE, k)
    masks = [np.ones(len(y), bool), p >= limit]
    masks += [p >= one.threshold for one in curve]
    order, start = np.argsort(p, kind="stable"), 0
    for one in bins:
        mask = np.zeros(len(y), bool)
        mask[order[start : start + one.patients]] = True
        start += one.patients
        masks.append(mask)
    return masks, list(bins), list(curve)


def told_apart(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The patients that no count tells apart, group by group: the finest that any adding and subtracting can reach."""
    columns = np.stack(masks, axis=1)
    kinds, place = np.unique(columns, axis=0, return_inverse=True)
    return [place.ravel() == kind for kind in range(len(kinds))]


def smallest_told(y: np.ndarray, masks: Sequence[np.ndarray], beyond: Sequence[np.ndarray]) -> int:
    """Patients with one outcome of the smallest group that subtraction reaches and that `beyond` does not tell already."""
    known = {np.flatnonzero(mask & (y == label)).tobytes() for mask in told_apart(beyond) for label in (0, 1)}
    cells = [np.flatnonzero(mask & (y == label)) for mask in told_apart(masks) for label in (0, 1)]
    return min((len(cell) for cell in cells if len(cell) and cell.tobytes() not in known), default=len(y))


def test_the_attack_succeeds_without_the_rule() -> None:
    """Adjacent thresholds of a fine curve, subtracted: single patients, with their outcome, between two thresholds."""
    y, p = patients(150, 5)
    masks, _, curve = told_counts(y, p, 0.4, 0)
    assert smallest_told(y, masks, masks[:2]) == 1
    steps = [b.true_positives - a.true_positives for a, b in combinations(curve, 2)]
    assert -1 in steps, "one patient with the event lies between two thresholds"


@settings(deadline=None, max_examples=150)
@given(
    n=st.integers(20, 500),
    seed=st.integers(0, 10_000),
    prevalence=st.floats(0.05, 0.95),
    steps=st.sampled_from([None, 7, 30]),
    limit=st.floats(0.05, 0.95),
    k=st.integers(2, 15),
)
def test_no_adding_and_subtracting_reaches_fewer_than_k(
    n: int, seed: int, prevalence: float, steps: int | None, limit: float, k: int
) -> None:
    """Bins, curve and the one threshold's four counts together, on a grid of nineteen thresholds.

    What the one threshold alone tells (recall, specificity) is known already: not more than that.
    """
    y, p = patients(n, seed, prevalence=prevalence, steps=steps)
    masks, bins, _ = told_counts(y, p, limit, k)
    if not bins:
        assert 0 < min(y.sum(), n - y.sum()) < k or n < k
        return
    assert smallest_told(y, masks, masks[:2]) >= k
    assert sum(one.patients for one in bins) == n
    for one in bins:
        assert one.patients >= k
        assert one.events == 0 or one.events >= k
        assert one.patients == one.events or one.patients - one.events >= k


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_that_differ_between_patients_are_judged_too(seed: int) -> None:
    """In cross-validation each part has its own threshold: who is called positive is not who lies above one cut."""
    y, p = patients(400, seed)
    limits = np.random.default_rng(seed).choice([0.35, 0.4, 0.5], 400)
    bins, curve = groups(y, p, limits, GRID, K)
    masks = [np.ones(400, bool), p >= limits, *(p >= one.threshold for one in curve)]
    assert smallest_told(y, masks, masks[:2]) >= K
    assert bins


@pytest.mark.parametrize("few", [3, 9])
def test_a_few_whom_the_threshold_tells_of_are_not_looked_for_further(few: int) -> None:
    """Recall tells of so many events below 0.4. That nobody with the event lies below 0.25 would say where they are."""
    y = np.repeat([1, 1, 0, 0], [few, 40, 30, 30])
    p = np.repeat([0.35, 0.8, 0.1, 0.6], [few, 40, 30, 30])
    bins, curve = groups(y, p, 0.4, [0.25], K)
    assert curve == ()
    assert bins == (Bin(100 + few, 40 + few, round(float(p.mean()), 3)),)
    more = groups(np.append(y, [1] * (10 - few)), np.append(p, [0.35] * (10 - few)), 0.4, [0.25], K)[1]
    assert more == (Decision(0.25, 50, 30),), "ten are no few"


@pytest.mark.parametrize("turned", [False, True])
def test_a_few_at_several_thresholds_are_not_parted_between_these(turned: bool) -> None:
    """Two parts, judged at 0.3 and 0.6. Of the events three are called positive: one at 0.35, by the lower threshold, and two
    at 0.65. A cut at 0.5 leaves 41 events below it and 42 above, no few; but it parts the three. Turned: not called positive."""
    p = np.repeat([0.35, 0.65, 0.2, 0.55, 0.1, 0.9], [1, 2, 40, 40, 30, 30])
    limits = np.repeat([0.3, 0.6, 0.3, 0.6, 0.3, 0.6], [1, 2, 40, 40, 30, 30])
    y = np.repeat([1, 0], [83, 60])
    if turned:  # as if seen in a mirror at 0.45
        p, limits = 0.9 - p, 0.9 - limits
    called = p >= limits
    assert np.count_nonzero((called != turned) & (y == 1)) == 3
    assert smallest_told(y, [called, p >= 0.5 - 0.1 * turned], [called]) < 3
    assert groups(y, p, limits, [0.5 - 0.1 * turned], K)[1] == ()


def test_a_mean_does_not_tell_by_its_digits_whom_it_is_the_mean_of() -> None:
    """Three yes-or-no predictors give eight probabilities. Their sum to 17 digits says how often each occurs; to 3 it does not."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 2, (60, 3))
    p = expit(x @ [0.7, -0.4, 1.1] - 0.3)
    y = (generator.random(60) < p).astype(int)
    eight = np.unique(p)
    exact = [one.mean * one.patients for one in groups(y, p, 0.5, [])[0]]
    rounded = groups(y, p, 0.5, [], K)[0]
    assert all(one.mean == round(one.mean, 3) for one in groups(y, p, 0.5, [], 2)[0]), "two are a few, too"
    assert exact == pytest.approx([value * (p == value).sum() for value in eight], abs=1e-12)
    assert all(one.mean == round(one.mean, 3) for one in rounded)
    assert all(one.patients >= K for one in rounded)


def test_one_patient_more_or_less_moves_no_cut_within_reach() -> None:
    """Two answers about nearly the same patients: what is told of either is still groups of k; the difference is docs/egress.md's."""
    y, p = patients(200, 9)
    for left_out in range(0, 200, 7):
        keep = np.arange(200) != left_out
        masks, bins, _ = told_counts(y[keep], p[keep], 0.4, K)
        assert bins
        assert smallest_told(y[keep], masks, masks[:2]) >= K
