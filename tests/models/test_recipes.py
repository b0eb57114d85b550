"""Schedules and optimiser steps worked out by hand, and recipes that make no sense."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from ich_models.federation import Training
from ich_models.recipes import (
    SGD,
    Adam,
    Constant,
    Cosine,
    OptimizerOptions,
    Recipe,
    ScheduleOptions,
    Stage,
    Step,
    build_optimizer,
)

# --- schedules --------------------------------------------------------------------------------------------------------


def factors(schedule: Constant | Cosine | Step, epochs: int, beyond: int = 0) -> list[float]:
    return [schedule.factor(epoch, epochs) for epoch in range(epochs + beyond)]


def test_cosine_with_warm_up() -> None:
    """Two epochs up to 1 in thirds, then .2 + .8 (1 + cos(pi k / 4)) / 2 for k = 0 .. 3; .2 at and after the end."""
    expected = [1 / 3, 2 / 3, 1.0, 0.8828427124746190, 0.6, 0.3171572875253810, 0.2, 0.2]
    assert factors(Cosine(name="cosine", warm_up=2, final=0.2), 6, 2) == pytest.approx(expected, abs=1e-15)


def test_cosine_without_warm_up() -> None:
    """(1 + cos(pi k / 3)) / 2 = 1, 3/4, 1/4."""
    assert factors(Cosine(name="cosine"), 3, 1) == pytest.approx([1, 0.75, 0.25, 0], abs=1e-15)


def test_cosine_that_only_warms_up() -> None:
    """As many epochs of warm-up as there are, or more: no division by zero, and no jump."""
    assert factors(Cosine(name="cosine", warm_up=3), 3) == pytest.approx([0.25, 0.5, 0.75])
    assert factors(Cosine(name="cosine", warm_up=5), 2) == pytest.approx([1 / 6, 2 / 6])
    assert factors(Cosine(name="cosine", warm_up=1), 1, 1) == pytest.approx([0.5, 1.0])


def test_step() -> None:
    assert factors(Step(name="step", every=2, gamma=0.1), 5) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert factors(Step(name="step", every=1, gamma=0.5), 3) == [1, 0.5, 0.25]


def test_constant() -> None:
    assert factors(Constant(), 3, 2) == [1.0] * 5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Cosine(name="cosine"), lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)),
        (Step(name="step", every=3, gamma=0.3), lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.3)),
    ],
    ids=["cosine", "step"],
)
def test_schedules_are_torchs(ours: Cosine | Step, theirs: Any) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = theirs(optimizer)
    expected = []
    for _ in range(7):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert factors(ours, 7) == pytest.approx(expected, abs=1e-12)


# --- optimisers -------------------------------------------------------------------------------------------------------


def stepped(options: dict[str, Any], gradients: list[float]) -> list[float]:
    """Where w = 1 goes under these gradients."""
    weight = torch.ones(1, dtype=torch.float64)
    optimizer = build_optimizer(TypeAdapter(OptimizerOptions).validate_python(options), iter([weight]))
    path = []
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        path.append(weight.item())
    return path


@pytest.mark.parametrize(
    ("options", "gradients", "path"),
    [
        ({"name": "sgd", "lr": 0.1}, [2, -1], [0.8, 0.9]),
        # b = 2, then .5 * 2 - 1 = 0
        ({"name": "sgd", "lr": 0.1, "momentum": 0.5}, [2, -1], [0.8, 0.8]),
        # steps g + .5 b: 2 + 1, then -1 + 0
        ({"name": "sgd", "lr": 0.1, "momentum": 0.5, "nesterov": True}, [2, -1], [0.7, 0.8]),
        # g + .5 w: 2.5, then -1 + .375
        ({"name": "sgd", "lr": 0.1, "weight_decay": 0.5}, [2, -1], [0.75, 0.8125]),
        # a first step is the sign of the gradient; then m = .5 (.5 * 2) + .5 * 2 = 1.5 over 1 - .25, v = 4 / 1: sign again
        ({"name": "adam", "lr": 0.1, "betas": [0.5, 0.5]}, [2, 2], [0.9, 0.8]),
        # m = (.9 * .2 - .1 * 1) / (1 - .81) = 8/19, v = (.999 * .004 + .001) / (1 - .998001) = 2.49925
        ({"name": "adam", "lr": 0.1}, [2, -1], [0.9, 0.8733662945]),
        # eps 1 halves the first step of a gradient of 1
        ({"name": "adam", "lr": 0.1, "eps": 1.0}, [1], [0.95]),
        # decay joins the gradient: the sign of -1 + 2 * 1
        ({"name": "adam", "lr": 0.1, "weight_decay": 2.0}, [-1], [0.9]),
        # decay stays out of the moments: w (1 - .1 * 2) + .1
        ({"name": "adamw", "lr": 0.1, "weight_decay": 2.0}, [-1], [0.9]),
        ({"name": "adamw", "lr": 0.1, "weight_decay": 1.0}, [-1], [1.0]),
        ({"name": "adamw", "lr": 0.1}, [-1], [1.1]),
        # rectification waits for its variance: the first step is plain momentum, lr * m / (1 - beta1)
        ({"name": "radam", "lr": 0.1}, [2], [0.8]),
    ],
    ids=str,
)
def test_steps_by_hand(options: dict[str, Any], gradients: list[float], path: list[float]) -> None:
    assert stepped(options, gradients) == pytest.approx(path, abs=1e-8)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "radam"])
def test_optimisers_by_name(name: str) -> None:
    options = TypeAdapter(OptimizerOptions).validate_python({"name": name, "lr": 0.25, "weight_decay": 0.125})
    optimizer = build_optimizer(options, [torch.zeros(2)])
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    assert all(group[key] == value for key, value in options.model_dump(exclude={"name"}).items())


@pytest.mark.parametrize("options", [SGD(name="sgd", lr=0.1, momentum=0.9), Adam(name="adam", lr=0.1)], ids=str)
def test_optimisers_are_fresh(options: SGD | Adam) -> None:
    """No moment survives from one build to the next."""
    assert not build_optimizer(options, [torch.zeros(2)]).state


# --- what is refused --------------------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"epochs": 1, "batch": 32, "optimizer": {"name": "sgd", "lr": 0.1}}


def changed(**values: Any) -> dict[str, Any]:
    """A good recipe with keys replaced; None removes one."""
    return {key: value for key, value in {**PLAIN, **values}.items() if value is not None}


@pytest.mark.parametrize(
    "good",
    [
        PLAIN,
        changed(batch="all"),
        changed(epochs=None, updates=100),
        changed(clip=1.0),
        changed(optimizer={"name": "adam", "lr": 1e-3, "betas": [0, 0.5]}),
        changed(optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}),
        changed(schedule={"name": "constant"}),
        changed(schedule={"name": "cosine", "final": 1, "warm_up": 0}),
        changed(schedule={"name": "step", "every": 1, "gamma": 1}),
    ],
    ids=str,
)
def test_accepted(good: dict[str, Any]) -> None:
    Recipe.model_validate(good)
    assert Stage.model_validate({**good, "rounds": 3}).name == "train"


@pytest.mark.parametrize(
    "bad",
    [
        changed(epochs=None),
        changed(updates=5),
        changed(epochs=0),
        changed(epochs=1.5),
        changed(epochs=None, updates=0),
        changed(batch=0),
        changed(batch="some"),
        changed(batch=None),
        changed(clip=0),
        changed(clip=-1),
        changed(optimizer=None),
        changed(speed=1),
        changed(optimizer={"name": "lbfgs", "lr": 0.1}),
        changed(optimizer={"lr": 0.1}),
        changed(optimizer={"name": "sgd"}),
        changed(optimizer={"name": "sgd", "lr": 0}),
        changed(optimizer={"name": "sgd", "lr": -0.1}),
        changed(optimizer={"name": "sgd", "lr": float("nan")}),
        changed(optimizer={"name": "sgd", "lr": float("inf")}),
        changed(optimizer={"name": "sgd", "lr": 0.1, "momentum": 1}),
        changed(optimizer={"name": "sgd", "lr": 0.1, "momentum": -0.1}),
        changed(optimizer={"name": "sgd", "lr": 0.1, "nesterov": True}),
        changed(optimizer={"name": "sgd", "lr": 0.1, "betas": [0.9, 0.999]}),
        changed(optimizer={"name": "sgd", "lr": 0.1, "weight_decay": -1}),
        changed(optimizer={"name": "adam", "lr": 0.1, "momentum": 0.9}),
        changed(optimizer={"name": "adam", "lr": 0.1, "betas": [0.9]}),
        changed(optimizer={"name": "adam", "lr": 0.1, "betas": [0.9, 1]}),
        changed(optimizer={"name": "adam", "lr": 0.1, "eps": 0}),
        changed(optimizer={"name": "adam", "lr": 0.1, "weight_decay": -1}),
        changed(schedule={"name": "linear"}),
        changed(schedule={"name": "cosine", "warm_up": -1}),
        changed(schedule={"name": "cosine", "final": 1.1}),
        changed(schedule={"name": "cosine", "final": -0.1}),
        changed(schedule={"name": "step", "every": 0, "gamma": 0.5}),
        changed(schedule={"name": "step", "every": 2, "gamma": 0}),
        changed(schedule={"name": "step", "every": 2, "gamma": 1.5}),
        changed(schedule={"name": "step", "gamma": 0.5}),
    ],
    ids=str,
)
def test_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(bad)


def test_reasons_name_a_way_out() -> None:
    with pytest.raises(ValidationError, match="add epochs: 1"):
        Recipe.model_validate(changed(epochs=None))
    with pytest.raises(ValidationError, match="add momentum"):
        SGD.model_validate({"name": "sgd", "lr": 0.1, "nesterov": True})
    with pytest.raises(ValidationError):
        Stage.model_validate({**PLAIN, "rounds": 0})
    with pytest.raises(ValidationError, match="rounds"):
        Stage.model_validate(PLAIN)


def test_schedules_by_name() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ScheduleOptions)
    assert type(adapter.validate_python({"name": "cosine"})) is Cosine
    assert type(adapter.validate_python({"name": "step", "every": 1, "gamma": 0.5})) is Step
    assert Recipe.model_validate(PLAIN).schedule == Constant()


# --- stages -----------------------------------------------------------------------------------------------------------


def test_stage_of_a_round() -> None:
    """Two rounds of 'warm', then three of 'main'; rounds count from 1."""
    stages = [{**PLAIN, "name": "warm", "rounds": 2}, {**PLAIN, "name": "main", "rounds": 3}]
    training = Training.model_validate({"stages": stages})
    assert training.rounds == 5
    found = [training.stage_at(number) for number in range(1, 6)]
    assert [(stage.name, before) for stage, before in found] == [
        *(("warm", 0), ("warm", 1), ("main", 0), ("main", 1), ("main", 2)),
    ]
    for number in (-1, 0, 6):
        with pytest.raises(ValueError, match=f"round {number} of 5"):
            training.stage_at(number)
