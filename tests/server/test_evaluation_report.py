"""The report's evaluation sections, of a real study in process: every number is the results', every picture has its table."""

import re
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from pages import HTML, parse, table, texts
from scipy import stats
from scipy.special import expit, logit

from ich_client.hospital import Limits
from ich_client.tables import Hospital
from ich_deploy.arms import compare, cross_site
from ich_models.batch import Patients
from ich_models.curves import net_benefit
from ich_server import group_summaries
from ich_server.meta_analysis import random_effects
from ich_server.report import evaluation_plots as plots
from ich_server.report.page import render
from ich_server.results import (
    NO_FIGURE,
    Arm,
    Bin,
    Decision,
    Figure,
    Results,
    Subgroup,
    answered,
    assemble,
    read,
    write,
)
from ich_server.summary import number, pooled

RECIPE = {"epochs": 2, "batch": 16, "optimizer": small.SGD}
SIZES = {"east": 150, "north": 240, "south": 180, "west": 120}


def member(name: str, patients: int) -> Hospital:
    generator = np.random.default_rng([*name.encode()])
    x = generator.normal(size=(patients, 3))
    labels = (generator.random(patients) < 1 / (1 + np.exp(-1.5 * x[:, 0] + x[:, 1]))).astype(np.int64)
    groups = {"sex": generator.integers(0, 2, patients), "a": (x[:, 0] > 1).astype(np.int64)}
    groups["sex"][:4] = 2
    ids = tuple(f"{name}-{n}" for n in range(patients))
    return Hospital(name, Patients(ids, x, labels, groups=groups), Limits(small_cells=0), {}, ())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Four hospitals, k = 10, with everything that this part of the report knows."""
    number_of = {"type": "number", "known_at": "admission"}
    settings = small.federation(
        table={
            "variables": {
                **dict.fromkeys("abc", number_of),
                "mrs": {"type": "integer", "known_at": "90 days"},
                "sex": {"type": "category", "levels": ["female", "male"]},
            }
        },
        evaluation={
            "folds": 2,
            "small_cells": 10,
            "subgroups": ["sex", {"variable": "a", "cut": [1]}],
            "recalibrate": "slope",
            "cross_site": True,
            "comparisons": {"local": RECIPE, "pooled": RECIPE, "tabular": RECIPE},
        },
    )
    members = [member(name, size) for name, size in SIZES.items()]
    folder = tmp_path_factory.mktemp("study")
    found = small.study(settings, members, folder)
    plan = small.Plan(settings, 42)
    sites = small.sites(plan, members, folder)
    arms = dict(compare(plan, sites, found))
    recipe = settings.evaluation.comparisons.local
    assert recipe is not None
    return assemble(settings, [42], [found], [arms], [cross_site(plan, sites, recipe, arms["local"])])


# --- the page ---------------------------------------------------------------------------------------------------------

SECTIONS = ("calibration", "decisions", "subgroups", "differences", "cross-site", "recalibration", "drift")


def test_every_section_is_there_with_a_table(study: Results) -> None:
    tree = parse(render(study))
    sections = {each.get("aria-labelledby"): each for each in tree.iter(f"{HTML}section")}
    assert set(SECTIONS) <= set(sections)
    for name in SECTIONS:
        assert list(sections[name].iter(f"{HTML}table")), name
    for name in ("calibration", "decisions", "subgroups", "drift"):
        (picture,) = (each for each in sections[name].iter() if str(each.tag).endswith("}svg"))
        assert picture.get("role") == "img"
        assert picture.get("aria-label")


def test_the_page_is_valid_and_asks_for_nothing(study: Results) -> None:
    page = render(study)
    parse(page)
    plain = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page)
    assert not re.search(r"https?:|@import|url\((?!#)", plain)
    ids = re.findall(r'<[^>]* id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_it_is_the_same_page_from_the_file(study: Results, tmp_path: Path) -> None:
    write(study, tmp_path)
    assert render(read(tmp_path / "results.json")) == render(study)


def test_results_without_any_of_it_have_no_such_section(build: Callable[..., Results]) -> None:
    page = render(build(arms=["loho"]))
    assert not any(f'aria-labelledby="{name}"' in page for name in SECTIONS)


def test_net_benefit_is_that_of_the_hospitals_that_tell_it(study: Results) -> None:
    """k = 10: a simulation's curve is a deployment's."""
    loho = study.arms["loho"]
    page = parse(render(study))
    rows = table(page, "Net benefit by threshold")
    deployed = study.model_copy(update={"arms": {"loho": loho.model_copy(update={"pooled": None})}})
    assert {head: cells[:4] for head, cells in rows.items()} == table(
        parse(render(deployed)), "Net benefit by threshold"
    )
    assert "Points are not joined, since they are of different hospitals." in texts(page)
    assert "at each threshold of the hospitals that tell it" in render(study)
    pooled_data = study.arms["pooled"].hospitals
    for head, cells in rows.items():
        told = {
            name: one
            for name, found in loho.hospitals.items()
            for one in found.decisions[0]
            if f"{one.threshold:g}" == head
        }
        patients = sum(loho.hospitals[name].n for name in told)
        tp, fp = sum(one.true_positives for one in told.values()), sum(one.false_positives for one in told.values())
        assert cells[:2] == [str(len(told)), f"{patients:,}"]
        assert cells[3] == number("auroc_difference", net_benefit(tp, fp, patients, float(head)))
        for name, one in told.items():
            n = loho.hospitals[name].n
            assert one.net_benefit == net_benefit(one.true_positives, one.false_positives, n, one.threshold)
        others = {
            name for name, found in pooled_data.items() if float(head) in {one.threshold for one in found.decisions[0]}
        }
        assert (cells[4] == "–") is (others != set(told)), "the other arm's, of the same hospitals or not at all"


def test_hospitals_counts_add_up_to_all_patients_in_one_place(tmp_path: Path) -> None:
    """k = 0: what the hospitals tell, summed, is what the simulation finds of all patients together."""
    settings = small.federation(evaluation={"threshold": 0.5})
    members = [member(name, size) for name, size in SIZES.items()]
    members = [replace(each, patients=replace(each.patients, groups={})) for each in members]
    found = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    arms = dict(compare(plan, small.sites(plan, members, tmp_path), found))
    results = assemble(settings, [42], [found], [arms])
    loho = results.arms["loho"]
    assert loho.pooled is not None
    told = group_summaries.decisions(loho.model_copy(update={"pooled": None}))
    together = group_summaries.decisions(loho)
    assert len(told) == len(together) == 10
    for one, whole in zip(told, together, strict=True):
        assert (one.hospitals, one.patients) == (tuple(SIZES), sum(SIZES.values()))
        assert (one.model, one.everybody) == pytest.approx((whole.model, whole.everybody), abs=1e-12)
    n = sum(figures.n for figures in loho.hospitals.values())
    brier = sum(figures.n * (figures.brier.value or 0) for figures in loho.hospitals.values()) / n
    expected = sum((f.events or 0) / (f.observed_expected.value or 1) for f in loho.hospitals.values())
    events = sum(figures.events or 0 for figures in loho.hospitals.values())
    assert (n, events) == (loho.pooled.n, loho.pooled.events)
    assert brier == pytest.approx(loho.pooled.brier.value, abs=1e-12)
    assert events / expected == pytest.approx(loho.pooled.observed_expected.value, abs=1e-12)


def told_bins(*groups: tuple[int, int, float]) -> list[list[Bin]]:
    return [[Bin(patients=patients, events=events, mean=mean) for patients, events, mean in groups]]


def binned(build: Callable[..., Results], bins: dict[str, list[list[Bin]]]) -> Results:
    """Made-up results with these bins in their one arm."""
    found = build(dict.fromkeys(bins, 40), arms=["loho"])
    loho = found.arms["loho"]
    hospitals = {name: loho.hospitals[name].model_copy(update={"bins": told}) for name, told in bins.items()}
    return found.model_copy(update={"arms": {"loho": loho.model_copy(update={"hospitals": hospitals, "pooled": None})}})


def test_joined_bins_hold_the_patients_of_who_tells_enough(study: Results) -> None:
    loho = study.arms["loho"]
    found = group_summaries.calibration(loho)
    enough = [name for name, one in loho.hospitals.items() if len(one.bins[0]) >= 3]
    assert (list(found.joined), list(found.too_few)) == (enough, [name for name in SIZES if name not in enough])
    assert sum(one.patients for one in found.groups) == pytest.approx(sum(SIZES[name] for name in enough))
    events = sum(one.patients * one.observed for one in found.groups)
    assert events == pytest.approx(sum(loho.hospitals[name].events or 0 for name in enough))


def test_bins_of_two_hospitals_join_to_ten_of_equal_count(build: Callable[..., Results]) -> None:
    """Twenty bins of 10 patients: east's at .05, .15 ... .95 with 0, 1 ... 9 events, west's at .06, .16 ... .96 with one more."""
    east = told_bins(*((10, place, 0.05 + place / 10) for place in range(10)))
    west = told_bins(*((10, place + 1, 0.06 + place / 10) for place in range(10)))
    results = binned(build, {"east": east, "west": west})
    groups = group_summaries.calibration(results.arms["loho"]).groups
    assert [one.patients for one in groups] == [20] * 10
    assert [one.mean for one in groups] == pytest.approx([0.055 + place / 10 for place in range(10)])
    assert [one.observed for one in groups] == pytest.approx([0.05 + place / 10 for place in range(10)])
    wilson = stats.binomtest(1, 20).proportion_ci(method="wilson")
    assert (groups[0].low, groups[0].high) == pytest.approx((wilson.low, wilson.high))
    rows = table(parse(render(results)), "Calibration of the patients of 2 hospitals, in groups")
    assert rows["0.055"][1] == "−0.005", "fewer than predicted: observed minus predicted is negative"
    assert rows["0.955"][1:] == ["−0.005", "20"]


def test_two_seeds_are_the_same_patients_twice_and_not_twice_the_patients(build: Callable[..., Results]) -> None:
    """Ten groups of 20 with their Wilson intervals, as one seed gives them. Whoever tells two bins with one seed has no part."""
    east = told_bins(*((10, place, 0.05 + place / 10) for place in range(10)))
    west = told_bins(*((10, place + 1, 0.06 + place / 10) for place in range(10)))
    once = binned(build, {"east": east, "west": west}).arms["loho"]
    twice = binned(
        build, {"east": east * 2, "west": west * 2, "north": [*east, *told_bins((50, 5, 0.3), (50, 20, 0.7))]}
    )
    found = group_summaries.calibration(twice.arms["loho"])
    assert (found.joined, found.too_few) == (("east", "west"), ("north",))
    for one, same in zip(found.groups, group_summaries.calibration(once).groups, strict=True):
        assert astuple(one) == pytest.approx(astuple(same))


def test_a_decision_curve_is_a_mean_over_the_seeds(build: Callable[..., Results]) -> None:
    """Of 100 patients 40 with the event, 30 and 20 of them and 30 and 10 of the others are treated from 0.1 on: 25/100 - 20/100 / 9.
    From 0.2 on one seed alone tells. North tells nothing of 0.1, and west withholds its events."""

    def curve(*points: tuple[float, int, int]) -> list[Decision]:
        return [
            Decision(threshold=limit, true_positives=tp, false_positives=fp, net_benefit=0) for limit, tp, fp in points
        ]

    loho = build(dict.fromkeys(("east", "north", "west"), 40), arms=["loho"]).arms["loho"]
    two = [curve((0.1, 30, 30), (0.2, 20, 20)), curve((0.1, 20, 10))]
    told = {
        "east": {"n": 100, "events": 40, "decisions": two},
        "north": {"n": 50, "events": 10, "decisions": [curve((0.3, 8, 4)), curve((0.3, 6, 2))]},
        "west": {"n": 70, "events": None, "decisions": []},
    }
    hospitals = {name: loho.hospitals[name].model_copy(update=changes) for name, changes in told.items()}
    found = group_summaries.decisions(loho.model_copy(update={"hospitals": hospitals, "pooled": None}))
    assert [(one.threshold, one.hospitals, one.patients) for one in found] == [
        (0.1, ("east",), 100),
        (0.3, ("north",), 50),
    ]
    assert [one.model for one in found] == pytest.approx([0.25 - 0.2 / 9, 7 / 50 - 3 / 50 * 3 / 7])
    assert [one.everybody for one in found] == pytest.approx([0.4 - 0.6 / 9, 10 / 50 - 40 / 50 * 3 / 7])


def test_more_events_than_predicted_are_a_positive_difference(build: Callable[..., Results]) -> None:
    many = told_bins((20, 4, 0.1), (20, 9, 0.3), (20, 15, 0.6))
    tree = parse(render(binned(build, {"east": many})))
    rows = table(tree, "Calibration of the patients of 1 hospital, in groups")
    assert [cells[1] for cells in rows.values()] == ["+0.100", "+0.150", "+0.150"]
    head = next(each for each in tree.iter(f"{HTML}th") if texts(each) == "Observed minus predicted")
    assert head is not None


def test_who_tells_one_bin_has_no_part_in_the_shape(build: Callable[..., Results]) -> None:
    """South's one bin of 200 patients lies in the middle; joined, it would bend the curve there."""
    many = told_bins((20, 2, 0.1), (20, 10, 0.5), (20, 18, 0.9))
    one, two = told_bins((200, 20, 0.5)), told_bins((50, 5, 0.3), (50, 20, 0.7))
    results = binned(build, {"east": many, "north": many, "south": one, "west": two})
    found = group_summaries.calibration(results.arms["loho"])
    assert (found.joined, found.too_few) == (("east", "north"), ("south", "west"))
    assert [one.observed for one in found.groups] == pytest.approx([0.1, 0.1, 0.5, 0.5, 0.9, 0.9])
    said = texts(parse(render(results)))
    assert "because under 3 groups of patients could be told: south, west." in said
    assert "Calibration plot of 4 hospitals" in render(results)
    alone = render(binned(build, {"south": one, "west": two}))
    assert "Calibration plot of 2 hospitals" in alone
    assert "Squares: the groups" not in alone


