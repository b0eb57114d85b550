"""Each fault of a series: the right volume, or a refusal by name; never a volume that is silently wrong."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom import acquired, as_mr, ct, in_probe, ramp, set_pixels, stored, write
from pydicom import dcmread
from pydicom.dataset import Dataset

from ich_client.dicom.choose import choose
from ich_client.dicom.reasons import HINTS, Reason, Refusal
from ich_client.dicom.scan import scan
from ich_client.dicom.series import group
from ich_client.dicom.stack import Stack
from ich_client.dicom.stack import read as read_series
from ich_models.volume import Volume

Z = np.arange(24) * 5.0
LPS = np.array([-1.0, -1.0, 1.0])
TOLERANCE = 1.6
"""HU: rounded when stored, when un-sheared and when put on a grid. The smallest slope is 3 HU per mm."""


def read(folder: Path, **how: object) -> Stack:
    stacks, _ = group(scan(folder))
    return choose(stacks, **how).stack  # type: ignore[arg-type]


def refusal(folder: Path, **how: object) -> dict[Reason, str]:
    """The reasons for which no series of a folder is used."""
    stacks, bad = group(scan(folder))
    reasons = {one.refusal.reason: one.refusal.detail for one in bad}
    with pytest.raises(Refusal) as caught:
        choose(stacks, **how)  # type: ignore[arg-type]
    assert caught.value.reason == Reason.NO_SERIES
    return reasons | {reason: caught.value.detail for reason in Reason if reason in caught.value.detail}


def assert_tells_its_place(volume: Volume, upright: bool = True) -> None:
    """Every voxel of the probe has the value of the place that the affine says it is at; and the volume is in RAS."""
    points = volume.world(np.stack(np.meshgrid(*map(np.arange, volume.values.shape), indexing="ij"), -1)) * LPS
    inside = in_probe(points, margin=8.0)
    assert inside.sum() >= 1000
    assert np.abs(volume.values[inside] - ramp(points[inside])).max() <= TOLERANCE
    towards = volume.affine[:3, :3] / volume.spacing
    least = 0.9 if upright else 0.75
    assert towards[2, 0] > least
    assert towards[1, 1] > least
    assert towards[0, 2] > least


def test_a_sound_series_is_passed_through(tmp_path: Path) -> None:
    slices = ct(Z)
    stack = read(write(tmp_path, slices))
    volume = stack.volume()
    assert volume.values.dtype == np.int16
    assert volume.values.shape == (24, 72, 64)
    assert volume.spacing == pytest.approx([5.0, 3.0, 3.2])
    # RAS: the first row is the back of the head, the first column its left, both reversed against the file
    expected = np.stack([stored(one).astype(int) - 1024 for one in slices])[:, ::-1, ::-1]
    np.testing.assert_array_equal(volume.values, expected)
    # the corner: last row and column of the first slice, LPS (x0 + 63 * 3.2, y0 + 71 * 3, 0)
    assert volume.world([0, 0, 0]) == pytest.approx([-100.8, -116.5, 0.0])
    assert_tells_its_place(volume)
    assert stack.notes == ()


@pytest.mark.parametrize("kind", ["sagittal", "coronal", "from below", "askew"])
def test_slices_in_any_direction(kind: str, tmp_path: Path) -> None:
    x, y, z = np.eye(3)
    middle = np.array([0.0, 10.0, 60.0])
    across, down, step, shape = {
        "sagittal": (y, -z, -4 * x, (60, 80)),
        "coronal": (x, -z, 4 * y, (60, 70)),
        "from below": (-x, y, -4 * z, (72, 64)),  # as a radiologist never looks at it
        "askew": (0.8 * x + 0.6 * y, -0.6 * x + 0.8 * y, 4 * z, (80, 80)),
    }[kind]
    spacing = (3.0, 3.2)
    first = middle - across * 3.2 * (shape[1] - 1) / 2 - down * 3.0 * (shape[0] - 1) / 2
    corners = [first + step * (number - 22) for number in range(45)]
    slices = acquired(corners, across, down, rows=shape[0], columns=shape[1], spacing=spacing)
    volume = read(write(tmp_path, slices)).volume()
    assert_tells_its_place(volume, upright=kind != "askew")


@pytest.mark.parametrize("kind", ["straight", "tilted", "askew"])
def test_a_volume_is_brought_back_to_the_acquired_slices(kind: str, tmp_path: Path) -> None:
    """There and back: a mask found in the volume lands on the slices that it came from."""
    slices = ct(Z, tilt=15 if kind == "tilted" else 0)
    if kind == "askew":
        for number, one in enumerate(slices):
            one.ImageOrientationPatient = [0.8, 0.6, 0, -0.6, 0.8, 0]
            one.ImagePositionPatient = [10, -140, 5.0 * (23 - number)]
    stack = read(write(tmp_path, slices))
    volume = stack.volume()
    back = stack.sample(volume)
    assert back.dtype == np.int16
    if kind == "tilted":  # two linear shifts: a smooth place is as it was
        smooth = (stack.values > 1200) & (stack.values < 1800)
        smooth[:, 1:-1] &= np.abs(stack.values[:, 2:].astype(int) - stack.values[:, :-2]) < 40
        smooth &= np.roll(smooth, 1, 1) & np.roll(smooth, -1, 1) & np.roll(smooth, 2, 1) & np.roll(smooth, -2, 1)
        assert smooth.sum() > 3000
        assert np.abs(back[smooth].astype(int) - stack.values[smooth]).max() <= 2
    else:
        np.testing.assert_array_equal(back, stack.values)
    bright = Volume(np.where(volume.values > 1200, 100, 0).astype(np.int16), volume.affine, "intensity")
    mask = stack.sample(bright, nearest=True)
    assert set(np.unique(mask)) == {0, 100}, "a mask is not blurred"
    same = (mask == 100) == (stack.values > 1200)
    assert same.mean() > (0.99 if kind == "tilted" else 0.9999)
    assert (mask[:, :, :5] == 0).all()


# --- the rows of the fault table --------------------------------------------------------------------------------------


def test_a_missing_slice_is_refused_and_interpolated_only_on_request(tmp_path: Path) -> None:
    folder = write(tmp_path, ct(np.delete(Z, 10)))
    assert refusal(folder).keys() == {Reason.MISSING_SLICES}
    stack = read(folder, missing="interpolate")
    assert stack.notes == ("1 missing slice interpolated",)
    volume = stack.volume()
    assert volume.values.shape[0] == 24
    assert volume.spacing[0] == pytest.approx(5.0)
    assert_tells_its_place(volume)


def test_a_hole_of_several_slices_is_never_interpolated(tmp_path: Path) -> None:
    folder = write(tmp_path, ct(np.delete(Z, [10, 11])))
    assert Reason.MISSING_SLICES in refusal(folder, missing="interpolate")


def test_several_holes_are_counted(tmp_path: Path) -> None:
    stack = read(write(tmp_path, ct(np.delete(Z, [4, 10, 12]))), missing="interpolate")
    assert stack.notes == ("3 missing slices interpolated",)
    assert_tells_its_place(stack.volume())


def test_a_slice_twice_is_dropped(tmp_path: Path) -> None:
    slices = ct(Z)
    twin = copy.deepcopy(slices[5])
    twin.SOPInstanceUID = "1.2.3.99"
    stack = read(write(tmp_path, [*slices, twin]))
    assert stack.notes == ("1 duplicate dropped",)
    assert sorted(stack.instances[5]) == ["1.2.3.10.6", "1.2.3.99"]
    assert stack.values.shape[0] == 24
    assert_tells_its_place(stack.volume())


def test_a_folder_that_holds_everything_twice(tmp_path: Path) -> None:
    write(tmp_path / "a", ct(Z, tilt=12))
    write(tmp_path / "copy of a", ct(Z, tilt=12))
    stack = read(tmp_path)
    assert stack.notes[0] == "24 duplicates dropped"
    assert_tells_its_place(stack.volume())


def test_a_repeated_acquisition_is_a_series_of_its_own(tmp_path: Path) -> None:
    slices, again = ct(Z), ct(Z[3:6], values=lambda points: np.full(points.shape[:-1], 35.0))
    for index, one in enumerate(again):
        one.AcquisitionNumber, one.SOPInstanceUID = 2, f"1.2.3.50.{index}"
    stack = read(write(tmp_path, slices + again))
    assert stack.notes == ()
    assert_tells_its_place(stack.volume())


def test_acquisition_numbers_that_change_with_every_slice_part_nothing(tmp_path: Path) -> None:
    slices = ct(Z)
    for number, one in enumerate(slices):
        one.AcquisitionNumber = number
    assert len(read(write(tmp_path / "a", slices)).values) == 24
    other = copy.deepcopy(slices[5])
    other.SOPInstanceUID, other.AcquisitionNumber = "1.2.3.99", 99
    set_pixels(other, stored(other)[::-1].copy())
    assert refusal(write(tmp_path / "b", [*slices, other])).keys() == {Reason.DUPLICATES}


def test_kernels_of_zones_that_overlap_are_two_stacks(tmp_path: Path) -> None:
    slices, again = ct(Z[:14]), ct(Z[13:])  # one place in both
    for index, one in enumerate(again):
        one.ConvolutionKernel, one.SOPInstanceUID = "H40s", f"1.2.3.50.{index}"
    stacks, _ = group(scan(write(tmp_path, slices + again)))
    assert sorted((len(one.headers), one.first.kernel) for one in stacks) == [(11, "H40S"), (14, "H31S")]


@pytest.mark.parametrize(
    "other",
    [
        {"tilt": 3.0},  # their places would be computed with the direction of the first
        {"spacing": (3.0, 3.22)},
        {"rows": 70},
        {"columns": 60},
    ],
    ids=str,
)
def test_what_differs_in_its_geometry_is_no_part_of_the_stack(other: dict[str, Any], tmp_path: Path) -> None:
    slices, others = ct(Z[:10]), ct(Z[10:16], **other)
    for index, one in enumerate(others):
        one.SOPInstanceUID = f"1.2.3.50.{index}"
    stacks, refused = group(scan(write(tmp_path, slices + others)))
    assert (sorted(len(one.headers) for one in stacks), refused) == ([6, 10], [])


def test_slices_with_a_contrast_agent_are_a_stack_of_their_own(tmp_path: Path) -> None:
    """In the series of those without, at the same places."""
    slices, enhanced = ct(Z), ct(Z, values=lambda points: np.full(points.shape[:-1], 35.0))
    for index, one in enumerate(slices):
        one.ContrastBolusAgent = ("NONE", "no", "")[index % 3]
    for index, one in enumerate(enhanced):
        one.SOPInstanceUID, one.ContrastBolusAgent = f"1.2.3.50.{index}", "Iopamidol"
    stacks, _ = group(scan(write(tmp_path, slices + enhanced)))
    choice = choose(stacks)
    assert not choice.series.first.contrast
    assert len(choice.stack.values) == 24
    assert_tells_its_place(choice.stack.volume())


def test_kernels_of_zones_that_follow_each_other_are_one_head(tmp_path: Path) -> None:
    slices = ct(Z)
    for one in slices[:8]:
        one.ConvolutionKernel, one.ImageType = "H40s", ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"]
    stack = read(write(tmp_path, slices))
    assert len(stack.values) == 24
    assert_tells_its_place(stack.volume())


def test_two_images_at_one_place_are_refused(tmp_path: Path) -> None:
    slices = ct(Z)
    other = copy.deepcopy(slices[5])
    other.SOPInstanceUID = "1.2.3.99"
    set_pixels(other, stored(other)[::-1].copy())
    assert refusal(write(tmp_path, [*slices, other])).keys() == {Reason.DUPLICATES}


@pytest.mark.parametrize("seed", range(3))
def test_of_three_images_at_one_place_each_must_be_the_same(seed: int, tmp_path: Path) -> None:
    """In whatever order their files are met."""
    slices = ct(Z[:6])
    twin, other = copy.deepcopy(slices[3]), copy.deepcopy(slices[3])
    twin.SOPInstanceUID, other.SOPInstanceUID = "1.2.3.98", "1.2.3.99"
    set_pixels(other, stored(other)[::-1].copy())
    assert refusal(write(tmp_path, [*slices, twin, other], seed)).keys() == {Reason.DUPLICATES}


def test_every_slice_in_two_versions_is_four_dimensional(tmp_path: Path) -> None:
    slices, again = ct(Z), ct(Z)
    for index, one in enumerate(again):
        one.SOPInstanceUID = f"1.2.3.50.{index}"
        set_pixels(one, stored(one) + np.uint16(3))
    assert refusal(write(tmp_path, slices + again)).keys() == {Reason.FOUR_D}


@pytest.mark.parametrize("tilt", [15.0, -22.5, 0.2])
@pytest.mark.parametrize("tag", [None, 0.0, -15.0])
def test_tilt_is_taken_from_the_geometry(tilt: float, tag: float | None, tmp_path: Path) -> None:
    slices = ct(Z, tilt=tilt)
    for one in slices:
        if tag is not None:
            one.GantryDetectorTilt = tag
    stack = read(write(tmp_path, slices))
    assert stack.layout.tilt == pytest.approx(abs(tilt), abs=0.01)
    volume = stack.volume()
    assert volume.spacing[0] == pytest.approx(5 * np.cos(np.radians(tilt)))
    axes = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)  # right angles
    assert_tells_its_place(volume)
    # the acquired slices stay what they were
    np.testing.assert_array_equal(stack.values[3], stored(slices[3]).astype(int) - 1024)


@pytest.mark.parametrize("sideways", [0.3, -0.5])
def test_a_shear_to_the_side_is_undone_too(sideways: float, tmp_path: Path) -> None:
    """Both ways at once, as no gantry does and as geometry allows."""
    x, y, z = np.eye(3)
    corners = [
        np.array([-100.8, -96.5, 0]) + number * (5 * z + 5 * sideways * x - 2 * sideways * y) for number in range(24)
    ]
    slices = acquired(corners, x, y, rows=72, columns=64, spacing=(3.0, 3.2))
    stack = read(write(tmp_path, slices))
    assert stack.layout.tilt == pytest.approx(np.degrees(np.arctan(abs(sideways) * np.hypot(1, 0.4))))
    assert_tells_its_place(stack.volume())


def test_a_tilted_head_loses_no_voxel_to_the_canvas(tmp_path: Path) -> None:
    # tissue up to the edges of every slice, but for a box of air
    slices = ct(Z, tilt=20, values=lambda points: np.where(in_probe(points), -1000.0, 30.0))
    volume = read(write(tmp_path, slices)).volume()
    # the sum over the canvas is what was acquired: linear shifts move values, they lose none
    acquired = np.stack([stored(one).astype(int) for one in slices]).sum()
    assert (volume.values.astype(int) + 1024).sum() == pytest.approx(acquired, rel=1e-3)


def test_where_nothing_of_an_mr_was_acquired_it_is_black(tmp_path: Path) -> None:
    """-1024 is air on the scale of CT alone."""
    bright = as_mr(ct(Z[:6], tilt=20, values=lambda points: 400 + points[..., 0]))
    (series,), _ = group(scan(write(tmp_path, bright)))
    volume = read_series(series).volume()
    assert volume.values.shape[1] > 72  # the canvas holds every shifted slice
    assert volume.values.min() == 0
    assert volume.values.max() == pytest.approx(max(stored(one).max() for one in bright))


def test_instance_numbers_are_no_geometry(tmp_path: Path) -> None:
    slices = ct(Z)
    for one, number in zip(slices, np.random.default_rng(0).permutation(24), strict=True):
        one.InstanceNumber, one.SliceLocation, one.SliceThickness = int(number) + 1, float(number), 1.25
    volume = read(write(tmp_path, slices)).volume()
    assert volume.spacing[0] == pytest.approx(5.0)
    assert_tells_its_place(volume)


@pytest.mark.parametrize("between", [(), (31.1,)])
def test_two_zones_are_put_on_one_grid(between: tuple[float, ...], tmp_path: Path) -> None:
    base = 2.5 * np.arange(13)
    vertex = (between[0] if between else 30.0) + 7.5 * np.arange(1, 13)
    stack = read(write(tmp_path, ct([*base, *between, *vertex])))
    assert stack.notes == ("zones of 2.50, 7.50 mm put on one grid",)
    volume = stack.volume()
    assert volume.spacing[0] == pytest.approx(2.5, rel=0.02)
    # first and last slice stay where they were
    assert volume.world([0, 0, 0])[2] == pytest.approx(0)
    assert volume.world([len(volume.values) - 1, 0, 0])[2] == pytest.approx(vertex[-1])
    assert_tells_its_place(volume)


def test_tilt_and_zones_and_a_shuffle_together(tmp_path: Path) -> None:
    z = [*(4.2 * np.arange(14)), *(13 * 4.2 + 1.1 + 7.4 * np.arange(10))]
    volume = read(write(tmp_path, ct(z, tilt=18.5), seed=3)).volume()
    assert_tells_its_place(volume)


@pytest.mark.parametrize(
    "z",
    [
        [*(2.5 * np.arange(9)), 23.5, 28.0, *(35.5 + 7.5 * np.arange(9))],
        [*Z[:8], 41.0, *Z[9:]],
        [*Z[:8], 36.0, *Z[8:]],
        [0, 5, 11, 18, 26],
    ],
)
def test_distances_without_order_are_refused(z: list[float], tmp_path: Path) -> None:
    assert refusal(write(tmp_path, ct(z))).keys() == {Reason.SPACING}


def test_rounded_positions_are_no_fault(tmp_path: Path) -> None:
    volume = read(write(tmp_path, ct([round(height * 1.25, 1) for height in range(97)]))).volume()
    assert volume.values.shape[0] == 97
    assert volume.spacing[0] == pytest.approx(1.25, abs=0.001)


def test_a_scout_in_the_series_is_set_apart(tmp_path: Path) -> None:
    slices = ct(Z)
    scout = copy.deepcopy(slices[0])
    scout.SOPInstanceUID, scout.InstanceNumber = "1.2.3.99", 0
    scout.ImageOrientationPatient, scout.ImageType = [0, 1, 0, 0, 0, -1], ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    stacks, _ = group(scan(write(tmp_path, [scout, *slices])))
    choice = choose(stacks)
    assert choice.stack.values.shape[0] == 24
    assert [one.refusal.reason for one in choice.refused] == [Reason.LOCALIZER]
    assert_tells_its_place(choice.stack.volume())


def test_a_localiser_of_the_same_direction_is_set_apart(tmp_path: Path) -> None:
    slices, scouts = ct(Z), ct([-60.0, -40.0, -20.0])
    for index, one in enumerate(scouts):
        one.SOPInstanceUID, one.ImageType = f"1.2.3.50.{index}", ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    stacks, _ = group(scan(write(tmp_path, slices + scouts)))
    choice = choose(stacks)
    assert len(choice.stack.values) == 24
    assert [one.refusal.reason for one in choice.refused] == [Reason.LOCALIZER]


@pytest.mark.parametrize("apart", [True, False])
def test_two_kernels_are_two_series_and_the_soft_one_is_used(apart: bool, tmp_path: Path) -> None:
    soft, bone = ct(Z), ct(Z, values=lambda points: np.full(points.shape[:-1], 35.0))
    for index, one in enumerate(bone):
        one.ConvolutionKernel, one.SOPInstanceUID = "H60s", f"1.2.3.50.{index}"
        if apart:
            one.SeriesInstanceUID, one.SeriesNumber = "1.2.3.50", 1
    stacks, _ = group(scan(write(tmp_path, bone + soft)))
    choice = choose(stacks)
    assert choice.series.first.kernel == "H31S"
    assert choice.reason == "not sharp, unlike the next of 2 usable series"
    assert_tells_its_place(choice.stack.volume())


# --- further faults ---------------------------------------------------------------------------------------------------


def test_slices_beside_the_line_are_refused(tmp_path: Path) -> None:
    slices = ct(Z)
    slices[7].ImagePositionPatient = [-90, *slices[7].ImagePositionPatient[1:]]
    assert refusal(write(tmp_path, slices)).keys() == {Reason.POSITIONS}


def test_orientation_without_a_right_angle_is_refused(tmp_path: Path) -> None:
    slices = ct(Z)
    for one in slices:
        one.ImageOrientationPatient = [1, 0, 0, 0.3, 0.954, 0]
    assert refusal(write(tmp_path, slices)).keys() == {Reason.ORIENTATION}


def _drop(tag: str) -> Callable[[Dataset], None]:
    return lambda one: one.__delattr__(tag)


def _set(tag: str, value: object) -> Callable[[Dataset], None]:
    return lambda one: setattr(one, tag, value)


def _at_the_detector(one: Dataset) -> None:
    """A spacing that is not the patient's."""
    one.ImagerPixelSpacing = one.PixelSpacing
    del one.PixelSpacing


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_drop("ImagePositionPatient"), Reason.HEADER),
        (_drop("ImageOrientationPatient"), Reason.HEADER),
        (_drop("PixelSpacing"), Reason.HEADER),
        (_set("PixelSpacing", [0.0, 0.5]), Reason.HEADER),
        (_set("PixelSpacing", [0.5, 0.0005]), Reason.HEADER),  # metres
        (_set("PixelSpacing", [500, 500]), Reason.HEADER),
        (_at_the_detector, Reason.HEADER),
        (_drop("RescaleIntercept"), Reason.RESCALE),
        (_set("RescaleSlope", 0), Reason.RESCALE),
        (_set("RescaleSlope", -1), Reason.RESCALE),
        (_set("RescaleSlope", 101), Reason.RESCALE),
        (_set("RescaleIntercept", -10001), Reason.RESCALE),
        (_set("RescaleType", "Z_EFF"), Reason.UNIT),
        (_set("RescaleIntercept", 0), Reason.HU_RANGE),
        (_set("ImageType", ["DERIVED", "SECONDARY", "REFORMATTED"]), Reason.DERIVED),
        (_set("ImageType", ["ORIGINAL", "PRIMARY", "MOSAIC"]), Reason.MOSAIC),
        (_set("ImageType", ["ORIGINAL", "PRIMARY", "SCOUT"]), Reason.LOCALIZER),
        (_set("ImageType", ["ORIGINAL", "PRIMARY", "SCREEN SAVE"]), Reason.SECONDARY_CAPTURE),
        (_set("BurnedInAnnotation", "YES"), Reason.BURNED_IN),
        (_set("PhotometricInterpretation", "PALETTE COLOR"), Reason.COLOUR),
        (_set("SamplesPerPixel", 3), Reason.COLOUR),
        (_set("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"), Reason.SECONDARY_CAPTURE),
        (_set("SOPClassUID", "1.2.840.10008.5.1.4.1.1.128"), Reason.MODALITY),
        (_set("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.4"), Reason.MODALITY),
        (_set("Modality", "MR"), Reason.HEADER),
        (_set("Rows", 71), Reason.PIXELS),
        (_set("Rows", 65535), Reason.PIXELS),
        (_set("BitsStored", 17), Reason.HEADER),
        (_set("BitsAllocated", 1), Reason.HEADER),
    ],
)
def test_faults_of_every_slice_are_refused_by_name(
    fault: Callable[[Dataset], None], reason: Reason, tmp_path: Path
) -> None:
    slices = ct(Z[:6])
    for one in slices:
        fault(one)
    assert refusal(write(tmp_path, slices)).keys() == {reason}


