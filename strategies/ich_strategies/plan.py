"""What federation and seed alone decide, the same at the server and at every hospital: network, layouts, strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ich_models import clinical, exchange, extras
from ich_models.exchange import Layout
from ich_models.federation import Federation
from ich_models.networks.constants import Told
from ich_models.networks.pretrained import load_pinned
from ich_models.networks.registry import DTYPES, OUTPUT_BIAS, build
from ich_models.statistics import Moments
from ich_strategies import registry
from ich_strategies.strategy import Strategy


@dataclass(frozen=True)
class Plan:
    """One study: a federation with one of its seeds. `files`: weights that it pins, by name, where they lie here."""

    federation: Federation
    seed: int
    files: Mapping[str, Path] = field(default_factory=dict, hash=False)

    @cached_property
    def hash(self) -> str:
        """The federation's hash."""
        return self.federation.hash

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's encoded columns."""
        return clinical.columns(self.federation.modalities.table)

    @cached_property
    def network(self) -> nn.Module:
        """One network to compute with; whoever uses it loads the weights that travel first.

        Raises ConfigurationError if the weights of a frozen encoder are not here.
        """
        network = self._fresh()
        load_pinned(network, self.files, frozen=True)
        return network

    def _fresh(self) -> nn.Module:
        return build(self.federation.network, len(self.columns), self.seed, self.columns)

    @cached_property
    def outline(self) -> nn.Module:
        """The network without its numbers: what its tensors are called and how large they are costs no memory."""
        with torch.device("meta"):
            return self._fresh()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, constants and table."""
        return DTYPES[self.federation.network.dtype]

    @property
    def number(self) -> np.dtype[np.floating]:
        """The same, as rows have it."""
        return np.dtype(self.federation.network.dtype)

    @cached_property
    def strategy(self) -> Strategy:
        """The algorithm."""
        return registry.build(self.federation.training.strategy)

    @cached_property
    def weights(self) -> Layout:
        """What travels every round."""
        return exchange.exchanged(self.outline, self.strategy.local)

    @cached_property
    def segments(self) -> list[tuple[slice, str]]:
        """The stretches of what travels that learn from the patients of one modality."""
        return exchange.segments(self.outline, self.weights)

    @cached_property
    def local(self) -> Layout:
        """What stays at the hospital until the last round."""
        return exchange.kept_local(self.outline, self.strategy.local)

    @cached_property
    def constants(self) -> Layout:
        """Imputation, scaling, and what else is made of statistics."""
        return exchange.constants(self.outline)

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """What hospitals say in their statistics beside the table's columns: names, one number per patient each."""
        return exchange.needed(self.outline)

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest value of each column of the table, then of each of `extras`."""
        modalities = self.federation.modalities
        ends = zip(clinical.bounds(modalities.table), extras.bounds(self.extras, modalities.image), strict=True)
        low, high = (np.concatenate(both) for both in ends)
        return low, high

    def constants_row(self, found: Moments) -> NDArray[np.floating]:
        """(1, size): what a fold's constants are where its training hospitals' statistics are these."""
        table = self.federation.modalities.table
        width = len(self.columns)
        scaled = table.scaling != "none"
        said = zip(self.extras, found.count[width:].tolist(), found.mean[width:].tolist(), strict=True)
        numbers = found.columns(slice(0, width)).constants(scaled=scaled, ranges=clinical.bounds(table))
        told = Told(
            self._published(numbers, scaled=scaled),
            {name: (count, mean) for name, count, mean in said},
            (found.events, found.labelled - found.events),
        )
        return exchange.constants_of(self.outline, self.constants, told)[None].astype(self.number)

    def _published(self, numbers: NDArray[np.float64], *, scaled: bool) -> NDArray[np.float64]:
        """(3, D) as a private study has it: columns of yes and no as they are, others by what is published of them.

        Of a level that few have, half and half would be a bad guess: nearly all patients would lie far from the middle, all
        in the same direction, and their gradients would be clipped for it.
        """
        privacy = self.federation.privacy
        if privacy is None or not scaled:
            return numbers
        low, high = clinical.bounds(self.federation.modalities.table)
        numbers[1:, (low == 0) & (high == 1)] = [[0.0], [1.0]]
        for name, known in privacy.public.items():
            numbers[:, self.columns.index(name)] = known.mean, known.mean, 1 / known.sd
        return numbers

    @cached_property
    def schema(self) -> str:
        """Hash of everything that may travel."""
        return exchange.Layout({**self.weights.shapes, **self.local.shapes, **self.constants.shapes}).schema

    @property
    def start(self) -> torch.Tensor:
        """(1, size): the start values of what travels, made at each look.

        Raises ConfigurationError if weights that an encoder learns on from are not here.
        """
        network = self._fresh()
        load_pinned(network, self.files, frozen=False)
        return exchange.row(network, self.weights)

    def start_rows(self, log_odds: Sequence[float]) -> NDArray[np.floating]:
        """(F, size): the start values, the output bias at each fold's log-odds if the network asks for the prevalence."""
        rows = self.start.expand(len(log_odds), -1).clone()
        if self.federation.network.bias == "prevalence":
            self.weights.unpack(rows)[OUTPUT_BIAS].copy_(torch.tensor(log_odds, dtype=torch.float64).reshape(-1, 1))
        return rows.numpy()

    @cached_property
    def start_local(self) -> torch.Tensor:
        """(1, size): the start values of what stays."""
        return exchange.row(self._fresh(), self.local)
