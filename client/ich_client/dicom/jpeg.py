"""Looks over a JPEG frame before it is decoded: the decoder (GDCM) trusts what stands there, and damage would end the program."""

import struct
from collections.abc import Iterator
from typing import Final

_START, _SCAN, _TABLES, _RESTART = 0xD8, 0xDA, 0xC4, 0xDD
_FRAMES: Final = {0xC0: 8, 0xC1: 12, 0xC3: 16}
"""Marker of a frame (baseline, extended, lossless) -> most bits (ITU-T T.81 table B.2)."""
_LS: Final = 0xF7
"""Marker of a JPEG-LS frame, whose sizes stand where those of the others do (ITU-T T.87 section C.2.2)."""
_CODESTREAM: Final = b"\xff\x4f\xff\x51"
"""How JPEG 2000 begins: the sizes are the first thing that it says (ITU-T T.800 section A.5.1)."""
_NO_LENGTH: Final = {_START, 0x01, *range(0xD0, 0xD8)}


def fault(frame: bytes, rows: int, columns: int, allocated: int) -> str:
    """What is wrong with a frame of grey JPEG, or nothing: sizes and precision that differ from the DICOM header's, impossible
    tables, a scan that is not one of one component (ITU-T T.81 annex B)."""
    try:
        return _fault(frame, rows, columns, allocated)
    except (IndexError, struct.error):
        return "its JPEG header ends early"


def other_size(frame: bytes, rows: int, columns: int) -> str:
    """What is wrong with the sizes of a frame of grey JPEG-LS or JPEG 2000, or nothing.

    Its decoder checks all else; but rows and columns of another image of as many pixels would be a picture put together
    wrongly, which nobody notices.
    """
    try:
        high, wide, components = _size(frame)
    except (IndexError, ValueError, struct.error):
        return "its JPEG header ends early"
    same = (high, wide, components) == (rows, columns, 1)
    return "" if same else f"its JPEG holds {high} x {wide} pixels of {components} components"


def _size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components, as JPEG-LS or JPEG 2000 says them. Raises IndexError, ValueError or struct.error."""
    if frame.startswith(bytes((0xFF, _START))):
        content = next(content for marker, content in _segments(frame) if marker == _LS)
        _, high, wide, components = struct.unpack(">BHHB", content[:6])
        return high, wide, components
    at = frame.index(_CODESTREAM)  # some writers put a whole JP2 file there
    right, below, left, above = struct.unpack_from(">IIII", frame, at + 8)
    (components,) = struct.unpack_from(">H", frame, at + 40)
    return below - above, right - left, components


def _fault(frame: bytes, rows: int, columns: int, allocated: int) -> str:
    seen: dict[int, int] = {}
    tables: set[int] = set()
    lossless, precision = False, 0
    for marker, content in _segments(frame):
        seen[marker] = seen.get(marker, 0) + 1
        if marker in _FRAMES:
            precision, high, wide, components = struct.unpack(">BHHB", content[:6])
            lossless = marker == 0xC3
            if (high, wide, components) != (rows, columns, 1) or len(content) != 9:
                return f"its JPEG holds {high} x {wide} pixels of {components} components"
            if not 2 <= precision <= _FRAMES[marker] or (precision > 8) != (allocated > 8):
                return f"its JPEG has {precision} bits"
            if content[7] != 0x11:
                return "its JPEG is subsampled"
        elif 0xC0 <= marker <= 0xCF and marker not in (_TABLES, 0xC8):
            return f"its JPEG is of a kind that is not read (marker {marker:02X})"
        elif marker == _TABLES:
            if wrong := _tables(content, tables):
                return wrong
        elif marker == _SCAN:
            parts, _, table, first, last, shift = struct.unpack(">BBBBBB", content)
            if not precision or parts != 1 or (table >> 4) not in tables:
                return "its JPEG scan has no frame or table"
            if lossless and not (1 <= first <= 7 and last == 0 and shift < precision):
                return "its JPEG scan has an impossible predictor"
            break
    else:
        return "its JPEG has no scan"
    if any(count > 1 for marker, count in seen.items() if marker in _FRAMES):
        return "its JPEG has several frames"
    return ""


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and what follows them, up to the first scan."""
    if frame[:2] != bytes((0xFF, _START)):
        raise IndexError
    at = 2
    while True:
        if frame[at] != 0xFF:
            raise IndexError
        while frame[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = frame[at]
        if marker in _NO_LENGTH or marker in (0x00, 0xD9):
            raise IndexError
        (length,) = struct.unpack_from(">H", frame, at + 1)
        content = frame[at + 3 : at + 1 + length]
        if length < 2 or len(content) != length - 2:
            raise IndexError
        yield marker, content
        at += 1 + length


def _tables(content: bytes, known: set[int]) -> str:
    """Check Huffman tables: no more codes than their lengths allow, no symbol beyond 16 bits of difference."""
    at = 0
    while at < len(content):
        kind, counts = content[at], content[at + 1 : at + 17]
        total = sum(counts)
        symbols = content[at + 17 : at + 17 + total]
        room = 1
        for count in counts:
            room = 2 * room - count
            if room < 0:
                return "its JPEG has an impossible table"
        if len(counts) != 16 or len(symbols) != total or not total or kind & 0x0F > 3:
            return "its JPEG has an impossible table"
        if kind >> 4 == 0:
            if max(symbols) > 16:
                return "its JPEG has an impossible table"
            known.add(kind & 0x0F)
        at += 17 + total
    return ""
