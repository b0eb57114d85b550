"""Metrics of slices: values against scikit-learn, intervals by patient, what cannot be estimated."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, fbeta_score, roc_auc_score

from ich_models.image_spec import HAEMORRHAGES
from ich_models.metrics import TYPE_METRICS, Evaluation, evaluate
from ich_models.slice_metrics import evaluate_slices, having, slice_thresholds

NAN = np.nan


def drawn(patients: int = 40, slices: int = 6, seed: int = 0) -> tuple[Any, Any]:
    """Targets, a fifth of them missing, and probabilities that know something of them and are rounded, so that some tie."""
    rng = np.random.default_rng(seed)
    ill = rng.random((patients, 1, 5)) < 0.5
    truth = ill & (rng.random((patients, slices, 5)) < 0.6)
    probabilities = np.round(np.clip(0.3 + 0.25 * truth + rng.normal(0, 0.2, truth.shape), 0, 1), 2)
    targets = np.where(rng.random(truth.shape) < 0.2, NAN, truth)
    return targets, probabilities


def measured(targets: Any, probabilities: Any, threshold: float = 0.5, **more: Any) -> Evaluation:
    limits = np.full((len(targets), 5), threshold)
    return evaluate_slices(len(targets), 0, np.asarray(targets), np.asarray(probabilities), limits, **more)


def values(found: Evaluation) -> dict[str, Any]:
    return {name: estimate.value for name, estimate in found.metrics.items()}


def test_values_are_scikit_learns() -> None:
    targets, probabilities = drawn()
    found = measured(targets, probabilities)
    assert tuple(found.types) == HAEMORRHAGES
    for k, kind in enumerate(HAEMORRHAGES):
        known = ~np.isnan(targets[..., k])
        truth, p = targets[..., k][known], probabilities[..., k][known]
        patient_truth = np.nanmax(targets[..., k], axis=1)
        patient_p = np.where(known, probabilities[..., k], -1).max(1)
        for one, y, score in (
            (found.types[kind].slices, truth, p),
            (found.types[kind].patients, patient_truth, patient_p),
        ):
            called = score >= 0.5
            assert (one.n, one.events) == (len(y), y.sum())
            assert tuple(one.metrics) == TYPE_METRICS
            assert values(one) == pytest.approx(
                {
                    "auroc": roc_auc_score(y, score),
                    "auprc": average_precision_score(y, score),
                    "brier": brier_score_loss(y, score),
                    "f1": fbeta_score(y, called, beta=1),
                    "f2": fbeta_score(y, called, beta=2),
                    "recall": (called & (y == 1)).sum() / y.sum(),
                    "precision": (called & (y == 1)).sum() / called.sum(),
                    "specificity": (~called & (y == 0)).sum() / (y == 0).sum(),
                },
                abs=1e-12,
            )


def test_a_patient_with_more_of_the_same_slices_is_still_one_patient() -> None:
    """Every slice ten times over: not an interval is narrower. Slices on their own would make it a third as wide."""
    targets, probabilities = drawn()
    once = measured(targets, probabilities).types["subdural"].slices
    tenfold = measured(np.tile(targets, (1, 10, 1)), np.tile(probabilities, (1, 10, 1))).types["subdural"].slices
    assert tenfold.n == 10 * once.n
    for name in TYPE_METRICS:
        one, ten = once.metrics[name], tenfold.metrics[name]
        assert (ten.value, ten.low, ten.high) == pytest.approx((one.value, one.low, one.high), abs=1e-12)
    many, p = np.tile(targets, (1, 10, 1))[..., 3], np.tile(probabilities, (1, 10, 1))[..., 3]
    alone = evaluate(many[~np.isnan(many)], p[~np.isnan(many)], 0.5).metrics["auroc"]
    width = np.diff([tenfold.metrics["auroc"].low, tenfold.metrics["auroc"].high])  # type: ignore[list-item]
    assert width > 2 * np.diff([alone.low, alone.high])  # type: ignore[list-item]


def test_the_interval_is_that_of_a_plain_bootstrap_of_patients() -> None:
    targets, probabilities = drawn(patients=30, slices=3, seed=4)
    found = measured(targets, probabilities, resamples=200, seed=7).types["epidural"].slices.metrics["auroc"]
    # the same draws, one by one: patients are drawn by their number among those with a label
    known = ~np.isnan(targets[..., 4])
    some = np.flatnonzero(known.any(1))
    rng = np.random.Generator(np.random.PCG64(7))
    areas = []
    for draw in rng.integers(0, len(some), size=(200, len(some))):
        rows = some[draw]
        areas.append(roc_auc_score(targets[rows, :, 4][known[rows]], probabilities[rows, :, 4][known[rows]]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])), abs=1e-12)


def test_patients_have_the_intervals_of_patients() -> None:
    targets, probabilities = drawn()
    found = measured(targets, probabilities).types["subdural"].patients
    known = ~np.isnan(targets[..., 3])
    plain = evaluate(np.nanmax(targets[..., 3], axis=1), np.where(known, probabilities[..., 3], -1).max(1), 0.5)
    for name in TYPE_METRICS:
        if name != "f2":
            assert found.metrics[name] == plain.metrics[name]


def test_each_type_and_patient_has_its_own_threshold() -> None:
    """As in cross-validation, where each part's model has thresholds of its own, one for each type."""
    targets, probabilities = drawn()
    limits = np.random.default_rng(3).choice([0.2, 0.35, 0.5, 0.65], (40, 5))
    targets[0] = NAN  # whoever has no label keeps nobody else's threshold
    found = evaluate_slices(40, 0, targets, probabilities, limits, resamples=0)
    for k, kind in enumerate(HAEMORRHAGES):
        known = ~np.isnan(targets[..., k])
        called = probabilities[..., k] >= limits[:, None, k]
        positive = targets[..., k] == 1
        expected = (
            (called & positive).sum() / positive.sum(),
            (~called & known & ~positive).sum() / (known & ~positive).sum(),
        )
        slices = found.types[kind].slices.metrics
        assert (slices["recall"].value, slices["specificity"].value) == pytest.approx(expected, abs=1e-12)
        some, ill, suspected = known.any(1), positive.any(1), (called & known).any(1)
        patients = found.types[kind].patients.metrics
        assert patients["recall"].value == pytest.approx((suspected & ill).sum() / ill.sum(), abs=1e-12)
        healthy = some & ~ill
        assert patients["specificity"].value == pytest.approx((healthy & ~suspected).sum() / healthy.sum(), abs=1e-12)
        f2 = fbeta_score(ill[some], suspected[some], beta=2)
        assert patients["f2"].value == pytest.approx(f2, abs=1e-12)


