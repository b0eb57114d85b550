"""Whether a task is one that this study's server has reason to send: folds, rounds, blocks and questions as agreed on."""

from collections.abc import Mapping, Sequence

import numpy as np

from ich_models.errors import Code
from ich_models.folds import ALL, Fold, parse, questions
from ich_models.protocol import (
    CONSTANTS,
    LOCAL,
    WEIGHTS,
    EvaluateTask,
    ModelTask,
    RecalibrationTask,
    Rows,
    StatisticsTask,
    Task,
    ThresholdTask,
    TrainTask,
)
from ich_strategies.plan import Plan


class RefusedError(Exception):
    """The task is refused: the code goes out, the message stays in the local log."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def check(plan: Plan, me: str, task: Task, rows: Rows) -> None:
    """Raise RefusedError unless the study as agreed on asks hospital `me` this, with these blocks of numbers.

    HELD_OUT if a fold that learns here holds this hospital out, or one that is tested here does not; else MALFORMED.
    """
    evaluation = plan.federation.evaluation
    if isinstance(task, StatisticsTask):
        _require(task.parts == list(range((evaluation.folds or 0) + 1)), f"parts {task.parts}")
        _require(not rows, "blocks of numbers with a question for statistics")
    elif isinstance(task, TrainTask):
        rounds = plan.federation.training.rounds
        _require(task.round <= rounds, f"round {task.round} of {rounds}")
        _require(task.final == (task.round == rounds), f"round {task.round} of {rounds} called final: {task.final}")
        _learning(plan, me, task.folds)
        _blocks(plan, task.folds, rows, _sent(plan))
    elif isinstance(task, RecalibrationTask):
        _require(evaluation.recalibrate != "none", "a recalibration that the study does not do")
        _learning(plan, me, task.folds)
        _blocks(plan, task.folds, rows, _trained(plan))
    elif isinstance(task, ThresholdTask):
        asked = isinstance(evaluation.threshold, str) or evaluation.choose_round == "best"
        _require(asked, "a threshold that the study does not choose")
        _learning(plan, me, task.folds)
        _blocks(plan, task.folds, rows, _trained(plan))
    elif isinstance(task, EvaluateTask):
        privacy = plan.federation.privacy
        if privacy is not None and privacy.metrics == "not_sent":
            raise RefusedError(Code.POLICY, "a private study whose figures are not sent asks for some")
        _questions(plan, me, task)
        _blocks(plan, task.folds, rows, _trained(plan))
    elif isinstance(task, ModelTask):
        several = plan.federation.task.kind == "slices"
        _require((task.threshold is None) is several, "a threshold of another kind of study")
        _require(tuple(task.thresholds) == (plan.federation.labels if several else ()), "thresholds of other types")
        _blocks(plan, [ALL], rows, _trained(plan))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RefusedError(Code.MALFORMED, otherwise)


def _fold(plan: Plan, name: str) -> Fold:
    """A fold of this study."""
    evaluation = plan.federation.evaluation
    try:
        fold = parse(name)
    except ValueError as error:
        raise RefusedError(Code.MALFORMED, str(error)) from error
    _require(fold.hospital is None or evaluation.leave_one_hospital_out, f"fold {name} in a study without such folds")
    _require(fold.part is None or fold.part <= (evaluation.folds or 0), f"fold {name} of {evaluation.folds or 0} parts")
    return fold


def _learning(plan: Plan, me: str, folds: Sequence[str]) -> None:
    for name in folds:
        if not _fold(plan, name).trains_at(me):
            raise RefusedError(Code.HELD_OUT, f"fold {name} holds this hospital out, and is to learn from it")


def _questions(plan: Plan, me: str, task: EvaluateTask) -> None:
    evaluation = plan.federation.evaluation
    for name in task.folds:
        fold = _fold(plan, name)
        if fold.hospital not in (None, me):
            raise RefusedError(Code.HELD_OUT, f"fold {name} has learnt from every patient of this hospital")
    asked = [(question.arm, question.folds) for question in task.questions]
    agreed = [one for one in questions(evaluation, me).items() if one in asked]  # large ones come one by one
    _require(bool(asked) and asked == agreed, f"questions {asked}")
    _require(task.folds == [fold for _, folds in asked for fold in folds], f"folds {task.folds} for questions {asked}")
    for question in task.questions:
        needed = len(question.folds) * len(plan.federation.labels)
        _require(len(question.thresholds) == needed, "thresholds and folds do not belong together")
        if not isinstance(evaluation.threshold, str):
            fixed = set(question.thresholds) == {evaluation.threshold}
            _require(fixed, f"thresholds {question.thresholds}, and the study says {evaluation.threshold}")


def _sent(plan: Plan) -> dict[str, int]:
    """Width of each block that comes with a training task."""
    state = plan.strategy.start(np.zeros(plan.weights.size, plan.number))
    widths = {WEIGHTS: plan.weights.size, **{name: state[name].size for name in plan.strategy.sends}}
    return widths | _constants(plan)


def _trained(plan: Plan) -> dict[str, int]:
    """Width of each block that comes with a model to be tested."""
    widths = {WEIGHTS: plan.weights.size} | _constants(plan)
    return widths | ({LOCAL: plan.local.size} if plan.local.size else {})


def _constants(plan: Plan) -> dict[str, int]:
    return {} if plan.federation.modalities.table.scaling == "hospital" else {CONSTANTS: plan.constants.size}


def _blocks(plan: Plan, folds: Sequence[str], rows: Rows, widths: Mapping[str, int]) -> None:
    _require(set(rows) == set(widths), f"blocks {sorted(rows)} in place of {sorted(widths)}")
    dtype = plan.number
    for name, block in rows.items():
        wanted = (len(folds), widths[name])
        _require(block.shape == wanted and block.dtype == dtype, f"block {name} {block.shape} in place of {wanted}")
        _require(bool(np.isfinite(block).all()), f"block {name} holds numbers that are not finite")
