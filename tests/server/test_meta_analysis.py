"""Random-effects meta-analysis against metafor's figures for the BCG trials, PyMARE, closed forms, contrasts."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymare.estimators import VarianceBasedLikelihoodEstimator
from scipy import stats
from scipy.linalg import null_space
from scipy.special import expit, logit

from ich_server.meta_analysis import Summary, random_effects, summarise_auroc, summarise_ratio

Z = 1.959963984540054

# Thirteen trials of the BCG vaccine (Colditz et al., JAMA 1994): tuberculosis yes and no, vaccinated then control.
BCG = np.array(
    [
        [4, 119, 11, 128],
        [6, 300, 29, 274],
        [3, 228, 11, 209],
        [62, 13536, 248, 12619],
        [33, 5036, 47, 5761],
        [180, 1361, 372, 1079],
        [8, 2537, 10, 619],
        [505, 87886, 499, 87892],
        [29, 7470, 45, 7232],
        [17, 1699, 65, 1600],
        [186, 50448, 141, 27197],
        [5, 2493, 3, 2338],
        [27, 16886, 29, 17825],
    ],
    dtype=float,
)
BY_YEAR = [0, 1, 5, 2, 9, 8, 11, 4, 6, 10, 12, 3, 7]


def bcg():
    """Log risk ratios and their variances."""
    a, b, c, d = BCG.T
    return np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def pymare_tau2(y, v):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = VarianceBasedLikelihoodEstimator(method="REML").fit(
            np.asarray(y)[:, None], np.asarray(v)[:, None], np.ones((len(y), 1))
        )
    return float(np.squeeze(fit.params_["tau2"]))


def contrast_likelihood(tau2, y, v):
    """Restricted log-likelihood, but for a constant, as the likelihood of k - 1 contrasts that are free of the mean."""
    basis = null_space(np.ones((1, len(y))))
    return stats.multivariate_normal.logpdf(basis.T @ y, cov=basis.T @ np.diag(v + tau2) @ basis)


def test_bcg_as_metafor_reports_it():
    result = random_effects(*bcg())
    assert result.k == 13
    assert result.tau is not None
    assert result.tau**2 == pytest.approx(0.3132, abs=5e-5)
    assert result.estimate == pytest.approx(-0.7145, abs=5e-5)
    assert result.i2 == pytest.approx(0.9222, abs=5e-5)


@pytest.mark.parametrize(
    ("k", "estimate", "low", "high", "tau2"),
    [  # metafor, rma(yi, vi, method="REML", test="knha") of the first k trials by year
        (1, -0.889311333920205, -2.00766747907616, 0.229044811235751, None),
        (2, -1.32500344224488, -5.60470865844108, 2.95470177395133, 0.0),
        (3, -0.972079931812824, -1.95119919485508, 0.00703933122943246, 0.087206792838218),
        (7, -0.901251100272772, -1.40314344022821, -0.399358760317336, 0.120459721860583),
        (13, -0.714532342158211, -1.10844371368566, -0.320620970630764, 0.313243258137274),
    ],
)
def test_bcg_cumulated_as_metafor_computes_it(k, estimate, low, high, tau2):
    y, v = bcg()
    result = random_effects(y[BY_YEAR[:k]], v[BY_YEAR[:k]])
    assert (result.estimate, result.low, result.high) == pytest.approx((estimate, low, high), abs=1e-8)
    assert (None if result.tau is None else result.tau**2) == (None if tau2 is None else pytest.approx(tau2, abs=1e-8))


@pytest.mark.parametrize("k", [2, 3, 5, 12, 49])
@pytest.mark.parametrize("tau", [0.0, 0.2, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_tau2_agrees_with_pymare(k, tau, seed):
    generator = np.random.default_rng(1000 * seed + k)
    v = generator.uniform(0.01, 0.3, k)
    y = generator.normal(0.8, np.sqrt(v + tau**2))
    result = random_effects(y, v)
    assert result.tau is not None
    assert result.tau**2 == pytest.approx(pymare_tau2(y, v), rel=1e-6, abs=1e-6)


def test_intervals_by_their_formulas():
    y, v = bcg()
    result = random_effects(y, v)
    assert result.tau is not None
    w = 1 / (v + result.tau**2)
    mean = np.average(y, weights=w)
    error = math.sqrt(np.average((y - mean) ** 2, weights=w) / 12)
    reach = math.sqrt(result.tau**2 + error**2)
    assert result.estimate == pytest.approx(mean)
    assert result.high - result.estimate == pytest.approx(stats.t.ppf(0.975, 12) * error)
    assert result.estimate - result.low == pytest.approx(stats.t.ppf(0.975, 12) * error)
    assert result.prediction_high == pytest.approx(mean + stats.t.ppf(0.975, 11) * reach)
    assert result.prediction_low == pytest.approx(mean - stats.t.ppf(0.975, 11) * reach)
    u = 1 / v
    typical = 12 * u.sum() / (u.sum() ** 2 - (u**2).sum())
    assert result.i2 == pytest.approx(result.tau**2 / (result.tau**2 + typical))


def test_equal_variances_have_a_closed_form():
    y = np.array([0.1, 0.4, 0.9, 1.8, 2.3])
    spread = y.var(ddof=1)
    result = random_effects(y, np.full(5, 0.2))
    assert result.estimate == pytest.approx(1.1)
    assert result.tau == pytest.approx(math.sqrt(spread - 0.2))
    assert result.i2 == pytest.approx((spread - 0.2) / spread)
    assert result.high == pytest.approx(1.1 + stats.t.ppf(0.975, 4) * math.sqrt(spread / 5))
    assert result.prediction_high == pytest.approx(1.1 + stats.t.ppf(0.975, 3) * math.sqrt(spread - 0.2 + spread / 5))


def test_effects_closer_than_their_errors_have_no_heterogeneity_and_a_short_interval():
    y = np.array([1.0, 1.1, 0.9, 1.0])
    result = random_effects(y, np.full(4, 0.5))
    assert (result.tau, result.i2) == (0.0, 0.0)
    assert result.high == pytest.approx(1 + stats.t.ppf(0.975, 3) * y.std(ddof=1) / 2)  # plain: not widened
    assert random_effects([0.5] * 4, [0.1, 0.2, 0.3, 0.4]) == Summary(4, 0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5)


def test_one_hospital_speaks_for_itself():
    half = Z * 0.2
    expected = Summary(1, 0.7, pytest.approx(0.7 - half), pytest.approx(0.7 + half), None, None, None, None)
    assert random_effects([0.7], [0.04]) == expected


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_prediction_interval_needs_four_hospitals(k):
    result = random_effects([0.1, 0.9, 0.4, 1.3, 0.6][:k], [0.01] * k)
    assert result.tau is not None
    assert (result.prediction_low is None) == (result.prediction_high is None) == (k < 4)


@pytest.mark.parametrize(
    ("y", "v", "lower", "upper", "expected"),
    [
        ([-0.1, 4.06, 0.01], [0.001, 1.0, 0.003], 0.006, 4.6, "upper"),
        ([-7.6, 0.0, 0.1, 0.0], [5.0, 0.1, 0.003, 0.003], 0.0018, 7.0, "lower"),
    ],
)
def test_the_higher_of_two_peaks_is_found(y, v, lower, upper, expected):
    y, v = np.array(y), np.array(v)
    grid = np.geomspace(1e-5, 1e2, 1000)
    curve = np.array([contrast_likelihood(t, y, v) for t in grid])
    peaks = grid[1:-1][(curve[1:-1] > curve[:-2]) & (curve[1:-1] > curve[2:])]
    assert peaks == pytest.approx([lower, upper], rel=0.1)  # the example is one
    result = random_effects(y, v)
    assert result.tau is not None
    assert result.tau**2 == pytest.approx(lower if expected == "lower" else upper, rel=0.1)
    assert contrast_likelihood(result.tau**2, y, v) >= curve.max()


EFFECT = st.floats(-3, 3)
VARIANCE = st.floats(1e-3, 2)
STUDIES = st.lists(st.tuples(EFFECT, VARIANCE), min_size=2, max_size=8)


@settings(deadline=None, max_examples=60)
@given(STUDIES)
def test_tau2_has_the_highest_restricted_likelihood(rows):
    y, v = map(np.array, zip(*rows, strict=True))
    result = random_effects(y, v)
    assert result.tau is not None
    grid = np.concatenate([[0.0], np.geomspace(1e-5, 1e3, 300), result.tau**2 * np.array([0.99, 1.01])])
    best = max(contrast_likelihood(t, y, v) for t in grid)
    assert contrast_likelihood(result.tau**2, y, v) >= best - 1e-8


@settings(deadline=None)
@given(STUDIES)
def test_intervals_nest_and_values_are_possible(rows):
    y, v = map(np.array, zip(*rows, strict=True))
    result = random_effects(y, v)
    assert y.min() - 1e-9 <= result.estimate <= y.max() + 1e-9
    assert result.low <= result.estimate <= result.high
    assert result.tau is not None
    assert result.i2 is not None
    assert result.tau >= 0
    assert 0 <= result.i2 < 1
    if result.prediction_low is not None and result.prediction_high is not None:
        assert result.prediction_low <= result.low
        assert result.high <= result.prediction_high


@settings(deadline=None)
@given(STUDIES, st.floats(-5, 5), st.floats(0.01, 100))
def test_unit_and_origin_do_not_matter(rows, shift, unit):
    y, v = map(np.array, zip(*rows, strict=True))
    before = random_effects(y, v)
    after = random_effects(shift + unit * y, unit**2 * v)
    assert before.tau is not None
    assert after.tau is not None
    assume(before.tau > 1e-2)  # near 0 the root is ill-conditioned
    assert after.tau == pytest.approx(unit * before.tau, rel=1e-5)
    assert after.estimate == pytest.approx(shift + unit * before.estimate, rel=1e-6, abs=1e-6 * unit)
    assert after.high - after.low == pytest.approx(unit * (before.high - before.low), rel=1e-5, abs=1e-7 * unit)
    assert after.i2 == pytest.approx(before.i2, rel=1e-4)


@pytest.mark.parametrize(
    ("effects", "variances", "message"),
    [
        ([], [], "at least one"),
        ([1.0], [0.0], "positive"),
        ([1.0, 2.0], [0.1, -0.1], "positive"),
        ([1.0, 2.0], [0.1, math.nan], "positive"),
        ([1.0, 2.0], [0.1, math.inf], "positive"),
        ([1.0, math.nan], [0.1, 0.1], "effects must be finite"),
        ([1.0, 2.0], [0.1], "equally long"),
        ([[1.0, 2.0]], [[0.1, 0.1]], "one-dimensional"),
    ],
)
def test_malformed_input_is_refused(effects, variances, message):
    with pytest.raises(ValueError, match=message):
        random_effects(effects, variances)


# AUROC


def test_auroc_is_pooled_on_the_logit_scale():
    areas, variances = np.array([0.72, 0.81, 0.78, 0.69, 0.85]), np.array([4e-4, 9e-4, 2e-4, 1e-3, 6e-4])
    logits = random_effects(np.log(areas / (1 - areas)), variances / (areas * (1 - areas)) ** 2)
    pooled = summarise_auroc(areas, variances)
    assert (pooled.k, pooled.tau, pooled.i2) == (5, pytest.approx(logits.tau), pytest.approx(logits.i2))
    for name in ("estimate", "low", "high", "prediction_low", "prediction_high"):
        assert getattr(pooled, name) == pytest.approx(expit(getattr(logits, name)))


def test_auroc_of_one_hospital():
    pooled = summarise_auroc([0.8], [0.0016])
    half = Z * 0.04 / 0.16
    assert (pooled.estimate, pooled.low, pooled.high) == pytest.approx(
        (0.8, expit(logit(0.8) - half), expit(logit(0.8) + half))
    )
    assert (pooled.tau, pooled.i2, pooled.prediction_low, pooled.prediction_high) == (None, None, None, None)


@pytest.mark.parametrize(
    ("values", "variances", "message"),
    [
        ([], [], "at least one"),
        ([0.8, 1.0], [0.01, 0.01], "strictly between"),
        ([0.0, 0.8], [0.01, 0.01], "strictly between"),
        ([0.8, math.nan], [0.01, 0.01], "strictly between"),
        ([0.8, 0.7], [0.01, 0.0], "positive"),
        ([0.8, 0.7], [0.01], "equally long"),
    ],
)
def test_auroc_that_cannot_be_pooled_is_refused(values, variances, message):
    with pytest.raises(ValueError, match=message):
        summarise_auroc(values, variances)


# --- ratios -----------------------------------------------------------------------------------------------------------


def test_ratios_are_pooled_as_logarithms():
    """The BCG trials' risk ratios: metafor's 0.4894 (0.3441-0.6962 normal; Hartung-Knapp here), tau2 0.3132."""
    effects, variances = bcg()
    found = summarise_ratio(np.exp(effects), variances)
    plain = random_effects(effects, variances)
    assert found.estimate == pytest.approx(0.4894, abs=5e-5)
    assert found.tau**2 == pytest.approx(pymare_tau2(effects, variances), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((math.exp(plain.low), math.exp(plain.high)), rel=1e-12)
    assert (found.prediction_low, found.prediction_high) == pytest.approx(
        (math.exp(plain.prediction_low), math.exp(plain.prediction_high)), rel=1e-12
    )
    assert (found.k, found.i2) == (plain.k, plain.i2)


def test_a_ratio_of_nothing_cannot_be_pooled():
    with pytest.raises(ValueError, match="positive"):
        summarise_ratio([0.0, 1.2], [0.1, 0.1])
