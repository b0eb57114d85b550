"""What a patient is to a network: the patients of one hospital as arrays, and the batch that networks receive."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

Modality = Literal["image", "text", "table"]

PADDING: Final = 0
"""The token id that fills a text up (BERT's [PAD])."""


@dataclass(frozen=True)
class Patients:
    """The patients of one hospital as numbers, one row each, in the order of the hospital's file. Never leaves.

    `ids`: N identifiers, local only. `table`: (N, D) float64, encoded columns (`clinical.columns`), NaN where missing.
    `labels`: (N,) int64, 1 = positive outcome.
    `image`: (N, C, *space) or, several per patient, (N, S, C, H, W), any float. `text`: (N, L) int64, token ids, 0 = padding.
    `slices`: (N, S) bool, which of the S images are the patient's; the others are padding.
    `targets`: what a network learns instead of `labels`, such as the haemorrhage types of each slice (N, S, 5).
    `present`: per modality, (N,) bool; a modality without an entry is there for everyone.
    `features`: per modality, (N, ...), what a frozen encoder said of it.
    `groups`: per variable of `evaluation.subgroups`, (N,) int64, the place of each patient's level in `subgroups.levels`.
    """

    ids: tuple[str, ...]
    table: NDArray[np.float64]
    labels: NDArray[np.int64]
    image: NDArray[np.floating] | None = None
    text: NDArray[np.int64] | None = None
    slices: NDArray[np.bool_] | None = None
    targets: NDArray[np.floating] | None = None
    present: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    features: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    groups: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.table) == len(self.labels) or self.table.ndim != 2:
            raise ValueError(f"{len(self.ids)} ids, table {self.table.shape}, labels {self.labels.shape}")
        for name, array in self._optional():
            if array is not None and len(array) != len(self.ids):
                raise ValueError(f"{len(self.ids)} ids, {name} {array.shape}")

    def _optional(self) -> Iterator[tuple[str, NDArray[np.generic] | None]]:
        yield from (("image", self.image), ("text", self.text), ("slices", self.slices), ("targets", self.targets))
        yield from self.present.items()
        yield from self.features.items()
        yield from self.groups.items()

    def __len__(self) -> int:
        return len(self.ids)

    def holding(self, modality: str) -> NDArray[np.bool_]:
        """(N,): which patients have a modality."""
        there = modality == "table" or modality in self.features or getattr(self, modality) is not None
        return self.present.get(modality, np.ones(len(self), np.bool_)) & there

    def take(self, rows: NDArray[np.int64]) -> "Patients":
        """The patients at these row numbers, in this order."""
        return Patients(
            tuple(self.ids[row] for row in rows),
            self.table[rows],
            self.labels[rows],
            image=None if self.image is None else self.image[rows],
            text=None if self.text is None else self.text[rows],
            slices=None if self.slices is None else self.slices[rows],
            targets=None if self.targets is None else self.targets[rows],
            present={modality: mask[rows] for modality, mask in self.present.items()},
            features={modality: kept[rows] for modality, kept in self.features.items()},
            groups={variable: level[rows] for variable, level in self.groups.items()},
        )

    @classmethod
    def join(cls, groups: Sequence["Patients"]) -> "Patients":
        """The patients of several groups, one group after another.

        Raises ValueError if an optional array is there in some groups and not in others.
        """
        settings: dict[str, Any] = {}
        for name in ("image", "text", "slices", "targets"):
            arrays = [getattr(group, name) for group in groups]
            if any(array is not None for array in arrays):
                if any(array is None for array in arrays):
                    raise ValueError(f"some groups of patients have no {name}")
                settings[name] = np.concatenate(arrays)
        modalities = {modality for group in groups for modality in group.present}
        settings["present"] = {
            modality: np.concatenate([group.present.get(modality, np.ones(len(group), np.bool_)) for group in groups])
            for modality in sorted(modalities)
        }
        kept = {modality for group in groups for modality in group.features}
        settings["features"] = {
            modality: np.concatenate([group.features[modality] for group in groups]) for modality in sorted(kept)
        }
        settings["groups"] = {
            variable: np.concatenate([group.groups[variable] for group in groups]) for variable in groups[0].groups
        }
        return cls(
            tuple(identifier for group in groups for identifier in group.ids),
            np.concatenate([group.table for group in groups]),
            np.concatenate([group.labels for group in groups]),
            **settings,
        )

    def batch(self, dtype: torch.dtype) -> "Batch":
        """All of them as one batch of tensors; images stay as they are, memory-mapped or not."""
        label = self.labels if self.targets is None else self.targets
        return Batch(
            torch.from_numpy(self.table).to(dtype),
            torch.from_numpy(label).to(dtype),
            {modality: torch.from_numpy(mask) for modality, mask in self.present.items()},
            image=None if self.image is None else torch.from_numpy(self.image),
            text=None if self.text is None else torch.from_numpy(self.text),
            slices=None if self.slices is None else torch.from_numpy(self.slices),
        ).with_features({modality: torch.from_numpy(kept) for modality, kept in self.features.items()})


