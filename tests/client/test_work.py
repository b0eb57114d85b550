"""What a hospital does for whom: refusals by code, the right patients for each purpose, training by recipe."""

import logging
from collections.abc import Callable
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
from ich_client.tasks import RefusedError
from ich_client.train import fit
from ich_client.work import predictions
from ich_models.errors import Code
from ich_models.federation import Evaluation
from ich_models.protocol import (
    EVALUATE,
    MODEL,
    RECALIBRATE,
    STATISTICS,
    THRESHOLD,
    TRAIN,
    EvaluateTask,
    ModelTask,
    Question,
    RecalibrationTask,
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
    """The study never asks this, so it is refused before; and were it asked, there is nobody to test the model on."""
    question = Question(arm="federated", folds=[fold], thresholds=[0.5])
    task = EvaluateTask(**header(site), folds=[fold], questions=[question])
    assert is_refusal(ask(site, EVALUATE, task, rows(site))) is (Code.MALFORMED if fold == "all" else Code.HELD_OUT)
    with pytest.raises(RefusedError, match="has learnt from every patient"):
        predictions(site, [fold], rows(site))


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


@pytest.mark.parametrize("fold", ["", "without:", "part:0", "part:x", "ALL", "part:3", "all\nall", "without:../x"])
def test_an_unknown_fold_is_malformed(site: Site, fold: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    task = TrainTask(**header(site), round=1, folds=["all"], final=False).model_copy(update={"folds": [fold]})
    assert is_refusal(ask(site, TRAIN, task, rows(site))) is Code.MALFORMED


def train(site: Site, **changes: Any) -> TrainTask:
    return TrainTask(**{**header(site), "round": 1, "folds": ["all"], "final": False, **changes})


def evaluate(site: Site, thresholds: list[list[float]], arms: tuple[str, ...] = ("loho", "federated")) -> EvaluateTask:
    """The questions of the study, with these thresholds."""
    folds = {"loho": ["without:north"], "federated": ["part:1", "part:2"]}
    asked = [Question(arm=arm, folds=folds[arm], thresholds=t) for arm, t in zip(arms, thresholds, strict=True)]
    return EvaluateTask(**header(site), folds=[f for arm in arms for f in folds[arm]], questions=asked)


def threshold(site: Site) -> ThresholdTask:
    return ThresholdTask(**header(site), folds=["all"])


def model(site: Site, **changes: Any) -> ModelTask:
    return ModelTask(**{**header(site), "threshold": 0.5, **changes})


NEVER_ASKED: dict[str, Callable[[Site], tuple[str, Task, Rows]]] = {
    "a round after the last": lambda site: (TRAIN, train(site, round=4), rows(site)),
    "the local layers before the last round": lambda site: (TRAIN, train(site, final=True), rows(site)),
    "a last round that is not called so": lambda site: (TRAIN, train(site, round=3), rows(site)),
    "no blocks": lambda site: (TRAIN, train(site), {}),
    "rows of two folds": lambda site: (TRAIN, train(site), rows(site, 2)),
    "a block too many": lambda site: (TRAIN, train(site), {**rows(site), "local": np.zeros((1, 4), np.float32)}),
    "a block too wide": lambda site: (TRAIN, train(site), {**rows(site), "weights": np.zeros((1, 5), np.float32)}),
    "another dtype": lambda site: (TRAIN, train(site), {n: b.astype(np.float64) for n, b in rows(site).items()}),
    "infinite weights": lambda site: (TRAIN, train(site), {**rows(site), "weights": np.full((1, 4), np.inf, "f4")}),
    "statistics of one part alone": lambda site: (STATISTICS, StatisticsTask(**header(site), parts=[1]), {}),
    "statistics of the same part twice": lambda s: (STATISTICS, StatisticsTask(**header(s), parts=[0, 1, 1]), {}),
    "one threshold per question too many": lambda s: (EVALUATE, evaluate(s, [[0.5, 0.6], [0.5, 0.5]]), rows(s, 3)),
    "the questions in another order": lambda site: (
        EVALUATE,
        evaluate(site, [[0.5, 0.5], [0.5]], ("federated", "loho")),
        rows(site, 3),
    ),
    "no question": lambda site: (
        EVALUATE,
        EvaluateTask(**header(site), folds=["without:north"], questions=[]),
        rows(site),
    ),
    "folds that no question names": lambda site: (
        EVALUATE,
        EvaluateTask(
            **header(site),
            folds=["part:1"],
            questions=[Question(arm="loho", folds=["without:north"], thresholds=[0.5])],
        ),
        rows(site),
    ),
    "blocks with a question for statistics": lambda s: (
        STATISTICS,
        StatisticsTask(**header(s), parts=[0, 1, 2]),
        rows(s),
    ),
    "one infinite weight": lambda s: (TRAIN, train(s), {**rows(s), "weights": np.array([[0, 0, np.nan, 0]], "f4")}),
    "a threshold of a model without weights": lambda site: (THRESHOLD, threshold(site), {}),
    "figures of a model without weights": lambda site: (EVALUATE, evaluate(site, [[0.5]], ("loho",)), {}),
    "a model without weights": lambda site: (MODEL, model(site), {}),
    "a model without a threshold": lambda site: (MODEL, model(site, threshold=None), rows(site)),
    "a model with thresholds of types": lambda s: (MODEL, model(s, thresholds={"epidural": 0.5}), rows(s)),
    "a recalibration": lambda site: (RECALIBRATE, RecalibrationTask(**header(site), folds=["all"]), rows(site)),
    "one question twice": lambda site: (
        EVALUATE,
        EvaluateTask(
            **header(site),
            folds=["without:north"],
            questions=[Question(arm="loho", folds=["without:north"], thresholds=[t]) for t in (0.5, 0.6)],
        ),
        rows(site),
    ),
}


@pytest.mark.parametrize("case", NEVER_ASKED)
def test_what_the_study_never_asks_is_refused(site: Site, case: str) -> None:
    """A server that has been taken over cannot probe for more than the hospital has agreed to."""
    kind, task, given = NEVER_ASKED[case](site)
    assert is_refusal(ask(site, kind, task, given)) is Code.MALFORMED


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (TRAIN, lambda site: train(site, folds=["without:south"])),
        (THRESHOLD, lambda site: ThresholdTask(**header(site), folds=["without:south"])),
    ],
    ids=["train", "threshold"],
)
def test_a_study_of_one_model_has_no_other(kind: str, task: Callable[[Site], Task], tmp_path: Path) -> None:
    """Each fold that is not the study's would be one more model, and one more answer about the same patients."""
    plain = small.federation(evaluation={"leave_one_hospital_out": False, "folds": 2})
    here = Site(Plan(plain, 42), small.hospital("north", 80), tmp_path)
    assert is_refusal(ask(here, kind, task(here), rows(here))) is Code.MALFORMED


