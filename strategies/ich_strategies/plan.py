"""What federation and seed alone decide, the same at the server and at every hospital: network, layouts, strategy."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ich_models import exchange
from ich_models.clinical import columns
from ich_models.exchange import Layout
from ich_models.federation import Federation
from ich_models.networks.registry import DTYPES, OUTPUT_BIAS, build
from ich_strategies import registry
from ich_strategies.strategy import Strategy


@dataclass(frozen=True)
class Plan:
    """One study: a federation with one of its seeds."""

    federation: Federation
    seed: int

    @cached_property
    def hash(self) -> str:
        """The federation's hash."""
        return self.federation.hash

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's encoded columns."""
        return columns(self.federation.modalities.table)

    @cached_property
    def network(self) -> nn.Module:
        """One network to compute with; whoever uses it loads the weights first."""
        return self._fresh()

    def _fresh(self) -> nn.Module:
        return build(self.federation.network, len(self.columns), self.seed, self.columns)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, constants and table."""
        return DTYPES[self.federation.network.dtype]

    @cached_property
    def strategy(self) -> Strategy:
        """The algorithm."""
        return registry.build(self.federation.training.strategy)

    @cached_property
    def weights(self) -> Layout:
        """What travels every round."""
        return exchange.exchanged(self.network, self.strategy.local)

    @cached_property
    def local(self) -> Layout:
        """What stays at the hospital until the last round."""
        return exchange.kept_local(self.network, self.strategy.local)

    @cached_property
    def constants(self) -> Layout:
        """Imputation and scaling."""
        return exchange.constants(self.network)

    @cached_property
    def schema(self) -> str:
        """Hash of everything that may travel."""
        return exchange.Layout({**self.weights.shapes, **self.local.shapes, **self.constants.shapes}).schema

    @cached_property
    def start(self) -> torch.Tensor:
        """(1, size): the start values of what travels."""
        return exchange.row(self._fresh(), self.weights)

    def start_row(self, log_odds: float) -> NDArray[np.floating]:
        """(size,): the start values, the output bias at `log_odds` if the network asks for the prevalence."""
        row = self.start.clone()
        if self.federation.network.bias == "prevalence":
            self.weights.unpack(row)[OUTPUT_BIAS].fill_(log_odds)
        return row[0].numpy()

    @cached_property
    def start_local(self) -> torch.Tensor:
        """(1, size): the start values of what stays."""
        return exchange.row(self._fresh(), self.local)
