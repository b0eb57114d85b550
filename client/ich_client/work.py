"""What a hospital does when asked: statistics, training, thresholds, evaluation; a task in, a reply out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ich_client import disagreements, private_releases
from ich_client.noise import Stream
from ich_client.private import Terms, fit_private
from ich_client.site import Site
from ich_client.tasks import RefusedError
from ich_client.train import Direction, Fit, fit
from ich_models import curves, subgroups
from ich_models.batch import Batch, Patients
from ich_models.errors import Code
from ich_models.folds import ALL, Fold, parse
from ich_models.losses import plain
from ich_models.metrics import Evaluation as Figures
from ich_models.metrics import chosen_threshold, evaluate_subgroup
from ich_models.metrics import evaluate as measure
from ich_models.protocol import (
    CONSTANTS,
    LARGEST_COEFFICIENT,
    LARGEST_LOSS,
    LOCAL,
    WEIGHTS,
    Answer,
    EvaluateReply,
    EvaluateTask,
    ModelReply,
    ModelTask,
    PartStatistics,
    RecalibrationReply,
    RecalibrationTask,
    Rows,
    StatisticsReply,
    StatisticsTask,
    ThresholdReply,
    ThresholdTask,
    TrainReply,
    TrainTask,
    rows_hash,
    select,
)
from ich_models.recalibration import fit as fit_line
from ich_models.slice_metrics import evaluate_slices, slice_thresholds
from ich_models.stack import Stack, stackable
from ich_strategies import models
from ich_strategies.models import load_stack as load_stack  # said twice: others have it from here
from ich_strategies.plan import Plan
from ich_strategies.strategy import Strategy

Array = NDArray[np.floating]

CPU: Final = torch.device("cpu")

CLIENT: Final = "client."
"""Before the names of what the hospital itself has kept, beside the server's blocks."""


# --- statistics -------------------------------------------------------------------------------------------------------


def statistics(site: Site, task: StatisticsTask) -> StatisticsReply:
    """The sums of the training patients for each part asked for.

    Raises RefusedError(BUDGET) if a private study asks more of these patients than they can bear: the hospital stays out.
    """
    patients = site.hospital.patients
    if site.budget is not None:
        site.budget.terms()
    return StatisticsReply(
        hospital=site.hospital.name,
        schema_hash=site.plan.schema,
        patients=len(patients),
        events=int(patients.labels.sum()),
        excluded=dict(site.hospital.excluded),
        parts={part: PartStatistics.of(site.moments(part)) for part in task.parts},
    )


# --- training ---------------------------------------------------------------------------------------------------------


