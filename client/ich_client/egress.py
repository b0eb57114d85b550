"""The one way out: every reply is held to its schema and to the small-cell rule here, or it does not leave.

A count below k, the larger of the study's and the hospital's `small_cells`, could point at a few patients: it is
withheld, and so is every figure that it could be computed from. k = 0 withholds nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ich_client import private_releases
from ich_client.budget import Budget
from ich_client.site import Site
from ich_client.splits import of as splits_of
from ich_client.tasks import RefusedError
from ich_models import clinical, extras
from ich_models.batch import Patients
from ich_models.errors import Code
from ich_models.federation import Federation
from ich_models.folds import parse
from ich_models.metrics import METRICS
from ich_models.protocol import (
    LOCAL,
    WEIGHTS,
    Answer,
    EvaluateReply,
    ModelReply,
    PartStatistics,
    RecalibrationReply,
    Rows,
    StatisticsReply,
    Task,
    ThresholdReply,
    TrainReply,
    TrainTask,
    TypeAnswer,
)
from ich_models.slice_metrics import having as patients_of
from ich_models.strict import Strict


def release(site: Site, task: Task, reply: Strict, rows: Rows) -> tuple[Strict, Rows]:
    """The reply as it may leave, with its blocks.

    Raises RefusedError(SMALL_CELLS) where what is left would say nothing, and RefusedError(EGRESS) for whatever is not
    of the closed list of replies, or holds other blocks, forms or numbers than that reply may: nothing leaves then.
    """
    rule = _RULES.get(type(reply))
    if rule is None:
        raise RefusedError(Code.EGRESS, f"{type(reply).__name__} is no reply that may leave")
    try:
        whole = type(reply).model_validate(reply.model_dump())
    except ValidationError as error:
        raise RefusedError(Code.EGRESS, f"a reply outside its schema: {error}") from error
    _blocks(site, task, rows)
    if site.budget is not None:
        return _private(site, site.budget, task, whole), rows
    return rule(site, whole), rows


def _private(site: Site, budget: Budget, task: Task, reply: Strict) -> Strict:
    """The same in a study that promises privacy: public numbers in place of true ones (`private_releases.py`)."""
    if isinstance(reply, StatisticsReply):
        _check_groups(site)
        return private_releases.statistics(budget, reply)
    if isinstance(reply, TrainReply) and isinstance(task, TrainTask):
        parts = [parse(fold).part or 0 for fold in task.folds]
        return private_releases.training(budget, reply, parts)
    if isinstance(reply, EvaluateReply) and budget.privacy.metrics != "not_sent":
        return _evaluation(site, reply)
    if isinstance(reply, ModelReply):
        return reply
    raise RefusedError(Code.EGRESS, f"{type(reply).__name__} tells of patients, and the study promises privacy")


def _blocks(site: Site, task: Task, rows: Rows) -> None:
    """Only training returns blocks, and those that the strategy names."""
    widths: dict[str, int] = {}
    folds = 0
    if isinstance(task, TrainTask):
        size, folds = site.plan.weights.size, len(task.folds)
        widths = {WEIGHTS: size, **site.plan.strategy.returns(size)}
        if task.final and site.plan.local.size:
            widths[LOCAL] = site.plan.local.size
    if set(rows) != set(widths):
        raise RefusedError(Code.EGRESS, f"blocks {sorted(rows)}, and {sorted(widths)} may leave")
    dtype = site.plan.number
    for name, block in rows.items():
        if block.shape != (folds, widths[name]) or block.dtype != dtype or not np.isfinite(block).all():
            raise RefusedError(
                Code.EGRESS, f"block {name} {block.dtype}{block.shape} is not of the form that may leave"
            )


# --- the small-cell rule ----------------------------------------------------------------------------------------------


def _small(count: int, k: int) -> bool:
    """Whether a count points at a few patients; none at all points at nobody."""
    return 0 < count < k


def few_of_a_class(labels: NDArray[np.int64], k: int) -> bool:
    """Whether the patients with the outcome, or those without, are a few."""
    events = int(labels.sum())
    return _small(events, k) or _small(len(labels) - events, k)


def smallest_group(patients: Patients, federation: Federation) -> int:
    """Patients of the smallest group whose sums are told, or can be had by subtraction."""
    splits = {part: splits_of(patients, federation, part) for part in range((federation.evaluation.folds or 0) + 1)}
    return min(size for part, one in splits.items() for size in (len(one.train), *([len(one.test)] if part else [])))


def _statistics(site: Site, reply: StatisticsReply) -> StatisticsReply:
    """Sums of every part. What a part's sums would tell of a few, alone or by subtraction, no part tells."""
    k, patients = site.small_cells, site.hospital.patients
    _check_groups(site)
    train = site.split(0).train
    rest = np.setdiff1d(np.arange(len(patients)), train)
    told_apart = [rows for part in reply.parts if part for rows in (site.split(part).train, site.split(part).test)]
    # told are the events of all, of the training patients and, in an answer, of the test's: the others follow
    apart = (np.arange(len(patients)), train, rest, site.split(0).validation)
    few_events = [few_of_a_class(patients.labels[rows], k) for rows in apart]
    in_parts = any(few_events) or any(few_of_a_class(patients.labels[rows], k) for rows in told_apart)
    counts = np.concatenate([np.zeros(patients.table.shape[1], np.bool_), extras.counted(site.plan.extras)])
    hidden = _counts_of_few(site, (np.arange(len(patients)), train, rest, *told_apart))
    levels = clinical.categories(site.plan.federation.modalities.table)
    joined = [_joined(site.told[rows], levels, k) for rows in (train, *told_apart)]
    few = [
        np.where(counts, hidden, _few(site.told[rows], k)) | np.isin(np.arange(len(counts)), list(column.values()))
        for rows, column in zip((train, *told_apart), joined, strict=True)
    ]
    whole = _told_of_few(site.told[train], reply.parts[0], few[0], k, counts)
    whole = _without_remainder(whole, levels, joined[0], k)
    parts = {0: _with_events(whole, hidden=any(few_events))}
    for part, sums in reply.parts.items():
        if part:
            parts[part] = _with_events(_like(whole, sums, np.any(few, axis=0)), hidden=in_parts)
    return reply.model_copy(
        update={
            "events": None if few_events[0] else reply.events,
            "excluded": {reason: None if _small(count or 0, k) else count for reason, count in reply.excluded.items()},
            "parts": parts,
        }
    )


