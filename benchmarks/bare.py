"""The yardstick: federated averaging written by hand in PyTorch, without any framework; same batches, same order."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_client.site import Site
from ich_models.statistics import merge
from ich_strategies.plan import Plan


class BareLoop:
    """One model over some hospitals: SGD at each in turn, then the mean weighted by patients."""

    def __init__(self, plan: Plan, sites: Sequence[Site]) -> None:
        torch.set_num_threads(1)
        self.seed, self.stage, self.round_number = plan.seed, plan.federation.training.stages[0], 0
        statistics = merge(site.moments(0) for site in sites)
        fill, centre, scale = torch.from_numpy(statistics.constants(scaled=True).astype(np.float32))
        self.hospitals = []
        for site in sites:
            batch = site.batch(0, "train")
            assert batch.table is not None
            table = (torch.where(torch.isnan(batch.table), fill, batch.table) - centre) * scale
            self.hospitals.append((site.hospital.name, table, batch.label))
        width = self.hospitals[0][1].shape[1]
        self.network = nn.Sequential(
            nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
        )
        start = torch.from_numpy(plan.start_rows([statistics.log_odds]))
        self.weights = [tensor[0].clone() for tensor in plan.weights.unpack(start).values()]

    def round(self) -> None:
        """One round over every hospital."""
        self.round_number += 1
        parameters = list(self.network.parameters())
        sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in self.weights]
        patients = 0
        for name, table, label in self.hospitals:
            with torch.no_grad():
                for parameter, tensor in zip(parameters, self.weights, strict=True):
                    parameter.copy_(tensor)
            self._train(name, table, label)
            with torch.no_grad():
                for total, parameter in zip(sums, parameters, strict=True):
                    total += parameter.double() * len(label)
            patients += len(label)
        self.weights = [(total / patients).float() for total in sums]

    def _train(self, name: str, table: torch.Tensor, label: torch.Tensor) -> None:
        optimizer = torch.optim.SGD(self.network.parameters(), lr=self.stage.optimizer.lr)
        generator = np.random.default_rng((self.seed, self.round_number, *name.encode()))
        generator.integers(2**63)  # as the engine does for its random layers
        size, steps = int(self.stage.batch), self.stage.updates or 0
        for _ in range(self.stage.epochs or 1):
            order = torch.from_numpy(generator.permutation(len(label)))
            shuffled, outcome = table[order], label[order]
            # a last patient alone joins the batch before
            starts = [start for start in range(0, len(label), size) if start == 0 or len(label) - start > 1]
            for start, end in zip(starts, [*starts[1:], len(label)], strict=True):
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(self.network(shuffled[start:end]), outcome[start:end]).backward()
                optimizer.step()
                steps -= 1
                if steps == 0:
                    return

    def row(self) -> torch.Tensor:
        """The weights as one row, as they would travel."""
        return torch.cat([tensor.reshape(-1) for tensor in self.weights])
