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
from ich_server.results import Arm, Decision, Subgroup
from ich_server.summary import hospitals_of, standard_error


@dataclass(frozen=True)
class Observed:
    """Patients of all hospitals with about the same predicted probability: mean of that, and the share with the event.

    `patients` is a mean over the seeds. low, high: Wilson's 95 % interval.
    """

    patients: float
    mean: float
    observed: float
    low: float
    high: float


def calibration(arm: Arm) -> list[Observed]:
    """The hospitals' bins joined, from low to high, into at most ten groups of about equal count."""
    told = [(one, len(found.bins)) for found in arm.hospitals.values() for seed in found.bins for one in seed]
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
    found = []
    for patients, events, total in joined:
        interval = binomtest(round(events), round(patients)).proportion_ci(0.95, method="wilson")
        found.append(Observed(patients, total / patients, events / patients, float(interval.low), float(interval.high)))
    return found


@dataclass(frozen=True)
class Benefit:
    """Net benefit at one threshold, over the hospitals that tell it: of the model, and of treating everybody."""

    threshold: float
    hospitals: int
    patients: int
    model: float
    everybody: float


def decisions(arm: Arm) -> list[Benefit]:
    """The decision curve of all hospitals' patients together; a mean over the seeds.

    In simulation of all of them; else at each threshold of the hospitals that tell it, who may be others at another one.
    """
    told: dict[float, list[tuple[int, int, list[Decision]]]] = {}
    everybody = [] if arm.pooled is None or not arm.pooled.decisions else [arm.pooled]
    for found in everybody or arm.hospitals.values():
        seeds = len(found.decisions)
        at: dict[float, list[Decision]] = {}
        for one in (one for seed in found.decisions for one in seed):
            at.setdefault(one.threshold, []).append(one)
        for threshold, each in at.items():
            if len(each) == seeds and found.events is not None:
                told.setdefault(threshold, []).append((found.n, found.events, each))
    whole = len(arm.hospitals) if everybody else None
    return [_benefit(threshold, told[threshold], whole) for threshold in sorted(told)]


def _benefit(threshold: float, told: list[tuple[int, int, list[Decision]]], hospitals: int | None) -> Benefit:
    patients, events = sum(n for n, _, _ in told), sum(having for _, having, _ in told)
    hits = math.fsum(math.fsum(one.true_positives for one in each) / len(each) for _, _, each in told)
    alarms = math.fsum(math.fsum(one.false_positives for one in each) / len(each) for _, _, each in told)
    everybody = net_benefit(events, patients - events, patients, threshold)
    return Benefit(
        threshold, hospitals or len(told), patients, net_benefit(hits, alarms, patients, threshold), everybody
    )


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
