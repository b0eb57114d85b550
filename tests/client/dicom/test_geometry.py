"""Where slices lie, from positions alone: what still makes a stack and what does not any more, on both sides of each bound."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantom import ct

from ich_client.dicom.geometry import Layout, frame, layout, regular
from ich_client.dicom.header import Header, headers
from ich_client.dicom.reasons import Reason, Refusal

(ONE,) = headers(ct([0.0], rows=2, columns=2)[0], Path("one"))


def at(z: Sequence[float], **beside: tuple[int, float, float]) -> list[Header]:
    """Axial slices with their first pixels at (0, 0, z); `beside`: number of a slice, and where else it lies in its plane."""
    places = [[0.0, 0.0, float(height)] for height in z]
    for number, x, y in beside.values():
        places[number][:2] = x, y
    return [replace(ONE, position=(x, y, height)) for x, y, height in places]


def refused(found: list[Header]) -> Reason:
    with pytest.raises(Refusal) as caught:
        layout(found)
    return caught.value.reason


# --- directions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("across", "down"),
    [((1.02, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0.98, 0)), ((1, 0, 0), (0.02, 0.9998, 0)), ((0, 0, 0), (0, 1, 0))],
)
def test_directions_that_are_no_right_angle_of_unit_vectors_are_refused(
    across: tuple[float, float, float], down: tuple[float, float, float]
) -> None:
    with pytest.raises(Refusal) as caught:
        frame(replace(ONE, orientation=(across, down)))
    assert caught.value.reason is Reason.ORIENTATION


def test_rounded_directions_become_exact_ones() -> None:
    """Half a degree beside the right angle and half a percent too long: the row keeps its direction, and all else follows."""
    found = frame(replace(ONE, orientation=((1.005, 0, 0), (0.008, 0.996, 0))))
    axes = np.stack([found.across, found.down, found.through])
    np.testing.assert_allclose(axes, np.eye(3), atol=1e-12)


# --- places -----------------------------------------------------------------------------------------------------------


def test_one_slice_without_a_place_refuses_the_stack() -> None:
    assert refused([*at([0, 5, 10, 15]), replace(ONE, position=None)]) is Reason.HEADER


def test_thin_slices_are_not_taken_for_one() -> None:
    found = layout(at(0.4 * np.arange(10)))
    assert len(found.order) == 10
    assert found.step == pytest.approx(0.4)


def test_a_slice_close_to_another_is_not_at_its_place() -> None:
    assert refused(at([0, 5, 10, 10.3, 15, 20])) is Reason.SPACING
    assert layout(at([0, 5, 10, 10.005, 15, 20])).same == ((), (), (3,), (), ())


@pytest.mark.parametrize(("x", "y"), [(0.3, 0), (0, -0.3)])
def test_slices_at_one_depth_that_are_shifted_are_not_the_same(x: float, y: float) -> None:
    assert refused(at([0, 5, 10, 10, 15, 20], it=(3, x, y))) is Reason.POSITIONS
    assert layout(at([0, 5, 10, 10, 15, 20], it=(3, x / 5, y / 5))).same[2] == (3,)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_slice_beside_the_line_of_the_others(axis: int) -> None:
    """Of eleven slices the middle one: the line through all moves by an eleventh, so 0.66 mm lie 0.6 mm beside it."""
    for millimetres, fits in ((0.66, False), (0.44, True)):
        x, y = (millimetres, 0.0) if axis == 0 else (0.0, millimetres)
        found = at(5.0 * np.arange(11), it=(5, x, y))
        assert layout(found).sheared if fits else refused(found) is Reason.POSITIONS


# --- distances --------------------------------------------------------------------------------------------------------


def distances(*gaps: float) -> list[Header]:
    return at(np.cumsum([0.0, *gaps]).tolist())


@pytest.mark.parametrize(
    ("step", "off", "fits"),
    [(5.0, 0.09, True), (5.0, 0.2, False), (0.5, 0.04, True), (0.5, 0.08, False), (20.0, 0.19, True)],
)
def test_how_far_a_slice_may_be_from_its_place(step: float, off: float, fits: bool) -> None:
    """A tenth of a millimetre, of thin slices a tenth of their distance, of thick ones a hundredth."""
    z = step * np.arange(12)
    z[6] += off
    if fits:
        assert layout(at(z)).regular
    else:
        assert refused(at(z)) is Reason.SPACING


@pytest.mark.parametrize(
    ("gaps", "reason"),
    [
        ([5, 5, 5, 10.15, 5, 5, 5], Reason.MISSING_SLICES),  # twice the distance, to 2 %
        ([5, 5, 5, 10.5, 5, 5, 5], Reason.SPACING),  # neither one slice's place nor two
        ([5, 5, 5, 3, 5, 5, 5], Reason.SPACING),  # a step between zones there is only where the distance changes
        ([2.5, 2.5, 2.5, 11, 7.5, 7.5, 7.5], Reason.SPACING),  # longer than either
        ([2.5, 2.5, 2.5, 15, 7.5, 7.5, 7.5], Reason.MISSING_SLICES),  # a hole of the second
        ([2.5, 2.5, 2.5, 1.0, 1.2, 7.5, 7.5, 7.5], Reason.SPACING),  # two steps between zones
        ([5, 5, 10, 10, 5, 5], Reason.MISSING_SLICES),
    ],
)
def test_distances_that_are_not_regular(gaps: list[float], reason: Reason) -> None:
    assert refused(distances(*gaps)) is reason


@pytest.mark.parametrize("between", [1.0, 4.0, 7.55])
def test_between_two_zones_one_step_may_be_shorter(between: float) -> None:
    found: Layout = layout(distances(2.5, 2.5, 2.5, between, 7.5, 7.5, 7.5))
    assert found.zones == pytest.approx((2.5, 7.5), abs=0.02)
    assert (found.step, found.missing) == (found.zones[0], 0)
    assert found.grid[-1] == found.depths[-1] == pytest.approx(30 + between)


def test_zones_that_have_as_many_slices_as_the_grid_are_not_yet_on_it() -> None:
    """Six steps over 28.5 mm, whose finest are of 4.5 mm: the grid has six of 4.75, and slice 3 lies 0.75 mm before its third."""
    found = layout(distances(4.5, 4.5, 4.5, 5, 5, 5))
    assert len(found.grid) == len(found.depths) == 7
    assert found.grid[3] - found.depths[3] == pytest.approx(0.75)
    assert not found.regular
    values = np.repeat(10 * found.depths, 4).reshape(7, 2, 2)  # 10 HU per mm
    volume = regular(values.astype(np.int16), (1.0, 1.0), found, "HU", -1024)
    np.testing.assert_array_equal(volume.values[:, 0, 0], np.rint(10 * found.grid))
