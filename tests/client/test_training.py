"""Local training with what large networks need: pieces of a batch, recomputed layers, mixed precision, augmentations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import small
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import roc_auc_score
from small_networks import options, patients, tiny

from ich_client.hospital import Limits
from ich_client.site import Site
from ich_client.train import fit
from ich_models.errors import ConfigurationError
from ich_models.networks.options import TINY_SLICE, TINY_TEXT, TINY_VOLUME
from ich_models.recipes import Recipe, build_optimizer
from ich_models.stack import Stack
from ich_strategies.plan import Plan


def recipe(**settings: Any) -> Recipe:
    plain = {"epochs": 2, "batch": 4, "optimizer": {"name": "sgd", "lr": 0.05}}
    return Recipe.model_validate({**plain, **settings})


def trained(network: Any, name: str = "concat", micro_batch: int | None = None, **settings: Any) -> dict[str, Any]:
    stack = Stack(network, 1)
    found = fit(stack, patients(name, 8), recipe(**settings), seed=(1,), micro_batch=micro_batch)
    assert torch.isfinite(found.losses).all()
    return {key: tensor.clone() for key, tensor in stack.tensors().items()}


def close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> bool:
    return all(torch.allclose(one[name], other[name], atol=tolerance) for name in one)


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole() -> None:
    def network() -> Any:
        return tiny("concat", dropout=0.0, modalities=["image", "table"])

    one_step = {"epochs": 1, "batch": 8}
    whole = trained(network(), **one_step)
    assert close(whole, trained(network(), micro_batch=1, **one_step), 1e-5)
    assert close(whole, trained(network(), micro_batch=3, **one_step), 1e-5)


def test_a_batch_whose_patients_are_compared_stays_whole() -> None:
    """ICHPro's contrast needs the others: in pieces it would be another loss."""
    whole = trained(tiny("ichpro", losses={"mlm": 0.0, "view_dropout": 0.0}), "ichpro")
    asked = trained(tiny("ichpro", losses={"mlm": 0.0, "view_dropout": 0.0}), "ichpro", micro_batch=2)
    assert close(whole, asked, 0)


@pytest.mark.parametrize("where", ["image", "text"])
def test_recomputed_layers_give_the_same_weights(where: str) -> None:
    presets = {"image": TINY_VOLUME, "text": TINY_TEXT}
    plain = trained(tiny("concat", dropout=0.0))
    again = trained(tiny("concat", dropout=0.0, **{where: {**presets[where], "checkpoint": True}}))
    assert plain.keys() == again.keys()
    assert close(plain, again, 1e-6)


def test_recomputing_would_count_batches_twice() -> None:
    with pytest.raises(ValidationError, match="checkpoint would count every batch twice"):
        options("image_only", image={"name": "resnet", "checkpoint": True})


def test_recomputing_saves_memory() -> None:
    """What the graph of a forward pass keeps, counted by torch itself."""

    def kept(checkpoint: bool) -> int:
        network = tiny("image_only", image={**TINY_VOLUME, "checkpoint": checkpoint}).train()
        bytes_kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal bytes_kept
            bytes_kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(patients("image_only", 4))
        return bytes_kept

    assert kept(True) < 0.7 * kept(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run this file on a machine with one")
def test_mixed_precision_trains_and_keeps_full_weights() -> None:
    plain, mixed = (trained(tiny("concat", dropout=0.0).cuda(), amp=amp) for amp in (False, True))
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in mixed.values())
    assert not close(plain, mixed, 1e-6)
    assert close(plain, mixed, 0.05)


def test_a_cpu_trains_in_full_precision() -> None:
    """Its 3D convolutions in bfloat16 are wrong now and then: a study that asks for mixed precision is the same there."""
    plain, mixed = (trained(tiny("concat", dropout=0.0), amp=amp) for amp in (False, True))
    assert close(plain, mixed, 0)


