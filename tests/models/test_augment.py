"""Augmentations by hand-worked cases: what is moved, whose it stays, and that a seed fixes it."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from ich_models import augment
from ich_models.augment import Augmentation
from ich_models.batch import Batch


def of(**settings: object) -> list[Augmentation]:
    return [TypeAdapter(Augmentation).validate_python(settings)]


def batch(count: int = 6) -> Batch:
    torch.manual_seed(0)
    label = torch.tensor([1.0] + [0.0] * (count - 1))
    table = torch.arange(count * 2, dtype=torch.float32).reshape(count, 2)
    table[0, 1] = torch.nan
    text = torch.tensor([[2, 10, 11, 12, 3, 0]] * count)
    return Batch(table, label, image=torch.rand(count, 1, 4, 6, 6).half(), text=text)


def test_a_flip_mirrors_whole_patients() -> None:
    plain = batch()
    assert plain.image is not None
    found = augment.of_batch(of(name="flip", p=1.0), plain).image
    assert found is not None
    assert torch.equal(found, plain.image.float().flip(-1))
    torch.manual_seed(3)
    some = augment.of_batch(of(name="flip", p=0.5), batch(40)).image
    assert some is not None
    whole = batch(40).image
    assert whole is not None
    mirrored = [torch.equal(a, b.float().flip(-1)) for a, b in zip(some, whole, strict=True)]
    same = [torch.equal(a, b.float()) for a, b in zip(some, whole, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 32


def test_a_turn_by_nothing_changes_nothing_and_a_shift_moves_by_pixels() -> None:
    plain = batch()
    assert plain.image is not None
    found = augment.of_batch(of(name="affine"), plain).image
    assert found is not None
    assert torch.allclose(found, plain.image.float(), atol=1e-6)
    point = torch.zeros(1, 1, 1, 9, 9)
    point[..., 4, 4] = 1
    torch.manual_seed(1)
    shift = (2 * torch.rand(3)[1:] - 1) * 0.2 * 9  # what the augmentation draws after one angle: pixels right, down
    torch.manual_seed(1)
    moved = augment.of_batch(of(name="affine", shift=0.2), Batch(None, torch.zeros(1), image=point)).image
    assert moved is not None
    weights = moved[0, 0, 0]
    places = torch.arange(9.0)
    right = (weights.sum(0) * places).sum() / weights.sum() - 4
    down = (weights.sum(1) * places).sum() / weights.sum() - 4
    assert torch.allclose(torch.stack([right, down]), -shift, atol=1e-4)


def test_a_turn_of_ninety_degrees_turns_every_slice_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(2, 2, 3, 8, 8)
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.ones(*shape))  # the largest angle
    found = augment._moved(augment.Affine(name="affine", degrees=90.0), image)
    assert torch.allclose(found, torch.rot90(image, 1, (-2, -1)), atol=1e-5) or torch.allclose(
        found, torch.rot90(image, -1, (-2, -1)), atol=1e-5
    )


def test_a_larger_scale_enlarges_about_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spot 6 pixels right of the middle and 4 above it is 9 right and 6 above it at a scale of 1.5."""
    places = torch.arange(41.0) - 20
    spot = torch.exp(-((places - 6) ** 2 + (places[:, None] + 4) ** 2) / 4)
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.ones(*shape))  # the largest scale
    moved = augment._moved(augment.Affine(name="affine", scale=0.5), spot[None, None])[0, 0]
    assert float((moved * places).sum() / moved.sum()) == pytest.approx(9, abs=0.01)
    assert float((moved * places[:, None]).sum() / moved.sum()) == pytest.approx(-6, abs=0.01)
    assert float(moved.sum() / spot.sum()) == pytest.approx(1.5**2, rel=0.01)


def test_brightness_and_contrast_are_their_own_shares_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(3, 1, 2, 4, 4)
    draws = torch.tensor([1.0, 0.5]).reshape(
        2, 1, 1, 1, 1, 1
    )  # contrast at its highest, brightness as it was; then reversed
    for drawn, contrast, brightness in ((draws, 1.2, 1.0), (draws.flip(0), 1.0, 1.2)):
        monkeypatch.setattr(torch, "rand", lambda *shape, drawn=drawn: drawn.expand(shape))
        found = augment._jittered(0.2, image)
        mean = image.mean((1, 2, 3, 4), keepdim=True)
        assert torch.allclose(found, (image - mean) * contrast + mean * brightness, atol=1e-6)


