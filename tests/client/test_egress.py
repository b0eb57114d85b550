"""What leaves a hospital: replies of the closed list alone, and no count from which a few patients could be told."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ich_client import work
from ich_client.egress import release
from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_client.tasks import RefusedError
from ich_deploy.grid import InProcessGrid
from ich_models.batch import Patients
from ich_models.errors import Code, Exclusion
from ich_models.metrics import METRICS
from ich_models.protocol import (
    Answer,
    EvaluateReply,
    EvaluateTask,
    Question,
    RecalibrationReply,
    RecalibrationTask,
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
    ("ones", "told"), [(0, 0), (1, 5), (9, 5), (10, 10), (25, 25), (30, 30), (31, 35), (39, 35), (40, 40)]
)
def test_few_of_yes_or_no_are_told_as_half_of_k(ones: int, told: int, tmp_path: Path) -> None:
    part = statistics(site(hospital(forty(ones), HALF), tmp_path)).parts[0]
    assert (part.count[0], part.mean[0]) == (40, told / 40)
    assert part.m2[0] == pytest.approx(told * (40 - told) / 40)
    assert part.count[1:] == [40, 40]


@pytest.mark.parametrize(
    ("known", "count"), [(0, 0), (1, None), (9, None), (10, 10), (30, 30), (31, 40), (39, 40), (40, 40)]
)
def test_a_number_known_for_few_is_withheld_and_one_that_few_lack_counts_as_known_for_all(
    known: int, count: int | None, tmp_path: Path
) -> None:
    here = site(hospital(forty(missing=40 - known), HALF), tmp_path)
    part = statistics(here).parts[0]
    assert part.count[1] == count
    values = here.hospital.patients.table[40 - known :, 1]
    if not count:
        assert (part.mean[1], part.m2[1]) == (0, 0)
    elif count == known:
        assert part.mean[1] == pytest.approx(values.mean())
        assert part.m2[1] == pytest.approx(values.var() * known)
    else:  # rounded: an exact mean of whole numbers has a fraction of which the denominator is their number
        assert part.mean[1] != values.mean()
        assert part.mean[1] == pytest.approx(values.mean(), abs=values.std() / 60)
        assert part.m2[1] / count == pytest.approx(values.var(), rel=0.11)


def test_few_without_an_answer_do_not_show_in_the_share_of_the_others(tmp_path: Path) -> None:
    """18 of 37 would be 0.4864864...: the denominator would tell that three are missing."""
    table = forty(18)
    for row in table[-3:]:
        row[0] = np.nan
    part = statistics(site(hospital(table, HALF), tmp_path)).parts[0]
    assert (part.count[0], part.mean[0] * 40) == (40, pytest.approx(19))  # 40 * 18 / 37 = 19.46


@pytest.mark.parametrize(("events", "said"), [(0, 0), (1, None), (9, None), (10, 10), (30, 30), (31, None), (40, 40)])
def test_few_events_or_few_others_are_withheld(events: int, said: int | None, tmp_path: Path) -> None:
    reply = statistics(site(hospital(forty(), [1] * events + [0] * (40 - events)), tmp_path))
    assert (reply.patients, reply.events, reply.parts[0].events) == (40, said, said)
    assert reply.parts[0].moments().labelled == (0 if said is None else 40)


def test_few_left_out_are_withheld(tmp_path: Path) -> None:
    at = replace(hospital(forty(), HALF), excluded={Exclusion.OUTCOME: 3, Exclusion.PREDICTOR: 12})
    assert statistics(site(at, tmp_path)).excluded == {Exclusion.OUTCOME: None, Exclusion.PREDICTOR: 12}


def test_the_hospital_can_raise_k_and_not_lower_it(tmp_path: Path) -> None:
    means = {
        k: statistics(site(hospital(forty(12), HALF, k=k), tmp_path)).parts[0].mean[0] * 40 for k in (0, 5, 10, 13)
    }
    assert means == pytest.approx({0: 12, 5: 12, 10: 12, 13: 6.5})
    assert statistics(site(hospital(forty(9), HALF, k=5), tmp_path)).parts[0].mean[0] * 40 == pytest.approx(5)


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

    groups = [here.split(0).train]
    for part in range(1, (folds or 0) + 1):
        groups += [here.split(part).train, here.split(part).test]

    def points_at_few(column: int, rows: Any) -> bool:
        values = table[rows, column]
        known = values[~np.isnan(values)]
        counts = [len(known), len(values) - len(known)]
        if column != 1:
            counts += [int(known.sum()), len(known) - int(known.sum())]
        return any(0 < count < k for count in counts)

    whole = reply.parts[0]
    for column in range(3):
        count, mean = whole.count[column], whole.mean[column]
        if count and column != 1:
            ones = count * mean
            assert not 0 < round(ones, 6) < k or ones == pytest.approx(k / 2)
            assert not 0 < round(count - ones, 6) < k or count - ones == pytest.approx(k / 2)
        assert count is None or count in (0, len(groups[0])) or k <= count <= len(groups[0]) - k
        for number, part in reply.parts.items():
            if number and any(points_at_few(column, rows) for rows in groups):
                assert part.mean[column] == mean, "a part tells nothing of its own"
                assert part.count[column] in (None, 0, part.patients)
    for rows, part in zip(groups[1::2], list(reply.parts.values())[1:], strict=True):
        if any(0 < min(labels[g].sum(), len(g) - labels[g].sum()) < k for g in groups):
            assert part.events is None
        else:
            assert part.events in (None, labels[rows].sum())


def sides(patients: int, counts: Sequence[int], folder: Path, k: int = 10, **evaluation: Any) -> Site:
    """A hospital with a category of so many patients per level, the first being the reference, then a yes or no."""
    known = np.repeat(np.arange(len(counts)), counts)
    assert len(known) <= patients
    table = np.full((patients, len(counts)), np.nan)
    table[: len(known), :-1] = known[:, None] == np.arange(1, len(counts))
    table[:, -1] = np.arange(patients) % 2
    variables = {
        "side": {"type": "category", "levels": [f"s{n}" for n in range(len(counts))], "known_at": "admission"},
        "b": {"type": "yes_no", "known_at": "admission"},
        "mrs": {"type": "integer", "known_at": "90 days"},
    }
    settings = small.federation(
        table={"variables": variables, "predictors": ["side", "b"]}, evaluation={"small_cells": k, **evaluation}
    )
    ids = tuple(map(str, range(patients)))
    labels = np.arange(patients) % 4 // 2
    at = Hospital("north", Patients(ids, table, labels), Limits(small_cells=0), {}, ())
    return Site(Plan(settings, 42), at, folder)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((20, 30, 50), (30, 50)),
        ((0, 30, 70), (30, 70)),  # nobody is nobody
        ((9, 41, 50), (45, 50)),  # 100 - 45 - 50 leaves 5, as of any number from 1 to 9
        ((1, 49, 50), (45, 50)),
        ((4, 3, 40, 53), (5, 37, 53)),  # 7 of the first two: less 5 of the second and 5 of the first
        ((9, 3, 40, 48), (5, 40, 48)),  # 12 of the first two are no few
        ((3, 4, 2, 91), (5, 5, 85)),
    ],
)
def test_the_first_level_of_a_category_does_not_follow_from_the_others(
    counts: Sequence[int], told: Sequence[int], tmp_path: Path
) -> None:
    part = statistics(sides(100, counts, tmp_path)).parts[0]
    assert [count * mean for count, mean in zip(part.count, part.mean, strict=True)][:-1] == pytest.approx(told)  # type: ignore[operator]


@pytest.mark.parametrize(("missing", "folds"), [(0, None), (3, None), (20, None), (0, 2), (3, 3)])
def test_what_leaves_is_the_same_whatever_the_first_level_of_a_category_is(
    missing: int, folds: int | None, tmp_path: Path
) -> None:
    """One to nine patients of the first level, and the rest of 60 of the next: nine pairs of tables, one sum of all."""
    replies = [
        statistics(sides(120 + missing, (few, 60 - few, 60), tmp_path, folds=folds)).parts[0] for few in range(1, 10)
    ]
    assert len({one.model_dump_json() for one in replies}) == 1


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 30), min_size=3, max_size=6).filter(any),
    missing=st.integers(3, 25),
    folds=st.sampled_from([None, 2, 3]),
    k=st.integers(2, 12),
)
def test_no_few_levels_of_a_category_can_be_told_from_the_others(
    counts: list[int], missing: int, folds: int | None, k: int, tmp_path: Path
) -> None:
    """In each part, and in what it leaves over: the levels that are not told exactly are nobody's, or k patients'."""
    here = sides(sum(counts) + missing, counts, tmp_path, k, folds=folds)
    try:
        reply = statistics(here)
    except RefusedError:
        return  # too few patients for anything to be said
    levels = here.hospital.patients.table[:, : len(counts) - 1]
    groups = {(0, 0): here.split(0).train}
    for part in range(1, (folds or 0) + 1):
        groups |= {(part, 0): here.split(part).train, (0, part): here.split(part).test}

    def sums(part: int) -> NDArray[np.float64]:
        sent = reply.parts[part]
        return np.array([(sent.count[n] or 0) * sent.mean[n] for n in range(len(counts) - 1)])

    for (part, taken), rows in groups.items():
        known = levels[rows][~np.isnan(levels[rows, 0])]
        true = np.array([len(known) - known.sum(), *known.sum(axis=0)])
        if not reply.parts[0].count[0]:
            continue  # known for nobody, or for so few that nothing is told
        claimed = sums(part) - (sums(taken) if taken else 0.0)
        if not (part or taken) and reply.parts[0].count[0] - claimed.sum() == pytest.approx(k / 2):
            continue  # the first level is told as k / 2, too, and the joined one may by chance be told as it is
        exact = np.isclose(claimed, true[1:]) & ~np.isclose(claimed, k / 2)
        if number := part or taken:  # a part with the mean of all tells nothing of its own
            exact &= ~np.isclose(reply.parts[number].mean[: len(exact)], reply.parts[0].mean[: len(exact)])
        hidden = int(true[0] + true[1:][~exact].sum())
        assert hidden == 0 or hidden >= k or not exact.any(), (part, taken, true, claimed)


def test_events_of_validation_patients_do_not_follow_from_all_less_training_and_test(tmp_path: Path) -> None:
    """100 patients, 50 events: told are those of all, of 70 in training, of 20 tested; the 10 others would follow."""
    here = site(hospital(np.tile(forty(), (3, 1))[:100], [0, 1] * 50), tmp_path, test=0.2, validation=0.125)
    roles = here.split(0)
    assert (len(roles.train), len(roles.validation), len(roles.test)) == (70, 10, 20)
    assert 0 < here.hospital.patients.labels[roles.validation].sum() < 10
    assert statistics(here).parts[0].events is None


def test_what_leaves_is_the_same_whatever_the_small_number_is(tmp_path: Path) -> None:
    """One to nine patients with a bleed, one to nine without an age: nine pairs of tables, one reply."""
    replies = set()
    for few in range(1, 10):
        table = forty(few)
        for row in table[20 : 20 + few]:
            row[2] = np.nan
        constant = [[row[0], 60.0 + n % 2, 5.0 if not np.isnan(row[2]) else np.nan] for n, row in enumerate(table)]
        replies.add(statistics(site(hospital(constant, HALF), tmp_path)).model_dump_json())
    assert len(replies) == 1


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


@pytest.mark.parametrize(
    ("lacking", "folds", "told"),
    [
        (0, None, True),
        (9, None, False),
        (10, None, True),
        (30, None, True),
        (31, None, False),
        (12, None, True),
        (12, 2, False),
    ],
)
def test_how_many_have_an_image_is_withheld_where_few_have_or_lack_it(
    lacking: int, folds: int | None, told: bool, tmp_path: Path
) -> None:
    """In two parts, 12 without an image are fewer than 10 in one of them."""
    at = hospital(forty(), HALF)
    there = {"image": np.arange(40) >= lacking}
    at = replace(at, patients=replace(at.patients, image=np.zeros((40, 1, 1), np.float32), present=there))
    here = site(at, tmp_path, folds=folds)
    released, _ = release(here, train_task(here), update(seen={"image": [40 - lacking]}), {"weights": WEIGHTS})
    assert isinstance(released, TrainReply)
    assert released.seen == ({"image": [40 - lacking]} if told else {})


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


# --- bins, curve, subgroups -------------------------------------------------------------------------------------------


def grouped_site(folder: Path, patients: int = 240, k: int = 10, **evaluation: Any) -> Site:
    """A hospital whose patients have a sex (never a predictor) and an age, seven of them unknown."""
    generator = np.random.default_rng(4)
    x = generator.normal(size=(patients, 3))
    labels = (generator.random(patients) < 1 / (1 + np.exp(-1.4 * x[:, 0]))).astype(int)
    sex = generator.integers(0, 2, patients)
    sex[:7] = 2
    groups = {"sex": sex, "b": generator.choice([0, 0, 0, 1, 1, 2], patients)}
    number = {"type": "number", "known_at": "admission"}
    variables = dict.fromkeys("abc", number) | {
        "mrs": {"type": "integer", "known_at": "90 days"},
        "sex": {"type": "category", "levels": ["female", "male"]},
    }
    settings = small.federation(
        table={"variables": variables},
        evaluation={"small_cells": k, "subgroups": ["sex", {"variable": "b", "cut": [0, 2]}], **evaluation},
    )
    ids = tuple(map(str, range(patients)))
    at = Hospital("north", Patients(ids, x, labels, groups=groups), Limits(small_cells=0), {}, ())
    return Site(Plan(settings, 42), at, folder)


def asked_loho(here: Site) -> tuple[EvaluateTask, EvaluateReply]:
    """A plain model's evaluation as `work` makes it."""
    question = Question(arm="loho", folds=["without:north"], thresholds=[0.45])
    task = EvaluateTask(federation=here.plan.hash, seed=42, folds=["without:north"], questions=[question])
    rows = {
        "weights": np.array([[1.2, 0.1, 0.0, -0.2]], np.float32),
        "constants": np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1]], np.float32),
    }
    return task, work.evaluate(here, task, rows)[0]


