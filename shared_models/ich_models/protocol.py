"""What server and hospital say to each other: typed messages, their form as flwr records, and the protocol's version."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Annotated, Final, Self, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError, model_validator

from ich_models.curves import Bin, Decision
from ich_models.errors import Code, Exclusion
from ich_models.folds import FoldName
from ich_models.image_spec import HAEMORRHAGES, HaemorrhageType
from ich_models.metrics import METRICS, RANGES, SUBGROUP_METRICS, TYPE_METRICS, Estimate, Evaluation, OfType
from ich_models.statistics import Moments
from ich_models.strict import Name, Strict

PROTOCOL: Final = 1
"""Raised whenever a message changes; both sides must have the same."""

ATTEMPT: Final = "ich-attempt"
"""HTTP header that is the same in every repetition of one request for a task."""

VERSION: Final = "ich-package"
"""HTTP header with the hospital's version of this package, for people to see."""

ROUNDS_KEPT: Final = 2
"""A server that goes on after a crash asks for its last round again: both sides keep so many rounds."""

PACKAGE: Final = version("ich-federation")

Rows = dict[str, NDArray[np.floating]]
"""Named blocks of numbers, each (F, width) with one row per fold, all of one dtype."""

WEIGHTS: Final = "weights"
"""Block of what travels every round."""
CONSTANTS: Final = "constants"
"""Block of a fold's imputation and scaling."""
LOCAL: Final = "local"
"""Block of the layers that stay at the hospital until the last round."""

STATISTICS: Final = "query"
TRAIN: Final = "train"
THRESHOLD: Final = "evaluate.threshold"
RECALIBRATE: Final = "evaluate.recalibration"
EVALUATE: Final = "evaluate.test"
MODEL: Final = "query.model"
"""flwr message types, one per pair of messages below."""

Count = Annotated[int, Field(ge=0, lt=2**53)]
Probability = Annotated[float, Field(ge=0, le=1)]
LARGEST_LOSS: Final = 1e6
Loss = Annotated[float, Field(ge=0, le=LARGEST_LOSS)]


def _distinct(folds: list[str]) -> list[str]:
    if len(set(folds)) != len(folds):
        raise ValueError("a fold twice")
    return folds


Folds = Annotated[list[FoldName], Field(min_length=1), AfterValidator(_distinct)]


class Task(Strict):
    """What every request carries: the versions and the study that it belongs to."""

    protocol: int = PROTOCOL
    package: Annotated[str, Field(max_length=64)] = PACKAGE
    federation: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Hash of the federation file."""
    seed: int


class StatisticsTask(Task):
    """Before round 1: who are you, and what are your sums? Part 0 is all training patients, part I all but part I."""

    parts: list[Count]


class PartStatistics(Strict):
    """`Moments` on the wire: of the table's columns, then of what else the network's constants are made of."""

    patients: Count
    events: Count | None
    """None, here and in `count`: withheld (small cells); the column's mean and m2 are then 0."""
    count: list[float | None]
    mean: list[float]
    m2: list[float]

    @classmethod
    def of(cls, moments: Moments) -> "PartStatistics":
        """From arrays."""
        return cls(
            patients=moments.patients,
            events=moments.events if moments.labelled else None,
            count=[
                None if hidden else count
                for count, hidden in zip(moments.count.tolist(), moments.withheld.tolist(), strict=True)
            ],
            mean=moments.mean.tolist(),
            m2=moments.m2.tolist(),
        )

    def moments(self) -> Moments:
        """To arrays."""
        labelled, events = (0, 0) if self.events is None else (self.patients, self.events)
        return Moments(
            self.patients,
            labelled,
            events,
            np.array([count or 0.0 for count in self.count]),
            np.array(self.mean, dtype=np.float64),
            np.array(self.m2, dtype=np.float64),
            np.array([count is None for count in self.count], dtype=np.bool_),
        )


class StatisticsReply(Strict):
    """Who this hospital is, and its sums per part asked for."""

    hospital: Name
    schema_hash: str
    """Schema of the exchanged weights that this hospital built from the federation."""
    patients: Count
    """All that take part, test patients included."""
    events: Count | None
    excluded: dict[Exclusion, Count | None]
    """Patients left out, by reason. None, here and above: withheld (small cells)."""
    parts: dict[int, PartStatistics]


