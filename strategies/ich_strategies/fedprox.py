"""FedProx: the local objective gains (mu/2) ||w - w_t||^2 (Li et al., MLSys 2020, eq. 2)."""

from dataclasses import dataclass

import torch

from ich_strategies.strategy import Rows, Strategy


@dataclass(frozen=True)
class FedProx(Strategy):
    """The proximal term's gradient mu (w - w_t) joins each step."""

    mu: float

    def direction(
        self, gradient: torch.Tensor, weight: torch.Tensor, start: torch.Tensor, server: Rows, client: Rows
    ) -> torch.Tensor:
        return gradient + self.mu * (weight - start)
