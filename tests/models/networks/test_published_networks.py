"""What is particular to each network: masked pre-training, views, slices in order, two members, the ICH score."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import COLUMNS, options, patients, tiny
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ich_models.batch import Batch
from ich_models.image_spec import HAEMORRHAGES
from ich_models.losses import alignment, similarity_distribution
from ich_models.networks.constants import WITH, WITHOUT, Told
from ich_models.networks.encoders import block
from ich_models.networks.hohoho import SliceSequence
from ich_models.networks.mednvc import _hide, _patches
from ich_models.networks.registry import build
from ich_models.networks.slices import turned
from ich_models.stack import Stack

# --- ichpro and vdafm: losses from what the network says --------------------------------------------------------------


def test_imima_is_four_alignments() -> None:
    network, batch = tiny("ichpro"), patients("ichpro")
    network.train()
    output = network(batch)
    terms = {term.name: term for term in network.terms}
    e, everyone = output.embeddings, torch.ones(4, dtype=torch.bool)
    pairs = [
        ("image_aligned", "image_again"),
        ("text_aligned", "text_again"),
        ("text_aligned", "image_aligned"),
        ("image_aligned", "text_aligned"),
    ]
    want = sum(alignment(e[a], e[b], everyone, 0.07) for a, b in pairs)
    torch.testing.assert_close(terms["imima"].scalar(output, batch), want)
    same = batch.label[:, None] == batch.label
    want = similarity_distribution(e["image_aligned"], e["text_aligned"], same, everyone, 0.02)
    torch.testing.assert_close(terms["sdm"].scalar(output, batch), want)
    assert not torch.equal(e["image_aligned"], e["image_again"]), "the two views are the same"
    assert [term.weight for term in network.terms] == [1.0, 1.0, 0.84, 0.45]


def test_hidden_words_are_words_and_their_share_is_as_configured() -> None:
    torch.manual_seed(0)
    network = tiny("ichpro", losses={"mask_token": 3, "first_token": 110}).train()
    batch = patients("ichpro", count=200)
    assert batch.text is not None
    shown: list[torch.Tensor] = []
    network.text.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    asked = network(batch).embeddings["text_asked"]
    hidden, seen = asked != -100, shown[1]
    words = batch.text >= 110
    assert not (hidden & ~words).any(), "padding was asked for"
    assert torch.equal(asked[hidden], batch.text[hidden])
    assert torch.equal(seen[~hidden], batch.text[~hidden])
    assert hidden.sum() / words.sum() == pytest.approx(0.15, abs=0.015)
    assert (seen[hidden] == 3).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (seen[hidden] == batch.text[hidden]).float().mean() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(shown[0], batch.text), "the outcome is predicted from the whole text"


def test_two_logits_are_one_difference() -> None:
    """Cross-entropy on the two classes is binary cross-entropy on the difference."""
    network, batch = tiny("ichpro").eval(), patients("ichpro")
    two: list[torch.Tensor] = []
    network.output.register_forward_hook(lambda module, args, out: two.append(out))
    output = network(batch)
    want = nn.functional.cross_entropy(two[0], batch.label.long(), reduction="none")
    terms = {term.name: term for term in network.terms}
    torch.testing.assert_close(terms["outcome"].value(output, batch).values, want)


def test_vdafm_weighs_contrast_less_with_every_epoch() -> None:
    terms = {term.name: term for term in tiny("vdafm").terms}
    assert terms["contrast"].at(0) == pytest.approx(0.2)
    assert terms["contrast"].at(10) == pytest.approx(0.2 * 0.95**10)
    assert terms["semantic"].at(10) == pytest.approx(0.02)
    assert terms["outcome"].at(10) == 1


def test_vdafm_semantic_alignment_by_patient() -> None:
    network, batch = tiny("vdafm").eval(), patients("vdafm")
    batch = replace(batch, present={"text": torch.tensor([True, False, True, True])})
    output = network(batch)
    terms = {term.name: term for term in network.terms}
    found = terms["semantic"].value(output, batch)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        x, y = a.detach().numpy(), b.detach().numpy()
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    e = output.embeddings
    assert found.who.tolist() == [True, False, True, True]
    for row in (0, 2, 3):
        want = 2 - cosine(e["image_fused"][row], e["image"][row]) - cosine(e["text_as_image"][row], e["text"][row])
        assert found.values[row].item() == pytest.approx(want, abs=1e-5)


def test_vdafm_contrast_is_half_of_both_directions() -> None:
    network, batch = tiny("vdafm").eval(), patients("vdafm", count=5)
    output = network(batch)
    v, t = (output.embeddings[name].detach().double().numpy() for name in ("image", "text"))
    cosine = v @ t.T / np.linalg.norm(v, axis=1)[:, None] / np.linalg.norm(t, axis=1)
    scores = np.exp(cosine / 0.07)
    forth = -np.log(np.diag(scores) / scores.sum(1)).mean()
    back = -np.log(np.diag(scores) / scores.sum(0)).mean()
    assert abs(forth - back) > 1e-3
    terms = {term.name: term for term in network.terms}
    assert terms["contrast"].scalar(output, batch).item() == pytest.approx((forth + back) / 2, rel=1e-4)


# --- mednvc -----------------------------------------------------------------------------------------------------------


def test_nothing_leaks_from_hidden_pixels() -> None:
    """Hidden pixels changed to anything: the encoder's visible features are the same to the bit."""
    torch.manual_seed(0)
    network = tiny("mednvc").double().eval()
    for name, parameter in network.named_parameters():
        if "grn" in name:
            nn.init.normal_(parameter)  # they start at zero, and would hide a leak
    image = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    hidden = _hide(2, 9, 0.6, image.device)
    visible = (~hidden).reshape(2, 1, 3, 3).double()
    wide = visible.repeat_interleave(32, -1).repeat_interleave(32, -2)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = network.image.through(network.image.stem(pixels, visible), range(4), visible)
        return result

    found = features(image)
    assert torch.equal(features(torch.where(wide > 0, image, torch.randn_like(image) * 100)), found)
    assert torch.equal(found * (1 - visible), torch.zeros_like(found))
    assert not torch.equal(features(torch.where(wide > 0, image + 1, image)), found)
    open_everywhere = network.image.through(network.image.stem(image, torch.ones_like(visible)), range(4))
    torch.testing.assert_close(open_everywhere, network.image.through(network.image.stem(image), range(4)))