@pytest.mark.parametrize("number", [0, 3, 5])
def test_one_image_with_a_name_burned_in_refuses_its_series(number: int, tmp_path: Path) -> None:
    slices = ct(Z[:6])
    slices[number].BurnedInAnnotation = "YES"
    assert refusal(write(tmp_path, slices)).keys() == {Reason.BURNED_IN}


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_slices(count: int, tmp_path: Path) -> None:
    assert refusal(write(tmp_path, ct(Z[:count]))).keys() == {Reason.FEW_SLICES}


def test_blank_images_are_refused(tmp_path: Path) -> None:
    slices = ct(Z, values=lambda points: np.full(points.shape[:-1], -1024.0))
    assert refusal(write(tmp_path, slices)).keys() == {Reason.BLANK}


def test_a_bad_file_fails_its_series_and_no_other(tmp_path: Path) -> None:
    good, bad = ct(Z), ct(Z, series="1.2.3.20")
    folder = write(tmp_path, good)
    write(tmp_path / "other", bad)
    victim = tmp_path / "other" / "IM0003"
    victim.write_bytes(victim.read_bytes()[:-500])  # pixels cut short
    stacks, _ = group(scan(folder))
    choice = choose(stacks)  # of equals the larger UID goes first
    assert choice.series.first.series == "1.2.3.10"
    (aside,) = choice.refused
    assert aside.series == "1.2.3.20"
    assert aside.refusal.reason == Reason.PIXELS
    assert aside.refusal.where.endswith("IM0003")
    assert refusal(tmp_path / "other").keys() == {Reason.PIXELS}


