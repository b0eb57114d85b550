"""Private replies, kept as they left: the same question gets the same bytes again, and costs nothing more."""

import hashlib
from pathlib import Path
from typing import Final, TypeVar

from ich_models.files import read_arrays, write_arrays
from ich_models.protocol import ROUNDS_KEPT, EvaluateTask, Rows, TrainTask, rows_hash
from ich_models.strict import Strict

_TRAINING: Final = "reply-"
"""Before the round and the key in the name of what was answered to it."""

R = TypeVar("R", bound=Strict)


class Replies:
    """A folder with one file for each message of the last rounds, and of the evaluation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, task: TrainTask | EvaluateTask, rows: Rows) -> Path:
        """Where the answer to exactly this is kept: another number in `rows` makes it another question."""
        key = hashlib.sha256(f"{task.model_dump_json()}\n{rows_hash(rows)}".encode()).hexdigest()[:32]
        name = f"{_TRAINING}{task.round:06d}" if isinstance(task, TrainTask) else "evaluation"
        return self._folder / f"{name}-{key}.safetensors"

    def find(self, task: TrainTask | EvaluateTask, rows: Rows, kind: type[R]) -> tuple[R, Rows] | None:
        """What was answered to this."""
        path = self._path(task, rows)
        if not path.exists():
            return None
        kept, said = read_arrays(path)
        return kind.model_validate(said), dict(kept)

    def keep(self, task: TrainTask | EvaluateTask, rows: Rows, reply: Strict, sent: Rows) -> None:
        """On disk before the reply leaves; replies of earlier rounds than a server can go back to are removed."""
        write_arrays(self._path(task, rows), sent, reply.model_dump(mode="json"))
        if isinstance(task, TrainTask):
            for path in self._folder.glob(f"{_TRAINING}*.safetensors"):
                if not task.round - ROUNDS_KEPT < int(path.name.split("-")[1]) <= task.round:
                    path.unlink(missing_ok=True)