def test_a_masked_block_is_a_sparse_block() -> None:
    """A block on the list of visible places alone: GRN's norm must not know of the others."""
    torch.manual_seed(0)
    network = tiny("mednvc").double().eval()
    layer = network.image.net.encoder.stages[1].layers[0]
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    visible = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)[None, None]
    wide = visible.repeat_interleave(2, -1).repeat_interleave(2, -2)
    features = torch.randn(1, 16, 6, 6, dtype=torch.float64) * wide
    found = block(layer, features, visible)
    places = wide[0, 0] > 0
    x = layer.layernorm(layer.dwconv(features)[0][:, places].T)
    x = nn.functional.gelu(layer.pwconv1(x))
    norm = x.square().sum(0).sqrt()
    x = layer.grn.weight[0, 0, 0] * (x * norm / (norm.mean() + 1e-6)) + layer.grn.bias[0, 0, 0] + x
    want = features[0][:, places].T + layer.pwconv2(x)
    torch.testing.assert_close(found[0][:, places].T, want)
    assert not found[0][:, ~places].any()


def test_hidden_places_are_zero_wherever_a_convolution_looks_around() -> None:
    """Also after a down-sampling layer, whose norm and bias would put constants there."""
    torch.manual_seed(0)
    network = tiny("mednvc").eval()
    for name, parameter in network.named_parameters():
        if "layernorm" in name or "bias" in name:
            nn.init.normal_(parameter)
    visible = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 0, 0]])[None, None]
    seen: list[torch.Tensor] = []
    for name, module in network.image.named_modules():
        if name.endswith("dwconv"):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network.image.through(network.image.stem(torch.randn(1, 3, 96, 96), visible), range(4), visible)
    assert [features.shape[-1] for features in seen] == [24, 12, 6, 3]
    for features in seen:
        side = features.shape[-1] // 3
        hidden = visible.repeat_interleave(side, -1).repeat_interleave(side, -2) == 0
        assert not features.masked_select(hidden).any()
        assert features.masked_select(~hidden).any()


def test_the_same_share_of_patches_is_hidden_in_every_image() -> None:
    hidden = _hide(50, 49, 0.6, torch.device("cpu"))
    assert hidden.sum(1).tolist() == [29] * 50
    assert len({tuple(row.tolist()) for row in hidden}) == 50
    assert _hide(3, 1, 0.6, torch.device("cpu")).sum(1).tolist() == [1] * 3
    assert _hide(3, 2, 0.99, torch.device("cpu")).sum(1).tolist() == [1] * 3


def test_patches_are_windows_row_by_row() -> None:
    image = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = _patches(image, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4].reshape(3, 2, 2), image[1, :, 2:4, 2:4])