@pytest.mark.parametrize("damage", [b"x.0\\3.2 ", b"3_0\\3.2 ", b"3.0\\nan ", b"3.0x3.2 ", b"3.0\\-3. "])
def test_a_damaged_header_fails_its_series_by_name(damage: bytes, tmp_path: Path) -> None:
    folder = write(tmp_path, ct(Z))
    victim = folder / "IM0003"
    content = victim.read_bytes()
    assert content.count(b"3.0\\3.2 ") == 1
    victim.write_bytes(content.replace(b"3.0\\3.2 ", damage))
    found = scan(folder)
    assert [bad.refusal.reason for bad in found.bad] == [Reason.HEADER]
    assert "PixelSpacing" in found.bad[0].refusal.detail
    stacks, refused = group(found)
    assert stacks == []
    assert {one.refusal.reason for one in refused} == {Reason.HEADER}


@pytest.mark.parametrize("number", [0, 11, 23])
def test_a_file_that_ends_in_its_header_fails_its_series(number: int, tmp_path: Path) -> None:
    """Also the first or the last slice, whose loss leaves no gap."""
    slices = ct(Z)
    folder = write(tmp_path, slices)
    (victim,) = [path for path in folder.iterdir() if dcmread(path).SOPInstanceUID == slices[number].SOPInstanceUID]
    content = victim.read_bytes()
    for end in (content.index(b"\xe0\x7f\x10\x00"), content.rindex(b"1.2.3.10") + 30):
        victim.write_bytes(content[:end])
        stacks, refused = group(scan(folder))
        assert stacks == []
        assert {one.refusal.reason for one in refused} <= {Reason.PIXELS, Reason.HEADER, Reason.UNREADABLE}


