"""From images to what networks see: resampling, windows, masks, crops and scaling, against values worked out by hand and Pillow."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ich_models.image_spec import CtSlices, CtVolume, MrVolume, Views
from ich_models.preprocess import chosen, ct_slices, ct_volume, mr_volume, views, whole_within
from ich_models.volume import Volume


def volume(values: Any, spacing: tuple[float, float, float], unit: Any = "HU") -> Volume:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1
    return Volume(np.asarray(values, np.int16 if unit == "HU" else np.float32), affine, unit)


def ct(**settings: Any) -> CtVolume:
    return CtVolume.model_validate({"kind": "ct", "size": (8, 10, 12), "spacing": (5, 1, 1), **settings})


RAMP = np.add.outer(np.add.outer(np.arange(20) * 2, np.arange(30)), np.arange(40)) - 20


def test_at_its_own_spacing_a_volume_is_only_cut_and_windowed() -> None:
    found = ct_volume(volume(RAMP, (5, 1, 1)), None, ct(windows=[(40, 80), (20, 40)]))
    assert (found.values.shape, found.values.dtype) == ((2, 8, 10, 12), np.float16)
    # The middle of 20 x 30 x 40 is between voxels; an even box lies around it.
    box = RAMP[6:14, 10:20, 14:26].astype(float)
    np.testing.assert_allclose(found.values[0], (box / 80).clip(0, 1), atol=5e-4)
    np.testing.assert_allclose(found.values[1], (box / 40).clip(0, 1), atol=5e-4)
    assert found.seen == pytest.approx(8 * 10 * 12 / RAMP.size)


def test_the_middle_of_the_mask_is_the_middle_of_the_array_and_the_rest_is_0() -> None:
    mask = np.zeros(RAMP.shape, bool)
    mask[2:7, 20:27, 31:36] = True  # middle at 4, 23, 33
    found = ct_volume(volume(np.full(RAMP.shape, 40), (5, 1, 1)), mask, ct(size=(9, 11, 13)))
    expected = np.zeros((9, 11, 13))
    expected[2:7, 2:9, 4:9] = 0.5
    np.testing.assert_array_equal(found.values[0], expected)
    assert found.seen == 1.0
    small = ct_volume(volume(np.full(RAMP.shape, 40), (5, 1, 1)), mask, ct(size=(8, 8, 8)))
    assert (small.values > 0).sum() == 5 * 7 * 5
    assert (
        ct_volume(volume(np.full(RAMP.shape, 40), (5, 1, 1)), mask, ct(size=(8, 8, 8), spacing=(5, 0.5, 0.5))).seen
        < 0.6
    )


def test_the_rim_of_the_brain_is_taken_off_in_millimetres() -> None:
    """1.5 mm are one voxel of 1 mm beside, and none of 5 mm above and below; what is left is centred."""
    mask = np.zeros(RAMP.shape, bool)
    mask[2:7, 20:27, 31:36] = True
    found = ct_volume(volume(np.full(RAMP.shape, 40), (5, 1, 1)), mask, ct(size=(9, 11, 13), rim=1.5))
    expected = np.zeros((9, 11, 13))
    expected[2:7, 3:8, 5:8] = 0.5
    np.testing.assert_array_equal(found.values[0], expected)
    with pytest.raises(ValueError, match="rim is taken off the brain's edge"):
        ct(brain="head", rim=4)


def test_another_spacing_is_linear_between_voxels_and_keeps_thick_slices() -> None:
    """A linear function of the place is what linear interpolation returns exactly; z keeps its 5 mm."""
    values = np.broadcast_to(10 + np.arange(40) * 1.0, (20, 30, 40))
    found = ct_volume(volume(values, (5, 2, 2)), None, ct(spacing=(5, 1, 1), size=(20, 10, 12)))
    # Voxel edges agree: new centres lie a quarter of an old voxel from the old ones; HU are whole numbers.
    middle = np.rint(10 + 19.5 + (np.arange(12) - 5.5) * 0.5) / 80
    np.testing.assert_allclose(found.values[0, 7, 5], middle, atol=7e-3)
    by_slice = np.zeros((20, 30, 40)) + np.arange(20)[:, None, None] * 4
    kept = ct_volume(volume(by_slice, (5, 2, 2)), None, ct(spacing=(5, 1, 1), size=(20, 10, 12)))
    np.testing.assert_allclose(kept.values[0, :, 5, 5], np.arange(20) * 4 / 80, atol=5e-4)


def test_beyond_the_volume_is_nothing() -> None:
    found = ct_volume(volume(np.full((4, 4, 4), 90), (5, 1, 1)), None, ct(size=(8, 8, 8)))
    assert found.values.sum() == 4 * 4 * 4
    assert found.values[0, 2:6, 2:6, 2:6].min() == 1


def test_sequences_on_the_first_ones_grid_by_their_own_mean() -> None:
    spec = MrVolume.model_validate({"kind": "mr", "size": (8, 8, 8), "spacing": (5, 2, 2), "sequences": ["DWI", "ADC"]})
    body = np.zeros((8, 8, 8))
    body[2:6, 2:6, 2:6] = np.random.default_rng(0).normal(500, 90, (4, 4, 4))
    finer = np.repeat(np.repeat(body, 2, 1), 2, 2)
    # The same box in space: its voxels are half as large, so its first centre lies half an old voxel less a quarter away.
    other = volume(finer * 3 + (finer > 0) * 50, (5, 1, 1), "intensity")
    other.affine[1, 3] = other.affine[0, 3] = -0.5
    found = mr_volume({"DWI": volume(body, (5, 2, 2), "intensity"), "ADC": other}, None, spec)
    own = body[body != 0]
    expected = np.where(body != 0, (body - own.mean()) / own.std(), 0)
    np.testing.assert_allclose(found.values[0], expected, atol=2e-3)
    assert np.corrcoef(found.values[0][body != 0], found.values[1][body != 0])[0, 1] > 0.9
    alone = mr_volume({"ADC": volume(body, (5, 2, 2), "intensity")}, body > 600, spec)
    assert not alone.values[0].any()
    assert (alone.values[1] != 0).sum() == (body > 600).sum()
    with pytest.raises(ValueError, match="none of DWI, ADC"):
        mr_volume({}, None, spec)


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (200, 100), (9, 300)])
def test_scaling_whole_is_pillows_bilinear_with_black_beside(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).random((90, 60), np.float32)
    found = whole_within(image, size)
    factor = min(size[0] / 90, size[1] / 60)
    high, wide = round(90 * factor), round(60 * factor)
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    expected = np.zeros(size, np.float32)
    resized = Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR)
    expected[top : top + high, left : left + wide] = np.asarray(resized)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def slices(**settings: Any) -> CtSlices:
    return CtSlices.model_validate({"kind": "ct_slices", "size": (16, 16), **settings})


def test_slices_are_windowed_and_neighbours_are_those_of_the_series() -> None:
    values = np.zeros((5, 16, 16), np.int16) + (np.arange(5) * 10)[:, None, None].astype(np.int16)
    none = np.zeros(5, bool)
    plain = ct_slices(values, none, slices(windows=[(40, 80), (0, 100)]))
    assert plain.values.shape == (5, 2, 16, 16)
    np.testing.assert_allclose(plain.values[:, :, 8, 8], [[n / 8, (n * 10 + 50) / 100] for n in range(5)], atol=1e-3)
    around = ct_slices(values, none, slices(neighbours=True))
    expected = [[max(n - 1, 0) / 8, n / 8, min(n + 1, 4) / 8] for n in range(5)]
    np.testing.assert_allclose(around.values[:, :, 8, 8], expected, atol=1e-3)
    both = slices(windows=[(40, 80), (0, 100)], neighbours=True)
    wide = [[max(n * 10 - 10, 0) + 50, n * 10 + 50, min(n * 10 + 10, 40) + 50] for n in range(5)]
    assert both.channels == 6
    seen = ct_slices(values, none, both).values[:, :, 8, 8]
    np.testing.assert_allclose(seen, np.hstack([expected, np.array(wide) / 100]), atol=1e-3)
    few = ct_slices(values, np.array([False, False, True, False, False]), slices(neighbours=True, most=1))
    assert few.kept == (2,)
    np.testing.assert_allclose(few.values[0, :, 8, 8], expected[2], atol=1e-3)


def test_black_edges_are_cut_and_a_slice_may_have_its_own_scale() -> None:
    values = np.full((1, 32, 32), -1000, np.int16)
    values[0, 4:12, 6:14] = 20
    values[0, 4:8, 6:14] = 60
    cropped = ct_slices(values, np.zeros(1, bool), slices(crop=True)).values[0, 0]
    assert cropped[:6].min() == 0.75
    assert cropped[10:].max() == 0.25
    own = ct_slices(values, np.zeros(1, bool), slices(crop=True, scale="slice")).values[0, 0]
    assert (float(own.max()), float(own[0, 0])) == (1, 1)
    np.testing.assert_allclose(own[12], 20 / 60, atol=1e-3)
    black = ct_slices(values[:, :4], np.zeros(1, bool), slices(crop=True, scale="slice")).values
    assert not black.any()


def test_of_too_many_slices_some_at_equal_steps() -> None:
    none = np.zeros(100, bool)
    assert chosen(none, 4) == (12, 37, 62, 87)
    assert chosen(none, 100) == tuple(range(100))
    some = none.copy()
    some[[3, 50, 51, 99]] = True
    assert set(chosen(some, 6)) > {3, 50, 51, 99}
    assert len(chosen(some, 6)) == 6
    assert chosen(some, 4) == (3, 50, 51, 99)
    assert len(set(chosen(some, 3)) & {3, 50, 51, 99}) == 3


def test_views_keep_their_proportions_and_repeat() -> None:
    spec = Views.model_validate({"kind": "radiograph", "size": (16, 16), "repeat": 3, "most": 2})
    found = views([np.ones((20, 40), np.float32), np.ones((40, 20), np.float32), np.zeros((4, 4), np.float32)], spec)
    assert found.values.shape == (2, 3, 16, 16)
    assert found.values[0, :, 4:12].min() == 1
    assert found.values[0].sum() == 3 * 8 * 16
    np.testing.assert_array_equal(found.values[0, 0], found.values[1, 0].T)


def test_the_same_input_gives_the_same_bytes() -> None:
    values = np.random.default_rng(2).integers(-1000, 1000, (12, 40, 40)).astype(np.int16)
    mask = values > 0
    spec = ct(spacing=(3, 1.3, 0.7))
    one, two = (ct_volume(volume(values, (5, 1, 1)), mask, spec).values.tobytes() for _ in range(2))
    assert one == two
