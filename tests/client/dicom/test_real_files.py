"""Files of real scanners, and readers that others wrote, as judges of geometry and pixels."""

import hashlib
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom.data
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from phantom import ct, write
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from scipy import ndimage

from ich_client.dicom.choose import Choice, choose
from ich_client.dicom.header import Header
from ich_client.dicom.pixels import decoder, physical, stored
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import Bad, read_file, scan
from ich_client.dicom.series import check_kind, group
from ich_models.volume import Volume


def read(folder: Path) -> Choice:
    stacks, refused = group(scan(folder))
    assert refused == []
    return choose(stacks)


def dcm2niix(folder: Path, out: Path) -> dict[str, nibabel.Nifti1Image]:
    """What dcm2niix makes of a folder: file name -> image."""
    program = Path(sys.executable).with_name("dcm2niix")
    if not program.is_file():
        pytest.skip("dcm2niix is not installed (pip install dcm2niix)")
    out.mkdir(exist_ok=True)
    subprocess.run([program, "-b", "n", "-f", "x", "-o", out, folder], check=True, capture_output=True, timeout=120)
    return {path.name: nibabel.load(path) for path in sorted(out.glob("*.nii"))}


def at(image: nibabel.Nifti1Image, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The voxels of a NIfTI image nearest to RAS points."""
    index = np.rint(nibabel.affines.apply_affine(np.linalg.inv(image.affine), points)).astype(int)
    return np.asarray(image.dataobj)[tuple(index.T)].astype(float)


def voxels(volume: Volume, count: int = 2000) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Some indices of a volume, and where they are in RAS mm."""
    index = np.random.default_rng(0).integers(0, volume.values.shape, (count, 3))
    return index, volume.world(index)


# --- geometry against other readers ---------------------------------------------------------------------------------------


def oblique(folder: Path) -> Path:
    """A head that lies askew: turned about two axes, slices in descending order."""
    turn = np.array([[0.96, 0.28, 0.0], [-0.28, 0.96, 0.0], [0, 0, 1.0]]) @ np.array(
        [[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]
    )
    slices = ct([0.0] * 20)
    for number, one in enumerate(slices):
        one.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
        one.ImagePositionPatient = [*(np.array([-90.0, -110.0, 40.0]) + turn[:, 2] * (60 - 4.0 * number))]
    return write(folder, slices)


@pytest.mark.parametrize("kind", ["straight", "oblique"])
def test_a_regular_series_agrees_with_dcm2niix(kind: str, tmp_path: Path) -> None:
    folder = oblique(tmp_path / "in") if kind == "oblique" else write(tmp_path / "in", ct(np.arange(24) * 5.0))
    volume = read(folder).stack.volume()
    (image,) = dcm2niix(folder, tmp_path / "out").values()
    index, points = voxels(volume)
    np.testing.assert_array_equal(at(image, points), volume.values[tuple(index.T)])
    assert sorted(image.header.get_zooms()) == pytest.approx(sorted(volume.spacing), abs=1e-4)


@pytest.mark.parametrize("kind", ["straight", "oblique"])
def test_a_regular_series_agrees_with_simpleitk(kind: str, tmp_path: Path) -> None:
    folder = oblique(tmp_path) if kind == "oblique" else write(tmp_path, ct(np.arange(24) * 5.0))
    volume = read(folder).stack.volume()
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    index, points = voxels(volume, 300)
    for own, point in zip(index, points * [-1, -1, 1], strict=True):
        there = image.TransformPhysicalPointToIndex(point.tolist())
        assert image.GetPixel(there) == volume.values[tuple(own)]


def test_a_tilted_series_lies_where_dicom_says(tmp_path: Path) -> None:
    """Every acquired voxel of a tilted, two-zone series, placed by PS3.3 equation C.7.6.2.1-1, is found in the volume."""
    slices = ct([*(4.2 * np.arange(14)), *(13 * 4.2 + 1.1 + 7.4 * np.arange(10))], tilt=18.5)
    for one in slices:
        one.Manufacturer = "GE MEDICAL SYSTEMS"
    volume = read(write(tmp_path / "in", slices)).stack.volume()
    for number in (2, 9, 20):
        one = slices[number]
        rows, columns = np.meshgrid(np.arange(25, 45), np.arange(25, 40), indexing="ij")
        across, down = np.reshape(one.ImageOrientationPatient, (2, 3)).astype(float)
        points = (
            np.array(one.ImagePositionPatient, float)
            + columns[..., None] * one.PixelSpacing[1] * across
            + rows[..., None] * one.PixelSpacing[0] * down
        )
        index = volume.indices(points * [-1, -1, 1])
        assert np.all(index >= 0)
        assert np.all(index <= np.array(volume.values.shape) - 1)


# --- data/head_ct_ge -------------------------------------------------------------------------------------------------------


def test_a_tilted_head_of_two_zones(shared_data: Path) -> None:
    folder = shared_data / "head_ct_ge"
    choice = read(folder)
    stack = choice.stack
    assert stack.layout.tilt == pytest.approx(18.5, abs=0.01)
    assert stack.notes == ("tilt of 18.5 degrees un-sheared", "zones of 4.00, 7.00 mm put on one grid")
    assert choice.unmet == ()
    assert stack.values.shape == (28, 512, 512)
    assert stack.values.min() == -1024
    volume = stack.volume()
    assert volume.values.shape[0] == 37
    # air, brain and bone
    assert np.median(volume.values[(volume.values < -500) & (volume.values > -1024)]) == pytest.approx(-1000, abs=10)
    assert 1000 < np.percentile(stack.values[10][stack.values[10] > 300], 90) < 2200
    # landmarks: the densest spots of each slice, placed by DICOM's own equation, are dense in the volume within 1 mm
    for path in sorted(folder.glob("*.dcm"))[::3]:
        one = pydicom.dcmread(path)
        image = one.pixel_array
        row, column = np.unravel_index(np.argmax(np.where(image > 3000, 0, image)), image.shape)
        across, down = np.reshape(one.ImageOrientationPatient, (2, 3)).astype(float)
        point = np.array(one.ImagePositionPatient, float) + (
            column * one.PixelSpacing[1] * across + row * one.PixelSpacing[0] * down
        )
        depth, high, wide = volume.indices(point * [-1, -1, 1])
        # between two slices of the grid the peak is shared by both
        near = volume.values[
            int(np.floor(depth)) : int(np.ceil(depth)) + 1,
            round(high) - 2 : round(high) + 3,
            round(wide) - 2 : round(wide) + 3,
        ]
        assert near.max() >= 0.6 * image[row, column]


@pytest.mark.parametrize("number", [5, 13, 14, 20, 26])
def test_no_slice_of_the_tilted_head_is_displaced(number: int, shared_data: Path) -> None:
    """The volume at the place of an acquired slice looks most like that slice where DICOM puts it, not 1 mm beside."""
    one = pydicom.dcmread(shared_data / "head_ct_ge" / f"{number + 1:02d}.dcm")
    volume = read(shared_data / "head_ct_ge").stack.volume()
    rows, columns = np.meshgrid(np.arange(40, 470, 2), np.arange(40, 470, 2), indexing="ij")
    across, down = np.reshape(one.ImageOrientationPatient, (2, 3)).astype(float)
    spacing = float(one.PixelSpacing[0])
    points = np.array(one.ImagePositionPatient, float) + spacing * (
        columns[..., None] * across + rows[..., None] * down
    )
    acquired = np.clip(one.pixel_array[rows, columns], -1000, 1000).astype(float)
    likeness = {}
    for offset in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)):  # pixels of 0.49 mm
        moved = points + spacing * (offset[0] * down + offset[1] * across)
        index = np.moveaxis(volume.indices(moved * [-1, -1, 1]), -1, 0)
        there = ndimage.map_coordinates(np.clip(volume.values, -1000, 1000).astype(float), index, order=1)
        likeness[offset] = np.corrcoef(there.ravel(), acquired.ravel())[0, 1]
    assert max(likeness, key=likeness.__getitem__) == (0, 0)
    assert likeness[0, 0] > 0.98


