"""A head that nobody has: what lies at each point of it, as level sets in millimetres, and lesions of exact volume in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

INNER: Final = (65.0, 82.0, 66.0)
"""mm: half-axes of the cavity of the skull, left to right, back to front, base to crown: 1470 mL."""

BLOOD: Final = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
"""Kinds of bleeding, in the order of `ich_models.networks.slices.TYPES` (not imported: it would load torch)."""

PLACES: Final[Mapping[str, tuple[float, float, float]]] = {
    "basal ganglia": (25, 5, 2),
    "thalamus": (13, -12, 4),
    "frontal lobe": (28, 40, 22),
    "parietal lobe": (33, -34, 28),
    "temporal lobe": (42, -4, -16),
    "occipital lobe": (24, -56, 6),
    "cerebellum": (20, -44, -34),
    "brainstem": (2, -18, -34),
}
"""Where a haematoma's middle lies, in mm right of, in front of and above the middle of the head; the left side mirrors it."""

INFRATENTORIAL: Final = ("cerebellum", "brainstem", "cerebellar artery")
"""Places below the tent of the cerebellum: nothing there pushes the midline."""

TERRITORIES: Final[Mapping[str, tuple[float, float, float]]] = {
    "middle cerebral artery": (42, 8, 8),
    "anterior cerebral artery": (9, 44, 26),
    "posterior cerebral artery": (20, -58, 6),
    "cerebellar artery": (24, -46, -34),
}
"""Where an infarct's middle lies, like PLACES."""


class Tissue(IntEnum):
    """What lies at a point. Numbers are indices of the tables in `appearance`."""

    AIR = 0
    SCALP = 1
    SKULL = 2
    FLUID = 3
    CORTEX = 4
    WHITE = 5
    NUCLEI = 6
    FALX = 7
    CALCIUM = 8
    OEDEMA = 9
    INFARCT = 10
    BLOOD = 11
    """The first kind of bleeding; the others follow in their order."""