class TrainTask(Task):
    """Train these folds for one round. Rows: 'weights', 'constants' (federated scaling), the strategy's own."""

    round: Annotated[int, Field(ge=1)]
    folds: Folds
    final: bool
    """The last round: layers that stayed at the hospital travel once, as 'local'."""


class TrainReply(Strict):
    """Per fold: training patients, mean training loss, validation loss of the weights received. Rows: 'weights', ..."""

    hospital: Name
    patients: list[Count]
    losses: list[Loss | None]
    validation_losses: list[Loss | None]
    seen: dict[Name, list[Count]] = {}
    """Per modality that an encoder reads, training patients who have it; none where all have it, or k forbids to say."""


class RecalibrationTask(Task):
    """Which line would make these folds' log-odds right on your own training or validation patients?"""

    folds: Folds


LARGEST_COEFFICIENT: Final = 1e3
Coefficient = Annotated[float, Field(ge=-LARGEST_COEFFICIENT, le=LARGEST_COEFFICIENT)]


class RecalibrationReply(Strict):
    """Per fold intercept and slope (1 where the study recalibrates the intercept alone); None: no such line, or withheld."""

    hospital: Name
    lines: list[tuple[Coefficient, Coefficient] | None]


class ThresholdTask(Task):
    """Which threshold would you choose for these folds, on your own training or validation patients?"""

    folds: Folds


class ThresholdReply(Strict):
    """Per fold: the Youden threshold (None: one class only), and the validation loss of these weights.

    In a study of slices each fold has one threshold for each type, in their order.
    """

    hospital: Name
    thresholds: list[Probability | None]
    validation_losses: list[Loss | None]


class Question(Strict):
    """One evaluation: folds that each predict their own held-out patients, and their thresholds (as in ThresholdReply)."""

    arm: Name
    folds: Folds
    thresholds: list[Probability]


class EvaluateTask(Task):
    """Evaluate; rows as in training, in the order of `folds`, which holds every fold that a question names."""

    folds: Folds
    questions: list[Question]


Three = tuple[float | None, float | None, float | None]
"""A metric's value and the ends of its interval."""


def _possible(metrics: Mapping[str, Three], of: Sequence[str], n: int, events: int | None) -> None:
    """Raise ValueError unless these can be figures of `n` patients or slices of which so many are events."""
    if tuple(metrics) != tuple(of) or (events or 0) > n:
        raise ValueError("not an evaluation")
    if events is None and any(number is not None for three in metrics.values() for number in three):
        raise ValueError("figures of withheld events")
    for name, (value, low, high) in metrics.items():
        smallest, largest = RANGES[name]
        if not all(smallest <= number <= largest for number in (value, low, high) if number is not None):
            raise ValueError(f"a {name} that cannot be")
        if (low is None) != (high is None) or (value is None and low is not None):
            raise ValueError(f"half an interval of {name}")
        if low is not None and high is not None and low > high:
            raise ValueError(f"the interval of {name} ends before it begins")
    area, pairs = metrics["auroc"][0], (events or 0) * (n - (events or 0))
    if area is not None and not (pairs and (area == 0 or 2 * pairs * area > 0.99)):  # it counts half pairs
        raise ValueError("an area under the curve that these patients cannot have")


class Group(Strict):
    """Figures of one type over slices, or over patients, that have a label of it."""

    n: Count
    events: Count | None
    """Those with the type. None: withheld (small cells), and every metric with it."""
    metrics: dict[str, Three]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _possible(self.metrics, TYPE_METRICS, self.n, self.events)
        return self

    @classmethod
    def of(cls, found: Evaluation) -> "Group":
        """From an evaluation."""
        metrics = {name: (e.value, e.low, e.high) for name, e in found.metrics.items()}
        return cls(n=found.n, events=found.events, metrics=metrics)

    def evaluation(self) -> Evaluation:
        """To an evaluation."""
        return Evaluation(self.n, self.events, {name: Estimate(*three) for name, three in self.metrics.items()})

    def withheld(self) -> "Group":
        """The same without its figures."""
        return Group(n=self.n, events=None, metrics=dict.fromkeys(TYPE_METRICS, (None, None, None)))


