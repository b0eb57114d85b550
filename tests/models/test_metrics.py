"""Evaluation metrics against numbers worked by hand, scikit-learn, statsmodels, and slow versions written here."""

import math
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as sk

from ich_models import metrics as module
from ich_models.metrics import (
    METRICS,
    MIN_PER_CLASS,
    RANGES,
    SUBGROUP_METRICS,
    Estimate,
    delong,
    delong_paired,
    evaluate,
    evaluate_subgroup,
    f2_threshold,
    youden_threshold,
)

Z = 1.959963984540054
NOTHING = Estimate(None, None, None)
Y = np.array([1, 0, 1, 0, 1, 0])  # six patients, worked by hand below
P = np.array([0.9, 0.8, 0.7, 0.4, 0.4, 0.1])


def simulated(n, seed, *, prevalence=0.3, grid=None):
    """Labels and probabilities of an informative, miscalibrated model; `grid` rounds the probabilities into ties."""
    generator = np.random.default_rng(seed)
    y = generator.random(n) < prevalence
    p = expit(generator.normal(size=n) + 1.2 * y - 1)
    return y.astype(int), p if grid is None else np.round(p * grid) / grid


def naive_delong(y, *scores):
    """Areas and covariance of any number of models from the full matrix of pairs, as DeLong et al. write it."""
    by_event, by_other = [], []
    for s in map(np.asarray, scores):
        gap = s[y == 1][:, None] - s[y == 0][None, :]
        wins = (gap > 0) + 0.5 * (gap == 0)
        by_event.append(wins.mean(axis=1))
        by_other.append(wins.mean(axis=0))
    areas = np.array([v.mean() for v in by_event])
    m, n = len(by_event[0]), len(by_other[0])
    return areas, np.atleast_2d(np.cov(by_event)) / m + np.atleast_2d(np.cov(by_other)) / n


def test_the_order_of_metrics_is_fixed():
    assert " ".join(METRICS) == (
        "auroc auprc prevalence brier scaled_brier observed_expected calibration_slope calibration_intercept"
        " accuracy f1 f2 recall precision specificity npv"
    )
    assert set(RANGES) == {*METRICS, "auroc_difference"}


# By hand