def test_bins_curve_and_subgroups_leave_as_they_were_made(tmp_path: Path) -> None:
    here = grouped_site(tmp_path)
    task, made = asked_loho(here)
    released, _ = release(here, task, made, {})
    assert isinstance(released, EvaluateReply)
    (answer,) = released.answers
    assert answer == made.answers[0]
    assert sum(one.patients for one in answer.bins) == 240
    assert len(answer.bins) > 3
    assert 2 <= len(answer.decisions) < 10, "a finer curve would tell of a few"
    told = {level: one.patients for level, one in answer.subgroups["sex"].items()}
    assert told["missing"] is None
    assert sorted(told.values(), key=str)[0] is not None, "one of the two is told"
    assert None in (told["female"], told["male"]), "the seven would follow from both"
    assert tuple(answer.subgroups["b"]) == ("< 0", "0 to < 2", ">= 2", "missing")


def test_what_is_told_of_a_subgroup_are_its_patients_figures(tmp_path: Path) -> None:
    here = grouped_site(tmp_path, k=0)
    _, made = asked_loho(here)
    labels, sex = here.hospital.patients.labels, here.hospital.patients.groups["sex"]
    found = made.answers[0].subgroups["sex"]
    assert [found[level].patients for level in ("female", "male", "missing")] == np.bincount(sex).tolist()
    assert found["male"].events == labels[sex == 1].sum()
    x = here.hospital.patients.table[sex == 1]
    scores = 1 / (1 + np.exp(-(x @ [1.2, 0.1, 0.0] - 0.2)))
    brier = np.mean((scores - labels[sex == 1]) ** 2)
    assert found["male"].metrics["brier"][0] == pytest.approx(brier, abs=1e-6)
    assert len(made.answers[0].bins) == 10
    assert len(made.answers[0].decisions) == 10


