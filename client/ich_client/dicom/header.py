"""What one image says about itself: the values of a DICOM header that matter here, checked once and typed."""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from ich_client.dicom.reasons import Reason, Refusal

Vector = tuple[float, float, float]

_CLASS: Final = "1.2.840.10008.5.1.4.1.1."
VOLUMES: Final = {_CLASS + end: "CT" if end[0] == "2" else "MR" for end in ("2", "2.1", "2.2", "4", "4.1", "4.4")}
"""CT and MR image storage (classic, enhanced, legacy converted enhanced), and their modality."""
RADIOGRAPHS: Final = frozenset(_CLASS + end for end in ("1", "1.1", "1.1.1"))
"""CR; DX for presentation and for processing."""
SECONDARY_CAPTURE: Final = _CLASS + "7"

# Where vendors keep the b-value (s/mm2) of a slice: creator, element, and what to do with what stands there.
_PRIVATE_B: Final = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("GEMS_PARM_01", 0x0043, 0x39),  # several values; the first may have 1e9 added to it
    ("PHILIPS IMAGING DD 001", 0x2001, 0x03),
    ("Image Private Header", 0x0065, 0x09),  # United Imaging
)

_KEYWORDS: Final = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "AccessionNumber",
    "StudyDate",
    "StudyTime",
    "Modality",
    "ImageType",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "BurnedInAnnotation",
    "ContrastBolusAgent",
    "ConvolutionKernel",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "InstanceNumber",
    "EchoNumbers",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "DiffusionBValue",
    "DiffusionDirectionality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ViewPosition",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_ASCII: Final = ("CS", "DS", "IS", "UI")
"""Value representations without character sets: split here, as pydicom's own types for them cost half of a scan."""
_IN_FRAMES: Final = ("FrameType", "TemporalPositionIndex", "EffectiveEchoTime", "InversionTimes")
"""What only frames of a multi-frame file have."""
_TAG_OF: Final = {keyword: Tag(keyword) for keyword in (*_KEYWORDS, *_IN_FRAMES)}
_PHILIPS_DIRECTION: Final = Tag(0x2001, 0x1004)
TAGS: Final[list[Any]] = [
    *(_TAG_OF[keyword] for keyword in _KEYWORDS),
    _PHILIPS_DIRECTION,
    *(Tag(tag) for _, group, element in _PRIVATE_B for tag in ((group, 0x0010), (group, 0x1000 + element))),
]
"""The tags that a scan reads; the rest of a header is skipped."""


@dataclass(frozen=True, slots=True)
class Header:
    """One image of a file: a slice, a frame of a multi-frame file, or a radiograph. Lengths in mm, times in ms.

    `position`: of the centre of the first pixel; `orientation`: directions of a row and of a column; both in DICOM's
    patient coordinates (LPS). `spacing`: between rows, and between columns. None: the header does not say.
    """

    path: Path
    frame: int | None  # in a multi-frame file
    frames: int  # of the file
    pixels_at: int  # where in the file the pixel data begin, with their tag
    syntax: str  # transfer syntax
    sop_class: str
    instance: str
    study: str
    series: str
    patient: str
    accession: str
    when: str  # date and time of the study as they are written, which sorts; empty if not stated
    modality: str
    image_type: tuple[str, ...]
    series_number: int
    description: str
    burned_in: bool
    contrast: bool
    kernel: str
    acquisition: int | None
    time_point: int | None
    echo: int | None
    echo_time: float | None
    repetition_time: float | None
    inversion_time: float | None
    b_value: float | None
    isotropic: bool | None  # of diffusion: all directions together, or one; None if not stated
    position: Vector | None
    orientation: tuple[Vector, Vector] | None
    spacing: tuple[float, float] | None
    rows: int
    columns: int
    samples: int
    photometric: str
    bits: tuple[int, int, int]  # allocated, stored, high bit
    signed: bool
    padding: tuple[int, int] | None  # lowest and highest stored value that means "nothing here"
    slope: float | None
    intercept: float | None
    unit: str
    view: str

    @property
    def place(self) -> str:
        """The file, and the frame in it."""
        return str(self.path) if self.frame is None else f"{self.path} frame {self.frame + 1}"


