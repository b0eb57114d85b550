"""The five shared models, each trained under privacy in a whole study, stage by stage, on a few generated patients."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import small_private
import torch
import yaml
from numpy.typing import NDArray
from small_networks import patients as batch_of

from ich_client import self_test
from ich_client.gradients import Draw, Engine
from ich_client.hospital import Limits
from ich_client.ledger import spent
from ich_client.site import ledger_in
from ich_client.tables import Hospital
from ich_models.accounting import Steps, programme
from ich_models.batch import Patients
from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_models.networks.staged import enter
from ich_models.protocol import WEIGHTS
from ich_strategies.plan import Plan

CT = {"kind": "ct", "size": [16, 32, 32], "spacing": [8, 6, 6], "windows": [[40, 80]]}
SLICES = {"kind": "ct_slices", "size": [32, 32], "windows": [[40, 80], [80, 200], [600, 2800]], "most": 3}
VIEWS = {"kind": "radiograph", "size": [64, 64], "repeat": 3, "most": 3}
TEXT = {"source": "template", "tokens": 32}
BANK = {"sdm": 0, "prototypes": 0.84, "negatives": "bank"}
NONE = {"sdm": 0, "prototypes": 1, "negatives": "none"}

HOSPITALS = ("east", "north", "south")
PATIENTS = 8
RATE = 0.25

Case = tuple[str, tuple[str, ...], dict[str, Any], dict[str, Any]]


def case(name: str, stages: tuple[str, ...], modalities: dict[str, Any], *marks: Any, **network: Any) -> Any:
    """A network, the stages of its study, what it reads, and what it needs beside its tiny size."""
    return pytest.param((name, stages, modalities, network), id=f"{name}, {'+'.join(stages)}", marks=marks)


CASES = [
    case("ichpro", ("train",), {"image": CT, "text": TEXT}, pytest.mark.slow, losses=NONE),
    case("ichpro", ("encoders", "fusion"), {"image": CT, "text": TEXT}, pytest.mark.slow, losses=BANK),
    case("vdafm", ("train",), {"image": CT, "text": TEXT}, pytest.mark.slow, losses={"negatives": "bank"}),
    case("mednvc", ("pretrain", "train"), {"image": VIEWS}, pytest.mark.slow),
    case("hohoho", ("encoder", "sequence"), {"image": SLICES}, pytest.mark.slow),
    case(
        "hohoho",
        ("pretrain", "encoder", "sequence"),
        {"image": SLICES},
        pytest.mark.slow,
        losses={"negatives": "bank"},
    ),
    case("dlmi", ("train",), {"image": SLICES}, positives=[1, 1, 2, 3, 9]),
]


def federation(case: Case) -> Federation:
    """One round of each stage at three hospitals, each of which is left out once."""
    name, stages, modalities, network = case
    training = [{"name": one, "rounds": 1, "epochs": 1, "batch": 8, "optimizer": small.SGD} for one in stages]
    privacy = {"patients": PATIENTS, "rate": RATE, "clip": 1.0}
    base = small_private.federation(privacy, training={"stages": training}).model_dump(
        by_alias=True, exclude_unset=True
    )
    base["modalities"] |= modalities
    base["network"] = {"name": name, "size": "tiny", **network}
    if modalities["image"] is SLICES:
        base["task"] |= {"kind": "slices"}
    return Federation.model_validate(base)


def hospital(name: str, network: str, seed: int) -> Hospital:
    """Patients who have everything that the network reads."""
    batch = batch_of(network, PATIENTS, seed)
    there = {key: found.numpy() for key in ("image", "text") if (found := getattr(batch, key)) is not None}
    if batch.label.ndim > 1:
        there |= {"slices": np.ones(batch.label.shape[:2], np.bool_), "targets": batch.label.numpy()}
    ids = tuple(f"{name}-{number}" for number in range(PATIENTS))
    table = np.random.default_rng(seed).normal(size=(PATIENTS, 3))
    return Hospital(name, Patients(ids, table, np.arange(PATIENTS) % 2, **there), Limits(small_cells=0), {}, ())


def stages_of_each_number(plan: Plan, stages: tuple[str, ...]) -> NDArray[np.int64]:
    """In how many of the stages each number that travels learns."""
    network = plan.network
    learns: list[set[str]] = []
    for stage in stages:
        enter(network, stage)
        learns.append({name for name, parameter in network.named_parameters() if parameter.requires_grad})
    shapes = plan.weights.shapes.items()
    return np.concatenate([np.full(shape.numel(), sum(name in one for one in learns)) for name, shape in shapes])


@pytest.mark.parametrize("case", CASES)
def test_trained_privately_in_a_whole_study(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, stages, *_ = case
    settings = federation(case)
    tested: list[tuple[str, int, float]] = []

    def tested_as_ever(engine: Engine, network: torch.nn.Module, draw: Draw, clip: float) -> None:
        tested.append((str(network.stage), len(draw.rows), clip))
        ours(engine, network, draw, clip)

    ours = self_test.run
    monkeypatch.setattr(self_test, "run", tested_as_ever)
    plan = Plan(settings, 42)
    members = [hospital(one, name, number) for number, one in enumerate(HOSPITALS)]
    found = small.study(settings, members, tmp_path)

    assert found.quarantined == []
    assert [entry["round"] for entry in found.history] == list(range(1, len(stages) + 1))
    assert set(found.answers) == set(HOSPITALS)

    # each hospital's own self-test of each stage passed, on three of its patients
    assert sorted(tested) == sorted((stage, 3, 1.0) for stage in stages for _ in HOSPITALS)

    # a round has four steps (one epoch at rate 1/4); in the first all models are one, then a hospital trains three of the four
    programmed = programme(settings)
    assert programmed.rounds == (4,) * len(stages)
    charged = (Steps(programmed.sigma, RATE, 4 + 3 * 4 * (len(stages) - 1)),)
    for one in HOSPITALS:
        assert spent(ledger_in(tmp_path / "hospitals", one).read().charges) == charged
    assert programmed.study <= 3.0

    # The gradients of at most eight patients drown in noise of one standard deviation in every number that learns: four steps
    # a stage, lr 0.1 times sigma C over (q times 8 patients), the mean of three hospitals. What rests does not move at all.
    moved = (found.rows[WEIGHTS] - plan.start_rows([0.0])).astype(np.float64)
    assert np.isfinite(moved).all()
    counts = stages_of_each_number(plan, stages)
    assert (moved[:, counts == 0] == 0).all()
    for times in set(counts.tolist()) - {0}:
        noise = 0.1 * programmed.sigma / (RATE * PATIENTS) * (4 * times / len(HOSPITALS)) ** 0.5
        assert moved[0, counts == times].std() == pytest.approx(noise, rel=0.03)


# --- what docs/privacy.md says that they need -------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[2] / "docs/privacy.md"
LINE = re.compile(r"^\| `(ichpro|vdafm|mednvc|hohoho|dlmi)`, (.*?) \| `(\{.*?\})`", re.MULTILINE)
LINES = [
    (name, tuple(re.findall("`(.*?)`", stages)), yaml.safe_load(keys))
    for name, stages, keys in LINE.findall(DOCUMENT.read_text())
]
READS: dict[str, dict[str, Any]] = {
    "ichpro": {"image": CT, "text": {**TEXT, "tokens": 64}},
    "vdafm": {"image": CT, "text": TEXT},
    "mednvc": {"image": VIEWS},
}


def complaints(folder: Path, name: str, stages: tuple[str, ...], keys: dict[str, Any]) -> str:
    """What the commands say of the file of such a study, with the network at its published size."""
    settings = federation((name, stages, READS.get(name, {"image": SLICES}), {}))
    written = settings.model_dump(mode="json", by_alias=True, exclude_unset=True)
    (folder / "study.yaml").write_text(yaml.safe_dump({**written, "network": {"name": name, **keys}}))
    try:
        load_federation(folder / "study.yaml")
    except ConfigurationError as error:
        return str(error)
    return ""


def test_every_model_has_a_line() -> None:
    assert {name for name, _, _ in LINES} == {"ichpro", "vdafm", "mednvc", "hohoho", "dlmi"}
    assert len(LINES) == 7


@pytest.mark.parametrize(("name", "stages", "keys"), LINES, ids=lambda value: str(value)[:30])
def test_a_line_is_enough_and_all_of_it_is_needed(
    name: str, stages: tuple[str, ...], keys: dict[str, Any], tmp_path: Path
) -> None:
    assert complaints(tmp_path, name, stages, keys) == ""
    for key in keys:
        fewer = {other: keys[other] for other in keys if other != key}
        why = "without network.supervise the stage 'fusion'" if key == "supervise" else "differential privacy refuses"
        assert why in complaints(tmp_path, name, stages, fewer), key
