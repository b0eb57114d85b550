"""Grey values as networks see them: windows of CT, z-scores of MR, neighbouring slices as channels."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WINDOWS: Final = {"brain": (40.0, 80.0), "blood": (75.0, 150.0), "stroke": (32.0, 8.0), "bone": (600.0, 2800.0)}
"""Name -> centre and width in HU, as radiologists name them."""


def window(values: NDArray[Any], centre: float, width: float) -> NDArray[np.float32]:
    """HU to 0..1, any shape: 0 at centre - width / 2 and below, 1 at centre + width / 2 and above, linear between."""
    if width <= 0:
        raise ValueError(f"width {width} HU")
    scaled = (values.astype(np.float32) - np.float32(centre - width / 2)) / np.float32(width)
    return np.clip(scaled, 0, 1, out=scaled)


def windows(values: NDArray[Any], pairs: Sequence[tuple[float, float]]) -> NDArray[np.float32]:
    """HU (...) as (C, ...): one channel for each (centre, width), in this order."""
    return np.stack([window(values, centre, width) for centre, width in pairs])


def neighbours(values: NDArray[Any], reach: int) -> NDArray[Any]:
    """Slices (D, H, W) as (D, 2 reach + 1, H, W): each with those below and above it; the end slices stand for absent ones."""
    index = np.arange(len(values))[:, None] + np.arange(-reach, reach + 1)
    stacked: NDArray[Any] = values[index.clip(0, len(values) - 1)]
    return stacked


def z_scores(values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Intensities with mean 0 and standard deviation 1 within the mask (by default: where they are not 0), 0 elsewhere."""
    inside = values != 0 if mask is None else mask
    scaled = np.zeros(values.shape, np.float32)
    if inside.any():
        own = values[inside].astype(np.float64)
        scaled[inside] = (own - own.mean()) / max(float(own.std()), 1e-6)
    return scaled
