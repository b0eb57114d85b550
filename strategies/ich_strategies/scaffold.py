"""SCAFFOLD: control variates against client drift (Karimireddy et al., ICML 2020, Algorithm 1, option II).

The variates are weighted by patients like the weights themselves, so that the server's variate stays the gradient of
the federation's own objective when hospitals differ in size. A hospital whose update is set aside by the server has
moved its own variate all the same: c and the mean of the c_i differ from then on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ich_strategies.strategy import Report, Row, Rows, State, Strategy


@dataclass(frozen=True)
class Scaffold(Strategy):
    """Steps along g - c_i + c, with c_i the hospital's variate and c the server's."""

    server_lr: float

    def direction(
        self, gradient: torch.Tensor, weight: torch.Tensor, start: torch.Tensor, server: Rows, client: Rows
    ) -> torch.Tensor:
        return gradient - client["variate"] + server["variate"]

    def report(self, start: torch.Tensor, end: torch.Tensor, server: Rows, client: Rows, rate: float) -> Report:
        """Option II: c_i+ = c_i - c + (x - y_i) / (K eta); K eta is `rate`. What travels is c_i+ - c_i."""
        change = (start - end) / rate - server["variate"]
        return Report(sent={"variate": change}, kept={"variate": client["variate"] + change})

    def returns(self, size: int) -> Mapping[str, int]:
        return {"variate": size}

    def keeps(self, size: int) -> Mapping[str, int]:
        return {"variate": size}

    def start(self, weights: Row) -> State:
        return {"variate": weights * 0}

    @property
    def sends(self) -> tuple[str, ...]:
        return ("variate",)

    def step(self, weights: Row, mean: State, state: State, share: float) -> tuple[Row, State]:
        """x <- x + eta_g mean(y_i - x); c <- c + share * mean(c_i+ - c_i)."""
        moved = weights + self.server_lr * (mean["weights"] - weights)
        return moved, {"variate": state["variate"] + share * mean["variate"]}