def test_nine_patients_without_a_type_give_no_interval() -> None:
    targets, probabilities = drawn(patients=25)
    targets[..., 0] = 1
    targets[:9, :, 0] = 0
    nine = measured(targets, probabilities).types[HAEMORRHAGES[0]].slices
    assert (nine.n - nine.events, nine.metrics["auroc"].low) == (54, None)


def test_what_nobody_has_or_nobody_has_labelled_has_no_figures() -> None:
    targets, probabilities = drawn(patients=25)
    targets[..., 0] = 0
    targets[..., 1] = NAN
    targets[:, :, 2] = 0
    targets[:9, 0, 2] = 1
    found = measured(targets, probabilities)
    absent = values(found.types["intraparenchymal"].slices)
    assert (absent["auroc"], absent["auprc"], absent["recall"]) == (None, None, None)
    assert absent["specificity"] is not None
    assert set(values(found.types["intraventricular"].slices).values()) == {None}
    assert found.types["intraventricular"].patients.n == 0
    nine = found.types["subarachnoid"].slices
    assert nine.events == 9
    assert nine.metrics["auroc"].value is not None
    assert nine.metrics["auroc"].low is None, "under ten patients with the type"


def test_order_of_patients_and_slices_changes_nothing() -> None:
    targets, probabilities = drawn()
    first = measured(targets, probabilities, resamples=50)
    order = np.random.default_rng(1).permutation(6)
    second = measured(targets[:, order], probabilities[:, order], resamples=50)
    assert first == second


def test_counts_and_thresholds_by_type() -> None:
    targets = np.full((3, 2, 5), NAN)
    targets[0, :, 0] = 1, 0
    targets[1, 0, 0] = 0
    targets[2, :, 1] = 1
    patients, with_it = having(targets)
    assert patients.tolist() == [2, 1, 0, 0, 0]
    assert with_it.tolist() == [1, 1, 0, 0, 0]
    probabilities = np.full((3, 2, 5), 0.1)
    probabilities[0, 0, 0] = 0.7
    probabilities[1, 1, 0] = 0.9  # not labelled: no reason for another threshold
    assert slice_thresholds("youden", targets, probabilities) == [pytest.approx(0.4), None, None, None, None]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="thresholds"):
        evaluate_slices(2, 0, np.zeros((2, 3, 5)), np.zeros((2, 3, 5)), np.zeros((3, 5)))
