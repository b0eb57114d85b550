"""The Flower ClientApp: checks what it is asked, does it, and lets a reply or a code out, never an exception."""

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeVar

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ich_client import egress, tasks, work
from ich_client.guard import Guard
from ich_client.hospital import HospitalConfig
from ich_client.policy import within_limits
from ich_client.site import Site
from ich_client.tables import load_hospitals
from ich_client.tasks import RefusedError
from ich_models.errors import Code, ConfigurationError, IchError
from ich_models.federation import load_federation
from ich_models.protocol import (
    PACKAGE,
    PROTOCOL,
    EvaluateTask,
    MalformedError,
    ModelTask,
    RecalibrationTask,
    Refusal,
    Rows,
    StatisticsTask,
    Task,
    ThresholdTask,
    TrainTask,
    from_record,
    to_record,
)
from ich_models.strict import Strict
from ich_models.yaml_config import load
from ich_strategies.plan import Plan

log = logging.getLogger(__name__)

OPEN: Final = Guard()
"""Everything is permitted: a simulation."""

T = TypeVar("T", bound=Task)

SiteOf = Callable[[Context, int], Site]
"""From Flower's context and the study's seed to the hospital at work; raises an IchError if it cannot be had."""


def build_app(site_of: SiteOf, guard: Guard = OPEN) -> ClientApp:
    """A ClientApp that answers for the sites that `site_of` gives, as far as the `guard` lets it."""
    app = ClientApp()

    @app.query()
    def statistics(message: Message, context: Context) -> Message:
        return _answer(
            message, context, site_of, guard, StatisticsTask, lambda site, task, _: (work.statistics(site, task), {})
        )

    @app.query("model")
    def model(message: Message, context: Context) -> Message:
        return _answer(message, context, site_of, guard, ModelTask, work.keep)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer(message, context, site_of, guard, TrainTask, work.train)

    @app.evaluate("threshold")
    def thresholds(message: Message, context: Context) -> Message:
        return _answer(message, context, site_of, guard, ThresholdTask, work.thresholds)

    @app.evaluate("recalibration")
    def recalibration(message: Message, context: Context) -> Message:
        return _answer(message, context, site_of, guard, RecalibrationTask, work.recalibration)

    @app.evaluate("test")
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(message, context, site_of, guard, EvaluateTask, work.evaluate)

    return app


def _answer(
    message: Message,
    context: Context,
    site_of: SiteOf,
    guard: Guard,
    kind: type[T],
    handler: Callable[[Site, T, Rows], tuple[Strict, Rows]],
) -> Message:
    return Message(_reply(message.content, context, site_of, guard, kind, handler), reply_to=message)


def _reply(
    record: RecordDict,
    context: Context,
    site_of: SiteOf,
    guard: Guard,
    kind: type[T],
    handler: Callable[[Site, T, Rows], tuple[Strict, Rows]],
) -> RecordDict:
    """The handler's reply, or a code; whatever went wrong is told in the local log alone."""
    task: T | None = None
    try:
        task, rows = from_record(record, kind)
        if (task.protocol, task.package) != (PROTOCOL, PACKAGE):
            raise RefusedError(
                Code.PROTOCOL,
                f"the server speaks protocol {task.protocol} of version {task.package!r}, "
                f"this hospital {PROTOCOL} of {PACKAGE}: install the same version on both sides",
            )
        site = site_of(context, task.seed)
        if task.federation != site.plan.hash:
            raise RefusedError(Code.FEDERATION, "the server's federation file is not the one that this hospital holds")
        guard.permit(site, task)
        tasks.check(site.plan, site.hospital.name, task, rows)
        reply, blocks = egress.release(site, task, *handler(site, task, rows))
        guard.record(task, reply, blocks)
        return to_record(reply, blocks)
    except Exception as error:
        code = _code(error)
        expected = isinstance(error, RefusedError | MalformedError | IchError)
        log.error("refused (code %s): %s", code, error, exc_info=None if expected else error)
    return refusal(guard, code, task)


def refusal(guard: Guard, code: Code, task: Task | None = None) -> RecordDict:
    """The code as it goes out in place of a reply; written down if that can be done, since without it the server would wait."""
    said = Refusal(code=code)
    try:
        guard.record(task, said, {})
    except (OSError, IchError) as error:
        log.error("the audit log cannot be written: %s", error)
    return to_record(said)


def _code(error: Exception) -> Code:
    """What crosses to the server in place of an exception."""
    match error:
        case RefusedError():
            return error.code
        case MalformedError():
            return Code.MALFORMED
        case IchError():
            return Code.DATA
        case MemoryError() | OSError() | torch.OutOfMemoryError():
            return Code.RESOURCES
        case _:
            return Code.INTERNAL


# --- the app as Flower's own tools run it -----------------------------------------------------------------------------

NODE_SETTINGS: Final = ("federation", "hospital", "data", "state")
"""Node configuration: federation file, hospital file, root of its relative paths, folder for state between rounds."""


def site_of_node(context: Context, seed: int) -> Site:
    """The hospital that the node's configuration names. Raises ConfigurationError or DataError."""
    missing = [name for name in NODE_SETTINGS if name not in context.node_config]
    if missing:
        raise ConfigurationError(f"the node configuration lacks {', '.join(missing)}")
    federation, hospital, data, state = (Path(str(context.node_config[name])) for name in NODE_SETTINGS)
    return _site(federation, hospital, data, state, seed)


@lru_cache(maxsize=4)
def _site(federation: Path, hospital: Path, data: Path, state: Path, seed: int) -> Site:
    document = load_federation(federation)
    if seed not in document.value.training.seeds:
        raise RefusedError(Code.FEDERATION, f"seed {seed}, and the study has {document.value.training.seeds}")
    mapping = load(hospital, HospitalConfig)
    if mapping.value.privacy.ledger is not None:
        hint = "leave it out: the ledger is in the node's state folder; or take part with ich-client join"
        raise ConfigurationError(
            "a shared ledger is of hospital folders alone", where=mapping.where("privacy", "ledger"), hint=hint
        )
    found = load_hospitals([mapping], data, document, state / "cache")
    if len(found) != 1:
        raise ConfigurationError(f"{len(found)} hospitals in one file", where=str(hospital), hint="leave out split_by")
    return Site(Plan(document.value, seed, found[0].weights), found[0], state)


app = build_app(site_of_node, Guard(permit=within_limits))
"""Whoever starts a node with a federation file has agreed to it; what hospital.yaml rules out is ruled out here too."""
