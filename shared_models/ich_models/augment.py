"""Changes of the patients that a network is trained on: drawn anew in every epoch, never in evaluation.

All draw from torch's generator, so that a seed fixes them. Those in `ALONE` change each patient by itself; the others mix
patients, which differential privacy by patient must refuse.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

import torch
from pydantic import Field
from torch.nn.functional import affine_grid, grid_sample

from ich_models.batch import PADDING, Batch
from ich_models.strict import Strict

Share = Annotated[float, Field(ge=0, le=1)]


class Flip(Strict):
    """Mirror images left to right. Laterality changes: not for a label that depends on it."""

    name: Literal["flip"]
    p: Share = 0.5


class Transpose(Strict):
    """Exchange rows and columns of slices and views (square ones). Laterality and up and down change."""

    name: Literal["transpose"]
    p: Share = 0.5


class Affine(Strict):
    """Turn by up to `degrees` in the plane of a slice, shift by up to `shift` of a side, scale by up to `scale`."""

    name: Literal["affine"]
    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    p: Share = 1.0


class Intensity(Strict):
    """Change contrast about the mean, and brightness, of images by up to `jitter` (0.2: times 0.8 to 1.2)."""

    name: Literal["intensity"]
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2
    p: Share = 1.0


class Noise(Strict):
    """Gaussian noise of standard deviation `sd` on images, or on what a frozen or resting encoder says of them, and of
    texts."""

    name: Literal["noise"]
    sd: Annotated[float, Field(gt=0)]
    p: Share = 0.5


class WordDropout(Strict):
    """Each word of a text becomes unknown with chance `p`; its first and last token stay."""

    name: Literal["word_dropout"]
    p: Share = 0.15
    unknown: Annotated[int, Field(ge=1)] = 1
    """Id of the vocabulary's unknown word: 1 in the built-in one, 100 in BERT's."""


class MixUp(Strict):
    """Two patients of a batch in shares of Beta(`alpha`, `alpha`) (Zhang et al. 2018): images, features, tables, labels.

    A text that is no features is that of the patient with the larger share.
    """

    name: Literal["mixup"]
    alpha: Annotated[float, Field(gt=0)] = 0.4
    p: Share = 0.5


class Replicate(Strict):
    """The rarer class as often as the other: the nearest neighbour, by the table, of one of its patients once more."""

    name: Literal["replicate"]


Augmentation = Annotated[
    Flip | Transpose | Affine | Intensity | Noise | WordDropout | MixUp | Replicate, Field(discriminator="name")
]

ALONE: Final = (Flip, Transpose, Affine, Intensity, Noise, WordDropout)
"""Augmentations under which a patient stays a function of that patient alone."""


def of_batch(options: Sequence[Augmentation], batch: Batch) -> Batch:
    """A batch as a network sees it in training: every augmentation but `Replicate`, in the order given."""
    for one in options:
        if isinstance(one, MixUp):
            batch = _mixed(one, batch)
        elif isinstance(one, WordDropout):
            batch = replace(batch, text=None if batch.text is None else _dropped(one, batch.text))
        elif isinstance(one, Noise):
            batch = _noisy(one, batch)
        elif not isinstance(one, Replicate) and batch.image is not None:
            batch = replace(batch, image=_changed(one, batch.image.float()))
    return batch


def of_epoch(options: Sequence[Augmentation], patients: Batch) -> torch.Tensor | None:
    """Row numbers of an epoch's patients: with `Replicate`, some of the rarer class once more; None: each once."""
    if any(isinstance(one, Replicate) for one in options):
        return torch.cat([torch.arange(len(patients)), _replicated(patients)])
    return None


# --- images -----------------------------------------------------------------------------------------------------------


def _whom(p: float, images: torch.Tensor) -> torch.Tensor:
    """(B, 1, ...) bool: each patient with chance `p`; all slices of a patient alike."""
    return (torch.rand(len(images)) < p).reshape(-1, *[1] * (images.ndim - 1)).to(images.device)


def _changed(one: Flip | Transpose | Affine | Intensity, images: torch.Tensor) -> torch.Tensor:
    match one:
        case Flip():
            changed = images.flip(-1)
        case Transpose():
            if images.shape[-1] != images.shape[-2]:
                raise ValueError("transpose needs square images")
            changed = images.transpose(-1, -2)
        case Intensity():
            changed = _jittered(one.jitter, images)
        case Affine():
            changed = _moved(one, images)
    return torch.where(_whom(one.p, images), changed, images)


