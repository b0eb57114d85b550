"""A series to acquired slices, and acquired slices to a volume: read once, checked, with a record of what was done."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ich_client.dicom import geometry
from ich_client.dicom.geometry import Layout
from ich_client.dicom.pixels import MOST_VOXELS, physical, scale, stored
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.series import Series
from ich_models.volume import AIR, Unit, Volume

Missing = Literal["refuse", "interpolate"]

TISSUE: Final = (-200, 300)
"""HU among which the most frequent value is looked for ..."""
BRAIN: Final = (0, 80)
"""... and where a head has it."""
AIR_WITHIN: Final = (-1024, -850)
"""HU that the middle of all air may have."""
BEYOND: Final = 15000
"""HU that hardly anything has, metal included: values of a wrong type have them."""


@dataclass(frozen=True)
class Stack:
    """The acquired slices of a series, neither resampled nor un-sheared, by position. For networks that see slices.

    `values`: (n, H, W) int16 HU or float32 intensity, rows and columns as acquired; `instances`: the SOPInstanceUIDs of
    each slice, several where a duplicate was dropped; `spacing`: mm between rows and between columns; `notes`: what was
    done, for people.
    """

    values: NDArray[Any]
    unit: Unit
    layout: Layout
    spacing: tuple[float, float]
    instances: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def volume(self) -> Volume:
        """The same on one regular grid in RAS: un-sheared, its zones at the finest one's distance."""
        outside = AIR if self.unit == "HU" else 0
        return geometry.regular(self.values, self.spacing, self.layout, self.unit, outside)

    def sample(self, volume: Volume, nearest: bool = False) -> NDArray[Any]:
        """Another volume (a brain mask, a lesion) at the acquired voxels: (n, H, W) of its type, 0 where it does not reach.

        Linear between its voxels; `nearest`: for masks.
        """
        across, down = (self.layout.frame.across, self.layout.frame.down)
        inverse = np.linalg.inv(volume.affine)
        ras = np.diag([-1.0, -1.0, 1.0])
        steps = np.stack([down * self.spacing[0], across * self.spacing[1]], axis=1)
        plane = inverse[:3, :3] @ ras @ steps  # (3, 2): voxels of the volume per row and per column
        height, width = self.values.shape[1:]
        grid = plane[:, :1, None] * np.arange(height)[:, None] + plane[:, 1:, None] * np.arange(width)
        corners = self.layout.origin + np.outer(self.layout.depths, self.layout.frame.through)
        corners += self.layout.shifts @ np.stack([across, down])
        out = np.empty(self.values.shape, volume.values.dtype)
        for one, corner in zip(out, corners @ (inverse[:3, :3] @ ras).T + inverse[:3, 3], strict=True):
            # A hair's breadth outside of the last voxel is still on it.
            ndimage.map_coordinates(
                volume.values, grid + corner[:, None, None], one, order=0 if nearest else 1, mode="grid-constant"
            )
        return out

    def labelled(self, labels: dict[str, Any]) -> tuple[list[Any], list[str]]:
        """Each slice's label by SOPInstanceUID (None: it has none), and the labels of these images that do not agree.

        A dropped duplicate's label stands for its slice.
        """
        found, torn = [], []
        for names in self.instances:
            own = [labels[name] for name in names if name in labels]
            found.append(own[0] if own else None)
            torn += [name for name in names if name in labels and labels[name] != own[0]]
        return found, torn


def read(series: Series, missing: Missing = "refuse") -> Stack:
    """The slices of a CT or MR series. Raises Refusal with a named reason."""
    try:
        return _read(series, missing)
    except Refusal as refusal:
        raise refusal if refusal.where else refusal.at(series.place) from None


