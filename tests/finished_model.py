"""A finished model with random weights in a folder, and ich-client's commands run on it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typer.testing import CliRunner

from ich_client import models
from ich_client.cli import app
from ich_client.models import Model
from ich_models.federation import load_federation
from ich_models.protocol import CONSTANTS, WEIGHTS
from ich_strategies.plan import Plan


def finished(folder: Path, seed: int = 3) -> Model:
    """A model with random weights of the federation file in the folder, written and read again.

    Every column of the table is about 0.5, filled with 0.4, and scaled by 2.
    """
    plan = Plan(load_federation(folder / "federation.yaml").value, seed)
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {WEIGHTS: plan.start_rows([0.3])[0]}
    tensors[WEIGHTS] = tensors[WEIGHTS] + rng.normal(0, 0.3, tensors[WEIGHTS].shape).astype(plan.number)
    if plan.constants.size:
        each = [np.full(plan.constants.size // 3, value) for value in (0.4, 0.5, 2)]  # fill, centre, scale
        tensors[CONSTANTS] = np.concatenate(each).astype(plan.number)
    models.write(folder / "model" / f"seed-{seed}", plan, tensors, 0.4, "0" * 64)
    return models.read(models.find(folder / "model"))


def call(*words: str | Path, code: int = 0) -> str:
    """The standard output of a command that succeeds, or what one that fails says (`code`)."""
    found = CliRunner().invoke(app, list(map(str, words)))
    if code:
        assert found.exception is not None
        return str(found.exception)
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout
