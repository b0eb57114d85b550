"""The brain within a made skull: what must be kept is kept, what looks wrong falls back to the head and says why."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_models.brain import brain
from ich_models.volume import Volume

SPACING = (5.0, 1.0, 1.0)
SHAPE = (30, 220, 190)


def points() -> NDArray[np.float64]:
    """(D, H, W, 3): z, y, x in mm from the middle of the head."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    return (index - (np.array(SHAPE) - 1) / 2) * SPACING


def ball(axes: tuple[float, float, float], middle: tuple[float, float, float] = (0, 0, 0)) -> NDArray[np.bool_]:
    """An ellipsoid with these half axes (z, y, x) in mm."""
    return (((points() - middle) / axes) ** 2).sum(-1) < 1


INNER = ball((66, 80, 64))
"""1415 mL: 4/3 pi 66 x 80 x 64."""


def head() -> NDArray[np.int16]:
    """Air, 6 mm of scalp, 6 mm of skull, brain of 35 HU with noise, fluid in the ventricles; a head rest."""
    values = np.full(SHAPE, -1000.0)
    values[ball((78, 92, 76))] = 40
    values[ball((72, 86, 70))] = 1000
    values[INNER] = 35
    values[ball((20, 30, 10))] = 5
    values[:, 215:217, 40:150] = 200
    noise = np.random.default_rng(0).normal(0, 4, SHAPE)
    return np.rint(values + noise).astype(np.int16)


def volume(values: NDArray[np.int16], spacing: tuple[float, float, float] = SPACING) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1] * spacing
    return Volume(values, affine, "HU")


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_the_brain_is_what_lies_within_the_skull() -> None:
    found = brain(volume(head()))
    assert found.region == "brain"
    assert found.problem == ""
    assert found.mask.shape == SHAPE
    assert dice(found.mask, INNER) > 0.97
    assert found.millilitres == pytest.approx(1415, rel=0.05)
    assert found.mask[ball((15, 25, 8))].all()  # ventricles


def test_blood_at_the_skull_is_kept() -> None:
    values = head()
    blood = INNER & ~ball((66, 74, 58)) & (points()[..., 2] > 20)
    values[blood] = 70
    found = brain(volume(values))
    assert found.region == "brain"
    assert found.mask[blood].mean() > 0.97


def test_calcified_spots_and_holes_of_the_skull_are_no_matter() -> None:
    values = head()
    values[ball((6, 5, 5), (0, 20, 20))] = 400
    gap = (np.abs(points()[..., 1]) < 5) & (points()[..., 2] > 60) & ball((72, 86, 70)) & ~INNER
    values[gap] = 40
    found = brain(volume(values))
    assert found.region == "brain"
    assert found.mask[ball((6, 5, 5), (0, 20, 20))].all()
    assert dice(found.mask, INNER) > 0.96


def test_a_lobe_that_stands_apart_is_kept() -> None:
    values = head()
    lobe = INNER & (points()[..., 2] > 35) & (points()[..., 0] < 10)
    wall = INNER & (np.abs(points()[..., 2] - 35) < 3) & (points()[..., 0] < 12)
    lid = INNER & (points()[..., 2] > 32) & (np.abs(points()[..., 0] - 10) < 6)
    values[wall | lid] = 800
    found = brain(volume(values))
    assert found.region == "brain"
    assert found.mask[lobe & ~wall & ~lid].mean() > 0.9


def test_end_slices_do_not_vanish() -> None:
    values = head()[4:26]  # the scan ends within the brain, above and below
    found = brain(volume(values))
    inner = INNER[4:26]
    for end in (0, -1):
        assert dice(found.mask[end], inner[end]) > 0.95


@pytest.mark.parametrize(
    ("case", "says"), [("small", "mL where a brain"), ("half", "halves"), ("none", "0 mL"), ("air", "0 mL")]
)
def test_what_looks_wrong_falls_back_to_the_head(case: str, says: str) -> None:
    values = head()
    if case == "small":
        values = values[:10]
    elif case == "half":  # most of one side is bone
        values[(points()[..., 2] > 25) & INNER] = 900
    elif case == "none":
        values[values > 150] = 40
    else:
        values = np.full(SHAPE, -1000, np.int16)
    found = brain(volume(values))
    assert found.region == "head"
    assert says in found.problem
    assert found.mask.any()
    if case == "none":
        assert dice(found.mask, ball((78, 92, 76))) > 0.95  # the head rest is not part of it


def test_voxels_of_other_sizes_give_the_same_brain() -> None:
    fine = head().repeat(2, axis=1).repeat(2, axis=2)
    found = brain(volume(fine, (5.0, 0.5, 0.5)))
    assert found.mask.shape == fine.shape
    assert found.millilitres == pytest.approx(brain(volume(head())).millilitres, rel=0.03)
    assert dice(found.mask, INNER.repeat(2, axis=1).repeat(2, axis=2)) > 0.97


def test_mr_has_no_hounsfield_units() -> None:
    with pytest.raises(ValueError, match="mask"):
        brain(Volume(np.zeros((3, 4, 5), np.float32), np.eye(4), "intensity"))


def test_a_real_head(shared_data: Path) -> None:
    """head_ct_ge: an adult with both temporal lobes and the brain stem in view; outlines looked at by eye."""
    from ich_client.dicom.choose import choose
    from ich_client.dicom.scan import scan
    from ich_client.dicom.series import group

    stacks, _ = group(scan(shared_data / "head_ct_ge"))
    scanned = choose(stacks).stack.volume()
    found = brain(scanned)
    assert found.region == "brain"
    assert found.millilitres == pytest.approx(1450, abs=60)
    values = scanned.values[found.mask]
    assert 20 < np.median(values) < 45
    low = found.mask[7]  # temporal lobes left and right, and the cerebellum behind
    front = low[low.shape[0] // 2 :]
    assert front[:, : front.shape[1] // 2].sum() > 500
    assert front[:, front.shape[1] // 2 :].sum() > 500