def _read(series: Series, missing: Missing) -> Stack:
    first = series.first
    for header in series.headers:
        scale(header)  # before any pixel is decoded
    layout = geometry.layout(series.headers, missing)
    assert first.spacing is not None, "geometry.layout refuses images without"
    if len(layout.order) * first.rows * first.columns > MOST_VOXELS:
        raise Refusal(Reason.TOO_LARGE, f"{len(layout.order)} x {first.rows} x {first.columns} voxels")
    unit: Unit = "HU" if first.modality == "CT" else "intensity"
    values = np.empty((len(layout.order), first.rows, first.columns), np.int16 if unit == "HU" else np.float32)
    kept = [series.headers[index] for index in layout.order]
    # Multi-frame files are decoded whole, so their frames are taken file by file.
    by_file = sorted(range(len(kept)), key=lambda slot: (kept[slot].path, slot))
    for slot, image in zip(by_file, stored([kept[slot] for slot in by_file]), strict=True):
        physical(image, kept[slot], values[slot])
    dropped = _duplicates(series, layout, values)
    if values.min() == values.max():
        raise Refusal(Reason.BLANK, f"every pixel is {values.min():g}")
    if unit == "HU":
        check_hounsfield(values)
    instances = tuple(
        (header.instance, *(series.headers[index].instance for index in same))
        for header, same in zip(kept, layout.same, strict=True)
    )
    return Stack(values, unit, layout, first.spacing, instances, tuple(_notes(layout, dropped)))


def _duplicates(series: Series, layout: Layout, values: NDArray[Any]) -> int:
    """How many slices lie where another does, with the same pixels. Raises Refusal if they differ."""
    again = [(slot, index) for slot, same in enumerate(layout.same) for index in same]
    image = np.empty_like(values[0])
    for (slot, _), header, pixels in zip(
        again,
        (series.headers[index] for _, index in again),
        stored([series.headers[index] for _, index in again]),
        strict=True,
    ):
        physical(pixels, header, image)
        if not np.array_equal(image, values[slot]):
            everywhere = all(layout.same)
            times = 1 + min(map(len, layout.same))
            if everywhere:
                raise Refusal(Reason.FOUR_D, f"{times} different images at each of {len(layout.order)} places")
            raise Refusal(Reason.DUPLICATES, "two different images at one place", header.place)
    return len(again)


def check_hounsfield(values: NDArray[np.int16]) -> None:
    """Refuse values (n, H, W) in which air and soft tissue do not lie where Hounsfield units have them."""
    some = values[:, ::8, ::8] if values[0].size > 2**16 else values  # enough of them to judge
    if (some > BEYOND).mean() > 0.01:
        raise Refusal(Reason.HU_RANGE, f"values above {BEYOND} HU")
    air = some[(some < -500) & (some > AIR)]
    if air.size > 0.02 * some.size and not AIR_WITHIN[0] <= np.median(air) <= AIR_WITHIN[1]:
        raise Refusal(Reason.HU_RANGE, f"air at {np.median(air):.0f} HU")
    if (some < -500).mean() < 0.002:  # even within a narrow field of view there are sinuses
        raise Refusal(Reason.HU_RANGE, "no air")
    tissue = some[(some >= TISSUE[0]) & (some < TISSUE[1])]
    if tissue.size < 0.01 * some.size:
        raise Refusal(Reason.HU_RANGE, f"nearly nothing from {TISSUE[0]} to {TISSUE[1]} HU")
    counts = np.bincount((tissue.astype(np.int32) - TISSUE[0]) // 10)
    most = int(np.argmax(counts)) * 10 + TISSUE[0] + 5
    if not BRAIN[0] <= most <= BRAIN[1]:
        raise Refusal(Reason.HU_RANGE, f"most of the soft tissue at {most} HU")


def _notes(layout: Layout, dropped: int) -> list[str]:
    notes = []
    if dropped:
        notes.append(f"{dropped} duplicate{'s' if dropped > 1 else ''} dropped")
    if layout.sheared:
        notes.append(f"tilt of {layout.tilt:.1f} degrees un-sheared")
    if len(layout.zones) > 1:
        notes.append(f"zones of {', '.join(f'{zone:.2f}' for zone in layout.zones)} mm put on one grid")
    if layout.missing:
        notes.append(f"{layout.missing} missing slice{'s' if layout.missing > 1 else ''} interpolated")
    return notes
