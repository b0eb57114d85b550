"""What the two slice networks share: the haemorrhage types, a patient's slices folded into one batch, and their loss."""

import math
from typing import Final, get_args

import torch
from torch.nn.functional import affine_grid, binary_cross_entropy_with_logits, grid_sample

from ich_models.batch import Batch, Output
from ich_models.image_spec import HaemorrhageType
from ich_models.losses import PerSample, over_elements
from ich_models.networks.staged import Encoder, among

TYPES: Final[tuple[str, ...]] = get_args(HaemorrhageType)
"""In this order everywhere; 'any' is derived."""


def all_slices(batch: Batch) -> torch.Tensor:
    """(B, S, C, H, W)."""
    if batch.image is None or batch.image.ndim != 5:
        raise ValueError("a slice network needs batch.image of shape (B, S, C, H, W)")
    return batch.image


def there(batch: Batch) -> torch.Tensor:
    """(B, S) bool: the slices that are a patient's, none where the patient has no image."""
    if batch.slices is not None:
        real = batch.slices
    else:
        kept = batch.features.get("image", batch.image)
        assert kept is not None
        real = torch.ones(kept.shape[:2], dtype=torch.bool, device=kept.device)
    return real & batch.who("image")[:, None]


def slice_features(encoder: Encoder, images: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, S, C, H, W), of the batch's patients -> (B, S, width); padded slices pass no layer and are zero."""
    real = None if batch.slices is None and "image" not in batch.present else there(batch).flatten()
    features = among(encoder, images.flatten(0, 1), real, encoder.shape)
    return features.reshape(*images.shape[:2], *encoder.shape)


def labelled(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (B, S, 5), 0 where there is none, and which there are, (B, S, 5) bool: of a patient's own slices, not NaN.

    Losses are computed from the first and then masked by the second: a NaN, once in, would stay in the gradient.
    """
    known = there(batch)[..., None] & ~torch.isnan(batch.label)
    return torch.where(known, batch.label, torch.zeros_like(batch.label)), known


def sliced_bce(output: Output, batch: Batch, weight: torch.Tensor | None = None) -> PerSample:
    """Binary cross-entropy per patient, mean over labelled slices and types. `weight`: of positives, by type, (5,)."""
    label, known = labelled(batch)
    values = binary_cross_entropy_with_logits(output.logits, label, pos_weight=weight, reduction="none")
    return over_elements(values, known)


def turned(images: torch.Tensor, degrees: tuple[float, float], jitter: float) -> torch.Tensor:
    """Each image (B, S, C, H, W) turned by its own angle, either way, with contrast and brightness changed by up to `jitter`."""
    flat = images.flatten(0, 1)
    count, device = len(flat), images.device
    low, high = degrees
    angle = (low + (high - low) * torch.rand(count, device=device)) * math.pi / 180
    angle = torch.where(torch.rand(count, device=device) < 0.5, angle, -angle)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1).to(flat.dtype)
    grid = affine_grid(matrix, list(flat.shape), align_corners=False)
    rotated = grid_sample(flat, grid, padding_mode="border", align_corners=False)
    factor, shift = 1 + jitter * (2 * torch.rand(2, count, 1, 1, 1, device=device, dtype=flat.dtype) - 1)
    changed: torch.Tensor = (rotated - rotated.mean((1, 2, 3), keepdim=True)) * factor + rotated.mean(
        (1, 2, 3), keepdim=True
    ) * shift
    return changed.reshape(images.shape)
