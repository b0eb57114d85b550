"""The finished model of a study as a folder of files: written where a study ends, read where new patients are predicted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_models.files import read_arrays, write_arrays, write_atomic, write_json
from ich_models.networks.staged import enter
from ich_models.protocol import CONSTANTS, LOCAL, PACKAGE, WEIGHTS, Rows
from ich_models.stack import Stack
from ich_models.yaml_config import Document
from ich_strategies.plan import Plan

TENSORS: Final = "model.safetensors"
CARD: Final = "card.json"
STUDY: Final = "federation.json"
"""The study in the form that its hash is taken of: with it the folder can be used where no kit is."""


@dataclass(frozen=True)
class Model:
    """A model ready for use. `rows`: one row each of weights, constants and, where the study has them, local layers."""

    plan: Plan
    federation: Document[Federation]
    rows: Rows
    card: Mapping[str, Any]

    def threshold(self, label: str = "") -> float:
        """The probability from which on a patient counts as positive; in a study of slices, of a type."""
        by_type = self.card.get("thresholds") or {}
        return float(by_type[label] if label in by_type else self.card["threshold"])


def write(
    folder: Path,
    plan: Plan,
    tensors: Mapping[str, NDArray[np.floating]],
    threshold: float | None,
    sha256: str,
    thresholds: Mapping[str, float] | None = None,
) -> None:
    """Write a model and its card. `tensors`: by block, one row; `sha256`: of the rows as the study ended with them.

    `thresholds`: by type, of a study of slices, in place of the one.
    """
    card = {
        "study": plan.federation.name,
        "federation": plan.hash,
        "seed": plan.seed,
        "outcome": plan.federation.task.outcome.model_dump(),
        "predicts_at": plan.federation.task.predict_at,
        "network": plan.federation.network.model_dump(),
        "columns": list(plan.columns),
        "threshold": threshold,
        **({"thresholds": dict(thresholds)} if thresholds else {}),
        "sha256": sha256,
        "package": PACKAGE,
        "use": "Research only. Not a medical device.",
    }
    write_arrays(folder / TENSORS, tensors, card)
    write_json(folder / CARD, card)
    content = json.dumps(json.loads(plan.federation.canonical()), indent=2, ensure_ascii=False)
    write_atomic(folder / STUDY, f"{content}\n".encode())


def find(folder: Path, hashed: str = "", seeds: tuple[int, ...] = ()) -> Path:
    """The folder with the model, `folder` itself or one below it. Raises ConfigurationError for none, or several.

    `hashed`: of the study whose model is meant; `seeds`: of several seeds' models the first that is there is taken.
    """
    found = [path.parent for path in sorted(folder.rglob(TENSORS)) if hashed[:16] in str(path)]
    for seed in seeds:
        found = [path for path in found if path.name == f"seed-{seed}"] or found
        if len(found) == 1:
            break
    if len(found) != 1:
        message = f"{len(found)} models here" if found else "no model here"
        named = ", ".join(str(path.relative_to(folder)) for path in found)
        hint = (
            f"name one of them: {named}" if found else "a study leaves it in model/ when it ends; name it with --model"
        )
        raise ConfigurationError(message, where=str(folder), hint=hint)
    return found[0]


def read(
    folder: Path, federation: Document[Federation] | None = None, files: Mapping[str, Path] = MappingProxyType({})
) -> Model:
    """The model in a folder. `federation`: its study, where it is known already; else the copy beside the model.

    `files`: published weights that the study pins, where they lie here; frozen encoders are in no model.
    Raises ConfigurationError for files that are not whole, or not those of one study.
    """
    where = str(folder / TENSORS)
    again = "take the folder anew from where the study ended"
    try:
        tensors, card = read_arrays(folder / TENSORS)
        rows = {name: tensor[None] for name, tensor in tensors.items()}
        hashed, seed, limits = card["federation"], int(card["seed"]), card.get("thresholds") or {"": card["threshold"]}
        if not all(0 <= float(limit) <= 1 for limit in limits.values()):
            raise ValueError("a threshold is a probability")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"not a model that a study ended with ({type(error).__name__})"
        raise ConfigurationError(message, where=where, hint=again) from None
    document = federation or load_federation(folder / STUDY)
    if document.value.hash != hashed:
        message = "the model is of another study than the federation file"
        raise ConfigurationError(message, where=str(document.path), hint=f"the model's begins {hashed[:16]}; {again}")
    plan = Plan(document.value, seed, files)
    _check(plan, rows, where)
    return Model(plan, document, rows, card)


def load_stack(plan: Plan, rows: Rows, stage: str | None = None, device: torch.device | None = None) -> Stack:
    """A stack with one model per row of 'weights', 'constants' and, where the plan has them, 'local', on a device.

    `stage`: that the network is to be in, where it has several; the study's last one if it is left out.
    """
    plan.network.to(device or torch.device("cpu"))
    enter(plan.network, stage or plan.federation.training.stages[-1].name)
    stack = Stack(plan.network, len(rows[WEIGHTS]))
    layouts = {WEIGHTS: plan.weights, CONSTANTS: plan.constants, LOCAL: plan.local}
    whole = {name: layout.unpack(torch.from_numpy(rows[name])) for name, layout in layouts.items() if layout.size}
    stack.load({name: tensor for tensors in whole.values() for name, tensor in tensors.items()})
    return stack


def _check(plan: Plan, rows: Rows, where: str) -> None:
    """Raise ConfigurationError unless the rows are what the plan's network needs, all of them finite numbers."""
    if plan.constants.size and CONSTANTS not in rows:
        message = "this study scales each hospital's table by its own patients, and the model is of no hospital"
        raise ConfigurationError(message, where=where, hint="use the model that was kept at the hospital (--home)")
    layouts = {WEIGHTS: plan.weights, CONSTANTS: plan.constants, LOCAL: plan.local}
    for name, layout in layouts.items():
        row = rows.get(name, np.empty((1, 0)))
        if row.shape != (1, layout.size) or not np.isfinite(row).all():
            message = f"'{name}' has {row.size} numbers, not all of them finite, or not the network's {layout.size}"
            raise ConfigurationError(message, where=where, hint="the file is damaged, or of another version")
