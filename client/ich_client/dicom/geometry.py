"""Where slices lie, from their positions alone: order, distances, gaps, zones, tilt; and acquired slices to one regular grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ich_client.dicom.header import Header
from ich_client.dicom.reasons import Reason, Refusal
from ich_models.volume import Unit, Volume, oriented

Floats = NDArray[np.float64]

SAME_PLACE: Final = 0.01
"""mm: nearer slices are at one place."""

IN_PLANE: Final = 0.1
"""mm: slices that are shifted against each other by less are in line."""

OFF_LINE: Final = 0.5
"""mm: slices further from the line through all first pixels do not belong to one stack."""

ZONE: Final = 3
"""Equal distances in a row that make a zone of their own."""

MOST_MISSING: Final = 1
"""Slices in one gap that may be interpolated if the hospital says so."""


@dataclass(frozen=True)
class Frame:
    """The directions of a stack in LPS: `across` a row, `down` a column, `through` the slices; unit vectors, each (3,)."""

    across: Floats
    down: Floats
    through: Floats


@dataclass(frozen=True)
class Layout:
    """How slices lie behind each other. `order`: their numbers from first to last, one per place; `same`: the others there.

    `depths`: (n,) mm along `frame.through`; `shifts`: (n, 2) mm along a row and a column; both from the first slice.
    `step`: mm between the slices of the regular grid; `zones`: the distances of its zones; `missing`: slices to interpolate.
    """

    frame: Frame
    order: tuple[int, ...]
    same: tuple[tuple[int, ...], ...]
    origin: Floats
    depths: Floats
    shifts: Floats
    step: float
    zones: tuple[float, ...]
    missing: int

    @property
    def tilt(self) -> float:
        """Degrees between the normal of the slices and the way from slice to slice: gantry tilt, whatever a tag says."""
        line = self.shifts[-1] / self.depths[-1]
        return float(np.degrees(np.arctan(np.hypot(*line))))

    @property
    def sheared(self) -> bool:
        return bool((np.abs(self.shifts) > IN_PLANE).any())

    @property
    def regular(self) -> bool:
        """Whether each slice is at its place in a grid of equal steps."""
        return bool((np.abs(self.depths - self.grid) <= _tolerance(self.step)).all()) if self._fits else False

    @property
    def _fits(self) -> bool:
        return len(self.grid) == len(self.depths)

    @property
    def grid(self) -> Floats:
        """The depths of the regular grid: from the first slice to the last."""
        return np.linspace(0, self.depths[-1], round(self.depths[-1] / self.step) + 1)


def _tolerance(step: float) -> float:
    """1 %, or 0.1 mm; of thin slices never more than a tenth."""
    return max(0.01 * step, min(0.1, 0.1 * step))


def frame(header: Header) -> Frame:
    """The directions of an image. Raises Refusal(HEADER) without geometry, Refusal(ORIENTATION) if they are no right angle."""
    if header.orientation is None or header.position is None or header.spacing is None:
        lacking = "ImageOrientationPatient" if header.orientation is None else None
        lacking = lacking or ("ImagePositionPatient" if header.position is None else "PixelSpacing")
        raise Refusal(Reason.HEADER, f"no {lacking}", header.place)
    across, down = (np.array(direction) for direction in header.orientation)
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(across @ down) > 0.01:
        raise Refusal(Reason.ORIENTATION, "rows and columns are not at a right angle", header.place)
    through = np.cross(across, down)
    through /= np.linalg.norm(through)
    across = across / lengths[0]
    return Frame(across, np.cross(through, across), through)  # exactly at right angles


def layout(headers: Sequence[Header], missing: Literal["refuse", "interpolate"] = "refuse") -> Layout:
    """The layout of a stack. Raises Refusal: FEW_SLICES, POSITIONS, MISSING_SLICES, SPACING, ORIENTATION or HEADER."""
    axes = frame(headers[0])
    absent = next((header for header in headers if header.position is None), None)
    if absent is not None:
        raise Refusal(Reason.HEADER, "no ImagePositionPatient", absent.place)
    positions = np.array([header.position for header in headers])
    depths = positions @ axes.through
    order = [int(index) for index in np.argsort(depths, kind="stable")]
    places: list[list[int]] = []
    for index in order:
        if places and depths[index] - depths[places[-1][0]] <= SAME_PLACE:
            places[-1].append(index)
        else:
            places.append([index])
    if len(places) < 3:
        raise Refusal(Reason.FEW_SLICES, f"{len(places)} slice{'s' if len(places) > 1 else ''}")
    firsts = [place[0] for place in places]
    away = positions[firsts] - positions[firsts[0]]
    shifts = np.stack([away @ axes.across, away @ axes.down], axis=1)
    depths = away @ axes.through
    _in_line(depths, shifts)
    for place in places:
        if any(np.abs(positions[index] - positions[place[0]]).max() > IN_PLANE for index in place):
            raise Refusal(Reason.POSITIONS, "two slices at one depth are shifted against each other")
    zones, holes = _zones(depths)
    if holes and (missing == "refuse" or max(holes) > MOST_MISSING):
        most = f", {max(holes)} of them in one gap" if max(holes) > 1 else ""
        raise Refusal(Reason.MISSING_SLICES, f"{sum(holes)} missing between {len(places)}{most}")
    return Layout(
        axes,
        tuple(firsts),
        tuple(tuple(place[1:]) for place in places),
        positions[firsts[0]],
        depths,
        shifts,
        min(zones),
        zones,
        sum(holes),
    )


def _in_line(depths: Floats, shifts: Floats) -> None:
    """Refuse first pixels that lie on no line."""
    design = np.stack([depths, np.ones_like(depths)], axis=1)
    line, *_ = np.linalg.lstsq(design, shifts, rcond=None)
    off = float(np.abs(design @ line - shifts).max())
    if off > OFF_LINE:
        raise Refusal(Reason.POSITIONS, f"a slice lies {off:.1f} mm beside the line of the others")


def _zones(depths: Floats) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The distances of the zones of a stack, in order, and how many slices each hole lacks.

    A zone is a run of at least three equal distances (or all there are). What lies between zones may be one shorter
    step, where one ends and another begins. Any longer distance is a hole: k times its neighbour's lacks k - 1 slices.
    """
    step = float(depths[-1]) / (len(depths) - 1)
    if np.abs(depths - np.linspace(0, depths[-1], len(depths))).max() <= _tolerance(step):
        return (step,), ()
    gaps = np.diff(depths)
    runs: list[list[float]] = []
    for gap in gaps.tolist():
        if runs and abs(gap - runs[-1][0]) <= _tolerance(runs[-1][0]):
            runs[-1].append(gap)
        else:
            runs.append([gap])
    if len(runs) == 1:
        return (float(np.mean(runs[0])),), ()
    zones = [float(np.mean(run)) if len(run) >= ZONE else None for run in runs]
    if not any(zones):  # too short for zones: the smallest distance is the regular one
        zones = [float(np.mean(run)) if run[0] - gaps.min() <= _tolerance(float(gaps.min())) else None for run in runs]
    holes: list[int] = []
    for index, run in enumerate(runs):
        if zones[index] is not None:
            continue
        before = next((zone for zone in reversed(zones[:index]) if zone), None)
        after = next((zone for zone in zones[index + 1 :] if zone), None)
        alone = len(run) == 1 and all(zones[index - 1 : index] + zones[index + 1 : index + 2])
        for gap in run:
            holes += _hole(gap, before, after, alone)
    named = [zone for zone in zones if zone is not None]
    distinct = [next(group) for _, group in groupby(named, key=lambda zone: round(zone / _tolerance(zone)))]
    return tuple(distinct), tuple(holes)


