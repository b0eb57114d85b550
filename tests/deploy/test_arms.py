"""The comparison arms learn from nobody that they are tested on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from sklearn.metrics import roc_auc_score

from ich_client.hospital import Limits
from ich_client.tables import Hospital
from ich_deploy import arms
from ich_deploy.arms import Scored, compare, cross_site
from ich_models.batch import Patients
from ich_models.metrics import Estimate, youden_threshold

RECIPE = {"epochs": 2, "batch": 16, "optimizer": small.SGD}


def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **table: Any
) -> tuple[list[tuple[set[str], int]], dict[str, Any]]:
    """Which hospitals and which part each comparison model learnt from, and what the arms found."""
    settings = small.federation(
        evaluation={"folds": 2, "validation": 0.2, "comparisons": {"local": RECIPE, "pooled": RECIPE}}, table=table
    )
    members = small.hospitals()
    result = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    learnt: list[tuple[set[str], int]] = []
    original = arms.train_alone

    def noting(plan: Any, sites: Any, part: int, *rest: Any) -> Any:
        learnt.append(({site.hospital.name for site in sites}, part))
        return original(plan, sites, part, *rest)

    monkeypatch.setattr(arms, "train_alone", noting)
    return learnt, dict(compare(plan, small.sites(plan, members, tmp_path), result))


def test_each_model_leaves_out_whom_it_is_tested_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt, found = run(tmp_path, monkeypatch)
    everyone = {"east", "north", "south"}
    local = [({name}, part) for name in sorted(everyone) for part in (1, 2)]
    without_one = [(everyone - {name}, 0) for name in sorted(everyone)]
    assert learnt == [*local, *without_one, (everyone, 1), (everyone, 2)]
    assert {name: arm.reference for name, arm in found.items()} == {
        **{"loho": None, "federated": None, "local": "federated"},
        **{"pooled": "loho", "pooled_within": "federated"},
    }
    for arm in found.values():
        assert {name: e.n for name, e in arm.hospitals.items()} == {"east": 50, "north": 80, "south": 65}
        assert arm.pooled.n == 195


def test_under_scaling_by_hospital_each_scales_its_own_and_all_together_are_scaled_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NumPy, from the weights of the federated and the pooled models: Brier at each hospital by its own mean and standard deviation, and of all
    195 patients by those of the two hospitals that the fold learnt from."""
    settings = small.federation(table={"scaling": "hospital"}, evaluation={"comparisons": {"pooled": RECIPE}})
    members = small.hospitals()
    result = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    models: dict[frozenset[str], arms.Model] = {}
    original = arms.train_alone

    def noting(plan: Any, sites: Any, *rest: Any) -> Any:
        model = original(plan, sites, *rest)
        models[frozenset(site.hospital.name for site in sites)] = model
        return model

    monkeypatch.setattr(arms, "train_alone", noting)
    found = dict(compare(plan, small.sites(plan, members, tmp_path), result))

    def squares(arm: str, member: Hospital, by: np.ndarray) -> np.ndarray:
        """Squared errors of the model that never saw a hospital, on its patients scaled by the columns of `by`."""
        mean, sd = np.nanmean(by, axis=0), np.nanstd(by, axis=0)
        x = (np.where(np.isnan(member.patients.table), mean, member.patients.table) - mean) / sd
        others = frozenset(each.name for each in members if each is not member)
        rows = models[others].rows if arm == "pooled" else result.of([f"without:{member.name}"])
        weights = rows["weights"][0].astype(float)
        return (1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1]))) - member.patients.labels) ** 2

    others = [np.concatenate([o.patients.table for o in members if o is not member]) for member in members]
    for name in ("loho", "pooled"):
        for member in members:
            own = squares(name, member, member.patients.table).mean()
            assert found[name].hospitals[member.name].metrics["brier"].value == pytest.approx(own, abs=1e-5)
        of_all = np.concatenate([squares(name, member, by) for member, by in zip(members, others, strict=True)])
        assert found[name].pooled.metrics["brier"].value == pytest.approx(of_all.mean(), abs=1e-5)


def test_without_folds_all_are_compared_with_the_model_of_all_hospitals(tmp_path: Path) -> None:
    evaluation = {"leave_one_hospital_out": False, "test": 0.3, "comparisons": {"pooled": RECIPE}}
    settings, members = small.federation(evaluation=evaluation, stage={"rounds": 1}), small.hospitals()
    result = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    found = dict(compare(plan, small.sites(plan, members, tmp_path), result))
    assert {name: arm.reference for name, arm in found.items()} == {"federated": None, "pooled": "federated"}
    assert found["pooled"].differences.keys() == {"east", "north", "south"}


