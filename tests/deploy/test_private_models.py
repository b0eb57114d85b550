"""The five shared models, trained with differential privacy in whole studies, stage by stage, on a few patients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import small_private
from small_networks import patients as batch_of

from ich_client.hospital import Limits
from ich_client.ledger import spent
from ich_client.site import ledger_in
from ich_client.tables import Hospital
from ich_models.accounting import Steps, epsilon, programme
from ich_models.batch import Patients
from ich_models.federation import Federation
from ich_models.protocol import WEIGHTS
from ich_strategies.plan import Plan

CT = {"kind": "ct", "size": [16, 32, 32], "spacing": [8, 6, 6], "windows": [[40, 80]]}
SLICES = {"kind": "ct_slices", "size": [32, 32], "windows": [[40, 80], [80, 200], [600, 2800]], "most": 3}
VIEWS = {"kind": "radiograph", "size": [64, 64], "repeat": 3, "most": 3}
TEXT = {"source": "template", "tokens": 32}
ALONE = {"sdm": 0, "prototypes": 0.84, "negatives": "bank"}

PRIVATE: dict[str, dict[str, Any]] = {
    "ichpro": {"image": CT, "text": TEXT, "stages": ["encoders", "fusion"], "losses": ALONE},
    "vdafm": {"image": CT, "text": TEXT, "stages": ["train"], "losses": {"negatives": "bank"}},
    "mednvc": {"image": VIEWS, "stages": ["pretrain", "train"]},
    "hohoho": {"image": SLICES, "stages": ["encoder", "sequence"]},
    "dlmi": {"image": SLICES, "stages": ["train"], "positives": [1, 1, 1, 1, 1]},
}
"""What each needs beside `privacy`; everything else is as it stands without."""


def federation(name: str) -> Federation:
    """One round of each stage."""
    more = dict(PRIVATE[name])
    stages = [
        {"name": stage, "rounds": 1, "epochs": 1, "batch": 8, "optimizer": small.SGD} for stage in more.pop("stages")
    ]
    modalities = {key: more.pop(key) for key in ("image", "text") if key in more}
    base = small_private.federation({"patients": 8}, training={"stages": stages}).model_dump(
        by_alias=True, exclude_unset=True
    )
    base["modalities"] |= modalities
    base["network"] = {"name": name, "size": "tiny", **more}
    if name in ("hohoho", "dlmi"):
        base["task"] |= {"kind": "slices"}
    return Federation.model_validate(base)


def hospital(name: str, network: str, seed: int) -> Hospital:
    """Eight patients who have everything that the network reads."""
    batch = batch_of(network, 8, seed)
    generator = np.random.default_rng(seed)
    there = {key: None if (found := getattr(batch, key)) is None else found.numpy() for key in ("image", "text")}
    slices: dict[str, Any] = {}
    if batch.label.ndim > 1:
        slices = {"slices": np.ones(batch.label.shape[:2], np.bool_), "targets": batch.label.numpy()}
    ids = tuple(f"{name}-{number}" for number in range(8))
    return Hospital(
        name,
        Patients(ids, generator.normal(size=(8, 3)), np.arange(8) % 2, **there, **slices),
        Limits(small_cells=0),
        {},
        (),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIVATE)
def test_each_of_the_five_models_is_trained_privately(name: str, tmp_path: Path) -> None:
    """Stage by stage, the model of all and three leave-one-hospital-out; a quarter of the patients in each of four steps."""
    settings = federation(name)
    plan, start = programme(settings), Plan(settings, 42).start.numpy()
    found = small.study(settings, [hospital(f"h{number}", name, number) for number in range(3)], tmp_path)
    assert found.quarantined == []
    trained = found.rows[WEIGHTS]
    assert trained.shape == (4, start.shape[1])
    assert np.isfinite(trained).all()
    assert (trained != start).mean() > 0.9, "what only another stage trains may stand still"
    # round 1: all models begin alike and are trained once; round 2: the three that each hospital takes part in
    steps = 4 + 3 * 4 * (len(PRIVATE[name]["stages"]) - 1)
    for number in range(3):
        charged = spent(ledger_in(tmp_path / "hospitals", f"h{number}").read().charges)
        assert charged == (Steps(plan.sigma, 0.25, steps),)
        assert epsilon(charged, 1e-3) <= plan.study <= 3.0
