"""What a study with differential privacy cannot have, each with what to have instead (docs/privacy.md).

Either one patient's gradient would depend on others, or something that is reported would depend on patients past the noise.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from ich_models.augment import ALONE
from ich_models.networks.options import Dlmi, Hohoho, IchPro, Mlp, NetworkOptions, Normalised, Vdafm
from ich_models.recipes import Stage
from ich_models.strategy_options import HERE, FedBN, QFedAvg
from ich_models.variables import Complaint

if TYPE_CHECKING:
    from ich_models.federation import Federation

OFF: Final = "or turn privacy off"
"""The other way out, the last of every hint."""

_FEELS: Final = "one patient's gradient depends on the others in the batch"


def refusals(federation: "Federation") -> Iterator[Complaint]:
    """Place, message and hint of everything in a federation that differential privacy refuses."""
    network = federation.network
    named = {name: None for stage in federation.training.stages for name in coupled_losses(network, stage.name)}
    for name in named:
        yield _loss(network, name)
    yield from _normalisation(network, ("network",))
    if isinstance(network, Dlmi) and network.positives is None:
        message = "differential privacy refuses class weights made of the hospitals' counts of slices"
        yield (
            ("network", "name"),
            message,
            f"write positives: [...], five weights known beforehand (1: no weight), {OFF}",
        )
    if network.class_weights == "federation":
        message = "differential privacy refuses class weights made of the hospitals' counts of outcomes"
        yield ("network", "class_weights"), message, f"write class_weights: none, {OFF}"
    for index, stage in enumerate(federation.training.stages):
        yield from _stage(stage, ("training", "stages", index))
    yield from _choices(federation)


# --- losses -----------------------------------------------------------------------------------------------------------


def coupled_losses(network: NetworkOptions, stage: str) -> Iterator[str]:
    """The terms of a stage that compare patients, by name, as its network would say (`losses.coupled`)."""
    if isinstance(network, IchPro) and (stage != "fusion" or not network.supervise):
        if network.losses.imima and network.losses.negatives == "batch":
            yield "imima"
        if network.losses.sdm and len(network.modalities) == 2:
            yield "sdm"
    conditioned = isinstance(network, Vdafm) and {"image", "text"} <= set(network.modalities)
    if isinstance(network, Vdafm) and conditioned and network.losses.contrast and network.losses.negatives == "batch":
        yield "contrast"
    if isinstance(network, Hohoho) and stage == "pretrain" and network.losses.negatives == "batch":
        yield "contrast"


def _loss(network: NetworkOptions, name: str) -> Complaint:
    ways = {
        "sdm": "write sdm: 0 and prototypes: 0.84, the outcome's fixed vector in place of other patients",
        "imima": "write negatives: bank (fixed public vectors) or negatives: none (1 - cosine), with prototypes: 1",
    }
    another = "write negatives: bank (fixed public vectors) or negatives: none (1 - cosine)"
    if isinstance(network, Vdafm):
        another += ", with prototypes: 0.2"
    message = f"differential privacy refuses loss '{name}': {_FEELS}"
    return ("network", "losses"), message, f"{ways.get(name, another)}, {OFF}"


# --- layers -----------------------------------------------------------------------------------------------------------


def _normalisation(options: BaseModel, where: tuple[str | int, ...]) -> Iterator[Complaint]:
    """Batch normalisation in a part that learns, wherever it stands in the network's options."""
    message = f"differential privacy refuses batch normalisation: {_FEELS}, and its statistics travel without noise"
    if isinstance(options, Normalised) and options.normalisation == "batch" and not options.frozen:
        yield (*where, "normalisation"), message, f"write normalisation: group, or frozen: true, {OFF}"
    if isinstance(options, Mlp) and options.normalisation == "batch":
        yield (*where, "normalisation"), message, f"write normalisation: layer, {OFF}"
    for key in type(options).model_fields:
        inside = getattr(options, key)
        named = inside if isinstance(inside, dict) else {}
        for at, part in [((key,), inside), *(((key, name), one) for name, one in named.items())]:
            if isinstance(part, BaseModel):
                yield from _normalisation(part, (*where, *at))


# --- training and evaluation ------------------------------------------------------------------------------------------


def _stage(stage: Stage, where: tuple[str | int, ...]) -> Iterator[Complaint]:
    for index, change in enumerate(stage.augment):
        if not isinstance(change, ALONE):
            message = f"differential privacy refuses augmentation '{change.name}': it mixes patients with one another"
            alone = ", ".join(name for name in _names(ALONE))
            yield (
                (*where, "augment", index, "name"),
                message,
                f"use one that changes each patient alone: {alone}; {OFF}",
            )
    if stage.clip is not None:
        message = "differential privacy refuses clip in a stage: each patient's gradient is clipped, not the batch's"
        yield (*where, "clip"), message, f"leave it out: privacy.clip takes its place, {OFF}"


def _names(kinds: tuple[type[BaseModel], ...]) -> Iterator[str]:
    for kind in kinds:
        yield str(kind.model_fields["name"].annotation.__args__[0])  # type: ignore[union-attr]


def _choices(federation: "Federation") -> Iterator[Complaint]:
    strategy = federation.training.strategy
    if federation.evaluation.choose_round == "best":
        message = "differential privacy refuses choose_round: best: the choice would follow private validation losses"
        yield ("evaluation", "choose_round"), message, f"write choose_round: last, with rounds set beforehand, {OFF}"
    if federation.evaluation.recalibrate != "none":
        message = (
            "differential privacy refuses to recalibrate: the line would be fitted to private patients without noise"
        )
        yield ("evaluation", "recalibrate"), message, f"write recalibrate: none, {OFF}"
    if isinstance(strategy, QFedAvg):
        message = "differential privacy refuses qfedavg: each hospital would report the exact loss of its patients"
        yield HERE, message, f"use strategy fedavg, fedprox or scaffold, {OFF}"
    if isinstance(strategy, FedBN):
        message = (
            "differential privacy refuses fedbn: it lives on batch statistics, and without them it only keeps layers"
        )
        yield HERE, message, f"use strategy fedavg or fedprox with normalisation: group, {OFF}"