def test_six_patients_by_hand():
    result = evaluate(Y, P, 0.8)
    value = {name: estimate.value for name, estimate in result.metrics.items()}
    assert (result.n, result.events) == (6, 3)
    assert tuple(result.metrics) == METRICS
    assert value["auroc"] == pytest.approx(6.5 / 9)
    assert value["auprc"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert value["brier"] == pytest.approx((0.01 + 0.64 + 0.09 + 0.16 + 0.36 + 0.01) / 6)
    # predicted positive: 0.9 and 0.8 itself; tp 1, fp 1, fn 2, tn 2
    assert value["accuracy"] == pytest.approx(3 / 6)
    assert value["f1"] == pytest.approx(2 / 5)
    assert value["recall"] == pytest.approx(1 / 3)
    assert value["precision"] == pytest.approx(1 / 2)
    assert value["specificity"] == pytest.approx(2 / 3)


def test_delong_by_hand():
    area, variance = delong(Y, P)
    assert area == pytest.approx(6.5 / 9)
    assert variance == pytest.approx(7 / 108 / 3 + 13 / 108 / 3)  # placements 1, 2/3, 1/2 and 1/3, 5/6, 1


def test_calibration_slope_of_two_scores_by_hand():
    y = np.repeat([1, 0, 1, 0], [4, 6, 6, 4])  # 4 of 10 at p = 0.2, 6 of 10 at p = 0.8
    p = np.repeat([0.2, 0.8], 10)
    found = evaluate(y, p, 0.5).metrics
    error = math.sqrt(2 / (10 * 0.24)) / (2 * math.log(4))
    slope = found["calibration_slope"]
    assert slope.value == pytest.approx(math.log(1.5) / math.log(4), abs=1e-12)
    assert (slope.low, slope.high) == pytest.approx((slope.value - Z * error, slope.value + Z * error), abs=1e-9)
    assert found["calibration_intercept"].value == pytest.approx(0, abs=1e-12)


def test_calibration_in_the_large_of_one_score_by_hand():
    found = evaluate([1] * 5 + [0] * 5, [0.2] * 10, 0.5).metrics
    error = 1 / math.sqrt(10 * 0.25)
    assert found["calibration_intercept"].value == pytest.approx(math.log(4))  # more events than predicted: above 0
    assert found["calibration_intercept"].low == pytest.approx(math.log(4) - Z * error)
    assert found["calibration_intercept"].high == pytest.approx(math.log(4) + Z * error)
    assert found["calibration_slope"] == NOTHING
    assert found["auroc"] == Estimate(0.5, None, None)


def test_what_is_new_of_six_patients_by_hand():
    found = evaluate(Y, P, 0.8).metrics
    assert found["prevalence"].value == 0.5
    assert found["npv"].value == pytest.approx(2 / 4)  # four below 0.8, two of them without the event
    assert found["f2"].value == pytest.approx(5 / (5 + 1 + 4 * 2))  # tp 1, fp 1, fn 2
    assert found["observed_expected"].value == pytest.approx(3 / 3.3)
    brier = (0.01 + 0.64 + 0.09 + 0.16 + 0.36 + 0.01) / 6
    assert found["scaled_brier"].value == pytest.approx(1 - brier / 0.25)


def test_observed_over_expected_by_its_formula():
    """Debray et al. (BMJ 2017): 100 events of 400, 125 expected; se(log O/E) = sqrt(0.75 / 100)."""
    y = np.repeat([1, 0], [100, 300])
    ratio = evaluate(y, np.full(400, 125 / 400), 0.5, resamples=0).metrics["observed_expected"]
    assert ratio.value == pytest.approx(0.8)
    reach = math.exp(Z * math.sqrt(0.75 / 100))
    assert (ratio.low, ratio.high) == pytest.approx((0.8 / reach, 0.8 * reach), rel=1e-12)
    assert evaluate([0] * 20, [0.2] * 20, 0.5).metrics["observed_expected"] == Estimate(0.0, None, None)
    assert evaluate([1] * 20, [0.2] * 20, 0.5).metrics["observed_expected"] == Estimate(pytest.approx(5.0), None, None)
    assert evaluate([0, 1], [0.0, 0.0], 0.5).metrics["observed_expected"] == NOTHING


def test_scaled_brier_is_0_for_the_prevalence_and_1_for_certainty():
    y = np.repeat([1, 0], [30, 70])
    assert evaluate(y, np.full(100, 0.3), 0.5).metrics["scaled_brier"].value == pytest.approx(0, abs=1e-12)
    assert evaluate(y, y.astype(float), 0.5).metrics["scaled_brier"].value == 1
    assert evaluate(y, 1.0 - y, 0.5).metrics["scaled_brier"].value == pytest.approx(1 - 1 / 0.21)


@pytest.mark.parametrize("seed", range(3))
def test_f2_npv_and_bootstrap_agree_with_scikit_learn(seed):
    y, p = simulated(120, seed, grid=20)
    found = evaluate(y, p, 0.4, seed=7, resamples=200).metrics
    called = p >= 0.4
    assert found["f2"].value == pytest.approx(sk.fbeta_score(y, called, beta=2), abs=1e-15)
    assert found["npv"].value == sk.precision_score(1 - y, ~called)
    order = np.lexsort((called, y, p))[::-1]
    draws = np.random.Generator(np.random.PCG64(7)).integers(0, 120, size=(200, 120))
    f2, scaled = [], []
    for row in draws:
        labels, scores = y[order][row], p[order][row]
        f2.append(sk.fbeta_score(labels, scores >= 0.4, beta=2))
        scaled.append(1 - sk.brier_score_loss(labels, scores) / (labels.mean() * (1 - labels.mean())))
    for name, samples in (("f2", f2), ("scaled_brier", scaled)):
        assert (found[name].low, found[name].high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])))


