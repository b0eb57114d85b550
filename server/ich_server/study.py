"""A study from first contact to last figure: every fold trained side by side, checkpointed, and evaluated once."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from flwr.app import Array, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ich_models import recalibration
from ich_models.errors import Problem, RunError
from ich_models.federation import Federation
from ich_models.files import write_arrays
from ich_models.folds import LOHO, Fold, folds_of, questions, threshold_name
from ich_models.protocol import (
    CONSTANTS,
    EVALUATE,
    LARGE,
    LOCAL,
    RECALIBRATE,
    THRESHOLD,
    TRAIN,
    WEIGHTS,
    Answer,
    EvaluateReply,
    EvaluateTask,
    PartStatistics,
    Question,
    RecalibrationReply,
    RecalibrationTask,
    Rows,
    Task,
    ThresholdReply,
    ThresholdTask,
    TrainReply,
    TrainTask,
    chunks,
    packed,
    size,
    to_record,
)
from ich_models.statistics import Moments, merge
from ich_server import checkpoint
from ich_server.checkpoint import Progress
from ich_server.members import Member, meet
from ich_server.rounds import MALFORMED, NOBODY, Asked, Failure, Quarantine, Request, exchange, read
from ich_strategies.aggregate import LOSS, Buffered, Fault, WeightedMeans, fault, norm
from ich_strategies.plan import Plan

FIXED_THRESHOLD: Final = 0.5
"""Where no training hospital can choose one (each has a single class)."""

BEST: Final = "best"
"""Rows of the weights of the best round so far."""

STATE: Final = "state."
"""Before the names of the strategy's own rows."""


@dataclass(frozen=True)
class Taking:
    """What a hospital that takes part has said of its patients: how many, with the outcome, and left out by reason."""

    patients: int
    events: int | None
    """None, here and below: withheld by the hospital (small cells)."""
    excluded: Mapping[str, int | None]
    moments: Moments | None = None
    """Of the training patients of the model of all hospitals."""


@dataclass(frozen=True)
class RoundReport:
    """One round as it is shown while a study runs; `loss`: training loss of the all-hospital model, `losses`: by fold."""

    seed: int
    round: int
    rounds: int
    hospitals: int
    replied: int
    quarantined: tuple[Quarantine, ...]
    loss: float | None
    losses: Mapping[str, float | None]


Heard = Callable[[str, Sequence[Answer]], None]
"""Told of each hospital's figures as they come."""

Names = Callable[[], Mapping[int, str]]
"""The nodes whose hospital is known beforehand, as of now: with a new key a hospital comes back as another node."""


