"""One image's pixels: decoded, their unused bits and padding handled, and on their physical scale."""

import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from ich_client.dicom import jpeg
from ich_client.dicom.header import Header
from ich_client.dicom.reasons import Reason, Refusal
from ich_models.volume import AIR

MOST_BYTES: Final = 2**31
"""Of one file's pixels: what its header may ask for."""
MOST_VOXELS: Final = 2**29
"""Of one volume."""
_HIGHEST: Final = np.iinfo(np.int16).max
_MOST_PADDING: Final = 2**16
"""Bytes of zeros that may follow the pixels."""
_TRUSTING: Final = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
"""Transfer syntaxes whose decoder ends the program if it meets certain damage."""
_WITH_END: Final = (*_TRUSTING, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)
"""Transfer syntaxes whose frames end with the marker FFD9."""
_NATIVE: Final = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)

_PIXEL_TAGS: Final[list[Any]] = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]

logging.getLogger("pydicom").setLevel(logging.ERROR)  # a decoder that fails before another succeeds is no news


def decoder(syntax: str) -> str:
    """The decoder for a transfer syntax: one that stays within its input before one that is merely faster."""
    wanted = UID(syntax)
    if wanted in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    if wanted in JPEG2000TransferSyntaxes or wanted == RLELossless or wanted.startswith("1.2.840.10008.1.2.4.20"):
        return "pylibjpeg"
    return ""


KNOWN: Final = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG baseline": "1.2.840.10008.1.2.4.50",
    "JPEG extended": "1.2.840.10008.1.2.4.51",
    "JPEG lossless": "1.2.840.10008.1.2.4.57",
    "JPEG lossless SV1": "1.2.840.10008.1.2.4.70",
    "JPEG-LS lossless": "1.2.840.10008.1.2.4.80",
    "JPEG-LS": "1.2.840.10008.1.2.4.81",
    "JPEG 2000 lossless": "1.2.840.10008.1.2.4.90",
    "JPEG 2000": "1.2.840.10008.1.2.4.91",
    "HTJ2K lossless": "1.2.840.10008.1.2.4.201",
    "HTJ2K": "1.2.840.10008.1.2.4.203",
}
"""Transfer syntaxes of images as people call them."""


def readable() -> dict[str, bool]:
    """Whether each known transfer syntax has the decoder that would be used for it."""
    found = {}
    for name, syntax in KNOWN.items():
        there = get_decoder(UID(syntax))
        wanted = decoder(syntax)
        found[name] = bool(there.is_available and (not wanted or wanted in there.available_plugins))
    return found


def stored(headers: Sequence[Header]) -> Iterator[NDArray[Any]]:
    """The stored values (H, W) of each image, in this order; the frames of a multi-frame file are decoded once.

    Raises Refusal: DECODER, PIXELS or TOO_LARGE, with the file.
    """
    path, frames = Path(), np.empty(0)
    for header in headers:
        if header.path != path:
            frames, path = _decode(header), header.path
        image = frames if header.frame is None else frames[header.frame]
        if image.shape != (header.rows, header.columns):
            shape = f"{'x'.join(map(str, image.shape))} where the header says {header.rows}x{header.columns}"
            raise Refusal(Reason.PIXELS, f"the pixel data are {shape}", header.place)
        yield image


def _decode(header: Header) -> NDArray[Any]:
    place = str(header.path)
    allocated, bits, high = header.bits
    if allocated not in (8, 16, 32) or not 0 < bits <= allocated or not bits - 1 <= high < allocated:
        raise Refusal(Reason.HEADER, f"BitsAllocated {allocated}, BitsStored {bits}, HighBit {high}", place)
    if not (header.rows and header.columns):
        raise Refusal(Reason.HEADER, f"{header.rows} rows, {header.columns} columns", place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = _array(header)
    except (Refusal, MemoryError):
        raise
    except OSError as error:
        raise Refusal(Reason.UNREADABLE, error.strerror or type(error).__name__, place) from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise whatever damaged data lead to; one in Rust panics below Exception
        raise Refusal(Reason.PIXELS, f"cannot be decoded ({type(error).__name__})", place) from None
    if array.dtype.kind not in "iu":
        raise Refusal(Reason.PIXELS, f"pixels of type {array.dtype}", place)
    if header.frame is not None and array.ndim == 2:
        array = array[None]
    return array


def _array(header: Header) -> NDArray[Any]:
    place = str(header.path)
    try:
        available = get_decoder(header.syntax).is_available
    except NotImplementedError:
        available = False
    # Lossy JPEG of 12 bits is announced, but pydicom lets GDCM decode 8 bits only, and no other free decoder does it.
    if not available or (header.syntax == JPEGExtended12Bit and header.bits[1] > 8):
        raise Refusal(Reason.DECODER, f"transfer syntax {UID(header.syntax).name}", place)
    size = header.rows * header.columns * header.frames * header.bits[0] // 8
    if size > MOST_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"{header.frames} x {header.rows} x {header.columns} pixels", place)
    if header.syntax in _NATIVE:
        return _native(header, size)
    dataset = pydicom.dcmread(header.path, specific_tags=_PIXEL_TAGS)
    if header.syntax in _WITH_END:
        for frame in generate_frames(dataset.PixelData, number_of_frames=header.frames):
            # Decoders make up what is missing at the end.
            if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
                raise Refusal(Reason.PIXELS, "its compressed pixels end early", place)
            if header.syntax in _TRUSTING:
                wrong = jpeg.fault(frame, header.rows, header.columns, header.bits[0])
            else:
                wrong = jpeg.other_size(frame, header.rows, header.columns)
            if wrong:
                raise Refusal(Reason.PIXELS, wrong, place)
    # Padding may stand outside of the stored bits, so these are set right after it was found.
    return pixel_array(dataset, raw=True, decoding_plugin=decoder(header.syntax), correct_unused_bits=False)


