"""What a finished model looked at in one patient's image: maps on the network's grid, each with the text that it was shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ich_client.newcomers import Newcomers
from ich_client.prediction import other, title
from ich_client.work import load_stack
from ich_models import report_text, tokens
from ich_models.batch import Batch
from ich_models.clinical import Value
from ich_models.errors import ConfigurationError, DataError
from ich_models.explain import Score, grad_cam, image_layers, of_type, positive, saliency, score_cam
from ich_models.networks.options import Hohoho, IchPro
from ich_models.networks.slices import TYPES
from ich_models.variables import Variable
from ich_strategies.models import Model

LARGEST: Final = 64
"""Feature maps of Score-CAM, those of the largest mean: each takes a pass through the network."""
MOST_SLICES: Final = 3
"""Slices of each type that are explained: those with the highest probability."""

SEVERAL: Final = ("hohoho", "dlmi", "mednvc")
"""Networks that look at several images of a patient."""


class Method(StrEnum):
    """How a map is made."""

    GRAD_CAM = "Grad-CAM"
    SCORE_CAM = "Score-CAM"
    SALIENCY = "saliency"
    T_SNE = "t-SNE"
    """No map: all patients as points (`spread.py`)."""


Words = Mapping[str, Value]
"""A patient's variables, as the template says them."""


@dataclass(frozen=True)
class Look:
    """One map. `name`: what is explained, fit for the name of a file; `method`; `probability`: of what is explained.

    `values`: float32, 0 to 1 of its own largest value: (D, H, W) of a volume, or (S, H, W) of the images `shown`, which are
    counted as the network has them. `text`: what the network read, empty where it reads none.
    """

    name: str
    method: Method
    probability: float
    values: NDArray[np.float32]
    shown: tuple[int, ...] = ()
    text: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing in the image speaks for it."""
        return not self.values.any()


def explain(model: Model, given: Newcomers, patient: str, method: Method | None = None) -> list[Look]:
    """The maps of one patient, by the network's own method unless another is named.

    Raises DataError for a patient who cannot be predicted or has no image, and ConfigurationError for Score-CAM of a network
    that looks at several images of a patient.
    """
    for name, reason in given.refused:
        if name == patient:
            raise DataError(f"patient '{patient}' cannot be predicted: {reason}", hint="there is nothing to explain")
    place = given.patients.ids.index(patient)
    if not given.patients.holding("image")[place]:
        hint = "ich-client predict and ich-client check --patient say why"
        raise DataError(f"patient '{patient}' has no usable image", hint=hint)
    if "image" not in model.plan.federation.network.uses:
        raise DataError("this model looks at no image", hint="only an image can be explained by a map")
    options = model.plan.federation.network
    if method == Method.SCORE_CAM and options.name in SEVERAL:
        message = f"Score-CAM is of one image, and network '{options.name}' looks at several of a patient"
        raise ConfigurationError(message, hint="leave --method out, or choose Grad-CAM or saliency")
    torch.set_num_threads(given.threads)
    network = load_stack(model.plan, model.rows).network
    alone = given.patients.take(np.array([place])).batch(model.plan.dtype)
    batch = _without_padding(alone.to(model.plan.dtype, torch.device("cpu")))
    if options.name in ("hohoho", "dlmi"):
        return _of_slices(network, batch, method or Method.GRAD_CAM, together=isinstance(options, Hohoho))
    chosen = method or (Method.SCORE_CAM if isinstance(options, IchPro) else Method.GRAD_CAM)
    if isinstance(options, IchPro) and "text" in options.uses and given.source is not None:
        return _of_texts(model, network, batch, given, place, chosen)
    return [_of_volume(model, network, batch, chosen)]


def _without_padding(batch: Batch) -> Batch:
    """One patient's own images alone."""
    if batch.slices is None or batch.image is None:
        return batch
    return replace(batch, image=batch.image[:, batch.slices[0]], slices=None)


@torch.no_grad()
def _logits(network: nn.Module, batch: Batch) -> torch.Tensor:
    network.eval()
    found: torch.Tensor = network(batch).logits
    return found.double()


