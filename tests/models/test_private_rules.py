"""What a study with differential privacy cannot have: each case by place, message and way out, and the ways out are ways."""

from typing import Any

import pytest
import small
import small_slices
from pydantic import TypeAdapter
from small_networks import COLUMNS, options, tiny

from ich_models.federation import Federation
from ich_models.losses import coupled
from ich_models.networks.options import TINY_SLICE, NetworkOptions
from ich_models.networks.registry import build
from ich_models.networks.staged import enter
from ich_models.private_rules import coupled_losses, refusals

NO_LOSSES = {"imima": 0, "sdm": 0}
GROUPED = small_slices.GROUPED


def study(network: dict[str, Any] | None = None, **sections: Any) -> Federation:
    """A federation with this network, whatever else it would need."""
    plain = small.federation(**sections)
    found = plain.network if network is None else TypeAdapter(NetworkOptions).validate_python(network)
    return plain.model_copy(update={"network": found})


def complaints(federation: Federation) -> list[tuple[str, str, str]]:
    return [(".".join(map(str, where)), message, hint) for where, message, hint in refusals(federation)]


@pytest.mark.parametrize(
    "federation",
    [
        study(),
        study({"name": "mlp", "normalisation": "layer"}),
        study(strategy={"name": "fedprox", "mu": 0.1}),
        study(strategy={"name": "scaffold"}),
        study(strategy={"name": "fedadam"}),
        study({"name": "vdafm", "size": "tiny", "losses": {"negatives": "bank"}}),
        study(
            {"name": "vdafm", "losses": {"contrast": 0}}
        ),  # its published encoders are frozen, and so is their statistics
        study({"name": "vdafm", "modalities": ["image", "table"]}),
        study({"name": "mednvc"}),
        study({"name": "ichpro", "size": "tiny", "losses": {"negatives": "none", "sdm": 0, "prototypes": 0.84}}),
        study({"name": "dlmi", "size": "tiny", "positives": [1, 1, 2, 3, 9]}),
        small_slices.federation(small_slices.HOHOHO),
        study(
            stage={
                "augment": [
                    {"name": "flip"},
                    {"name": "transpose"},
                    {"name": "affine"},
                    {"name": "intensity"},
                    {"name": "noise", "sd": 0.1},
                    {"name": "word_dropout"},
                ],
                "amp": True,
            }
        ),
    ],
    ids=lambda federation: f"{federation.network.name}, {federation.training.strategy.name}",
)
def test_what_is_private_is_not_refused(federation: Federation) -> None:
    assert complaints(federation) == []


def test_losses_that_compare_patients() -> None:
    assert complaints(study({"name": "ichpro", "size": "tiny"})) == [
        (
            "network.losses",
            "differential privacy refuses loss 'imima': one patient's gradient depends on the others in the batch",
            "write negatives: bank (fixed public vectors) or negatives: none (1 - cosine), with prototypes: 1, or turn privacy off",
        ),
        (
            "network.losses",
            "differential privacy refuses loss 'sdm': one patient's gradient depends on the others in the batch",
            "write sdm: 0 and prototypes: 0.84, the outcome's fixed vector in place of other patients, or turn privacy off",
        ),
    ]
    ((where, message, hint),) = complaints(study({"name": "vdafm", "size": "tiny"}))
    assert where == "network.losses"
    assert "refuses loss 'contrast'" in message
    assert hint.startswith("write negatives: bank")


def test_only_the_stages_of_the_study_count() -> None:
    settled = {**small_slices.HOHOHO, "losses": {"negatives": "bank"}}
    for network, found in ((small_slices.HOHOHO, 1), (settled, 0)):
        federation = small_slices.federation(network)
        (stage,) = federation.training.stages
        training = federation.training.model_copy(update={"stages": [stage.model_copy(update={"name": "pretrain"})]})
        assert len(complaints(federation.model_copy(update={"training": training}))) == found
    fusion = study({"name": "ichpro", "size": "tiny"}, stage={"name": "fusion"})
    assert complaints(fusion) == []


def test_of_several_stages_each_counts() -> None:
    plain = study()
    (stage,) = plain.training.stages
    second = stage.model_copy(update={"clip": 1.0})
    training = plain.training.model_copy(update={"stages": [stage, second]})
    ((where, _, _),) = complaints(plain.model_copy(update={"training": training}))
    assert where == "training.stages.1.clip"
    slices = small_slices.federation(small_slices.HOHOHO)
    (stage,) = slices.training.stages
    training = slices.training.model_copy(update={"stages": [stage, stage.model_copy(update={"name": "pretrain"})]})
    ((where, message, _),) = complaints(slices.model_copy(update={"training": training}))
    assert (where, "'contrast'" in message) == ("network.losses", True)


