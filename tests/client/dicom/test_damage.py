"""Damaged and hostile files: no crash, no hang, and never a volume that is wrong outside of the damaged slice."""

import math
import warnings
from pathlib import Path

import gdcm
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phantom import ct, in_probe, ramp, write
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from ich_client.dicom.choose import choose
from ich_client.dicom.header import Header, headers
from ich_client.dicom.pixels import stored
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import Bad, read_file, scan
from ich_client.dicom.series import group
from ich_client.dicom.stack import Stack, read

NUMBERS = st.one_of(
    st.floats(width=32),
    st.integers(-(2**40), 2**40),
    st.sampled_from(["", "x", "1e400", "nan", "-inf", "0", "1\\2", "١", "1e-300", " 3 "]),
)
KEYWORDS = [
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "Rows",
    "BitsStored",
    "PixelRepresentation",
    "PixelPaddingValue",
    "NumberOfFrames",
    "EchoTime",
    "AcquisitionNumber",
    "SeriesNumber",
    "DiffusionBValue",
    "ImageType",
    "ConvolutionKernel",
]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYWORDS), st.one_of(NUMBERS, st.lists(NUMBERS, max_size=7)), max_size=4))
def test_a_header_is_typed_and_finite_or_refused(values: dict[str, object]) -> None:
    (one,) = ct([0.0], rows=2, columns=2)
    reason = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values.items():
            try:
                setattr(one, keyword, value)
            except (TypeError, ValueError, OverflowError):  # pydicom itself will not hold it
                return
        try:
            found = headers(one, Path("x"))
        except Refusal as refusal:
            found = []
            reason = refusal.reason
    assert reason in (None, Reason.HEADER)
    for header in found:
        assert isinstance(header, Header)
        assert isinstance(header.rows, int)
        numbers = [*(header.position or ()), *(header.spacing or ()), *sum(header.orientation or (), ())]
        numbers += [
            value for value in (header.slope, header.intercept, header.echo_time, header.b_value) if value is not None
        ]
        assert all(isinstance(number, float) and math.isfinite(number) for number in numbers)
        assert all(mm > 0 for mm in header.spacing or ())


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    for start in (b"", bytes(128) + b"DICM", bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00"):
        path.write_bytes(start + content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert isinstance(read_file(path), list | Bad | None)


Z = np.arange(12) * 8.0 + 16
SYNTAXES = {"plain": None, "jpeg2000": JPEG2000Lossless, "jpeg-ls": JPEGLSLossless, "rle": RLELossless, "jpeg": None}


def to_jpeg(path: Path) -> None:
    """Lossless JPEG, which pydicom cannot write."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def head(folder: Path, syntax: str) -> list[Path]:
    """The phantom in a transfer syntax; its files from the lowest slice to the highest."""
    slices = ct(Z)
    if SYNTAXES[syntax]:
        for one in slices:
            one.compress(SYNTAXES[syntax], generate_instance_uid=False)
    write(folder, slices)
    if syntax == "jpeg":
        for path in folder.iterdir():
            to_jpeg(path)
    placed = [
        (one[0].position[2], one[0].path)
        for path in folder.iterdir()
        if isinstance(one := read_file(path), list) and one[0].position
    ]
    return [path for _, path in sorted(placed)]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_is_not_damaged_is_read_as_it_went_in(syntax: str, tmp_path: Path) -> None:
    """Without this the tests below would be content with a reader that refuses everything."""
    head(tmp_path, syntax)
    (series,), _ = group(scan(tmp_path))
    wanted = np.stack([np.frombuffer(one.PixelData, np.uint16).reshape(72, 64) for one in ct(Z)])
    np.testing.assert_array_equal(read(series).values, wanted.astype(int) - 1024)


def test_a_jpeg_of_other_sizes_than_its_header_is_refused(tmp_path: Path) -> None:
    """Its decoder would put the head together in rows of another length."""
    path = head(tmp_path, "jpeg")[5]
    for rows, columns in ((64, 72), (36, 128), (72, 63)):
        one = dcmread(path)
        one.Rows, one.Columns = rows, columns
        one.save_as(tmp_path / "other")
        found = read_file(tmp_path / "other")
        assert isinstance(found, list)
        with pytest.raises(Refusal, match="its JPEG holds 72 x 64 pixels of 1 components"):
            next(stored(found))


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Some bytes replaced, inserted, removed or repeated; or the end cut off. Mostly in the header, at times in the pixels."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        at = int(random.integers(132, len(data) if random.random() < 0.4 else min(len(data), 1300)))
        match int(random.integers(0, 6)):
            case 0:
                data[at] = int(random.integers(256))
            case 1:
                data[at] ^= 1 << int(random.integers(8))
            case 2:
                data[at:at] = random.bytes(int(random.integers(1, 5)))
            case 3:
                del data[at : at + int(random.integers(1, 5))]
            case 4:
                data[at : at + 4] = random.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
            case _:
                if random.random() < 0.2:
                    del data[at:]
        if len(data) < 200:
            break
    return bytes(data)


def assert_right_elsewhere(stack: Stack, height: float) -> None:
    """Every voxel of the probe tells its place, but for those between the neighbours of the damaged slice."""
    volume = stack.volume()
    points = volume.world(np.stack(np.meshgrid(*map(np.arange, volume.values.shape), indexing="ij"), -1)) * [-1, -1, 1]
    away = in_probe(points, 8.0) & (np.abs(points[..., 2] - height) >= 7.9)
    wrong = np.abs(volume.values[away] - ramp(points[away])) > 1.6
    assert not wrong.any()


def campaign(folder: Path, syntax: str, rounds: int, seed: int) -> dict[str, int]:
    """Damage one file at a time, read the folder; how it ended."""
    random = np.random.default_rng(seed)
    paths = head(folder, syntax)
    ends: dict[str, int] = {}
    for _ in range(rounds):
        number = int(random.integers(len(paths)))
        content = paths[number].read_bytes()
        paths[number].write_bytes(damage(content, random))
        try:
            stacks, _ = group(scan(folder))
            stack = choose(stacks).stack
        except Refusal as refusal:
            end = str(refusal).partition("NO_SERIES: ")[2].splitlines()[0]  # any other reason leaves an empty text
        else:
            assert_right_elsewhere(stack, float(Z[number]))
            end = f"{len(stack.values)} slices"
        assert end
        ends[end] = ends.get(end, 0) + 1
        paths[number].write_bytes(content)
    return ends


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files(syntax: str, tmp_path: Path) -> None:
    ends = campaign(tmp_path, syntax, 25, 1)
    assert sum(ends.values()) == 25
    assert len(ends) > 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files_at_length(syntax: str, tmp_path: Path) -> None:
    ends = campaign(tmp_path, syntax, 500, 2)
    assert sum(ends.values()) == 500
    assert len(ends) > 5


def pixel_campaign(folder: Path, syntax: str, rounds: int, seed: int) -> None:
    """Damage the pixel data of one file alone: it is decoded or refused, in the size that its header says."""
    random = np.random.default_rng(seed)
    path = head(folder, syntax)[5]
    content = path.read_bytes()
    start = content.rindex(b"\xe0\x7f\x10\x00") + 12
    refused = 0
    for _ in range(rounds):
        data = bytearray(content)
        for _ in range(int(random.integers(1, 6))):
            data[int(random.integers(start, len(data) if random.random() < 0.5 else start + 150))] = int(
                random.integers(256)
            )
        if random.random() < 0.1:
            del data[int(random.integers(start, len(data))) :]
        path.write_bytes(data)
        found = read_file(path)
        assert isinstance(found, list)
        try:
            (image,) = stored(found)
        except Refusal:
            refused += 1
        else:
            assert image.shape == (72, 64)
    assert refused > 0


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_pixel_data(syntax: str, tmp_path: Path) -> None:
    pixel_campaign(tmp_path, syntax, 100, 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_pixel_data_at_length(syntax: str, tmp_path: Path) -> None:
    pixel_campaign(tmp_path, syntax, 4000, 2)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_pixel_data_cut_short_are_refused(syntax: str, kept: float, tmp_path: Path) -> None:
    """The lengths that the file states fit what is left: nothing but the pixels themselves tell."""
    path = head(tmp_path, syntax)[5]
    one = dcmread(path)
    if syntax == "plain":
        one.PixelData = one.PixelData[: int(len(one.PixelData) * kept)]
    else:
        (frame,) = generate_frames(one.PixelData, number_of_frames=1)
        short = frame[: int(len(frame) * kept) // 2 * 2]
        one.PixelData = encapsulate([short])
    one.save_as(path)
    found = read_file(path)
    assert isinstance(found, list)
    with pytest.raises(Refusal) as caught:
        next(stored(found))
    assert caught.value.reason == Reason.PIXELS


def test_a_header_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    """Sizes beyond what the file holds: refused before memory is asked for."""
    for tags in ({"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}):
        slices = ct(Z)
        for one in slices:
            for tag, value in tags.items():
                setattr(one, tag, value)
        stacks, refused = group(scan(write(tmp_path / str(len(tags)), slices)))
        if stacks:
            with pytest.raises(Refusal, match="TOO_LARGE"):
                choose(stacks)
        else:
            assert {one.refusal.reason for one in refused} == {Reason.HEADER}