@dataclass(frozen=True)
class StudyResult:
    """What a study ends with: per fold its rows ('weights', 'constants', 'local') and threshold; answers per hospital.

    `thresholds`: by fold, in a study of slices by fold and type (`folds.threshold_name`).
    """

    hospitals: Mapping[str, Taking]
    """Who takes part, by name."""
    folds: tuple[str, ...]
    rows: Rows
    thresholds: Mapping[str, float]
    answers: Mapping[str, Sequence[Answer]]
    history: Sequence[Mapping[str, Any]]
    quarantined: Sequence[Quarantine]
    lines: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By fold that was recalibrated: intercept and slope, which its rows hold already."""

    def of(self, folds: Sequence[str]) -> Rows:
        """The rows of some folds."""
        return _rows_of(list(self.folds), dict(self.rows), folds)


def run_study(
    grid: Grid,
    plan: Plan,
    folder: Path,
    *,
    hospitals: int,
    resume: bool,
    watch: Callable[[RoundReport], None],
    names: Names = lambda: MappingProxyType({}),
    heard: Heard = lambda hospital, answers: None,
) -> StudyResult:
    """Run one seed's study over a grid with that many hospitals; with `resume`, go on where its last checkpoint in `folder` stands.

    A hospital whose node is in `names` cannot take part under another's name.
    Raises RunError if too few hospitals take part or too few of a round's updates are good. What was reached is kept,
    and `resume` goes on from there with the numbers that an uninterrupted run would have given.
    """
    finished = folder / "study.safetensors"
    if not resume:
        checkpoint.clear(folder)
        finished.unlink(missing_ok=True)
    saved = checkpoint.load(folder, plan.hash, plan.seed)
    done = checkpoint.read(finished, plan.hash, plan.seed) if finished.exists() else None
    before = done[1]["hospitals"] if done else saved.facts["hospitals"] if saved else {}
    members, absent = meet(grid, plan, hospitals, names(), before)
    if before:
        _check_unchanged(before, members)
    if done:
        return _load_result(*done)
    if saved:
        saved.facts["quarantined"] += [asdict(each) for each in absent if each.hospital not in before]
    study = _Study(grid, plan, members, names, saved or _beginning(plan, members, absent))
    while study.progress.round < plan.federation.training.rounds:
        report = study.train_round()
        checkpoint.save(folder, study.progress)
        watch(report)
    result = study.finish(heard)
    _save_result(finished, plan, members, result)
    return result


# --- beginning and going on -------------------------------------------------------------------------------------------


def _beginning(plan: Plan, members: Mapping[str, Member], absent: Sequence[Quarantine]) -> Progress:
    """Start weights, constants and strategy state of every fold, from its training hospitals' statistics alone."""
    folds = folds_of(plan.federation.evaluation, members)
    statistics = [
        merge(member.moments[fold.part or 0] for name, member in members.items() if fold.trains_at(name))
        for fold in folds
    ]
    rows: dict[str, NDArray[np.floating]] = {WEIGHTS: plan.start_rows([one.log_odds for one in statistics])}
    if plan.federation.evaluation.choose_round == "best":
        rows[BEST] = rows[WEIGHTS].copy()
    if plan.federation.modalities.table.scaling != "hospital":
        rows[CONSTANTS] = np.concatenate([plan.constants_row(one) for one in statistics])
    states = [plan.strategy.start(weights) for weights in rows[WEIGHTS]]
    rows |= {f"{STATE}{name}": np.stack([state[name] for state in states]) for name in states[0]}
    facts = {
        "hospitals": {name: member.facts() for name, member in members.items()},
        "best_losses": [None] * len(folds),
        "history": [],
        "quarantined": [asdict(each) for each in absent],
    }
    return Progress(plan.hash, plan.seed, 0, [fold.name for fold in folds], rows, facts)


def _check_unchanged(then: Mapping[str, Any], members: Mapping[str, Member]) -> None:
    """A study goes on with the hospitals and data that it began with. Raises RunError otherwise."""
    now = {name: member.facts() for name, member in members.items()}
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if changed:
        raise RunError(
            f"the data of these hospitals has changed since the study began: {', '.join(changed)}",
            hint="bring it back as it was, or start the study anew, without --resume",
        )


# --- rounds and evaluation --------------------------------------------------------------------------------------------


