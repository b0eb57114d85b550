"""What a finished model says of new patients: the numbers that the study's own evaluation would give; CSV or JSON, local."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from ich_client.newcomers import Newcomers
from ich_client.work import predict
from ich_models.networks.slices import TYPES
from ich_strategies.models import Model

ANY: Final = "any"
"""Not a type: the highest of all types."""
ALL_SLICES: Final = "all"
"""In the table's column of slices: the patient, not one slice."""


@dataclass(frozen=True)
class OfSlice:
    """One slice: its number among the acquired ones, from 0 at the neck, its SOPInstanceUIDs, and each type's probability."""

    number: int
    instances: tuple[str, ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """One patient. `probabilities`: by what is predicted, the outcome or the types with `any`; empty where `reason` says why.

    `positive`: of them, those at the threshold or above. `modalities`: what the network had of the patient;
    `imputed`: predictors that are missing, for which the training patients' mean stands in.
    """

    patient: str
    probabilities: Mapping[str, float]
    positive: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    imputed: tuple[str, ...] = ()
    slices: tuple[OfSlice, ...] = ()
    reason: str = ""


def predict_all(model: Model, given: Newcomers) -> list[Prediction]:
    """Everybody's prediction, in the order of the table; after them those who cannot be predicted."""
    torch.set_num_threads(given.threads)  # as in training: sums in a fixed order
    found = []
    if len(given.patients):
        probabilities = predict(model.plan, model.rows, given.patients)[0]
        for place, own in enumerate(probabilities):
            slices = _slices(given, place, own) if np.ndim(own) else ()
            said = _highest(slices) if np.ndim(own) else {title(model): float(own)}
            found.append(
                Prediction(
                    given.patients.ids[place],
                    said,
                    _positive(model, said),
                    _modalities(model, given, place),
                    _imputed(model, given, place),
                    slices,
                )
            )
    return found + [Prediction(patient, {}, reason=reason) for patient, reason in given.refused]


def _positive(model: Model, said: Mapping[str, float]) -> tuple[str, ...]:
    """The names whose probability reaches their threshold; any type is positive if one of them is."""
    found = tuple(name for name, value in said.items() if name != ANY and value >= model.threshold(name))
    return (*found, ANY) if found and ANY in said else found


def title(model: Model) -> str:
    """What the probability is of: the side of the outcome that counts as positive."""
    return str(model.plan.federation.task.outcome.positive)


def other(model: Model) -> str:
    """The other side."""
    return "good" if title(model) == "poor" else "poor"


def _slices(given: Newcomers, place: int, probabilities: Any) -> tuple[OfSlice, ...]:
    """The real slices. `probabilities`: (S, 5), padding at the end."""
    assert given.images is not None, "a network of slices"
    (chosen,) = (one for one in given.images.chosen if one.patient == given.patients.ids[place])
    return tuple(
        OfSlice(number, names, dict(zip(TYPES, map(float, own), strict=True)))
        for number, names, own in zip(chosen.kept, chosen.instances, probabilities, strict=False)
    )


def _highest(slices: Sequence[OfSlice]) -> dict[str, float]:
    """Of a patient: by type the highest of all slices, and the highest of all types."""
    each = {name: max(one.probabilities[name] for one in slices) for name in TYPES}
    return {**each, ANY: max(each.values())}


def _modalities(model: Model, given: Newcomers, place: int) -> tuple[str, ...]:
    return tuple(name for name in model.plan.federation.network.uses if given.patients.holding(name)[place])


def _imputed(model: Model, given: Newcomers, place: int) -> tuple[str, ...]:
    if "table" not in model.plan.federation.network.uses:
        return ()
    predictors = model.plan.federation.predictors.items()
    return tuple(name for name, one in predictors if one.missing == "impute" and given.values[place][name] is None)


# --- files ------------------------------------------------------------------------------------------------------------


def as_json(model: Model, found: Sequence[Prediction]) -> str:
    """Everything, with what the model is."""
    named = ("study", "federation", "seed", "sha256", "outcome", "threshold", "thresholds", "use")
    card = {name: model.card[name] for name in named if name in model.card}
    patients = []
    for one in found:
        said: dict[str, Any] = {"patient": one.patient, "probabilities": dict(one.probabilities)}
        if one.reason:
            said = {"patient": one.patient, "reason": one.reason}
        else:
            said |= {"positive": list(one.positive), "modalities": list(one.modalities), "imputed": list(one.imputed)}
        if one.slices:
            said["slices"] = [
                {"slice": each.number, "instances": list(each.instances), "probabilities": dict(each.probabilities)}
                for each in one.slices
            ]
        patients.append(said)
    return json.dumps({"model": card, "patients": patients}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def as_csv(model: Model, found: Sequence[Prediction]) -> str:
    """One row per patient; of a network of slices also one per slice, the patient's own first."""
    sliced = model.plan.federation.network.name in ("hohoho", "dlmi")
    lines = _sliced(model, found) if sliced else _whole(model, found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(lines)
    return text.getvalue()


def _whole(model: Model, found: Sequence[Prediction]) -> Iterator[list[str]]:
    yield ["patient", "probability", "class", "threshold", "modalities", "imputed", "reason"]
    for one in found:
        if one.reason:
            yield [one.patient, "", "", "", "", "", one.reason]
            continue
        side = title(model) if one.positive else other(model)
        number = repr(one.probabilities[title(model)])
        yield [one.patient, number, side, repr(model.threshold()), " ".join(one.modalities), " ".join(one.imputed), ""]


def _sliced(model: Model, found: Sequence[Prediction]) -> Iterator[list[str]]:
    yield ["patient", "slice", "instance", *TYPES, ANY, "positive", "threshold", "reason"]
    for one in found:
        if one.reason:
            yield [one.patient, ALL_SLICES, *[""] * (len(TYPES) + 4), one.reason]
            continue
        yield _line(model, one.patient, ALL_SLICES, "", one.probabilities)
        for each in one.slices:
            highest = {**each.probabilities, ANY: max(each.probabilities.values())}
            yield _line(model, one.patient, str(each.number), " ".join(each.instances), highest)


def _line(model: Model, patient: str, number: str, instance: str, said: Mapping[str, float]) -> list[str]:
    positive = " ".join(name for name in _positive(model, said) if name != ANY)
    numbers = [repr(said[name]) for name in (*TYPES, ANY)]
    thresholds = " ".join(repr(model.threshold(name)) for name in TYPES)
    return [patient, number, instance, *numbers, positive, thresholds, ""]
