"""Aggregations over hospitals: by hand, against the meta-analysis itself, and where numbers are missing."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import ttest_1samp

from ich_models.metrics import METRICS
from ich_server.meta_analysis import random_effects, summarise_auroc
from ich_server.results import Arm, Figure, Figures, Results, Z
from ich_server.summary import (
    POOLED_METRICS,
    Spread,
    compared,
    difference,
    estimate,
    hospitals_of,
    in_order,
    interval,
    main_arm,
    many,
    metric,
    natural,
    number,
    paired,
    pooled,
    same_patient_groups,
    spread,
    standard_error,
    values,
    with_few,
)

MakeResults = Callable[..., Results]


def figure(value: float | None, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value=value, low=low, high=high, per_seed=[value])


def figures(auroc: Figure, n: int = 100, events: int = 50) -> Figures:
    return Figures(n=n, events=events, **(dict.fromkeys(METRICS, figure(0.5)) | {"auroc": auroc}))


def arm(hospitals: dict[str, Figures]) -> Arm:
    return Arm(description="", hospitals=hospitals, pooled=None)


def with_arms(results: Results, arms: dict[str, Arm]) -> Results:
    return results.model_copy(update={"arms": arms})


# --- order ------------------------------------------------------------------------------------------------------------


def test_hospitals_stand_in_natural_order_whatever_their_figures() -> None:
    names = ["h10", "H2", "h1", "b", "10", "9", "h1a", ""]
    assert sorted(names, key=natural) == ["", "9", "10", "b", "h1", "h1a", "H2", "h10"]
    found = hospitals_of(arm({name: figures(figure(0.5 + place / 100)) for place, name in enumerate(names)}))
    assert list(found) == sorted(names, key=natural)


@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_names_can_be_put_in_one_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural) == sorted(backwards, key=natural)


def test_the_headline_is_loho_then_federated_then_any_arm(three: Results) -> None:
    arms = three.arms
    assert main_arm(three) == "loho"
    assert in_order(three) == ["loho", "pooled", "federated", "local"]
    without = with_arms(three, {name: arms[name] for name in ("local", "federated")})
    assert main_arm(without) == "federated"
    assert in_order(without) == ["federated", "local"]
    assert main_arm(with_arms(three, {"local": arms["local"]})) == "local"
    assert main_arm(with_arms(three, {"loho": arm({}), "local": arms["local"]})) == "local"
    assert main_arm(with_arms(three, {})) is None
    assert in_order(with_arms(three, {})) == []


# --- description ------------------------------------------------------------------------------------------------------


def test_spread_by_hand() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(5, 3.0, 2.0, 4.0, 1.0, 5.0)
    assert spread([0.25]) == Spread(1, 0.25, 0.25, 0.25, 0.25, 0.25)
    assert spread([]) is None


def test_values_leave_out_what_cannot_be_estimated() -> None:
    found = arm({"b": figures(figure(None)), "a": figures(figure(0.7)), "c": figures(figure(0.0))})
    assert values(found, "auroc") == {"a": 0.7, "c": 0.0}


def test_metric_knows_only_metrics(three: Results) -> None:
    with pytest.raises(KeyError):
        metric(three.arms["loho"].hospitals["north"], "n")


def test_few_counts_events_and_non_events() -> None:
    enough, events, others = (figures(figure(0.7), 300, count) for count in (100, 99, 201))
    assert with_few(arm({"z": events, "enough": enough, "a": others})) == ["a", "z"]


# --- random effects ---------------------------------------------------------------------------------------------------


def test_standard_error_comes_back_from_a_logit_interval() -> None:
    low, high = (float(expit(logit(0.8) + sign * Z * 0.2)) for sign in (-1, 1))
    assert standard_error("auroc", figure(0.8, low, high)) == pytest.approx(0.2, rel=1e-12)
    assert standard_error("calibration_slope", figure(1.0, 1 - Z * 0.1, 1 + Z * 0.1)) == pytest.approx(0.1, rel=1e-12)


def test_an_end_cut_at_one_leaves_the_other_half() -> None:
    low = float(expit(logit(0.95) - Z * 0.5))
    assert standard_error("auroc", figure(0.95, low, 1.0)) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(
    "found", [figure(None), figure(0.8), figure(1.0, 0.9, 1.0), figure(0.5, 0.0, 1.0), figure(0.5, 0.5, 0.5)]
)
def test_no_standard_error(found: Figure) -> None:
    assert standard_error("auroc", found) is None


def test_pooled_is_the_meta_analysis_of_the_hospitals_with_an_interval(many_hospitals: Results) -> None:
    loho = many_hospitals.arms["loho"]
    found = pooled(loho, "auroc")
    assert found.summary is not None
    assert (found.summary.k, found.without_interval, found.not_estimable) == (47, ("kleinstadt",), ("hospital-12",))
    aurocs = [loho.hospitals[name].auroc for name in found.weights]
    value, low, high = (np.array([getattr(each, end) for each in aurocs]) for end in ("value", "low", "high"))
    error = (logit(high) - logit(low)) / (2 * Z)
    expected = summarise_auroc(value, (error * value * (1 - value)) ** 2)
    assert found.summary.estimate == pytest.approx(expected.estimate, rel=1e-9)
    assert found.summary.prediction_low == pytest.approx(expected.prediction_low, rel=1e-9)
    assert expected.tau is not None
    weights = 1 / (error**2 + expected.tau**2)
    assert list(found.weights.values()) == pytest.approx(list(weights / weights.sum()), rel=1e-6)


def test_slope_and_intercept_are_pooled_as_they_are(many_hospitals: Results) -> None:
    loho = many_hospitals.arms["loho"]
    assert POOLED_METRICS == ("auroc", "observed_expected", "calibration_slope", "calibration_intercept")
    for name in POOLED_METRICS[2:]:
        found = pooled(loho, name)
        entered = [metric(loho.hospitals[each], name) for each in found.weights]
        errors = [((each.high or 0) - (each.low or 0)) / (2 * Z) for each in entered]
        expected = random_effects([each.value for each in entered], np.square(errors))
        assert found.summary is not None
        assert found.summary.estimate == pytest.approx(expected.estimate, rel=1e-9)


def test_a_hospital_with_under_ten_events_does_not_enter_even_with_an_interval() -> None:
    found = pooled(
        arm({"few": figures(figure(0.9, 0.8, 0.95), 100, 9), "most": figures(figure(0.9, 0.8, 0.95), 100, 91)}), "auroc"
    )
    assert found.summary is None
    assert found.weights == {}
    assert found.without_interval == ("few", "most")


def test_pooling_nothing() -> None:
    found = pooled(arm({"one": figures(figure(None), 100, 0)}), "auroc")
    assert (found.summary, found.weights, found.not_estimable) == (None, {}, ("one",))


# --- comparison -------------------------------------------------------------------------------------------------------


def test_paired_difference_is_a_paired_t(many_hospitals: Results) -> None:
    found = paired(many_hospitals, "pooled", "loho")
    assert found is not None
    ours, theirs = (values(many_hospitals.arms[name], "auroc") for name in ("pooled", "loho"))
    expected = ttest_1samp([ours[name] - theirs[name] for name in ours], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.mean == pytest.approx(np.mean(list(found.differences.values())), rel=1e-12)
    assert "hospital-12" not in found.differences
    assert found.same_patients


def test_paired_only_where_both_have_a_value(three: Results) -> None:
    first = arm({"a": figures(figure(0.8)), "b": figures(figure(None)), "c": figures(figure(0.7))})
    second = arm({"a": figures(figure(0.7)), "b": figures(figure(0.7)), "d": figures(figure(0.7))})
    results = with_arms(three, {"loho": second, "pooled": first, "local": arm({"d": figures(figure(0.6))})})
    found = paired(results, "pooled", "loho")
    assert found is not None
    assert found.differences == pytest.approx({"a": 0.1})
    assert (found.low, found.high) == (None, None)
    assert paired(results, "pooled", "local") is None


def test_each_arm_is_compared_with_the_federated_model_on_the_same_patients(three: Results) -> None:
    assert compared(three, "loho") is None
    against = {name: compared(three, name) for name in ("pooled", "federated", "local")}
    assert {name: found and (found.reference, found.same_patients) for name, found in against.items()} == {
        "pooled": ("loho", True),
        "federated": ("loho", False),
        "local": ("federated", True),
    }
    assert same_patient_groups(three) == [["loho", "pooled"], ["federated", "local"]]
    alone = with_arms(three, {name: three.arms[name] for name in ("loho", "local")})
    found = compared(alone, "local")
    assert found is not None
    assert (found.reference, found.same_patients) == ("loho", False)


# --- text -------------------------------------------------------------------------------------------------------------


def test_numbers_look_alike() -> None:
    assert estimate("auroc", 0.7761, 0.7409, 0.80849) == "0.776 (0.741–0.808)"
    assert estimate("auroc", 0.8, None, None) == "0.800"
    assert estimate("calibration_intercept", -0.001, -0.304, 0.2) == "0.00 (−0.30 to 0.20)"
    assert number("brier", None) == "–"
    assert interval("auroc", None, 0.9) == ""
    assert many(1, "hospital") == "1 hospital"
    assert many(8178, "patient") == "8,178 patients"


def test_differences_carry_their_sign(three: Results) -> None:
    first = arm({name: figures(figure(value)) for name, value in (("a", 0.70), ("b", 0.71), ("c", 0.72))})
    second = arm({name: figures(figure(0.72)) for name in "abc"})
    found = paired(with_arms(three, {"loho": second, "pooled": first}), "pooled", "loho")
    assert found is not None
    assert difference(found) == "−0.010 (−0.035 to +0.015)"


def test_made_up_results_are_valid(build: MakeResults) -> None:
    results = build({"a": 30, "b": 30}, seeds=(1, 2), one_class=["b"])
    assert Results.model_validate_json(results.model_dump_json(by_alias=True)) == results
