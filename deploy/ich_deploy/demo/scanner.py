"""How three hospitals scan the same kind of head differently: where slices lie, how sharp and noisy they are, how they are stored."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Tags = Mapping[str, Any]


@dataclass(frozen=True)
class Kernel:
    """A reconstruction. `blur`: sigma in pixels; `sharpen`: how much of the edges is added again; `noise`: HU or intensity.

    Of CT, bone is so bright that .6 of its edge leaves two pixels inside the skull at -96 and -26 HU, where a subdural haematoma
    lies: right for bone, not for a brain kernel.
    """

    blur: float
    sharpen: float
    noise: float


@dataclass(frozen=True)
class Slices:
    """Where the slices of a series lie. `zones`: (count, mm of table feed) from the neck to the crown; `pixel`: mm.

    `tilt`: of the gantry in degrees; `across`, `down`: signs of LPS x along a row and of LPS y along a column;
    `origin`: where the scanner's zero is, LPS mm, seen from the middle of the head.
    """

    rows: int
    columns: int
    pixel: float
    zones: tuple[tuple[int, float], ...]
    tilt: float = 0.0
    across: int = 1
    down: int = 1
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def heights(self) -> NDArray[np.float64]:
        """(n,) mm of table position, the middle of the series at 0."""
        feeds = np.array([feed for count, feed in self.zones for _ in range(count)])
        between = np.minimum(feeds[:-1], feeds[1:])  # where one zone ends and the next begins: the shorter step
        heights = np.concatenate([[0], np.cumsum(between)])
        return np.asarray(heights - heights[-1] / 2, np.float64)

    @property
    def directions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Unit vectors of a row and of a column, LPS."""
        angle = math.radians(self.tilt)
        return (
            np.array([float(self.across), 0, 0]),
            np.array([0, self.down * math.cos(angle), -self.down * math.sin(angle)]),
        )

    @property
    def corners(self) -> NDArray[np.float64]:
        """(n, 3) centre of each slice's first pixel, LPS mm, the middle of the head at 0. The table moves along z."""
        across, down = self.directions
        corner = -across * self.pixel * (self.columns - 1) / 2 - down * self.pixel * (self.rows - 1) / 2
        return np.asarray(corner + np.outer(self.heights, [0, 0, 1.0]), np.float64)

    @property
    def voxel(self) -> Floats:
        """(n,) mL that a pixel of each slice stands for: half of the way to either neighbour."""
        gaps = np.diff(self.heights)
        thick = (np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2
        return np.asarray(thick * math.cos(math.radians(self.tilt)) * self.pixel**2 / 1000, np.float32)

    def points(self) -> list[NDArray[np.float64]]:
        """x, y and z (RAS mm, the middle of the head at 0) of every pixel, in shapes that broadcast to (n, rows, columns)."""
        across, down = self.directions
        row = np.arange(self.rows)[:, None] * self.pixel
        column = np.arange(self.columns) * self.pixel
        corners = self.corners
        lps = [corners[:, axis, None, None] + row * down[axis] + column * across[axis] for axis in range(3)]
        return [-lps[0], -lps[1], lps[2]]


@dataclass(frozen=True)
class Scanner:
    """One hospital's CT: where its slices lie, its usual and its sharp reconstruction, and how it stores them."""

    slices: Slices
    soft: Kernel
    sharp: Kernel
    tags: Tags
    sharp_tags: Tags
    signed: bool
    """Stored as signed numbers with padding outside of the round field of view, or as 12 bits from -1024 HU."""
    descending: bool = False
    """Whether instance numbers count from the crown."""


_SIEMENS: Final[Tags] = {"Manufacturer": "SIEMENS", "ManufacturerModelName": "Demo 16", "PatientPosition": "HFS"}
_GE: Final[Tags] = {"Manufacturer": "GE MEDICAL SYSTEMS", "ManufacturerModelName": "Demo 64", "PatientPosition": "HFS"}
_PHILIPS: Final[Tags] = {"Manufacturer": "Philips", "ManufacturerModelName": "Demo 256", "PatientPosition": "FFS"}

CT: Final = {
    "north": Scanner(
        Slices(128, 128, 1.8, ((28, 5.0),), origin=(0.0, -140.0, 812.5)),
        Kernel(0.55, 0.0, 3.0),
        Kernel(0.3, 1.5, 12.0),
        {**_SIEMENS, "ConvolutionKernel": "H31s", "SeriesDescription": "Schaedel nativ 5.0 H31s"},
        {**_SIEMENS, "ConvolutionKernel": "H60s", "SeriesDescription": "Schaedel Knochen 5.0 H60s"},
        signed=False,
    ),
    # The gantry is tilted along the base of the skull: every slice lies shifted against the one below it.
    "east": Scanner(
        Slices(128, 128, 1.7, ((26, 5.5),), tilt=14.0, origin=(4.0, 0.0, -96.3)),
        Kernel(0.4, 0.15, 5.0),
        Kernel(0.3, 1.6, 14.0),
        {**_GE, "ConvolutionKernel": "STANDARD", "SeriesDescription": "Head Std"},
        {**_GE, "ConvolutionKernel": "BONE", "SeriesDescription": "Head Bone"},
        signed=True,
        descending=True,
    ),
    # Feet first: rows run to the patient's right, slices from the crown. Thin slices at the base, thick ones above.
    "south": Scanner(
        Slices(120, 128, 1.9, ((12, 3.0), (17, 6.0)), across=-1, origin=(-3.5, 210.0, 40.0)),
        Kernel(0.8, 0.0, 2.2),
        Kernel(0.4, 1.4, 10.0),
        {**_PHILIPS, "ConvolutionKernel": "UB", "SeriesDescription": "Encefalo basale"},
        {**_PHILIPS, "ConvolutionKernel": "D", "SeriesDescription": "Osso"},
        signed=False,
    ),
}


@dataclass(frozen=True)
class MrSeries:
    """One sequence of a hospital's MR protocol. `slope`: of the stored numbers; `tags`: what tells the sequence."""

    sequence: str
    slices: Slices
    kernel: Kernel
    tags: Tags
    slope: float = 1.0


def _diffusion(slices: Slices, kernel: Kernel, scanner: Tags, slope: float, private_b: bool = False) -> list[MrSeries]:
    """DWI and its ADC map. `private_b`: the b-value stands in GE's own element, as older scanners have it."""
    b: Tags = {"b": 1000} if private_b else {"DiffusionBValue": 1000.0}
    times: Tags = {**scanner, "EchoTime": 92.0, "RepetitionTime": 5200.0}
    dwi = {
        **times,
        **b,
        "ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"],
        "SeriesDescription": "ep2d_diff_b1000",
    }
    adc = {**times, "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], "SeriesDescription": "ep2d_diff_ADC"}
    return [MrSeries("DWI", slices, kernel, dwi), MrSeries("ADC", slices, kernel, adc, slope)]


def _flair(slices: Slices, kernel: Kernel, scanner: Tags, name: str) -> MrSeries:
    times = {"EchoTime": 118.0, "RepetitionTime": 9000.0, "InversionTime": 2500.0}
    tags = {**scanner, **times, "ImageType": ["ORIGINAL", "PRIMARY", "M"], "SeriesDescription": name}
    return MrSeries("FLAIR", slices, kernel, tags)


MR: Final[Mapping[str, tuple[MrSeries, ...]]] = {
    "north": (
        *_diffusion(
            Slices(96, 96, 2.4, ((24, 5.5),)), Kernel(0.6, 0, 4), {**_SIEMENS, "MagneticFieldStrength": 1.5}, 1.0
        ),
        _flair(Slices(112, 112, 2.0, ((24, 5.5),)), Kernel(0.5, 0, 3), _SIEMENS, "t2_tirm_tra_dark-fluid"),
    ),
    "east": (
        *_diffusion(
            Slices(96, 96, 2.3, ((22, 6.0),), origin=(0.0, 0.0, 55.0)), Kernel(0.5, 0, 6), _GE, 1.0, private_b=True
        ),
        _flair(Slices(104, 104, 2.2, ((22, 6.0),), origin=(0.0, 0.0, 55.0)), Kernel(0.5, 0.3, 4), _GE, "Ax T2 FLAIR"),
    ),
    # The map is stored in 1e-3 mm2/s.
    "south": (
        *_diffusion(Slices(104, 104, 2.2, ((26, 5.0),), across=-1), Kernel(0.8, 0, 3), _PHILIPS, 1e-3),
        _flair(Slices(104, 104, 2.2, ((20, 6.5),), across=-1), Kernel(0.7, 0, 3), _PHILIPS, "FLAIR_longTR"),
    ),
}


def reconstruct(values: Floats, kernel: Kernel, edge: Floats, rng: np.random.Generator) -> Floats:
    """What the scanner makes of the truth (D, H, W): blurred (also a little along the table), sharpened, with noise in grains.

    `edge`: 1 at the skull, 0 in the middle of the head: there noise is largest, for the X-rays pass most of the head.
    """
    image = ndimage.gaussian_filter(values, (0.3, kernel.blur, kernel.blur))
    if kernel.sharpen:
        image += kernel.sharpen * (image - ndimage.gaussian_filter(image, (0, 1, 1)))
    # Grains: the mean of 2 x 2 independent numbers (SD 1/2 of one), twice as noisy each.
    grain = rng.standard_normal((len(values), values.shape[1] + 1, values.shape[2] + 1), dtype=np.float32)
    grain = grain[:, 1:] + grain[:, :-1]
    grain = (grain[:, :, 1:] + grain[:, :, :-1]) * np.float32(kernel.noise / 2)
    image += grain * (1.15 - 0.3 * np.clip(edge, 0, 1))
    return np.asarray(image, np.float32)


def stored_ct(hounsfield: Floats, signed: bool) -> tuple[NDArray[Any], Tags]:
    """HU (n, H, W) as a CT stores them, and the tags that say how.

    Signed: -2000 marks what lies outside of the round field of view. Otherwise 12 bits, 0 is -1024 HU.
    """
    common: Tags = {"BitsAllocated": 16, "RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
    values = np.rint(hounsfield)
    if not signed:
        kept = np.clip(values + 1024, 0, 4095).astype(np.uint16)
        return kept, {**common, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    high, wide = hounsfield.shape[1:]
    row, column = np.arange(high)[:, None] - (high - 1) / 2, np.arange(wide) - (wide - 1) / 2
    padded = np.clip(values + 1024, 0, 4095).astype(np.int16)
    padded[:, row**2 + column**2 > (min(high, wide) / 2) ** 2] = -2000
    more = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "PixelPaddingValue": -2000}
    return padded, {**common, **more}


def stored_mr(intensity: Floats, slope: float) -> tuple[NDArray[Any], Tags]:
    """Intensities (n, H, W) as an MR scanner stores them; a slope of 1 is not written, as many do not."""
    kept = np.clip(np.rint(intensity), 0, 4095).astype(np.uint16)
    tags: dict[str, Any] = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    return kept, tags if slope == 1 else {**tags, "RescaleSlope": slope, "RescaleIntercept": 0}