def test_no_line_joins_groups_of_different_hospitals(build: Callable[..., Results]) -> None:
    many = told_bins((20, 2, 0.1), (20, 10, 0.5), (20, 18, 0.9))
    results = binned(build, {"east": many, "north": many})
    groups = group_summaries.calibration(results.arms["loho"]).groups
    drawn = str(plots.calibration(results.arms["loho"], groups, "x"))
    longest = [len(re.findall("[ML]", path)) for path in re.findall(r'<path d="([^"]*)" clip-path', drawn)]
    assert max(longest) == 2, "grid, diagonal and intervals have two ends; a line through three groups would have three"


def test_subgroups_are_meta_analysed_and_few_are_withheld(study: Results) -> None:
    rows = table(parse(render(study)), "Subgroups across hospitals")
    assert set(rows) == {"sex: female", "sex: male", "sex: missing", "a: < 1", "a: >= 1"}
    assert rows["sex: missing"][:4] == ["0", "0", "0", "4"]
    told = [found.subgroups["sex"]["male"] for found in study.arms["loho"].hospitals.values()]
    assert rows["sex: male"][0] == f"{sum(one.n or 0 for one in told):,}"
    assert rows["sex: male"][2:4] == [
        str(sum(one.n is not None for one in told)),
        str(sum(one.n is None for one in told)),
    ]


