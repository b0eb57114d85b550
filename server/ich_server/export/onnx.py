"""The network as ONNX, and the proof that it says the same: run by onnxruntime in a process without this package."""

import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ich_models.errors import ConfigurationError, RunError
from ich_models.files import write_atomic
from ich_server.export import check_onnx
from ich_server.export.network import OUTPUT, Array, Probabilities

OPSET: Final = 20

NEEDED: Final = ("onnx", "onnxscript", "onnxruntime")


def require() -> None:
    """Raise ConfigurationError unless what writes and runs ONNX is installed."""
    for name in NEEDED:
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            hint = "pip install 'ich-federation[export]'"
            raise ConfigurationError(
                f"ONNX needs the package '{error.name}', which is not installed", hint=hint
            ) from None


def write(function: Probabilities, arrays: dict[str, Array], answers: Array, folder: Path) -> None:
    """`model.onnx`, `sample.npz` (inputs and answers) and `check.py`, which compares the two; then run it.

    Raises RunError if the copy does not say what the network says.
    """
    require()
    tensors = tuple(torch.from_numpy(arrays[name]) for name in function.names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        made = _exported(function, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "model.onnx", made)
    write_atomic(folder / "sample.npz", npz({**arrays, OUTPUT: answers}))
    write_atomic(folder / "check.py", Path(check_onnx.__file__).read_bytes())
    check(folder)


def _exported(function: Probabilities, tensors: tuple[torch.Tensor, ...]) -> bytes:
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.CRITICAL)
    try:
        program: Any = torch.onnx.export(
            function,
            tensors,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(function.names),
            output_names=[OUTPUT],
            dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in tensors),),
        )
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
    content: bytes = program.model_proto.SerializeToString()
    return content


def npz(arrays: dict[str, Array]) -> bytes:
    """Arrays as an .npz file, the same bytes for the same arrays."""
    written = io.BytesIO()
    np.savez_compressed(written, allow_pickle=False, **arrays)
    return written.getvalue()


def check(folder: Path) -> str:
    """Run `check.py` in a process of its own, isolated from this one's environment; what it said.

    Raises RunError if the two differ.
    """
    command = [sys.executable, "-I", str(folder / "check.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(
            f"the ONNX copy is not the model: {(done.stdout or done.stderr).strip()[-400:]}",
            where=str(folder / "model.onnx"),
            hint="do not use the file; please report this with the federation file",
        )
    return done.stdout.strip()
