"""The one way out: every reply is held to its schema and to the small-cell rule here, or it does not leave.

A count below k, the larger of the study's and the hospital's `small_cells`, could point at a few patients: it is
withheld, and so is every figure that it could be computed from. k = 0 withholds nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ich_client.site import Site
from ich_client.splits import split
from ich_client.tasks import RefusedError
from ich_models.batch import Patients
from ich_models.errors import Code
from ich_models.federation import Evaluation
from ich_models.metrics import METRICS
from ich_models.protocol import (
    LOCAL,
    WEIGHTS,
    Answer,
    EvaluateReply,
    PartStatistics,
    Rows,
    StatisticsReply,
    Task,
    ThresholdReply,
    TrainReply,
    TrainTask,
)
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
    return rule(site, whole), rows


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
    dtype = site.plan.start.numpy().dtype
    for name, block in rows.items():
        if block.shape != (folds, widths[name]) or block.dtype != dtype or not np.isfinite(block).all():
            raise RefusedError(
                Code.EGRESS, f"block {name} {block.dtype}{block.shape} is not of the form that may leave"
            )


# --- the small-cell rule ----------------------------------------------------------------------------------------------


def _small(count: int, k: int) -> bool:
    """Whether a count points at a few patients; none at all points at nobody."""
    return 0 < count < k


def _few_of_a_class(labels: NDArray[np.int64], k: int) -> bool:
    events = int(labels.sum())
    return _small(events, k) or _small(len(labels) - events, k)


def _statistics(site: Site, reply: StatisticsReply) -> StatisticsReply:
    """Sums of every part; with several parts also what the difference of two would tell, the part left out."""
    k, patients = site.small_cells, site.hospital.patients
    smallest = smallest_group(patients.labels, site.plan.federation.evaluation)
    if smallest < k:
        raise RefusedError(Code.SMALL_CELLS, f"sums over {smallest} patients, and k is {k}")
    return reply.model_copy(
        update={
            "events": None if _few_of_a_class(patients.labels, k) else reply.events,
            "excluded": {reason: None if _small(count or 0, k) else count for reason, count in reply.excluded.items()},
            "parts": {
                part: _part(site, part, sums, _few_missing(site, list(reply.parts)))
                for part, sums in reply.parts.items()
            },
        }
    )


def smallest_group(labels: NDArray[np.int64], evaluation: Evaluation) -> int:
    """Patients of the smallest group whose sums are told, or can be had by subtraction."""
    splits = {part: split(labels, evaluation, part) for part in range((evaluation.folds or 0) + 1)}
    return min(size for part, one in splits.items() for size in (len(one.train), *([len(one.test)] if part else [])))


def _groups(site: Site, part: int) -> list[Patients]:
    """The patients whose sums part `part` tells: its training patients and, by subtraction, those it leaves out."""
    roles, everyone = site.split(part), site.hospital.patients
    return [everyone.take(roles.train), *([everyone.take(roles.test)] if part else [])]


def _few_missing(site: Site, parts: Sequence[int]) -> NDArray[np.bool_]:
    """(D,): columns of which a few values are missing in any group of any part."""
    groups = [group for part in parts for group in _groups(site, part)]
    few = [_small_each(np.isnan(group.table).sum(axis=0), site.small_cells) for group in groups]
    return np.asarray(np.any(few, axis=0))


def _part(site: Site, part: int, sums: PartStatistics, few_missing: NDArray[np.bool_]) -> PartStatistics:
    """A column in which a few patients differ from the others is withheld whole, as one that nobody has.

    Where a value is missing for a few only, their number is withheld: the column counts as known for all, with its mean
    and variance unchanged.
    """
    k, groups = site.small_cells, _groups(site, part)
    withheld = np.any([_few_of_a_value(group.table, k) for group in groups], axis=0)
    count, mean, m2 = (np.array(numbers) for numbers in (sums.count, sums.mean, sums.m2))
    m2 = np.where(few_missing, m2 * sums.patients / np.maximum(count, 1), m2)
    count = np.where(few_missing, sums.patients, count)
    return sums.model_copy(
        update={
            "events": None if any(_few_of_a_class(group.labels, k) for group in groups) else sums.events,
            "count": np.where(withheld, 0.0, count).tolist(),
            "mean": np.where(withheld, 0.0, mean).tolist(),
            "m2": np.where(withheld, 0.0, m2).tolist(),
        }
    )


def _few_of_a_value(table: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """(D,): columns known for a few patients only, or of yes and no with a few of either."""
    known = ~np.isnan(table)
    count = known.sum(axis=0)
    yes = (table == 1).sum(axis=0)
    of_two_values = np.all(~known | (table == 0) | (table == 1), axis=0)
    few = _small_each(count, k) | (of_two_values & (_small_each(yes, k) | _small_each(count - yes, k)))
    return np.asarray(few)


def _small_each(counts: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    return (counts > 0) & (counts < k)


def _training(site: Site, reply: TrainReply) -> TrainReply:
    return reply.model_copy(update={"validation_losses": _validation_losses(site, reply.validation_losses)})


def _validation_losses(site: Site, losses: list[float | None]) -> list[float | None]:
    few = len(site.split(0).validation) < site.small_cells
    return [None] * len(losses) if few else losses


def _thresholds(site: Site, reply: ThresholdReply) -> ThresholdReply:
    """A threshold lies between two patients' probabilities: it is chosen among k of each class, or withheld."""
    roles = site.split(0)
    chosen = site.hospital.patients.labels[roles.validation if len(roles.validation) else roles.train]
    few = _few_of_a_class(chosen, site.small_cells)
    return reply.model_copy(
        update={
            "thresholds": [None] * len(reply.thresholds) if few else reply.thresholds,
            "validation_losses": _validation_losses(site, reply.validation_losses),
        }
    )


def _evaluation(site: Site, reply: EvaluateReply) -> EvaluateReply:
    return reply.model_copy(update={"answers": [_answer(answer, site.small_cells) for answer in reply.answers]})


def _answer(answer: Answer, k: int) -> Answer:
    events = answer.events or 0
    if answer.patients >= k and not _small(events, k) and not _small(answer.patients - events, k):
        return answer
    return answer.model_copy(update={"events": None, "metrics": dict.fromkeys(METRICS, (None, None, None))})


_RULES: Final[Mapping[type[Strict], Callable[[Site, Any], Strict]]] = {
    StatisticsReply: _statistics,
    TrainReply: _training,
    ThresholdReply: _thresholds,
    EvaluateReply: _evaluation,
}
"""The closed list of replies, and what is withheld of each."""