class _Study:
    """A study under way: `progress` is all that changes, and all that a checkpoint holds."""

    def __init__(self, grid: Grid, plan: Plan, members: Mapping[str, Member], known: Names, progress: Progress) -> None:
        self.grid, self.plan, self.members, self.known, self.progress = grid, plan, members, known, progress
        self.folds = folds_of(plan.federation.evaluation, members)
        self.lines: dict[str, tuple[float, float]] = {}
        """Of the folds that were recalibrated."""
        self.names = [fold.name for fold in self.folds]
        self.traffic = {name: [0, 0] for name in members}
        """Bytes to and from each hospital in the round under way."""

    def train_round(self) -> RoundReport:
        """One round of every fold.

        Raises RunError if a fold has fewer good updates than the quorum, or the strategy's step is not finite.
        """
        number, rounds = self.progress.round + 1, self.plan.federation.training.rounds
        when, final = f"round {number}", number == rounds
        means, validation = self._means(), WeightedMeans()
        quarantined: list[Quarantine] = []
        drift: dict[str, tuple[int, float]] = {}
        requests = self._to_learners(
            lambda folds: TrainTask(
                federation=self.plan.hash, seed=self.plan.seed, round=number, folds=folds, final=final
            ),
            self.plan.strategy.sends,
        )
        for request, reply in self._exchange(requests, TRAIN, when):
            update = read(reply, TrainReply, request.hospital)
            reason = update.reason if isinstance(update, Failure) else self._fault(request.folds, *update, final=final)
            if isinstance(update, Failure) or reason:
                quarantined.append(Quarantine(when, request.hospital, str(reason)))
                continue
            answer, rows = update
            if (first := self.names[0]) in request.folds:
                moved = norm(rows[WEIGHTS][request.folds.index(first)], self.progress.rows[WEIGHTS][0])
                drift[request.hospital] = (answer.patients[request.folds.index(first)], moved)
            means.add(request.folds, rows | {LOSS: _column(answer.losses)}, answer.patients, answer.seen)
            _add_known(validation, request.folds, answer.validation_losses, answer.patients)
            del reply, update, rows  # the next reply is taken in without this one in memory
        self._check_quorum(means.replies, when, quarantined)
        if self.plan.federation.evaluation.choose_round == "best":
            self._keep_best(validation)
        losses, moved = self._step(means)
        self.progress.round = number
        self.progress.facts["quarantined"] += [asdict(quarantine) for quarantine in quarantined]
        moved_by = _drift(drift, moved)
        self.progress.facts["history"].append(
            {"round": number, "losses": losses, "drift": moved_by, "bytes": self.traffic}
        )
        self.traffic = {name: [0, 0] for name in self.members}
        failed = {quarantine.hospital for quarantine in quarantined}
        return RoundReport(
            seed=self.plan.seed,
            round=number,
            rounds=rounds,
            hospitals=len(self.members),
            replied=len(self.members) - len(failed),
            quarantined=tuple(quarantined),
            loss=losses[self.names[0]],
            losses=losses,
        )

    def finish(self, heard: Heard) -> StudyResult:
        """Choose rounds and thresholds on the training hospitals, then evaluate every fold once."""
        evaluation = self.plan.federation.evaluation
        quarantined = [Quarantine(**facts) for facts in self.progress.facts["quarantined"]]
        thresholds: dict[str, float] = {}
        if evaluation.choose_round == "best":
            thresholds, validation = self._thresholds(quarantined)
            if not self._keep_best(validation):
                thresholds = {}  # some belong to weights that are not chosen
            best = dict(zip(self.names, self.progress.facts["best_losses"], strict=True))
            if unknown := [name for name, loss in best.items() if loss is None]:
                raise RunError(
                    f"no hospital has given a validation loss for {', '.join(unknown)}: no best round can be chosen",
                    hint="start anew with evaluation.choose_round: last, or with more validation patients",
                )
            self.progress.rows[WEIGHTS] = self.progress.rows[BEST]
        if evaluation.recalibrate != "none":
            self._recalibrate(quarantined)
            thresholds = {}  # some belong to the model as it was
        if not isinstance(evaluation.threshold, str):
            thresholds = dict.fromkeys(self._names_of(self.names), evaluation.threshold)
        elif not thresholds:
            thresholds, _ = self._thresholds(quarantined)
        privacy = self.plan.federation.privacy
        silent = privacy is not None and privacy.metrics == "not_sent"
        answers = {} if silent else self._evaluate(thresholds, quarantined, heard)
        return StudyResult(
            hospitals={
                name: Taking(one.patients, one.events, one.excluded, one.moments[0])
                for name, one in self.members.items()
            },
            folds=tuple(self.names),
            rows=_sendable(self.progress.rows),
            thresholds=thresholds,
            lines=self.lines,
            answers=answers,
            history=self.progress.facts["history"],
            quarantined=quarantined,
        )

    # asking

    def _exchange(
        self, requests: Iterable[Asked], message_type: str, group: str
    ) -> Iterator[tuple[Request, RecordDict | Failure]]:
        nodes = {name: member.node for name, member in self.members.items()}
        if known := {name: node for node, name in self.known().items()}:
            nodes = {name: known.get(name, NOBODY) for name in nodes}
        deadline = self.plan.federation.quorum.deadline
        for request, reply in exchange(self.grid, nodes, self._counted(requests), message_type, deadline, group):
            if not isinstance(reply, Failure):
                self.traffic[request.hospital][1] += size(reply)
            yield request, reply
            del reply  # the next one is taken in without this one in memory

    def _counted(self, requests: Iterable[Asked]) -> Iterator[Asked]:
        for request, record in requests:
            self.traffic[request.hospital][0] += size(record)
            yield request, record
            del record

    def _to_learners(self, task: Callable[[list[str]], Task], extras: Sequence[str] = ()) -> Iterator[Asked]:
        """One message per hospital and chunk of the folds that it trains, sorted by hospital."""
        post = _Post(self.names, _sendable(self.progress.rows) | self._state(extras))
        for hospital in self.members:
            learning = [fold.name for fold in self.folds if fold.trains_at(hospital)]
            for folds in chunks(learning, post.bytes_each, self.plan.federation.training.message_limit):
                yield Request(hospital, folds), post.record(task(folds), folds)

    def _state(self, names: Sequence[str]) -> Rows:
        return {name: self.progress.rows[f"{STATE}{name}"] for name in names}

    # training

    def _fault(self, folds: Sequence[str], reply: TrainReply, rows: Rows, *, final: bool) -> str | None:
        """Why an update cannot be used, or None."""
        if not len(reply.losses) == len(reply.validation_losses) == len(folds):
            return MALFORMED
        if self.plan.strategy.exact_loss and None in reply.losses:
            return MALFORMED
        if not reply.seen.keys() <= {modality for _, modality in self.plan.segments} or not all(
            len(counts) == len(folds) and all(np.less_equal(counts, reply.patients)) for counts in reply.seen.values()
        ):
            return Fault.PATIENTS
        size = self.plan.weights.size
        widths = {WEIGHTS: size, **self.plan.strategy.returns(size)}
        if final and self.plan.local.size:
            widths[LOCAL] = self.plan.local.size
        checks = self.plan.federation.checks
        return fault(
            _rows_of(self.names, self.progress.rows, folds)[WEIGHTS],
            rows,
            widths,
            reply.patients,
            [self._patients(fold, reply.hospital) for fold in folds],
            most_patients=checks.patients,
            largest_norm=checks.update_norm,
            largest_state=checks.state_norm,
        )

    def _means(self) -> WeightedMeans:
        """What updates are folded into: running means, or a buffer for a strategy that must see them all."""
        if not self.plan.strategy.buffers:
            return WeightedMeans(self.plan.segments, self.plan.weights.size)
        starts = dict(zip(self.names, self.progress.rows[WEIGHTS], strict=True))
        return Buffered(lambda fold, *kept: self.plan.strategy.combine(starts[fold], *kept))

    def _patients(self, fold: str, hospital: str) -> int:
        """Training patients of a fold at a hospital, as stated before round 1."""
        return self.members[hospital].moments[self.folds[self.names.index(fold)].part or 0].patients

    def _learners(self, fold: Fold) -> list[str]:
        return [hospital for hospital in self.members if fold.trains_at(hospital)]

    def _check_quorum(self, replies: Mapping[str, int], when: str, quarantined: Sequence[Quarantine]) -> None:
        """Raise RunError if a fold has fewer good replies than the quorum. What is saved stays as it is."""
        hospitals = len(self.members)
        quorum = min(self.plan.federation.quorum.hospitals or hospitals // 2 + 1, hospitals)
        for fold in self.folds:
            needed = max(1, quorum - (hospitals - len(self._learners(fold))))
            if replies.get(fold.name, 0) < needed:
                raise RunError(
                    [
                        Problem(
                            f"{when}: fold '{fold.name}' has {replies.get(fold.name, 0)} good replies, needs {needed}",
                            hint="the last round is kept: mend the hospitals named here, then go on with --resume",
                        ),
                        *(Problem(q.reason, q.hospital) for q in quarantined if q.when == when),
                    ]
                )

    def _step(self, means: WeightedMeans) -> tuple[dict[str, float | None], float]:
        """Apply the strategy's server half to every fold, in place; the training loss of each, and how far the first moved."""
        rows, strategy = self.progress.rows, self.plan.strategy
        losses: dict[str, float | None] = {}
        moved = 0.0
        for index, fold in enumerate(self.folds):
            share = means.weights[fold.name] / sum(self._patients(fold.name, name) for name in self._learners(fold))
            mean = means.mean(fold.name)
            losses[fold.name] = _number(mean.pop(LOSS))
            if LOCAL in mean:
                whole = rows.setdefault(LOCAL, np.empty((len(self.folds), self.plan.local.size), mean[LOCAL].dtype))
                whole[index] = mean.pop(LOCAL)
            for name, row in mean.items():  # what nobody has learnt anything about stays as it is
                if row.shape == rows[WEIGHTS][index].shape:
                    np.copyto(row, rows[WEIGHTS][index] if name == WEIGHTS else 0, where=np.isnan(row))
            state = {name.removeprefix(STATE): block[index] for name, block in rows.items() if name.startswith(STATE)}
            with np.errstate(all="ignore"):  # what is not finite is refused below
                weights, after = strategy.step(rows[WEIGHTS][index], mean, state, share)
            if not all(np.isfinite(row).all() for row in (weights, *after.values())):
                raise RunError(
                    f"round {self.progress.round + 1}: the server's step of fold '{fold.name}' left the finite numbers",
                    hint="the last round is kept; lower training.strategy.server_lr or checks.update_norm, start anew",
                )
            if index == 0:
                moved = norm(weights, rows[WEIGHTS][index])
            rows[WEIGHTS][index] = weights
            for name, row in after.items():
                rows[f"{STATE}{name}"][index] = row
        return losses, moved

    def _keep_best(self, validation: WeightedMeans) -> bool:
        """Remember the current weights of each fold whose validation loss is its best so far; whether all were."""
        all_best = True
        for index, name in enumerate(self.names):
            loss = float(validation.mean(name)["loss"][0]) if name in validation.weights else None
            best = self.progress.facts["best_losses"][index]
            if loss is not None and (best is None or loss < best):
                self.progress.facts["best_losses"][index] = loss
                self.progress.rows[BEST][index] = self.progress.rows[WEIGHTS][index]
            else:
                all_best = False
        return all_best

    # evaluation

    def _recalibrate(self, quarantined: list[Quarantine]) -> None:
        """Put into each fold's last layer the patient-weighted mean of its training hospitals' lines.

        A fold of which no hospital can give a line, or whose mean slope would turn its order round, stays as it is.
        Raises RunError if a fold has fewer replies than the quorum.
        """
        lines = WeightedMeans()
        replies: Counter[str] = Counter()
        requests = self._to_learners(
            lambda folds: RecalibrationTask(federation=self.plan.hash, seed=self.plan.seed, folds=folds)
        )
        for request, reply in self._exchange(requests, RECALIBRATE, "recalibration"):
            answer = read(reply, RecalibrationReply, request.hospital)
            if not isinstance(answer, Failure) and len(answer[0].lines) != len(request.folds):
                answer = Failure(MALFORMED)
            if isinstance(answer, Failure):
                quarantined.append(Quarantine("recalibration", request.hospital, answer.reason))
                continue
            replies.update(request.folds)
            for fold, line in zip(request.folds, answer[0].lines, strict=True):
                if line is not None:
                    lines.add([fold], {"line": np.array([line])}, [self._patients(fold, request.hospital)])
        self._check_quorum(replies, "recalibration", quarantined)
        for index, name in enumerate(self.names):
            intercept, slope = lines.mean(name)["line"].tolist() if name in lines.weights else recalibration.AS_IT_IS
            if slope > 0:
                self.lines[name] = (intercept, slope)
                rows = self.progress.rows[WEIGHTS]
                rows[index] = recalibration.apply(self.plan.weights, rows[index], (intercept, slope))

    def _thresholds(self, quarantined: list[Quarantine]) -> tuple[dict[str, float], WeightedMeans]:
        """Per fold (and type) the patient-weighted mean of the training hospitals' own thresholds, and their validation losses.

        Raises RunError if a fold has fewer replies than the quorum.
        """
        chosen, validation = WeightedMeans(), WeightedMeans()
        labels = self.plan.federation.labels
        replies: Counter[str] = Counter()
        requests = self._to_learners(
            lambda folds: ThresholdTask(federation=self.plan.hash, seed=self.plan.seed, folds=folds)
        )
        for request, reply in self._exchange(requests, THRESHOLD, "thresholds"):
            answer = read(reply, ThresholdReply, request.hospital)
            names = [threshold_name(fold, label) for fold in request.folds for label in labels]
            if not isinstance(answer, Failure) and (len(answer[0].thresholds), len(answer[0].validation_losses)) != (
                len(names),
                len(request.folds),
            ):
                answer = Failure(MALFORMED)
            if isinstance(answer, Failure):
                quarantined.append(Quarantine("thresholds", request.hospital, answer.reason))
                continue
            replies.update(request.folds)
            patients = [self._patients(fold, request.hospital) for fold in request.folds]
            weights = [weight for weight in patients for _ in labels]
            for name, threshold, weight in zip(names, answer[0].thresholds, weights, strict=True):
                if threshold is not None:
                    chosen.add([name], {"threshold": _column([threshold])}, [weight])
            _add_known(validation, request.folds, answer[0].validation_losses, patients)
        self._check_quorum(replies, "thresholds", quarantined)
        means = {
            name: float(chosen.mean(name)["threshold"][0]) if name in chosen.weights else FIXED_THRESHOLD
            for name in self._names_of(self.names)
        }
        return means, validation

    def _names_of(self, folds: Sequence[str]) -> list[str]:
        """Of the thresholds of these folds, in the order in which they travel."""
        return [threshold_name(fold, label) for fold in folds for label in self.plan.federation.labels]

    def _evaluate(
        self, thresholds: Mapping[str, float], quarantined: list[Quarantine], heard: Heard
    ) -> dict[str, tuple[Answer, ...]]:
        """Every hospital's figures: of the fold that held it out, and of the all-hospital model on held-out patients."""
        answers: dict[str, tuple[Answer, ...]] = {}
        for request, reply in self._exchange(self._tests(thresholds), EVALUATE, "evaluation"):
            answer = read(reply, EvaluateReply, request.hospital)
            if not isinstance(answer, Failure) and not self._plausible(request, answer[0].answers):
                answer = Failure(MALFORMED)
            if isinstance(answer, Failure):
                quarantined.append(Quarantine("evaluation", request.hospital, answer.reason))
            else:
                answers[request.hospital] = (*answers.get(request.hospital, ()), *answer[0].answers)
                heard(request.hospital, answer[0].answers)
        return answers

    def _tests(self, thresholds: Mapping[str, float]) -> Iterator[Asked]:
        """One message per hospital with its questions, or one per question where together they are too large."""
        post = _Post(self.names, _sendable(self.progress.rows))
        for hospital in self.members:
            asked = questions(self.plan.federation.evaluation, hospital)
            size = sum(map(len, asked.values())) * post.bytes_each
            together = size <= self.plan.federation.training.message_limit
            for some in [asked] if together else [{arm: named} for arm, named in asked.items()]:
                folds = [fold for named in some.values() for fold in named]
                task = EvaluateTask(
                    federation=self.plan.hash,
                    seed=self.plan.seed,
                    folds=folds,
                    questions=[
                        Question(arm=arm, folds=named, thresholds=[thresholds[name] for name in self._names_of(named)])
                        for arm, named in some.items()
                    ],
                )
                yield Request(hospital, folds), post.record(task, folds)

    def _plausible(self, request: Request, answers: Sequence[Answer]) -> bool:
        """Whether these answer what was asked, about as many patients as the hospital has said that it has."""
        evaluation, member = self.plan.federation.evaluation, self.members[request.hospital]
        training = member.moments[0]
        asked = questions(evaluation, request.hospital)
        if [answer.arm for answer in answers] != [
            arm for arm, named in asked.items() if set(named) <= set(request.folds)
        ]:
            return False
        for answer in answers:
            if bool(answer.types) is not (self.plan.federation.task.kind == "slices"):
                return False
            if not _as_agreed(answer, self.plan.federation):
                return False
            if self.plan.federation.privacy is not None:  # nobody here knows how many they are
                continue
            if answer.arm == LOHO or evaluation.folds:  # every patient is tested once
                if answer.patients != member.patients or answer.events not in (None, member.events):
                    return False
            elif answer.patients + training.patients > member.patients or (
                member.events is not None and (answer.events or 0) + training.events > member.events
            ):
                return False
        return True


# --- rows and files ---------------------------------------------------------------------------------------------------


class _Post:
    """Makes the records of one exchange. Hospitals that get the same folds share the arrays, which are stored once."""

    def __init__(self, names: Sequence[str], rows: Rows) -> None:
        self._names, self._rows = names, rows
        self._arrays: dict[tuple[str, ...], list[Array]] = {}
        self.bytes_each = sum(block[0].nbytes for block in rows.values())
        """Of one fold."""

    def record(self, task: Task, folds: Sequence[str]) -> RecordDict:
        """A task about these folds, with their rows."""
        each = [(fold,) for fold in folds] if self.bytes_each >= LARGE else [tuple(folds)]
        for group in each:
            if group not in self._arrays:
                self._arrays[group] = packed(_rows_of(self._names, self._rows, group))
        arrays = [array for group in each for array in self._arrays[group]]
        return to_record(task, {name: block[:0] for name, block in self._rows.items()}, arrays)


def _as_agreed(answer: Answer, federation: Federation) -> bool:
    """Whether its decision curve and subgroups are the study's."""
    named = {variable: tuple(levels) for variable, levels in answer.subgroups.items()}
    thresholds = {one.threshold for one in answer.decisions}
    return thresholds <= set(federation.evaluation.decision_thresholds) and named in ({}, federation.subgroups)


def _sendable(rows: Rows) -> Rows:
    """What hospitals need to compute with a fold's model."""
    return {name: block for name, block in rows.items() if name in (WEIGHTS, CONSTANTS, LOCAL)}


def _rows_of(names: Sequence[str], rows: Rows, folds: Sequence[str]) -> Rows:
    indices = [names.index(fold) for fold in folds]
    return {name: block[indices] for name, block in rows.items()}


def _column(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([[np.nan if value is None else value] for value in values])


def _add_known(
    means: WeightedMeans, folds: Sequence[str], losses: Sequence[float | None], patients: Sequence[int]
) -> None:
    """Fold in the losses that there are."""
    for fold, loss, weight in zip(folds, losses, patients, strict=True):
        if loss is not None:
            means.add([fold], {"loss": _column([loss])}, [weight])


def _drift(moved: Mapping[str, tuple[int, float]], step: float) -> dict[str, Any]:
    """How far hospitals moved the model of all hospitals, and how far they agree: hospital -> (patients, L2 norm of its update).

    `agreement`: norm of the model's own step over the patient-weighted root mean square of the updates' norms; under plain
    averaging 1 where all hospitals pull the same way, near 0 where they pull against each other (the inverse of gradient
    diversity, Yin et al., AISTATS 2018). None where nobody moved.
    """
    weight = sum(patients for patients, _ in moved.values())
    squares = sum(patients * length**2 for patients, length in moved.values())
    agreement = step / math.sqrt(squares / weight) if squares else None
    return {"updates": {name: length for name, (_, length) in moved.items()}, "step": step, "agreement": agreement}


def _number(row: NDArray[np.floating]) -> float | None:
    return float(row[0]) if np.isfinite(row[0]) else None


def _save_result(path: Path, plan: Plan, members: Mapping[str, Member], result: StudyResult) -> None:
    facts = {
        "federation": plan.hash,
        "seed": plan.seed,
        "hospitals": {name: member.facts() for name, member in members.items()},
        "folds": list(result.folds),
        "thresholds": dict(result.thresholds),
        "lines": dict(result.lines),
        "answers": {name: [answer.model_dump() for answer in given] for name, given in result.answers.items()},
        "history": list(result.history),
        "quarantined": [asdict(quarantine) for quarantine in result.quarantined],
    }
    write_arrays(path, result.rows, facts)


def _load_result(rows: Rows, facts: Mapping[str, Any]) -> StudyResult:
    taking = {
        name: Taking(said["patients"], said["events"], said["excluded"], PartStatistics(**said["parts"]["0"]).moments())
        for name, said in facts["hospitals"].items()
    }
    return StudyResult(
        hospitals=taking,
        folds=tuple(facts["folds"]),
        rows=rows,
        thresholds=facts["thresholds"],
        lines={fold: (line[0], line[1]) for fold, line in facts.get("lines", {}).items()},
        answers={name: tuple(map(Answer.model_validate, given)) for name, given in facts["answers"].items()},
        history=facts["history"],
        quarantined=[Quarantine(**quarantine) for quarantine in facts["quarantined"]],
    )
