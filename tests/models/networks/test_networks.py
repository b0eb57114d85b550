"""The networks as wholes: published sizes, gradients in every stage, folds side by side, and patients who lack a modality."""

import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_hospital import files
from pydantic import ValidationError
from small_networks import COLUMNS, MODALITIES, NAMES, learning, numbers, options, patients, tiny

from ich_models import exchange
from ich_models.batch import Batch
from ich_models.errors import ConfigurationError
from ich_models.federation import load_federation
from ich_models.image_spec import HAEMORRHAGES
from ich_models.losses import coupled
from ich_models.networks.constants import Standardise
from ich_models.networks.registry import build
from ich_models.stack import Stack, stackable

STAGES = {
    "ichpro": ["train", "encoders", "fusion"],
    "vdafm": ["train"],
    "mednvc": ["pretrain", "train"],
    "hohoho": ["pretrain", "encoder", "sequence"],
    "dlmi": ["train"],
    "concat": ["train"],
    "image_only": ["train"],
}
EACH_STAGE = [(name, stage) for name in NAMES for stage in STAGES[name]]


SMALL_STUDY = """\
name: small
task:
  timeline: [admission, later]
  predict_at: admission
  outcome: {variable: mrs, at: later, poor: ">= 3"}
modalities:
  table:
    predictors: [age]
    variables: {age: {type: number, known_at: admission}, mrs: {type: integer, known_at: later}}
training: {stages: [{rounds: 1, epochs: 1, batch: all, optimizer: {name: sgd, lr: 0.1}}]}
network: NETWORK
"""

SLICES_STUDY = """\
name: small
task: {kind: slices, timeline: [a, b], predict_at: a, outcome: {variable: mrs, at: b, poor: ">= 3"}}
modalities:
  table:
    predictors: [age]
    scaling: federated
    variables: {age: {type: number, known_at: a}, mrs: {type: integer, known_at: b}}
  image: {kind: ct_slices, windows: [[40, 80], [80, 200], [40, 380]]}
training: {stages: [{name: encoder, rounds: 1, epochs: 1, batch: all, optimizer: {name: sgd, lr: 0.1}}]}
network: {name: hohoho}
evaluation: {small_cells: 0}
"""


# --- published sizes --------------------------------------------------------------------------------------------------


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def published(name: str, columns: int = 14, **settings: Any) -> Any:
    with torch.device("meta"):
        return build(options(name, **settings), columns, 0).eval()


VOLUME, REPORT = meta(2, 1, 32, 224, 224), meta(2, 64, dtype=torch.int64)
INPUTS = {
    "ichpro": Batch(None, meta(2), image=VOLUME, text=REPORT),
    "vdafm": Batch(meta(2, 14), meta(2), image=VOLUME, text=REPORT),
    "mednvc": Batch(meta(2, 14), meta(2), image=meta(2, 3, 224, 224)),
    "hohoho": Batch(None, meta(2, 4, 5), image=meta(2, 4, 3, 256, 256)),
    "dlmi": Batch(None, meta(2, 4, 5), image=meta(2, 4, 3, 512, 512)),
    "concat": Batch(meta(2, 14), meta(2), image=VOLUME, text=REPORT),
    "image_only": Batch(None, meta(2), image=VOLUME),
}
PARTS = {
    "ichpro": {
        "standardise": 0,
        "image": 46_155_072,
        "text": 108_310_272,
        "maps": 1_680_488,
        "fusion": 526_770,
        "tail": 5_519_488,
        "output": 2_050,
        "align": 721_408,
        "language": 22_890_052,
    },
    "vdafm": {
        "image": 46_155_072,
        "text": 107_719_680,
        "image_part": 1_181_952,
        "text_part": 1_706_240,
        "perceiver": 1_318_656,
        "image_out": 65_792,
        "text_out": 65_792,
        "input": 0,
        "table_part": 64 * 14 + 64 + 128,
        "join": 148_224,
        "output": 257,
    },
    "mednvc": {
        "image": 87_692_800,
        "decoder": 4_231_680,
        "standardise": 0,
        "input": 0,
        "values": 4_096,
        "ask": 1_579_520,
        "output": 2_050,
    },
    "hohoho": {
        "image": 11_176_512,
        "project": 328_320,
        "output": 2_565,
        "sequence": 181_248,
        "sequence_output": 325,
    },
    "dlmi": {"members": 22_990_149 + 26_049_269 - 2 * 10_245, "output": 2 * 10_245, "balance": 0},
    "concat": {
        "image": 46_155_072,
        "text": 108_310_272,
        "input": 0,
        "join": (2048 + 768 + 14) * 64 + 192,
        "output": 65,
    },
    "image_only": {"image": 46_155_072, "output": 2_049},
}