def test_differences_are_pooled_with_delongs_variance(study: Results) -> None:
    """Of k equal weights Hartung and Knapp's interval is the t interval: near to it here, where hospitals weigh alike."""
    rows = table(parse(render(study)), "Differences in AUROC, patient by patient")
    assert set(rows) == {"Pooled data", "Pooled data, all hospitals", "Table alone", "Local only"}
    summary = group_summaries.differences(study.arms["local"])
    assert summary is not None
    assert summary.k == 4
    values = [one.value for one in study.arms["local"].differences.values()]
    plain = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert min(values) <= summary.estimate <= max(values)
    assert summary.low == pytest.approx(plain.low, abs=0.03)
    assert rows["Local only"][2].startswith(number("auroc_difference", summary.estimate))


Z = 1.959963984540054


def around(value: float, error: float, there: Callable[[float], float], back: Callable[[float], float]) -> Figure:
    """A value with the interval of this standard error on another scale."""
    low, high = (back(there(value) + sign * Z * error) for sign in (-1, 1))
    return Figure(value=value, low=low, high=high, per_seed=[value])


def test_a_subgroup_is_pooled_on_the_scales_of_its_figures(build: Callable[..., Results]) -> None:
    """AUROC by its logit, O/E by its logarithm, of whoever has ten of either class: south has nine. West withholds, and
    at nowhere there is nobody of them."""
    told = {
        "east": (100, 40, 0.8, 0.2, 1.2, 0.1),
        "north": (80, 20, 0.7, 0.3, 0.8, 0.3),
        "south": (60, 9, 0.95, 0.1, 2.0, 0.1),
        "up": (300, 200, 0.65, 0.1, 1.0, 0.05),
    }
    nothing = dict.fromkeys(
        ("auroc", "brier", "observed_expected", "calibration_slope", "calibration_intercept"), NO_FIGURE
    )
    levels = {
        name: Subgroup(
            n=n,
            events=events,
            **{**nothing, "auroc": around(area, e, logit, expit), "observed_expected": around(oe, f, np.log, np.exp)},
        )
        for name, (n, events, area, e, oe, f) in told.items()
    }
    levels |= {"west": Subgroup(n=None, events=None, **nothing), "nowhere": Subgroup(n=0, events=0, **nothing)}
    loho = build(dict.fromkeys(levels, 40), arms=["loho"]).arms["loho"]
    hospitals = {
        name: found.model_copy(update={"subgroups": {"sex": {"male": levels[name]}}})
        for name, found in loho.hospitals.items()
    }
    (found,) = group_summaries.subgroups(loho.model_copy(update={"hospitals": hospitals}))
    assert (found.hospitals, found.withheld, found.patients, found.events) == (4, 1, 540, 269)
    pooled = random_effects(logit([0.8, 0.7, 0.65]), np.array([0.2, 0.3, 0.1]) ** 2)
    assert found.auroc is not None
    assert (found.auroc.k, found.auroc.tau) == (3, pytest.approx(pooled.tau))
    assert (found.auroc.estimate, found.auroc.low) == pytest.approx((expit(pooled.estimate), expit(pooled.low)))
    pooled = random_effects(np.log([1.2, 0.8, 1.0]), np.array([0.1, 0.3, 0.05]) ** 2)
    assert found.observed_expected is not None
    assert found.observed_expected.estimate == pytest.approx(np.exp(pooled.estimate))
    assert found.observed_expected.high == pytest.approx(np.exp(pooled.high))