def test_files_are_found_by_content(tmp_path: Path) -> None:
    write(tmp_path, ct(Z))
    (tmp_path / "notes.dcm").write_text("not DICOM at all")
    (tmp_path / "empty.dcm").write_bytes(b"")
    first = tmp_path / "IM0000"
    (tmp_path / "bare").write_bytes(first.read_bytes()[132:])
    found = scan(tmp_path)
    assert len(found.headers) == 24
    assert found.others == 2
    assert [bad.refusal.reason for bad in found.bad] == [Reason.NO_PREAMBLE]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = scan(tmp_path / "absent")
    assert [bad.refusal.reason for bad in found.bad] == [Reason.UNREADABLE]
    assert found.bad[0].refusal.where == str(tmp_path / "absent")


def test_a_refusal_survives_the_way_between_processes() -> None:
    sent = Refusal(Reason.SPACING, "a distance of 3 mm", "series 2")
    back = pickle.loads(pickle.dumps(sent))
    assert (back.reason, back.detail, back.where, str(back)) == (sent.reason, sent.detail, sent.where, str(sent))
    assert HINTS[Reason.SPACING] in str(back)


def test_no_reason_is_without_a_hint() -> None:
    assert HINTS.keys() == set(Reason)


def test_mr_is_no_ct(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, as_mr(ct(Z)))).keys() == {Reason.MODALITY}


def test_every_reason_is_in_the_handbook(repository: Path) -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", (repository / "docs" / "images.md").read_text(), re.MULTILINE)
    assert rows == [reason.value for reason in Reason]