class TypeAnswer(Strict):
    """Figures of one type of haemorrhage."""

    slices: Group
    patients: Group

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.patients.n > self.slices.n or (self.patients.events is None) != (self.slices.events is None):
            raise ValueError("slices and patients that do not belong together")
        if (self.patients.events or 0) > (self.slices.events or 0):
            raise ValueError("more patients with a type than slices with it")
        return self


class CalibrationBin(Strict):
    """Patients with about the same predicted probability: how many, with the event, mean probability."""

    patients: Annotated[int, Field(ge=1, lt=2**53)]
    events: Count
    mean: Probability


class DecisionPoint(Strict):
    """Who would be treated from this threshold on."""

    threshold: Probability
    true_positives: Count
    false_positives: Count


class SubgroupAnswer(Strict):
    """Figures of one subgroup. `patients` None: withheld (small cells), and all else with it."""

    patients: Count | None
    events: Count | None
    metrics: dict[str, Three]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.patients is None) != (self.events is None):
            raise ValueError("half of a subgroup's counts")
        _possible(self.metrics, SUBGROUP_METRICS, self.patients or 0, self.events)
        return self

    @classmethod
    def of(cls, found: Evaluation | None) -> "SubgroupAnswer":
        """From an evaluation, or the absence of one."""
        if found is None:
            return cls(patients=None, events=None, metrics=dict.fromkeys(SUBGROUP_METRICS, (None, None, None)))
        metrics = {name: (e.value, e.low, e.high) for name, e in found.metrics.items()}
        return cls(patients=found.n, events=found.events, metrics=metrics)

    def evaluation(self) -> Evaluation | None:
        """To an evaluation, if it is told."""
        if self.patients is None:
            return None
        return Evaluation(self.patients, self.events, {name: Estimate(*three) for name, three in self.metrics.items()})


Level = Annotated[str, Field(max_length=200)]


class Answer(Strict):
    """One evaluation's figures: per metric value, low and high. A study of slices says nothing there, but of each type.

    `bins`, `decisions`, `subgroups`: those that may be told; empty where `events` is withheld.
    """

    arm: Name
    patients: Count
    events: Count | None
    """None: withheld (small cells), and every metric with it."""
    metrics: dict[str, Three]
    types: dict[HaemorrhageType, TypeAnswer] = {}
    bins: Annotated[list[CalibrationBin], Field(max_length=64)] = []
    decisions: Annotated[list[DecisionPoint], Field(max_length=64)] = []
    subgroups: dict[Level, dict[Level, SubgroupAnswer]] = {}

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        events, others = self.events or 0, self.patients - (self.events or 0)
        if self.events is None and (self.bins or self.decisions or self.subgroups):
            raise ValueError("groups of withheld events")
        sums = (sum(one.patients for one in self.bins), sum(one.events for one in self.bins))
        if self.bins and (sums != (self.patients, events) or any(one.events > one.patients for one in self.bins)):
            raise ValueError("bins that do not make up the patients")
        if any(low.mean > high.mean for low, high in zip(self.bins, self.bins[1:], strict=False)):
            raise ValueError("bins out of order")
        last = (-1.0, events, others)
        for one in self.decisions:
            here = (one.threshold, one.true_positives, one.false_positives)
            if not (here[0] > last[0] and here[1] <= last[1] and here[2] <= last[2]):
                raise ValueError("a decision curve that cannot be")
            last = here
        for levels in self.subgroups.values():
            told = [one for one in levels.values() if one.patients is not None]
            if sum(one.patients or 0 for one in told) > self.patients or sum(one.events or 0 for one in told) > events:
                raise ValueError("subgroups of more patients than there are")
        return self

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _possible(self.metrics, METRICS, self.patients, self.events)
        if self.types and tuple(self.types) != HAEMORRHAGES:
            raise ValueError("not every type, or not in their order")
        if any(one.patients.n > self.patients for one in self.types.values()):
            raise ValueError("more patients with labels than patients")
        return self

    @classmethod
    def of(cls, arm: str, evaluation: Evaluation) -> "Answer":
        """From an evaluation."""
        metrics = {name: (e.value, e.low, e.high) for name, e in evaluation.metrics.items()}
        types = {
            kind: TypeAnswer(slices=Group.of(found.slices), patients=Group.of(found.patients))
            for kind in HAEMORRHAGES
            if (found := evaluation.types.get(kind)) is not None
        }
        return cls(
            arm=arm,
            patients=evaluation.n,
            events=evaluation.events,
            metrics=metrics,
            types=types,
            bins=[CalibrationBin(patients=b.patients, events=b.events, mean=b.mean) for b in evaluation.bins],
            decisions=[
                DecisionPoint(threshold=d.threshold, true_positives=d.true_positives, false_positives=d.false_positives)
                for d in evaluation.decisions
            ],
            subgroups={
                variable: {level: SubgroupAnswer.of(found) for level, found in levels.items()}
                for variable, levels in evaluation.subgroups.items()
            },
        )

    def evaluation(self) -> Evaluation:
        """To an evaluation."""
        types = {
            str(kind): OfType(one.slices.evaluation(), one.patients.evaluation()) for kind, one in self.types.items()
        }
        metrics = {name: Estimate(*three) for name, three in self.metrics.items()}
        return Evaluation(
            self.patients,
            self.events,
            metrics,
            types,
            tuple(Bin(one.patients, one.events, one.mean) for one in self.bins),
            tuple(Decision(one.threshold, one.true_positives, one.false_positives) for one in self.decisions),
            {
                variable: {level: one.evaluation() for level, one in levels.items()}
                for variable, levels in self.subgroups.items()
            },
        )


