"""What leave-one-hospital-out costs: all 50 models of 49 hospitals in one pass, against one model and one after another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from clock import Seconds, ratios
from data import STAGE, Case
from engines import DIRECT, run

from ich_deploy.source import Source
from ich_server.study import StudyResult

HOSPITALS: Final = 49
NETWORKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "logistic": {"name": "logistic"},
    "mlp": {"name": "mlp", "hidden": [64, 64]},
    "float64 mlp": {"name": "mlp", "hidden": [64, 64], "dtype": "float64"},  # are the differences but rounding?
}
_LOHO: Final = {"leave_one_hospital_out": True, "threshold": 0.5, "small_cells": 0}
_ONE: Final = {"leave_one_hospital_out": False, "test": 0.01, "threshold": 0.5, "small_cells": 0}
"""One model. A study must be tested on something: on two patients of a hospital, or one in a hundred."""


def measure(case: Case, folder: Path, *, rounds: int) -> dict[str, Any]:
    """A round of 50 models in one pass, and one after another, each over the rounds of one model beside it."""
    return {name: _measure(case, folder, name, network, rounds) for name, network in NETWORKS.items()}


def _measure(case: Case, folder: Path, name: str, network: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    def study(what: str, evaluation: Mapping[str, Any], rounds: int, **more: Any) -> Source:
        training = {"stages": [{**STAGE, "rounds": rounds}], **more}
        changes = {"network": network, "training": training, "evaluation": evaluation}
        return case.study(f"{what}-{name.replace(' ', '-')}", HOSPITALS, changes)

    one = study("one", _ONE, 4)

    def beside_one(origin: Source) -> tuple[list[tuple[Seconds, Seconds]], StudyResult]:
        """Each round with a round of one model, measured right after it."""
        ones: list[Seconds] = []

        def pause() -> None:
            alone = run(one, DIRECT, folder / one.federation.parent.name).rounds[1:]
            ones.append(sorted(alone, key=lambda seconds: seconds.cpu)[len(alone) // 2])

        done = run(origin, DIRECT, folder / origin.federation.parent.name, pause)
        assert done.result is not None
        return list(zip(done.rounds, ones, strict=True))[1:], done.result

    together, batched = beside_one(study("together", _LOHO, rounds + 1))
    # in messages too small for two folds, each model travels alone and is trained alone
    apart, naive = beside_one(study("apart", _LOHO, rounds + 1, message_limit=1))
    difference = np.abs(batched.rows["weights"] - naive.rows["weights"]).max()
    return {
        "models": len(batched.folds),
        "in one pass": ratios(together),
        "one after another": ratios(apart),
        "largest difference of weights": float(difference),
    }