def test_sums_over_hospitals_are_those_of_all_patients():
    """Events, the Brier score and O/E of all patients follow from each hospital's own; so does the scaled Brier."""
    parts = [simulated(n, n) for n in (60, 90, 200)]
    whole = evaluate(*(np.concatenate([part[side] for part in parts]) for side in (0, 1)), 0.5, resamples=0)
    each = [evaluate(*part, 0.5, resamples=0) for part in parts]
    n, events = sum(one.n for one in each), sum(one.events for one in each)
    brier = sum(one.n * one.metrics["brier"].value for one in each) / n
    expected = sum(one.events / one.metrics["observed_expected"].value for one in each)
    assert (n, events) == (whole.n, whole.events)
    assert brier == pytest.approx(whole.metrics["brier"].value, abs=1e-12)
    assert events / expected == pytest.approx(whole.metrics["observed_expected"].value, rel=1e-12)
    prevalence = events / n
    assert 1 - brier / (prevalence * (1 - prevalence)) == pytest.approx(whole.metrics["scaled_brier"].value, abs=1e-12)


def test_a_subgroup_has_its_own_metrics_alone():
    y, p = simulated(80, 4)
    found = evaluate_subgroup(y, p)
    assert tuple(found.metrics) == SUBGROUP_METRICS
    whole = evaluate(y, p, 0.5).metrics
    assert all(found.metrics[name] == whole[name] for name in SUBGROUP_METRICS)


def test_intervals_by_their_formulas():
    y, p = simulated(200, 1)
    found = evaluate(y, p, 0.4).metrics
    squared = (p - y) ** 2
    half = Z * squared.std(ddof=1) / math.sqrt(200)
    assert (found["brier"].low, found["brier"].high) == pytest.approx((squared.mean() - half, squared.mean() + half))
    area, variance = delong(y, p)
    half = Z * math.sqrt(variance) / (area * (1 - area))
    assert found["auroc"].low == pytest.approx(expit(logit(area) - half))
    assert found["auroc"].high == pytest.approx(expit(logit(area) + half))
    called = p >= 0.4
    for name, hits, n in [
        ("accuracy", (called == y).sum(), 200),
        ("recall", (called & (y == 1)).sum(), y.sum()),
        ("precision", (called & (y == 1)).sum(), called.sum()),
        ("specificity", (~called & (y == 0)).sum(), 200 - y.sum()),
    ]:
        q = hits / n
        centre = (q + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(q * (1 - q) / n + Z**2 / (4 * n**2))
        assert found[name].value == pytest.approx(q)
        assert (found[name].low, found[name].high) == pytest.approx((centre - half, centre + half))


def test_brier_interval_stays_in_range():
    found = evaluate([1, 0, 0, 0], [0.0, 0.0, 0.0, 0.0], 0.5).metrics["brier"]
    assert found.value == 0.25
    assert found.low == 0.0  # 0.25 - 1.96 * 0.25 is cut
    assert found.high == pytest.approx(0.25 + Z * 0.25)


# Against other implementations


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("grid", [None, 5, 20])
def test_values_agree_with_scikit_learn(seed, grid):
    y, p = simulated(120, seed, grid=grid)
    found = {name: e.value for name, e in evaluate(y, p, 0.4, resamples=0).metrics.items()}
    called = p >= 0.4
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert found["auprc"] == pytest.approx(sk.average_precision_score(y, p), abs=1e-12)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    assert found["accuracy"] == sk.accuracy_score(y, called)
    assert found["f1"] == pytest.approx(sk.f1_score(y, called), abs=1e-15)
    assert found["recall"] == sk.recall_score(y, called)
    assert found["precision"] == sk.precision_score(y, called)
    assert found["specificity"] == sk.recall_score(1 - y, ~called)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [25, 400])
def test_calibration_agrees_with_statsmodels(seed, n):
    y, p = simulated(n, seed)
    p[:2] = 0.0, 1.0
    found = evaluate(y, p, 0.5, resamples=0).metrics
    x = logit(np.clip(p, 1e-12, 1 - 1e-12))
    slope = sm.Logit(y, sm.add_constant(x)).fit(disp=0, tol=1e-14, maxiter=200)
    large = sm.GLM(y, np.ones((n, 1)), family=sm.families.Binomial(), offset=x).fit(tol=1e-14)
    for name, value, error in [
        ("calibration_slope", slope.params[1], slope.bse[1]),
        ("calibration_intercept", large.params[0], large.bse[0]),
    ]:
        assert found[name].value == pytest.approx(value, abs=1e-8)
        assert (found[name].low, found[name].high) == pytest.approx((value - Z * error, value + Z * error), abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grid", [None, 4, 15])
def test_delong_agrees_with_all_pairs(seed, grid):
    y, p = simulated(60, seed, grid=grid)
    areas, covariance = naive_delong(y, p)
    assert delong(y, p) == pytest.approx((areas[0], covariance[0, 0]), abs=1e-14)


def test_delong_agrees_with_the_jackknife():
    y, p = simulated(40, 3, grid=10)
    area = sk.roc_auc_score(y, p)
    total = 0.0
    for label in (0, 1):
        members = np.flatnonzero(y == label)
        m = members.size
        left_out = np.array([sk.roc_auc_score(np.delete(y, i), np.delete(p, i)) for i in members])
        total += (m - 1) / m * np.sum((left_out - area) ** 2)
    assert delong(y, p)[1] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("grid", [None, 8])
def test_paired_delong_agrees_with_all_pairs(grid):
    y, first = simulated(80, 5, grid=grid)
    second = np.clip(first + np.random.default_rng(6).normal(scale=0.2, size=80), 0, 1)
    areas, covariance = naive_delong(y, first, second)
    difference, variance, p_value = delong_paired(y, first, second)
    expected = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert difference == pytest.approx(areas[0] - areas[1], abs=1e-14)
    assert variance == pytest.approx(expected, rel=1e-10)
    assert p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / math.sqrt(expected)))
    assert delong_paired(y, second, first) == pytest.approx((-difference, variance, p_value))


def test_paired_delong_without_variance():
    y, p = simulated(50, 1)
    assert delong_paired(y, p, logit(p)) == (0.0, 0.0, 1.0)
    difference, variance, p_value = delong_paired([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (difference, variance) == (1.0, 0.0)
    assert math.isnan(p_value)
    assert math.isnan(delong_paired([0, 0, 1], [1, 2, 3], [3, 2, 1])[2])


@pytest.mark.parametrize(("n", "grid", "threshold"), [(80, None, 0.5), (80, 6, 0.5), (12, 4, 0.9), (5, 2, 0.5)])
def test_bootstrap_agrees_with_a_plain_loop(n, grid, threshold):
    y, p = simulated(n, 3, grid=grid)
    order = np.lexsort((y, p))[::-1]
    draws = np.random.Generator(np.random.PCG64(7)).integers(0, n, size=(200, n))
    average_precision, f1 = [], []
    for row in draws:
        weight = np.bincount(row, minlength=n).astype(float)
        labels, scores, called = y[order], p[order], p[order] >= threshold
        drawn = labels[weight > 0]
        if 0 < drawn.sum() < drawn.size:
            average_precision.append(sk.average_precision_score(labels, scores, sample_weight=weight))
        if (labels | called)[weight > 0].any():
            f1.append(sk.f1_score(labels, called, sample_weight=weight, zero_division=0))
    found = evaluate(y, p, threshold, seed=7, resamples=200).metrics
    for name, samples in [("auprc", average_precision), ("f1", f1)]:
        low, high = np.percentile(samples, [2.5, 97.5])
        expected = (None, None) if low == high else (pytest.approx(low), pytest.approx(high))
        assert (found[name].low, found[name].high) == expected


def test_bootstrap_leaves_out_samples_of_one_class():
    y, p = (
        np.array([1, 1, 1, 0]),
        np.array([0.2, 0.3, 0.4, 0.9]),
    )  # the only non-event on top: half of all draws lack it
    draws = np.random.Generator(np.random.PCG64(0)).integers(0, 4, size=(400, 4))
    samples = []
    for row in draws:
        weight = np.bincount(row, minlength=4)
        if 0 < weight[0] < 4:
            samples.append(sk.average_precision_score(y[::-1], p[::-1], sample_weight=weight))
    assert len(samples) < 300
    found = evaluate(y, p, 0.5, resamples=400).metrics["auprc"]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])))