def is_image(header: Header) -> bool:
    """Whether it is of a kind that is read here."""
    return header.sop_class in VOLUMES or header.sop_class in RADIOGRAPHS


def headers(dataset: Dataset, path: Path, pixels_at: int = 0) -> list[Header]:
    """The images of a file: one, or one per frame. Raises Refusal(HEADER) with the tag that is missing or wrong.

    Of what is no image that is read here, one header with what can be read: it is refused for what it is.
    """
    kind = _Reader([dataset]).text("SOPClassUID")
    if not kind:
        raise Refusal(Reason.HEADER, "no SOPClassUID")
    if kind not in VOLUMES and kind not in RADIOGRAPHS:
        return [_header(_Reader([dataset], lenient=True), path, None, 1, pixels_at)]
    frames = _Reader([dataset]).whole("NumberOfFrames") or 1
    shared, each = (dataset.get(f"{kind}FunctionalGroupsSequence") for kind in ("Shared", "PerFrame"))
    if each is None:
        if frames > 1:
            raise Refusal(Reason.HEADER, f"NumberOfFrames is {frames}, and nothing says where each frame lies")
        return [_header(_Reader([dataset]), path, None, 1, pixels_at)]
    if not 0 < frames == len(each):
        raise Refusal(Reason.HEADER, f"NumberOfFrames is {frames}, PerFrameFunctionalGroupsSequence has {len(each)}")
    common = list(_groups(shared[0])) if shared else []
    return [
        _header(_Reader([*_groups(own), *common, dataset]), path, index, frames, pixels_at)
        for index, own in enumerate(each)
    ]


def _groups(item: Dataset) -> Iterator[Dataset]:
    """The functional groups of a frame: sequences of one item each."""
    for element in item:
        if element.VR == "SQ" and element.value:
            yield element.value[0]
            # The echo's number and the b-value's direction lie one level deeper; neither is needed.


class _Reader:
    """Reads values from the first data set that has them, and says which tag is at fault."""

    def __init__(self, places: Sequence[Dataset], lenient: bool = False) -> None:
        """`lenient`: a value that is wrong counts as absent."""
        self.places, self.lenient = places, lenient
        # Plain integers: pydicom's own tags are compared in Python, and most of what is asked for is absent.
        self._held = [set(map(int, place.keys())) for place in places]

    def fault(self, message: str) -> None:
        if not self.lenient:
            raise Refusal(Reason.HEADER, message)

    def get(self, keyword: str) -> Any:
        """The value, or None if it is absent or empty."""
        tag = _TAG_OF[keyword]
        number = int(tag)
        for place, held in zip(self.places, self._held, strict=True):
            if number not in held:
                continue
            try:
                raw = place.get_item(tag)
                if not isinstance(raw, RawDataElement) or not raw.value:
                    value: Any = place[tag].value
                elif raw.VR == "US" and len(raw.value) == 2:
                    value = int.from_bytes(raw.value, "little" if raw.is_little_endian else "big")
                elif raw.VR in _ASCII:
                    parts = [part.strip(" \0") for part in raw.value.decode("ascii").split("\\")]
                    value = parts[0] if len(parts) == 1 else parts
                else:
                    value = place[tag].value
            except Exception:  # pydicom converts on access and raises whatever the damaged value leads to
                self.fault(f"{keyword} cannot be read")
                continue
            if value is not None and value != "" and not (hasattr(value, "__len__") and len(value) == 0):
                return value
        return None

    def text(self, keyword: str) -> str:
        value = self.get(keyword)
        return "" if value is None else str(value).strip()

    def texts(self, keyword: str) -> tuple[str, ...]:
        value = self.get(keyword)
        values = [] if value is None else [value] if isinstance(value, str | bytes) else list(_several(value))
        return tuple(str(part).strip().upper() for part in values)

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Exactly `count` finite numbers, or None if absent."""
        value = self.get(keyword)
        if value is None:
            return None
        try:
            numbers = tuple(map(_float, _several(value)))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count or not all(math.isfinite(number) and abs(number) < 1e6 for number in numbers):
            self.fault(f"{keyword} is not {count} number{'s' if count > 1 else ''}")
            return None
        return numbers

    def number(self, keyword: str) -> float | None:
        numbers = self.numbers(keyword, 1)
        return numbers[0] if numbers else None

    def loose(self, keyword: str) -> float | None:
        """The first of one or more numbers, or None if there is none that can be read: for what only helps to choose."""
        try:
            value = next(iter(_several(self.get(keyword))), None)
            number = math.nan if value is None else _float(value)
        except (Refusal, TypeError, ValueError):
            return None
        return number if math.isfinite(number) else None

    def whole(self, keyword: str) -> int | None:
        number = self.number(keyword)
        if number is not None and not number.is_integer():
            self.fault(f"{keyword} is not a whole number")
            return None
        return None if number is None else int(number)


def _float(value: Any) -> float:
    """Python takes 1_5 for 15; DICOM does not."""
    if isinstance(value, str) and "_" in value:
        raise ValueError(value)
    return float(value)


def _several(value: Any) -> Sequence[Any]:
    """A value of any multiplicity as a sequence."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return (value,)
    return tuple(value)


