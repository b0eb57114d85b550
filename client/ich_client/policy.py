"""What the hospital has agreed to: approvals by hash, hours, studies, and how often the same may be asked."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from ich_client import audit
from ich_client.budget import too_open
from ich_client.guard import Guard
from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_client.tasks import RefusedError
from ich_models import hash_chain
from ich_models.errors import Code
from ich_models.files import read_json, write_json
from ich_models.folds import WITHOUT
from ich_models.protocol import (
    PACKAGE,
    PROTOCOL,
    EvaluateTask,
    RecalibrationTask,
    Rows,
    Task,
    ThresholdTask,
    TrainTask,
)
from ich_models.strict import Strict

COUNTED: Final = (TrainTask, RecalibrationTask, ThresholdTask, EvaluateTask)
"""Tasks whose answer depends on what the server sends with them: asked again and again, they would be a probe."""


# --- approvals --------------------------------------------------------------------------------------------------------


def approve(path: Path, federation: str, limits: Limits) -> None:
    """Record that people have read and agreed to this study with this version. `path`: the log of approvals."""
    agreed = {"federation": federation, "package": PACKAGE, "protocol": PROTOCOL, "limits": limits.model_dump()}
    hash_chain.append(path, {"event": "approve", **agreed})


def withdraw(path: Path, federation: str) -> None:
    """Take it back."""
    hash_chain.append(path, {"event": "withdraw", "federation": federation})


def approved(path: Path, federation: str) -> bool:
    """Whether the last word on this study is an approval, of this version. Raises DataError if the log was changed."""
    entry = _last_word(path, federation)
    last = entry.content if entry else {}
    return (last.get("event"), last.get("package"), last.get("protocol")) == ("approve", PACKAGE, PROTOCOL)


def _last_word(path: Path, federation: str) -> hash_chain.Entry | None:
    """The newest entry about a study. Raises DataError if the log was changed."""
    last = None
    for entry in hash_chain.read(path):
        if entry.content.get("federation") == federation:
            last = entry
    return last


# --- the same patients from the first answer to the last --------------------------------------------------------------


def check_unchanged(folder: Path, site: Site) -> None:
    """Raise RefusedError(DATA) if the patients are not those that this study was first answered about since its approval.

    Exact answers about the patients before and after one was added differ by that one; and so they do where one slice was
    labelled, or one image came. Whoever approves the study again agrees to that: its patients then are what later answers
    must be about. `folder`: where the fingerprint is kept.
    """
    path, approval = folder / "patients.json", _last_word(folder / "approvals.jsonl", site.plan.hash)
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    now = {"patients": _fingerprint(site.hospital), "approval": approval.hash if approval else ""}
    then = known.get(site.plan.hash)
    if then is not None and then["approval"] == now["approval"] and then["patients"] != now["patients"]:
        raise RefusedError(
            Code.DATA,
            "the table, a text, an image or a label has changed since this study began here, and two answers would tell of"
            " the patients whose it is: bring it back as it was, or agree to that by ich-client approve",
        )
    if then != now:
        write_json(path, {**known, site.plan.hash: now})


def _fingerprint(hospital: Hospital) -> str:
    """SHA-256 of what answers tell of: identifiers, table, outcomes, subgroups, texts, labels of slices, and of an image what
    it is made of (its key in the cache: its files and how they are read). It stays here."""
    patients, images = hospital.patients, hospital.images
    content = hashlib.sha256("\n".join(patients.ids).encode())
    named = [array for each in (patients.groups, patients.present) for _, array in sorted(each.items())]
    for array in (patients.table, patients.labels, patients.text, patients.slices, patients.targets, *named):
        if array is not None:
            content.update(np.ascontiguousarray(array).tobytes())
    for one in images.chosen if images else ():
        content.update(f"{one.patient} {one.prepared}\n".encode())
    return content.hexdigest()


# --- the guard --------------------------------------------------------------------------------------------------------


def within_limits(site: Site, task: Task) -> None:
    """Raise RefusedError(POLICY) for what hospital.yaml itself rules out, wherever the client runs."""
    limits, federation = site.hospital.limits, site.plan.federation
    if limits.studies is not None and federation.name not in limits.studies:
        raise RefusedError(Code.POLICY, f"limits.studies does not name '{federation.name}'")
    if (why := too_open(limits, federation.privacy)) is not None:
        raise RefusedError(Code.POLICY, f"limits.privacy asks for differential privacy, and {why}")
    here = datetime.now().astimezone()
    if isinstance(task, TrainTask) and limits.hours is not None and not _within(limits.hours, here):
        raise RefusedError(Code.POLICY, f"asked to train outside limits.hours ({limits.hours})")
    if isinstance(task, EvaluateTask) and not limits.send_metrics:
        raise RefusedError(Code.POLICY, "asked for metrics, and limits.send_metrics is false")


def guard(folder: Path) -> Guard:
    """What stands between the server and a hospital at work: `folder` holds the audit log and the approvals."""
    log, approvals = folder / "log.jsonl", folder / "approvals.jsonl"
    answered: Counter[tuple[Any, ...]] = Counter()
    known: defaultdict[tuple[str, int], set[str]] = defaultdict(set)

    def count(content: Mapping[str, Any]) -> None:
        asked = _questions(content)
        answered.update(asked)
        for federation, seed, *_, fold in asked:
            known[federation, seed].add(fold)

    for entry in audit.entries(log):
        count(entry.content)

    def permit(site: Site, task: Task) -> None:
        limits = site.hospital.limits
        if limits.approval == "required" and not approved(approvals, task.federation):
            hint = "ich-client approve shows it and asks"
            raise RefusedError(Code.APPROVAL, f"this study is not approved with version {PACKAGE}: {hint}")
        within_limits(site, task)
        check_unchanged(folder, site)
        asked = _questions({"task": type(task).__name__, **task.model_dump(mode="json")})
        named = known[site.plan.hash, site.plan.seed] | {one[-1] for one in asked}
        if len([name for name in named if name.startswith(WITHOUT)]) > limits.hospitals:
            message = f"asked about more models than {limits.hospitals} hospitals can have (limits.hospitals)"
            raise RefusedError(Code.POLICY, message)
        if max((answered[one] for one in asked), default=0) >= limits.answers:
            raise RefusedError(Code.POLICY, f"this was answered {limits.answers} times already (limits.answers)")

    def record(task: Task | None, reply: Strict, rows: Rows) -> None:
        entry = audit.record(log, task, reply, rows)
        count(entry.content)

    return Guard(permit, record)


def _questions(content: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What a task asks, per fold; nothing where its answer does not depend on what it brings, or was a code."""
    if content.get("task") not in {kind.__name__ for kind in COUNTED} or content.get("reply") == "Refusal":
        return []
    about = (content["federation"], content["seed"], content["task"], content.get("round"))
    return [(*about, fold) for fold in content["folds"]]


def _within(hours: str, moment: datetime) -> bool:
    """Whether a local time lies in a window like 19:00-06:00, which may go over midnight."""
    begin, end = hours.split("-")
    now = moment.strftime("%H:%M")
    return begin <= now < end if begin < end else now >= begin or now < end
