"""The export folder: the model as it is kept, its weights by name, preparation, card, and copies for other programs, all hashed."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from safetensors.numpy import save

from ich_models.errors import ConfigurationError
from ich_models.files import write_atomic, write_json
from ich_models.protocol import CONSTANTS, LOCAL, WEIGHTS
from ich_server.export import card, network, onnx, preprocessing
from ich_server.results import Results
from ich_strategies import models
from ich_strategies.models import Model

SUMS: Final = "SHA256SUMS"


def export(
    run: Path,
    results: Results,
    folder: Path,
    *,
    seed: int | None = None,
    as_onnx: bool = False,
    as_monai: bool = False,
    weights: Mapping[str, Path] = MappingProxyType({}),
) -> list[str]:
    """Write the model of all hospitals of a finished run to `folder`; what was written, as lines of SHA256SUMS.

    `seed`: of several the first is taken. `weights`: published weights that the study pins, where they lie here.
    Raises ConfigurationError for a run without a model, another study's results, a folder that holds something else,
    and a network that cannot be exported; RunError if a copy does not say what the model says.
    """
    kept = _settle(folder)
    seeds = results.seeds if seed is None else [seed]
    model = models.read(models.find(run / "model", seeds=tuple(seeds)), files=weights)
    _check(run, model, results)
    if as_onnx or as_monai:
        network.exportable(model.plan)
    if as_onnx:
        onnx.require()
    for old in kept:
        old.unlink(missing_ok=True)
    _write_model(models.find(run / "model", seeds=tuple(seeds)), model, folder)
    write_json(folder / "preprocessing.json", preprocessing.describe(model))
    write_json(folder / "model_card.json", card.as_json(model, results))
    write_atomic(folder / "MODEL_CARD.md", card.as_markdown(model, results).encode())
    if as_onnx or as_monai:
        function = network.function_of(model)
        arrays = network.sample(model.plan)
        answers = network.expected(function, arrays)
        if as_onnx:
            onnx.write(function, arrays, answers, folder / "onnx")
        if as_monai:
            from ich_server.export import monai  # seconds, and a package that a study on tables has no need of

            monai.write(model, results, function, arrays, answers, folder / "monai")
    return _sums(folder)


def _settle(folder: Path) -> list[Path]:
    """The files of an earlier export there. Raises ConfigurationError for a folder that holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return []
    listed = folder / SUMS
    if not listed.exists():
        hint = "name an empty folder, or one that ich-server export wrote"
        raise ConfigurationError("the folder holds other files", where=str(folder), hint=hint)
    names = [line.partition("  ")[2] for line in listed.read_text().splitlines()]
    inside = [folder / name for name in names if (folder / name).resolve().is_relative_to(folder.resolve())]
    return [*inside, listed]


def _check(run: Path, model: Model, results: Results) -> None:
    sha256 = results.models.get(str(model.plan.seed), model.card["sha256"])
    if (results.study.federation, sha256) != (model.plan.hash, model.card["sha256"]):
        message = "the model is not the one that results.json tells of"
        raise ConfigurationError(message, where=str(run), hint="take the run's folder as a study left it")


def _write_model(source: Path, model: Model, folder: Path) -> None:
    for name in (models.TENSORS, models.CARD, models.STUDY):
        write_atomic(folder / name, (source / name).read_bytes())
    write_atomic(folder / "weights.safetensors", save(named(model), metadata={"use": card.USE}))


def named(model: Model) -> dict[str, np.ndarray]:
    """The network's tensors by their names in it, constants included; frozen encoders, which did not travel, are not."""
    plan = model.plan
    layouts = {WEIGHTS: plan.weights, CONSTANTS: plan.constants, LOCAL: plan.local}
    found: dict[str, np.ndarray] = {}
    for block, layout in layouts.items():
        if layout.size:
            tensors = layout.unpack(torch.from_numpy(model.rows[block]))
            found |= {name: np.ascontiguousarray(tensor[0].numpy()) for name, tensor in tensors.items()}
    return dict(sorted(found.items()))


def _sums(folder: Path) -> list[str]:
    files: Sequence[Path] = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    ]
    write_atomic(folder / SUMS, ("\n".join(lines) + "\n").encode())
    return lines