def test_differences_are_weighed_by_their_intervals(build: Callable[..., Results]) -> None:
    """Their mean is that of random effects of variances ((high - low) / (2 z))^2; who has no interval does not enter."""
    given = {"east": (0.05, 0.01), "north": (-0.02, 0.05), "south": (0.03, 0.02), "west": (0.0, 0.03)}
    differences = {name: around(value, error, float, float) for name, (value, error) in given.items()}
    differences["few"] = Figure(value=0.4, low=None, high=None, per_seed=[0.4])
    arm = build(dict.fromkeys(differences, 40), arms=["loho"]).arms["loho"]
    found = group_summaries.differences(arm.model_copy(update={"differences": differences}))
    values, errors = np.array(list(given.values())).T
    pooled = random_effects(values, errors**2)
    assert found is not None
    assert (found.k, found.estimate, found.low, found.high, found.i2) == pytest.approx(
        (4, pooled.estimate, pooled.low, pooled.high, pooled.i2)
    )


def test_the_matrix_shows_every_pair(study: Results) -> None:
    rows = table(parse(render(study)), "AUROC: trained at (row), tested at (column)")
    for trained, cells in rows.items():
        for tested, cell in zip(SIZES, cells, strict=True):
            assert cell == number("auroc", study.cross_site[trained][tested].value)
    assert study.cross_site["east"]["east"] == study.arms["local"].hospitals["east"].auroc


