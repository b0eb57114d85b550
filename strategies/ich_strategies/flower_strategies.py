"""Flower's own aggregations by name: what a fold's hospitals returned is buffered, and Flower combines it.

FedMedian and FedTrimmedAvg (Yin et al., ICML 2018), Krum and MultiKrum (Blanchard et al., NeurIPS 2017), Bulyan (El Mhamdi
et al., ICML 2018), q-FedAvg (Li et al., ICLR 2020), and central differential privacy with the hospital as the unit
(McMahan et al., ICLR 2018). They look at single updates, so that memory grows with the hospitals, and (but for the means
that Krum takes over the chosen) they count hospitals, not patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from ich_models.errors import RunError
from ich_strategies.strategy import Row, Strategy

_CLASSES: Final[Mapping[str, type[flower.FedAvg]]] = {
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
    "qfedavg": flower.QFedAvg,
}

CENTRAL_DP: Final = "central_dp"

FLOWERS: Final = frozenset({*_CLASSES, CENTRAL_DP})


@dataclass(frozen=True)
class FlowerStrategy(Strategy):
    """FedAvg whose mean is one of Flower's aggregations; `options` are its own."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def buffers(self) -> bool:
        return True

    @property
    def exact_loss(self) -> bool:
        return self.name == "qfedavg"

    def combine(self, start: Row, rows: Sequence[Row], patients: Sequence[int], losses: Sequence[float]) -> Row:
        """What Flower makes of the hospitals' weights, each (size,), as differences from `start` in float64: the
        distances between large, nearly equal weights would be lost to rounding. One instance per fold and round."""
        nothing = ArrayRecord({"weights": Array(np.zeros(start.shape))})
        instance: Any
        if self.name == CENTRAL_DP:
            counts = [1] * len(rows)  # a hospital moves the mean by clip / hospitals at most, however large it is
            mean = flower.FedAvg()
            instance = flower.DifferentialPrivacyServerSideFixedClipping(
                mean, num_sampled_clients=len(rows), **self.options
            )
        else:
            counts = list(patients)
            instance = _CLASSES[self.name](**self.options)
        instance.current_arrays = nothing
        replies = [
            _reply(row.astype(np.float64) - start, count, loss)
            for row, count, loss in zip(rows, counts, losses, strict=True)
        ]
        arrays, _ = instance.aggregate_train(1, replies)
        if arrays is None:
            raise RunError(
                f"{self.name} cannot combine {len(rows)} updates",
                hint="it needs more hospitals than that for the malicious ones that it is to withstand",
            )
        return cast(Row, (arrays["weights"].numpy() + start).astype(start.dtype))


def _reply(difference: Row, patients: int, loss: float) -> Message:
    if not difference.any():  # Flower's clipping divides by its norm
        difference[:1] = 1e-100
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array(difference)}),
            "metrics": MetricRecord({"num-examples": patients, "train_loss": loss}),
        }
    )
    return Message(content, 1, "train")
