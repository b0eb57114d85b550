"""The report's evaluation sections, of a real study in process: every number is the results', every picture has its table."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from pages import HTML, parse, table, texts
from scipy import stats

from ich_client.hospital import Limits
from ich_client.tables import Hospital
from ich_deploy.arms import compare, cross_site
from ich_models.batch import Patients
from ich_models.curves import net_benefit
from ich_server import group_summaries
from ich_server.meta_analysis import random_effects
from ich_server.report import evaluation_plots as plots
from ich_server.report.page import render
from ich_server.results import Arm, Figure, Results, answered, assemble, read, write
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


def test_net_benefit_is_that_of_all_the_patients_counted(study: Results) -> None:
    whole = table(parse(render(study)), "Net benefit by threshold")
    assert {cells[1] for cells in whole.values()} == {f"{sum(SIZES.values())}"}
    loho = study.arms["loho"].model_copy(update={"pooled": None})  # as in a deployment, where nobody sees all patients
    deployed = study.model_copy(update={"arms": {"loho": loho}})
    rows = table(parse(render(deployed)), "Net benefit by threshold")
    assert rows
    assert "Points are not joined, since they are of different hospitals." in texts(parse(render(deployed)))
    for head, cells in rows.items():
        told = [
            (found, one)
            for found in loho.hospitals.values()
            for one in found.decisions[0]
            if f"{one.threshold:g}" == head
        ]
        patients = sum(found.n for found, _ in told)
        tp, fp = sum(one.true_positives for _, one in told), sum(one.false_positives for _, one in told)
        assert cells[0] == str(len(told))
        assert cells[3] == number("auroc_difference", net_benefit(tp, fp, patients, float(head)))
        for found, one in told:
            assert one.net_benefit == net_benefit(one.true_positives, one.false_positives, found.n, one.threshold)


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
        assert (one.hospitals, one.patients) == (4, sum(SIZES.values()))
        assert (one.model, one.everybody) == pytest.approx((whole.model, whole.everybody), abs=1e-12)
    n = sum(figures.n for figures in loho.hospitals.values())
    brier = sum(figures.n * (figures.brier.value or 0) for figures in loho.hospitals.values()) / n
    expected = sum((f.events or 0) / (f.observed_expected.value or 1) for f in loho.hospitals.values())
    events = sum(figures.events or 0 for figures in loho.hospitals.values())
    assert (n, events) == (loho.pooled.n, loho.pooled.events)
    assert brier == pytest.approx(loho.pooled.brier.value, abs=1e-12)
    assert events / expected == pytest.approx(loho.pooled.observed_expected.value, abs=1e-12)


def test_joined_bins_hold_every_patient_and_event(study: Results) -> None:
    loho = study.arms["loho"]
    joined = group_summaries.calibration(loho)
    assert sum(one.patients for one in joined) == pytest.approx(sum(SIZES.values()))
    events = sum(one.patients * one.observed for one in joined)
    assert events == pytest.approx(sum(found.events or 0 for found in loho.hospitals.values()))
    assert len(joined) <= 10
    rows = table(parse(render(study)), "Calibration of all hospitals’ patients, in groups")
    assert list(rows) == [number("auroc", one.mean) for one in joined]


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
