"""Small federations and hospitals, made in memory, for tests of everything above the file formats."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from ich_client.app import build_app
from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.tables import Hospital
from ich_deploy.grid import InProcessGrid
from ich_models.batch import Patients
from ich_models.clinical import columns
from ich_models.federation import Federation
from ich_models.protocol import from_record, to_record
from ich_models.strict import Strict
from ich_server.study import RoundReport, StudyResult, run_study
from ich_strategies.plan import Plan

SGD = {"name": "sgd", "lr": 0.1}


def federation(
    *,
    network: Mapping[str, Any] | None = None,
    strategy: Mapping[str, Any] | None = None,
    stage: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    table: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Federation:
    """A binary study on three numbers; each argument replaces settings of its section."""
    number = {"type": "number", "known_at": "admission"}
    return Federation.model_validate(
        {
            "name": "small",
            "task": {
                "timeline": ["admission", "90 days"],
                "predict_at": "admission",
                "outcome": {"variable": "mrs", "at": "90 days", "poor": ">= 3"},
            },
            "modalities": {
                "table": {
                    "variables": {
                        "a": number,
                        "b": number,
                        "c": number,
                        "mrs": {"type": "integer", "known_at": "90 days"},
                    },
                    "predictors": ["a", "b", "c"],
                    **(table or {}),
                }
            },
            "network": network or {"name": "logistic"},
            "training": {
                "strategy": strategy or {"name": "fedavg"},
                "stages": [{"name": "train", "rounds": 3, "epochs": 2, "batch": 16, "optimizer": SGD, **(stage or {})}],
                **(training or {}),
            },
            "evaluation": {"leave_one_hospital_out": True, "small_cells": 0, **(evaluation or {})},
            **rest,
        }
    )


def hospital(name: str, patients: int = 60, seed: int = 0, *, missing: float = 0.1) -> Hospital:
    """Patients whose outcome depends on `a` and `b`; the hospitals differ in mean and scale."""
    generator = np.random.default_rng((seed, *name.encode()))
    table = generator.normal(loc=seed, scale=1 + seed, size=(patients, 3))
    logit = (table[:, 0] - seed) / (1 + seed) * 1.5 - (table[:, 1] - seed) / (1 + seed)
    labels = (generator.random(patients) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    labels[:2] = 0, 1  # both classes are there
    table[generator.random(table.shape) < missing] = np.nan
    ids = tuple(f"{name}-{number}" for number in range(patients))
    return Hospital(name, Patients(ids, table, labels), Limits(small_cells=0), {}, ())


def hospitals() -> list[Hospital]:
    """Three hospitals of different size."""
    return [hospital("east", 50, 1), hospital("north", 80, 0), hospital("south", 65, 2)]


def sites(plan: Plan, members: Sequence[Hospital], folder: Path) -> dict[str, Site]:
    """The hospitals at work."""
    return {member.name: Site(plan, member, folder / "hospitals") for member in members}


def app(at_work: Mapping[str, Site]) -> ClientApp:
    """Their ClientApp; node N is the Nth hospital by name."""
    by_number = [at_work[name] for name in sorted(at_work)]

    def site_of(context: Context, seed: int) -> Site:
        assert seed == by_number[0].plan.seed
        return by_number[int(context.node_config["partition-id"])]

    return build_app(site_of)


R = TypeVar("R", bound=Strict)


def saying(
    kind: str, form: type[R], change: Callable[[R], R], node: int | None = None
) -> Callable[[ClientApp], ClientApp]:
    """Clients whose answers of one kind, of one node if it is named, are changed on their way."""

    def around(client: ClientApp) -> ClientApp:
        def call(message: Message, context: Context) -> Message:
            reply = client(message, context)
            if message.metadata.message_type != kind or node not in (None, message.metadata.dst_node_id):
                return reply
            answer, rows = from_record(reply.content, form)
            return Message(to_record(change(answer), rows), reply_to=message)

        return call  # type: ignore[return-value]

    return around


def grid(
    client: ClientApp, nodes: int, failing: Callable[[int, Message], Error | None] | None = None, **options: Any
) -> InProcessGrid:
    """A grid with that many nodes."""
    return InProcessGrid(client, {n + 1: {"partition-id": n} for n in range(nodes)}, failing=failing, **options)


def study(
    settings: Federation,
    members: Sequence[Hospital],
    folder: Path,
    *,
    seed: int = 42,
    resume: bool = False,
    watch: Callable[[RoundReport], None] = lambda report: None,
    around: Callable[[ClientApp], ClientApp] = lambda client: client,
    failing: Callable[[int, Message], Error | None] | None = None,
    **options: Any,
) -> StudyResult:
    """Run a study in process. `around` may wrap the ClientApp; `failing` loses nodes."""
    plan = Plan(settings, seed)
    assert len(columns(settings.modalities.table)) == members[0].patients.table.shape[1]
    client = around(app(sites(plan, members, folder)))
    network = grid(client, len(members), failing, **options)
    return run_study(network, plan, folder / "server", hospitals=len(members), resume=resume, watch=watch)
