"""Where the brain is in a head CT, without a learned network: within the skull by Hounsfield units, checked, else the head."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ich_models.volume import Volume, onto, resample

Mask = NDArray[np.bool_]

BONE: Final = 150.0
"""HU above which is skull: more than fresh blood (up to 100) has."""
TISSUE: Final = (0.0, 100.0)
"""HU of brain, fluid and blood."""
HEAD: Final = -200.0
"""HU above which is patient, not air."""

ERODE: Final = 3.0
"""mm: what parts brain from the tissue that touches it through an opening of the skull."""
DILATE: Final = 3.0
"""mm: what gives it back, so that blood between brain and skull stays within."""
CLOSE: Final = 8.0
"""mm: openings of the skull up to twice as wide are closed."""
LEAST_PART: Final = 10.0
"""mL: smaller pieces within the skull are no brain; larger ones all are (a temporal lobe may stand apart)."""

VOLUME: Final = (1000.0, 1800.0)
"""mL of an adult's brain with its fluid."""
SYMMETRY: Final = 0.75
"""Least smaller half over larger half."""
FILLED: Final = 0.85
"""Least share of the mask within the HU of tissue."""


@dataclass(frozen=True)
class Brain:
    """`mask`: (D, H, W) bool on the volume's grid; `region`: what it holds; `problem`: why it is only the head, else empty."""

    mask: Mask
    region: Literal["brain", "head"]
    problem: str
    millilitres: float


def head(volume: Volume) -> Brain:
    """The whole head of a CT, bone included; without the head rest."""
    coarse = _coarse(volume)
    mask = _head(coarse)
    return Brain(_back(mask, coarse, volume), "head", "", float(mask.sum()) * coarse.millilitres)


def brain(volume: Volume) -> Brain:
    """The brain of a head CT in HU (with all that is within the skull), or the whole head where the result is implausible."""
    if volume.unit != "HU":
        raise ValueError("the brain is found by Hounsfield units; of MR the hospital gives a mask")
    coarse = _coarse(volume)
    found = _within_skull(coarse)
    problem = _implausible(found, coarse)
    mask = found if not problem else _head(coarse)
    whole = _back(mask, coarse, volume)
    return Brain(whole, "head" if problem else "brain", problem, float(found.sum()) * coarse.millilitres)


def judged(mask: Mask, volume: Volume) -> Brain:
    """A mask from elsewhere (D, H, W) of a head CT, held to the same limits as our own; `problem` says which it breaks."""
    coarse = _coarse(volume)
    there = onto(Volume(mask.astype(np.int16), volume.affine, "intensity"), coarse, nearest=True).values > 0
    problem = _implausible(there, coarse) if there.any() else "nothing was found"
    return Brain(mask, "brain", problem, float(there.sum()) * coarse.millilitres)


def _coarse(volume: Volume) -> Volume:
    """On a grid that is fine enough to find a brain on."""
    depth, high, wide = volume.spacing
    return resample(volume, (max(float(depth), 2.5), max(float(high), 1.0), max(float(wide), 1.0)))


def _back(mask: Mask, coarse: Volume, volume: Volume) -> Mask:
    """A mask on the coarse grid, on the volume's own."""
    return np.asarray(onto(Volume(mask.astype(np.int16), coarse.affine, "intensity"), volume, nearest=True).values > 0)


def _within_skull(coarse: Volume) -> Mask:
    """All large pieces of tissue within the closed skull."""
    mask = np.zeros(coarse.values.shape, bool)
    everywhere = coarse.values > BONE
    if not everywhere.any():
        return mask
    box = tuple(slice(int(ends.min()), int(ends.max()) + 1) for ends in np.nonzero(everywhere))
    values, bone, spacing = coarse.values[box], everywhere[box], coarse.spacing
    # A closing beyond the ends of the array needs something there: end slices go on above and below.
    up, *around = (int(np.ceil(CLOSE / mm)) + 1 for mm in spacing)
    padded = np.pad(bone, [(up, up), (0, 0), (0, 0)], mode="edge")
    padded = np.pad(padded, [(0, 0), *((size, size) for size in around)])
    closed = shrunk(_dilate(padded, CLOSE, spacing), CLOSE, spacing)
    closed = closed[up:-up, around[0] : -around[0], around[1] : -around[1]]
    inside = np.stack([ndimage.binary_fill_holes(one) for one in closed]) & ~bone
    tissue = inside & (values >= TISSUE[0]) & (values <= TISSUE[1])
    core = _large(shrunk(tissue, ERODE, spacing), LEAST_PART / coarse.millilitres)
    if core.any():
        grown = _dilate(core, DILATE, spacing) & inside
        # What the brain encloses belongs to it, calcified or not.
        mask[box] = np.stack([ndimage.binary_fill_holes(one) for one in grown])
    return mask


def _implausible(mask: Mask, coarse: Volume) -> str:
    """What speaks against a mask, or nothing."""
    amount = float(mask.sum()) * coarse.millilitres
    if not VOLUME[0] <= amount <= VOLUME[1]:
        return f"{amount:.0f} mL where a brain has {VOLUME[0]:.0f} to {VOLUME[1]:.0f}"
    middle = float(np.mean(np.nonzero(_head(coarse))[2]))
    columns = np.arange(mask.shape[2]) - middle
    halves = sorted([int(mask[:, :, columns < 0].sum()), int(mask[:, :, columns >= 0].sum())])
    if halves[0] < SYMMETRY * halves[1]:
        return f"its halves are as {halves[0] / halves[1]:.2f} to 1"
    filled = float(((coarse.values >= TISSUE[0]) & (coarse.values <= TISSUE[1]))[mask].mean())
    if filled < FILLED:
        return f"{filled:.0%} of it have the HU of tissue"
    return ""


def _head(coarse: Volume) -> Mask:
    """The largest piece that is not air, its hollows filled slice by slice; the head rest is parted from it."""
    solid = ndimage.binary_opening(coarse.values > HEAD, np.ones((1, 3, 3)), iterations=2)
    labels, count = ndimage.label(solid)
    if not count:
        return np.ones(coarse.values.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.stack([ndimage.binary_fill_holes(one) for one in labels == sizes.argmax()])


def _large(mask: Mask, least: float) -> Mask:
    """The connected pieces of at least so many voxels."""
    labels, _ = ndimage.label(mask)
    keep = np.bincount(labels.ravel()) >= least
    keep[0] = False
    return np.asarray(keep[labels])


def _dilate(mask: Mask, radius: float, spacing: NDArray[np.float64]) -> Mask:
    """Grown by a ball in mm."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius) if mask.any() else mask


def shrunk(mask: Mask, radius: float, spacing: NDArray[np.float64]) -> Mask:
    """Shrunk by a ball in mm; the edges of the array are no edges of the mask."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing) > radius) if not mask.all() else mask
