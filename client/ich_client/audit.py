"""The record of everything that left: one hash-chained line per reply, written before the reply goes."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ich_models import hash_chain
from ich_models.hash_chain import Entry
from ich_models.protocol import Rows, Task
from ich_models.strict import Strict


def record(path: Path, task: Task | None, reply: Strict, rows: Rows) -> Entry:
    """Add what is about to leave, and what asked for it: the reply's text in full, of numbers a digest and a summary.

    Raises OSError if it cannot be written, and DataError if the log was changed: nothing may leave then.
    """
    return hash_chain.append(path, {"event": "reply", **_asked(task), **_given(reply, rows)})


def _asked(task: Task | None) -> dict[str, Any]:
    if task is None:
        return {"task": None}
    facts = task.model_dump(exclude={"protocol", "package"})
    return {"task": type(task).__name__, **{key: facts[key] for key in facts if key in _SHOWN}}


_SHOWN = ("federation", "seed", "round", "folds", "parts", "questions", "threshold")


def _given(reply: Strict, rows: Rows) -> dict[str, Any]:
    blocks = {name: _summary(block) for name, block in rows.items()}
    return {"reply": type(reply).__name__, "message": reply.model_dump(mode="json"), "blocks": blocks}


def _summary(block: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(block).tobytes()
    return {
        "dtype": str(block.dtype),
        "shape": list(block.shape),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "norm": float(np.linalg.norm(block.astype(np.float64))),
    }


def entries(path: Path) -> Iterator[Entry]:
    """Every line, verified. Raises DataError at the first that was changed."""
    return hash_chain.read(path)


def size(content: Mapping[str, Any]) -> int:
    """Bytes of numbers that left with a line's reply."""
    return sum(int(block["bytes"]) for block in content.get("blocks", {}).values())