def test_bootstrap_does_not_depend_on_how_it_is_cut_up(monkeypatch):
    y, p = simulated(90, 2, grid=30)
    whole = evaluate(y, p, 0.4)
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 90 * 7)
    assert evaluate(y, p, 0.4) == whole


def test_seed_and_resamples_reach_the_bootstrap():
    y, p = simulated(90, 2)
    assert evaluate(y, p, 0.4) == evaluate(y, p, 0.4, seed=0, resamples=1000)
    assert evaluate(y, p, 0.4, seed=1).metrics["auprc"] != evaluate(y, p, 0.4).metrics["auprc"]
    bare = evaluate(y, p, 0.4, resamples=0).metrics
    for name in ("auprc", "f1"):
        assert bare[name].value == evaluate(y, p, 0.4).metrics[name].value
        assert (bare[name].low, bare[name].high) == (None, None)


# What cannot be estimated


def test_nobody():
    result = evaluate([], [], 0.5)
    assert (result.n, result.events) == (0, 0)
    assert result.metrics == dict.fromkeys(METRICS, NOTHING)
    assert tuple(result.metrics) == METRICS


def test_one_patient():
    found = evaluate([1], [0.75], 0.5).metrics
    assert found["brier"] == Estimate(0.0625, None, None)
    assert found["accuracy"].value == found["recall"].value == found["precision"].value == found["f1"].value == 1.0
    assert found["specificity"] == NOTHING


@pytest.mark.parametrize("label", [0, 1])
def test_one_class(label):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate([label] * 30, np.linspace(0.05, 0.95, 30), 0.5).metrics
    for name in ("auroc", "auprc", "calibration_slope", "calibration_intercept"):
        assert found[name] == NOTHING
    assert found["accuracy"].value == 0.5
    assert found["recall" if label else "specificity"].value == 0.5
    assert found["specificity" if label else "recall"] == NOTHING
    assert found["precision"].value == label
    assert found["f1"].value == (pytest.approx(2 / 3) if label else 0.0)


def test_nothing_predicted_positive():
    found = evaluate([1, 0, 0], [0.3, 0.2, 0.1], 0.9).metrics
    assert found["precision"] == NOTHING
    assert found["f1"] == Estimate(0.0, None, None)  # every sample says 0: no interval
    assert evaluate([0, 0, 0], [0.3, 0.2, 0.1], 0.9).metrics["f1"] == NOTHING


@pytest.mark.parametrize(("events", "others"), [(9, 10), (10, 9), (10, 10), (9, 9)])
def test_auroc_interval_needs_enough_of_each_class(events, others):
    y = np.repeat([1, 0], [events, others])
    p = np.random.default_rng(0).random(events + others)
    found = evaluate(y, p, 0.5).metrics["auroc"]
    assert found.value == pytest.approx(sk.roc_auc_score(y, p))
    assert MIN_PER_CLASS == 10
    assert (found.low is not None) == (found.high is not None) == (events == others == 10)


def test_perfect_model_gets_no_false_certainty():
    y = np.repeat([1, 0], 20)
    found = evaluate(y, y.astype(float), 0.5).metrics
    for name, value in [("auroc", 1.0), ("auprc", 1.0), ("brier", 0.0), ("f1", 1.0)]:
        assert found[name] == Estimate(value, None, None)
    assert found["recall"].high == 1.0
    assert found["recall"].low == pytest.approx(20 / (20 + Z**2))


