"""A volume keeps its place in space through orientation and resampling; nibabel and hand-made ramps are the judges."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ich_models.volume import AIR, Volume, fit, onto, oriented, resample

TURN = np.linalg.qr(np.array([[1.0, 0.1, -0.2], [-0.15, 1.0, 0.05], [0.2, 0.0, 1.0]]))[0]
TURN = TURN * np.sign(np.diag(TURN))


def ramp(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return 100 + points @ [2.0, 3.0, 5.0]


def linear(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Volume:
    """A volume whose values are a linear function of the place."""
    empty = Volume(np.zeros(shape, np.float32), affine, "intensity")
    points = empty.world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    return Volume(ramp(points).astype(np.float32), affine, "intensity")


def geometry(spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> NDArray[np.float64]:
    """Turned by some degrees; D, H, W along z, y, x."""
    affine = np.eye(4)
    affine[:3, :3] = (TURN @ np.eye(3)[:, ::-1]) * spacing
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product([1, -1], repeat=3)))
def test_orientation_agrees_with_nibabel(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.eye(4)
    affine[:3, :3] = (TURN * [0.5, 0.6, 5.0])[:, order] * signs
    affine[:3, 3] = [7, -8, 9]
    volume = oriented(values, affine, "HU")
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    np.testing.assert_array_equal(volume.values, np.asarray(canonical.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine, canonical.affine[:, [2, 1, 0, 3]], atol=1e-12)


def test_world_and_indices_are_each_others_inverse() -> None:
    volume = linear((4, 5, 6), geometry((5, 0.5, 0.4), (1, 2, 3)))
    index = np.array([[0, 0, 0], [3, 4, 5], [1.5, 2.25, 0.1]])
    np.testing.assert_allclose(volume.indices(volume.world(index)), index, atol=1e-9)
    assert volume.spacing == pytest.approx([5, 0.5, 0.4])
    assert volume.millilitres == pytest.approx(0.001)


def interior(volume: Volume, margin: int = 3) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Points of a volume away from its edges, and the values there."""
    index = np.stack(
        np.meshgrid(*(np.arange(margin, size - margin) for size in volume.values.shape), indexing="ij"), -1
    )
    return volume.world(index), volume.values[tuple(np.moveaxis(index, -1, 0))]


@pytest.mark.parametrize("spacing", [(None, 0.9, 0.7), (2.5, 0.5, 0.4), (None, 1.1, None), (3.0, 0.3, 0.2)])
def test_resampling_moves_no_value(spacing: tuple[float | None, float | None, float | None]) -> None:
    volume = linear((20, 40, 50), geometry((5, 0.5, 0.4), (10, 20, 30)))
    moved = resample(volume, spacing)
    for axis, mm in enumerate(spacing):
        assert moved.spacing[axis] == pytest.approx(volume.spacing[axis] if mm is None else mm)
    if spacing[0] is None:
        assert moved.values.shape[0] == 20
    # a linear function survives smoothing and linear interpolation away from the edges
    points, values = interior(moved, 5)
    assert len(values.ravel()) > 100
    np.testing.assert_allclose(values, ramp(points), atol=0.02)
    # outer faces stay within half a new voxel, the middle where it was
    middle = [(size - 1) / 2 for size in moved.values.shape]
    np.testing.assert_allclose(moved.world(middle), volume.world([9.5, 19.5, 24.5]), atol=1e-9)
    extent, before = moved.values.shape * moved.spacing, volume.values.shape * volume.spacing
    assert (np.abs(extent - before) <= moved.spacing / 2 + 1e-9).all()


def test_keeping_every_spacing_is_no_work() -> None:
    volume = linear((4, 5, 6), geometry((5, 0.5, 0.4), (0, 0, 0)))
    assert resample(volume, (None, None, 0.4)) is volume


def test_fine_stripes_fade_when_voxels_become_coarser() -> None:
    stripes = np.zeros((3, 64, 64), np.float32)
    stripes[:, :, ::2] = 100
    moved = resample(Volume(stripes, geometry((5, 1, 1), (0, 0, 0)), "intensity"), (None, 1, 3))
    assert moved.values[1, 20:40, 5:15] == pytest.approx(50, abs=8)  # not 0 and 100 in turns


def test_masks_stay_masks() -> None:
    values = np.zeros((6, 12, 12), np.int16)
    values[2:4, 3:9, 3:9] = 1
    mask = Volume(values, geometry((5, 1, 1), (0, 0, 0)), "intensity")
    moved = resample(mask, (None, 0.5, 0.5), nearest=True)
    assert set(np.unique(moved.values)) == {0, 1}
    assert moved.values.sum() * moved.millilitres == pytest.approx(values.sum() * mask.millilitres)


def test_one_grid_for_several_volumes() -> None:
    coarse = linear((15, 30, 30), geometry((4, 2, 2), (0, 0, 0)))
    fine = linear((80, 100, 110), geometry((1.0, 0.8, 0.7), (-5, -4, -6)))
    for volume, grid in ((fine, coarse), (coarse, fine)):
        moved = onto(volume, grid)
        assert moved.values.shape == grid.values.shape
        np.testing.assert_array_equal(moved.affine, grid.affine)
        points, values = interior(moved, 1)
        index = volume.indices(points)
        covered = ((index > 4) & (index < np.array(volume.values.shape) - 5)).all(-1)
        assert covered.sum() > 1000
        np.testing.assert_allclose(values[covered], ramp(points)[covered], atol=0.05)


def test_what_is_not_covered_is_outside() -> None:
    volume = Volume(np.full((4, 8, 8), 40, np.int16), geometry((5, 1, 1), (0, 0, 0)), "HU")
    grid = Volume(np.zeros((4, 8, 30), np.int16), geometry((5, 1, 1), (0, 0, 0)), "HU")
    moved = onto(volume, grid)
    assert moved.values.dtype == np.int16
    assert (moved.values[:, :, :8] == 40).all()
    assert (moved.values[:, :, 9:] == AIR).all()


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_fit_cuts_and_fills_around_the_middle(have: tuple[int, ...], want: tuple[int, ...]) -> None:
    fitted = fit(np.ones(have), want, -7)
    assert fitted.shape == want
    kept = np.prod(np.minimum(have, want))
    assert (fitted == 1).sum() == kept
    assert (fitted == -7).sum() == fitted.size - kept
    for axis in range(3):
        filled = (fitted == 1).any(axis=tuple(other for other in range(3) if other != axis))
        first, last = np.flatnonzero(filled)[[0, -1]]
        assert abs(first - (want[axis] - 1 - last)) <= 1


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((2, 3), np.eye(4)),
        ((2, 3, 4), np.eye(3)),
        ((2, 0, 4), np.eye(4)),
        ((2, 3, 4), np.zeros((4, 4))),
        ((2, 3, 4), np.full((4, 4), np.nan)),
    ],
)
def test_what_is_no_volume_is_refused(shape: tuple[int, ...], affine: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"affine|geometry"):
        Volume(np.zeros(shape), affine, "HU")