def test_a_recalibration_is_of_models_that_learn_here_and_whole(tmp_path: Path) -> None:
    here = Site(Plan(small.federation(evaluation={"recalibrate": "slope"}), 42), small.hospital("north", 80), tmp_path)
    cases: list[tuple[str, Rows, Code | None]] = [
        ("without:south", rows(here), None),
        ("without:north", rows(here), Code.HELD_OUT),
        ("all", {**rows(here), "weights": np.full((1, 4), np.inf, np.float32)}, Code.MALFORMED),
    ]
    for fold, given, code in cases:
        task = RecalibrationTask(**header(here), folds=[fold])
        assert is_refusal(ask(here, RECALIBRATE, task, given)) is code


def test_a_model_of_all_hospitals_is_kept(site: Site) -> None:
    """The counterpart of the models above that are refused."""
    assert is_refusal(ask(site, MODEL, model(site), rows(site))) is None


def test_where_the_best_round_is_chosen_losses_are_asked_for_though_the_threshold_is_fixed(tmp_path: Path) -> None:
    settings = small.federation(evaluation={"threshold": 0.3, "choose_round": "best", "validation": 0.25})
    here = Site(Plan(settings, 42), small.hospital("north", 80), tmp_path)
    said, _ = from_record(ask(here, THRESHOLD, threshold(here), rows(here)), ThresholdReply)
    assert said.validation_losses[0] is not None