@pytest.mark.parametrize(("name", "modality"), [("concat", "volume"), ("dlmi", "slices"), ("mednvc", "views")])
def test_augmented_patients_train(name: str, modality: str) -> None:
    changes = [
        {"name": "flip"},
        {"name": "affine", "degrees": 20, "shift": 0.1, "scale": 0.1},
        {"name": "intensity"},
        {"name": "noise", "sd": 0.01},
    ]
    network = tiny(name, **({"members": {"resnext": TINY_SLICE}} if name == "dlmi" else {}))
    plain = trained(network, name)
    again = tiny(name, **({"members": {"resnext": TINY_SLICE}} if name == "dlmi" else {}))
    assert not close(plain, trained(again, name, augment=changes), 1e-6), modality


def test_replicated_patients_are_part_of_the_epoch() -> None:
    """Two of eight are positive: four more of them make twelve patients, three batches of four."""
    batch = patients("concat", 8)
    label = torch.zeros(8)
    label[:2] = 1
    steps: list[int] = []
    stack = Stack(tiny("concat"), 1)
    losses = stack.losses
    stack.losses = lambda part, epoch=0.0: steps.append(len(part)) or losses(part, epoch)  # type: ignore[method-assign]
    fit(stack, replace(batch, label=label), recipe(epochs=1, augment=[{"name": "replicate"}]), seed=(1,))
    assert steps == [4, 4, 4]


def test_lion_steps_by_the_sign() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    optimizer = build_optimizer(recipe(optimizer={"name": "lion", "lr": 0.1}).optimizer, [weight])
    weight.grad = torch.tensor([0.3, -7.0, 0.001])
    optimizer.step()
    assert torch.allclose(weight, torch.tensor([0.9, -1.9, 2.9]))


def test_a_device_that_is_not_here_is_said(tmp_path: Any) -> None:
    member = small.hospital("north")
    limits = TypeAdapter(Limits).validate_python({"device": "cuda:77"})
    object.__setattr__(member, "limits", limits)
    site = Site(Plan(small.federation(), 1), member, tmp_path)
    with pytest.raises(ConfigurationError, match=r"limits\.device is cuda:77, and torch finds \d+ CUDA devices"):
        _ = site.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run this file on a machine with one")
def test_a_hospital_with_a_gpu_and_one_without_train_together(tmp_path: Any) -> None:
    members = small.hospitals()
    for member, device in zip(members, ("cuda", "cpu", "auto"), strict=True):
        object.__setattr__(member, "limits", Limits(small_cells=0, device=device))
    mixed = small.study(small.federation(), members, tmp_path / "mixed").of(["all"])["weights"]
    for member in members:
        object.__setattr__(member, "limits", Limits(small_cells=0, device="cpu"))
    plain = small.study(small.federation(), members, tmp_path / "plain").of(["all"])["weights"]
    assert abs(mixed - plain).max() < 1e-4


def test_the_ich_score_is_a_study_without_training(tmp_path: Any) -> None:
    """Its figures come through the same engine: what nobody learns is the same in every fold and round."""
    names = ("gcs", "age", "volume")
    number = {"type": "number", "known_at": "admission"}
    yes_no = {"type": "yes_no", "known_at": "admission"}
    table = {
        "variables": {
            **dict.fromkeys(names, number),
            "ivh": yes_no,
            "infratentorial": yes_no,
            "mrs": {"type": "integer", "known_at": "90 days"},
        },
        "predictors": [*names, "ivh", "infratentorial"],
    }
    settings = small.federation(network={"name": "ich_score"}, table=table, stage={"rounds": 1, "epochs": 1})
    members = []
    for member in small.hospitals():
        count = len(member.patients)
        drawn = np.random.default_rng(count)
        columns = np.column_stack(
            [
                drawn.integers(3, 16, count),
                drawn.normal(70, 12, count),
                drawn.lognormal(3, 1, count),
                *drawn.integers(0, 2, (2, count)),
            ]
        ).astype(float)
        members.append(replace(member, patients=replace(member.patients, table=columns)))
    found = small.study(settings, members, tmp_path)
    (answer,) = found.answers["north"]
    north = members[1].patients
    gcs, age, volume, ivh, below = north.table.T
    score = np.select([gcs <= 4, gcs <= 12], [2, 1], 0) + (age >= 80) + (volume >= 30) + ivh + below
    assert answer.metrics["auroc"][0] == pytest.approx(roc_auc_score(north.labels, score))
