"""What a hospital does for whom: refusals by code, the right patients for each purpose, training by recipe."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from flwr.app import Message, RecordDict

from ich_client.site import Site
from ich_client.splits import split
from ich_client.state import State
from ich_client.train import fit
from ich_models.errors import Code
from ich_models.federation import Evaluation
from ich_models.protocol import (
    EVALUATE,
    STATISTICS,
    THRESHOLD,
    TRAIN,
    EvaluateTask,
    Question,
    Rows,
    StatisticsTask,
    Task,
    ThresholdReply,
    ThresholdTask,
    TrainReply,
    TrainTask,
    from_record,
    is_refusal,
    to_record,
)
from ich_models.recipes import Recipe
from ich_models.stack import Stack
from ich_strategies.plan import Plan


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The hospital north in a study with validation patients and two parts."""
    plan = Plan(small.federation(evaluation={"folds": 2, "validation": 0.25, "small_cells": 0}), 42)
    return Site(plan, small.hospital("north", 80), tmp_path)


def header(site: Site, **changes: Any) -> dict[str, Any]:
    """What every task carries."""
    return {"federation": site.plan.hash, "seed": 42, **changes}


def rows(site: Site, folds: int = 1) -> Rows:
    """Start weights and constants for some folds."""
    constants = site.moments(0).constants(scaled=True).reshape(1, -1).astype(np.float32)
    return {"weights": site.plan.start.numpy().repeat(folds, 0), "constants": constants.repeat(folds, 0)}


def ask(site: Site, kind: str, task: Task, given: Rows | None = None) -> RecordDict:
    """The ClientApp's reply, through Flower's own types."""
    network = small.grid(small.app({"north": site}), 1)
    message = Message(to_record(task, given), 1, kind)
    return next(iter(network.send_and_receive([message]))).content


def test_a_fold_that_holds_the_hospital_out_is_refused_whatever_the_server_says(site: Site) -> None:
    train = TrainTask(**header(site), round=1, folds=["all", "without:north"], final=False)
    assert is_refusal(ask(site, TRAIN, train, rows(site, 2))) is Code.HELD_OUT
    threshold = ThresholdTask(**header(site), folds=["without:north"])
    assert is_refusal(ask(site, THRESHOLD, threshold, rows(site))) is Code.HELD_OUT


@pytest.mark.parametrize("fold", ["all", "without:south"])
def test_a_model_that_has_learnt_from_every_patient_is_not_evaluated_here(site: Site, fold: str) -> None:
    question = Question(arm="federated", folds=[fold], thresholds=[0.5])
    task = EvaluateTask(**header(site), folds=[fold], questions=[question])
    assert is_refusal(ask(site, EVALUATE, task, rows(site))) is Code.HELD_OUT


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"federation": "0" * 64}, Code.FEDERATION),
        ({"protocol": 2}, Code.PROTOCOL),
        ({"package": "0.0.9"}, Code.PROTOCOL),
    ],
)
def test_another_study_or_version_is_refused(site: Site, changes: dict[str, Any], code: Code) -> None:
    task = StatisticsTask(**header(site, **changes), parts=[0])
    assert is_refusal(ask(site, STATISTICS, task)) is code