def _native(header: Header, size: int) -> NDArray[Any]:
    """Pixel data that are not compressed, straight from where the header scan saw them begin (PS3.5 section 7.1)."""
    order = ">" if header.syntax == ExplicitVRBigEndian else "<"
    with header.path.open("rb") as file:
        file.seek(header.pixels_at)
        start = file.read(8 if header.syntax == ImplicitVRLittleEndian else 12)
        group, element, length = struct.unpack(f"{order}HH{len(start) - 8}xI", start)
        if (group, element) != (0x7FE0, 0x0010):
            raise Refusal(Reason.PIXELS, "no pixel data", str(header.path))
        data = file.read(min(length, size + _MOST_PADDING))
    # Some writers pad with zeros; anything else beyond the end means that the header tells another size.
    if length < size or len(data) < size or length > size + _MOST_PADDING or any(data[size:]):
        raise Refusal(Reason.PIXELS, f"{min(length, len(data))} bytes of pixel data for {size}", str(header.path))
    kind = np.dtype(f"{order}{'i' if header.signed else 'u'}{header.bits[0] // 8}")
    array = np.frombuffer(data, kind, size // kind.itemsize).astype(kind.newbyteorder("="), copy=False)
    shape = (header.rows, header.columns)
    return array.reshape(shape if header.frame is None else (header.frames, *shape))


def physical(image: NDArray[Any], header: Header, out: NDArray[Any]) -> None:
    """Stored values (H, W) on their scale, written to `out` (int16 HU of CT, or float32 of anything else).

    Padding is found before anything else is done to the values, and becomes what lies outside (-1024 HU, or 0).
    MONOCHROME1 says how to show an image, not what it holds: HU and intensities are not inverted.
    """
    hounsfield = out.dtype == np.int16
    slope, intercept = scale(header)
    nothing = None
    # Padding that lies below the scale is cut off with the rest, unless it stands in bits that are not values.
    lowest = hounsfield and header.bits[0] == header.bits[1]
    if header.padding is not None and not (lowest and header.padding[1] * slope + intercept <= AIR):
        low, high = header.padding
        nothing = (image >= low) & (image <= high) if low != high else image == low
    values = own_bits(image, header)
    if hounsfield and slope == 1 and intercept.is_integer() and values.dtype.itemsize == 2 and abs(intercept) < 2**15:
        # Cut off first, in the stored type; what is left fits, and 16 bits may wrap on the way to it.
        limits, offset = np.iinfo(values.dtype), int(intercept)
        values = values.clip(max(AIR - offset, limits.min), min(_HIGHEST - offset, limits.max))
        np.add(values.view(np.int16), np.int16(offset), out=out)
    elif hounsfield:
        np.clip(np.rint(values * slope + intercept), AIR, _HIGHEST, out=out, casting="unsafe")
    else:
        np.multiply(values, np.float32(slope), out=out)
        out += np.float32(intercept)
    if nothing is not None:
        np.putmask(out, nothing, AIR if hounsfield else 0)


def scale(header: Header) -> tuple[float, float]:
    """Slope and intercept. Raises Refusal(RESCALE, UNIT) for a CT that has none, or not in HU, and for absurd ones."""
    if header.modality == "CT" and header.unit not in ("", "HU", "US"):
        raise Refusal(Reason.UNIT, f"RescaleType is {header.unit}", header.place)
    if header.modality == "CT" and header.intercept is None:
        raise Refusal(Reason.RESCALE, "no RescaleIntercept", header.place)
    slope, intercept = (1.0 if header.slope is None else header.slope), header.intercept or 0.0
    if slope <= 0 or (header.modality == "CT" and not (slope <= 100 and abs(intercept) <= 10000)):
        raise Refusal(Reason.RESCALE, f"RescaleSlope {slope:g}, RescaleIntercept {intercept:g}", header.place)
    return slope, intercept


def own_bits(image: NDArray[Any], header: Header) -> NDArray[Any]:
    """The stored bits alone: the others may hold overlays (PS3.5 section 8.1.1), and the sign belongs to the highest."""
    allocated, bits, high = image.dtype.itemsize * 8, header.bits[1], header.bits[2]
    if bits >= allocated:
        return image
    if not header.signed and high == bits - 1:
        own: NDArray[Any] = image & image.dtype.type((1 << bits) - 1)
        return own
    up, down = max(0, allocated - 1 - high), allocated - bits
    own = (image << up) >> down
    return own
