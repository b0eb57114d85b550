"""A volume: one image in space as numbers with their geometry in mm, its orientation, and its resampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Unit = Literal["HU", "intensity"]
"""Hounsfield units (CT), or intensities without a scale of their own (MR)."""

AIR = -1024
"""What lies outside of a CT, in HU: the lowest value that is kept."""

Spacing = tuple[float | None, float | None, float | None]
"""mm along D, H and W; None keeps what was acquired."""


@dataclass(frozen=True)
class Volume:
    """An image in space. `values`: (D, H, W), int16 HU or float32 intensity, D towards the crown (S), H forward (A), W right (R).

    `affine`: (4, 4) float64, takes an index (d, h, w, 1) to the centre of its voxel in mm, in RAS coordinates (x to the
    patient's right, y forward, z up). The axes are the acquired ones, so they may be some degrees off the patient's.
    """

    values: NDArray[Any]
    affine: NDArray[np.float64]
    unit: Unit

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or 0 in self.values.shape or self.affine.shape != (4, 4):
            raise ValueError(f"values {self.values.shape}, affine {self.affine.shape}")
        if not np.isfinite(self.affine).all() or abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise ValueError(f"not the geometry of a volume: {self.affine.tolist()}")

    @property
    def spacing(self) -> NDArray[np.float64]:
        """(3,) mm between voxels along D, H and W."""
        lengths: NDArray[np.float64] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return lengths

    @property
    def millilitres(self) -> float:
        """Of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def outside(self) -> int:
        """The value of what was not acquired."""
        return AIR if self.unit == "HU" else 0

    def world(self, indices: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) indices (d, h, w), whole or not, as (..., 3) points in mm (RAS)."""
        return np.asarray(indices, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def indices(self, points: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) points in mm (RAS) as (..., 3) indices (d, h, w), not rounded."""
        inverse = np.linalg.inv(self.affine[:3, :3])
        return (np.asarray(points, np.float64) - self.affine[:3, 3]) @ inverse.T


def oriented(values: NDArray[Any], affine: NDArray[np.float64], unit: Unit) -> Volume:
    """An array with any order and direction of axes as a Volume: axes swapped and reversed, no value changed.

    `values`: (I, J, K); `affine`: (4, 4), index (i, j, k, 1) to mm in RAS. Each axis goes to the direction of the patient
    that it is closest to, all three taken together.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[2 - k, axis]) for k, axis in enumerate(axes)))
    new, moved = np.eye(4), values.transpose(order)
    new[:3, :3], new[:3, 3] = affine[:3, order], affine[:3, 3]
    for axis in range(3):
        if new[2 - axis, axis] < 0:
            moved = np.flip(moved, axis)
            new[:3, 3] += new[:3, axis] * (values.shape[order[axis]] - 1)
            new[:3, axis] *= -1
    return Volume(np.ascontiguousarray(moved), new, unit)


def resample(volume: Volume, spacing: Spacing, nearest: bool = False) -> Volume:
    """The same space with other distances between voxels, linear between them; (None, 0.5, 0.5) keeps the slices.

    Each axis keeps its outer faces to within half a new voxel. Along axes that become coarser, values are smoothed first
    (Gaussian, sigma = (factor - 1) / 2 voxels), so that thin structures fade rather than alias. `nearest`: for masks.
    """
    old = volume.spacing
    wanted = np.array([mm or float(own) for mm, own in zip(spacing, old, strict=True)])
    if not (wanted > 0).all():
        raise ValueError(f"spacing {spacing}")
    shape = np.maximum(1, np.round(np.array(volume.values.shape) * old / wanted)).astype(int)
    factor = np.where(np.isclose(wanted, old), 1.0, wanted / old)
    if (factor == 1).all():
        return volume
    # The middle of the volume stays where it is.
    first = (np.array(volume.values.shape) - 1) / 2 - (shape - 1) / 2 * factor
    affine = volume.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] = volume.world(first)
    # Half a voxel beyond the outermost centres still belongs to the volume: its edge value, not what lies outside.
    moved = ndimage.affine_transform(
        _smoothed(volume.values, np.ones(3) if nearest else factor),
        factor,
        first,
        tuple(shape),
        order=0 if nearest else 1,
        mode="nearest",
    )
    return Volume(_as(moved, volume.values.dtype), affine, volume.unit)


def onto(volume: Volume, grid: Volume, nearest: bool = False) -> Volume:
    """The volume on the voxels of `grid`, linear between its own; what it does not cover takes the value of outside.

    Where the grid is coarser, values are smoothed first as in `resample`. `nearest`: for masks.
    """
    if volume.values.shape == grid.values.shape and np.allclose(volume.affine, grid.affine, atol=1e-3):
        return Volume(volume.values, grid.affine, volume.unit)
    across = np.linalg.inv(volume.affine) @ grid.affine
    # One step along any axis of the grid, counted in own voxels.
    steps = np.abs(across[:3, :3]).max(axis=1)
    moved = ndimage.affine_transform(
        _smoothed(volume.values, np.ones(3) if nearest else steps),
        across[:3, :3],
        across[:3, 3],
        grid.values.shape,
        order=0 if nearest else 1,
        mode="grid-constant",  # "constant" drops edge voxels to rounding
        cval=volume.outside,
    )
    return Volume(_as(moved, volume.values.dtype), grid.affine, volume.unit)


def _smoothed(values: NDArray[Any], factor: NDArray[np.float64]) -> NDArray[np.float32]:
    """Smoothed along the axes that become coarser: Gaussian, sigma = (factor - 1) / 2 voxels."""
    smooth = values.astype(np.float32)
    return (
        ndimage.gaussian_filter(smooth, np.maximum(0, (factor - 1) / 2), mode="nearest")
        if (factor > 1.01).any()
        else smooth
    )


def fit(values: NDArray[Any], shape: Sequence[int], outside: float) -> NDArray[Any]:
    """Cut or fill an array on both sides of each axis so that it has this shape and the same middle."""
    sizes = list(zip(values.shape, shape, strict=True))
    cut = tuple(
        slice((have - want) // 2, (have - want) // 2 + want) if have > want else slice(None) for have, want in sizes
    )
    fill = [((want - have) // 2, want - have - (want - have) // 2) if want > have else (0, 0) for have, want in sizes]
    return np.pad(values[cut], fill, constant_values=outside)


def _as(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Interpolated values in the type of the original ones, whole numbers rounded."""
    return values.astype(dtype) if dtype.kind == "f" else np.rint(values).astype(dtype)