@pytest.mark.parametrize(
    "scores",
    [
        [0.6, 0.7, 0.8, 0.1, 0.2, 0.3],  # events above
        [0.1, 0.2, 0.3, 0.6, 0.7, 0.8],  # events below
        [0.5, 0.7, 0.8, 0.5, 0.2, 0.3],  # one tie at the border
        [0.5, 0.3, 0.2, 0.5, 0.7, 0.8],
        [0.5] * 6,
        [0.0, 0.0, 0.0, 1e-13, 1e-15, 0.0],  # one score once clipped
    ],
)
def test_slope_is_not_estimated_where_the_likelihood_has_no_maximum(scores):
    found = evaluate([1, 1, 1, 0, 0, 0], scores, 0.5).metrics
    assert found["calibration_slope"] == NOTHING
    assert found["calibration_intercept"].value is not None


def test_a_slope_beyond_every_meaning_is_not_given():
    """Scores that differ in the eleventh decimal: the slope is P's over 4e-11, and a reply with more than 1e9 is set aside."""
    x = 4 * P
    expected = sm.Logit(Y, sm.add_constant(x)).fit(disp=0).params[1] / 1e-11
    assert expected > RANGES["calibration_slope"][1]
    assert evaluate(Y, 0.5 + 1e-11 * P, 0.5, resamples=0).metrics["calibration_slope"] == NOTHING
    near = evaluate(Y, 0.5 + 1e-8 * P, 0.5, resamples=0).metrics["calibration_slope"]
    assert near.value == pytest.approx(expected / 1e3, rel=1e-6)


def test_slope_with_one_pair_out_of_order_is_finite():
    y = np.repeat([1, 0], 50)
    p = np.concatenate([np.linspace(0.6, 0.99, 50), np.linspace(0.01, 0.4, 50)])
    p[[49, 50]] = 0.45, 0.55
    found = evaluate(y, p, 0.5, resamples=0).metrics["calibration_slope"]
    reference = sm.Logit(y, sm.add_constant(logit(p))).fit(disp=0, tol=1e-14, maxiter=200)
    assert found.value == pytest.approx(reference.params[1], rel=1e-6)


def test_confident_and_wrong():
    y = np.repeat([1, 0, 1, 0], [20, 10, 5, 20])
    p = np.repeat([0.0, 1.0, 1.0, 0.0], [20, 10, 5, 20])
    found = evaluate(y, p, 0.5).metrics
    wide = float(logit(1 - 1e-12) - logit(1e-12))
    slope = (math.log(5 / 10) - math.log(20 / 20)) / wide
    error = math.sqrt(1 / 5 + 1 / 10 + 1 / 20 + 1 / 20) / wide
    assert found["calibration_slope"].value == pytest.approx(slope, rel=1e-9)
    assert found["calibration_slope"].high == pytest.approx(slope + Z * error, rel=1e-6)
    assert found["brier"].value == pytest.approx(30 / 55)


def test_newton_survives_a_step_that_overshoots():
    y = np.repeat([1, 0], [30, 20])
    p = np.repeat([1.0, 0.0], [25, 25])
    found = evaluate(y, p, 0.5, resamples=0).metrics["calibration_intercept"]
    extra = found.value  # expected events: 25 (1 - tiny) + 25 expit(extra - 27.6) = 30
    x = logit(np.clip(p, 1e-12, 1 - 1e-12))
    assert expit(x + extra).sum() == pytest.approx(30, abs=1e-6)
    assert found.low < extra < found.high


def test_delong_with_a_single_event_has_no_variance():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        area, variance = delong([1, 0, 0], [0.5, 0.6, 0.4])
    assert area == 0.5
    assert math.isnan(variance)


@pytest.mark.parametrize(
    ("labels", "probabilities", "threshold", "message"),
    [
        ([0, 1], [0.5], 0.5, "equally long"),
        ([[0, 1]], [[0.5, 0.5]], 0.5, "one-dimensional"),
        ([0, 2], [0.5, 0.5], 0.5, "labels must be 0 or 1"),
        ([0, math.nan], [0.5, 0.5], 0.5, "labels must be 0 or 1"),
        ([0, 1], [0.5, math.nan], 0.5, "finite"),
        ([0, 1], [0.5, math.inf], 0.5, "finite"),
        ([0, 1], [0.5, 1.0000001], 0.5, r"within \[0, 1\]"),
        ([0, 1], [-1e-9, 1.0], 0.5, r"within \[0, 1\]"),
        ([0, 1], [0.5, 0.5], math.nan, "threshold"),
    ],
)
def test_malformed_input_is_refused(labels, probabilities, threshold, message):
    with pytest.raises(ValueError, match=message):
        evaluate(labels, probabilities, threshold)


