"""MR: sequences told apart by b-value, times and name; several echoes and directions; ADC maps on one scale."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom import as_mr, ct, stored, write
from pydicom.dataset import Dataset

from ich_client.dicom import mr
from ich_client.dicom.header import Header
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import read_file, scan
from ich_client.dicom.series import Series, group
from ich_models.volume import Volume

Z = np.arange(12) * 5.0


def series(number: int, tmp_path: Path, add: int = 0, **tags: Any) -> Path:
    """One MR series of its own level of grey."""
    images = as_mr(ct(Z, series=f"1.2.3.{number}"), SeriesNumber=number, **tags)
    for one in images:
        one.PixelData = (stored(one) + np.uint16(add)).tobytes()
    return write(tmp_path / str(number), images)


def stacks(folder: Path) -> list[Series]:
    found, refused = group(scan(folder))
    assert refused == []
    return found


def header(**tags: Any) -> Header:
    """The header of one MR image with these tags."""
    (one,) = as_mr(ct([0.0]))
    for tag, value in tags.items():
        setattr(one, tag, value)
    return from_dataset(one)


def from_dataset(one: Dataset) -> Header:
    from ich_client.dicom.header import headers

    return headers(one, Path("x"))[0]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"DiffusionBValue": 1000.0, "SeriesDescription": "x"}, "DWI"),
        ({"DiffusionBValue": 0.0, "ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION"]}, "B0"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], "DiffusionBValue": 0.0}, "ADC"),
        ({"ImageType": ["DERIVED", "PRIMARY", "ADC_UNSPECIFIED"], "SeriesDescription": "dADC"}, "ADC"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TRACEW"]}, "DWI"),
        ({"SeriesDescription": "ep2d_diff_b1000_TRACEW"}, "DWI"),
        ({"EchoTime": 110.0, "RepetitionTime": 9000.0, "InversionTime": 2500.0, "SeriesDescription": ""}, "FLAIR"),
        ({"SeriesDescription": "AX T2 FLAIR"}, "FLAIR"),
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "FLAIR"),
        ({"SeriesDescription": "t2_tse_tra"}, "T2"),
        ({"SeriesDescription": "Ax T2* GRE"}, "SWI"),
        ({"SeriesDescription": "t1_mprage_sag"}, "T1"),
        ({"EchoTime": 95.0, "RepetitionTime": 4500.0, "SeriesDescription": ""}, "T2"),
        ({"EchoTime": 10.0, "RepetitionTime": 500.0, "SeriesDescription": ""}, "T1"),
        ({"SeriesDescription": "3-plane"}, None),
        # on both sides of each bound
        ({"DiffusionBValue": 500.0, "SeriesDescription": ""}, "DWI"),
        ({"DiffusionBValue": 499.0, "SeriesDescription": ""}, "B0"),
        ({"DiffusionBValue": 1000.0, "SeriesDescription": "ep2d ADC"}, "ADC"),
        ({"EchoTime": 61.0, "RepetitionTime": 9000.0, "InversionTime": 1500.0, "SeriesDescription": ""}, "FLAIR"),
        ({"EchoTime": 60.0, "RepetitionTime": 9000.0, "InversionTime": 1500.0, "SeriesDescription": ""}, None),
        ({"EchoTime": 61.0, "RepetitionTime": 9000.0, "InversionTime": 1499.0, "SeriesDescription": ""}, None),
        ({"EchoTime": 60.0, "RepetitionTime": 2000.0, "SeriesDescription": ""}, "T2"),
        ({"EchoTime": 59.0, "RepetitionTime": 2000.0, "SeriesDescription": ""}, None),
        ({"EchoTime": 60.0, "RepetitionTime": 1999.0, "SeriesDescription": ""}, None),
        ({"EchoTime": 29.0, "RepetitionTime": 999.0, "SeriesDescription": ""}, "T1"),
        ({"EchoTime": 30.0, "RepetitionTime": 999.0, "SeriesDescription": ""}, None),
        ({"EchoTime": 29.0, "RepetitionTime": 1000.0, "SeriesDescription": ""}, None),
    ],
)
def test_a_sequence_is_told_by_type_times_or_name(tags: dict[str, Any], expected: str | None) -> None:
    told = mr.sequence(header(**tags))
    assert (told[0] if told else None) == expected


def private(group_: int, creator: str, element: int, vr: str, value: Any) -> Header:
    (one,) = as_mr(ct([0.0]))
    one.private_block(group_, creator, create=True).add_new(element, vr, value)
    return from_dataset(one)


@pytest.mark.parametrize(
    ("group_", "creator", "element", "vr", "value"),
    [
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", "1000"),
        (0x0019, "SIEMENS MR HEADER", 0x0C, "UN", b"1000"),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", ["1000001000", "8", "0", "0"]),
        (0x0043, "GEMS_PARM_01", 0x39, "UN", b"1000\\8\\0\\0"),
        (0x2001, "PHILIPS IMAGING DD 001", 0x03, "FL", 1000.0),
        (0x2001, "PHILIPS IMAGING DD 001", 0x03, "UN", np.float32(1000).tobytes()),
        (0x0065, "Image Private Header", 0x09, "FD", 1000.0),
    ],
)
def test_vendors_b_values(group_: int, creator: str, element: int, vr: str, value: Any) -> None:
    assert private(group_, creator, element, vr, value).b_value == 1000


def test_another_vendors_element_is_no_b_value() -> None:
    assert private(0x0019, "GEMS_ACQU_01", 0x0C, "IS", "1000").b_value is None


def test_b_values_survive_the_file(tmp_path: Path) -> None:
    images = as_mr(ct(Z[:3]))
    for one in images:
        one.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "800")
    read = read_file(write(tmp_path, images) / "IM0000")
    assert isinstance(read, list)
    assert read[0].b_value == 800


def test_named_sequences_are_chosen_and_read(tmp_path: Path) -> None:
    series(1, tmp_path, 1, SeriesDescription="localiser", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    series(2, tmp_path, 2, DiffusionBValue=1000.0, SeriesDescription="dwi")
    series(3, tmp_path, 3, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"], DiffusionBValue=1000.0)
    series(4, tmp_path, 4, SeriesDescription="t2 flair")
    series(5, tmp_path, 5, SeriesDescription="t2 flair mpr", ImageType=["DERIVED", "SECONDARY", "MPR"])
    found = mr.choose(stacks(tmp_path), ["DWI", "FLAIR", "ADC"])
    assert found.absent == ("ADC",)
    assert found.reasons == {"DWI": "b = 1000; one of 2 series", "FLAIR": "name"}
    assert sorted(one.refusal.reason for one in found.refused) == [Reason.DERIVED, Reason.LOCALIZER]
    # the trace image, the original FLAIR: told by their level of grey (air is stored as 24)
    assert found.stacks["DWI"].values.min() == 24 + 3
    assert found.stacks["FLAIR"].values.min() == 24 + 4
    assert found.stacks["DWI"].values.dtype == np.float32


@pytest.mark.parametrize("philips", [False, True])
def test_the_mean_of_all_directions_is_told_from_the_single_ones(philips: bool, tmp_path: Path) -> None:
    """b = 1000 in three directions and their mean, all in one series: only the mean has one image per place."""
    images = []
    for number in range(4):
        some = as_mr(ct(Z), DiffusionBValue=1000.0)
        for index, one in enumerate(some):
            one.SOPInstanceUID = f"1.2.3.60.{number}.{index}"
            one.PixelData = (stored(one) + np.uint16(number)).tobytes()
            if philips:
                block = one.private_block(0x2001, "PHILIPS IMAGING DD 001", create=True)
                block.add_new(0x04, "CS", "I" if number == 2 else "O")
            else:
                one.DiffusionDirectionality = "ISOTROPIC" if number == 2 else "DIRECTIONAL"
        images += some
    found = mr.choose(stacks(write(tmp_path, images)), ["DWI"])
    assert found.stacks["DWI"].values.min() == 24 + 2
    assert [one.refusal.reason for one in found.refused] == []


def test_the_hospitals_pattern_goes_first(tmp_path: Path) -> None:
    series(1, tmp_path, 1, SeriesDescription="t2 flair")
    series(2, tmp_path, 2, SeriesDescription="SPECIAL 7", ImageType=["DERIVED", "SECONDARY", "MPR"])
    found = mr.choose(stacks(tmp_path), ["FLAIR"], {"FLAIR": re.compile("SPECIAL")})
    assert found.stacks["FLAIR"].values.min() == 24 + 2
    assert found.reasons["FLAIR"] == "the hospital's pattern"


@pytest.mark.parametrize(
    ("first", "second", "used"),
    [
        ({"DiffusionBValue": 1000.0}, {"DiffusionBValue": 1500.0}, 2),
        (
            {"DiffusionBValue": 1500.0},
            {"DiffusionBValue": 3000.0},
            1,
        ),  # beyond 1500 there is more noise, not more to see
        (
            {"DiffusionBValue": 1000.0, "DiffusionDirectionality": "DIRECTIONAL"},
            {"DiffusionBValue": 1000.0, "DiffusionDirectionality": "ISOTROPIC"},
            2,
        ),
        ({"DiffusionBValue": 1000.0}, {"DiffusionBValue": 1000.0}, 1),
    ],
)
def test_of_several_diffusion_series(first: dict[str, Any], second: dict[str, Any], used: int, tmp_path: Path) -> None:
    series(1, tmp_path, 1, **first)
    series(2, tmp_path, 2, **second)
    assert mr.choose(stacks(tmp_path), ["DWI"]).stacks["DWI"].values.min() == 24 + used


def test_where_the_hospital_has_a_pattern_nothing_else_is_that_sequence(tmp_path: Path) -> None:
    series(1, tmp_path, 1, SeriesDescription="t2 flair")
    found = mr.choose(stacks(tmp_path), ["FLAIR"], {"FLAIR": re.compile("SPECIAL")})
    assert found.absent == ("FLAIR",)


def test_an_adc_map_of_no_unit_gives_way_to_the_next(tmp_path: Path) -> None:
    """The phantom's brain is stored as 1059, which is 1059e-6 mm2/s; a hundred times as much is no unit's."""
    for number, slope in ((1, 100.0), (2, 1.0)):
        series(number, tmp_path, number, SeriesDescription="ADC", RescaleSlope=slope, RescaleIntercept=0)
    found = mr.choose(stacks(tmp_path), ["ADC"])
    assert found.stacks["ADC"].values.min() == 24 + 2
    assert [one.refusal.reason for one in found.refused] == [Reason.ADC_SCALE]


def test_noise_below_zero_is_no_diffusion() -> None:
    values = np.full((4, 10, 10), 0.8e-3, np.float32)
    values[0] = -1e-4
    found = mr.adc(Volume(values, np.eye(4), "intensity")).values
    assert (found[0] == 0).all()
    assert found[1:] == pytest.approx(800)


def test_two_echoes_in_one_series_are_two_stacks(tmp_path: Path) -> None:
    early = as_mr(ct(Z), EchoTime=12.0, EchoNumbers=1)
    late = as_mr(ct(Z, values=lambda points: points[..., 0]), EchoTime=90.0, EchoNumbers=2)
    for index, one in enumerate(late):
        one.SOPInstanceUID = f"1.2.3.60.{index}"
    found = stacks(write(tmp_path, early + late))
    assert sorted(one.first.echo_time or 0 for one in found) == [12.0, 90.0]
    assert all(len(one.headers) == 12 for one in found)


def test_time_points_are_four_dimensional_unless_they_are_told_apart(tmp_path: Path) -> None:
    first = as_mr(ct(Z), SeriesDescription="t2 star perf")
    second = as_mr(ct(Z, values=lambda points: points[..., 0]), SeriesDescription="t2 star perf")
    for index, one in enumerate(second):
        one.SOPInstanceUID = f"1.2.3.60.{index}"
    found = mr.choose(stacks(write(tmp_path / "a", first + second)), ["SWI"])
    assert found.absent == ("SWI",)
    assert [one.refusal.reason for one in found.refused] == [Reason.FOUR_D]
    for point, images in ((1, first), (2, second)):
        for one in images:
            one.TemporalPositionIdentifier = point
    assert len(stacks(write(tmp_path / "b", first + second))) == 2


def test_slopes_differ_from_slice_to_slice(tmp_path: Path) -> None:
    images = as_mr(ct(Z), SeriesDescription="t2 flair")
    for index, one in enumerate(images):
        one.RescaleSlope, one.RescaleIntercept = 0.5 + index, 2
    values = mr.choose(stacks(write(tmp_path, images)), ["FLAIR"]).stacks["FLAIR"].values
    for index, one in enumerate(images):
        np.testing.assert_allclose(values[index], stored(one) * (0.5 + index) + 2)


@pytest.mark.parametrize("factor", [1.0, 0.1, 1e-3, 1e-6])
def test_adc_maps_come_to_one_scale(factor: float) -> None:
    values = np.full((4, 10, 10), 800, np.float32) * np.float32(factor)
    values[:, :5] = 0
    assert mr.adc_factor(values) == pytest.approx(1 / factor)


@pytest.mark.parametrize("middle", [0.0, 50000.0, 0.03])
def test_an_adc_map_of_no_unit_is_refused(middle: float) -> None:
    with pytest.raises(Refusal) as caught:
        mr.adc_factor(np.full((4, 10, 10), middle, np.float32))
    assert caught.value.reason == Reason.ADC_SCALE
