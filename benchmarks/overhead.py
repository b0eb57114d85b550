"""What the engines cost beside the training itself: over a bare loop, per message, and against Flower's own on Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from bare import BareLoop
from clock import Spread, ratios
from data import STAGE, Case
from engines import DIRECT, FLOWER, SERIALISED, plan_of, run, sites_of

HOSPITALS: Final = 16

STUDY: Final[Mapping[str, Any]] = {
    "network": {"name": "mlp", "hidden": [64, 64]},
    "evaluation": {"leave_one_hospital_out": False, "test": 0.2, "threshold": 0.5, "small_cells": 0},
}


def measure(case: Case, folder: Path, *, repeats: int, flower: bool) -> dict[str, Any]:
    """Rounds of the MLP on the 16 largest hospitals, each beside the bare loop's round with the same numbers."""
    origin = case.study("overhead", HOSPITALS, {**STUDY, "training": {"stages": [{**STAGE, "rounds": 9}]}})
    found: dict[str, Any] = {}
    for engine, times in _engines(repeats, flower=flower).items():
        pairs, differences, starts, wholes = [], [], [], []
        for repeat in range(times):
            bare = BareLoop(plan_of(origin), sites_of(origin, folder))
            done = run(origin, engine, folder / f"{engine}-{repeat}", bare.round)
            assert done.result is not None
            pairs += done.pairs
            differences.append(float((torch.from_numpy(done.result.rows["weights"][0]) - bare.row()).abs().max()))
            starts.append(done.rounds[0].wall - Spread.of([own.wall for own, _ in done.pairs]).median)
            wholes.append(sum(own.wall for own in done.rounds))
        found[engine] = {
            "over bare": _clocks(ratios(pairs), engine),
            "round seconds": Spread.of([own.wall for own, _ in pairs]),
            "start seconds": Spread.of(starts),
            "9 rounds with start, seconds": Spread.of(wholes),
            "largest difference of weights": max(differences),
        }
    if flower:
        found[FLOWER]["rounds over direct"] = (
            found[FLOWER]["over bare"]["wall"].median / found[DIRECT]["over bare"]["wall"].median
        )
        found[FLOWER]["9 rounds with start over direct"] = (
            found[FLOWER]["9 rounds with start, seconds"].median / found[DIRECT]["9 rounds with start, seconds"].median
        )
    return found


def measure_messages(case: Case, folder: Path, *, repeats: int, flower: bool) -> dict[str, Any]:
    """Milliseconds per message: a round of one step per hospital, without the bare loop's round of one step."""
    stage = {name: value for name, value in STAGE.items() if name != "epochs"} | {"updates": 1, "rounds": 30}
    origin = case.study("messages", HOSPITALS, {**STUDY, "training": {"stages": [stage]}})
    found: dict[str, Any] = {}
    for engine, times in _engines(repeats, flower=flower).items():
        pairs = []
        for repeat in range(times):
            bare = BareLoop(plan_of(origin), sites_of(origin, folder))
            pairs += run(origin, engine, folder / f"messages-{engine}-{repeat}", bare.round).pairs
        found[engine] = _clocks(
            {
                clock: Spread.of([1000 * getattr(own - other, clock) / HOSPITALS for own, other in pairs])
                for clock in ("wall", "cpu")
            },
            engine,
        )
    return found


def _engines(repeats: int, *, flower: bool) -> dict[str, int]:
    """Which engines are measured, and how often."""
    return {DIRECT: repeats, SERIALISED: repeats} | ({FLOWER: 1} if flower else {})


def _clocks(figures: dict[str, Spread], engine: str) -> dict[str, Spread]:
    """Without this process's computing time where others compute."""
    return {clock: figure for clock, figure in figures.items() if engine != FLOWER or clock == "wall"}