@dataclass(frozen=True)
class Person:
    """One head. `atrophy`: 0 young to 1 old: fluid in place of tissue; `seed`: of its texture and its small differences."""

    age: float
    seed: tuple[int, ...]

    @property
    def atrophy(self) -> float:
        """Share of the loss of tissue that the oldest have."""
        return float(np.clip((self.age - 40) / 50 + self.rng(1).normal(0, 0.1), 0, 1.2))

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose: what is drawn for one changes nothing of another."""
        return np.random.default_rng([*self.seed, purpose])

    @property
    def pose(self) -> NDArray[np.float64]:
        """(4, 4): mm in the scanner (RAS) to mm in the head, which lies turned, shifted and larger or smaller than the next."""
        rng = self.rng(2)
        nod, tip, turn = np.radians(rng.normal(0, (2.0, 1.5, 4.0)))
        size = float(np.clip(rng.normal(1, 0.03), 0.94, 1.06))
        about_x = [[1, 0, 0], [0, math.cos(nod), -math.sin(nod)], [0, math.sin(nod), math.cos(nod)]]
        about_y = [[math.cos(tip), 0, math.sin(tip)], [0, 1, 0], [-math.sin(tip), 0, math.cos(tip)]]
        about_z = [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]]
        pose = np.eye(4)
        pose[:3, :3] = np.array(about_x) @ np.array(about_y) @ np.array(about_z) / size
        pose[:3, 3] = rng.normal(0, (3.0, 3.0, 2.0))
        return pose


@dataclass(frozen=True)
class Lesion:
    """What is not as it should be in a head: `kind` is one of BLOOD, or `infarct`; `place`: of PLACES or TERRITORIES.

    `side`: 1 right, -1 left. `millilitres`: of the lesion itself. `oedema`: mL of swelling around it for each of its own.
    """

    kind: str
    millilitres: float
    place: str = ""
    side: int = 1
    oedema: float = 0.0


@dataclass(frozen=True)
class Anatomy:
    """What a scan found. `tissue`: (D, H, W) uint8, values of Tissue; `texture`: (D, H, W) float32 around 0, standard deviation
    about 0.4; `cavity`: what lies within the skull; `edge`: 1 at the inner face of the skull, 0 in the middle of the head."""

    tissue: NDArray[np.uint8]
    texture: Floats
    cavity: Mask
    edge: Floats

    def lesion(self, kind: str) -> Mask:
        """Where a lesion of this kind is: one of BLOOD, `oedema` or `infarct`."""
        named = {"oedema": Tissue.OEDEMA, "infarct": Tissue.INFARCT}
        return np.asarray(self.tissue == (named[kind] if kind in named else Tissue.BLOOD + BLOOD.index(kind)))


def texture(person: Person, points: Sequence[Floats], size: float, purpose: int) -> Floats:
    """Random numbers at points of the head (three arrays of mm), the same at the same point; lumps of about `size` mm."""
    count = 2 * math.ceil(110 / size) + 2
    lattice = person.rng(purpose).standard_normal((count,) * 3).astype(np.float32)
    at = np.stack([axis / np.float32(size) + np.float32(count / 2) for axis in points])
    return np.asarray(ndimage.map_coordinates(lattice, at, order=1, mode="nearest"))


def fill(level: Floats, free: Mask, millilitres: float, voxel: Floats) -> Mask:
    """The free voxels of smallest level that hold this volume, exact to half a voxel; all of them where there are too few.

    `voxel`: mL of one, by slice (D,): slices may lie at several distances.
    """
    flat = np.flatnonzero(free)
    found = np.zeros(level.shape, bool)
    if millilitres <= 0 or not len(flat):
        return found
    levels = level.ravel()[flat]
    most = min(len(flat), math.ceil(millilitres / float(voxel.min())) + 1)
    if most < len(flat):  # no more than these can be needed: the rest is not put in order
        near = np.argpartition(levels, most - 1)[:most]
        flat, levels = flat[near], levels[near]
    order = flat[np.lexsort((flat, levels))]
    volumes = voxel[order // (level.shape[1] * level.shape[2])]
    within = np.cumsum(volumes, dtype=np.float64) - volumes / 2 <= millilitres  # up to the voxel that comes closest
    found.ravel()[order[within]] = True
    return found


def head(
    person: Person, lesions: Sequence[Lesion], affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> Anatomy:
    """The head at the voxels of a regular grid. `affine`: (4, 4), index (d, h, w, 1) to mm in the scanner (RAS)."""
    d, h, w = (np.arange(count) for count in shape)
    points = [
        d[:, None, None] * affine[row, 0] + h[:, None] * affine[row, 1] + w * affine[row, 2] + affine[row, 3]
        for row in range(3)
    ]
    voxel = np.full(shape[0], abs(np.linalg.det(affine[:3, :3])) / 1000, np.float32)
    return at(person, lesions, points, voxel)


def at(person: Person, lesions: Sequence[Lesion], scanner: Sequence[NDArray[np.float64]], voxel: Floats) -> Anatomy:
    """The head at points in the scanner: x, y and z in mm (RAS), each (D, H, W). `voxel`: (D,) mL that one point stands for."""
    pose = person.pose
    x, y, z = (
        sum((scanner[column] * pose[row, column] for column in range(3)), start=pose[row, 3]).astype(np.float32)
        for row in range(3)
    )
    points = (x, y, z)
    rng = person.rng(3)
    atrophy = person.atrophy
    # 1 at the inner face of the skull. Narrower in front than behind.
    radius = np.sqrt((x / (INNER[0] * (1 - 0.0012 * y))) ** 2 + (y / INNER[1]) ** 2 + (z / INNER[2]) ** 2)
    lump, fine = texture(person, points, 18, 4), texture(person, points, 7, 5)
    tissue = np.zeros(radius.shape, np.uint8)
    tissue[radius < 1.15] = Tissue.SCALP
    tissue[radius < 1.09] = Tissue.SKULL
    cavity = radius < 1.0
    brain = radius < 0.97 - 0.02 * atrophy
    cortex = radius + 0.03 * fine > 0.86
    tissue[cavity] = Tissue.FLUID
    tissue[brain] = np.where(cortex[brain], Tissue.CORTEX, Tissue.WHITE)
    across = x + _shift(lesions) * np.exp(
        -((y / 50) ** 2) - ((z - 10) / 40) ** 2
    )  # what is pushed aside bends the midline
    nuclei = ((abs(across) - 22) / 11) ** 2 + ((y - 2) / 24) ** 2 + ((z - 2) / 15) ** 2 < 1
    tissue[nuclei & brain] = Tissue.NUCLEI
    folds = brain & cortex & (abs(fine) < 0.05 + 0.02 * atrophy)
    cistern = brain & ((x / 24) ** 2 + ((y - 6) / 17) ** 2 + ((z + 22) / 6) ** 2 < 1)
    tissue[folds | cistern] = Tissue.FLUID
    falx = brain & (abs(across) < 1.5) & (abs(y) > 34) & (z > 0)
    tissue[falx] = Tissue.FALX
    ventricles = brain & _ventricles(across, x, y, z, 0.9 + 0.2 * atrophy)
    tissue[ventricles] = Tissue.FLUID
    if person.age > 55 and rng.random() < 0.5:  # pineal gland and plexus, calcified with age
        for px, py, pz in ((0, -28, 2), (14, -26, 14), (-14, -26, 14)):
            tissue[(x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2 < 10] = Tissue.CALCIUM
    solid = brain & ~ventricles
    for lesion in sorted(lesions, key=lambda one: one.kind in ("intraparenchymal", "infarct")):
        level, room = _level(lesion, person, points, radius, lump)
        free = {"brain": solid, "ventricles": ventricles, "folds": folds | cistern, "cavity": cavity}[room]
        free = free & (tissue < Tissue.OEDEMA)  # what lies there already stays
        core = fill(level, free, lesion.millilitres, voxel)
        swollen = fill(level, free & ~core, core.sum(axis=(1, 2)) @ voxel * lesion.oedema, voxel)
        tissue[swollen] = Tissue.OEDEMA
        tissue[core] = Tissue.INFARCT if lesion.kind == "infarct" else Tissue.BLOOD + BLOOD.index(lesion.kind)
    return Anatomy(tissue, lump, cavity, radius)


def _ventricles(across: Floats, x: Floats, y: Floats, z: Floats, size: float) -> Mask:
    """Two lateral ones, the third between them, the fourth below."""
    lateral = (
        ((abs(across) - 10 - 0.12 * abs(y)) / (6.5 * size)) ** 2
        + ((y - 2) / 40) ** 2
        + ((z - 15 - 0.08 * y) / (10 * size)) ** 2
    )
    third = (across / (2.6 * size)) ** 2 + ((y + 2) / 14) ** 2 + (z / 11) ** 2
    fourth = (x / 7) ** 2 + ((y + 32) / 7) ** 2 + ((z + 34) / 9) ** 2
    return np.asarray((lateral < 1) | (third < 1) | (fourth < 1))


def _shift(lesions: Sequence[Lesion]) -> float:
    """mm by which the middle gives way to the lesions, positive to the left."""
    total = 0.0
    for lesion in lesions:
        if lesion.kind in ("intraparenchymal", "infarct") and lesion.place not in INFRATENTORIAL:
            total += lesion.side * 0.09 * lesion.millilitres * (1 + 0.4 * lesion.oedema)
        elif lesion.kind in ("subdural", "epidural"):
            total += lesion.side * 0.06 * lesion.millilitres
    return float(np.clip(total, -12, 12))


def midline_shift(lesions: Sequence[Lesion]) -> float:
    """mm, without a side, as a report states it."""
    return abs(_shift(lesions))


def _level(
    lesion: Lesion, person: Person, points: Sequence[Floats], radius: Floats, lump: Floats
) -> tuple[Floats, str]:
    """How far each point is from the middle of a lesion, and where it may lie."""
    x, y, z = points
    # Of two lesions of a kind the second would lie like the first: a head has one of each.
    rng = person.rng(10 + [*BLOOD, "infarct"].index(lesion.kind))
    side = lesion.side
    if lesion.kind in ("intraparenchymal", "infarct"):
        middle = np.array((PLACES if lesion.kind != "infarct" else TERRITORIES)[lesion.place]) + rng.normal(0, 3, 3)
        axes = np.exp(rng.normal(0, 0.18, 3))
        axes /= np.cbrt(axes.prod())
        ball = ((x - side * middle[0]) / axes[0]) ** 2 + ((y - middle[1]) / (1.2 * axes[1])) ** 2
        return np.sqrt(ball + ((z - middle[2]) / axes[2]) ** 2) * (1 + 0.12 * lump), "brain"
    if lesion.kind == "intraventricular":  # patients lie on their backs, and blood sinks
        return y + 4 * lump - 25 * side * np.sign(x), "ventricles"
    if lesion.kind == "subarachnoid":
        return np.sqrt((x - side * 25) ** 2 + (y - 10) ** 2 + (z + 15) ** 2), "folds"
    if lesion.kind == "subdural":  # a crescent: wide and thin
        angle = abs(np.arctan2(y - rng.normal(0, 15), side * x))
        crescent = (1 - radius) * 80 + (angle / 1.1) ** 4 * 6 + ((z - 12) / 36) ** 4 * 4
        return np.where(side * x > 2, crescent, np.float32(1e6)).astype(np.float32), "cavity"
    angle, height = rng.normal(0, 0.5), rng.normal(8, 8)  # epidural, a lens: a ball that the skull cuts off
    lens = (x - side * 58 * math.cos(angle)) ** 2 + (y - 74 * math.sin(angle)) ** 2 + (z - height) ** 2
    return np.sqrt(lens).astype(np.float32), "cavity"
