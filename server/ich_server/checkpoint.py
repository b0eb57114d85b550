"""Everything a study needs to go on after a crash: one file per round, whole or absent, the last two kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from ich_models.errors import RunError
from ich_models.files import read_arrays, write_arrays
from ich_models.protocol import ROUNDS_KEPT

Facts = dict[str, Any]


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
    facts: Facts = field(default_factory=dict)


def save(folder: Path, progress: Progress) -> None:
    """Write the round's file, then drop all but the last two."""
    facts = {name: getattr(progress, name) for name in ("federation", "seed", "round", "folds", "facts")}
    write_arrays(path_of(folder, progress.round), progress.rows, facts)
    for old in sorted(folder.glob("round-*.safetensors"))[:-ROUNDS_KEPT]:
        old.unlink()


def load(folder: Path, federation: str, seed: int) -> Progress | None:
    """The newest checkpoint, or None. Raises RunError if it belongs to another federation."""
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        return None
    rows, facts = read(paths[-1], federation, seed)
    return Progress(rows=rows, **facts)


def newest(folder: Path) -> int:
    """The last round that is kept; 0 if there is none."""
    return max((int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.safetensors")), default=0)


def read(path: Path, federation: str, seed: int) -> tuple[dict[str, NDArray[Any]], Facts]:
    """Rows and facts of a file of this study. Raises RunError if it is broken, or belongs to another study."""
    with path.open("rb"):
        pass  # a file that may not be read is said to be so, by the operating system
    try:
        rows, facts = read_arrays(path)
        whose = (facts["federation"], facts["seed"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            f"the file cannot be read ({type(error).__name__})",
            where=str(path),
            hint="take it from a backup, or remove it: --resume then goes on from what is older, or begins anew",
        ) from error
    if whose != (federation, seed):
        raise RunError(
            "the file belongs to another federation file or seed",
            where=str(path),
            hint="resume with the federation file that the study was started with, or start anew in another folder",
        )
    return rows, facts


def clear(folder: Path) -> None:
    """Forget an earlier study."""
    for path in folder.glob("round-*.safetensors"):
        path.unlink()


def path_of(folder: Path, round_number: int) -> Path:
    """The file of a round."""
    return folder / f"round-{round_number:06d}.safetensors"
