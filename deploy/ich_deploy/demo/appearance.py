"""What tissues look like: Hounsfield units in CT, intensities in MR."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ich_deploy.demo.anatomy import Anatomy, Tissue

CT: Final = (-1000, 10, 900, 8, 37, 29, 36, 52, 110, 19, 26, 64, 60, 56, 60, 62)
"""HU by Tissue. Blood here has its mean; each patient's is a few HU more or less."""

MR: Final[Mapping[str, tuple[int, ...]]] = {
    "DWI": (0, 30, 5, 20, 105, 90, 95, 40, 10, 95, 230, 25, 25, 25, 25, 25),
    "ADC": (0, 150, 0, 2900, 800, 740, 760, 700, 50, 1100, 420, 500, 500, 500, 500, 500),
    "FLAIR": (0, 110, 10, 25, 120, 95, 105, 60, 15, 165, 180, 140, 140, 140, 140, 140),
}
"""Intensities by Tissue; of ADC 1e-6 mm2/s."""

_TEXTURE: Final = {Tissue.WHITE: 1.5}
"""HU for each 1 of texture; blood has twice as much."""


def hounsfield(anatomy: Anatomy, blood: float = 0.0) -> NDArray[np.float32]:
    """(D, H, W) HU without blur and noise. `blood`: HU by which this patient's blood differs from the usual."""
    extra = np.zeros(len(CT), np.float32)
    extra[Tissue.BLOOD :] = blood
    rough = np.zeros(len(CT), np.float32)
    rough[Tissue.BLOOD :] = 3
    for tissue, amount in _TEXTURE.items():
        rough[tissue] = amount
    values: NDArray[np.float32] = (np.array(CT, np.float32) + extra)[anatomy.tissue]
    values += rough[anatomy.tissue] * anatomy.texture
    return values


def intensity(anatomy: Anatomy, sequence: str) -> NDArray[np.float32]:
    """(D, H, W) intensities of an MR sequence (a key of MR) without blur and noise."""
    values: NDArray[np.float32] = np.array(MR[sequence], np.float32)[anatomy.tissue]
    values *= 1 + 0.04 * anatomy.texture * (anatomy.tissue > Tissue.SKULL)
    return values