def test_intensity_keeps_the_mean_when_only_contrast_changes() -> None:
    image = torch.rand(3, 1, 2, 4, 4)
    found = augment.of_batch(of(name="intensity", jitter=0.5), Batch(None, torch.zeros(3), image=image)).image
    assert found is not None
    for one, before in zip(found, image, strict=True):
        fit = np.polyfit(before.flatten(), one.flatten(), 1)
        assert np.allclose(np.polyval(fit, before.flatten()), one.flatten(), atol=1e-5), "a line"
        assert 0.5 <= fit[0] <= 1.5


def test_noise_has_its_standard_deviation_and_reaches_features() -> None:
    plain = Batch(None, torch.zeros(400), features={"image": torch.zeros(400, 50)})
    found = augment.of_batch(of(name="noise", sd=0.01, p=0.5), plain).features["image"]
    noisy = found.abs().sum(1) > 0
    assert 150 < int(noisy.sum()) < 250
    assert found[noisy].std() == pytest.approx(0.01, rel=0.03)


def test_words_are_dropped_and_the_frame_stays() -> None:
    found = augment.of_batch(of(name="word_dropout", p=1.0, unknown=7), batch()).text
    assert found is not None
    assert found[0].tolist() == [2, 7, 7, 7, 3, 0]


def test_mixup_is_a_weighted_mean_of_two_patients_and_their_labels() -> None:
    plain = batch()
    torch.manual_seed(5)
    found = augment.of_batch(of(name="mixup", p=1.0), plain)
    assert plain.table is not None
    assert found.table is not None
    assert found.image is not None
    assert plain.image is not None
    assert not found.table.isnan().any(), "what one does not know is the other's"
    for row in range(6):
        mixed = found.table[row, 0]
        for other in range(6):
            share = (
                1.0
                if other == row
                else float((mixed - plain.table[other, 0]) / (plain.table[row, 0] - plain.table[other, 0]))
            )
            whole = share * plain.image[row].float() + (1 - share) * plain.image[other].float()
            if torch.allclose(found.image[row], whole, atol=1e-4):
                assert found.label[row] == pytest.approx(
                    share * float(plain.label[row]) + (1 - share) * float(plain.label[other]), abs=1e-4
                )
                break
        else:
            pytest.fail("no pair of patients gives this one")


def test_who_is_mixed_has_what_both_have_and_the_text_of_the_larger_share() -> None:
    """The features are one patient's number each, so that they say who was mixed with whom, and in which shares."""
    torch.manual_seed(1)
    text = torch.arange(40)[:, None].expand(40, 3) + 1
    present = {"image": torch.rand(40) < 0.7, "text": torch.rand(40) < 0.7}
    plain = Batch(None, torch.zeros(40), text=text, present=present, features={"image": torch.eye(40)})
    found = augment.of_batch(of(name="mixup", p=1.0), plain)
    shares = found.features["image"]
    assert found.text is not None
    larger, both = shares.argmax(1), shares > 0
    assert (larger != torch.arange(40)).any()
    assert torch.equal(found.text, text[larger])
    assert torch.equal(found.present["text"], present["text"][larger])
    assert torch.equal(found.present["image"], ~(both & ~present["image"]).any(1))


def test_neighbours_are_those_of_columns_of_one_variance() -> None:
    """300 mL apart among volumes that differ by 1000, or 3 points among scores that differ by 1: the first are nearer."""
    others = torch.tensor([[1000.0, 1.0], [-1000.0, -1.0]]).repeat(20, 1)
    table = torch.cat([torch.tensor([[0.0, 0.0], [300.0, 0.0], [0.0, 3.0]]), others])
    label = torch.tensor([1.0] * 3 + [0.0] * 40)
    torch.manual_seed(0)
    rows = augment.of_epoch(of(name="replicate"), Batch(table, label))
    assert rows is not None
    assert set(rows[43:].tolist()) == {0, 1}


def test_replication_fills_the_rarer_class_up_with_neighbours_of_its_own() -> None:
    """Three positive ones at 0, 1 and 10: the nearest of 10 is 1, of 0 it is 1, of 1 it is 0; nobody copies 10."""
    table = torch.tensor([[0.0], [1.0], [10.0], *[[5.0]] * 9])
    label = torch.tensor([1.0] * 3 + [0.0] * 9)
    rows = augment.of_epoch(of(name="replicate"), Batch(table, label))
    assert rows is not None
    assert rows[:12].tolist() == list(range(12))
    copies = rows[12:].tolist()
    assert len(copies) == 6
    assert set(copies) <= {0, 1}
    assert augment.of_epoch(of(name="flip"), Batch(table, label)) is None


def test_a_seed_fixes_everything() -> None:
    several = [*of(name="affine", degrees=20, shift=0.1, scale=0.1), *of(name="intensity"), *of(name="mixup", p=1.0)]
    plain = batch()
    found = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        one = augment.of_batch(several, plain)
        assert one.image is not None
        found.append(one.image)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
