"""After the last round: the model of all hospitals goes to every hospital, each says what it has kept, and the server keeps it too."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from ich_models.folds import ALL, threshold_name
from ich_models.protocol import MODEL, ModelReply, ModelTask, rows_hash, to_record
from ich_server.rounds import Failure, Quarantine, Request, exchange, read
from ich_server.study import StudyResult
from ich_strategies import models
from ich_strategies.plan import Plan

HANDOVER = "hand-over"


def thresholds(plan: Plan, result: StudyResult) -> tuple[float | None, dict[str, float]]:
    """The threshold of the model of all hospitals, or in a study of slices none and each type's own."""
    chosen = {label: result.thresholds[threshold_name(ALL, label)] for label in plan.federation.labels}
    return (chosen[""], {}) if "" in chosen else (None, chosen)


def keep(plan: Plan, result: StudyResult, folder: Path) -> None:
    """The model of all hospitals as a hospital would have kept it, for `ich-client predict --model` and export."""
    rows = result.of([ALL])
    threshold, by_type = thresholds(plan, result)
    models.write(folder, plan, {name: block[0] for name, block in rows.items()}, threshold, rows_hash(rows), by_type)


def hand_over(
    grid: Grid, plan: Plan, result: StudyResult, nodes: Mapping[str, int]
) -> tuple[list[str], list[Quarantine]]:
    """Send the model to the hospitals of the study, by name in `nodes`: who has kept it, and who has not and why."""
    rows = {name: np.ascontiguousarray(block) for name, block in result.of([ALL]).items()}
    threshold, by_type = thresholds(plan, result)
    about = {"threshold": threshold, "thresholds": by_type}
    task = ModelTask.model_validate({"federation": plan.hash, "seed": plan.seed, **about})
    record = to_record(task, rows)
    requests = [(Request(name, (ALL,)), record) for name in sorted(nodes) if name in result.hospitals]
    kept: list[str] = []
    failed: list[Quarantine] = []
    deadline = plan.federation.quorum.deadline
    for request, reply in exchange(grid, nodes, requests, MODEL, deadline, HANDOVER):
        answer = read(reply, ModelReply, request.hospital)
        if isinstance(answer, Failure):
            failed.append(Quarantine(HANDOVER, request.hospital, answer.reason))
        elif answer[0].sha256 != rows_hash(rows):
            failed.append(Quarantine(HANDOVER, request.hospital, "another model than was sent"))
        else:
            kept.append(request.hospital)
    return kept, failed
