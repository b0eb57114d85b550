"""What statistics hold beside the table: numbers per patient, named, that a network's constants are made of."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ich_models.batch import Patients
from ich_models.clinical import LARGEST_NUMBER
from ich_models.image_spec import HAEMORRHAGES, CtSlices, ImageSpec, MrVolume
from ich_models.networks.constants import MEAN, SQUARE, WITH, WITHOUT

Floats = NDArray[np.float64]


def columns(patients: Patients, names: Sequence[str]) -> Floats:
    """(N, E): these numbers of N patients.

    A patient without labelled slices has none with a type and none without it; of a patient without an image nothing is
    known (NaN). Images are read one patient at a time.
    """
    found = np.full((len(patients), len(names)), np.nan)
    channels = _channels(patients) if any(name.startswith(MEAN) for name in names) else {}
    for index, name in enumerate(names):
        if name.startswith((WITH, WITHOUT)):
            found[:, index] = _slices(patients, name)
        else:
            found[:, index] = channels[name]
    return found


def _slices(patients: Patients, name: str) -> Floats:
    if patients.targets is None:
        return np.zeros(len(patients))
    what, wanted = (WITH, 1) if name.startswith(WITH) else (WITHOUT, 0)
    own = patients.targets[:, :, [str(kind) for kind in HAEMORRHAGES].index(name.removeprefix(what))]
    return np.asarray((own == wanted).sum(1), np.float64)


def _channels(patients: Patients) -> dict[str, Floats]:
    """Mean and mean square of each channel, per patient."""
    assert patients.image is not None, "a network with constants of images, in a study without"
    several = patients.slices is not None
    count = patients.image.shape[2 if several else 1]
    found = {f"{what}{channel}": np.full(len(patients), np.nan) for channel in range(count) for what in (MEAN, SQUARE)}
    held = patients.holding("image")
    for place, image in enumerate(patients.image):
        mine = image[patients.slices[place]] if patients.slices is not None else image[None]
        if not held[place] or not len(mine):
            continue
        values = mine.astype(np.float64)
        axes = (0, *range(2, values.ndim))
        for channel, (mean, square) in enumerate(zip(values.mean(axes), (values**2).mean(axes), strict=True)):
            found[f"{MEAN}{channel}"][place] = mean
            found[f"{SQUARE}{channel}"][place] = square
    return found


def bounds(names: Sequence[str], spec: ImageSpec | None) -> tuple[Floats, Floats]:
    """(E,) each: the smallest and the largest value that each can have."""
    ends = [_ends(name, spec) for name in names]
    low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    return low, high


def _ends(name: str, spec: ImageSpec | None) -> tuple[float, float]:
    if name.startswith((WITH, WITHOUT)):
        return 0.0, float(spec.most) if isinstance(spec, CtSlices) else 0.0
    if not isinstance(spec, MrVolume):  # 0 to 1 as they are prepared
        return 0.0, 1.0
    return (0.0, LARGEST_NUMBER) if name.startswith(SQUARE) else (-LARGEST_NUMBER, LARGEST_NUMBER)


def of_few(values: Floats, names: Sequence[str], k: int) -> NDArray[np.bool_]:
    """(E,): counts of slices that point at fewer than k patients: with the type, or without it. `values`: (N, E).

    Both counts of a type go together: with the other types' counts, one would tell the other.
    """
    few: set[str] = set()
    for name, column in zip(names, values.T, strict=True):
        if name.startswith(WITH):
            having = int((column > 0).sum())
            if 0 < having < k or 0 < len(column) - having < k:
                few |= {name, name.replace(WITH, WITHOUT, 1)}
    return np.array([name in few for name in names], np.bool_)


def counted(names: Sequence[str]) -> NDArray[np.bool_]:
    """(E,): which of them are counts of slices, for which the rule of `of_few` holds."""
    return np.array([name.startswith((WITH, WITHOUT)) for name in names], np.bool_)
