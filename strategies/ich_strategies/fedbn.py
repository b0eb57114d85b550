"""FedBN: normalisation layers stay at the hospital (Li et al., ICLR 2021, Algorithm 1).

A hospital that has trained uses its own layers. One that never has, the held-out hospital of a fold, receives the mean
of the training hospitals' layers, sent once after the last round.
"""

from dataclasses import dataclass

from torch import nn

from ich_models.exchange import is_normalisation
from ich_strategies.strategy import Strategy


@dataclass(frozen=True)
class FedBN(Strategy):
    """FedAvg on everything but the normalisation layers."""

    def local(self, module: nn.Module) -> bool:
        return is_normalisation(module)
