"""Layers whose numbers are constants of a fold: made of the training hospitals' statistics, set, and never trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ich_models.image_spec import HAEMORRHAGES

Floats = NDArray[np.float64]

WITH: Final = "slices with "
WITHOUT: Final = "slices without "
"""Before a haemorrhage type: a patient's labelled slices that show it, and that do not."""

MEAN: Final = "image mean "
SQUARE: Final = "image mean square "
"""Before a channel's number, from 0: over all elements of a patient's image, of the patient's own slices if it has such."""


@dataclass(frozen=True)
class Told:
    """What a fold's training hospitals have told. `table`: (3, D), fill, centre and scale of the table's columns.

    `extras`: by name, over patients: how many it is known for (0: nobody tells) and its mean.
    """

    table: Floats
    extras: Mapping[str, tuple[float, float]]
    outcome: tuple[int, int] = (0, 0)
    """Patients with the positive outcome and without it, at the hospitals that tell both."""


class Constants(nn.Module):
    """A layer whose buffers are constants of a fold: they travel apart from the weights, and no hospital trains them."""

    @property
    def needs(self) -> Sequence[str]:
        """The numbers per patient, beside the table's columns, that its buffers are made of."""
        return ()

    def made_of(self, told: Told) -> Mapping[str, Floats]:
        """Each buffer's numbers, by its name."""
        raise NotImplementedError


class Standardise(Constants):
    """Impute, centre and scale D columns: (B, D) with NaN where missing -> (B, D).

    They make a network complete in itself, for prediction and export.
    """

    fill: torch.Tensor
    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("fill", torch.zeros(columns))
        self.register_buffer("centre", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))

    def made_of(self, told: Told) -> Mapping[str, Floats]:
        fill, centre, scale = told.table
        return {"fill": fill, "centre": centre, "scale": scale}

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        return (torch.where(torch.isnan(table), self.fill, table) - self.centre) * self.scale


class StandardiseImage(Constants):
    """Each channel of (B, C, *space) to mean 0 and standard deviation 1 over the training hospitals' patients.

    Every patient counts once. A channel that nobody tells of, or that does not vary, stays as it is.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    @property
    def needs(self) -> Sequence[str]:
        return [f"{what}{channel}" for channel in range(self.channels) for what in (MEAN, SQUARE)]

    def made_of(self, told: Told) -> Mapping[str, Floats]:
        centre, scale = np.zeros(self.channels), np.ones(self.channels)
        for channel in range(self.channels):
            (known, mean), (also, square) = (told.extras[f"{what}{channel}"] for what in (MEAN, SQUARE))
            variance = square - mean**2
            if known and also and variance > 1e-9 * square:
                centre[channel], scale[channel] = mean, variance**-0.5
        return {"centre": centre, "scale": scale}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        shape = (-1, *[1] * (image.ndim - 2))
        return (image - self.centre.reshape(shape)) * self.scale.reshape(shape)


class ClassWeights(Constants):
    """Weight of a patient with the positive outcome, (1,): those without / those with it, of all training hospitals together."""

    positive: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positive", torch.ones(1))

    def made_of(self, told: Told) -> Mapping[str, Floats]:
        """1 where nobody tells, or all have the same outcome."""
        having, others = told.outcome
        return {"positive": np.array([others / having if having and others else 1.0])}


class Balance(Constants):
    """Weights of positives by type, (5,): negatives / positives of all training hospitals together, or `known` ones."""

    positive: torch.Tensor

    def __init__(self, cap: float | None, known: Sequence[float] | None = None) -> None:
        super().__init__()
        self.cap, self.known = cap, known
        self.register_buffer("positive", torch.tensor(known) if known else torch.ones(len(HAEMORRHAGES)))

    @property
    def needs(self) -> Sequence[str]:
        return [] if self.known else [f"{what}{kind}" for kind in HAEMORRHAGES for what in (WITH, WITHOUT)]

    def made_of(self, told: Told) -> Mapping[str, Floats]:
        """A type that nobody has, or that nobody tells of, has weight 1."""
        if self.known:
            return {"positive": np.array(self.known)}
        sums = {name: patients * mean for name, (patients, mean) in told.extras.items()}
        pairs = [(sums[f"{WITH}{kind}"], sums[f"{WITHOUT}{kind}"]) for kind in HAEMORRHAGES]
        return {"positive": np.array([no / yes if yes and no else 1.0 for yes, no in pairs])}

    def weight(self) -> torch.Tensor:
        """(5,), capped."""
        return self.positive if self.cap is None else self.positive.clamp(max=self.cap)
