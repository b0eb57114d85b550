"""Networks with encoders in whole studies: frozen ones once per patient, stages, missing modalities, published weights."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from safetensors.torch import save_file

from ich_client.site import Site
from ich_client.tables import Hospital
from ich_client.work import load_stack
from ich_models.batch import Patients
from ich_models.errors import ConfigurationError
from ich_models.exchange import seen_by
from ich_models.files import read_arrays
from ich_models.networks.options import TINY_TEXT, TINY_VOLUME
from ich_models.networks.staged import Encoder
from ich_models.protocol import TRAIN, WEIGHTS, TrainReply, from_record
from ich_server.rounds import Quarantine
from ich_strategies.plan import Plan

FROZEN = {
    "name": "concat",
    "size": "tiny",
    "image": {**TINY_VOLUME, "frozen": True},
    "text": {**TINY_TEXT, "frozen": True},
}
NO_LOHO = {"leave_one_hospital_out": False, "test": 0.25}


def hospital(name: str, patients: int = 24, seed: int = 0, *, images: bool = True) -> Hospital:
    """Patients with random volumes and texts; two of them lack the one, two others the other."""
    plain = small.hospital(name, patients, seed)
    generator = np.random.default_rng((seed, patients))
    image_there, text_there = np.full(patients, images), np.ones(patients, np.bool_)
    image_there[2:4], text_there[4:6] = False, False
    whole = replace(
        plain.patients,
        image=generator.normal(size=(patients, 1, 8, 16, 16)).astype(np.float16),
        text=generator.integers(110, 500, (patients, 12)) * text_there[:, None],
        present={"image": image_there, "text": text_there},
    )
    return replace(plain, patients=whole)


def study(network: dict[str, Any], **settings: Any) -> Any:
    modalities = {"image": {"kind": "ct", "size": [8, 16, 16]}, "text": {"tokens": 12}}
    federation = small.federation(network=network, **{"evaluation": NO_LOHO, **settings})
    whole = federation.model_dump(by_alias=True)
    whole["modalities"] |= modalities
    return type(federation).model_validate(whole)


def test_a_frozen_encoders_features_replace_what_it_reads(tmp_path: Path) -> None:
    plan = Plan(study(FROZEN), 1)
    site = Site(plan, hospital("north"), tmp_path)
    patients = site.hospital.patients
    assert patients.image is None
    assert patients.text is None
    stack = load_stack(plan, {WEIGHTS: plan.start.numpy(), "constants": site.constants(0).numpy()})
    with_features = stack.logits(patients.batch(plan.dtype))
    directly = stack.logits(hospital("north").patients.batch(plan.dtype))
    assert torch.allclose(with_features, directly, atol=1e-5)
    assert list(patients.holding("image")[:6]) == [True, True, False, False, True, True]


def test_features_are_computed_once_and_again_when_the_images_change(tmp_path: Path, monkeypatch: Any) -> None:
    plan = Plan(study(FROZEN), 1)
    calls: list[int] = []
    encode = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, data: calls.append(len(data)) or encode(self, data))
    Site(plan, hospital("north"), tmp_path)
    assert sum(calls) == 22 + 22
    calls.clear()
    Site(plan, hospital("north"), tmp_path)
    assert not calls
    other = hospital("north")
    assert other.patients.image is not None
    other.patients.image[7] += 1
    Site(plan, other, tmp_path)
    assert sum(calls) == 22
    assert len(list(tmp_path.rglob("features-*.npy"))) == 2, "what is no longer needed is gone"


def test_frozen_encoders_neither_travel_nor_change(tmp_path: Path) -> None:
    settings = study(FROZEN)
    plan = Plan(settings, 1)
    assert not seen_by(plan.outline, plan.weights)
    before = {name: tensor.clone() for name, tensor in plan.network.image.state_dict().items()}
    site = Site(plan, hospital("north"), tmp_path)
    del site
    found = small.study(settings, [hospital(name, 24, index) for index, name in enumerate("abc")], tmp_path, seed=1)
    assert np.isfinite(found.of(["all"])[WEIGHTS]).all()
    assert all(torch.equal(plan.network.image.state_dict()[name], tensor) for name, tensor in before.items())


def two_stages(**settings: Any) -> Any:
    network = {
        "name": "ichpro",
        "size": "tiny",
        "text": {**TINY_TEXT, "positions": 16},
        "tokens": 16,
        "losses": {"mlm": 0.0},
    }
    federation = study(network, **settings)
    whole = federation.model_dump(by_alias=True)
    whole["modalities"]["text"]["tokens"] = 12
    stage = {"rounds": 1, "epochs": 1, "batch": 8, "optimizer": {"name": "adam", "lr": 0.01}}
    whole["training"]["stages"] = [{**stage, "name": "encoders"}, {**stage, "name": "fusion"}]
    return type(federation).model_validate(whole)


def test_stages_follow_each_other_and_each_moves_what_it_trains(tmp_path: Path) -> None:
    settings = two_stages()
    members = [hospital(name, 24, index) for index, name in enumerate("abc")]
    after: dict[int, Any] = {}
    plan = Plan(settings, 42)

    def note(report: Any) -> None:
        path = tmp_path / "server" / f"round-{report.round:06d}.safetensors"
        after[report.round] = plan.weights.unpack(torch.from_numpy(read_arrays(path)[0][WEIGHTS]))

    small.study(settings, members, tmp_path, watch=note)
    start = plan.weights.unpack(torch.from_numpy(plan.start_rows([0.0])))
    learns = {name: name.split(".")[0] for name in start}
    for name, child in learns.items():
        first = not torch.equal(start[name], after[1][name])
        second = not torch.equal(after[1][name], after[2][name])
        if child in ("maps", "fusion", "tail", "output"):
            assert not first, name
        else:
            assert not second, name
    assert any(not torch.equal(after[1][name], after[2][name]) for name, child in learns.items() if child == "tail")
    assert any(not torch.equal(start[name], after[1][name]) for name, child in learns.items() if child == "image")


def test_what_rests_is_asked_once_per_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the stage fusion an image passes its encoder once, and then again to be evaluated, however many the epochs."""
    settings = two_stages()
    stage = settings.training.stages[1].model_copy(update={"epochs": 5})
    first = settings.training.stages[0]
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"stages": [first, stage]})})
    calls: list[int] = []
    encode = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, data: calls.append(len(data)) or encode(self, data))
    small.study(settings, [hospital(name, 24, index) for index, name in enumerate("ab")], tmp_path)
    one_epoch = len(calls)
    assert one_epoch < 60