def test_batch_normalisation_wherever_it_stands() -> None:
    found = complaints(study({"name": "ichpro", "losses": NO_LOSSES}))
    assert [where for where, _, _ in found] == ["network.image.normalisation", "network.tail.normalisation"]
    assert found[0][1:] == (
        "differential privacy refuses batch normalisation: one patient's gradient depends on the others in the batch, and "
        "its statistics travel without noise",
        "write normalisation: group, or frozen: true, or turn privacy off",
    )
    ((where, _, hint),) = complaints(study({"name": "mlp", "normalisation": "batch"}))
    assert (where, hint) == ("network.normalisation", "write normalisation: layer, or turn privacy off")
    members = {"one": {**TINY_SLICE, "normalisation": "batch"}, "two": GROUPED}
    dlmi = study({"name": "dlmi", "members": members, "positives": [1] * 5})
    assert [where for where, _, _ in complaints(dlmi)] == ["network.members.one.normalisation"]


def test_class_weights_of_private_counts() -> None:
    ((where, message, hint),) = complaints(study({"name": "dlmi", "size": "tiny"}))
    assert (where, hint.split(",")[0]) == ("network.name", "write positives: [...]")
    assert message == "differential privacy refuses class weights made of the hospitals' counts of slices"


def test_class_weights_of_private_outcomes() -> None:
    ((where, message, hint),) = complaints(study({"name": "logistic", "class_weights": "federation"}))
    assert (where, hint) == ("network.class_weights", "write class_weights: none, or turn privacy off")
    assert message == "differential privacy refuses class weights made of the hospitals' counts of outcomes"


@pytest.mark.parametrize("change", [{"name": "mixup"}, {"name": "replicate"}], ids=lambda change: change["name"])
def test_augmentation_across_patients(change: dict[str, Any]) -> None:
    ((where, message, hint),) = complaints(study(stage={"augment": [{"name": "flip"}, change]}))
    assert where == "training.stages.0.augment.1.name"
    assert (
        message == f"differential privacy refuses augmentation '{change['name']}': it mixes patients with one another"
    )
    assert hint.startswith(
        "use one that changes each patient alone: flip, transpose, affine, intensity, noise, word_dropout;"
    )


def test_choices_and_reports_that_follow_private_data() -> None:
    best = study(evaluation={"choose_round": "best", "validation": 0.2})
    qfedavg = study(strategy={"name": "qfedavg", "client_learning_rate": 0.1})
    fedbn = study({"name": "mlp", "normalisation": "layer"}, strategy={"name": "fedbn"})
    clip = study(stage={"clip": 1.0})
    line = study(evaluation={"recalibrate": "intercept"})
    found = [complaints(federation) for federation in (best, qfedavg, fedbn, clip, line)]
    assert [[where for where, _, _ in one] for one in found] == [
        ["evaluation.choose_round"],
        ["training.strategy.name"],
        ["training.strategy.name"],
        ["training.stages.0.clip"],
        ["evaluation.recalibrate"],
    ]
    assert all(hint.endswith("turn privacy off") for one in found for _, _, hint in one)


LOSSES = {
    "ichpro": [
        {},
        {"imima": 0},
        {"sdm": 0},
        {"negatives": "bank"},
        {"negatives": "none", "sdm": 0},
        {"negatives": "none", "sdm": 0, "prototypes": 1},
        {"imima": 0, "sdm": 0, "prototypes": 1},
    ],
    "vdafm": [{}, {"contrast": 0}, {"negatives": "bank"}, {"negatives": "none", "prototypes": 0.2}],
    "hohoho": [{}, {"negatives": "bank"}, {"negatives": "none"}],
}
EACH = [(name, {"losses": losses}) for name, several in LOSSES.items() for losses in several] + [
    ("ichpro", {"modalities": ["image"]}),
    ("ichpro", {"modalities": ["text"]}),
    ("ichpro", {"supervise": False}),
    ("vdafm", {"modalities": ["image", "table"]}),
    ("mednvc", {}),
    ("dlmi", {}),
    ("concat", {}),
    ("image_only", {}),
]


@pytest.mark.parametrize(("name", "settings"), EACH, ids=lambda value: str(value))
def test_the_rules_say_what_the_networks_say(name: str, settings: dict[str, Any]) -> None:
    network, found = tiny(name, **settings), options(name, size="tiny", **settings)
    for stage in found.stages:
        enter(network, stage)
        assert tuple(coupled_losses(found, stage)) == coupled(network.terms), stage


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_tables_have_no_such_losses(name: str) -> None:
    found = options(name)
    assert list(coupled_losses(found, "train")) == []
    assert build(found, COLUMNS, 0) is not None