def test_the_highest_view_decides_and_padded_views_do_not() -> None:
    network, batch = tiny("mednvc").eval(), patients("mednvc")
    assert batch.image is not None
    each = torch.stack([network(replace(batch, image=batch.image[:, view])).logits for view in range(3)], dim=1)
    torch.testing.assert_close(network(batch).logits, each.amax(1))
    slices = torch.tensor([[True, False, False]] * 2 + [[True, True, False]] * 2)
    want = torch.cat([each[:2, 0], each[2:, :2].amax(1)])
    torch.testing.assert_close(network(replace(batch, slices=slices)).logits, want)


def test_one_modality_is_thrown_away_at_a_time() -> None:
    torch.manual_seed(0)
    network = tiny("mednvc").train()
    batch = patients("mednvc", count=2000)
    batch = replace(batch, image=torch.zeros(2000, 1, 3, 1, 1))
    who = {name: torch.ones(2000, dtype=torch.bool) for name in ("image", "table")}
    who["table"][:500] = False
    images, values = network._thrown(batch, who)
    no_image, no_values = (images.flatten(1) == -10).all(1), (values == -10).all(1)
    assert not (no_image & no_values).any()
    assert no_values[:500].all()
    assert no_image[500:].float().mean() == pytest.approx(0.1, abs=0.025)
    assert no_values[500:].float().mean() == pytest.approx(0.1, abs=0.025)
    network.eval()
    assert not (network._thrown(batch, who)[0] == -10).any()


def test_pretraining_needs_no_label_and_predicts_nothing() -> None:
    network = tiny("mednvc")
    network.enter("pretrain")
    batch = replace(patients("mednvc"), table=None, label=torch.full((4,), torch.nan))
    stack = Stack(network.train(), 1)
    assert torch.isfinite(stack.losses(batch)).all()
    assert stack.logits(batch).isnan().all()


# --- hohoho -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_reaches_nothing_as_in_packed_sequences(bidirectional: bool) -> None:
    torch.manual_seed(0)
    ours = SliceSequence(8, 4, 2, bidirectional=bidirectional).double()
    theirs = nn.LSTM(8, 4, 2, batch_first=True, bidirectional=bidirectional).double()
    state = {}
    for layer in range(2):
        for direction, suffix in ((ours.forwards, ""), (ours.backwards, "_reverse"))[: 1 + bidirectional]:
            for name, value in direction[layer].state_dict().items():
                state[name.replace("_l0", f"_l{layer}{suffix}")] = value
    theirs.load_state_dict(state)
    features, lengths = torch.randn(3, 6, 8, dtype=torch.float64), torch.tensor([6, 2, 4])
    real = torch.arange(6) < lengths[:, None]
    packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
    want, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(features, real)[real], want[real])
    noise = torch.where(real[..., None], features, torch.full_like(features, 1e3))
    torch.testing.assert_close(ours(noise, real)[real], want[real])


@pytest.mark.parametrize("name", ["hohoho", "dlmi"])
@pytest.mark.parametrize("stage", [None, "sequence"])
def test_padded_slices_count_for_nothing(name: str, stage: str | None) -> None:
    network, batch = tiny(name), patients(name)
    if stage is not None:
        if name == "dlmi":
            pytest.skip("has one stage")
        network.enter(stage)
    network.train()
    real = torch.tensor([[True, True, False]] * 4)
    assert batch.image is not None
    padded = replace(batch, slices=real)
    short = replace(batch, image=batch.image[:, :2], label=batch.label[:, :2])
    torch.testing.assert_close(Stack(network, 1).losses(padded), Stack(network, 1).losses(short))
    torch.testing.assert_close(network(padded).logits[:, :2], network(short).logits)


def test_sequence_sees_the_other_slices_and_the_encoder_does_not() -> None:
    network, batch = tiny("hohoho").eval(), patients("hohoho")
    assert batch.image is not None
    other = batch.image.clone()
    other[:, 0] += 1
    for stage, reaches in (("encoder", False), ("sequence", True)):
        network.enter(stage)
        network.eval()
        changed = network(replace(batch, image=other)).logits[:, 2] != network(batch).logits[:, 2]
        assert changed.any().item() is reaches


def test_views_are_turned_by_the_configured_angle() -> None:
    """A bright column turned by 90 degrees is a bright row; without turn or jitter nothing changes."""
    image = torch.zeros(1, 1, 1, 9, 9)
    image[..., 4] = 1.0
    torch.testing.assert_close(turned(image, (90.0, 90.0), 0.0), image.transpose(3, 4), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turned(image, (0.0, 0.0), 0.0), image, rtol=1e-5, atol=1e-5)
    jittered = turned(torch.rand(50, 1, 1, 9, 9) + 1, (0.0, 0.0), 0.2)
    assert jittered.mean((1, 2, 3, 4)).std() > 0.05


# --- dlmi -------------------------------------------------------------------------------------------------------------


