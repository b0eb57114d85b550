"""Everything a study needs to go on after a crash: one file per round, whole or absent, the last two kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ich_models.errors import RunError
from ich_models.files import read_arrays, write_arrays

KEPT: Final = 2


@dataclass
class Progress:
    """Where a study stands after `round` rounds; rows are in the order of `folds`.

    `rows`: 'weights', 'best', 'constants', 'local', and the strategy's own as 'state.NAME', each (F, size).
    `facts`: JSON values: who takes part, with which statistics; the history; what was quarantined.
    """

    federation: str
    seed: int
    round: int
    folds: list[str]
    rows: dict[str, NDArray[np.floating]]
    facts: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, progress: Progress) -> None:
    """Write the round's file, then drop all but the last two."""
    facts = {name: getattr(progress, name) for name in ("federation", "seed", "round", "folds", "facts")}
    write_arrays(_path(folder, progress.round), progress.rows, facts)
    for old in sorted(folder.glob("round-*.safetensors"))[:-KEPT]:
        old.unlink()


def load(folder: Path, federation: str, seed: int) -> Progress | None:
    """The newest checkpoint, or None. Raises RunError if it belongs to another federation."""
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        return None
    rows, facts = read_arrays(paths[-1])
    if (facts["federation"], facts["seed"]) != (federation, seed):
        raise RunError(
            "the checkpoint belongs to another federation file or seed",
            where=str(paths[-1]),
            hint="resume with the federation file that the study was started with, or start anew in another folder",
        )
    return Progress(rows=rows, **facts)


def clear(folder: Path) -> None:
    """Forget an earlier study."""
    for path in folder.glob("round-*.safetensors"):
        path.unlink()


def _path(folder: Path, round_number: int) -> Path:
    return folder / f"round-{round_number:06d}.safetensors"