def test_a_large_matrix_is_a_picture(study: Results) -> None:
    figure = study.cross_site["east"]["north"]
    names = [f"h{n}" for n in range(20)]
    large = study.model_copy(update={"cross_site": {one: dict.fromkeys(names, figure) for one in names}})
    page = render(large)
    parse(page)
    assert "Cross-site matrix: AUROC of 20 local models" in page
    assert "trained at (row)" not in page


def test_drift_and_recalibration_are_the_studys(study: Results) -> None:
    tree = parse(render(study))
    training = study.training["42"]
    rows = table(tree, "Drift between hospitals by round")
    assert len(rows) == len(training.drift) == 3
    assert rows["1"][3] == f"{training.drift[0].step:.3g}"
    assert set(training.drift[0].updates) == set(SIZES)
    lines = table(tree, "Recalibration of each model")
    assert set(lines) == {"all", *(f"without:{name}" for name in SIZES), "part:1", "part:2"}
    assert lines["all"] == [number("calibration", value) for value in training.recalibration["all"]]


@pytest.mark.parametrize(("value", "style"), [(None, ""), (0.5, "background:#ffffff"), (1.0, "background:#1f5f99")])
def test_cells_are_darker_for_better_models(value: float | None, style: str) -> None:
    assert plots.shade(value).startswith(style)
    assert bool(plots.shade(value)) is bool(style)


