"""Files that are whole or absent: written beside, flushed to disk, then renamed."""

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import safe_open
from safetensors.numpy import save


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` so that a crash leaves the old file or the new one, never half of either.

    Raises OSError, with the path in it, and leaves nothing half-written behind.
    """
    write_atomic_with(path, lambda file: file.write(content))


def write_atomic_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The same for content that `write` puts into the open file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read. Raises FileExistsError rather than replace one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """JSON for people: indented, keys in the order given, NaN refused."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_rows(path: Path, shape: Sequence[int], dtype: DTypeLike, rows: Iterable[tuple[int, NDArray[Any]]]) -> None:
    """An array as an .npy file, filled along its first axis: (place, values), of a row or of its beginning.

    What nobody fills is zeros that take no space. Raises OSError with its number where the disk is full: that of `np.save`
    has none, and a full disk under a mapped file ends the program.
    """
    whole, kind = tuple(shape), np.dtype(dtype)
    each = prod(whole[1:]) * kind.itemsize
    with path.open("wb") as file:
        about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": whole}
        np.lib.format.write_array_header_1_0(file, about)
        begin = file.tell()
        for place, values in rows:
            file.seek(begin + place * each)
            file.write(np.ascontiguousarray(values, kind).tobytes())
        file.truncate(begin + whole[0] * each)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], facts: object) -> None:
    """Arrays and JSON facts in one safetensors file, the same bytes for the same content."""
    whole = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    write_atomic(path, save(whole, metadata={"facts": json.dumps(facts, allow_nan=False)}))


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], Any]:
    """What `write_arrays` wrote."""
    with safe_open(path, framework="numpy") as file:
        names = file.keys()  # no mapping: it cannot be iterated itself
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["facts"])


def read_facts(path: Path) -> Any:
    """The facts alone: the arrays stay on the disk."""
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["facts"])


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text())