def test_a_grid_of_thresholds_in_one_task_is_refused(site: Site) -> None:
    """It would draw the whole distribution of the predictions, patient by patient."""
    questions = [Question(arm="loho", folds=["without:north"], thresholds=[n / 200]) for n in range(200)]
    task = EvaluateTask(**header(site), folds=["without:north"], questions=questions)
    assert is_refusal(ask(site, EVALUATE, task, rows(site))) is Code.MALFORMED


def test_the_questions_of_the_study_are_answered(site: Site) -> None:
    assert is_refusal(ask(site, EVALUATE, evaluate(site, [[0.5], [0.5, 0.4]]), rows(site, 3))) is None


def test_large_questions_come_one_by_one(site: Site) -> None:
    assert is_refusal(ask(site, EVALUATE, evaluate(site, [[0.5]], ("loho",)), rows(site))) is None
    assert is_refusal(ask(site, EVALUATE, evaluate(site, [[0.5, 0.4]], ("federated",)), rows(site, 2))) is None


def test_a_fixed_threshold_cannot_be_moved(tmp_path: Path) -> None:
    fixed = Site(Plan(small.federation(evaluation={"threshold": 0.3}), 42), small.hospital("north", 80), tmp_path)
    for limit, code in ((0.3, None), (0.31, Code.MALFORMED)):
        question = Question(arm="loho", folds=["without:north"], thresholds=[limit])
        task = EvaluateTask(**header(fixed), folds=["without:north"], questions=[question])
        assert is_refusal(ask(fixed, EVALUATE, task, rows(fixed))) is code
    threshold = ThresholdTask(**header(fixed), folds=["all"])
    assert is_refusal(ask(fixed, THRESHOLD, threshold, rows(fixed))) is Code.MALFORMED


def test_training_that_diverges_is_said_by_code_and_leaves_no_state(tmp_path: Path) -> None:
    settings = small.federation(strategy={"name": "scaffold"}, stage={"epochs": 4})
    diverging = Site(Plan(settings, 42), small.hospital("north", 80), tmp_path)
    given = {**rows(diverging), "variate": np.full((1, 4), 3e38, np.float32)}
    assert is_refusal(ask(diverging, TRAIN, train(diverging), given)) is Code.DIVERGED
    assert diverging.state.load() == {}


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


# --- a device without enough memory -----------------------------------------------------------------------------------


def with_room_for(patients: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds so many patients at once; the sizes that were tried."""
    tried: list[int] = []
    real = Stack.losses

    def losses(stack: Stack, batch: Any, epoch: float = 0.0) -> torch.Tensor:
        tried.append(len(batch))
        if len(batch) > patients:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(stack, batch, epoch)

    monkeypatch.setattr(Stack, "losses", losses)
    return tried


@pytest.mark.parametrize("room", [16, 7, 1])
def test_a_small_device_trains_the_same_in_smaller_pieces(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"epochs": 2, "batch": 16}
    whole = steps(recipe, patients=40)
    tried = with_room_for(room, monkeypatch)
    pieces = steps(recipe, patients=40)
    assert pieces[:2] == whole[:2]
    assert torch.allclose(pieces[2], whole[2], atol=1e-6)
    assert max(tried[-20:]) <= room, "what does not fit is tried once"


def test_where_patients_depend_on_each_other_there_is_no_smaller_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch statistics of half a batch are others: the hospital says a code instead."""
    network = {"name": "mlp", "hidden": [4], "normalisation": "batch"}
    plan = Plan(small.federation(network=network), 42)
    here = Site(plan, small.hospital("north", 80), tmp_path)
    with_room_for(7, monkeypatch)
    assert is_refusal(ask(here, TRAIN, train(here), rows(here))) is Code.RESOURCES
