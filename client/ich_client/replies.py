"""Replies of private training, kept as they left: the same question gets the same bytes again, and costs nothing more."""

import hashlib
from pathlib import Path
from typing import Final

from ich_models.files import read_arrays, write_arrays
from ich_models.protocol import ROUNDS_KEPT, Rows, TrainReply, TrainTask, rows_hash

_NAME: Final = "reply-{round:06d}-{key}.safetensors"


class Replies:
    """A folder with one file for each message of the last rounds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, task: TrainTask, rows: Rows) -> Path:
        """Where the answer to exactly this is kept: another number in `rows` makes it another question."""
        key = hashlib.sha256(f"{task.model_dump_json()}\n{rows_hash(rows)}".encode()).hexdigest()[:32]
        return self._folder / _NAME.format(round=task.round, key=key)

    def find(self, task: TrainTask, rows: Rows) -> tuple[TrainReply, Rows] | None:
        """What was answered to this."""
        path = self._path(task, rows)
        if not path.exists():
            return None
        kept, said = read_arrays(path)
        return TrainReply.model_validate(said), dict(kept)

    def keep(self, task: TrainTask, rows: Rows, reply: TrainReply, sent: Rows) -> None:
        """On disk before the reply leaves; replies of earlier rounds than a server can go back to are removed."""
        write_arrays(self._path(task, rows), sent, reply.model_dump(mode="json"))
        for path in self._folder.glob("reply-*.safetensors"):
            if not task.round - ROUNDS_KEPT < int(path.name.split("-")[1]) <= task.round:
                path.unlink(missing_ok=True)