@pytest.mark.parametrize("fold", ["", "without:", "part:0", "part:x", "ALL"])
def test_an_unknown_fold_is_malformed(site: Site, fold: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    task = TrainTask(**header(site), round=1, folds=[fold], final=False)
    assert is_refusal(ask(site, TRAIN, task, rows(site))) is Code.MALFORMED


def test_thresholds_and_validation_losses_come_from_the_validation_patients(site: Site) -> None:
    """Change the outcome of every training patient: neither may move."""
    given = rows(site)
    given["weights"] = np.array([[1.0, -0.5, 0.2, 0.1]], np.float32)
    task = ThresholdTask(**header(site), folds=["all"])
    before, _ = from_record(ask(site, THRESHOLD, task, given), ThresholdReply)
    train = TrainTask(**header(site), round=1, folds=["all"], final=False)
    trained, _ = from_record(ask(site, TRAIN, train, given), TrainReply)
    assert trained.validation_losses == before.validation_losses
    labels = site.hospital.patients.labels
    labels[site.split(0).train] = 1 - labels[site.split(0).train]
    site._batches.clear()  # the tensors were made from the labels as they were
    after, _ = from_record(ask(site, THRESHOLD, task, given), ThresholdReply)
    assert after == before
    assert before.validation_losses[0] is not None


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize(
    "settings", [{"folds": 2}, {"test": 0.3}, {"folds": 2, "validation": 0.3}, {"test": 0.3, "validation": 0.3}]
)
def test_no_patient_has_two_roles(settings: dict[str, Any], part: int) -> None:
    evaluation = Evaluation(**settings)
    if part > (evaluation.folds or 0):
        pytest.skip("there are no such parts")
    labels = np.array([0, 1, 1] * 30)
    found = split(labels, evaluation, part)
    everyone = np.concatenate([found.train, found.validation, found.test])
    assert sorted(everyone) == list(range(90))
    if part or evaluation.test:
        assert len(found.test) == (45 if part else 27)
    assert bool(len(found.validation)) == (evaluation.validation is not None)
    learning = len(found.train) + len(found.validation)
    if evaluation.validation:
        assert len(found.validation) == pytest.approx(0.3 * learning, abs=1)
    assert labels[found.train].mean() == pytest.approx(2 / 3, abs=0.03)


def test_parts_share_the_patients_out() -> None:
    labels = np.array([0, 1, 1] * 30)
    parts = [split(labels, Evaluation(folds=3), part).test for part in (1, 2, 3)]
    assert sorted(np.concatenate(parts)) == list(range(90))


def test_state_keeps_two_rounds_and_forgets_a_future_that_was_not(tmp_path: Path) -> None:
    state = State(tmp_path)
    for number in range(1, 6):
        state.save(["all"], number, {"variate": np.full((1, 2), number, np.float32)})
    assert len(list(tmp_path.iterdir())) == 2
    assert state.load(before=5)["all"]["variate"].tolist() == [4, 4]
    state.save(["all"], 4, {"variate": np.zeros((1, 2), np.float32)})
    assert state.load()["all"]["variate"].tolist() == [0, 0]


# --- training ---------------------------------------------------------------------------------------------------------


def steps(recipe: dict[str, Any], patients: int = 10, **options: Any) -> tuple[int, float, torch.Tensor]:
    """Steps taken, sum of learning rates, and the weights after training a zero network."""
    plan = Plan(small.federation(), 1)
    stack = Stack(plan.network, 1)
    stack.load(plan.weights.unpack(torch.zeros(1, 4)))
    taken = 0

    def count(name: str, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += name == "output.bias"
        return gradient

    batch = small.hospital("x", patients, missing=0.0).patients.batch(torch.float32)
    done = fit(
        stack, batch, Recipe.model_validate({"optimizer": small.SGD, **recipe}), seed=(1,), direction=count, **options
    )
    return taken, done.rate, plan.weights.pack(stack.tensors(), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"epochs": 3, "batch": 4}, 9),  # 4 + 4 + 2
        ({"epochs": 3, "batch": 3}, 9),  # 3 + 3 + 4: a single last patient joins the batch before
        ({"epochs": 2, "batch": "all"}, 2),
        ({"epochs": 2, "batch": 100}, 2),
        ({"updates": 1, "batch": 4}, 1),
        ({"updates": 7, "batch": 4}, 7),
    ],
)
def test_the_recipe_says_how_many_steps(recipe: dict[str, Any], expected: int) -> None:
    taken, rate, _ = steps(recipe)
    assert taken == expected
    assert rate == pytest.approx(0.1 * expected)


def test_a_schedule_goes_on_over_the_rounds() -> None:
    """Step decay every 2 epochs, 2 epochs a round: round 3 trains at a quarter of the rate."""
    recipe = {"epochs": 2, "batch": "all", "schedule": {"name": "step", "every": 2, "gamma": 0.5}}
    rates = [steps(recipe, rounds_before=before, rounds=3)[1] for before in (0, 1, 2)]
    assert rates == pytest.approx([0.2, 0.1, 0.05])


def test_a_clipped_step_is_no_longer_than_the_limit() -> None:
    free = steps({"epochs": 1, "batch": "all"})[2]
    clipped = steps({"epochs": 1, "batch": "all", "clip": 0.01})[2]
    assert free.norm() > 0.01
    assert clipped.norm() == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-5)
