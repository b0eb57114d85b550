"""What a private study's replies say in place of what is true of these patients: public numbers, noised ones, or nothing.

The weights are private by their training (`private.py`). Everything else is here: counts are those that the federation
file lets everybody know, and losses, events, sums of columns and the numbers of those left out do not leave.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ich_client.budget import Budget
from ich_client.noise import Stream, add_noise
from ich_models import binned
from ich_models.metrics import Evaluation
from ich_models.protocol import PartStatistics, StatisticsReply, TrainReply

BINS: Final = 10
"""Of probabilities, in which patients with and without the outcome are counted."""


def statistics(budget: Budget, reply: StatisticsReply) -> StatisticsReply:
    """The name, what may travel, and how many patients everybody may know of. Each column is told as withheld.

    Who was left out, and why, is not told.
    """
    width = {part: len(sums.count) for part, sums in reply.parts.items()}
    return StatisticsReply(
        hospital=reply.hospital,
        schema_hash=reply.schema_hash,
        patients=budget.stated,
        events=None,
        excluded={},  # a reason by itself says that there was somebody
        parts={
            part: PartStatistics(
                patients=budget.learning(part),
                events=None,
                count=[None] * columns,
                mean=[0.0] * columns,
                m2=[0.0] * columns,
            )
            for part, columns in width.items()
        },
    )


def training(budget: Budget, reply: TrainReply, parts: Sequence[int]) -> TrainReply:
    """Public counts of the patients who train, by the part that each fold holds out; and no loss."""
    nothing: list[float | None] = [None] * len(parts)
    return TrainReply(
        hospital=reply.hospital,
        patients=[budget.learning(part) for part in parts],
        losses=nothing,
        validation_losses=nothing,
    )


def measured(
    budget: Budget, labels: NDArray[np.int64], probabilities: NDArray[np.floating], threshold: float, stream: Stream
) -> Evaluation:
    """Figures made of noised counts: so many patients with and without the outcome in each bin of probabilities.

    One more patient changes one count by one, so noise of standard deviation `metrics_noise` on each is one step of the
    Gaussian mechanism at rate 1 with that noise multiplier; what is computed from the counts costs nothing more.
    """
    limits = binned.edges(BINS, threshold)
    exact = binned.counts(labels, probabilities, limits)
    noised = add_noise(torch.from_numpy(exact), budget.privacy.metrics_noise, stream).numpy()
    return binned.evaluate(noised, limits, threshold)
