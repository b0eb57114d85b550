"""A hospital at work in one study: its patients split and as tensors, its statistics, and its state between rounds."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ich_client import machine, splits
from ich_client.budget import Budget
from ich_client.features import with_frozen_features
from ich_client.ledger import Ledger
from ich_client.replies import Replies
from ich_client.splits import Indices, Split
from ich_client.state import State
from ich_client.tables import Hospital
from ich_models import extras
from ich_models.batch import Batch
from ich_models.federation import Federation
from ich_models.folds import Fold
from ich_models.statistics import Moments, moments
from ich_strategies.plan import Plan

LEDGERS: Final = "privacy"
"""Folder of the hospitals' ledgers, where no hospital's folder is."""


REPLIES: Final = "replies"
"""Folder of what a private study was answered, in a hospital's folder of state."""


class Site:
    """One hospital in one study. What is derived from its patients is made once and kept in memory."""

    def __init__(
        self,
        plan: Plan,
        hospital: Hospital,
        folder: Path,
        models: Path | None = None,
        ledger: Ledger | None = None,
        roles: Federation | None = None,
    ) -> None:
        """`folder`: where state between rounds is kept, one folder per federation, seed and hospital below it.

        `models`: where models that are handed over are kept; `ledger`: of this hospital, of all studies. Both are by
        default in `folder`. `roles`: the study whose split of the patients is used; by default the plan's own.
        """
        torch.set_num_threads(
            hospital.limits.threads
        )  # sums in a fixed order, and no more cores than the hospital gives
        self.plan = plan
        self.roles = roles or plan.federation
        own = folder / plan.hash[:16] / f"seed-{plan.seed}" / hospital.name
        self.hospital = replace(hospital, patients=with_frozen_features(plan, hospital.patients, own / "features"))
        self.state = State(own)
        self.replies = Replies(own / REPLIES)
        self._ledger = ledger or ledger_in(folder, hospital.name)
        self.models = (models or folder / "models" / hospital.name) / plan.hash[:16] / f"seed-{plan.seed}"
        self._splits: dict[int, Split] = {}
        self._moments: dict[int, Moments] = {}
        self._batches: dict[tuple[int, str], Batch] = {}

    @cached_property
    def device(self) -> torch.device:
        """Where this hospital computes. Raises ConfigurationError for a device that is not here."""
        return machine.device(self.hospital.limits.device)

    @cached_property
    def budget(self) -> Budget | None:
        """What the study may take from these patients; None: it promises them nothing."""
        federation, hospital = self.plan.federation, self.hospital
        if federation.privacy is None:
            return None
        return Budget(federation, hospital.name, hospital.limits, hospital.patients.ids, self._ledger)

    @property
    def small_cells(self) -> int:
        """k: a hospital can raise the study's, not lower it."""
        return max(self.plan.federation.evaluation.small_cells, self.hospital.limits.small_cells)

    def split(self, part: int) -> Split:
        """The patients' roles when `part` is held out (0: none but the test share)."""
        if part not in self._splits:
            self._splits[part] = splits.of(self.hospital.patients, self.roles, part)
        return self._splits[part]

    def held_out(self, fold: Fold) -> Indices:
        """The rows of this hospital that the fold has not learnt from: what it may be tested on here."""
        if fold.hospital is not None:
            return np.arange(len(self.hospital.patients))
        return self.split(fold.part or 0).test

    def moments(self, part: int) -> Moments:
        """Statistics of the training patients, validation left out."""
        if part not in self._moments:
            rows = self.split(part).train
            self._moments[part] = moments(self.hospital.patients.take(rows), self.extras[rows])
        return self._moments[part]

    @cached_property
    def extras(self) -> NDArray[np.float64]:
        """(N, E): what statistics hold of all patients beside the table."""
        return extras.columns(self.hospital.patients, self.plan.extras)

    @property
    def told(self) -> NDArray[np.float64]:
        """(N, D + E): what statistics are made of, the table's columns first."""
        return np.hstack([self.hospital.patients.table, self.extras])

    def batch(self, part: int, role: str) -> Batch:
        """The 'train' or 'validation' patients as tensors."""
        if (part, role) not in self._batches:
            rows = getattr(self.split(part), role)
            self._batches[part, role] = self.hospital.patients.take(rows).batch(self.plan.dtype)
        return self._batches[part, role]

    def constants(self, part: int) -> torch.Tensor:
        """(1, size): imputation and scaling by this hospital's own training patients (`scaling: hospital`)."""
        return torch.from_numpy(self.plan.constants_row(self.moments(part)))


def ledger_in(folder: Path, hospital: str) -> Ledger:
    """A hospital's ledger where no hospital's folder is: in a simulation, or under Flower's own tools."""
    own = folder / LEDGERS / hospital
    return Ledger(own, own / "anchors.jsonl")