def train(site: Site, task: TrainTask, rows: Rows) -> tuple[TrainReply, Rows]:
    """Train the folds of one message for one round; folds with the same inputs are trained once.

    In a private study the round is paid for before the first gradient, and a question that was answered already gets the
    same answer. Raises RefusedError(DIVERGED) if what comes out is not finite, of which nothing is then kept, and
    RefusedError(BUDGET) if the hospital's patients cannot bear it.
    """
    if (budget := site.budget) is None:
        return _trained(site, task, rows, None)[0]
    if (before := site.replies.find(task, rows, TrainReply)) is not None:
        return before
    sigma, charge = budget.training(task.seed, task.round, task.folds)
    answer, models = _trained(site, task, rows, sigma)
    budget.ledger.settle(charge, charge.reserved.steps // len(task.folds) * models)
    site.replies.keep(task, rows, *answer)
    return answer


def _trained(site: Site, task: TrainTask, rows: Rows, sigma: float | None) -> tuple[tuple[TrainReply, Rows], int]:
    """The same, and how many models were trained for it. `sigma`: the noise of a private study."""
    folds = list(map(parse, task.folds))
    inputs = _with_constants(site, folds, rows) | _own_state(site, task, rows)
    outputs: Rows = {}
    models = 0
    for part, twins in _passes(site, folds, inputs):
        trained = _train_together(site, task.round, part, select(inputs, [group[0] for group in twins]), sigma)
        models += len(twins)
        for name, block in trained.items():
            whole = outputs.setdefault(name, np.empty((len(folds), block.shape[1]), block.dtype))
            for position, group in enumerate(twins):
                whole[group] = block[position]

    kept = _named(outputs, "kept.")
    if lost := [name for index, name in enumerate(task.folds) if not _all_finite(outputs, index)]:
        raise RefusedError(Code.DIVERGED, f"training gave numbers that are not finite: {', '.join(lost)}")
    if kept:
        site.state.save(task.folds, task.round, kept)
    sent = _named(outputs, "sent.")
    if task.final and LOCAL in kept:
        sent[LOCAL] = kept[LOCAL]
    reply = TrainReply(
        hospital=site.hospital.name,
        patients=[len(site.split(fold.part or 0).train) for fold in folds],
        seen=_seen(site, [fold.part or 0 for fold in folds]),
        losses=_losses(outputs["loss"]),
        validation_losses=_losses(outputs["validation_loss"]),
    )
    return (reply, sent), models


def _seen(site: Site, parts: Sequence[int]) -> dict[str, list[int]]:
    """Per modality that an encoder reads and somebody lacks: the training patients who have it."""
    found: dict[str, list[int]] = {}
    for modality in sorted({modality for _, modality in site.plan.segments}):
        held = site.hospital.patients.holding(modality)
        if not held.all():
            found[modality] = [int(held[site.split(part).train].sum()) for part in parts]
    return found


def _all_finite(outputs: Rows, index: int) -> bool:
    return all(
        np.isfinite(block[index]).all() for name, block in outputs.items() if name.startswith(("sent.", "kept."))
    )


def _own_state(site: Site, task: TrainTask, rows: Rows) -> Rows:
    """What this hospital kept for these folds, as 'client.NAME' and 'local'; start values where it has nothing yet."""
    plan = site.plan
    start = {
        f"{CLIENT}{name}": np.zeros(width, rows[WEIGHTS].dtype)
        for name, width in plan.strategy.keeps(plan.weights.size).items()
    }
    if plan.local.size:
        start[LOCAL] = plan.start_local[0].numpy()
    kept = site.state.load(before=task.round) if start else {}
    return {
        name: np.stack([kept.get(fold, {}).get(name.removeprefix(CLIENT), first) for fold in task.folds])
        for name, first in start.items()
    }


def _with_constants(site: Site, folds: Sequence[Fold], rows: Rows) -> Rows:
    """The rows with each fold's imputation and scaling: the server's, or under `scaling: hospital` this hospital's."""
    if site.plan.federation.modalities.table.scaling != "hospital":
        return rows
    return {**rows, CONSTANTS: np.concatenate([site.constants(fold.part or 0).numpy() for fold in folds])}


def _passes(site: Site, folds: Sequence[Fold], inputs: Rows) -> Iterator[tuple[int, list[list[int]]]]:
    """Folds that train together: (part held out, groups of folds with identical inputs).

    Folds with the same patients go in one pass where the network can be stacked, else one after another. Encoders of
    images gain nothing from a common pass (measured: 0.85 of the time), and need the memory of all folds.
    """
    together = stackable(site.plan.network) and site.hospital.patients.image is None and site.budget is None
    groups: dict[int, dict[bytes, list[int]]] = {}
    for index, fold in enumerate(folds):
        content = b"".join(block[index].tobytes() for block in inputs.values())
        groups.setdefault(fold.part or 0, {}).setdefault(content, []).append(index)
    for part, twins in groups.items():
        if together:
            yield part, list(twins.values())
        else:
            yield from ((part, [group]) for group in twins.values())


def _train_together(site: Site, round_number: int, part: int, inputs: Rows, sigma: float | None) -> Rows:
    """One pass over the stack: outputs 'sent.*', 'kept.*', 'loss' and 'validation_loss' (F, 1)."""
    plan, strategy = site.plan, site.plan.strategy
    stage, _ = plan.federation.training.stage_at(round_number)
    stack = load_stack(plan, inputs, stage.name, site.device)
    tensors = {name: torch.from_numpy(block) for name, block in inputs.items()}
    start = tensors[WEIGHTS]
    server = {name: tensors[name] for name in strategy.sends}
    client = {name.removeprefix(CLIENT): block for name, block in tensors.items() if name.startswith(CLIENT)}
    validation = _validation_losses(stack, site.batch(part, "validation"))
    before = stack.own_losses(site.batch(part, "train")) if strategy.exact_loss else None
    done = _fit(site, stack, part, round_number, _direction(plan, start, server, client, site.device), sigma)
    end = plan.weights.pack(stack.tensors(), start).cpu()
    report = strategy.report(start, end, server, client, done.rate)
    for what, given, declared in (("returns", report.sent, strategy.returns), ("keeps", report.kept, strategy.keeps)):
        widths = {name: block.shape[1] for name, block in given.items()}
        if widths != declared(plan.weights.size):
            raise ValueError(f"{type(strategy).__name__}.report and .{what} do not agree: {widths}")
    kept = dict(report.kept)
    if plan.local.size:
        kept[LOCAL] = plan.local.pack(stack.tensors(), start).cpu()
    return {
        f"sent.{WEIGHTS}": end.numpy(),
        **{f"sent.{name}": block.numpy() for name, block in report.sent.items()},
        **{f"kept.{name}": block.numpy() for name, block in kept.items()},
        "loss": (done.losses if before is None else before).numpy()[:, None],
        "validation_loss": validation.numpy()[:, None],
    }


def _fit(
    site: Site, stack: Stack, part: int, round_number: int, direction: Direction | None, sigma: float | None
) -> Fit:
    """Train the stack for one round, with this noise where the study is private."""
    training, patients = site.plan.federation.training, site.batch(part, "train")
    stage, rounds_before = training.stage_at(round_number)
    epochs_before = training.epochs_before(stage)
    if (budget := site.budget) is not None and sigma is not None:
        privacy = budget.privacy
        return fit_private(
            stack,
            patients,
            stage,
            Terms(sigma, privacy.clip, privacy.rate, privacy.steps(stage), privacy.rate * budget.learning(part)),
            rounds_before=rounds_before,
            rounds=stage.rounds,
            epochs_before=epochs_before,
            direction=direction,
            hospital=site.hospital.name,
        )
    return fit(
        stack,
        patients,
        stage,
        rounds_before=rounds_before,
        rounds=stage.rounds,
        epochs_before=epochs_before,
        seed=(site.plan.seed, round_number, *site.hospital.name.encode()),
        direction=direction,
        micro_batch=site.hospital.limits.micro_batch,
    )


def _direction(
    plan: Plan,
    start: torch.Tensor,
    server: Mapping[str, torch.Tensor],
    client: Mapping[str, torch.Tensor],
    device: torch.device,
) -> Direction | None:
    """The strategy's client half on one tensor of the stack; None where it changes nothing."""
    strategy = plan.strategy
    if type(strategy).direction is Strategy.direction:
        return None
    starts = plan.weights.unpack(start.to(device))
    size = plan.weights.size
    servers = {name: plan.weights.unpack(block.to(device)) for name, block in server.items() if block.shape[1] == size}
    clients = {name: plan.weights.unpack(block.to(device)) for name, block in client.items() if block.shape[1] == size}

    def direction(tensor: str, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if tensor not in starts:  # a layer that stays here has nothing to be drawn to
            return gradient
        return strategy.direction(
            gradient,
            weight,
            starts[tensor],
            {name: parts[tensor] for name, parts in servers.items()},
            {name: parts[tensor] for name, parts in clients.items()},
        )

    return direction


def _validation_losses(stack: Stack, patients: Batch) -> torch.Tensor:
    """(F,) float64: mean loss of the weights as received; NaN without validation patients."""
    if not len(patients):
        return torch.full((stack.copies,), torch.nan, dtype=torch.float64)
    return plain(stack.logits(patients).double(), patients.label.double())


def _named(rows: Rows, prefix: str) -> Rows:
    return {name.removeprefix(prefix): block for name, block in rows.items() if name.startswith(prefix)}


def _losses(column: Array) -> list[float | None]:
    """As they may be sent: None where there is none, or none that means anything."""
    return [float(value) if 0 <= value <= LARGEST_LOSS else None for value in column[:, 0]]


# --- thresholds and evaluation ----------------------------------------------------------------------------------------


def recalibration(site: Site, task: RecalibrationTask, rows: Rows) -> tuple[RecalibrationReply, Rows]:
    """Per fold the line that would make its log-odds right for this hospital's validation patients, or else training patients."""
    kind = site.plan.federation.evaluation.recalibrate
    lines: list[tuple[float, float] | None] = []
    for fold, own in zip(map(parse, task.folds), personal(site, task.folds, rows), strict=True):
        split = site.split(fold.part or 0)
        chosen = site.hospital.patients.take(split.validation if len(split.validation) else split.train)
        line = fit_line(chosen.labels, predict(site.plan, own, chosen, site.device)[0], kind)
        believable = line is not None and max(map(abs, line)) <= LARGEST_COEFFICIENT
        lines.append(line if believable else None)
    return RecalibrationReply(hospital=site.hospital.name, lines=lines), {}


def thresholds(site: Site, task: ThresholdTask, rows: Rows) -> tuple[ThresholdReply, Rows]:
    """Per fold the threshold by the study's rule on this hospital's validation patients, or training patients if it has none."""
    asked = site.plan.federation.evaluation.threshold
    rule = asked if isinstance(asked, str) else "youden"  # asked for the losses alone: nobody takes the threshold
    found: list[float | None] = []
    losses: list[float | None] = []
    for fold, own in zip(map(parse, task.folds), personal(site, task.folds, rows), strict=True):
        split = site.split(fold.part or 0)
        rows_here = split.validation if len(split.validation) else split.train
        chosen = site.hospital.patients.take(rows_here)
        probabilities = predict(site.plan, own, chosen, site.device)[0]
        if chosen.targets is not None:
            found += slice_thresholds(rule, chosen.targets, probabilities)
        else:
            found.append(chosen_threshold(rule, chosen.labels, probabilities))
        validation = _validation_losses(
            load_stack(site.plan, own, device=site.device), site.batch(fold.part or 0, "validation")
        )
        losses += _losses(validation.numpy()[:, None])
    return ThresholdReply(hospital=site.hospital.name, thresholds=found, validation_losses=losses), {}


def evaluate(site: Site, task: EvaluateTask, rows: Rows) -> tuple[EvaluateReply, Rows]:
    """Answer each question on the patients that its folds have not learnt from.

    Raises RefusedError(HELD_OUT) if a fold has learnt from every patient here: there is nothing to test it on.
    """
    answers = []
    noised = site.budget if site.budget is not None and site.budget.privacy.metrics == "noised" else None
    if noised is not None:
        if (before := site.replies.find(task, rows, EvaluateReply)) is not None:
            return before
        noised.figures(task.seed, task.folds, len(task.questions))
    for question in task.questions:
        indices = [task.folds.index(name) for name in question.folds]
        tested, probabilities = predictions(site, question.folds, select(rows, indices))
        by_fold = np.array(question.thresholds).reshape(len(question.folds), -1)
        limits = np.concatenate([np.tile(own, (len(r), 1)) for r, own in zip(tested, by_fold, strict=True)])
        everyone, scores = site.hospital.patients.take(np.concatenate(tested)), np.concatenate(probabilities)
        labels, seed = everyone.labels, site.plan.seed
        if everyone.targets is not None:
            path = site.models / f"disagreements-{question.arm}.csv"
            disagreements.write(site.hospital, np.concatenate(tested), scores, path)
            found = evaluate_slices(len(labels), int(labels.sum()), everyone.targets, scores, limits, seed=seed)
        elif noised is not None:
            found = private_releases.measured(noised, labels, scores, float(limits[0, 0]), Stream())
        else:
            found = measure(labels, scores, limits[:, 0], seed=seed)
            found = in_groups(site, np.concatenate(tested), found, scores, limits[:, 0])
        answers.append(Answer.of(question.arm, found))
    reply = EvaluateReply(hospital=site.hospital.name, answers=answers)
    if noised is not None:
        site.replies.keep(task, rows, reply, {})
    return reply, {}


def in_groups(site: Site, tested: NDArray[np.int64], found: Figures, scores: Array, limits: Array) -> Figures:
    """An evaluation with its calibration bins, decision curve and subgroups, as far as they may be told.

    `tested`: row numbers (N,) of this hospital's patients; `scores`, `limits`: (N,) their probabilities and thresholds.
    """
    evaluation, k = site.plan.federation.evaluation, site.small_cells
    patients = site.hospital.patients
    labels = patients.labels[tested]
    bins, decisions = curves.groups(labels, scores, limits, evaluation.decision_thresholds, k)
    if not bins:  # too few for any of it
        return found
    there = np.isin(np.arange(len(patients)), tested)
    taught = np.isin(np.arange(len(patients)), site.split(0).train)
    own = {name: level[tested] for name, level in patients.groups.items()}
    divided = {name: subgroups.divided(level, (there, taught), k) for name, level in patients.groups.items()}
    kept = subgroups.hidden(own, labels == 1, k, divided)
    by_level = {
        name: {
            level: None
            if place in kept[name]
            else evaluate_subgroup(labels[own[name] == place], scores[own[name] == place])
            for place, level in enumerate(site.plan.federation.subgroups[name])
        }
        for name in own
    }
    return replace(found, bins=bins, decisions=decisions, subgroups=by_level)


# --- the model that is handed over ------------------------------------------------------------------------------------


def keep(site: Site, task: ModelTask, rows: Rows) -> tuple[ModelReply, Rows]:
    """Keep the model of all hospitals, complete with this hospital's own constants and layers, and its card beside it."""
    plan = site.plan
    mine = next(personal(site, [ALL], rows))
    tensors = {name: block[0] for name, block in mine.items()}
    by_type = {str(name): limit for name, limit in task.thresholds.items()}
    models.write(site.models, plan, tensors, task.threshold, rows_hash(rows), by_type)
    return ModelReply(hospital=site.hospital.name, sha256=rows_hash(rows)), {}


def predictions(site: Site, folds: Sequence[str], rows: Rows) -> tuple[list[NDArray[np.int64]], list[Array]]:
    """Per fold: the row numbers that it may be tested on here, and its probabilities for them."""
    tested, probabilities = [], []
    for fold, own in zip(map(parse, folds), personal(site, folds, rows), strict=True):
        untaught = site.held_out(fold)
        if not len(untaught) or (fold.hospital is not None and fold.trains_at(site.hospital.name)):
            raise RefusedError(Code.HELD_OUT, f"fold '{fold.name}' has learnt from every patient of this hospital")
        tested.append(untaught)
        probabilities.append(predict(site.plan, own, site.hospital.patients.take(untaught), site.device)[0])
    return tested, probabilities


def personal(site: Site, folds: Sequence[str], rows: Rows) -> Iterator[Rows]:
    """One fold's rows at a time, with this hospital's own constants and local layers where it has them."""
    own_local = site.state.load() if site.plan.local.size else {}
    whole = _with_constants(site, list(map(parse, folds)), rows)
    for index, fold in enumerate(folds):
        mine = select(whole, [index])
        if LOCAL in own_local.get(fold, {}):
            mine[LOCAL] = own_local[fold][LOCAL][None]
        yield mine


def predict(plan: Plan, rows: Rows, patients: Patients, device: torch.device = CPU) -> Array:
    """Probabilities (F, N), or (F, N, S, 5), of the positive outcome for N patients, all that is known of them, under each row's model."""
    return torch.sigmoid(load_stack(plan, rows, device=device).logits(patients.batch(plan.dtype)).double()).numpy()
