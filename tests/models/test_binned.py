"""Metrics from counts, by hand and against the exact ones."""

import numpy as np
import pytest

from ich_models import binned
from ich_models.metrics import METRICS, RANGES
from ich_models.metrics import evaluate as exactly


def test_counts_by_hand() -> None:
    limits = binned.edges(2, 0.3)
    assert limits.tolist() == [0.0, 0.3, 0.5, 1.0]
    labels = np.array([0, 1, 0, 1, 1])
    found = binned.counts(labels, np.array([0.1, 0.3, 0.49, 0.5, 1.0]), limits)
    assert found.tolist() == [[1, 1, 0], [0, 1, 2]]


def test_metrics_by_hand() -> None:
    # without the event: 3 low, 1 high; with it: 1 low, 3 high
    found = binned.evaluate(np.array([[3.0, 1.0], [1.0, 3.0]]), binned.edges(2, 0.5), 0.5)
    values = {name: found.metrics[name].value for name in METRICS}
    assert (found.n, found.events) == (8, 4)
    assert values == {
        "auroc": (9 + 0.5 * (3 + 3)) / 16,
        "auprc": pytest.approx((3 * 3 / 4 + 1 * 4 / 8) / 4),
        "brier": pytest.approx((3 * 0.25**2 + 0.75**2 + 0.75**2 + 3 * 0.25**2) / 8),
        "accuracy": 6 / 8,
        "f1": 6 / 8,
        "recall": 3 / 4,
        "precision": 3 / 4,
        "specificity": 3 / 4,
        "npv": 3 / 4,
        "f2": 5 * 3 / (5 * 3 + 4 * 1 + 1),
        "prevalence": 4 / 8,
        "observed_expected": pytest.approx(4 / (4 * 0.25 + 4 * 0.75)),
        "scaled_brier": pytest.approx(1 - 0.1875 / 0.25),
        "calibration_slope": None,
        "calibration_intercept": None,
    }


def test_fine_bins_give_the_exact_figures() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 500)
    scores = np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    limits = binned.edges(2000, 0.5)
    found, exact = binned.evaluate(binned.counts(labels, scores, limits), limits, 0.5), exactly(labels, scores, 0.5)
    told = [name for name in METRICS if not name.startswith("calibration")]
    for name in told:
        assert found.metrics[name].value == pytest.approx(exact.metrics[name].value, abs=2e-3), name


def test_noise_moves_the_figures_and_does_not_bend_them() -> None:
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], 300)
    limits = binned.edges(10, 0.5)
    counts = binned.counts(labels, np.clip(generator.normal(0.35 + 0.3 * labels, 0.15), 0, 1), limits)
    exact = binned.evaluate(counts, limits, 0.5)
    tries = [binned.evaluate(counts + generator.normal(0, 10, counts.shape), limits, 0.5) for _ in range(400)]
    assert np.mean([one.n for one in tries]) == pytest.approx(600, abs=8)  # sd 45 each: 2.2 of the mean
    for name in ("auroc", "recall", "specificity", "brier"):
        found = [value for one in tries if (value := one.metrics[name].value) is not None]
        assert np.mean(found) == pytest.approx(exact.metrics[name].value, abs=0.02), name


@pytest.mark.parametrize("counts", [[[0.0, 0.0], [0.0, 0.0]], [[-4.0, 1.0], [2.0, -9.0]], [[5.0, 3.0], [0.2, -0.1]]])
def test_what_noise_leaves_nothing_of_is_not_estimated(counts: list[list[float]]) -> None:
    found = binned.evaluate(np.array(counts), binned.edges(2, 0.5), 0.5)
    assert found.metrics["auroc"].value is None
    for name, one in found.metrics.items():
        lowest, highest = RANGES[name]
        assert one.value is None or lowest <= one.value <= highest, name
