"""Stored values to Hounsfield units: signs, unused bits, padding, slopes; nothing of it guessed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from phantom import as_mr, ct, set_pixels, write
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRBigEndian

from ich_client.dicom.pixels import physical, stored
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import read_file


def hu(one: Dataset, tmp_path: Path) -> NDArray[np.int16]:
    """One image through the reader, written to a file first."""
    read = read_file(write(tmp_path, [one]) / "IM0000")
    assert isinstance(read, list)
    out = np.empty((read[0].rows, read[0].columns), np.int16)
    (image,) = stored(read)
    physical(image, read[0], out)
    return out


def small(values: Any, **tags: Any) -> Dataset:
    (one,) = ct([0.0], rows=2, columns=3)
    for tag, value in tags.items():
        setattr(one, tag, value)
    set_pixels(one, np.asarray(values))
    return one


def test_unsigned_with_an_intercept(tmp_path: Path) -> None:
    one = small(np.array([[0, 24, 1024], [1064, 2048, 4095]], np.uint16))
    assert hu(one, tmp_path).tolist() == [[-1024, -1000, 0], [40, 1024, 3071]]


def test_signed_values_and_a_slope(tmp_path: Path) -> None:
    tags = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 0.5, "RescaleIntercept": 3}
    one = small(np.array([[-2000, -2001, -1], [0, 90, 4000]], np.int16), **tags)
    # halves are rounded to even
    assert hu(one, tmp_path).tolist() == [[-997, -998, 2], [3, 48, 2003]]


def test_values_between_two_units_go_to_the_nearer(tmp_path: Path) -> None:
    tags = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 0.75, "RescaleIntercept": 0}
    one = small(np.array([[1, 3, 5], [-1, -3, -5]], np.int16), **tags)
    assert hu(one, tmp_path).tolist() == [[1, 2, 4], [-1, -2, -4]]  # 0.75, 2.25, 3.75


def test_padding_of_an_mr_is_black(tmp_path: Path) -> None:
    """Zero is what lies outside of it; -1024 is air on the scale of CT alone."""
    (one,) = as_mr([small(np.array([[4095, 100, 200], [300, 4095, 0]], np.uint16))])
    one.add_new("PixelPaddingValue", "US", 4095)
    read = read_file(write(tmp_path, [one]) / "IM0000")
    assert isinstance(read, list)
    out = np.empty((2, 3), np.float32)
    physical(next(stored(read)), read[0], out)
    assert out.tolist() == [[0, 100, 200], [300, 0, 0]]


def test_air_below_the_scale_is_cut_off(tmp_path: Path) -> None:
    tags = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleIntercept": 0}
    one = small(np.array([[-3024, -1500, -1024], [-1000, 40, 32767]], np.int16), **tags)
    assert hu(one, tmp_path).tolist() == [[-1024, -1024, -1024], [-1000, 40, 32767]]


def test_values_beyond_the_scale_are_cut_off_and_do_not_wrap(tmp_path: Path) -> None:
    tags = {"BitsStored": 16, "HighBit": 15, "RescaleIntercept": 1500}
    one = small(np.array([[65535, 40000, 31268], [31266, 0, 1]], np.uint16), **tags)
    assert hu(one, tmp_path).tolist() == [[32767, 32767, 32767], [32766, 1500, 1501]]


def test_eight_bits(tmp_path: Path) -> None:
    one = small(np.array([[0, 24, 255], [128, 1, 2]], np.uint8), BitsAllocated=8, BitsStored=8, HighBit=7)
    assert hu(one, tmp_path).tolist() == [[-1024, -1000, -769], [-896, -1023, -1022]]


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("offset", [-1024, 1500])
def test_padding_is_found_before_rescaling(offset: int, sign: int, tmp_path: Path) -> None:
    """As 63536 or as -2000, in a header that says either: writers mix up the types. With 1500 it would be -500 HU."""
    tags = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": sign, "RescaleIntercept": offset}
    values = np.array([[63536, 1064, 1024], [63536, 24, 2000]], np.uint16)
    one = small(values.view(np.int16) if sign else values, **tags)
    for vr, padding in (("US", 63536), ("SS", -2000)):
        one.add_new("PixelPaddingValue", vr, padding)
        expected = [[-1024, 1064 + offset, 1024 + offset], [-1024, 24 + offset, 2000 + offset]]
        assert hu(one, tmp_path / vr).tolist() == expected


def test_a_range_of_padding(tmp_path: Path) -> None:
    one = small(np.array([[4000, 4050, 4095], [1064, 1024, 3999]], np.uint16))
    one.add_new("PixelPaddingValue", "US", 4095)
    one.add_new("PixelPaddingRangeLimit", "US", 4000)
    assert hu(one, tmp_path).tolist() == [[-1024, -1024, -1024], [40, 0, 2975]]


def test_padding_outside_of_the_stored_bits(tmp_path: Path) -> None:
    one = small(np.array([[0x8000, 1064, 1024], [24, 24, 24]], np.uint16))
    one.add_new("PixelPaddingValue", "US", 0x8000)
    assert hu(one, tmp_path / "unsigned").tolist()[0] == [-1024, 40, 0]
    # signed, and below the scale: its stored bits alone would be 0 HU
    one = small(np.array([[-32768, 40, 0], [-1000, 1, 2]], np.int16), PixelRepresentation=1, RescaleIntercept=0)
    one.add_new("PixelPaddingValue", "SS", -32768)
    assert hu(one, tmp_path / "signed").tolist() == [[-1024, 40, 0], [-1000, 1, 2]]


def test_overlays_in_unused_bits_are_no_values(tmp_path: Path) -> None:
    one = small(np.array([[1064, 1064 | 0x1000, 1064 | 0xF000], [24, 24 | 0x8000, 24]], np.uint16))
    assert hu(one, tmp_path).tolist() == [[40, 40, 40], [-1000, -1000, -1000]]


def test_the_sign_is_the_highest_stored_bit(tmp_path: Path) -> None:
    """-1000 in 12 bits is 0x0C18; what stands above does not count."""
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "RescaleIntercept": 0}
    one = small(np.array([[0x0C18, 40, 0], [0x1000 + 40, 1, 2]], np.int16), **tags)
    assert hu(one, tmp_path).tolist() == [[-1000, 40, 0], [40, 1, 2]]


def test_stored_bits_at_the_upper_end(tmp_path: Path) -> None:
    tags = {"BitsStored": 12, "HighBit": 15}
    one = small(np.array([[1064, 24, 0], [4095, 1024, 1]], np.uint16) << 4, **tags)
    assert hu(one, tmp_path).tolist() == [[40, -1000, -1024], [3071, 0, -1023]]


def test_big_endian_files(tmp_path: Path) -> None:
    one = small(np.array([[1064, 24, 0], [4095, 1024, 1]], ">u2"))
    one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert hu(one, tmp_path).tolist() == [[40, -1000, -1024], [3071, 0, -1023]]


def test_monochrome1_is_a_way_to_show_hounsfield_units_not_to_store_them(tmp_path: Path) -> None:
    values = np.array([[1064, 24, 0], [4095, 1024, 1]], np.uint16)
    one, other = small(values), small(values, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(hu(one, tmp_path / "a"), hu(other, tmp_path / "b"))


@pytest.mark.parametrize(("more", "fits"), [(2, True), (2**16, True), (2**16 + 2, False)])
def test_zeros_behind_the_pixels_are_padding_up_to_a_point(more: int, fits: bool, tmp_path: Path) -> None:
    """What is longer is another image than the header tells of."""
    one = small(np.array([[1064, 24, 0], [4095, 1024, 1]], np.uint16))
    one.PixelData += bytes(more)
    if fits:
        assert hu(one, tmp_path).tolist() == [[40, -1000, -1024], [3071, 0, -1023]]
        return
    with pytest.raises(Refusal) as caught:
        hu(one, tmp_path)
    assert caught.value.reason is Reason.PIXELS


def test_an_unknown_transfer_syntax_is_refused_by_name(tmp_path: Path) -> None:
    one = small(np.zeros((2, 3), np.uint16))
    path = write(tmp_path, [one]) / "IM0000"
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"))
    read = read_file(path)
    assert isinstance(read, list)
    with pytest.raises(Refusal) as caught:
        next(stored(read))
    assert caught.value.reason == Reason.DECODER


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"])
@pytest.mark.parametrize("sign", [0, 1])
def test_lossless_encodings_return_what_went_in(syntax: str, sign: int, tmp_path: Path) -> None:
    (one,) = ct([60.0])
    tags = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": sign, "RescaleIntercept": 0 if sign else -1024}
    for tag, value in tags.items():
        setattr(one, tag, value)
    plain = np.frombuffer(one.PixelData, np.uint16).reshape(one.Rows, one.Columns).astype(np.int16)
    if sign:
        set_pixels(one, plain - np.int16(1024))
    one.compress(syntax)
    np.testing.assert_array_equal(hu(one, tmp_path), plain - np.int16(1024))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"])
def test_rows_and_columns_of_another_image_are_refused(syntax: str, tmp_path: Path) -> None:
    """As many pixels, in rows of another length: the decoder returns them all, and the head would be put together wrongly."""
    (one,) = ct([60.0])
    one.compress(syntax)
    for rows, columns in ((64, 72), (36, 128), (72, 63)):
        one.Rows, one.Columns = rows, columns
        with pytest.raises(Refusal, match="its JPEG holds 72 x 64 pixels of 1 components") as caught:
            hu(one, tmp_path / f"{rows}")
        assert caught.value.reason is Reason.PIXELS


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"])
@pytest.mark.parametrize("lost", [2, 200])
def test_compressed_pixels_that_end_early_are_refused(syntax: str, lost: int, tmp_path: Path) -> None:
    """Decoders make up what is missing."""
    (one,) = ct([60.0])
    one.compress(syntax)
    (frame,) = generate_frames(one.PixelData, number_of_frames=1)
    one.PixelData = encapsulate([frame.rstrip(b"\0")[:-lost]])
    with pytest.raises(Refusal, match="its compressed pixels end early"):
        hu(one, tmp_path)
