"""What leaves a hospital: replies of the closed list alone, and no count from which a few patients could be told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ich_client import work
from ich_client.egress import release
from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_client.tasks import RefusedError
from ich_models.batch import Patients
from ich_models.errors import Code, Exclusion
from ich_models.metrics import METRICS
from ich_models.protocol import (
    Answer,
    EvaluateReply,
    EvaluateTask,
    PartStatistics,
    Question,
    Refusal,
    StatisticsReply,
    StatisticsTask,
    ThresholdReply,
    ThresholdTask,
    TrainReply,
    TrainTask,
)
from ich_strategies.plan import Plan


def hospital(table: Any, labels: Any, k: int = 0, **more: Any) -> Hospital:
    """A hospital with these three columns and outcomes."""
    rows = np.array(table, dtype=np.float64)
    ids = tuple(map(str, range(len(rows))))
    return Hospital(
        "north", Patients(ids, rows, np.array(labels, dtype=np.int64)), Limits(small_cells=k), {}, (), **more
    )


def site(at: Hospital, folder: Path, k: int = 10, **evaluation: Any) -> Site:
    return Site(Plan(small.federation(evaluation={"small_cells": k, **evaluation}), 42), at, folder)


def statistics(here: Site) -> StatisticsReply:
    """As it leaves."""
    folds = here.plan.federation.evaluation.folds or 0
    task = StatisticsTask(federation=here.plan.hash, seed=42, parts=list(range(folds + 1)))
    released, rows = release(here, task, work.statistics(here, task), {})
    assert isinstance(released, StatisticsReply)
    assert rows == {}
    return released


def forty(ones: int = 20, missing: int = 0) -> list[list[float]]:
    """40 patients: a yes-or-no column with so many ones, a number missing for so many, a number."""
    return [[float(n < ones), np.nan if n < missing else 60.0 + n, float(n % 7)] for n in range(40)]


HALF = [0, 1] * 20


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ones", "withheld"), [(0, False), (1, True), (9, True), (10, False), (30, False), (31, True), (40, False)]
)
def test_a_column_of_yes_and_no_with_few_of_either_is_withheld(ones: int, withheld: bool, tmp_path: Path) -> None:
    part = statistics(site(hospital(forty(ones), HALF), tmp_path)).parts[0]
    assert (part.count[0], part.mean[0]) == ((0, 0) if withheld else (40, ones / 40))
    assert part.count[1:] == [40, 40]


@pytest.mark.parametrize(("known", "count"), [(0, 0), (1, 0), (9, 0), (10, 10), (30, 30), (31, 40), (39, 40), (40, 40)])
def test_the_number_of_missing_values_is_withheld_where_it_is_small(known: int, count: int, tmp_path: Path) -> None:
    """Few known: the column is withheld. Few missing: it counts as known for all, mean and variance unchanged."""
    here = site(hospital(forty(missing=40 - known), HALF), tmp_path)
    part = statistics(here).parts[0]
    assert part.count[1] == count
    values = here.hospital.patients.table[40 - known :, 1]
    if count:
        assert part.mean[1] == pytest.approx(values.mean())
        assert part.m2[1] / count == pytest.approx(values.var())


@pytest.mark.parametrize(("events", "said"), [(0, 0), (1, None), (9, None), (10, 10), (30, 30), (31, None), (40, 40)])
def test_few_events_or_few_others_are_withheld(events: int, said: int | None, tmp_path: Path) -> None:
    reply = statistics(site(hospital(forty(), [1] * events + [0] * (40 - events)), tmp_path))
    assert (reply.patients, reply.events, reply.parts[0].events) == (40, said, said)
    assert reply.parts[0].moments().labelled == (0 if said is None else 40)


def test_few_left_out_are_withheld(tmp_path: Path) -> None:
    at = replace(hospital(forty(), HALF), excluded={Exclusion.OUTCOME: 3, Exclusion.PREDICTOR: 12})
    assert statistics(site(at, tmp_path)).excluded == {Exclusion.OUTCOME: None, Exclusion.PREDICTOR: 12}


def test_the_hospital_can_raise_k_and_not_lower_it(tmp_path: Path) -> None:
    table = forty(12)
    assert statistics(site(hospital(table, HALF, k=13), tmp_path)).parts[0].count[0] == 0
    assert statistics(site(hospital(table, HALF, k=5), tmp_path)).parts[0].count[0] == 40
    assert statistics(site(hospital(forty(9), HALF, k=5), tmp_path)).parts[0].count[0] == 0


def test_k_0_withholds_nothing(tmp_path: Path) -> None:
    here = site(hospital(forty(1, missing=1), [1] + [0] * 39), tmp_path, k=0)
    task = StatisticsTask(federation=here.plan.hash, seed=42, parts=[0])
    assert statistics(here) == work.statistics(here, task)


def test_a_hospital_of_few_patients_says_a_code(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="sums over 9 patients") as caught:
        statistics(site(hospital(forty()[:9], HALF[:9]), tmp_path))
    assert caught.value.code is Code.SMALL_CELLS


def test_parts_that_hold_few_patients_cannot_be_told_apart_by_subtraction(tmp_path: Path) -> None:
    """Sums of all less sums of all but part 1 are the sums of part 1: 8 patients of 40 in 5 parts."""
    with pytest.raises(RefusedError, match="sums over 8 patients"):
        statistics(site(hospital(forty(), HALF), tmp_path, folds=5))
    assert statistics(site(hospital(forty(), HALF), tmp_path, folds=4)).patients == 40


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    patients=st.integers(20, 90),
    rate=st.floats(0, 1),
    missing=st.floats(0, 1),
    folds=st.sampled_from([None, 2, 3]),
    k=st.integers(2, 12),
)
def test_no_small_count_can_be_computed_from_what_leaves(
    seed: int, patients: int, rate: float, missing: float, folds: int | None, k: int, tmp_path: Path
) -> None:
    """Counts as sent, numbers of ones from the means, and what each part's sums leave over of all sums."""
    generator = np.random.default_rng(seed)
    table = np.stack(
        [generator.random(patients) < rate, generator.normal(60, 9, patients), generator.random(patients) < 0.5], 1
    ).astype(float)
    table[generator.random(patients) < missing, 1] = np.nan
    labels = (generator.random(patients) < rate).astype(int)
    here = site(hospital(table, labels), tmp_path, k=k, folds=folds)
    try:
        reply = statistics(here)
    except RefusedError:
        return  # too few patients for anything to be said

    def cells(part: PartStatistics) -> dict[str, float]:
        ones = {f"ones {c}": part.count[c] * part.mean[c] for c in (0, 2) if part.count[c]}
        zeros = {f"zeros {c}": part.count[c] * (1 - part.mean[c]) for c in (0, 2) if part.count[c]}
        known = {f"known {c}": part.count[c] for c in range(3) if part.count[c]}
        absent = {f"absent {c}": part.patients - part.count[c] for c in range(3) if part.count[c]}
        events = {} if part.events is None else {"events": part.events, "others": part.patients - part.events}
        return {**ones, **zeros, **known, **absent, **events, "patients": part.patients}

    told = {number: cells(part) for number, part in reply.parts.items()}
    for number, one in told.items():
        for name, count in one.items():
            assert not 0.5 < count < k - 0.5, (number, name, count)
            if number and name in told[0]:
                left = told[0][name] - count
                assert not 0.5 < left < k - 0.5, (number, name, left)