def _check_groups(site: Site) -> None:
    """Raise RefusedError(SMALL_CELLS) where a group that is told of, or trained on, is too small for anything."""
    smallest = smallest_group(site.hospital.patients, site.plan.federation)
    if smallest < site.small_cells:
        raise RefusedError(Code.SMALL_CELLS, f"sums over {smallest} patients, and k is {site.small_cells}")


def _with_events(sums: PartStatistics, *, hidden: bool) -> PartStatistics:
    return sums.model_copy(update={"events": None}) if hidden else sums


def _few(table: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """(D,): columns whose counts point at a few patients: with a value, without one, or with a yes or a no."""
    known = ~np.isnan(table)
    count, yes = known.sum(axis=0), (table == 1).sum(axis=0)
    of_two_values = np.all(~known | (table == 0) | (table == 1), axis=0)
    cells = (count, len(table) - count, np.where(of_two_values, yes, 0), np.where(of_two_values, count - yes, 0))
    return np.asarray(np.any([(cell > 0) & (cell < k) for cell in cells], axis=0))


def _yes(table: NDArray[np.float64], category: slice) -> tuple[NDArray[np.int64], int]:
    """Patients at each told level of a category, and at its first, which has no column: what the others leave over."""
    known = table[:, category][~np.isnan(table[:, category]).any(axis=1)]
    return known.sum(axis=0).astype(np.int64), len(known) - int(known.sum())


def _joined(table: NDArray[np.float64], levels: Sequence[slice], k: int) -> dict[int, int]:
    """Category -> the column that is told together with the first level, where that one's patients would follow.

    All known less the told levels leaves the first level and those that are told as k / 2. If together they are a few, the
    smallest level that is none of them is told with them.
    """
    found: dict[int, int] = {}
    for number, category in enumerate(levels):
        yes, left = _yes(table, category)
        few = np.array([_small(int(one), k) for one in yes])
        if _small(left + int(yes[few].sum()), k) and (large := np.flatnonzero(~few & (yes > 0))).size:
            found[number] = category.start + int(large[yes[large].argmin()])
    return found


def _without_remainder(
    sums: PartStatistics, levels: Sequence[slice], joined: Mapping[int, int], k: int
) -> PartStatistics:
    """The sums with the joined columns such that a category's first level, too, comes out as k / 2 patients."""
    columns = list(zip(sums.count, sums.mean, sums.m2, strict=True))
    for number, column in joined.items():
        count = sums.count[column]
        if not count:
            continue
        others = [place for place in range(levels[number].start, levels[number].stop) if place != column]
        told = sum((sums.count[place] or 0.0) * sums.mean[place] for place in others)
        mean = max(k / 2, count - told - k / 2) / count
        columns[column] = (count, mean, count * mean * (1 - mean))
    return _with_columns(sums, columns)


def _counts_of_few(site: Site, groups: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """(D + E,): counts of slices that point at a few patients in any of these groups; the table has none."""
    found = [extras.of_few(site.extras[rows], site.plan.extras, site.small_cells) for rows in groups]
    table = np.zeros(site.hospital.patients.table.shape[1], np.bool_)
    return np.concatenate([table, np.any(found, axis=0)])


def _told_of_few(
    table: NDArray[np.float64], sums: PartStatistics, few: NDArray[np.bool_], k: int, counts: NDArray[np.bool_]
) -> PartStatistics:
    """The sums with these columns told so that they do not point at a few; `counts` of slices are then withheld."""
    columns = [
        ((None, 0.0, 0.0) if counts[index] else _told(table[:, index], k)) if few[index] else exact
        for index, exact in enumerate(zip(sums.count, sums.mean, sums.m2, strict=True))
    ]
    return _with_columns(sums, columns)


def _told(column: NDArray[np.float64], k: int) -> tuple[float | None, float, float]:
    """Count, mean and sum of squared deviations of a column with few patients of some kind.

    Known for a few: withheld. Else it counts as known for all. Of yes and no, 1 to k - 1 patients are told as k / 2;
    other numbers are rounded, since an exact mean tells by its fraction how many values it is the mean of.
    """
    known, patients = column[~np.isnan(column)], len(column)
    if len(known) < k:
        return None, 0.0, 0.0
    if np.isin(known, (0.0, 1.0)).all():
        yes = float(known.sum())
        if _small(int(yes), k):
            mean = k / 2 / patients
        elif _small(len(known) - int(yes), k):
            mean = 1 - k / 2 / patients
        else:
            mean = round(patients * yes / len(known)) / patients
        return float(patients), mean, patients * mean * (1 - mean)
    deviation = float(f"{known.std():.1e}")
    step = deviation / 32 or 1.0
    return float(patients), round(float(known.mean()) / step) * step, patients * deviation**2


def _like(whole: PartStatistics, sums: PartStatistics, few: NDArray[np.bool_]) -> PartStatistics:
    """A part's sums, these columns with the mean and variance of all parts: nothing can be had by subtraction."""
    columns = []
    for index, exact in enumerate(zip(sums.count, sums.mean, sums.m2, strict=True)):
        count, mean, m2 = whole.count[index], whole.mean[index], whole.m2[index]
        if not few[index]:
            columns.append(exact)
        elif not count:
            columns.append((count, 0.0, 0.0))
        else:
            columns.append((float(sums.patients), mean, m2 / count * sums.patients))
    return _with_columns(sums, columns)


def _with_columns(sums: PartStatistics, columns: Sequence[tuple[float | None, float, float]]) -> PartStatistics:
    count, mean, m2 = zip(*columns, strict=True)
    return sums.model_copy(update={"count": list(count), "mean": list(mean), "m2": list(m2)})


def _training(site: Site, reply: TrainReply) -> TrainReply:
    seen = {modality: counts for modality, counts in reply.seen.items() if not _few_lack_it(site, modality)}
    validation = _validation_losses(site, reply.validation_losses)
    return reply.model_copy(update={"validation_losses": validation, "seen": seen})


def _few_lack_it(site: Site, modality: str) -> bool:
    """Whether the counts of who has a modality would point at a few who have it or lack it, in any group told apart."""
    held = site.hospital.patients.holding(modality).astype(np.int64)
    groups = [site.split(0).train]
    for part in range(1, (site.plan.federation.evaluation.folds or 0) + 1):
        groups += [site.split(part).train, site.split(part).test]
    return any(few_of_a_class(held[rows], site.small_cells) for rows in groups)


def _validation_losses(site: Site, losses: list[float | None]) -> list[float | None]:
    few = len(site.split(0).validation) < site.small_cells
    return [None] * len(losses) if few else losses


def _thresholds(site: Site, reply: ThresholdReply) -> ThresholdReply:
    """A threshold lies between two patients' probabilities: it is chosen among k of each class, or withheld.

    One of slices lies between two slices': it is chosen among those of k patients with the type and k without.
    """
    roles, k = site.split(0), site.small_cells
    rows = roles.validation if len(roles.validation) else roles.train
    if (targets := site.hospital.patients.targets) is not None:
        few = [few_have(int(n), int(having), k) for n, having in zip(*patients_of(targets[rows]), strict=True)]
    else:
        few = [few_of_a_class(site.hospital.patients.labels[rows], k)]
    hidden = few * (len(reply.thresholds) // len(few))
    return reply.model_copy(
        update={
            "thresholds": [None if few else each for each, few in zip(reply.thresholds, hidden, strict=True)],
            "validation_losses": _validation_losses(site, reply.validation_losses),
        }
    )


def _recalibration(site: Site, reply: RecalibrationReply) -> RecalibrationReply:
    """A line is fitted to k patients of each class, or withheld."""
    roles = site.split(0)
    rows = roles.validation if len(roles.validation) else roles.train
    labels, k = site.hospital.patients.labels[rows], site.small_cells
    few = len(labels) < k or few_of_a_class(labels, k)
    return reply.model_copy(update={"lines": [None] * len(reply.lines)}) if few else reply


def _evaluation(site: Site, reply: EvaluateReply) -> EvaluateReply:
    return reply.model_copy(update={"answers": [_answer(site, answer) for answer in reply.answers]})


def few_have(patients: int, having: int, k: int) -> bool:
    """Whether so many patients, of whom some have a type, are few, or few have it, or few have it not."""
    return patients < k or _small(having, k) or _small(patients - having, k)


def _type_answer(answer: TypeAnswer, k: int) -> TypeAnswer:
    if not few_have(answer.patients.n, answer.patients.events or 0, k):
        return answer
    return TypeAnswer(slices=answer.slices.withheld(), patients=answer.patients.withheld())


def _answer(site: Site, answer: Answer) -> Answer:
    k, events = site.small_cells, answer.events or 0
    types = {kind: _type_answer(one, k) for kind, one in answer.types.items()}
    answer = answer.model_copy(update={"types": types})
    if answer.patients >= k and not _small(events, k) and not _small(answer.patients - events, k):
        return _grouped(site, answer, k)
    nothing = {"metrics": dict.fromkeys(METRICS, (None, None, None)), "bins": [], "decisions": [], "subgroups": {}}
    return answer.model_copy(update={"events": None, **nothing})


def _grouped(site: Site, answer: Answer, k: int) -> Answer:
    """Bins, curve and subgroups were made by the rule (`curves.groups`, `subgroups.hidden`), and are held to it here again.

    Raises RefusedError(EGRESS) for groups, or a name, that the rule and the study do not let out.
    """
    federation, others = site.plan.federation, answer.patients - (answer.events or 0)
    cells = [count for one in answer.bins for count in (one.events, one.patients - one.events)]
    for counts, whole in (
        ([one.true_positives for one in answer.decisions], answer.events or 0),
        ([one.false_positives for one in answer.decisions], others),
    ):
        cells += [more - fewer for more, fewer in pairwise([whole, *counts, 0])]
    for levels in answer.subgroups.values():
        told = [(one.patients, one.events or 0) for one in levels.values() if one.patients is not None]
        patients = answer.patients - sum(n for n, _ in told)
        events = (answer.events or 0) - sum(having for _, having in told)
        for n, having in (*told, (patients, events)):
            cells += [n, having, n - having]
    named = {variable: tuple(levels) for variable, levels in answer.subgroups.items()}
    agreed = {one.threshold for one in answer.decisions} <= set(federation.evaluation.decision_thresholds)
    if not agreed or named not in ({}, federation.subgroups):
        raise RefusedError(Code.EGRESS, f"thresholds or subgroups that the study does not have: {named}")
    if any(_small(cell, k) for cell in cells):
        raise RefusedError(Code.EGRESS, "bins, a decision curve or subgroups that point at a few")
    return answer


_RULES: Final[Mapping[type[Strict], Callable[[Site, Any], Strict]]] = {
    StatisticsReply: _statistics,
    TrainReply: _training,
    ThresholdReply: _thresholds,
    RecalibrationReply: _recalibration,
    EvaluateReply: _evaluation,
    ModelReply: lambda site, reply: reply,
}
"""The closed list of replies, and what is withheld of each."""
