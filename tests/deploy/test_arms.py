"""The comparison arms learn from nobody that they are tested on."""

from pathlib import Path
from typing import Any

import pytest
import small

from ich_deploy import arms
from ich_deploy.arms import compare

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
    assert list(found) == ["loho", "federated", "local", "pooled", "pooled_within"]
    for arm in found.values():
        assert {name: e.n for name, e in arm.hospitals.items()} == {"east": 50, "north": 80, "south": 65}
        assert arm.pooled.n == 195


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