def test_the_first_zone_of_the_tilted_head_is_as_acquired(shared_data: Path) -> None:
    """In the zone whose distance the grid has, slices are moved within their planes only: values agree pixel by pixel."""
    stack = read(shared_data / "head_ct_ge").stack
    volume = stack.volume()
    one = pydicom.dcmread(shared_data / "head_ct_ge" / "02.dcm")
    across, down = np.reshape(one.ImageOrientationPatient, (2, 3)).astype(float)
    rows, columns = np.meshgrid(np.arange(100, 400, 7), np.arange(100, 400, 7), indexing="ij")
    points = np.array(one.ImagePositionPatient, float) + (
        columns[..., None] * one.PixelSpacing[1] * across + rows[..., None] * one.PixelSpacing[0] * down
    )
    index = volume.indices(points * [-1, -1, 1])
    assert np.ptp(index[..., 0]) < 1e-4  # one slice of the volume
    assert index[0, 0, 0] == pytest.approx(1, abs=0.01)
    assert np.abs(index[..., 2] - np.rint(index[..., 2])).max() < 1e-4  # columns fall on columns
    low = np.floor(index[..., 1]).astype(int)
    part = index[..., 1] - low
    wide = np.rint(index[..., 2]).astype(int)
    found = volume.values[1, low, wide] * (1 - part) + volume.values[1, low + 1, wide] * part
    acquired = one.pixel_array[rows, columns].astype(float)
    smooth = np.abs(np.gradient(one.pixel_array.astype(float))[0])[rows, columns] < 10
    assert smooth.sum() > 200
    assert np.abs(found - acquired)[smooth].mean() < 3


# --- transfer syntaxes -----------------------------------------------------------------------------------------------------


def header(path: Path) -> Header:
    read = read_file(path)
    assert isinstance(read, list)
    return read[0]