def _hole(gap: float, before: float | None, after: float | None, alone: bool) -> list[int]:
    """What a distance outside of the zones is: a step from one zone to the next (nothing), or a hole (slices it lacks).

    `before`, `after`: the distances of the nearest zones; `alone`: nothing else stands between these two.
    """
    near = [zone for zone in (before, after) if zone is not None]
    for zone in near:
        lacks = round(gap / zone) - 1
        if lacks >= 1 and abs(gap - (lacks + 1) * zone) <= max(0.1, 0.02 * gap):
            return [lacks]
    changes = before is not None and after is not None and abs(before - after) > _tolerance(before)
    if changes and alone and gap <= max(near) + _tolerance(max(near)):
        return []
    raise Refusal(
        Reason.SPACING, f"a distance of {gap:.2f} mm where slices are {' or '.join(f'{z:.2f}' for z in near)} mm apart"
    )


# --- acquired slices to a regular grid ----------------------------------------------------------------------------------


def regular(values: NDArray[Any], spacing: tuple[float, float], place: Layout, unit: Unit, outside: int) -> Volume:
    """Acquired slices as a volume on a grid of right angles and equal steps, in RAS.

    `values`: (n, H, W) in the order of `place`; `spacing`: mm between rows and between columns. Slices are moved within
    their planes against the shear of a tilted gantry, on a canvas that holds all of them (`outside` where nothing was
    acquired), and interpolated along the depth where steps differ. A regular stack is passed through unchanged.
    """
    origin = place.origin
    if place.sheared:
        values, corner = _unshear(values, spacing, place.shifts, outside)
        origin = origin + corner[0] * place.frame.across + corner[1] * place.frame.down
    grid = place.grid
    if not place.regular:
        values = _between(values, place.depths, grid)
    affine = np.eye(4)
    affine[:3, 0] = place.frame.through * (grid[-1] / (len(grid) - 1))
    affine[:3, 1] = place.frame.down * spacing[0]
    affine[:3, 2] = place.frame.across * spacing[1]
    affine[:3, 3] = origin
    affine[:2] *= -1  # LPS to RAS
    return oriented(values, affine, unit)