def spoilt(answer: Answer, kind: str) -> Answer:
    """The answer of a client with a defect."""
    bins, curve = list(answer.bins), list(answer.decisions)
    if kind == "a bin of three":
        first, last = bins[0], bins[-1]
        three = last.model_copy(update={"patients": 3, "events": 3})
        rest = last.model_copy(update={"patients": last.patients - 3, "events": last.events - 3, "mean": first.mean})
        rest = rest.model_copy(update={"mean": last.mean})
        return answer.model_copy(update={"bins": [*bins[:-1], rest, three]})
    if kind == "a finer curve":
        one = curve[0].model_copy(update={"true_positives": curve[1].true_positives + 1})
        return answer.model_copy(update={"decisions": [one, *curve[1:]]})
    if kind == "another threshold":
        return answer.model_copy(update={"decisions": [curve[0].model_copy(update={"threshold": 0.0123})]})
    if kind == "a name":
        return answer.model_copy(update={"subgroups": {"Mustermann": answer.subgroups["sex"]}})
    hidden = answer.subgroups["sex"]["missing"].model_copy(update={"patients": 7, "events": 3})
    return answer.model_copy(
        update={"subgroups": {**answer.subgroups, "sex": {**answer.subgroups["sex"], "missing": hidden}}}
    )


