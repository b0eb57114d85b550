"""What a federated algorithm is: a client half, applied at the hospital, and a server half, applied to the mean update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Rows = Mapping[str, torch.Tensor]
"""Named tensors at the client, each (F, size): one row per fold, in the layout of the exchanged weights."""

Row = NDArray[np.floating]
"""One fold's numbers at the server, (size,)."""

State = Mapping[str, Row]
"""What a server keeps for one fold between rounds."""


@dataclass(frozen=True)
class Report:
    """What a client half hands over after training: `sent` travels with the weights, `kept` is next round's state."""

    sent: Rows = field(default_factory=dict)
    kept: Rows = field(default_factory=dict)


@dataclass(frozen=True)
class Strategy:
    """Federated averaging, and the places where an algorithm may differ from it.

    Client half: `local`, `direction`, `report` with `returns` and `keeps`. Server half: `start`, `sends`, `step`, and `buffers` with `combine` for
    an algorithm that must see every update at once.
    A subclass overrides what its paper changes and nothing else; see docs/extending.md.
    """

    def local(self, module: nn.Module) -> bool:
        """Whether this module's tensors stay at the hospital instead of travelling every round."""
        return False

    def direction(
        self, gradient: torch.Tensor, weight: torch.Tensor, start: torch.Tensor, server: Rows, client: Rows
    ) -> torch.Tensor:
        """The gradient that the optimiser steps along, for one tensor (F, *shape).

        Applied just before the step, hence after clip and noise. `start`: the weights that the round began with;
        `server` and `client`: this tensor's part of what the server sends and of the client's own state, of the blocks
        that are as wide as the weights.
        """
        return gradient

    def report(self, start: torch.Tensor, end: torch.Tensor, server: Rows, client: Rows, rate: float) -> Report:
        """What else travels back, and what the client keeps, after training from `start` to `end`, both (F, size).

        `rate`: the sum of the learning rates of all local steps.
        """
        return Report()

    def returns(self, size: int) -> Mapping[str, int]:
        """Width of each block that `report` sends, for weights of `size` numbers: the server takes these and no others."""
        return {}

    def keeps(self, size: int) -> Mapping[str, int]:
        """Width of each block that `report` keeps. The next round finds them in `client`; in the first they are 0."""
        return {}

    def start(self, weights: Row) -> State:
        """The server's state for one fold before round 1."""
        return {}

    @property
    def sends(self) -> tuple[str, ...]:
        """Names of the server's state that clients receive beside the weights."""
        return ()

    @property
    def buffers(self) -> bool:
        """Whether the server keeps every update of a round for `combine`, in place of a running mean."""
        return False

    @property
    def exact_loss(self) -> bool:
        """Whether hospitals report the loss of the weights as received, of all their training patients, in place of the
        mean over the batches of a round."""
        return False

    def combine(self, start: Row, rows: Sequence[Row], patients: Sequence[int], losses: Sequence[float]) -> Row:
        """For a strategy that buffers: what stands in place of the mean of the hospitals' weights, each (size,).

        Raises RunError if these are too few to be combined.
        """
        raise NotImplementedError

    def step(self, weights: Row, mean: State, state: State, share: float) -> tuple[Row, State]:
        """New weights and state of one fold from the patient-weighted mean of what the clients sent.

        `mean["weights"]` and the names of `returns`; `share`: the replying hospitals' part of the fold's patients.
        """
        return mean["weights"], state
