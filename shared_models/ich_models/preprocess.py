"""Images to the arrays that networks see, as `modalities.image` says: the same numbers at a hospital, in use and in an export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ich_models.brain import shrunk
from ich_models.image_spec import CtSlices, CtVolume, MrVolume, Views
from ich_models.volume import Volume, onto, resample
from ich_models.windows import neighbours, windows, z_scores

VERSION: Final = 1
"""Changes with any change of a number that comes out: whatever was prepared by another version is made anew."""

Half = NDArray[np.float16]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Slices:
    """Single images of one patient. `values`: (S, C, H, W) 0 to 1; `kept`: their numbers among those that were given."""

    values: Half
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """One volume. `values`: (C, D, H, W); `seen`: the share of what was to be seen that lies within the array.

    `affine`: (4, 4) float64, an index (d, h, w, 1) of the array to mm in RAS, as `Volume` has it: the way back.
    """

    values: Half
    seen: float
    affine: NDArray[np.float64]


# --- volumes ----------------------------------------------------------------------------------------------------------


def ct_volume(volume: Volume, mask: Mask | None, spec: CtVolume) -> Prepared:
    """A head CT: windows to 0..1, 0 outside of the mask. `mask`: (D, H, W) on the volume's grid; None: everything is seen.

    The middle of the mask's bounding box (to half a voxel) is the middle of the array. The rim is taken off on the volume's
    own grid: in the array a voxel may be wider than it.
    """
    if mask is not None and spec.rim:
        mask = shrunk(mask, spec.rim, volume.spacing)
    resampled = resample(volume, spec.spacing)
    inside = np.ones(resampled.values.shape, bool) if mask is None else _mask_on(mask, volume, spec.spacing)
    centre = _centre(inside)
    values = windows(_around(resampled.values, centre, spec.size, resampled.outside), spec.windows)
    within = _around(inside, centre, spec.size, False)
    affine = _placed(resampled, centre, spec.size)
    return Prepared((values * within).astype(np.float16), _share(within, inside), affine)


def mr_volume(volumes: Mapping[str, Volume], mask: Mask | None, spec: MrVolume) -> Prepared:
    """An MR study: its sequences on the grid of the first that it has, each with mean 0 and deviation 1 within the mask.

    `mask`: (D, H, W) on that sequence's grid; None: what is not 0, for each sequence by itself. A sequence that the study
    lacks is 0 everywhere. Raises ValueError without any.
    """
    there = [name for name in spec.sequences if name in volumes]
    if not there:
        raise ValueError(f"none of {', '.join(spec.sequences)}")
    first = volumes[there[0]]
    grid = resample(first, spec.spacing)
    on_grid = {there[0]: grid} | {name: onto(volumes[name], grid) for name in there[1:]}
    own = None if mask is None else _mask_on(mask, first, spec.spacing)
    inside: Mask = np.any([one.values != 0 for one in on_grid.values()], axis=0) if own is None else own
    centre = _centre(inside)
    values = np.zeros((spec.channels, *spec.size), np.float16)
    for channel, name in enumerate(spec.sequences):
        if name in on_grid:
            scaled = z_scores(on_grid[name].values, own)
            values[channel] = _around(scaled, centre, spec.size, 0)
    seen = _share(_around(inside, centre, spec.size, False), inside)
    return Prepared(values, seen, _placed(grid, centre, spec.size))


def _mask_on(mask: Mask, volume: Volume, spacing: tuple[float, float, float]) -> Mask:
    moved = resample(Volume(mask.astype(np.int16), volume.affine, "intensity"), spacing, nearest=True)
    return np.asarray(moved.values > 0)


def _centre(inside: Mask) -> tuple[int, ...]:
    """Twice the middle of the bounding box, in voxels, so that it is whole; of everything, if nothing is inside."""
    if not inside.any():
        return tuple(size - 1 for size in inside.shape)
    ends = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(int(where[0] + where[-1]) for where in ends)


def _around(values: NDArray[Any], twice: Sequence[int], size: Sequence[int], outside: float) -> NDArray[Any]:
    """The box of this size around a middle; what lies beyond the array takes the value of outside."""
    out = np.full(size, outside, values.dtype)
    source, target = [], []
    for have, want, double in zip(values.shape, size, twice, strict=True):
        first = _first(double, want)
        low, high = max(first, 0), min(first + want, have)
        source.append(slice(low, max(low, high)))
        target.append(slice(low - first, max(low, high) - first))
    out[tuple(target)] = values[tuple(source)]
    return out


def _first(double: int, want: int) -> int:
    """Where a box of `want` voxels begins. An even box has its middle between two voxels."""
    return (double + 1) // 2 - want // 2


def _placed(volume: Volume, twice: Sequence[int], size: Sequence[int]) -> NDArray[np.float64]:
    """The affine of what `_around` makes of a volume."""
    affine = volume.affine.copy()
    affine[:3, 3] = volume.world([_first(double, want) for double, want in zip(twice, size, strict=True)])
    return affine


def _share(within: Mask, inside: Mask) -> float:
    whole = int(inside.sum())
    return float(within.sum()) / whole if whole else 1.0


# --- single images ----------------------------------------------------------------------------------------------------


def ct_slices(values: NDArray[np.int16], labelled: Mask, spec: CtSlices) -> Slices:
    """The acquired slices of a head CT. `values`: (n, H, W) HU from neck to crown; `labelled`: (n,), which have a label.

    Of more than `spec.most`, slices at equal steps are taken: of those with labels first, the rest of the others.
    Neighbours are those of the whole series.
    """
    kept = chosen(labelled, spec.most)
    out = np.zeros((len(kept), spec.channels, *spec.size), np.float16)
    around = np.arange(len(values))[:, None] if not spec.neighbours else neighbours(np.arange(len(values)), 1)
    for place, index in enumerate(kept):
        stack = values[around[index]]
        seen = windows(stack, spec.windows).reshape(-1, *stack.shape[1:])  # window by window
        if spec.scale == "slice":
            seen = np.stack([_stretched(one) for one in seen])
        if spec.crop:
            seen = _cropped(seen)
        for channel, one in enumerate(seen):
            out[place, channel] = whole_within(one, spec.size)
    return Slices(out, kept)


def chosen(labelled: Mask, most: int) -> tuple[int, ...]:
    """Which of n slices are taken, in their order, where not more than `most` can be."""
    first, others = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    if len(labelled) <= most:
        return tuple(range(len(labelled)))
    first = _steps(first, most)
    return tuple(map(int, sorted([*first, *_steps(others, most - len(first))])))


def _steps(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of them, at steps as equal as whole numbers let them be, the ends left out alike."""
    if len(numbers) <= most:
        return numbers
    return numbers[((2 * np.arange(most) + 1) * len(numbers)) // (2 * most)]


def _stretched(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """From its own least to its own largest value; one that is all alike becomes 0."""
    low, high = float(image.min()), float(image.max())
    return (image - np.float32(low)) / np.float32(high - low) if high > low else np.zeros_like(image)


def _cropped(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, H, W) without the rows and columns at the edges that are black in every channel."""
    bright: Mask = np.any(images > 0, axis=0)
    if not bright.any():
        return images
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return images[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def views(images: Sequence[NDArray[np.float32]], spec: Views) -> Slices:
    """Radiographs (H, W), 0 to 1, each of its own size: the first `spec.most` of them, whole within the array."""
    few = images[: spec.most]
    out = np.zeros((len(few), spec.channels, *spec.size), np.float16)
    for place, image in enumerate(few):
        out[place] = whole_within(image, spec.size)
    return Slices(out, tuple(range(len(few))))


def whole_within(image: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """An image scaled, its proportions kept, until it just fits; what is left over at two sides is 0."""
    factor = min(want / have for want, have in zip(size, image.shape, strict=True))
    high, wide = (max(1, min(want, round(have * factor))) for want, have in zip(size, image.shape, strict=True))
    scaled = _weights(image.shape[0], high) @ image
    scaled = (_weights(image.shape[1], wide) @ scaled.T).T
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    out = np.zeros(size, np.float32)
    out[top : top + high, left : left + wide] = scaled.clip(0, 1)
    return out


def _weights(have: int, want: int) -> sparse.csr_array:
    """(want, have): linear between pixels, and over all of them that a new one covers where it is larger (a triangle)."""
    scale = have / want
    reach = max(scale, 1.0)
    middles = (np.arange(want) + 0.5) * scale
    distance = np.abs(np.arange(have) + 0.5 - middles[:, None]) / reach
    weights = np.maximum(0, 1 - distance)
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