# --- borders ----------------------------------------------------------------------------------------------------------


def of(members: list[Hospital], folder: Path, **evaluation: Any) -> Results:
    """A plain study with k = 10, as a deployment would report it."""
    settings = small.federation(evaluation={"small_cells": 10, **evaluation})
    found = small.study(settings, members, folder)
    return assemble(settings, [42], [found], [answered(found)])


def plain(name: str, size: int, **labels: Any) -> Hospital:
    one = member(name, size)
    return replace(one, patients=replace(one.patients, groups={}, **labels))


def test_one_hospital_alone_has_a_report(tmp_path: Path) -> None:
    results = of([plain("north", 240)], tmp_path, leave_one_hospital_out=False, test=0.4)
    page = texts(parse(render(results)))
    assert "rests on 1 hospital: under 6" in page
    assert "needs 4 hospitals, has 1" in page
    assert results.arms["federated"].hospitals["north"].bins


def test_one_class_and_few_events_leave_gaps_and_no_summary_of_them(tmp_path: Path) -> None:
    """East has three events (withheld), west none (told: it points at nobody), the others a summary of two."""
    few, none = np.zeros(150, np.int64), np.zeros(120, np.int64)
    few[:3] = 1
    members = [
        plain("east", 150, labels=few),
        plain("north", 240),
        plain("south", 180),
        plain("west", 120, labels=none),
    ]
    results = of(members, tmp_path)
    loho = results.arms["loho"].hospitals
    assert (loho["east"].events, loho["east"].bins, loho["east"].decisions) == (None, [], [])
    assert loho["west"].events == 0
    assert loho["west"].auroc.value is None
    assert loho["west"].observed_expected.value == 0
    assert all(one.events == 0 for one in loho["west"].bins[0])
    page = texts(parse(render(results)))
    assert "rests on 2 hospitals: under 6" in page
    assert "AUROC not estimable (a single class, or not in every seed): east, west." in page
    assert pooled(results.arms["loho"], "observed_expected").not_estimable == ("east",)


def test_hospitals_that_all_say_the_same_have_no_spread() -> None:
    """Zero variance between hospitals, and a difference that does not vary."""
    same = random_effects([0.1] * 5, [0.04] * 5)
    assert (same.tau, same.i2, same.low, same.high) == (0, 0, pytest.approx(0.1), pytest.approx(0.1))
    figure = Figure(value=0.0, low=None, high=None, per_seed=[0.0])
    still = Arm(description="", hospitals={}, pooled=None, reference="loho", differences={"a": figure, "b": figure})
    assert group_summaries.differences(still) is None


# --- files ------------------------------------------------------------------------------------------------------------


def without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: without(one, names) for key, one in value.items() if key not in names}
    return [without(one, names) for one in value] if isinstance(value, list) else value


def test_a_file_from_before_these_figures_is_read_and_drawn(study: Results) -> None:
    new = {"prevalence", "scaled_brier", "observed_expected", "f2", "npv", "bins", "decisions", "subgroups"}
    new |= {"reference", "differences", "drift", "recalibration", "cross_site"}
    old = without(study.model_dump(by_alias=True), new)
    found = Results.model_validate(old)
    assert found.arms["loho"].hospitals["east"].npv.value is None
    assert found.arms["loho"].hospitals["east"].auroc == study.arms["loho"].hospitals["east"].auroc
    parse(render(found))