@pytest.mark.parametrize("name", NAMES)
def test_published_parts(name: str) -> None:
    assert {part: numbers(child) for part, child in published(name).named_children()} == PARTS[name]


FROZEN = {
    "image": {"name": "resnet", "frozen": True},
    "text": {"frozen": True},
    "losses": dict.fromkeys(("imima", "sdm", "mlm"), 0),
}


@pytest.mark.parametrize(
    ("name", "settings", "trained", "want", "within"),
    [
        ("ichpro", {"losses": {"mlm": 0}}, False, 162e6, 0.03),
        ("ichpro", FROZEN, True, 7.5e6, 0.035),  # "about": 7,728,796
        ("vdafm", {}, True, 4.47e6, 0.03),
        ("mednvc", {}, True, 89.28e6, 0.0001),
    ],
    ids=["ichpro", "ichpro, frozen encoders", "vdafm", "mednvc"],
)
def test_published_totals(name: str, settings: dict[str, Any], trained: bool, want: float, within: float) -> None:
    network = published(name, **settings)
    assert (learning(network) if trained else numbers(network)) == pytest.approx(want, rel=within)


@pytest.mark.parametrize("name", NAMES)
def test_published_shapes(name: str) -> None:
    settings = {"losses": {"mlm": 0}} if name == "ichpro" else {}
    network = published(name, **settings)
    output = network(INPUTS[name])
    assert output.logits.shape == INPUTS[name].label.shape
    widths = {key: tuple(value.shape[1:]) for key, value in output.embeddings.items()}
    wanted: dict[str, dict[str, tuple[int, ...]]] = {
        "ichpro": {"image": (2048,), "text": (768,), "image_aligned": (256,), "text_aligned": (256,), "fused": (1024,)},
        "vdafm": {
            "image": (256,),
            "text": (256,),
            "image_fused": (256,),
            "text_fused": (256,),
            "text_as_image": (256,),
        },
        "mednvc": {"fused": (1024,)},
        "hohoho": {"image": (4, 512)},
        "dlmi": {"resnext": (4, 2048), "se_resnet": (4, 2048)},
        "concat": {"image": (2048,), "text": (768,), "table": (14,)},
        "image_only": {"image": (2048,)},
    }
    assert {key: widths[key] for key in wanted[name]} == wanted[name]


def test_ichpro_makes_two_tokens_of_256() -> None:
    network = published("ichpro", losses={"mlm": 0})
    seen: list[torch.Size] = []
    network.tail.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    network(INPUTS["ichpro"])
    assert seen == [(2, 1, 512)]


def test_mednvc_asks_with_784_queries() -> None:
    network = published("mednvc")
    seen: list[tuple[torch.Size, torch.Size]] = []
    network.ask[0].register_forward_pre_hook(lambda module, args: seen.append((args[0].shape, args[1].shape)))
    network(INPUTS["mednvc"])
    assert seen == [((2, 784, 256), (2, 14, 256))]


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient_in_some_stage_and_others_never_change(name: str) -> None:
    network, batch = tiny(name), patients(name)
    reached: set[str] = set()
    for stage in STAGES[name]:
        network.enter(stage)
        network.train()
        before = deepcopy(network.state_dict())
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
        network.zero_grad(set_to_none=True)
        Stack(network, 1).losses(batch).sum().backward()
        optimizer.step()
        moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
        got = {key for key, value in network.named_parameters() if value.grad is not None}
        asked = {key for key, value in network.named_parameters() if value.requires_grad}
        assert moved - asked == set(), stage
        assert got <= asked
        reached |= got
    assert reached == {key for key, _ in network.named_parameters()}


@pytest.mark.parametrize(("name", "stage"), EACH_STAGE, ids=lambda value: value)
def test_a_few_steps_lower_the_loss(name: str, stage: str) -> None:
    network, batch = tiny(name), patients(name)
    network.enter(stage)
    stack = Stack(network.train(), 1)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(0)  # the same dropout, views and masks, so that losses can be compared
        loss = stack.losses(batch)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(("name", "stage"), EACH_STAGE, ids=lambda value: value)
