"""Small federations of labelled slices, made in memory: a bright square in a corner of its own for each type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import small

from ich_client.hospital import Limits
from ich_client.tables import Hospital
from ich_models.batch import Patients
from ich_models.federation import Federation

SIDE = 16
SLICES = 4
TINY = {
    "name": "resnet",
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "widths": [4, 4, 8, 8],
    "stem": 3,
    "max_pool": False,
}
GROUPED = {**TINY, "normalisation": "group", "group": 2}
DLMI = {"name": "dlmi", "members": {"one": GROUPED, "two": GROUPED}, "channels": 1}
HOHOHO = {"name": "hohoho", "image": GROUPED, "channels": 1, "units": 4, "lstm_layers": 1, "projection": [8, 4]}


def federation(
    network: Mapping[str, Any] = DLMI, *, image: Mapping[str, Any] | None = None, **sections: Any
) -> Federation:
    """A study of slices; each section replaces settings of that section."""
    stage = {"name": "train", "rounds": 2, "epochs": 1, "batch": 4, "optimizer": {"name": "adam", "lr": 0.01}}
    base = small.federation(**sections).model_dump(by_alias=True)
    base["task"] |= {"kind": "slices"}
    base["modalities"]["image"] = {"kind": "ct_slices", "size": [SIDE, SIDE], "most": SLICES, **(image or {})}
    base["network"] = dict(network)
    if "training" not in sections:
        base["training"]["stages"] = [stage]
    return Federation.model_validate(base)


def hospital(name: str, patients: int = 24, seed: int = 0, *, k: int = 0, without: tuple[int, ...] = ()) -> Hospital:
    """Patients of 2 to 4 slices with types that can be seen; patient 1 has no image, a tenth of the slices no label."""
    rng = np.random.default_rng((seed, *name.encode()))
    shape = (patients, SLICES)
    targets = (rng.random((*shape, 5)) < 0.4).astype(np.float32)
    targets[..., list(without)] = 0
    image = rng.normal(0.3, 0.05, (*shape, 1, SIDE, SIDE))
    for k_type in range(5):
        row, column = divmod(k_type, 3)
        spot = image[..., 0, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
        spot += 0.5 * targets[..., k_type, None, None]
    slices = np.arange(SLICES) < rng.integers(2, SLICES + 1, size=(patients, 1))
    slices[1] = False
    targets[~slices | (rng.random(shape) < 0.1)] = np.nan
    labels = (np.nan_to_num(targets).max((1, 2)) > 0).astype(np.int64)
    labels[:2] = 0, 1
    present = {"image": slices.any(1)}
    whole = Patients(
        tuple(f"{name}-{number}" for number in range(patients)),
        rng.normal(size=(patients, 3)),
        labels,
        image=np.where(slices[..., None, None, None], image, 0).astype(np.float16),
        slices=slices,
        targets=targets,
        present=present,
    )
    return Hospital(name, whole, Limits(small_cells=k), {}, ())


def hospitals(**more: Any) -> list[Hospital]:
    """Three of different size."""
    return [hospital("east", 20, **more), hospital("north", 26, **more), hospital("south", 23, **more)]


def study(settings: Federation, members: list[Hospital], folder: Path, **more: Any) -> Any:
    """Run it in process."""
    return small.study(settings, members, folder, **more)