class EvaluateReply(Strict):
    """The answers, in the order of the questions."""

    hospital: Name
    answers: list[Answer]


class ModelTask(Task):
    """After the last round: the model of all hospitals, to keep. Rows as in evaluation, of the one fold 'all'."""

    threshold: Probability | None
    """None in a study of slices: each type has its own."""
    thresholds: dict[HaemorrhageType, Probability] = {}


class ModelReply(Strict):
    """The model was kept: SHA-256 of the rows' bytes as they arrived, block by block in alphabetical order."""

    hospital: Name
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Refusal(Strict):
    """In place of a reply: a code of the closed list, and nothing else."""

    code: Code


class MalformedError(ValueError):
    """A record that is not the message it should be."""


_MESSAGE, _JSON, _BLOCKS, _WIDTHS, _ARRAYS, _ROWS = "message", "json", "blocks", "widths", "arrays", "rows"

LARGE: Final = 2**20
"""Bytes of a fold's numbers from which on each fold is an array of its own: hospitals that get different folds then share
what they have in common, which the server stores once. Many small arrays would cost more than they save."""


def packed(rows: Rows) -> list[Array]:
    """Rows as flat arrays of their blocks side by side: one (F, width) or, of large ones, F of (1, width)."""
    blocks = list(rows.values())
    folds, width = len(blocks[0]), sum(block.shape[1] for block in blocks)
    if width * blocks[0].itemsize < LARGE:
        return [Array(np.ascontiguousarray(np.concatenate(blocks, axis=1)))]
    return [Array(np.concatenate([block[fold : fold + 1] for block in blocks], axis=1)) for fold in range(folds)]


def to_record(message: Strict, rows: Rows | None = None, arrays: Sequence[Array] | None = None) -> RecordDict:
    """A message and its rows as a flwr record: JSON that a person can read, and flat arrays.

    `arrays`: what `packed` makes of these rows, if it is there already.
    """
    config: dict[str, ConfigRecordValues] = {_JSON: message.model_dump_json()}
    record = RecordDict()
    if rows:
        config[_BLOCKS] = list(rows)
        config[_WIDTHS] = [block.shape[1] for block in rows.values()]
        given = packed(rows) if arrays is None else arrays
        record[_ARRAYS] = ArrayRecord({_row(index): array for index, array in enumerate(given)})
    record[_MESSAGE] = ConfigRecord(config)
    return record


