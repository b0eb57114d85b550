"""The terms in federation.yaml: what they mean in numbers, and what the rest of the file cannot have beside them."""

from pathlib import Path
from typing import Any

import pytest
import small
import small_private
import yaml
from pydantic import ValidationError

from ich_models import privacy_words
from ich_models.accounting import programme
from ich_models.errors import ConfigurationError
from ich_models.federation import load_federation
from ich_models.privacy import Privacy, contradictions, learning
from ich_models.recipes import Stage

TERMS: dict[str, Any] = {"epsilon": 3.0, "delta": 1e-3, "patients": 300, "hospitals": 4}


def terms(**changes: Any) -> Privacy:
    return Privacy.model_validate({**TERMS, **changes})


def test_stated_patients() -> None:
    assert terms().stated("north", 12) == 300
    named = terms(patients={"north": 120, "east": 80}, hospitals=None)
    assert (named.stated("north", 7), named.stated("west", 7), named.planned_hospitals, named.typical()) == (
        120,
        None,
        2,
        80,
    )
    rounded = terms(patients={"rounded_to": 50})
    assert [rounded.stated("north", n) for n in (1, 74, 75, 99, 100, 124, 125)] == [50, 50, 100, 100, 100, 100, 150]


def test_steps_follow_from_the_chance_alone() -> None:
    stage = Stage.model_validate({"rounds": 2, "epochs": 3, "batch": 16, "optimizer": small.SGD})
    assert [terms(rate=rate).steps(stage) for rate in (1.0, 0.5, 0.25, 1 / 19)] == [3, 6, 12, 57]
    updates = Stage.model_validate({"rounds": 2, "updates": 5, "batch": 16, "optimizer": small.SGD})
    assert terms().steps(updates) == 5


def test_learning_patients_follow_from_the_stated_ones() -> None:
    evaluation = small.federation(evaluation={"folds": 4}).evaluation
    assert (learning(evaluation, 200, 0), learning(evaluation, 200, 3)) == (200, 150)
    assert learning(small.federation(evaluation={"test": 0.3}).evaluation, 200, 0) == 140


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hospitals": None}, "for how many hospitals"),
        ({"patients": {}, "hospitals": None}, "names no hospital"),
        ({"patients": {"north": 3}, "hospitals": 2}, "patients names 1"),
        ({"epsilon": 0}, "greater than 0"),
        ({"delta": 0.5}, "less than 0.1"),
        ({"rate": 1.1}, "less than or equal to 1"),
        ({"clip": 0}, "greater than 0"),
    ],
)
def test_terms_that_mean_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        terms(**change)


WITHOUT_RANGE = {"variables": {**small_private.TABLE["variables"], "a": {"type": "number", "known_at": "admission"}}}


@pytest.mark.parametrize(
    ("rest", "place", "hint"),
    [
        ({"evaluation": {"threshold": "youden"}}, ("evaluation", "threshold"), "threshold: 0.5"),
        ({"evaluation": {"threshold": 0.5, "validation": 0.2}}, ("evaluation", "validation"), "leave it out"),
        ({"table": {**small_private.TABLE, "scaling": "hospital"}}, ("modalities", "table", "scaling"), "federated"),
        ({"table": WITHOUT_RANGE}, ("modalities", "table", "predictors", 0), "privacy.public"),
        (
            {
                "evaluation": {"threshold": 0.5, "subgroups": [{"variable": "a", "cut": [0]}]},
                "privacy": {"metrics": "noised"},
            },
            ("evaluation", "subgroups"),
            "privacy.metrics: exact",
        ),
        ({"privacy": {"public": {"d": {"mean": 0, "sd": 1}}}}, ("privacy", "public", "d"), "columns"),
    ],
)
def test_what_a_private_study_cannot_have(rest: dict[str, Any], place: tuple[str | int, ...], hint: str) -> None:
    whole = {"table": small_private.TABLE, "evaluation": {"threshold": 0.5}, **rest}
    privacy = {**small_private.PRIVACY, **whole.pop("privacy", {})}
    found = list(contradictions(small.federation(**whole, privacy=privacy)))
    assert [each[0] for each in found] == [place]
    assert hint in found[0][2]


def test_sound_study_is_not_complained_of() -> None:
    assert list(contradictions(small_private.federation())) == []
    public = {"public": {"a": {"mean": 60, "sd": 12}}}
    whole = small.federation(
        table=WITHOUT_RANGE, evaluation={"threshold": 0.5}, privacy={**small_private.PRIVACY, **public}
    )
    assert list(contradictions(whole)) == []


def test_comparison_with_itself_is_refused_by_place(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    study = small.federation(evaluation={"comparisons": {"without_privacy": True}})
    path.write_text(yaml.safe_dump(study.model_dump(mode="json", by_alias=True)))
    with pytest.raises(ConfigurationError, match="no privacy to be compared with"):
        load_federation(path)


def test_plan_that_no_noise_fits_is_refused() -> None:
    study = small_private.federation({"metrics": "noised", "metrics_noise": 0.3, "epsilon": 1.0})
    with pytest.raises(ConfigurationError, match="no noise makes this study private with epsilon 1"):
        programme(study)


def test_privacy_is_part_of_what_is_agreed_on() -> None:
    study = small_private.federation()
    hashes = {small_private.federation(change).hash for change in ({}, {"epsilon": 3.1}, {"own_noise": True})}
    assert study.hash in hashes
    assert len(hashes) == 3


def test_words_say_what_it_is_worth() -> None:
    study = small_private.federation({"delta": 0.05})
    told = dict(privacy_words.told(study, 4))
    assert told["privacy"] == (
        "epsilon 3 with delta 0.05 for the whole study: one patient with all scans, at each hospital"
    )
    assert "3 rounds of 8 steps, 3 models, 1 seed" in told["noise"]
    said = [problem.message for problem in privacy_words.warnings(study, 30_000)]
    assert [message for message in said if "exact" in message]
    assert [message for message in said if "one patient in 60" in message]
    assert [message for message in said if "useless" in message]