def test_a_threshold_is_chosen_on_validation_patients_where_there_are_any(tmp_path: Path) -> None:
    for share in (0.3, None):
        settings = small.federation(evaluation={"validation": share, "comparisons": {"pooled": RECIPE}})
        plan = small.Plan(settings, 42)
        site = small.sites(plan, small.hospitals(), tmp_path / str(share))["north"]
        model = arms.train_alone(plan, [site], 0, settings.evaluation.comparisons.pooled, (1,))
        patients = site.hospital.patients.take(site.split(0).validation if share else site.split(0).train)
        assert len(patients) == (24 if share else 80)
        fill, centre, scale = model.rows["constants"][0].reshape(3, -1).astype(float)
        weights = model.rows["weights"][0].astype(float)
        x = (np.where(np.isnan(patients.table), fill, patients.table) - centre) * scale
        p = 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))
        assert model.threshold == pytest.approx(youden_threshold(patients.labels, p), abs=1e-6)


def clinic(name: str, patients: int, seed: int) -> Hospital:
    """A hospital with the five items of the ICH score as its table, of whom higher scores die more often."""
    generator = np.random.default_rng((seed, *name.encode()))
    table = np.stack(
        [
            generator.integers(3, 16, patients),
            generator.integers(40, 95, patients),
            generator.gamma(1.5, 20, patients),
            generator.integers(0, 2, patients),
            generator.random(patients) < 0.2,
        ],
        axis=1,
    ).astype(float)
    gcs, age, volume, ivh, below = table.T
    score = (gcs < 13) + (gcs < 5).astype(int) + (age >= 80) + (volume >= 30) + (ivh == 1) + (below == 1)
    labels = (generator.random(patients) < 1 / (1 + np.exp(2.5 - 1.2 * score))).astype(np.int64)
    return Hospital(name, Patients(tuple(f"{name}{n}" for n in range(patients)), table, labels), Limits(), {}, ())


ITEMS = {
    "gcs": {"type": "integer", "known_at": "admission"},
    "age": {"type": "number", "known_at": "admission"},
    "volume": {"type": "number", "known_at": "admission"},
    "ivh": {"type": "yes_no", "known_at": "admission"},
    "infratentorial": {"type": "yes_no", "known_at": "admission"},
    "mrs": {"type": "integer", "known_at": "90 days"},
}


def test_table_and_ich_score_are_compared_on_the_same_patients(tmp_path: Path) -> None:
    settings = small.federation(
        network={"name": "mlp", "hidden": [4]},
        table={"variables": ITEMS, "predictors": list(ITEMS)[:-1]},
        evaluation={"comparisons": {"tabular": RECIPE, "ich_score": {}}},
    )
    members = [clinic("east", 90, 1), clinic("north", 120, 2), clinic("south", 100, 3)]
    result = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    found = dict(compare(plan, small.sites(plan, members, tmp_path), result))
    assert list(found) == ["loho", "tabular", "ich_score"]
    north = members[1].patients
    gcs, age, volume, ivh, below = north.table.T
    score = (gcs < 13) + (gcs < 5).astype(int) + (age >= 80) + (volume >= 30) + (ivh == 1) + (below == 1)
    assert found["ich_score"].hospitals["north"].metrics["auroc"].value == pytest.approx(
        roc_auc_score(north.labels, score), abs=1e-12
    )
    for arm in ("tabular", "ich_score"):
        assert found[arm].reference == "loho"
        for name, one in found[arm].differences.items():
            ours, theirs = (found[each].hospitals[name].metrics["auroc"].value for each in (arm, "loho"))
            assert one.value == pytest.approx(ours - theirs, abs=1e-12)
            assert one.low is not None
            assert one.low < one.value < one.high
    assert found["loho"].reference is None
    assert {e.n for e in found["tabular"].hospitals.values()} == {90, 120, 100}