def test_negative_resamples_are_refused():
    with pytest.raises(ValueError, match="resamples"):
        evaluate([0, 1], [0.5, 0.5], 0.5, resamples=-1)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_delong_needs_both_classes(labels):
    with pytest.raises(ValueError, match="at least one event"):
        delong(labels, [0.5] * len(labels))


# Youden's threshold


def test_youden_by_hand():
    assert youden_threshold([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.5]) == pytest.approx(0.3)
    # J is 1/3 between 0.1 and 0.4, between 0.4 and 0.7, and between 0.8 and 0.9: the lowest
    assert youden_threshold(Y, P) == pytest.approx(0.25)
    # uneven classes: recall 1, specificity 2/4 (J = .5) beats recall 1/2, specificity 3/4 (J = .25)
    assert youden_threshold([0, 0, 1, 0, 1, 0], [0.1, 0.2, 0.4, 0.5, 0.7, 0.8]) == pytest.approx(0.3)


def test_f2_by_hand_and_by_scikit_learn():
    """F2 of a cut at .25: tp 3, fn 0, fp 2, 15 / 17; at .4 / .7: tp 2, fp 1, fn 1, 10 / 15; Youden would take either."""
    assert f2_threshold(Y, P) == pytest.approx(0.25)
    y, p = simulated(300, 5, prevalence=0.2, grid=40)
    cuts = (np.unique(p)[1:] + np.unique(p)[:-1]) / 2
    worth = [sk.fbeta_score(y, p >= cut, beta=2) for cut in cuts]
    assert f2_threshold(y, p) == pytest.approx(cuts[int(np.argmax(worth))])
    assert f2_threshold(y, p) < youden_threshold(y, p), "recall counts more"
    assert f2_threshold([1, 1], [0.1, 0.2]) is None


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([1, 1], [0.1, 0.2]), ([0, 0], [0.1, 0.2]), ([0, 1], [1, 1])])
def test_youden_needs_two_classes_and_two_scores(labels, scores):
    assert youden_threshold(labels, scores) is None


def test_youden_between_neighbouring_floats():
    low = 0.5
    high = math.nextafter(low, 1)
    assert youden_threshold([0, 1], [low, high]) == high
    assert youden_threshold([0, 1], [0.0, 5e-324]) == 5e-324


# Properties

SCORE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))
PATIENTS = st.lists(st.tuples(st.integers(0, 1), SCORE), min_size=1, max_size=40)
TWO_CLASSES = PATIENTS.filter(lambda rows: 0 < sum(y for y, _ in rows) < len(rows))


@settings(deadline=None)
@given(PATIENTS, st.randoms(use_true_random=False), st.floats(0, 1))
def test_the_order_of_patients_changes_nothing(rows, random, threshold):
    y, p = map(np.array, zip(*rows, strict=True))
    mixed = list(range(len(rows)))
    random.shuffle(mixed)
    for limits in (np.full(y.size, threshold), np.where(np.arange(y.size) % 2, threshold, 1 - threshold)):
        first, second = evaluate(y, p, limits, resamples=20), evaluate(y[mixed], p[mixed], limits[mixed], resamples=20)
        assert repr(first) == repr(second)
    assert youden_threshold(y, p) == youden_threshold(y[mixed], p[mixed])
    if 0 < y.sum() < y.size:
        assert repr(delong(y, p)) == repr(delong(y[mixed], p[mixed]))
        assert repr(delong_paired(y, p, p**2)) == repr(delong_paired(y[mixed], p[mixed], p[mixed] ** 2))