def test_the_ensemble_says_the_mean_probability() -> None:
    network, batch = tiny("dlmi").eval(), patients("dlmi")
    output = network(batch)
    members = [torch.sigmoid(output.embeddings[f"{name}_logits"]) for name in network.members]
    torch.testing.assert_close(torch.sigmoid(output.logits), (members[0] + members[1]) / 2)
    for head in network.output.values():
        nn.init.constant_(head.bias, 300.0)
    assert torch.isfinite(network(batch).logits).all()


def test_members_learn_as_if_alone() -> None:
    together, batch = tiny("dlmi"), patients("dlmi")
    alone = build(options("dlmi", size="tiny"), COLUMNS, 1)
    alone.stages = {"train": replace(alone.stages["train"], terms=alone.stages["train"].terms[:1])}
    for network in (together, alone):
        Stack(network.train(), 1).losses(batch).sum().backward()
    for name, parameter in alone.named_parameters():
        if "se_resnet" in name:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, together.get_parameter(name).grad)


def test_positives_are_weighed_by_negatives_over_positives() -> None:
    """Counts 10 of 40 positive: a positive weighs 3; capped at 2 it weighs 2. A type that nobody has weighs 1."""
    network, batch = tiny("dlmi"), patients("dlmi")
    counts = zip(HAEMORRHAGES, [10, 20, 0, 20, 20], [30, 20, 40, 20, 20], strict=True)
    said = {name: (8.0, n / 8) for kind, a, b in counts for name, n in ((f"{WITH}{kind}", a), (f"{WITHOUT}{kind}", b))}
    network.balance.positive.copy_(torch.from_numpy(network.balance.made_of(Told(np.zeros((3, 0)), said))["positive"]))
    assert network.balance.weight().tolist() == [3, 1, 1, 1, 1]
    network.balance.cap = 2.0
    assert network.balance.weight().tolist() == [2, 1, 1, 1, 1]
    network.balance.cap = None
    output = network(batch)
    logit, label = output.embeddings["resnext_logits"].detach().double().numpy(), batch.label.numpy()
    p, weight = 1 / (1 + np.exp(-logit)), np.array([3, 1, 1, 1, 1])
    want = -(weight * label * np.log(p) + (1 - label) * np.log(1 - p)).mean()
    assert network.terms[0].scalar(output, batch).item() == pytest.approx(want, rel=1e-5)


# --- the ICH score ----------------------------------------------------------------------------------------------------


COLUMN_NAMES = ("volume", "gcs", "sex", "age", "ivh", "infratentorial")


def ich(rows: list[list[float]]) -> Any:
    network = build(options("ich_score"), len(COLUMN_NAMES), 0, COLUMN_NAMES)
    return network, network(Batch(torch.tensor(rows), torch.zeros(len(rows))))


def test_ich_score_by_the_published_table() -> None:
    """Rows: volume, GCS, sex, age, IVH, infratentorial; scores by hand at both sides of each limit."""
    rows = [
        [29.9, 15, 0, 79, 0, 0],  # 0
        [29.9, 13, 0, 80, 0, 0],  # 1: age
        [30.0, 12, 1, 79, 0, 0],  # 2: GCS 1, volume 1
        [10.0, 5, 1, 50, 1, 1],  # 3: GCS 1, IVH, infratentorial
        [45.0, 4, 0, 79, 1, 0],  # 4: GCS 2, volume, IVH
        [45.0, 3, 0, 85, 1, 1],  # 6
    ]
    network, output = ich(rows)
    assert output.embeddings["score"].tolist() == [0, 1, 2, 3, 4, 6]
    assert torch.sigmoid(output.logits).tolist() == pytest.approx([0.005, 0.13, 0.26, 0.72, 0.97, 0.995], abs=1e-6)
    assert not list(network.parameters())


def test_a_missing_item_takes_the_studys_imputation() -> None:
    network, output = ich([[45.0, torch.nan, 0, 60, 0, 0]])
    network.input.fill[1] = 14.0
    batch = Batch(torch.tensor([[45.0, torch.nan, 0, 60, 0, 0]]), torch.zeros(1))
    assert network(batch).embeddings["score"].item() == 1
    assert output.embeddings["score"].item() == 3, "a fill of 0 counts as GCS 3-4"


def test_scaling_of_the_table_does_not_reach_the_score() -> None:
    network, output = ich([[45.0, 4, 0, 79, 1, 0]])
    network.input.centre.fill_(50.0)
    network.input.scale.fill_(0.1)
    batch = Batch(torch.tensor([[45.0, 4, 0, 79, 1, 0]]), torch.zeros(1))
    assert torch.equal(network(batch).logits, output.logits)


def test_columns_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="needs table columns gcs, ivh"):
        build(options("ich_score"), 3, 0, ("volume", "age", "infratentorial"))