def test_folds_side_by_side_are_separate_networks(name: str, stage: str) -> None:
    first, second = tiny(name, dtype="float64"), tiny(name, seed=2, dtype="float64")
    if not stackable(first):
        assert name == "hohoho"
        pytest.skip("an LSTM cannot be mapped: folds train one after another")
    for network in (first, second):
        network.enter(stage)
        network.train()
    batch = patients(name, dtype=torch.float64)
    batch = replace(batch, present={"image": torch.tensor([True, True, False, True])})
    stack = Stack(deepcopy(first), 2)
    stack.load(
        {
            key: torch.stack([a, b])
            for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True)
        }
    )
    torch.manual_seed(0)
    together = stack.losses(batch, 2)
    together.sum().backward()
    for index, network in enumerate((first, second)):
        torch.manual_seed(0)
        alone = Stack(network, 1).losses(batch, 2)
        alone.sum().backward()
        torch.testing.assert_close(together[index], alone[0], rtol=1e-9, atol=1e-9)
        for key, parameter in network.named_parameters():
            found = stack.parameters[key].grad
            if parameter.grad is not None:
                assert found is not None, key
                torch.testing.assert_close(found[index], parameter.grad, rtol=1e-7, atol=1e-8, msg=key)
    both = stack.logits(batch)
    if stage != "pretrain":
        torch.testing.assert_close(both[1], Stack(second, 1).logits(batch)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_start_and_nothing_else_does(name: str) -> None:
    torch.manual_seed(123)
    first = tiny(name, seed=5).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(123)
    assert torch.equal(drawn, torch.rand(1)), "building drew from the caller's generator"
    again, other = tiny(name, seed=5).state_dict(), tiny(name, seed=6).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


# --- patients who lack a modality -------------------------------------------------------------------------------------


LACKING = [(name, modality) for name in NAMES for modality in MODALITIES[name]]


def evaluated(network: Any, batch: Batch) -> torch.Tensor:
    return Stack(network, 1).logits(batch)[0]


@pytest.mark.parametrize(("name", "modality"), LACKING, ids=lambda value: value)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_what_one_patient_lacks_changes_nothing_of_the_others(name: str, modality: str, training: bool) -> None:
    settings: dict[str, Any] = {"vdafm": {"dropout": 0}, "concat": {"dropout": 0}, "mednvc": {"throw": 0}}.get(name, {})
    if name != "mednvc" and "text" in MODALITIES[name]:
        settings = {**settings, "text": {"dropout": 0}}
    if name == "ichpro":
        settings["losses"] = {"mlm": 0}
    network, batch = tiny(name, **settings), patients(name)
    network.train(training)
    one = torch.tensor([True, False, True, True])
    lacking = replace(batch, present={modality: one})
    garbage = getattr(batch, modality).clone()
    garbage[1] = 0 if modality == "text" else torch.nan
    torch.testing.assert_close(network(lacking).logits[one], network(batch).logits[one], rtol=1e-4, atol=1e-5)
    blank = replace(lacking, **{modality: garbage})
    torch.testing.assert_close(network(blank).logits, network(lacking).logits, msg="what is not there was read")
    if len(MODALITIES[name]) > 1:
        assert not torch.allclose(network(lacking).logits[1], network(batch).logits[1]), "the modality is not used"


@pytest.mark.parametrize(("name", "modality"), LACKING, ids=lambda value: value)
def test_a_hospital_without_a_modality_is_as_if_every_patient_lacked_it(name: str, modality: str) -> None:
    if len(MODALITIES[name]) == 1:
        pytest.skip("its only one")
    network, batch = tiny(name), patients(name)
    lacking = replace(batch, present={modality: torch.zeros(4, dtype=torch.bool)})
    without = replace(batch, **{modality: None})
    if name == "mednvc" and modality == "image":  # a blank view has no size of its own
        assert torch.isfinite(evaluated(network, without)).all()
        return
    torch.testing.assert_close(evaluated(network, without), evaluated(network, lacking))


@pytest.mark.parametrize("name", [name for name in NAMES if len(MODALITIES[name]) > 1])
def test_losses_are_finite_when_nobody_has_a_modality(name: str) -> None:
    for modality in MODALITIES[name]:
        network = tiny(name).train()
        batch = replace(patients(name), present={modality: torch.zeros(4, dtype=torch.bool)})
        loss = Stack(network, 1).losses(batch)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
        encoder = getattr(network, modality, None)
        if encoder is not None and name != "mednvc":
            assert all(p.grad is None or not p.grad.any() for p in encoder.parameters()), "learnt from nobody"


@pytest.mark.parametrize("name", ["ichpro", "vdafm", "concat"])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_kept_features_stand_in_for_the_encoder(name: str, modality: str) -> None:
    network, batch = tiny(name).eval(), patients(name)
    one = torch.tensor([True, True, False, True])
    batch = replace(batch, present={modality: one})
    with torch.no_grad():
        features = getattr(network, modality)(getattr(batch, modality))
        kept = replace(batch, **{modality: None}, features={modality: features})
        torch.testing.assert_close(network(kept).logits, network(batch).logits)


# --- what travels -----------------------------------------------------------------------------------------------------


def test_frozen_encoders_do_not_travel() -> None:
    whole = tiny("concat")
    frozen = tiny("concat", image={"name": "resnet", "frozen": True}, text={"frozen": True})
    everything = exchange.exchanged(whole, lambda module: False)
    rest = exchange.exchanged(frozen, lambda module: False)
    assert everything.size - rest.size == numbers(whole.image) + numbers(whole.text)
    assert not [name for name in rest.shapes if name.startswith(("image.", "text."))]
    assert "output.weight" in rest.shapes
    assert exchange.row(frozen, rest).shape == (1, rest.size)


@pytest.mark.parametrize("name", NAMES)
def test_encoders_tensors_are_known_by_modality(name: str) -> None:
    """Each encoder can then be averaged over the patients who have its modality."""
    network = tiny(name)
    layout = exchange.exchanged(network, lambda module: False)
    found = exchange.seen_by(network, layout)
    for modality in ("image", "text"):
        mine = {key for key, value in found.items() if value == modality}
        module = network.members if name == "dlmi" and modality == "image" else getattr(network, modality, None)
        prefix = "members." if name == "dlmi" else f"{modality}."
        assert mine == {key for key in layout.shapes if module is not None and key.startswith(prefix)}
    assert "output.weight" not in found


def test_folds_share_a_frozen_encoder_whatever_its_normalisation() -> None:
    """BatchNorm that rests can be mapped, and there is one encoder for all folds."""
    settings: dict[str, Any] = {
        "image": {"frozen": True, "normalisation": "batch"},
        "text": {"frozen": True},
        "dropout": 0,
        "dtype": "float64",
    }
    first, second = tiny("vdafm", **settings), tiny("vdafm", seed=2, **settings)
    for name in ("image", "text"):
        getattr(second, name).load_state_dict(getattr(first, name).state_dict())
    batch = patients("vdafm", dtype=torch.float64)
    assert stackable(first)
    stack = Stack(deepcopy(first), 2)
    layout = exchange.exchanged(first, lambda module: False)
    assert set(stack.tensors()) == set(layout.shapes) | set(exchange.constants(first).shapes)
    stack.load(layout.unpack(torch.cat([exchange.row(network, layout) for network in (first, second)])))
    together = stack.losses(batch)
    together.sum().backward()
    want = torch.cat([Stack(network.train(), 1).losses(batch) for network in (first, second)])
    torch.testing.assert_close(together, want)
    assert together[0] != together[1]
    assert all(parameter.grad is None for parameter in stack.network.image.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_network_travels_as_one_row_and_back(name: str) -> None:
    sender, receiver = tiny(name, seed=1), tiny(name, seed=2)
    layout = exchange.exchanged(sender, lambda module: False)
    Stack(receiver, 1).load(layout.unpack(exchange.row(sender, layout)))
    if any(isinstance(module, Standardise) for module in sender.modules()):
        images = 2 * 3 if name == "mednvc" else 0  # centre and scale of each channel
        assert exchange.constants(sender).size == 3 * COLUMNS + images
    assert torch.equal(evaluated(receiver, patients(name)), evaluated(sender, patients(name)))


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_shared(name: str) -> None:
    """A tied weight would travel twice, and gradient hooks fail on it."""
    network = tiny(name)
    places = [tensor.data_ptr() for tensor in [*network.parameters(), *network.buffers()] if tensor.numel()]
    assert len(places) == len(set(places))
    assert len(list(network.named_parameters(remove_duplicate=False))) == len(list(network.parameters()))


# --- stages and terms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage", "terms", "batch_coupled"),
    [
        ("ichpro", "train", ["outcome", "imima", "sdm", "mlm"], ("imima", "sdm")),
        ("ichpro", "encoders", ["outcome", "outcome_image", "outcome_text", "imima", "sdm", "mlm"], ("imima", "sdm")),
        ("ichpro", "fusion", ["outcome"], ()),
        ("vdafm", "train", ["outcome", "semantic", "contrast"], ("contrast",)),
        ("mednvc", "pretrain", ["pixels"], ()),
        ("mednvc", "train", ["outcome"], ()),
        ("hohoho", "pretrain", ["contrast"], ("contrast",)),
        ("hohoho", "encoder", ["asymmetric"], ()),
        ("hohoho", "sequence", ["bce"], ()),
        ("dlmi", "train", ["bce_resnext", "bce_se_resnet"], ()),
        ("concat", "train", ["outcome"], ()),
    ],
)
def test_terms_of_a_stage(name: str, stage: str, terms: list[str], batch_coupled: tuple[str, ...]) -> None:
    network = tiny(name)
    network.enter(stage)
    assert [term.name for term in network.terms] == terms
    assert coupled(network.terms) == batch_coupled


@pytest.mark.parametrize(("name", "stage"), EACH_STAGE, ids=lambda value: value)
def test_per_sample_terms_are_functions_of_one_patient(name: str, stage: str) -> None:
    """What DP-SGD relies on: each patient's value is the same alone and among others."""
    network, batch = tiny(name).eval(), patients(name)
    network.enter(stage)
    network.eval()
    if stage == "pretrain":
        return  # masks and views are drawn anew for each batch
    for term in network.terms:
        if term.per_sample:
            among = term.value(network(batch), batch)
            for row in range(4):
                one = batch.take(torch.tensor([row]))
                torch.testing.assert_close(
                    term.value(network(one), one).values, among.values[row : row + 1], rtol=1e-4, atol=1e-5
                )


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="its stages are pretrain, encoder, sequence"):
        tiny("hohoho").enter("train")