def size(record: RecordDict) -> int:
    """Bytes of a message: its text and its numbers, without what the transport adds."""
    total = 0
    for part in record.values():
        if isinstance(part, ArrayRecord):
            total += sum(len(array.data) for array in part.values())
        else:
            total += sum(len(value) for value in part.values() if isinstance(value, str | bytes))
    return total


def _row(index: int) -> str:
    return f"{_ROWS}{index or ''}"


M = TypeVar("M", bound=Strict)


def from_record(record: RecordDict, kind: type[M]) -> tuple[M, Rows]:
    """The message and its rows. Raises MalformedError unless the record is exactly such a message."""
    try:
        config, arrays = record[_MESSAGE], record.get(_ARRAYS)  # flwr's config_records is a copy, made at each look
        if not isinstance(config, ConfigRecord):
            raise MalformedError("no message in it")
        keys = set(config)
        if not set(record) <= {_MESSAGE, _ARRAYS} or keys not in ({_JSON}, {_JSON, _BLOCKS, _WIDTHS}):
            raise MalformedError("more in it than a message and its array")
        message = kind.model_validate_json(str(config[_JSON]))
        if keys == {_JSON}:
            if arrays is not None:
                raise MalformedError("an array without names for its blocks")
            return message, {}
        if not isinstance(arrays, ArrayRecord) or set(arrays) != set(map(_row, range(max(1, len(arrays))))):
            raise MalformedError("no arrays for the blocks, or others")
        return message, _blocks(config[_BLOCKS], config[_WIDTHS], _unpacked(arrays))
    except MalformedError:
        raise
    except Exception as error:  # bytes of a stranger: whatever a parser makes of them, it is not such a message
        raise MalformedError(_plainly(error)) from error


def _unpacked(arrays: ArrayRecord) -> NDArray[np.floating]:
    """The arrays as one."""
    first = arrays[_ROWS].numpy()
    if len(arrays) == 1:
        return np.asarray(first)
    whole = np.empty((len(arrays), *first.shape[1:]), first.dtype)
    for fold in range(len(arrays)):
        one = arrays[_row(fold)].numpy()
        if one.shape != first.shape or one.dtype != first.dtype or len(one) != 1:
            raise MalformedError("arrays of different shapes")
        whole[fold] = one[0]
    return whole


def _blocks(names: object, widths: object, array: object) -> Rows:
    """One array as named blocks of columns."""
    if not isinstance(names, list) or not isinstance(widths, list) or len(names) != len(widths):
        raise MalformedError("blocks and widths do not belong together")
    if len(set(names)) != len(names) or not all(type(width) is int and width >= 0 for width in widths):
        raise MalformedError(f"blocks {names} of widths {widths}")
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        raise MalformedError("not a two-dimensional array of floating-point numbers")
    if array.shape[1] != sum(widths):
        raise MalformedError(f"an array of shape {array.shape} for widths {widths}")
    parts = zip(names, widths, accumulate(widths), strict=True)
    return {str(name): array[:, end - width : end] for name, width, end in parts}


def is_refusal(record: RecordDict) -> Code | None:
    """The code, if the record is a refusal."""
    try:
        return from_record(record, Refusal)[0].code
    except MalformedError:
        return None


def chunks(folds: Sequence[str], bytes_each: int, limit: float) -> list[list[str]]:
    """Folds in as few messages as the limit allows, at least one fold in each."""
    each = max(1, int(limit // max(1, bytes_each)))
    return [list(folds[start : start + each]) for start in range(0, len(folds), each)]


def rows_hash(rows: Rows) -> str:
    """SHA-256 over names and bytes of the blocks, in alphabetical order: two sides with the same hash hold the same model."""
    digest = hashlib.sha256()
    for name, block in sorted(rows.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(block).tobytes())
    return digest.hexdigest()


def select(rows: Mapping[str, NDArray[np.floating]], indices: Sequence[int]) -> Rows:
    """The rows of some folds."""
    return {name: block[list(indices)] for name, block in rows.items()}


def _plainly(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found = error.errors(include_input=False)
        text = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found[:5])
    else:
        text = f"{type(error).__name__}: {error}"
    return repr(text[:500])