@settings(deadline=None)
@given(PATIENTS, st.floats(0, 1))
def test_every_value_and_interval_is_possible(rows, threshold):
    y, p = map(np.array, zip(*rows, strict=True))
    result = evaluate(y, p, threshold, resamples=20)
    assert (result.n, result.events) == (y.size, y.sum())
    assert tuple(result.metrics) == METRICS
    for name, estimate in result.metrics.items():
        assert (estimate.low is None) == (estimate.high is None)
        if estimate.value is None:
            assert estimate.low is None
            continue
        lowest, highest = RANGES[name]
        assert lowest <= estimate.value <= highest
        assert math.isfinite(estimate.value)
        if estimate.low is not None and estimate.high is not None:
            assert lowest <= estimate.low < estimate.high <= highest
            if name not in ("auprc", "scaled_brier", "f1", "f2"):  # percentiles of a bootstrap
                assert estimate.low - 1e-12 <= estimate.value <= estimate.high + 1e-12


@settings(deadline=None)
@given(TWO_CLASSES)
def test_any_increasing_scale_gives_the_same_area(rows):
    y, p = map(np.array, zip(*rows, strict=True))
    _, rank = np.unique(p, return_inverse=True)
    assert repr(delong(y, p)) == repr(delong(y, rank)) == repr(delong(y, 10.0 * rank - 3))
    assert delong(y, -p)[0] == pytest.approx(1 - delong(y, p)[0])
    assert delong(1 - y, -p)[0] == pytest.approx(delong(y, p)[0])


@settings(deadline=None)
@given(TWO_CLASSES)
def test_area_and_variance_with_ties(rows):
    y, p = map(np.array, zip(*rows, strict=True))
    area, variance = delong(y, p)
    pairs = [(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]]
    assert area == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    if 1 < y.sum() < y.size - 1:
        assert variance == pytest.approx(naive_delong(y, p)[1][0, 0], abs=1e-12)


@settings(deadline=None)
@given(TWO_CLASSES)
def test_youden_is_the_best_cut_between_scores(rows):
    y, p = map(np.array, zip(*rows, strict=True))
    found = youden_threshold(y, p)
    distinct = np.unique(p)
    if distinct.size == 1:
        assert found is None
        return

    def index(threshold):
        return int((p[y == 1] >= threshold).sum()) * (y == 0).sum() + int((p[y == 0] < threshold).sum()) * y.sum()

    every = [index(threshold) for threshold in distinct[1:]]
    assert index(found) == max(every)
    best = every.index(max(every))  # the lowest
    assert distinct[best] < found <= distinct[best + 1]
    assert found == pytest.approx((distinct[best] + distinct[best + 1]) / 2)


# Coverage: 95 % intervals should hold the truth about 19 times in 20


def test_intervals_cover_the_truth():
    generator = np.random.default_rng(20)
    repeats, n, slope, intercept = 400, 200, 0.7, 0.4
    big = generator.normal(size=400_000)
    chance = expit(intercept + slope * big)
    label = generator.random(big.size) < chance
    truth = {
        "auroc": sk.roc_auc_score(label, big),
        "auprc": sk.average_precision_score(label, big),
        "brier": np.mean((label - expit(big)) ** 2),
        "calibration_slope": slope,
        "recall": np.mean(expit(big[label]) >= 0.5),
        "f1": sk.f1_score(label, big >= 0),
    }
    held = dict.fromkeys(truth, 0)
    for _ in range(repeats):
        x = generator.normal(size=n)
        y = generator.random(n) < expit(intercept + slope * x)
        found = evaluate(y, expit(x), 0.5, resamples=500).metrics
        for name, value in truth.items():
            held[name] += found[name].low <= value <= found[name].high
    for name, count in held.items():
        assert (0.89 if name == "auprc" else 0.91) <= count / repeats <= 0.985, held  # percentiles lie high for auprc


def test_calibration_in_the_large_covers_the_truth():
    generator = np.random.default_rng(21)
    held = 0
    for _ in range(400):
        x = generator.normal(size=200)
        y = generator.random(200) < expit(0.4 + x)
        found = evaluate(y, expit(x), 0.5, resamples=0).metrics["calibration_intercept"]
        held += found.low <= 0.4 <= found.high
    assert 0.91 <= held / 400 <= 0.985