def test_parts_of_another_stage_do_not_move_and_keep_their_statistics() -> None:
    """A slice encoder with BatchNorm, in the stage after its own."""
    network = tiny("hohoho", image={"normalisation": "batch"})
    network.enter("sequence")
    network.train()
    before = deepcopy(network.image.state_dict())
    assert not network.image.training
    Stack(network, 1).losses(patients("hohoho")).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.image.state_dict().items())
    network.enter("encoder")
    assert network.image.net.bn1.training


# --- configuration ----------------------------------------------------------------------------------------------------


ABLATIONS: list[tuple[str, dict[str, Any]]] = [
    *(("ichpro", {"modalities": [modality]}) for modality in ("image", "text")),
    *(("ichpro", {"order": order}) for order in (["cross"], ["self"], ["self", "cross"], ["cross", "cross"])),
    *(("ichpro", {"losses": {term: 0}}) for term in ("imima", "sdm", "mlm", "outcome")),
    ("ichpro", {"supervise": False}),
    ("ichpro", {"losses": {"sdm_same": "patient"}}),
    *(("vdafm", {"modalities": m}) for m in (["image"], ["text"], ["table"], ["image", "table"], ["text", "table"])),
    *(("vdafm", {"losses": {term: 0}}) for term in ("semantic", "contrast")),
    *((name, {"losses": {"negatives": form}}) for name in ("ichpro", "vdafm", "hohoho") for form in ("bank", "none")),
    *((name, {"losses": {"prototypes": 1}}) for name in ("ichpro", "vdafm")),
    ("dlmi", {"positives": [1, 2, 3, 4, 5]}),
    ("hohoho", {"losses": {"name": "bce"}}),
    ("hohoho", {"bidirectional": True, "end_to_end": True}),
    ("mednvc", {"throw": 0, "blocks": 1}),
    ("dlmi", {"weight_cap": 3.0}),
    *(("concat", {"modalities": m}) for m in (["image"], ["text", "table"])),
]


