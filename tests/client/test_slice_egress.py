"""What leaves a hospital of labelled slices: no type, threshold or count that points at a few patients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_slices

from ich_client import work
from ich_client.egress import release
from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_models.batch import Patients
from ich_models.image_spec import HAEMORRHAGES
from ich_models.networks.constants import WITH, WITHOUT
from ich_models.protocol import (
    Answer,
    EvaluateReply,
    EvaluateTask,
    Group,
    Question,
    StatisticsReply,
    StatisticsTask,
    ThresholdReply,
    ThresholdTask,
    TypeAnswer,
)
from ich_models.slice_metrics import evaluate_slices
from ich_strategies.plan import Plan

PATIENTS = 40
HAVING = (20, 9, 10, 31, 0)
"""Patients with each type: half, too few, just enough, too few without it, none."""


def site(folder: Path, k: int = 10) -> Site:
    """40 patients of two labelled slices; those who have a type have it on the first."""
    targets = np.zeros((PATIENTS, small_slices.SLICES, 5), np.float32)
    targets[:, 2:] = np.nan
    for index, having in enumerate(HAVING):
        targets[:having, 0, index] = 1
    slices = np.arange(small_slices.SLICES) < np.full((PATIENTS, 1), 2)
    image = np.random.default_rng(0).random((*slices.shape, 1, small_slices.SIDE, small_slices.SIDE))
    ids = tuple(map(str, range(PATIENTS)))
    labels = np.arange(PATIENTS) % 2
    patients = Patients(ids, np.zeros((PATIENTS, 3)), labels, image=image, slices=slices, targets=targets)
    plan = Plan(small_slices.federation(evaluation={"small_cells": k}), 42)
    return Site(plan, Hospital("north", patients, Limits(small_cells=0), {}, ()), folder)


def header(here: Site) -> dict[str, Any]:
    return {"federation": here.plan.hash, "seed": 42}


def test_slices_of_a_type_that_few_have_or_few_lack_are_not_counted(tmp_path: Path) -> None:
    here = site(tmp_path)
    task = StatisticsTask(**header(here), parts=[0])
    said, _ = release(here, task, work.statistics(here, task), {})
    assert isinstance(said, StatisticsReply)
    part = said.parts[0]
    told = dict(zip(here.plan.extras, zip(part.count[3:], part.mean[3:], strict=True), strict=True))
    for kind, having in zip(HAEMORRHAGES, HAVING, strict=True):
        with_it, without = told[f"{WITH}{kind}"], told[f"{WITHOUT}{kind}"]
        if having in (9, 31):
            assert (with_it, without) == ((None, 0.0), (None, 0.0))
        else:
            assert with_it == (40, having / 40)
            assert without == (40, (80 - having) / 40)


def test_a_type_that_few_have_or_few_lack_has_no_figures(tmp_path: Path) -> None:
    here = site(tmp_path)
    targets = here.hospital.patients.targets
    assert targets is not None
    scores = np.random.default_rng(1).random(targets.shape)
    found = evaluate_slices(PATIENTS, 20, targets, scores, np.full((PATIENTS, 5), 0.5))
    question = Question(arm="loho", folds=["without:north"], thresholds=[0.5] * 5)
    task = EvaluateTask(**header(here), folds=["without:north"], questions=[question])
    said, _ = release(here, task, EvaluateReply(hospital="north", answers=[Answer.of("loho", found)]), {})
    assert isinstance(said, EvaluateReply)
    (answer,) = said.answers
    assert answer.events == 20
    for kind, having in zip(HAEMORRHAGES, HAVING, strict=True):
        one = answer.types[kind]
        assert (one.slices.n, one.patients.n) == (80, 40)
        if having in (9, 31):
            assert one.patients.events is None
            assert one.slices.events is None
            assert {three for group in (one.slices, one.patients) for three in group.metrics.values()} == {
                (None, None, None)
            }
        else:
            assert one.patients.events == having
            assert one.slices.metrics["brier"][0] is not None


@pytest.mark.parametrize("k", [0, 10])
def test_a_threshold_is_chosen_among_k_patients_with_and_without_the_type(tmp_path: Path, k: int) -> None:
    here = site(tmp_path, k)
    task = ThresholdTask(**header(here), folds=["all"])
    constants = here.constants(0).numpy()
    reply, _ = work.thresholds(here, task, {"weights": here.plan.start.numpy(), "constants": constants})
    assert len(reply.thresholds) == 5
    said, _ = release(here, task, reply, {})
    assert isinstance(said, ThresholdReply)
    told = [threshold is not None for threshold in said.thresholds]
    assert told == ([True, False, True, False, False] if k else [True, True, True, True, False])


def group(n: int, events: int | None) -> Group:
    """Without figures."""
    return Group(n=n, events=events, metrics=dict.fromkeys(Group.of(EMPTY).metrics, (None, None, None)))


EMPTY = evaluate_slices(0, 0, np.zeros((0, 1, 5)), np.zeros((0, 1, 5)), np.zeros((0, 5))).types["epidural"].slices


@pytest.mark.parametrize(
    ("slices", "patients", "message"),
    [
        ((3, 1), (4, 1), "do not belong together"),
        ((8, None), (4, 1), "do not belong together"),
        ((8, 1), (4, 2), "more patients with a type"),
        ((8, 9), (4, 2), "not an evaluation"),
    ],
)
def test_figures_that_cannot_be_are_refused(slices: Any, patients: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TypeAnswer(slices=group(*slices), patients=group(*patients))