def _unshear(
    values: NDArray[Any], spacing: tuple[float, float], shifts: Floats, outside: int
) -> tuple[NDArray[Any], Floats]:
    """Each slice at its own place on one canvas; where the canvas begins, in mm along a row and a column."""
    pixels = shifts[:, ::-1] / spacing  # rows, columns
    pixels = np.where(np.abs(pixels) < 1e-6, 0, pixels)
    low = np.floor(pixels.min(axis=0)).astype(int)
    size = np.ceil(pixels.max(axis=0)).astype(int) - low
    count, rows, columns = values.shape
    canvas = np.full((count, rows + size[0], columns + size[1]), outside, values.dtype)
    for target, source, (down, across) in zip(canvas, values, pixels - low, strict=True):
        moved = _shift(_shift(source, down % 1, 0, outside), across % 1, 1, outside)
        target[int(down) : int(down) + moved.shape[0], int(across) : int(across) + moved.shape[1]] = moved
    return canvas, np.array([low[1] * spacing[1], low[0] * spacing[0]])


def _shift(image: NDArray[Any], fraction: float, axis: int, outside: int) -> NDArray[Any]:
    """An image moved by less than a pixel, linear, one pixel larger; the same image if it is not moved."""
    if fraction < 1e-3:
        return image
    size = [length + (own == axis) for own, length in enumerate(image.shape)]
    moved = np.full(size, outside, np.float32)
    # Seen with the moved axis first: what stands at a place is shared by the pixel there and the one before it.
    along, source = np.moveaxis(moved, axis, 0), np.moveaxis(image, axis, 0)
    np.multiply(source, np.float32(1 - fraction), out=along[:-1])
    along[-1] = outside * (1 - fraction)
    along[1:] += source * np.float32(fraction)
    along[0] += outside * fraction
    return _back(moved, image.dtype)


def _between(values: NDArray[Any], depths: Floats, grid: Floats) -> NDArray[Any]:
    """Slices at the depths of the grid, linear between the two acquired ones next to each."""
    above = np.searchsorted(depths, grid, side="left").clip(1, len(depths) - 1)
    weights = ((grid - depths[above - 1]) / (depths[above] - depths[above - 1])).clip(0, 1)
    out = np.empty((len(grid), *values.shape[1:]), values.dtype)
    for target, upper, weight in zip(out, above, weights.astype(np.float32), strict=True):
        target[...] = _back(values[upper - 1] * (1 - weight) + values[upper] * weight, values.dtype)
    return out


def _back(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    return values.astype(dtype, copy=False) if dtype.kind == "f" else np.rint(values, out=values).astype(dtype)