@pytest.mark.parametrize(("name", "settings"), ABLATIONS, ids=str)
def test_ablations_by_configuration_alone(name: str, settings: dict[str, Any]) -> None:
    network, batch = tiny(name, **settings).train(), patients(name)
    for stage in network.stages:
        network.enter(stage)
        loss = Stack(network, 1).losses(batch)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
    network.enter(list(network.stages)[-1])
    assert evaluated(network, batch).shape == batch.label.shape


@pytest.mark.parametrize("name", ["hohoho", "image_only"])
def test_densenet_in_place_of_a_residual_network(name: str) -> None:
    dense = {"name": "densenet", "features": 8, "growth": 8, "layers": [2, 2], "normalisation": "group"}
    network = build(options(name, image=dense), COLUMNS, 0)
    assert torch.isfinite(evaluated(network, patients(name))).all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ichpro", {"text": {"frozen": True}}, "mlm trains nothing with a frozen text encoder"),
        ("ichpro", {"tokens": 48}, "power of two"),
        ("ichpro", {"tokens": 64, "size": "tiny"}, "text.positions"),
        ("ichpro", {"heads": 7}, "multiple of heads"),
        ("ichpro", {"bias": "prevalence"}, "Input should be 'zero'"),
        ("ichpro", {"text": {"vocabulary": 50}}, "mask_token"),
        ("ichpro", {"text": {"vocabulary": 105}}, "first_token"),
        ("ichpro", {"width": 10**9}, "less than or equal to 65536"),
        ("concat", {"modalities": ["text", "image", "text"]}, "text stands there twice"),
        ("vdafm", {"last_layers": 13}, "text.layers"),
        ("mednvc", {"masked_patch": 40}, "masked_patch"),
        ("mednvc", {"image": {"frozen": False, "depth": 3}}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(name, **settings)


def test_tiny_is_a_preset_and_any_key_can_still_be_set() -> None:
    chosen = options("ichpro", size="tiny", width=32, image={"widths": [4, 8, 16, 32]})
    assert (chosen.width, chosen.tokens) == (32, 32)
    assert chosen.image.widths == (4, 8, 16, 32)
    assert chosen.image.normalisation == "group"
    assert options("ichpro").image.width == 2048


@pytest.mark.parametrize(
    ("network", "missing"),
    [
        ("{name: ichpro, size: tiny}", "image and text"),
        ("{name: mednvc}", "image"),
        ("{name: hohoho}", "image"),
        ("{name: concat, modalities: [text, table]}", "text"),
        ("{name: concat, modalities: [table]}", ""),
        ("{name: ich_score}", ""),
    ],
)
def test_a_study_must_have_what_its_network_looks_at(tmp_path: Path, network: str, missing: str) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(SMALL_STUDY.replace("NETWORK", network))
    if missing:
        with pytest.raises(ConfigurationError) as caught:
            load_federation(path)
        problem = caught.value.problems[0]
        assert f"uses {missing}, which modalities does not have" in problem.message
        assert problem.where.startswith(f"{path}:11:")
    else:
        assert load_federation(path).value.network.name in network


def test_a_stage_that_the_network_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(SMALL_STUDY.replace("NETWORK", "{name: hohoho}"))
    with pytest.raises(ConfigurationError, match="network 'hohoho' has no stage 'train'"):
        load_federation(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: slices", "kind: binary"), "task.kind: network 'hohoho' says five types of haemorrhage of each slice"),
        (("name: hohoho", "name: image_only"), "network.name: network 'image_only' says one thing of a patient"),
        (("kind: ct_slices", "kind: ct"), "modalities.image.kind: the task is slices, and this is another image"),
        (("scaling: federated", "scaling: hospital"), ""),
        (("name: hohoho", "name: dlmi"), ""),
        (("name: encoder, ", ""), "has no stage 'train'"),
        (
            ("small_cells: 0", "comparisons: {pooled: {epochs: 1, batch: 2, optimizer: {name: sgd, lr: 1}}}"),
            "pooled arm",
        ),
    ],
)
def test_slices_need_networks_and_images_of_slices(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(SLICES_STUDY)
    assert load_federation(path).value.labels == HAEMORRHAGES
    assert change[0] in SLICES_STUDY
    path.write_text(SLICES_STUDY.replace(*change))
    if message:
        with pytest.raises(ConfigurationError) as caught:
            load_federation(path)
        problem = caught.value.problems[0]
        assert message.split(": ")[-1] in problem.message
    else:
        load_federation(path)


def test_a_hospitals_own_scaling_does_not_go_with_class_weights_of_the_federation(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(
        SLICES_STUDY.replace("name: hohoho", "name: dlmi").replace("scaling: federated", "scaling: hospital")
    )
    with pytest.raises(ConfigurationError, match="needs sums of the whole federation"):
        load_federation(path)


def test_class_weights_are_counted_for_an_outcome_and_over_the_whole_federation(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(SLICES_STUDY.replace("name: hohoho", "name: hohoho, class_weights: federation"))
    with pytest.raises(ConfigurationError, match="class_weights"):
        load_federation(path)
    text = SMALL_STUDY.replace("NETWORK", "{name: logistic, class_weights: federation}")
    path.write_text(text)
    assert load_federation(path).value.network.class_weights == "federation"
    path.write_text(text.replace("predictors:", "scaling: hospital\n    predictors:"))
    with pytest.raises(ConfigurationError, match="needs sums of the whole federation"):
        load_federation(path)


# --- at the published size --------------------------------------------------------------------------------------------


CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device: run this file on a machine with one"
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("name", ["ichpro", "vdafm", "mednvc", "hohoho", "dlmi"])
def test_published_size_learns(name: str, device: str) -> None:
    """One patient at the published input, forward and backward in every stage (docs/models.md has times and memory).

    `pytest -s` says the seconds of a second pass and, of a GPU, the largest memory that torch held.
    """
    network = build(options(name), 14, 0).train().to(device)
    shapes = INPUTS[name]
    batch = Batch(
        None if shapes.table is None else torch.randn(1, 14),
        torch.ones(1, *shapes.label.shape[1:]),
        image=None if shapes.image is None else torch.randn(1, *shapes.image.shape[1:]),
        text=None if shapes.text is None else torch.randint(110, 20_000, (1, 64)),
    ).to(torch.float32, torch.device(device))
    for stage in STAGES[name] if name != "ichpro" else ["train"]:  # without heads on the encoders it has one
        network.enter(stage)
        network.train()
        for _ in range(2 if device == "cuda" else 1):  # the first pass of a GPU is spent on choosing its ways
            network.zero_grad(set_to_none=True)
            began = time.monotonic()
            loss = Stack(network, 1).losses(batch)
            loss.sum().backward()
            said = float(loss.detach().sum())  # waits for the device
        held = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device == "cuda" else ""
        # what it is run for by hand
        print(f"\n{name} {stage}: {time.monotonic() - began:.2f} s{held}, loss {said:.2f}")  # noqa: T201
        assert torch.isfinite(loss).all()
        gradients = [p.grad for p in network.parameters() if p.requires_grad and p.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


VOLUME = "kind: ct, size: [12, 32, 32], spacing: [10, 6, 6]"
VIEWS = "kind: radiograph, size: [32, 32], most: 4"


@pytest.mark.parametrize(
    ("image", "network", "message"),
    [
        (f"{VOLUME}, windows: [[40, 80]]", "name: image_only", ""),
        (f"{VOLUME}, windows: [[40, 80], [80, 200]]", "name: image_only, channels: 2", ""),
        (f"{VOLUME}, windows: [[40, 80], [80, 200]]", "name: image_only", "the image has 2 channels, .* takes 1"),
        (f"{VOLUME}, windows: [[40, 80]]", "name: image_only, dimensions: 2", "the image is a volume"),
        (f"{VOLUME}, windows: [[40, 80]]", "name: mednvc, image: {channels: 1}", "the image is a volume"),
        (f"{VIEWS}, repeat: 3", "name: mednvc", ""),
        (f"{VIEWS}, repeat: 1", "name: mednvc", "the image has 1 channels, .* takes 3"),
        (f"{VIEWS}, repeat: 1", "name: image_only", "the image is slices or views"),
        (f"{VIEWS}, repeat: 1", "name: logistic", ""),
    ],
)
def test_an_image_goes_into_the_network_or_the_study_is_refused(
    tmp_path: Path, image: str, network: str, message: str
) -> None:
    study, _ = files(tmp_path, image=f"{{{image}}}", network=f"{{{network}}}")
    if not message:
        load_federation(study)
        return
    with pytest.raises(ConfigurationError, match=rf"federation\.yaml:\d+:\d+: network\.name: {message}"):
        load_federation(study)