@pytest.mark.parametrize("kind", ["a bin of three", "a finer curve", "another threshold", "a name", "a hidden level"])
def test_groups_that_break_the_rule_do_not_leave_whoever_made_them(kind: str, tmp_path: Path) -> None:
    here = grouped_site(tmp_path)
    task, made = asked_loho(here)
    with pytest.raises(RefusedError) as caught:
        release(here, task, made.model_copy(update={"answers": [spoilt(made.answers[0], kind)]}), {})
    assert caught.value.code is Code.EGRESS


def test_with_the_events_all_groups_are_withheld(tmp_path: Path) -> None:
    here = grouped_site(tmp_path)
    task, made = asked_loho(here)
    here.hospital.limits.__dict__["small_cells"] = 130  # a hospital may raise k
    released, _ = release(here, task, made, {})
    assert isinstance(released, EvaluateReply)
    (answer,) = released.answers
    assert (answer.events, answer.bins, answer.decisions, answer.subgroups) == (None, [], [], {})


@pytest.mark.parametrize(("events", "said"), [(9, None), (10, (0.1, 1.1)), (31, None)])
def test_a_line_fitted_to_few_is_withheld(events: int, said: Any, tmp_path: Path) -> None:
    here = site(hospital(forty(), [1] * events + [0] * (40 - events)), tmp_path, recalibrate="slope")
    task = RecalibrationTask(federation=here.plan.hash, seed=42, folds=["all"])
    released, _ = release(here, task, RecalibrationReply(hospital="north", lines=[(0.1, 1.1)]), {})
    assert isinstance(released, RecalibrationReply)
    assert released.lines == [said]


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