def test_a_hospital_without_images_does_not_hold_the_encoder_back(tmp_path: Path) -> None:
    """With one hospital that has images and two that have none, the encoder ends where that one's training ends."""
    network = {"name": "concat", "size": "tiny", "dropout": 0.0}
    settings = study(network, stage={"rounds": 1, "epochs": 1})
    seeing, blind = hospital("a", 24, 0), [hospital(name, 40, 1, images=False) for name in "bc"]
    plan = Plan(settings, 42)
    together = small.study(settings, [seeing, *blind], tmp_path / "three").of(["all"])[WEIGHTS]
    start = plan.start_rows([0.0])
    encoder = [part for part, modality in plan.segments if modality == "image"]
    moved = sum(np.abs(together[:, part] - start[:, part]).sum() for part in encoder)
    alone: list[Any] = []

    def around(client: Any) -> Any:
        def call(message: Any, context: Any) -> Any:
            reply = client(message, context)
            if message.metadata.message_type == TRAIN:
                answer, rows = from_record(reply.content, TrainReply)
                if answer.hospital == "a":
                    alone.append((answer.seen, rows[WEIGHTS]))
            return reply

        return call

    small.study(settings, [seeing, *blind], tmp_path / "again", around=around)
    ((seen, own),) = alone
    assert moved > 0
    assert seen["image"] == [sum(seeing.patients.present["image"][Site(plan, seeing, tmp_path).split(0).train])]
    for part in encoder:
        assert np.allclose(together[:, part], own[:, part], atol=1e-7)


def test_nobody_has_trained_an_encoder_with_more_patients_than_it_has(tmp_path: Path) -> None:
    """These counts weigh an encoder's part of the update: more than the patients who train would outvote the others."""
    claims = {"b": {"image": [1000]}, "c": {"image": []}, "d": {"smell": [1]}}

    def claimed(answer: TrainReply) -> TrainReply:
        return answer.model_copy(update={"seen": claims.get(answer.hospital, answer.seen)})

    around = small.saying(TRAIN, TrainReply, claimed)
    settings = study({"name": "concat", "size": "tiny"}, stage={"rounds": 1, "epochs": 1}, quorum={"hospitals": 1})
    members = [hospital(name, 12, 0) for name in "abcd"]
    found = small.study(settings, members, tmp_path, around=around)
    assert list(found.quarantined) == [Quarantine("round 1", name, "patients") for name in "bcd"]


def test_published_weights_come_from_the_hospitals_own_file(tmp_path: Path) -> None:
    donor = Plan(study(FROZEN), 7).network.image.net.state_dict()
    path = tmp_path / "published.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in donor.items()}, path)
    pinned = {"name": "published", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    for frozen in (True, False):
        network = {**FROZEN, "image": {**FROZEN["image"], "frozen": frozen, "weights": pinned}}  # type: ignore[dict-item]
        plan = Plan(study(network), 1, {"published": path})
        if frozen:
            state = plan.network.image.net.state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in donor.items())
        else:
            start = plan.weights.unpack(plan.start)
            assert all(torch.equal(start[f"image.net.{name}"][0], donor[name]) for name in donor if donor[name].ndim)
        without = Plan(study(network), 1)
        with pytest.raises(ConfigurationError, match="starts from the weights 'published', and no file"):
            _ = without.network if frozen else without.start


def test_patients_keep_their_features_when_taken_and_joined() -> None:
    kept = Patients(("a", "b"), np.zeros((2, 1)), np.array([0, 1]), features={"image": np.array([[1.0], [2.0]])})
    both = Patients.join([kept.take(np.array([1])), kept])
    assert both.features["image"].ravel().tolist() == [2, 1, 2]
    assert both.batch(torch.float32).features["image"].shape == (3, 1)