def _jittered(jitter: float, images: torch.Tensor) -> torch.Tensor:
    shape = (len(images), *[1] * (images.ndim - 1))
    contrast, brightness = (1 + jitter * (2 * torch.rand(2, *shape) - 1)).to(images.device)
    mean = images.flatten(1).mean(1).reshape(shape)
    changed: torch.Tensor = (images - mean) * contrast + mean * brightness
    return changed


def _moved(one: Affine, images: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W), or (B, S, C, H, W) and (B, C, H, W), where every slice of a patient moves alike."""
    count = len(images)
    angle = (2 * torch.rand(count) - 1) * one.degrees * math.pi / 180
    shift = (2 * torch.rand(count, 2) - 1) * 2 * one.shift  # the grid's sides go from -1 to 1
    size = 1 + (2 * torch.rand(count) - 1) * one.scale
    cos, sin = angle.cos() / size, angle.sin() / size
    planes = images.shape[1:-2].numel()
    flat = images.reshape(count, planes, *images.shape[-2:])
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = affine_grid(matrix.to(flat), list(flat.shape), align_corners=False)
    moved: torch.Tensor = grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return moved.reshape(images.shape)


# --- features, texts, mixtures ----------------------------------------------------------------------------------------


def _noisy(one: Noise, batch: Batch) -> Batch:
    def add(values: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(values.shape) * one.sd
        return torch.where(_whom(one.p, values), values.float() + noise.to(values.device), values.float())

    image = None if batch.image is None else add(batch.image)
    return replace(batch, image=image, features={name: add(kept) for name, kept in batch.features.items()})


def _dropped(one: WordDropout, text: torch.Tensor) -> torch.Tensor:
    places = torch.arange(text.shape[1], device=text.device)
    last = (text != PADDING).sum(1, keepdim=True) - 1
    inside = (places > 0) & (places < last)
    gone = inside & (torch.rand(text.shape) < one.p).to(text.device)
    return torch.where(gone, torch.full_like(text, one.unknown), text)


def _mixed(one: MixUp, batch: Batch) -> Batch:
    if float(torch.rand(())) >= one.p:
        return batch
    share = torch.distributions.Beta(one.alpha, one.alpha).sample((len(batch),))
    other = batch.take(torch.randperm(len(batch)))

    def mix(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        part = share.reshape(-1, *[1] * (mine.ndim - 1)).to(mine.device)
        mixed = part * mine.float() + (1 - part) * theirs.float()
        # what one of the two does not know is the other's
        return torch.where(mine.isnan(), theirs.float(), torch.where(theirs.isnan(), mine.float(), mixed))

    def both(name: str) -> torch.Tensor | None:
        mine, theirs = getattr(batch, name), getattr(other, name)
        return None if mine is None else mix(mine, theirs)

    text = batch.text
    if text is not None and other.text is not None:
        text = torch.where((share >= 0.5)[:, None].to(text.device), text, other.text)
    present = {
        name: mask & other.present[name]
        if name != "text" or "text" in batch.features
        else torch.where((share >= 0.5).to(mask.device), mask, other.present[name])
        for name, mask in batch.present.items()
    }
    return replace(
        batch,
        table=both("table"),
        label=mix(batch.label, other.label),
        image=both("image"),
        text=text,
        present=present,
        features={name: mix(kept, other.features[name]) for name, kept in batch.features.items()},
    )


def _replicated(patients: Batch) -> torch.Tensor:
    """Row numbers of the copies: for each, one of the rarer class is drawn, and its nearest neighbour there is copied.

    Distance: Euclidean, over columns of variance 1, what is missing at the mean.
    """
    if patients.table is None or patients.label.ndim != 1:
        raise ValueError("replicate needs a table and one label per patient")
    positive = patients.label > 0.5
    rare = positive if int(positive.sum()) * 2 < len(patients) else ~positive
    rows = rare.nonzero().squeeze(1)
    missing = len(patients) - 2 * len(rows)
    if len(rows) < 2 or missing <= 0:
        return rows[:0]
    table = patients.table.double()
    mean = table.nanmean(0)
    centred = torch.where(table.isnan(), 0.0, table - mean).nan_to_num()
    points = (centred / centred.std(0).clamp(min=1e-9))[rows]
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(math.inf)
    return rows[distances.argmin(1)[torch.randint(len(rows), (missing,))]]