def test_nine_encodings_hold_one_image(shared_data: Path) -> None:
    folder = shared_data / "transfer_syntaxes"
    found = set()
    for path in sorted((folder / "In").glob("*.dcm")):
        (image,) = stored([header(path)])
        found.add(hashlib.sha256(np.ascontiguousarray(image, "<i4").tobytes()).hexdigest())
        reference = np.asarray(nibabel.load(folder / "Ref" / f"{path.stem}.nii").dataobj)
        tiles = image.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)  # a Siemens mosaic, 35 slices
        np.testing.assert_array_equal(tiles[:35, ::-1].T, reference)
    assert len(found) == 1


def test_a_mosaic_is_refused(shared_data: Path) -> None:
    stacks, _ = group(scan(shared_data / "transfer_syntaxes" / "In" / "1.dcm"))
    with pytest.raises(Refusal) as caught:
        check_kind(stacks[0])
    assert caught.value.reason == Reason.MOSAIC


def bundled(name: str) -> Path:
    """A test file of pydicom's own wheel."""
    path = Path(pydicom.data.__file__).parent / "test_files" / name
    assert path.is_file()
    return path


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_pydicoms_mr_image_in_seven_encodings(name: str) -> None:
    (expected,) = stored([header(bundled("MR_small.dcm"))])
    (image,) = stored([header(bundled(f"MR_small_{name}.dcm"))])
    np.testing.assert_array_equal(image, expected)


def test_a_head_ct_whose_compressed_pixels_have_another_sign() -> None:
    """13 bits signed in the header, unsigned in the JPEG 2000 stream; -2000 is padding, and -22 degrees the tilt."""
    one = header(bundled("J2K_pixelrep_mismatch.dcm"))
    out = np.empty((512, 512), np.int16)
    (image,) = stored([one])
    physical(image, one, out)
    expected = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(one.path))))[0].astype(int)
    assert out.min() == -1024
    inside = expected > -1024
    assert inside.mean() > 0.5
    np.testing.assert_array_equal(out[inside], expected[inside])
    assert (out[expected <= -1500] == -1024).all()


def test_a_compressed_ct_image_against_another_decoder() -> None:
    one = header(bundled("693_J2KI.dcm"))
    (image,) = stored([one])
    assert decoder(one.syntax) == "pylibjpeg"
    other = pixel_array(one.path, decoding_plugin="gdcm")
    assert np.abs(image.astype(int) - other).max() <= 1  # lossy: decoders may round differently


def test_truncated_pixels_are_refused() -> None:
    with pytest.raises(Refusal) as caught:
        next(stored([header(bundled("MR_truncated.dcm"))]))
    assert caught.value.reason == Reason.PIXELS


def test_lossy_jpeg_of_twelve_bits_has_no_decoder() -> None:
    with pytest.raises(Refusal) as caught:
        next(stored([header(bundled("JPGExtended.dcm"))]))
    assert caught.value.reason == Reason.DECODER


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test-SR.dcm", Reason.NOT_AN_IMAGE),
        ("reportsi.dcm", Reason.NOT_AN_IMAGE),
        ("rtplan.dcm", Reason.NOT_AN_IMAGE),
        ("rtdose.dcm", Reason.NOT_AN_IMAGE),
        ("liver_1frame.dcm", Reason.NOT_AN_IMAGE),
        ("waveform_ecg.dcm", Reason.NOT_AN_IMAGE),
        ("SC_rgb_jpeg.dcm", Reason.SECONDARY_CAPTURE),
        ("JPEG2000.dcm", Reason.SECONDARY_CAPTURE),
        ("examples_palette.dcm", Reason.MODALITY),
        ("examples_rgb_color.dcm", Reason.MODALITY),
        ("badVR.dcm", Reason.NOT_AN_IMAGE),
        ("rtstruct.dcm", Reason.NO_PREAMBLE),
    ],
)
def test_what_is_no_series_of_images_is_refused_by_name(name: str, reason: Reason) -> None:
    stacks, refused = group(scan(bundled(name)))
    if refused:
        assert [one.refusal.reason for one in refused] == [reason]
        return
    with pytest.raises(Refusal) as caught:
        check_kind(stacks[0])
    assert caught.value.reason == reason


def test_no_bundled_file_makes_the_scan_fail() -> None:
    """All of pydicom's own collection of odd files, DICOMDIRs among them."""
    found = scan(bundled("CT_small.dcm").parent)
    assert len(found.headers) > 60
    for bad in found.bad:
        assert isinstance(bad, Bad)
    stacks, _ = group(found)
    for series in stacks:
        with pytest.raises(Refusal):
            choose([series])  # none is a head CT of three slices or more


def test_every_transfer_syntax_of_ct_has_the_decoder_that_is_named() -> None:
    syntaxes = [
        "1.2.840.10008.1.2.5",
        *(f"1.2.840.10008.1.2.4.{end}" for end in (50, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    ]
    for syntax in syntaxes:
        named = get_decoder(syntax)
        assert named.is_available, syntax
        if decoder(syntax):
            assert decoder(syntax) in named.available_plugins
