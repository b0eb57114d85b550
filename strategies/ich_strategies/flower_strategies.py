"""Flower's own robust aggregations by name: what a fold's hospitals returned is buffered, and Flower combines it.

FedMedian and FedTrimmedAvg (Yin et al., ICML 2018), Krum and MultiKrum (Blanchard et al., NeurIPS 2017), Bulyan (El Mhamdi
et al., ICML 2018). They look at single updates, so that memory grows with the hospitals, and (but for the means that
Krum takes over the chosen) they count hospitals, not patients.
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
}

FLOWERS: Final = frozenset(_CLASSES)


@dataclass(frozen=True)
class FlowerStrategy(Strategy):
    """FedAvg whose mean is one of Flower's robust aggregations; `options` are its own."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def buffers(self) -> bool:
        return True

    def combine(self, start: Row, rows: Sequence[Row], patients: Sequence[int]) -> Row:
        """What Flower makes of the hospitals' weights, each (size,), as differences from `start` in float64: the
        distances between large, nearly equal weights would be lost to rounding. One instance per fold and round."""
        instance = _CLASSES[self.name](**self.options)
        replies = [_reply(row.astype(np.float64) - start, count) for row, count in zip(rows, patients, strict=True)]
        arrays, _ = instance.aggregate_train(1, replies)
        if arrays is None:
            raise RunError(
                f"{self.name} cannot combine {len(rows)} updates",
                hint="it needs more hospitals than that for the malicious ones that it is to withstand",
            )
        return cast(Row, (arrays["weights"].numpy() + start).astype(start.dtype))


def _reply(difference: Row, patients: int) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array(difference)}),
            "metrics": MetricRecord({"num-examples": patients}),
        }
    )
    return Message(content, 1, "train")