def test_a_column_that_nobody_tells_is_scaled_by_its_range(tmp_path: Path) -> None:
    """Anywhere within 18 to 110: mean 64, standard deviation 92 / sqrt(12). Without a range it is left out.

    Yes and no, three of forty at each hospital, are told as five.
    """
    number = {"type": "number", "known_at": "admission"}
    variables = {"a": {"type": "yes_no", "known_at": "admission"}, "b": {**number, "range": [18, 110]}, "c": number}
    variables["mrs"] = {"type": "integer", "known_at": "90 days"}
    members = [replace(hospital(forty(3, missing=35), HALF), name=name) for name in ("east", "north", "south")]
    for member in members:
        member.patients.table[:35, 2] = np.nan
    settings = small.federation(table={"variables": variables}, evaluation={"small_cells": 10})
    found = small.study(settings, members, tmp_path)
    fill, centre, scale = found.of(["all"])["constants"].reshape(3, 3)
    assert fill == pytest.approx([5 / 40, 64, 0])
    assert centre == pytest.approx([5 / 40, 64, 0])
    assert scale == pytest.approx([(5 / 40 * 35 / 40) ** -0.5, 12**0.5 / 92, 0])


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


def test_no_identifier_and_no_patients_value_crosses_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of a whole study, in both directions, as it would be between machines."""
    crossed: list[bytes] = []
    real = InProcessGrid._through_the_wire

    def captured(grid: InProcessGrid, message: Message) -> Message:
        with no_object_id_recompute():
            crossed.extend(part.deflate() for part in get_all_nested_objects(message).values())
        return real(grid, message)

    monkeypatch.setattr(InProcessGrid, "_through_the_wire", captured)
    members = [
        replace(
            one,
            patients=replace(
                one.patients,
                ids=tuple(f"CANARY-{one.name}-{n}" for n in range(len(one.patients))),
                groups={"c": np.nan_to_num(one.patients.table[:, 2] > 1).astype(np.int64)},
            ),
        )
        for one in small.hospitals()
    ]
    study = small.federation(
        evaluation={"folds": 2, "recalibrate": "slope", "subgroups": [{"variable": "c", "cut": [1]}]}
    )
    small.study(study, members, tmp_path, serialise=True)
    everything = b"".join(crossed)
    assert len(everything) > 20_000
    assert b"without:east" in everything, "it is the study's bytes that were looked at"
    assert b'"lines":[[' in everything
    assert b'"< 1":{"patients":' in everything
    assert b"CANARY" not in everything
    for member in members:
        for value in member.patients.table[~np.isnan(member.patients.table)]:
            assert value.tobytes() not in everything
            assert repr(float(value)).encode() not in everything
