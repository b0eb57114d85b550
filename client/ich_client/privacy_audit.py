"""Does the promise hold? A small federated run with planted patients, and how well an onlooker guesses who took part.

Steinke, Nasr and Jagielski (NeurIPS 2023): m canaries each take part or not by the flip of a coin, in one run; whoever sees
all that leaves the hospital guesses for the ones he is surest of. More right guesses than epsilon allows refute it.
Each canary has a column of its own in a logistic regression, and a gradient ten times the clip: nothing shows a patient
better, so a clip or a noise that is missing anywhere between the patients and the reply is seen.
"""

import math
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from ich_client import egress, work
from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_models import accounting
from ich_models.accounting import Programme
from ich_models.batch import Patients
from ich_models.federation import Federation
from ich_models.folds import ALL
from ich_models.networks.registry import OUTPUT_BIAS
from ich_models.privacy import Privacy
from ich_models.protocol import CONSTANTS, WEIGHTS, TrainTask
from ich_strategies.plan import Plan

CANARIES: Final = 1000
ROUNDS: Final = 5
CONFIDENCE: Final = 0.95

LOUD: Final = 20.0
"""A canary's number in its column, over the clip (or 1); its gradient is half of that where nothing is learnt yet."""

DELTA: Final = 1e-5
"""Of the audited run: with a study's own, a thousandth or so, a thousand canaries could refute nothing."""

RATE: Final = 1e-4
"""Learning rate: so small that a canary's gradient stays as loud as it was."""

TOLERANCE: Final = 0.1
"""Share by which noise and contributions that are measured may differ from what they should be, beside chance."""

SURE: Final = (25, 50, 100, 200, 400)
"""Guesses on either side: a fixed grid, whose best is taken with Bonferroni's correction."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What an audit found. `bound`: epsilon, at the least, with 95 % confidence. `noise` and `contribution`: measured,
    over what they should be."""

    promised: float
    bound: float
    canaries: int
    guesses: int
    right: int
    noise: float
    contribution: float
    error: float
    """Standard error of `contribution`."""

    @property
    def facts(self) -> dict[str, float]:
        """What a report says of it (`AuditBound` of results.json)."""
        return {
            "epsilon": self.bound,
            "promised": self.promised,
            "canaries": self.canaries,
            "right": self.right,
            "guesses": self.guesses,
        }

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, in words; nothing if the promise stands."""
        said = []
        if self.bound > self.promised:
            said.append(
                f"whoever sees the updates learns epsilon {self.bound:.2f} or more, and {self.promised:.2f} is promised"
            )
        if self.noise < 1 - TOLERANCE - 4 / math.sqrt(self.canaries):
            said.append(f"the noise is {self.noise:.2f} times what it should be")
        if self.contribution > 1 + TOLERANCE + 4 * self.error:
            said.append(f"a patient moves the weights {self.contribution:.2f} times as far as the clip allows")
        return tuple(said)


# --- the run ----------------------------------------------------------------------------------------------------------


def audit(privacy: Privacy, canaries: int = CANARIES, rounds: int = ROUNDS) -> Found:
    """Run it with the terms of a study, through the training and the way out that its rounds take."""
    study = _study(privacy, canaries, rounds)
    plan = Plan(study, study.training.seeds[0])
    took_part = np.array([secrets.randbits(1) for _ in range(canaries)], dtype=np.bool_)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(plan, _hospital("audited", np.flatnonzero(took_part), canaries, privacy.clip), Path(folder))
        other = Site(plan, _hospital("other", np.arange(0), canaries, privacy.clip), Path(folder))
        moved = _moved(plan, site, other, rounds)
    programme = accounting.programme(study)
    return judged(moved, took_part, privacy, programme)


def _study(privacy: Privacy, canaries: int, rounds: int) -> Federation:
    """A study of nothing but canaries: one model, these terms, noise for these few rounds."""
    number = {"type": "number", "known_at": "then", "range": [-1e9, 1e9]}
    names = [f"c{index}" for index in range(canaries)]
    terms = {
        "patients": max(1, canaries // 2),
        "hospitals": 1,
        "metrics": "not_sent",
        "delta": DELTA,
        "per": "study",
        "own_noise": False,
        "public": {},
    }
    return Federation.model_validate(
        {
            "name": "audit",
            "task": {
                "timeline": ["then", "later"],
                "predict_at": "then",
                "outcome": {"variable": "y", "at": "later", "poor": ">= 1"},
            },
            "modalities": {
                "table": {
                    "variables": {**dict.fromkeys(names, number), "y": {**number, "known_at": "later"}},
                    "predictors": names,
                    "scaling": "none",
                }
            },
            "network": {"name": "logistic", "dtype": "float64", "bias": "zero"},
            "training": {
                "stages": [{"rounds": rounds, "epochs": 1, "batch": "all", "optimizer": {"name": "sgd", "lr": RATE}}]
            },
            "evaluation": {"threshold": 0.5, "small_cells": 0},
            "privacy": {**privacy.model_dump(mode="json"), **terms},
        }
    )


def _hospital(name: str, members: NDArray[np.int64], canaries: int, clip: float) -> Hospital:
    """One patient for each member: a number in the canary's own column, and the outcome. The other hospital has a bystander."""
    table = np.zeros((max(1, len(members)), canaries))
    table[np.arange(len(members)), members] = LOUD * max(1.0, clip)
    ids = tuple(f"{name}-{index}" for index in range(len(table)))
    return Hospital(name, Patients(ids, table, np.ones(len(table), dtype=np.int64)), Limits(small_cells=0), {}, ())