def test_a_difference_has_delongs_paired_interval() -> None:
    """Against the full matrix of pairs, as DeLong et al. write it."""
    generator = np.random.default_rng(1)
    labels = (generator.random(80) < 0.4).astype(np.int64)
    first = generator.normal(size=80) + labels
    second = first + generator.normal(size=80)
    limit = np.full(80, 0.5)
    one, two = Scored(labels, first, limit), Scored(labels, second, limit)
    found = arms._differences({"x": one}, {"x": two})["x"]
    wins = [(s[labels == 1][:, None] > s[labels == 0]).astype(float) for s in (first, second)]
    gap = wins[0] - wins[1]
    variance = gap.mean(1).var(ddof=1) / gap.shape[0] + gap.mean(0).var(ddof=1) / gap.shape[1]
    half = 1.959963984540054 * np.sqrt(variance)
    assert found.value == pytest.approx(gap.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((gap.mean() - half, gap.mean() + half), abs=1e-12)
    assert arms._differences({"x": one}, {"x": one})["x"] == Estimate(0.0, None, None)
    few = np.flatnonzero(labels == 0).tolist() + np.flatnonzero(labels)[:9].tolist()
    less = [Scored(labels[few], scores[few], limit[few]) for scores in (first, second)]
    nine = arms._differences({"x": less[0]}, {"x": less[1]})["x"]
    assert nine.value == pytest.approx(gap[:9].mean(), abs=1e-12)
    assert (nine.low, nine.high) == (None, None), "nine with the event"
    assert arms._differences({"x": Scored(labels * 0, first, limit)}, {"x": Scored(labels * 0, second, limit)}) == {}
    with pytest.raises(ValueError, match="other patients"):
        arms._differences({"x": one}, {"x": Scored(1 - labels, second, limit)})


def test_every_local_model_is_tested_at_every_other_hospital(tmp_path: Path) -> None:
    settings = small.federation(evaluation={"folds": 2, "cross_site": True, "comparisons": {"local": RECIPE}})
    members, plan = small.hospitals(), small.Plan(settings, 42)
    at_work = small.sites(plan, members, tmp_path)
    result = small.study(settings, members, tmp_path)
    local = dict(compare(plan, at_work, result))["local"]
    recipe = settings.evaluation.comparisons.local
    assert recipe is not None
    found = cross_site(plan, at_work, recipe, local)
    names = ["east", "north", "south"]
    assert {name: list(row) for name, row in found.items()} == dict.fromkeys(names, names)
    for name in names:
        assert found[name][name] == local.hospitals[name].metrics["auroc"]
    model = arms.train_alone(plan, [at_work["east"]], 0, recipe, (42, 1, *b"east"))
    fill, centre, scale = model.rows["constants"][0].reshape(3, -1).astype(float)
    north = members[1].patients
    x = (np.where(np.isnan(north.table), fill, north.table) - centre) * scale
    scores = x @ model.rows["weights"][0][:-1]
    assert found["east"]["north"].value == pytest.approx(roc_auc_score(north.labels, scores), abs=1e-3)


@pytest.mark.parametrize("part", [1, 2])
def test_a_parts_model_does_not_know_its_test_patients(part: int, tmp_path: Path) -> None:
    settings = small.federation(evaluation={"folds": 2, "comparisons": {"local": RECIPE}})
    plan = small.Plan(settings, 42)
    recipe = settings.evaluation.comparisons.local
    assert recipe is not None
    site = small.sites(plan, small.hospitals(), tmp_path)["north"]
    before = arms.train_alone(plan, [site], part, recipe, (1,))
    site.hospital.patients.table[site.split(part).test] = 99.0
    again = small.sites(plan, [site.hospital], tmp_path)["north"]
    after = arms.train_alone(plan, [again], part, recipe, (1,))
    assert {k: v.tobytes() for k, v in before.rows.items()} == {k: v.tobytes() for k, v in after.rows.items()}
    assert before.threshold == after.threshold


# --- small cells ------------------------------------------------------------------------------------------------------


def with_events(name: str, patients: int, events: int, k: int = 0) -> Hospital:
    """A hospital with so many events, and a small-cell rule of its own."""
    one = small.hospital(name, patients)
    order = np.argsort(np.where(np.isnan(one.patients.table[:, 0]), 0, one.patients.table[:, 0]), kind="stable")
    labels = np.zeros(patients, np.int64)
    labels[order[-events:]] = 1
    return replace(one, patients=replace(one.patients, labels=labels), limits=Limits(small_cells=k))


def test_what_a_hospital_withholds_is_not_what_is_left_of_a_sum(tmp_path: Path) -> None:
    """East has 4 events of 60 and k is 10; north asks for 40 and has 30; west asks for 20 and has 25."""
    settings = small.federation(evaluation={"small_cells": 10, "comparisons": {"pooled": RECIPE, "tabular": RECIPE}})
    members = [
        with_events("east", 60, 4),
        with_events("north", 120, 30, k=40),
        with_events("south", 100, 45),
        with_events("west", 90, 25, k=20),
    ]
    result = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    for found in dict(compare(plan, small.sites(plan, members, tmp_path), result)).values():
        events = {name: one.events for name, one in found.hospitals.items()}
        assert events == {"east": None, "north": None, "south": 45, "west": 25}
        assert (found.pooled.n, found.pooled.events) == (190, 70), "south and west, whose figures are told"
        for name in ("east", "north"):
            assert set(found.hospitals[name].metrics.values()) == {Estimate(None, None, None)}
            assert name not in found.differences
        assert not found.pooled.bins
        assert not found.pooled.decisions
        told = [found.hospitals[name] for name in ("south", "west")]
        for one, k in zip(told, (10, 20), strict=True):
            counts = [count for each in one.bins for count in (each.events, each.patients - each.events)]
            assert counts
            assert all(count == 0 or count >= k for count in counts)
        brier = sum(one.n * one.metrics["brier"].value for one in told) / 190
        assert found.pooled.metrics["brier"].value == pytest.approx(brier, abs=1e-12)


def test_where_nobody_tells_there_is_nothing_of_all_together(tmp_path: Path) -> None:
    settings = small.federation(
        evaluation={"small_cells": 10, "cross_site": True, "folds": 2, "comparisons": {"local": RECIPE}}
    )
    members = [with_events(name, 60, 4) for name in ("east", "north", "south")]
    result = small.study(settings, members, tmp_path)
    plan = small.Plan(settings, 42)
    at_work = small.sites(plan, members, tmp_path)
    found = dict(compare(plan, at_work, result))
    assert found.keys() == {"loho", "federated", "local"}
    assert all(one.pooled is None for one in found.values())
    recipe = settings.evaluation.comparisons.local
    assert recipe is not None
    matrix = cross_site(plan, at_work, recipe, found["local"])
    assert {one.value for row in matrix.values() for one in row.values()} == {None}
