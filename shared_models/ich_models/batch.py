"""What a patient is to a network: the patients of one hospital as arrays, and the batch that networks receive."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Patients:
    """The patients of one hospital as numbers, one row each, in the order of the hospital's file. Never leaves.

    `ids`: N identifiers, local only. `table`: (N, D) float64, encoded columns (`clinical.columns`), NaN where missing.
    `labels`: (N,) int64, 1 = positive outcome.
    """

    ids: tuple[str, ...]
    table: NDArray[np.float64]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.table) == len(self.labels) or self.table.ndim != 2:
            raise ValueError(f"{len(self.ids)} ids, table {self.table.shape}, labels {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "Patients":
        """The patients at these row numbers, in this order."""
        return Patients(tuple(self.ids[row] for row in rows), self.table[rows], self.labels[rows])

    def batch(self, dtype: torch.dtype) -> "Batch":
        """All of them as one batch of tensors."""
        return Batch(torch.from_numpy(self.table).to(dtype), torch.from_numpy(self.labels).to(dtype))


@dataclass(frozen=True)
class Batch:
    """B patients for a network. Modalities that a study does not use are None; images and text join the table here.

    `table`: (B, D) float, NaN where missing. `label`: (B,) float, 0 or 1.
    `present`: per modality, (B,) bool: whether the patient has it; a modality without an entry is there for everyone.
    """

    table: torch.Tensor | None
    label: torch.Tensor
    present: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: torch.Tensor) -> "Batch":
        """The patients at these row numbers, in this order."""
        return Batch(
            None if self.table is None else self.table[rows],
            self.label[rows],
            {modality: mask[rows] for modality, mask in self.present.items()},
        )

    def split(self, sizes: Sequence[int]) -> Iterator["Batch"]:
        """The patients in batches of these sizes, in their order, without a copy."""
        tables = repeat(None, len(sizes)) if self.table is None else self.table.split(sizes)
        masks = {modality: mask.split(sizes) for modality, mask in self.present.items()}
        for index, (table, label) in enumerate(zip(tables, self.label.split(sizes), strict=True)):
            yield Batch(table, label, {modality: parts[index] for modality, parts in masks.items()})


@dataclass(frozen=True)
class Output:
    """What a network says of B patients: `logits` (B,), and named `embeddings` (B, ...) for losses and pictures."""

    logits: torch.Tensor
    embeddings: Mapping[str, torch.Tensor] = field(default_factory=dict)