def _header(reader: _Reader, path: Path, frame: int | None, frames: int, pixels_at: int) -> Header:
    dataset = reader.places[-1]
    orientation = reader.numbers("ImageOrientationPatient", 6)
    spacing = reader.numbers("PixelSpacing", 2)
    if spacing is None and reader.text("SOPClassUID") in RADIOGRAPHS:
        spacing = reader.numbers("ImagerPixelSpacing", 2)  # at the detector; a slice has no such thing
    if spacing is not None and not all(1e-3 < mm < 100 for mm in spacing):
        reader.fault(f"PixelSpacing is {spacing[0]:g} x {spacing[1]:g} mm")
    rows, columns = (reader.whole(keyword) or 0 for keyword in ("Rows", "Columns"))
    bits = tuple(reader.whole(keyword) or 0 for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    signed = reader.whole("PixelRepresentation")
    image_type = reader.texts("FrameType") or reader.texts("ImageType")
    text = " ".join(reader.text(keyword) for keyword in ("SeriesDescription", "ProtocolName", "SequenceName"))
    return Header(
        path=path,
        frame=frame,
        frames=frames,
        pixels_at=pixels_at,
        syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        sop_class=reader.text("SOPClassUID"),
        instance=reader.text("SOPInstanceUID"),
        study=reader.text("StudyInstanceUID"),
        series=reader.text("SeriesInstanceUID"),
        patient=reader.text("PatientID"),
        accession=_hint(reader, "AccessionNumber"),
        when=" ".join(filter(None, (_hint(reader, "StudyDate"), _hint(reader, "StudyTime")))),
        modality=reader.text("Modality").upper(),
        image_type=image_type,
        series_number=int(reader.loose("SeriesNumber") or 0),
        description=" ".join(text.split()),
        burned_in=reader.text("BurnedInAnnotation").upper() == "YES",
        contrast=reader.text("ContrastBolusAgent").upper() not in ("", "NONE", "NO"),
        kernel="\\".join(reader.texts("ConvolutionKernel")),
        acquisition=_int(reader.loose("AcquisitionNumber")),
        time_point=_int(reader.loose("TemporalPositionIdentifier") or reader.loose("TemporalPositionIndex")),
        echo=_int(reader.loose("EchoNumbers")),
        echo_time=reader.loose("EchoTime") or reader.loose("EffectiveEchoTime"),
        repetition_time=reader.loose("RepetitionTime"),
        inversion_time=reader.loose("InversionTime") or reader.loose("InversionTimes"),
        b_value=_b_value(reader, dataset),
        isotropic=_isotropic(reader, dataset),
        position=_vector(reader.numbers("ImagePositionPatient", 3)),
        orientation=None if orientation is None else (_three(orientation[:3]), _three(orientation[3:])),
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        rows=rows,
        columns=columns,
        samples=reader.whole("SamplesPerPixel") or 1,
        photometric=reader.text("PhotometricInterpretation").upper(),
        bits=(bits[0], bits[1], bits[2]),
        signed=bool(signed),
        padding=_padding(reader, bits[0], bool(signed)),
        slope=reader.number("RescaleSlope"),
        intercept=reader.number("RescaleIntercept"),
        unit=reader.text("RescaleType").upper(),
        view=reader.text("ViewPosition").upper(),
    )


def _hint(reader: _Reader, keyword: str) -> str:
    """A text, or nothing where it cannot be read: it helps to find an image, and is no part of it."""
    try:
        return reader.text(keyword)
    except Refusal:
        return ""


def _int(number: float | None) -> int | None:
    return None if number is None else int(number)


def _vector(numbers: tuple[float, ...] | None) -> Vector | None:
    return None if numbers is None else _three(numbers)


def _three(numbers: Sequence[float]) -> Vector:
    return numbers[0], numbers[1], numbers[2]


def _padding(reader: _Reader, allocated: int, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest padding value as the pixels' own type has them: writers mix up signed and unsigned."""
    first = reader.whole("PixelPaddingValue")
    if first is None:
        return None
    last = reader.whole("PixelPaddingRangeLimit")
    size = 1 << (allocated or 16)
    values = [value % size for value in (first, first if last is None else last)]
    if signed:
        values = [value - size if value >= size // 2 else value for value in values]
    return min(values), max(values)


def _b_value(reader: _Reader, dataset: Dataset) -> float | None:
    """The standard's element, else the vendor's; None if neither can be read."""
    standard = reader.loose("DiffusionBValue")
    if standard is not None:
        return standard
    for creator, group, element in _PRIVATE_B:
        if (group, 0x1000 + element) not in dataset:
            continue
        try:
            if str(dataset[group, 0x0010].value).strip() != creator:
                continue
            number = _private(dataset[group, 0x1000 + element].value)
        except Exception:  # absent, or whatever pydicom meets in a damaged private element
            continue
        if number is not None and math.isfinite(number) and number >= 0:
            return number % 1e9 % 1e5 if group == 0x0043 else number
    return None


def _isotropic(reader: _Reader, dataset: Dataset) -> bool | None:
    """The standard's element, else that of Philips: I is isotropic, P, M, S and O are directions, N is none."""
    words = reader.text("DiffusionDirectionality").upper()
    if not words and _PHILIPS_DIRECTION in dataset:
        try:
            value = dataset[_PHILIPS_DIRECTION].value
            words = (value.decode("ascii") if isinstance(value, bytes) else str(value)).strip().upper()[:1]
        except Exception:  # a damaged private element says nothing
            return None
    return {"ISOTROPIC": True, "I": True, "DIRECTIONAL": False, "P": False, "M": False, "S": False, "O": False}.get(
        words
    )


def _private(value: Any) -> float | None:
    """A number whose type is lost with an unknown private element: bytes are text, a float or a double."""
    if isinstance(value, bytes):
        text = value.split(b"\\")[0].strip(b" \0")
        if text.isdigit():
            return float(text)
        kind = {4: "<f", 8: "<d"}.get(len(value))
        return struct.unpack(kind, value)[0] if kind else None
    return float(_several(value)[0])
