"""Maps as files for local eyes: pictures of slices with the map over them, a contact sheet, and NIfTI in the patient's own space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from ich_client import study_images
from ich_client.cache import Cache
from ich_client.check_page import png
from ich_client.explanation import Look
from ich_client.images import Chosen, Summary
from ich_models import preprocess
from ich_models.errors import RunError
from ich_models.files import write_atomic
from ich_models.image_spec import BRAIN, CtVolume, ImageSpec, MrVolume
from ich_models.preprocess import whole_within
from ich_models.volume import Volume, onto
from ich_models.windows import window

SIZE: Final = (224, 224)
"""Pixels of a picture."""
MOST: Final = 24
"""Slices of a volume that are shown, at equal steps over those where the map is not 0."""
ACROSS: Final = 4
"""Pictures in a row of the contact sheet."""
STRENGTH: Final = 0.65
"""How much of a picture the map covers where it is 1."""

Grey = NDArray[np.float32]
Colours = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Space:
    """A patient's volume as it was acquired, and where the network's array lies in it (index to mm in RAS).

    `seen`: (D, H, W) on the volume's voxels, what was not set to 0 before the network saw it; None: all of it was seen.
    """

    volume: Volume
    affine: NDArray[np.float64]
    seen: Mask | None = None

    def back(self, values: Grey) -> Volume:
        """A map (D, H, W) on the network's array, on the voxels of the patient's own volume; 0 where nothing was seen."""
        moved = onto(Volume(values, self.affine, "intensity"), self.volume)
        return moved if self.seen is None else replace(moved, values=moved.values * self.seen)


def forget_half(summary: Summary) -> bool:
    """Drop from the cache what was made of images that themselves were pushed out of it, so that they are read anew."""
    with Cache(Path(summary.cache), inf) as store:
        lost = [one for one in summary.chosen if store.get(one.key) is None]
        for one in lost:
            store.drop(one.prepared)
    return bool(lost)


def space(summary: Summary, chosen: Chosen, spec: CtVolume | MrVolume) -> Space:
    """From the cache, where reading the patient has just put it. Raises RunError if the cache does not keep it."""
    with Cache(Path(summary.cache), inf) as store:
        entry = store.get(chosen.key)
        if entry is None:
            hint = "raise cache.limit in hospital.yaml"
            raise RunError("the cache does not keep the acquired image", where=summary.cache, hint=hint)
        arrays, _ = study_images.load_volume(entry)
    mask = arrays.get("mask")
    if isinstance(spec, CtVolume):
        volume = Volume(arrays["values"], arrays["affine"], "HU")
        return Space(volume, preprocess.ct_volume(volume, mask, spec).affine, mask)
    volumes: dict[str, Volume] = {
        name: Volume(arrays[name], arrays[f"{name}.affine"], "intensity") for name in spec.sequences if name in arrays
    }
    return Space(next(iter(volumes.values())), preprocess.mr_volume(volumes, mask, spec).affine, mask)


def write_nifti(path: Path, volume: Volume) -> None:
    """A volume as NIfTI, first axis to the patient's right: any viewer puts it over the images that it came from."""
    affine = volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.values.transpose(2, 1, 0)), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1, strip_shears=True)
    image.header.set_xyzt_units("mm")
    write_atomic(path, nibabel.Nifti1Image.to_bytes(image))


# --- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One picture of a map. `number`: of the slice or view; `name`: fit for a file."""

    name: str
    number: int
    colours: Colours


def frames(look: Look, given: NDArray[Any], spec: ImageSpec, where: Space | None) -> list[Frame]:
    """Pictures of one map. `given`: what the network sees of the patient, (C, D, H, W) or (S, C, H, W).

    A volume is shown as it was acquired, slices by their number there; single images as the network has them.
    """
    if where is not None:
        values = where.back(look.values).values
        levels = _levels(values)
        return [
            Frame(f"{look.name}-slice-{level:03d}", level, painted(*as_seen(where.volume, values, level), label=level))
            for level in levels
        ]
    channel = 1 if getattr(spec, "neighbours", False) else 0
    pairs = list(zip(look.shown, look.values, strict=True))
    return [
        Frame(f"{look.name}-slice-{at:03d}", at, painted(given[at, channel].astype(np.float32), one, label=at))
        for at, one in pairs
    ]