# --- training, thresholds, evaluation ---------------------------------------------------------------------------------


def train_task(here: Site) -> TrainTask:
    return TrainTask(federation=here.plan.hash, seed=42, round=1, folds=["all"], final=False)


def update(**changes: Any) -> TrainReply:
    return TrainReply(**{"hospital": "north", "patients": [40], "losses": [0.7], "validation_losses": [0.6], **changes})


WEIGHTS = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(("share", "said"), [(0.2, None), (0.25, 0.6)])
def test_a_validation_loss_of_few_patients_is_withheld(share: float, said: float | None, tmp_path: Path) -> None:
    """8 or 10 of 40 patients."""
    here = site(hospital(forty(), HALF), tmp_path, validation=share)
    released, _ = release(here, train_task(here), update(), {"weights": WEIGHTS})
    assert isinstance(released, TrainReply)
    assert (released.losses, released.validation_losses) == ([0.7], [said])
    task = ThresholdTask(federation=here.plan.hash, seed=42, folds=["all"])
    threshold = ThresholdReply(hospital="north", thresholds=[0.4], validation_losses=[0.6])
    found, _ = release(here, task, threshold, {})
    assert isinstance(found, ThresholdReply)
    assert found.validation_losses == [said]
    assert found.thresholds == [None], "at most 5 patients of each class"