@dataclass(frozen=True)
class Batch:
    """B patients for a network. Modalities that a study or a hospital does not have are None.

    `table`: (B, D) float, NaN where missing. `label`: (B,) float, 0 or 1 (mixed patients: between), or (B, S, 5).
    `present`: per modality, (B,) bool: whether the patient has it; a modality without an entry is there for everyone.
    `image`: (B, C, *space) or (B, S, C, H, W) float. `text`: (B, L) int64, token ids, 0 = padding.
    `slices`: (B, S) bool, which of the S images are the patient's; None: all.
    `features`: per modality, what a frozen encoder said of it, in place of `image` or `text`: computed once, kept.
    """

    table: torch.Tensor | None
    label: torch.Tensor
    present: Mapping[str, torch.Tensor] = field(default_factory=dict)
    image: torch.Tensor | None = None
    text: torch.Tensor | None = None
    slices: torch.Tensor | None = None
    features: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    def holds(self, modality: Modality) -> bool:
        """Whether any patient of the batch can have it."""
        return modality in self.features or getattr(self, modality) is not None

    def who(self, modality: Modality) -> torch.Tensor:
        """(B,) bool: the patients that have it."""
        if self.holds(modality) and modality in self.present:
            return self.present[modality]
        return torch.full((len(self),), self.holds(modality), device=self.label.device)

    def _each(self, part: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        def maybe(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else part(tensor)

        return Batch(
            maybe(self.table),
            part(self.label),
            {modality: part(mask) for modality, mask in self.present.items()},
            image=maybe(self.image),
            text=maybe(self.text),
            slices=maybe(self.slices),
            features={modality: part(kept) for modality, kept in self.features.items()},
        )

    def take(self, rows: torch.Tensor) -> "Batch":
        """The patients at these row numbers, in this order."""
        return self._each(lambda tensor: tensor[rows])

    def with_features(self, features: Mapping[str, torch.Tensor]) -> "Batch":
        """The same patients with what an encoder says of a modality, (B, ...), in place of the modality itself."""
        return replace(
            self,
            image=None if "image" in features else self.image,
            text=None if "text" in features else self.text,
            features={**self.features, **features},
        )

    @property
    def is_large(self) -> bool:
        """Whether images are part of it: they are taken from the disk batch by batch, and not all at once."""
        return self.image is not None

    def to(self, dtype: torch.dtype, device: torch.device) -> "Batch":
        """Numbers that a network computes with as `dtype`, everything on `device`; images are kept in a smaller type."""
        return self._each(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))

    def pieces(self, size: int) -> Iterator["Batch"]:
        """The patients in their order, at most `size` at a time."""
        yield from self.split([min(size, len(self) - start) for start in range(0, len(self), size)])

    def split(self, sizes: Sequence[int]) -> Iterator["Batch"]:
        """The patients in batches of these sizes, in their order, without a copy."""
        if sum(sizes) != len(self):
            raise ValueError(f"{len(self)} patients in batches of {sum(sizes)}")
        names = [name for name in ("table", "label", "image", "text", "slices") if getattr(self, name) is not None]
        parts = zip(*(getattr(self, name).split(sizes) for name in names), strict=True)
        masks = {modality: mask.split(sizes) for modality, mask in self.present.items()}
        kept = {modality: values.split(sizes) for modality, values in self.features.items()}
        for index, tensors in enumerate(parts):
            yield Batch(
                **{"table": None, **dict(zip(names, tensors, strict=True))},
                present={modality: split[index] for modality, split in masks.items()},
                features={modality: split[index] for modality, split in kept.items()},
            )


@dataclass(frozen=True)
class Output:
    """What a network says of B patients.

    `logits`: (B,), or one per slice and type (B, S, 5); NaN in a stage that predicts nothing.
    `embeddings`: named, (B, ...), for losses and pictures.
    `present`: per modality that the network uses, (B,) bool.
    `positive`: (1,), what a patient with the positive outcome weighs in losses of the outcome; None: as much as any other.
    """

    logits: torch.Tensor
    embeddings: Mapping[str, torch.Tensor] = field(default_factory=dict)
    present: Mapping[str, torch.Tensor] = field(default_factory=dict)
    positive: torch.Tensor | None = None
