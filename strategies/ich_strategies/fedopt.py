"""FedAdam, FedYogi and FedAdagrad: adaptive optimisers on the server (Reddi et al., ICLR 2021, Algorithm 2).

As in the paper there is no bias correction, and the second moment starts at tau^2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ich_strategies.strategy import Row, State, Strategy

SECOND_MOMENTS: Final[dict[str, Callable[[Row, Row, float], Row]]] = {
    "fedadagrad": lambda v, square, beta2: v + square,
    "fedyogi": lambda v, square, beta2: v - (1 - beta2) * square * np.sign(v - square),
    "fedadam": lambda v, square, beta2: beta2 * v + (1 - beta2) * square,
}
"""Algorithm 2, lines 13 to 15: the new v from the old one and Delta^2."""


@dataclass(frozen=True)
class FedOpt(Strategy):
    """m <- beta1 m + (1 - beta1) Delta; v by `name`; w <- w + eta m / (sqrt(v) + tau), Delta = mean - w."""

    name: str
    server_lr: float
    beta1: float
    beta2: float
    tau: float

    def start(self, weights: Row) -> State:
        return {"m": weights * 0, "v": weights * 0 + self.tau**2}

    def step(self, weights: Row, mean: State, state: State, share: float) -> tuple[Row, State]:
        delta = mean["weights"] - weights
        m = self.beta1 * state["m"] + (1 - self.beta1) * delta
        v = SECOND_MOMENTS[self.name](state["v"], delta**2, self.beta2)
        return weights + self.server_lr * m / (np.sqrt(v) + self.tau), {"m": m, "v": v}
