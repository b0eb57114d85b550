"""A finished model with random weights in a folder, and ich-client's commands run on it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typer.testing import CliRunner

from ich_client.cli import app
from ich_models.federation import load_federation
from ich_models.image_spec import HAEMORRHAGES
from ich_models.protocol import CONSTANTS, WEIGHTS
from ich_strategies import models
from ich_strategies.models import Model
from ich_strategies.plan import Plan


def finished(folder: Path, seed: int = 3) -> Model:
    """A model with random weights of the federation file in the folder, written and read again.

    Every column of the table is about 0.5, filled with 0.4, and scaled by 2. In a study of slices
    thresholds are 0.3, 0.4 ... by type.
    """
    plan = Plan(load_federation(folder / "federation.yaml").value, seed)
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {WEIGHTS: plan.start_rows([0.3])[0]}
    tensors[WEIGHTS] = tensors[WEIGHTS] + rng.normal(0, 0.3, tensors[WEIGHTS].shape).astype(plan.number)
    if plan.constants.size:
        values = {"fill": 0.4, "centre": 0.5, "scale": 2}
        shapes = plan.constants.shapes.items()
        each = [np.full(shape.numel(), values.get(name.rpartition(".")[2], 1)) for name, shape in shapes]
        tensors[CONSTANTS] = np.concatenate(each).astype(plan.number)
    sliced = plan.federation.task.kind == "slices"
    limits = {name: 0.3 + 0.1 * place for place, name in enumerate(HAEMORRHAGES)} if sliced else {}
    models.write(folder / "model" / f"seed-{seed}", plan, tensors, None if sliced else 0.4, "0" * 64, limits)
    return models.read(models.find(folder / "model"))


def of_slices(folder: Path, stage: str) -> None:
    """Make the folder's study one of slices, with one stage of this name and a threshold for each type."""
    study = (folder / "federation.yaml").read_text()
    study = study.replace("task: {", "task: {kind: slices, ").replace("[{rounds", f"[{{name: {stage}, rounds")
    (folder / "federation.yaml").write_text(study)


def call(*words: str | Path, code: int = 0) -> str:
    """The standard output of a command that succeeds, or what one that fails says (`code`)."""
    found = CliRunner().invoke(app, list(map(str, words)))
    if code:
        assert found.exception is not None
        return str(found.exception)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout
