"""What a hospital keeps between rounds (SCAFFOLD's variate, FedBN's layers): on disk before the reply, so a resume is exact."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ich_models.files import read_arrays, write_arrays
from ich_models.protocol import ROUNDS_KEPT, Rows


class State:
    """A folder with one file per round and message."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _rounds(self) -> dict[int, list[Path]]:
        """The files of each round, in a fixed order."""
        rounds: dict[int, list[Path]] = {}
        for path in sorted(self._folder.glob("round-*.safetensors")):
            rounds.setdefault(int(path.name.split("-")[1]), []).append(path)
        return rounds

    def load(self, before: int | None = None) -> dict[str, dict[str, NDArray[np.floating]]]:
        """Fold -> name -> row, each from the newest round (before `before`) that has it."""
        found: dict[str, dict[str, NDArray[np.floating]]] = {}
        rounds = self._rounds()
        for number in sorted(rounds):
            if before is None or number < before:
                for path in rounds[number]:
                    rows, folds = read_arrays(path)
                    for index, fold in enumerate(folds):
                        found[fold] = {name: block[index] for name, block in rows.items()}
        return found

    def save(self, folds: Sequence[str], round_number: int, rows: Rows) -> None:
        """Keep the rows of these folds; drop later rounds (of an interrupted run) and all but the last two."""
        digest = hashlib.sha256("\n".join(folds).encode()).hexdigest()[:12]
        write_arrays(self._folder / f"round-{round_number:06d}-{digest}.safetensors", rows, list(folds))
        rounds = self._rounds()
        current = sorted(number for number in rounds if number <= round_number)[-ROUNDS_KEPT:]
        for number in set(rounds) - set(current):
            for path in rounds[number]:
                path.unlink(missing_ok=True)
