"""Finds the DICOM images of a folder by content, not by name, in one pass over the headers."""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from ich_client.dicom.header import TAGS, Header, headers, is_image
from ich_client.dicom.reasons import Reason, Refusal

_MARK_AT: Final = 128
"""Bytes before the mark DICM (PS3.10 section 7.1)."""
_PIXELS: Final = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
"""The tag of pixel data, in either order of bytes."""


@dataclass(frozen=True)
class Bad:
    """A DICOM file whose header cannot be used. `study`, `series`: as far as they could be read, else empty."""

    refusal: Refusal
    study: str = ""
    series: str = ""
    patient: str = ""


@dataclass(frozen=True)
class Scan:
    """What a folder holds. `others`: how many files are not DICOM (or a DICOMDIR)."""

    headers: tuple[Header, ...]
    bad: tuple[Bad, ...]
    others: int


def files(root: Path, failed: Callable[[OSError], None] = lambda error: None) -> Iterator[Path]:
    """Every file below a folder (or the file itself), in the order of their names; links to folders are not followed.

    `failed` is told of each folder that cannot be opened, the first included.
    """
    if root.is_file():
        yield root
        return
    for folder, folders, names in os.walk(root, onerror=failed):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def scan(root: Path, watch: Callable[[Path], None] = lambda path: None) -> Scan:
    """Read the header of every DICOM file below `root`; `watch` is told of each file. Raises nothing for a bad file."""
    found: list[Header] = []
    bad: list[Bad] = []
    others = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every value that breaks a rule; what matters is checked here
        for path in files(root, lambda error: bad.append(Bad(_unreadable(error, error.filename)))):
            watch(path)
            read = read_file(path)
            if read is None:
                others += 1
            elif isinstance(read, Bad):
                bad.append(read)
            else:
                found += read
    return Scan(tuple(found), tuple(bad), others)


def read_file(path: Path) -> list[Header] | Bad | None:
    """The images of a file, or what is wrong with its header, or None if it is no DICOM file."""
    dataset: Dataset | None = None
    try:
        with path.open("rb") as file:
            start = file.read(_MARK_AT + 4)
            if start[_MARK_AT:] != b"DICM":
                return Bad(Refusal(Reason.NO_PREAMBLE, "no DICM mark", str(path))) if _bare(start) else None
            file.seek(0)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return None
            found = headers(dataset, path, file.tell())
            if is_image(found[0]) and found[0].syntax != DeflatedExplicitVRLittleEndian and file.read(4) not in _PIXELS:
                raise Refusal(Reason.PIXELS, "the file ends before its pixel data")
            return found
    except Refusal as refusal:
        return Bad(refusal.at(str(path)), *_identity(dataset))
    except OSError as error:
        return Bad(_unreadable(error, path))
    except Exception as error:  # a damaged header makes pydicom raise whatever its parser meets
        return Bad(Refusal(Reason.UNREADABLE, f"not a whole header ({type(error).__name__})", str(path)))


def _unreadable(error: OSError, path: Path | str) -> Refusal:
    return Refusal(Reason.UNREADABLE, error.strerror or type(error).__name__, str(path))


def _bare(start: bytes) -> bool:
    """Whether a file begins with an element of group 0002 or 0008, as DICOM without its preamble does."""
    return len(start) >= 8 and start[:2] in (b"\x02\x00", b"\x08\x00") and start[3] == 0 and start[2] <= 0x20


def _identity(dataset: Dataset | None) -> tuple[str, str, str]:
    """Study, series and patient of a header that has a fault elsewhere."""
    values = []
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        try:
            values.append(str(dataset.get(keyword) or "") if dataset is not None else "")
        except Exception:  # this value is the fault
            values.append("")
    return values[0], values[1], values[2]