@pytest.mark.parametrize(("events", "said"), [(9, None), (10, 0.4), (31, None)])
def test_a_threshold_chosen_among_few_is_withheld(events: int, said: float | None, tmp_path: Path) -> None:
    here = site(hospital(forty(), [1] * events + [0] * (40 - events)), tmp_path)
    task = ThresholdTask(federation=here.plan.hash, seed=42, folds=["all"])
    released, _ = release(here, task, ThresholdReply(hospital="north", thresholds=[0.4], validation_losses=[None]), {})
    assert isinstance(released, ThresholdReply)
    assert released.thresholds == [said]


def answer(patients: int, events: int) -> EvaluateReply:
    metrics = dict.fromkeys(METRICS, (0.5, 0.4, 0.6))
    return EvaluateReply(
        hospital="north", answers=[Answer(arm="loho", patients=patients, events=events, metrics=metrics)]
    )


@pytest.mark.parametrize(
    ("patients", "events", "whole"),
    [(40, 10, True), (40, 9, False), (40, 31, False), (40, 30, True), (40, 1, False), (9, 5, False)],
)
def test_figures_of_few_events_are_withheld(patients: int, events: int, whole: bool, tmp_path: Path) -> None:
    here = site(hospital(forty(), HALF), tmp_path)
    question = Question(arm="loho", folds=["without:north"], thresholds=[0.5])
    task = EvaluateTask(federation=here.plan.hash, seed=42, folds=["without:north"], questions=[question])
    released, _ = release(here, task, answer(patients, events), {})
    assert isinstance(released, EvaluateReply)
    (found,) = released.answers
    assert found.patients == patients
    assert found.events == (events if whole else None)
    assert {three[0] for three in found.metrics.values()} == {0.5 if whole else None}


# --- the closed list --------------------------------------------------------------------------------------------------


class Diary(Refusal):
    """Not a reply."""


@pytest.mark.parametrize(
    ("reply", "rows"),
    [
        (Diary(code=Code.DATA), {}),
        (update(), {}),
        (update(), {"weights": WEIGHTS, "patients": WEIGHTS}),
        (update(), {"weights": WEIGHTS, "local": WEIGHTS}),
        (update(), {"weights": WEIGHTS[:, :3]}),
        (update(), {"weights": WEIGHTS.repeat(2, 0)}),
        (update(), {"weights": WEIGHTS.astype(np.float64)}),
        (update(), {"weights": WEIGHTS * np.nan}),
        (update().model_copy(update={"losses": ["Mustermann"]}), {"weights": WEIGHTS}),
        (update().model_copy(update={"hospital": "Mustermann"}), {"weights": WEIGHTS}),
        (update().model_copy(update={"patients": [-1]}), {"weights": WEIGHTS}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else ",".join(value) or "no blocks",
)
def test_anything_else_does_not_leave(reply: Any, rows: Any, tmp_path: Path) -> None:
    here = site(hospital(forty(), HALF), tmp_path)
    with pytest.raises(RefusedError) as caught:
        release(here, train_task(here), reply, rows)
    assert caught.value.code is Code.EGRESS


def test_a_study_goes_on_with_what_is_left(tmp_path: Path) -> None:
    """East's events and a column are few: its patients still teach, the others' sums scale, and the report says so."""
    members = small.hospitals()
    members[0].patients.labels[:] = 0
    members[0].patients.labels[:4] = 1
    found = small.study(small.federation(evaluation={"small_cells": 10}), members, tmp_path)
    assert found.quarantined == []
    assert found.hospitals["east"].events is None
    (east,) = found.answers["east"]
    assert (east.patients, east.events) == (50, None)
    (north,) = found.answers["north"]
    assert north.metrics["auroc"][0] is not None
    assert all(np.isfinite(block).all() for block in found.rows.values())
