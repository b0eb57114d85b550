"""Radiographs: windows, tables, inversion and padding against pydicom's own display pipeline; several views."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from phantom import image, set_pixels, write
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from ich_client.dicom.radiograph import Radiograph, views
from ich_client.dicom.reasons import Reason
from ich_client.dicom.scan import scan
from ich_client.dicom.series import Refused, group

SHADES = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def xray(stored: NDArray[np.uint16] = SHADES, number: int = 1, **tags: Any) -> Dataset:
    one = image("1.2.3.30", number, stored.astype(float) - 1024, np.zeros(3), (1, 0, 0, 0, 1, 0), (0.2, 0.2))
    one.SOPClassUID, one.Modality, one.ImageType = ComputedRadiographyImageStorage, "CR", ["ORIGINAL", "PRIMARY"]
    one.ImagerPixelSpacing = [0.15, 0.15]
    for tag in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleType",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        del one[tag]
    for tag, value in tags.items():
        setattr(one, tag, value)
    return one


def read(tmp_path: Path, *images: Dataset) -> tuple[list[Radiograph], list[Refused]]:
    stacks, refused = group(scan(write(tmp_path, images)))
    assert refused == []
    return views(stacks)


def test_a_window_is_applied_as_the_standard_has_it(tmp_path: Path) -> None:
    one = xray(WindowCenter=[2000, 3000], WindowWidth=[1001, 500])
    ((found,), refused) = read(tmp_path, one)
    assert refused == []
    # PS3.3 C.11.2.1.2.1: black up to 1499.5, white above 2499.5, linear between; the first window of several
    expected = np.clip((SHADES - 1999.5) / 1000 + 0.5, 0, 1)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.values.dtype == np.float32
    assert found.spacing == (0.15, 0.15)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    one = xray(WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation="MONOCHROME1")
    ((found,), _) = read(tmp_path, one)
    assert found.values[0, 0] == pytest.approx(1)
    assert found.values[-1, -1] == pytest.approx(0)


@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_a_table_is_applied(modality: str, tmp_path: Path) -> None:
    table = np.rint(np.sqrt(np.arange(4096) / 4095) * 1023).astype(np.uint16)
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 10], table.tolist()
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    one = xray(VOILUTSequence=Sequence([lut]), Modality=modality)
    if modality == "DX":
        one.SOPClassUID = DigitalXRayImageStorageForPresentation
    ((found,), _) = read(tmp_path, one)
    np.testing.assert_allclose(found.values, table[SHADES] / 1023, atol=1e-6)
    np.testing.assert_allclose(found.values, apply_voi_lut(SHADES, one) / 1023, atol=1e-6)


def test_a_sigmoid_window_agrees_with_pydicom(tmp_path: Path) -> None:
    one = xray(WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    ((found,), _) = read(tmp_path, one)
    np.testing.assert_allclose(found.values, 1 / (1 + np.exp(-4 * (SHADES - 2000.0) / 800)), atol=1e-6)


def test_without_a_window_percentiles_are_black_and_white(tmp_path: Path) -> None:
    ((found,), _) = read(tmp_path, xray())
    low, high = np.percentile(SHADES, (0.5, 99.5))
    np.testing.assert_allclose(found.values, np.clip((SHADES - low) / (high - low), 0, 1), atol=1e-6)


def test_padding_is_black_and_no_part_of_the_scale(tmp_path: Path) -> None:
    stored = SHADES.copy()
    stored[:16] = 0
    stored[16:] = 2000 + SHADES[16:] // 4
    ((found,), _) = read(tmp_path, xray(stored, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1"))
    assert (found.values[:16] == 0).all()
    assert found.values[16:].max() == pytest.approx(1)
    assert found.values[16:].min() == pytest.approx(0)


def test_an_overlay_in_unused_bits_is_no_grey(tmp_path: Path) -> None:
    drawn = SHADES.copy()
    drawn[10:20, 10:20] |= 0x8000
    ((plain,), _) = read(tmp_path / "a", xray())
    one = xray()
    set_pixels(one, drawn)
    ((found,), _) = read(tmp_path / "b", one)
    np.testing.assert_array_equal(found.values, plain.values)


def test_two_views_of_a_patient(tmp_path: Path) -> None:
    images = [xray(number=1, ViewPosition="PA"), xray(number=2, ViewPosition="LL"), xray(np.full_like(SHADES, 7), 3)]
    found, refused = read(tmp_path, *images)
    assert [one.view for one in found] == ["LL", "PA"]
    assert [one.refusal.reason for one in refused] == [Reason.BLANK]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, Reason.BURNED_IN),
        ({"WindowCenter": 5, "WindowWidth": 0}, Reason.HEADER),
        ({"WindowCenter": 9000, "WindowWidth": 10}, Reason.BLANK),  # all of it is black there
    ],
)
def test_unusable_radiographs_are_refused_by_name(tags: dict[str, Any], reason: Reason, tmp_path: Path) -> None:
    found, refused = read(tmp_path, xray(**tags))
    assert found == []
    assert [one.refusal.reason for one in refused] == [reason]
