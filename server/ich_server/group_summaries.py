"""What calibration bins, decision curves, subgroups and paired differences add up to over hospitals.

Counts add up exactly: what they give is what all patients in one place would have given. Where a hospital withholds a part
(a threshold of its curve, a subgroup), the sum is over the hospitals that tell it, and says over how many.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import binomtest

from ich_models.curves import BINS, net_benefit
from ich_models.metrics import MIN_PER_CLASS
from ich_server.meta_analysis import Summary, random_effects, summarise_auroc, summarise_ratio
from ich_server.results import Arm, Decision, Figures, Subgroup
from ich_server.summary import hospitals_of, standard_error

LEAST_BINS: Final = 3
"""Bins under which a hospital says nothing of the shape of its calibration: its patients are left out of the joined groups."""


@dataclass(frozen=True)
class Observed:
    """Patients of several hospitals with about the same predicted probability: mean of that, and the share with the event.

    `patients` is a mean over the seeds. low, high: Wilson's 95 % interval.
    """

    patients: float
    mean: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """The groups, from low to high, and who has a part in them: the other hospitals told fewer than `LEAST_BINS` bins."""

    groups: tuple[Observed, ...]
    joined: tuple[str, ...]
    too_few: tuple[str, ...]


def calibration(arm: Arm) -> Calibration:
    """The hospitals' bins joined into at most ten groups of about equal count.

    One bin of a hospital, or two, lie near its mean whatever its probabilities are: joined with others' they would draw the ends
    of the curve towards the middle.
    """
    enough = {
        name: min((len(seed) for seed in found.bins), default=0) >= LEAST_BINS
        for name, found in hospitals_of(arm).items()
    }
    told = [
        (one, len(arm.hospitals[name].bins))
        for name, is_enough in enough.items()
        if is_enough
        for seed in arm.hospitals[name].bins
        for one in seed
    ]
    told.sort(key=lambda pair: (pair[0].mean, pair[0].patients, pair[0].events))
    whole = sum(one.patients / seeds for one, seeds in told)
    joined: list[list[float]] = []
    reached = 0.0
    for one, seeds in told:
        share = 1 / seeds
        if len(joined) <= min(BINS - 1, int(reached / whole * BINS)):
            joined.append([0.0, 0.0, 0.0])
        for place, number in enumerate((one.patients, one.events, one.patients * one.mean)):
            joined[-1][place] += number * share
        reached += one.patients * share
    groups = []
    for patients, events, total in joined:
        interval = binomtest(round(events), round(patients)).proportion_ci(0.95, method="wilson")
        groups.append(
            Observed(patients, total / patients, events / patients, float(interval.low), float(interval.high))
        )
    return Calibration(
        tuple(groups),
        tuple(name for name, is_enough in enough.items() if is_enough),
        tuple(name for name, is_enough in enough.items() if not is_enough),
    )


@dataclass(frozen=True)
class Benefit:
    """Net benefit at one threshold, over the hospitals that tell it (by name): of the model, and of treating everybody."""

    threshold: float
    hospitals: tuple[str, ...]
    patients: int
    model: float
    everybody: float


def decisions(arm: Arm) -> list[Benefit]:
    """The decision curve of all hospitals' patients together; a mean over the seeds.

    In a simulation without a small-cell rule of all of them; else at each threshold of the hospitals that tell it, who may be
    others at another one.
    """
    telling = {name: found for name, found in hospitals_of(arm).items() if found.events is not None}
    together = arm.pooled if arm.pooled is not None and arm.pooled.decisions else None
    told: dict[float, dict[str, list[Decision]]] = {}
    for name, found in ({"": together} if together else telling).items():
        at: dict[float, list[Decision]] = {}
        for one in (one for seed in found.decisions for one in seed):
            at.setdefault(one.threshold, []).append(one)
        for threshold, each in at.items():
            if len(each) == len(found.decisions):  # told with every seed
                told.setdefault(threshold, {})[name] = each
    if together:
        return [_benefit(threshold, [(together, told[threshold][""])], tuple(telling)) for threshold in sorted(told)]
    return [
        _benefit(threshold, [(telling[name], each) for name, each in told[threshold].items()], tuple(told[threshold]))
        for threshold in sorted(told)
    ]


def _benefit(threshold: float, told: list[tuple[Figures, list[Decision]]], hospitals: tuple[str, ...]) -> Benefit:
    patients, events = sum(found.n for found, _ in told), sum(found.events or 0 for found, _ in told)
    hits = math.fsum(math.fsum(one.true_positives for one in each) / len(each) for _, each in told)
    alarms = math.fsum(math.fsum(one.false_positives for one in each) / len(each) for _, each in told)
    everybody = net_benefit(events, patients - events, patients, threshold)
    return Benefit(threshold, hospitals, patients, net_benefit(hits, alarms, patients, threshold), everybody)


@dataclass(frozen=True)
class AcrossSubgroup:
    """One subgroup over the hospitals that tell it. None: no hospital can enter the summary."""

    variable: str
    level: str
    hospitals: int
    withheld: int
    patients: int
    events: int
    auroc: Summary | None
    observed_expected: Summary | None


def subgroups(arm: Arm) -> list[AcrossSubgroup]:
    """Every subgroup that somebody tells or withholds, in the study's order; empty ones are left out."""
    names: dict[tuple[str, str], list[Subgroup]] = {}
    for found in hospitals_of(arm).values():
        for variable, levels in found.subgroups.items():
            for level, one in levels.items():
                names.setdefault((variable, level), []).append(one)
    return [across for (variable, level), each in names.items() for across in _across(variable, level, each)]


def _across(variable: str, level: str, each: list[Subgroup]) -> Iterator[AcrossSubgroup]:
    told = [one for one in each if one.n]
    hidden = sum(one.n is None for one in each)
    if told or hidden:
        yield AcrossSubgroup(
            variable,
            level,
            len(told),
            hidden,
            sum(one.n or 0 for one in told),
            sum(one.events or 0 for one in told),
            _summary(told, "auroc"),
            _summary(told, "observed_expected"),
        )


def _summary(told: list[Subgroup], name: str) -> Summary | None:
    effects, errors = [], []
    for one in told:
        fewer = min(one.events or 0, (one.n or 0) - (one.events or 0))
        figure = getattr(one, name)
        error = standard_error(name, figure)
        if fewer >= MIN_PER_CLASS and error is not None:
            effects.append(figure.value)
            errors.append(error)
    if not effects:
        return None
    values, variances = np.array(effects), np.array(errors) ** 2
    if name == "auroc":
        return summarise_auroc(values, variances * (values * (1 - values)) ** 2)
    return summarise_ratio(values, variances)


def differences(arm: Arm) -> Summary | None:
    """Random-effects mean of the arm's AUROC differences on the same patients; None where no hospital has an interval."""
    effects, errors = [], []
    for figure in arm.differences.values():
        error = standard_error("auroc_difference", figure)
        if figure.value is not None and error is not None:
            effects.append(figure.value)
            errors.append(error)
    return random_effects(effects, np.array(errors) ** 2) if effects else None


LARGE_MATRIX: Final = 16
"""Hospitals over which a cross-site matrix is a picture, and its table one line per hospital."""
