"""Radiographs of a replaced hip or knee, two views: bone, implant, and what an infection leaves around it."""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ich_deploy.demo.scanner import Tags

Floats = NDArray[np.float32]
View = Literal["AP", "LL"]

VIEWS: Final[tuple[View, View]] = ("AP", "LL")
SATURATED: Final = 0.85
"""Where a detector's range ends: metal, with or without flesh before it. What is in the flesh does not move the scale then."""


@dataclass(frozen=True)
class Detector:
    """One hospital's X-ray machine. `pixel`: mm; `inverted`: MONOCHROME1, bone is stored dark; `window`: named in the file."""

    rows: int
    columns: int
    pixel: float
    blur: float
    noise: float
    inverted: bool
    window: bool
    tags: Tags


DETECTORS: Final = {
    "north": Detector(288, 256, 0.80, 0.6, 0.010, False, True, {"Manufacturer": "SIEMENS", "DetectorType": "DIRECT"}),
    "east": Detector(256, 240, 0.90, 0.4, 0.016, True, False, {"Manufacturer": "GE MEDICAL SYSTEMS"}),
    "south": Detector(272, 272, 0.85, 0.9, 0.008, False, False, {"Manufacturer": "Philips"}),
}


def radiograph(
    detector: Detector, joint: str, side: str, view: View, lysis: float, effusion: float, seed: tuple[int, ...]
) -> Floats:
    """How much is held back on the way to each pixel (rows, columns), 0 air to `SATURATED` metal, with blur and noise.

    `lysis`, `effusion`: standard normal; bone lost along the metal and thinned around it, and a swelling around the joint.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(
        (np.arange(detector.rows) - detector.rows / 2 + 0.5) * detector.pixel,
        (np.arange(detector.columns) - detector.columns / 2 + 0.5) * detector.pixel,
        indexing="ij",
    )
    x, y = (axis.astype(np.float32) for axis in (x + rng.normal(0, 5), y + rng.normal(0, 6)))
    if side == "left":
        x = -x
    turn = math.radians(rng.normal(0, 4))
    x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    size = rng.normal(1, 0.05)
    x, y = x / size, y / size
    lost, swollen = (1 / (1 + math.exp(-1.2 * z)) for z in (lysis, effusion))
    near = np.exp(-((x / 55) ** 2) - ((y + (30 if joint == "hip" else 5)) / 50) ** 2)  # 1 at the joint
    flesh = rng.normal(78 if joint == "hip" else 60, 6) + 14 * swollen * near
    image = (0.30 + 0.45 * swollen * near) * np.clip(1 - (x / flesh) ** 2, 0, 1) ** 0.5
    kept, seam = 1 - 0.7 * lost * near, 0.8 + 6.0 * lost  # share of the bone; mm
    image += _hip(x, y, view, seam, kept, rng) if joint == "hip" else _knee(x, y, view, seam, kept, rng)
    lattice = rng.standard_normal((12, 12)).astype(np.float32)
    at = np.stack([(y + 120) / 24, (x + 120) / 24])
    image *= 1 + 0.04 * ndimage.map_coordinates(lattice, at, order=1, mode="nearest")
    image = ndimage.gaussian_filter(image, detector.blur)
    image += rng.normal(0, detector.noise, image.shape) * (1 + image)
    return np.asarray(np.minimum(image, SATURATED), np.float32)


def _shaft(across: NDArray[Any], width: NDArray[Any], cortex: float) -> Floats:
    """A long bone seen from the side, as wide as it is at each point: dense at its edges."""
    outer = np.clip(1 - (across / width) ** 2, 0, 1) ** 0.5
    inner = np.clip(1 - (across / (width - cortex)) ** 2, 0, 1) ** 0.5
    return np.asarray(0.62 * outer - 0.42 * inner, np.float32)


def _stem(across: Floats, along: Floats, length: float, width: float, seam: float) -> tuple[Floats, Floats]:
    """Metal in a bone, tapering along its length, and the seam around it where bone is lost (both 0 to 1)."""
    here = (along > 0) & (along < length)
    half = width * (1 - 0.45 * np.clip(along / length, 0, 1))
    metal = np.where(here & (abs(across) < half), 1.0, 0.0)
    around = np.where(here & (abs(across) >= half), np.exp(-(((abs(across) - half) / seam) ** 2)), 0.0)
    return metal.astype(np.float32), around.astype(np.float32)


def _hip(x: Floats, y: Floats, view: View, seam: float, kept: Floats, rng: np.random.Generator) -> Floats:
    """Pelvis above, femur below, cup, ball and stem. From the side the pelvis is narrower. `kept`: share of the bone left."""
    wide = 12 + rng.normal(0, 0.7)
    femur = np.where(y > -20, _shaft(x - 8, wide + 6 * np.exp(-(((y + 15) / 25) ** 2)), 4.5), 0)
    pelvis = 0.30 * np.exp(-(((x + 22) / (40 if view == "AP" else 26)) ** 2) - ((y + 62) / 26) ** 2)
    metal, around = _stem(x - 8, y + 22, 105, 6.5, seam * 1.6)
    distance = np.sqrt((x + 8) ** 2 + (y + 42) ** 2)
    ball, cup = distance < 14, (distance >= 16) & (distance < 20) & (y < -36)
    neck = (abs((x + 8) * 0.78 - (y + 42) * 0.62) < 4.5) & (distance < 30) & (x > -8) & (y > -42)
    implant = np.maximum(metal, (ball | cup | neck).astype(np.float32))
    rim = np.exp(-(((distance - 20 - seam / 2) / seam) ** 2)) * (y < -36)
    lost = 0.40 * np.maximum(around, rim) * (1 - implant)
    return np.asarray(np.clip((femur + pelvis) * kept - lost, 0, None) * (1 - implant) + 1.0 * implant, np.float32)


def _knee(x: Floats, y: Floats, view: View, seam: float, kept: Floats, rng: np.random.Generator) -> Floats:
    """Femur above, tibia below, a shield on one and a plate with a keel in the other; from the side also the kneecap.

    `kept`: share of the bone left.
    """
    wide = 13 + rng.normal(0, 0.8)
    flare = 16 * np.exp(-(((abs(y) - 12) / 22) ** 2))
    femur = np.where(y < -3, _shaft(x, wide + flare, 4.0), 0)
    tibia = np.where(y > 5, _shaft(x, wide + flare, 4.0), 0)
    shield = (y > -16) & (y < -2) & (abs(x) < 29) & (x**2 + (y + 16) ** 2 > (18 if view == "AP" else 22) ** 2 * 0.55)
    plate = (y > 5) & (y < 9) & (abs(x) < 30)
    metal, around = _stem(x, y - 9, 42, 5.0, seam * 1.6)
    implant = np.maximum(metal, (shield | plate).astype(np.float32))
    under = np.exp(-(((y - 9 - seam / 2) / seam) ** 2)) * (abs(x) < 30) * (y >= 9)
    above = np.exp(-(((y + 17 + seam / 2) / seam) ** 2)) * (abs(x) < 26) * (y <= -16)
    lost = 0.40 * np.maximum(np.maximum(around, under), above) * (1 - implant)
    cap = 0.25 * ((((x - 38) / 7) ** 2 + ((y + 18) / 15) ** 2) < 1) if view == "LL" else 0
    return np.asarray(np.clip((femur + tibia + cap) * kept - lost, 0, None) * (1 - implant) + 1.0 * implant, np.float32)


def stored(image: Floats, detector: Detector, joint: str, view: View) -> tuple[NDArray[Any], Tags]:
    """As the machine stores it: 12 bits, more is brighter or, inverted, darker."""
    grey = np.clip(np.rint(image * 2600 + 150), 0, 4095).astype(np.uint16)
    tags: dict[str, Any] = {
        **detector.tags,
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "BodyPartExamined": joint.upper(),
        "ViewPosition": view,
        "SeriesDescription": f"{joint} {view}",
        "ImagerPixelSpacing": [detector.pixel, detector.pixel],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "BurnedInAnnotation": "NO",
    }
    if detector.window:
        tags |= {"WindowCenter": 1300, "WindowWidth": 2400}
    if detector.inverted:
        grey = (4095 - grey).astype(np.uint16)
        tags["PhotometricInterpretation"] = "MONOCHROME1"
    return grey, tags