def _moved(plan: Plan, site: Site, other: Site, rounds: int) -> Floats:
    """(canaries,): how far the audited hospital's replies have moved each canary's weight, over all rounds."""
    weights = plan.start_rows([0.0])
    constants = plan.constants_row(site.moments(0))
    total = np.zeros(weights.shape[1])
    for number in range(1, rounds + 1):
        task = TrainTask(federation=plan.hash, seed=plan.seed, round=number, folds=[ALL], final=number == rounds)
        rows = {WEIGHTS: weights, CONSTANTS: constants}
        replies = [egress.release(each, task, *work.train(each, task, rows))[1][WEIGHTS] for each in (site, other)]
        total += (replies[0] - weights)[0]
        weights = np.mean(replies, axis=0)
    tensors = plan.weights.unpack(torch.from_numpy(total)[None])
    return np.concatenate([tensor.numpy().ravel() for name, tensor in tensors.items() if name != OUTPUT_BIAS])


# --- the guesses ------------------------------------------------------------------------------------------------------


def judged(moved: Floats, took_part: NDArray[np.bool_], privacy: Privacy, plan: Programme) -> Found:
    """What scores of canaries say of a run with this plan: the best bound, and noise and contributions as measured."""
    step = RATE * privacy.clip / (plan.rate * max(1, len(moved) // 2))
    noise = float(moved[~took_part].std()) / (step * plan.sigma * math.sqrt(plan.steps))
    contribution = float(moved[took_part].mean() - moved[~took_part].mean()) / (step * plan.steps * plan.rate)
    error = (
        noise
        * plan.sigma
        / (math.sqrt(plan.steps) * plan.rate)
        * math.sqrt(1 / took_part.sum() + 1 / (~took_part).sum())
    )
    order = np.argsort(moved)
    best = (-1.0, 0, 0)
    sizes = [size for size in SURE if 2 * size <= len(moved)]
    for size in sizes:
        right = int(took_part[order[-size:]].sum() + (~took_part[order[:size]]).sum())
        bound = lower_bound(len(moved), 2 * size, right, plan.delta, (1 - CONFIDENCE) / len(sizes))
        best = max(best, (bound, 2 * size, right))
    return Found(plan.study, max(0.0, best[0]), len(moved), best[1], best[2], noise, contribution, error)


def chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are, at the most, where (epsilon, delta) holds (theorem 5.2, and its algorithm)."""
    each = 1 / (1 + math.exp(-epsilon))
    more = float(binom.sf(right - 1, guesses, each))
    below = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, each))
    worst = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, more + 2 * canaries * delta * worst)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, error: float) -> float:
    """The largest epsilon that so many right guesses refute, wrongly with probability `error` at the most."""
    if chance(canaries, guesses, right, 0.0, delta) >= error:
        return 0.0
    low, high = 0.0, 1.0
    while chance(canaries, guesses, right, high, delta) < error:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(canaries, guesses, right, middle, delta) < error else (low, middle)
    return low
