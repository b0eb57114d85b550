"""Local training with differential privacy by patient: DP-SGD (Abadi et al., CCS 2016) over the patients of a hospital.

Knows nothing of budgets: the ledger reserves what a call costs before it, and settles after it. A call takes the steps that
it is told to take, each as `Terms` says, and nothing it reports depends on a patient but through the noise.
"""

import logging
import math
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ich_client import self_test
from ich_client.gradients import Draw, Engine, EngineName, choose, learning
from ich_client.noise import Stream, add_noise
from ich_client.train import Direction, Fit, redirect
from ich_models.batch import Batch
from ich_models.recipes import Recipe, build_optimizer
from ich_models.stack import Stack

log = logging.getLogger(__name__)

TRIED: Final = 3
"""Patients of the self-test; it sums over them, and over all but each of them."""

_tested: WeakKeyDictionary[nn.Module, set[tuple[str, str, str]]] = WeakKeyDictionary()
"""Of each network the hospitals, stages and engines that have passed the self-test in this process."""


@dataclass(frozen=True)
class Terms:
    """What is private about the steps of one call; all of it public, none of it computed from patients.

    `sigma`: noise multiplier, the noise's standard deviation over the clip. `clip`: C, the largest norm of a patient's gradient.
    `rate`: q, the chance of a patient to be in a step's batch. `steps`: how many steps are taken.
    `expected`: what the noised sum is divided by, q times the public number of patients.
    """

    sigma: float
    clip: float
    rate: float
    steps: int
    expected: float

    def __post_init__(self) -> None:
        fine = self.sigma >= 0 and self.clip > 0 and 0 < self.rate <= 1 and self.steps >= 0 and self.expected > 0
        if not fine or (self.sigma and not math.isfinite(self.sigma * self.clip)) or not math.isfinite(self.expected):
            raise ValueError(f"no such terms: {self}")

    @property
    def scale(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients; 0 without noise, whatever the clip."""
        return self.sigma * self.clip if self.sigma else 0.0


def fit_private(
    stack: Stack,
    patients: Batch,
    recipe: Recipe,
    terms: Terms,
    *,
    rounds_before: int = 0,
    rounds: int = 1,
    epochs_before: int = 0,
    direction: Direction | None = None,
    engine: EngineName = "auto",
    hospital: str = "",
) -> Fit:
    """Train the one model of a stack in place, each step on a secret Poisson batch; as `train.fit` but for this.

    The gradient that the optimiser, and before it the strategy's `direction`, is given is the sum of clipped gradients with
    noise, over the public `terms.expected`; an empty batch gives noise alone. So momentum, decay, FedProx and SCAFFOLD come
    after clip and noise, and cost nothing. The recipe's `batch` plays no part, and its `epochs` only space its schedules
    over the steps. There is no seed: neither batches nor noise may be known. Losses are private and are not reported (NaN).

    `hospital`: whose patients these are; in a simulation several share a network, and each has a self-test of its own.

    One model at a time: models of several folds that shared a batch would cost more than the sum of their steps.
    Raises RefusedError(PRIVACY) for a network that is not private, as it says itself or as the self-test finds.
    """
    if stack.copies > 1:
        raise ValueError(f"{stack.copies} models at once | train folds one after another under privacy")
    nothing = torch.full((1,), torch.nan, dtype=torch.float64)
    parameters = learning(stack)
    if not parameters:
        return Fit(nothing, 0.0)
    optimizer = build_optimizer(recipe.optimizer, parameters.values())
    stack.network.train()
    self_test.refuse_coupling(stack)
    with self_test.unchanged_buffers(stack.network):
        patients = stack.with_features(patients)
    stream = Stream()
    device = next(iter(parameters.values())).device
    epochs = recipe.epochs or 1
    rate = 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        sums = _tried(stack, patients, recipe, terms, engine, stream, hospital)
        with self_test.unchanged_buffers(stack.network):
            for step in range(terms.steps):
                done = rounds_before * epochs + step * epochs // terms.steps
                lr = recipe.optimizer.lr * recipe.schedule.factor(done, rounds * epochs)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                rows = stream.poisson(len(patients), terms.rate)
                total = sums.clipped(Draw(rows, stream.seeds(len(rows))), terms.clip, epochs_before + done)
                for name, parameter in parameters.items():
                    parameter.grad = add_noise(total[name], terms.scale, stream) / terms.expected
                if direction is not None:
                    redirect(stack, direction)
                optimizer.step()
                rate += lr
    return Fit(nothing, rate)


def _tried(
    stack: Stack, patients: Batch, recipe: Recipe, terms: Terms, engine: EngineName, stream: Stream, hospital: str
) -> Engine:
    """The engine, once it has shown on some patients of this hospital that it is private."""
    order = torch.from_numpy(stream.uniform(len(patients))).argsort()
    trial = Draw(order[:TRIED], stream.seeds(min(TRIED, len(order))))
    chosen = choose(stack, patients, recipe, engine, trial)
    passed = _tested.setdefault(stack.network, set())
    case = (hospital, getattr(stack.network, "stage", ""), chosen.name)
    if case not in passed and math.isfinite(terms.clip):
        self_test.run(chosen, stack.network, trial, terms.clip)
        passed.add(case)
    return chosen