def _map(
    network: nn.Module, batch: Batch, method: Method, score: Score, *, several: bool = False
) -> NDArray[np.float32]:
    """Of one patient, who may have several images; of a network with several image encoders the mean of their maps."""
    if method == Method.SALIENCY:
        gradient: NDArray[np.float32] = saliency(network, batch, score, channels=2 if several else 1)[0].float().numpy()
        return gradient / (gradient.max() or 1)
    maps = [
        score_cam(network, batch, layer, score, largest=LARGEST)
        if method == Method.SCORE_CAM
        else grad_cam(network, batch, layer, score)
        for layer in image_layers(network)
    ]
    mean: NDArray[np.float32] = torch.stack(maps).mean(0)[0].float().cpu().numpy()
    return mean


def _of_volume(model: Model, network: nn.Module, batch: Batch, method: Method) -> Look:
    """What speaks for the positive outcome, in a volume or in each view."""
    values = _map(network, batch, method, positive, several=model.plan.federation.network.name in SEVERAL)
    views = tuple(range(len(values))) if batch.image is not None and batch.image.ndim == 5 and values.ndim == 3 else ()
    shown = views if model.plan.federation.network.name == "mednvc" else ()
    return Look(title(model), method, float(_logits(network, batch).sigmoid()[0]), values, shown)


def _of_slices(network: nn.Module, batch: Batch, method: Method, *, together: bool) -> list[Look]:
    """Each type on the slices where it is likeliest. `together`: the network reads the slices as a sequence."""
    assert batch.image is not None, "an image is there"
    probabilities = _logits(network, batch).sigmoid()[0]
    looks = []
    for index, name in enumerate(TYPES):
        shown = probabilities[:, index].argsort(descending=True)[:MOST_SLICES].sort().values
        seen = batch if together else replace(batch, image=batch.image[:, shown])  # what is not shown costs memory
        values = _map(network, seen, method, of_type(index), several=True)
        values = values[shown.numpy()] if together else values
        likeliest = float(probabilities[:, index].max())
        looks.append(Look(name, method, likeliest, values, tuple(map(int, shown))))
    return looks


# --- texts that speak for an outcome ----------------------------------------------------------------------------------


def _of_texts(
    model: Model, network: nn.Module, batch: Batch, given: Newcomers, place: int, method: Method
) -> list[Look]:
    """The same image and the same question, what speaks for the positive outcome, under texts that speak for either.

    A report, or what a language model wrote, cannot be turned by rule: there is one map then, with the text as it is.
    """
    assert given.source is not None, "a study with text"
    source = given.source
    if source.spec.source == "report" or source.writer is not None:
        return [_of_volume(model, network, batch, method)]
    looks = []
    for name, words in opposites(model, network, batch, given, place).items():
        text = report_text.write(words, source.spec, source.table)
        shown = _reading(batch, given, [text])
        values = _map(network, shown, method, positive)
        chance = float(_logits(network, shown).sigmoid()[0])
        looks.append(Look(name, method, chance, values, text=text))
    return looks


def opposites(model: Model, network: nn.Module, batch: Batch, given: Newcomers, place: int) -> dict[str, Words]:
    """A patient's variables, turned so that the text speaks for the good outcome and for the poor one.

    Each variable that the template speaks of goes to that end of its range, or that level, at which this model gives this
    patient the lower and the higher probability, the image and all other words being as they are. A number without a
    range stays what it is; what is missing is left out of both texts, as it is of the patient's own.
    """
    assert given.source is not None, "a study with text"
    own = {name: given.values[place][name] for name in given.source.spec.spoken(given.source.table)}
    lower, higher = dict(own), dict(own)
    for name, variable in given.source.spec.spoken(given.source.table).items():
        ends = _ends(variable)
        if own[name] is None or not ends:
            continue
        texts = [report_text.write({**own, name: end}, given.source.spec, given.source.table) for end in ends]
        logits = _logits(network, _reading(batch, given, texts))
        lower[name], higher[name] = ends[int(logits.argmin())], ends[int(logits.argmax())]
    return {f"text-{other(model)}": lower, f"text-{title(model)}": higher}


def _ends(variable: Variable) -> Sequence[Value]:
    """The levels, or the two ends of the range."""
    return variable.codes or variable.range or ()


def _reading(batch: Batch, given: Newcomers, texts: Sequence[str]) -> Batch:
    """The patient once for each text."""
    assert given.source is not None, "a study with text"
    encoded = tokens.encode(texts, given.source.vocabulary, given.source.spec.tokens)
    many = batch.take(torch.zeros(len(texts), dtype=torch.long))
    present = {**many.present, "text": torch.from_numpy(encoded.present)}
    return replace(many, text=torch.from_numpy(encoded.ids), present=present)
