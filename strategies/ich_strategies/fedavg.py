"""FedAvg: the patient-weighted mean of the hospitals' weights (McMahan et al., AISTATS 2017, Algorithm 1)."""

from dataclasses import dataclass

from ich_strategies.strategy import Strategy


@dataclass(frozen=True)
class FedAvg(Strategy):
    """Nothing differs from the base: plain local training, plain mean."""
