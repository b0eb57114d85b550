"""A hospital's own network that finds the brain in a head CT: a TorchScript file, from HU on a stated grid to probabilities."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ich_models.errors import DataError
from ich_models.volume import Spacing, Volume, onto, resample


class UnusableError(Exception):
    """What the network said of one image is no mask."""


@lru_cache(maxsize=1)
def load(path: Path, _sha256: str) -> Any:
    """The network in a file of this content. Raises DataError for a file that is none."""
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines()
        hint = "name a file that torch.jit.save wrote: float32 HU (1, 1, D, H, W) to probabilities of the same shape"
        message = f"{path} is no TorchScript file: {said[0][:120] if said else type(error).__name__}"
        raise DataError(message, hint=hint) from None


def find(path: Path, sha256: str, volume: Volume, spacing: Spacing) -> NDArray[np.bool_]:
    """(D, H, W) bool on the volume's grid: where the network gives more than a half. `spacing`: mm of the grid it wants.

    Raises UnusableError for anything but probabilities of the shape that it was shown.
    """
    there = resample(volume, spacing)
    shown = torch.from_numpy(there.values.astype(np.float32))[None, None]
    try:
        with torch.inference_mode():
            said = load(path, sha256)(shown)
    except Exception as error:  # a stranger's network raises what it likes
        raise UnusableError(f"it failed ({type(error).__name__})") from error
    if not isinstance(said, torch.Tensor) or said.shape != shown.shape:
        shape = (
            f"{tuple(said.shape)} for {tuple(shown.shape)}" if isinstance(said, torch.Tensor) else type(said).__name__
        )
        raise UnusableError(f"its answer is of another shape ({shape})")
    values = said[0, 0].float().numpy()
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise UnusableError("its answer is not between 0 and 1")
    mask = Volume((values > 0.5).astype(np.int16), there.affine, "intensity")
    return np.asarray(onto(mask, volume, nearest=True).values > 0)