def _levels(values: Grey) -> list[int]:
    """Slices that are shown: at most `MOST`, at equal steps over those that the network's array reaches."""
    there = np.flatnonzero(values.any(axis=(1, 2)))
    if not len(there):
        there = np.arange(len(values))
    steps = np.linspace(0, len(there) - 1, min(MOST, len(there))).round().astype(int)
    return [int(there[step]) for step in steps]


def as_seen(volume: Volume, values: Grey, level: int) -> tuple[Grey, Grey]:
    """One slice of an image and of a map, as a radiologist sees them: the front at the top, the right side at the left."""
    own = volume.values[level]
    if volume.unit == "HU":
        grey = window(own, *BRAIN)
    else:
        low, high = (float(end) for end in np.percentile(volume.values, (1, 99)))
        grey = np.clip((own - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return np.ascontiguousarray(grey[::-1, ::-1]), np.ascontiguousarray(values[level][::-1, ::-1])


def painted(grey: Grey, values: Grey, outline: Mask | None = None, label: int | None = None) -> Colours:
    """(H, W, 3): an image in grey, a map (0 to 1) over it from red to yellow, and the edge of a mask in green."""
    base = whole_within(grey, SIZE)[:, :, None] * 255
    heat = whole_within(values.astype(np.float32), SIZE)
    colour = np.stack([np.full_like(heat, 255), 255 * heat, np.zeros_like(heat)], axis=2)
    share = (STRENGTH * np.sqrt(heat))[:, :, None]
    out = np.rint(base * (1 - share) + colour * share).astype(np.uint8)
    if outline is not None:
        inside = whole_within(outline.astype(np.float32), SIZE) > 0.5
        out[_edge(inside)] = (0, 220, 90)
    if label is not None:
        _write_number(out, label)
    return out


def _edge(inside: Mask) -> Mask:
    """The pixels of a mask that touch its outside."""
    wide = np.pad(inside, 1)
    core = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return np.asarray(inside & ~core)


def _write_number(picture: Colours, number: int) -> None:
    """Digits of 3 x 5 dots in the upper left corner."""
    left = 4
    for digit in str(number):
        dots = np.array([[int(dot) for dot in f"{int(row):03b}"] for row in _FONT[int(digit)]], bool)
        big = np.kron(dots, np.ones((3, 3), bool))
        picture[4 : 4 + big.shape[0], left : left + big.shape[1]][big] = 255
        left += 12


_FONT: Final = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71111", "75757", "75717")
"""Each digit's five rows from the top, as numbers of three bits."""


def sheet(blocks: Sequence[Sequence[Frame]]) -> Colours:
    """All pictures in one: a block for each map, side by side, white between them; `ACROSS` pictures in a block's row."""
    made = [_block([frame.colours for frame in block]) for block in blocks if block]
    high = max(one.shape[0] for one in made)
    parts: list[Colours] = []
    for one in made:
        filled = np.zeros((high, *one.shape[1:]), np.uint8)
        filled[: one.shape[0]] = one
        parts += [filled, np.full((high, 8, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def _block(pictures: Sequence[Colours]) -> Colours:
    across = min(ACROSS, len(pictures))
    empty = np.zeros_like(pictures[0])
    padded = [*pictures, *[empty] * (-len(pictures) % across)]
    rows = [np.concatenate(padded[start : start + across], axis=1) for start in range(0, len(padded), across)]
    return np.concatenate(rows, axis=0)


def write(folder: Path, frames_of: Sequence[Sequence[Frame]]) -> list[Path]:
    """The contact sheet and every picture by itself; their paths."""
    pictures = {"sheet.png": sheet(frames_of)} | {f"{one.name}.png": one.colours for own in frames_of for one in own}
    for name, colours in pictures.items():
        write_atomic(folder / name, png(colours))
    return [folder / name for name in pictures]
