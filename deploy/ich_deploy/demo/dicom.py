"""Writes series as DICOM files, the same bytes for the same input."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

from ich_deploy.demo.scanner import Slices, Tags

_CLASSES: Final = {"CT": CTImageStorage, "MR": MRImageStorage, "DX": DigitalXRayImageStorageForPresentation}
_PIXELS: Final = b"\xe0\x7f\x10\x00"
"""The tag of pixel data, low byte first."""


@dataclass(frozen=True)
class Study:
    """What all images of one patient's visit share. `seed`: UIDs follow from it, and are new ones in another demo."""

    seed: tuple[int, ...]
    patient: str
    accession: str
    day: str
    """YYYYMMDD."""

    def uid(self, *parts: object) -> str:
        """A UID (2.25 and a number of 128 bits) that depends on these words alone."""
        digest = hashlib.sha256(repr(("ich demo", self.seed, *parts)).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def series(
    folder: Path,
    study: Study,
    number: int,
    modality: str,
    stored: NDArray[Any],
    slices: Slices,
    tags: Tags,
    descending: bool = False,
) -> list[str]:
    """Write one image per slice of `stored` (n, H, W) and return their SOPInstanceUIDs, from the neck to the crown.

    File names tell nothing of the order; instance numbers count from the neck, or from the crown.
    """
    across, down = slices.directions
    common = _image(study, number, modality, tags)
    common.ImageOrientationPatient = [_decimal(part) for part in (*across, *down)]
    common.PixelSpacing = [slices.pixel, slices.pixel]
    common.SliceThickness = max(feed for _, feed in slices.zones)
    corners = slices.corners + np.array(slices.origin)
    names = np.random.default_rng([*study.seed, number]).permutation(len(stored))
    instances = []
    for index, (image, corner) in enumerate(zip(stored, corners, strict=True)):
        common.InstanceNumber = len(stored) - index if descending else index + 1
        common.ImagePositionPatient = [_decimal(mm) for mm in corner]
        instances.append(study.uid("image", number, index))
        save(folder / f"S{number:02d}I{names[index]:03d}", common, image, instances[-1])
    return instances


def single(folder: Path, study: Study, number: int, modality: str, stored: NDArray[Any], tags: Tags) -> str:
    """Write one image (H, W) that is a series by itself, a scout or a radiograph, and return its SOPInstanceUID."""
    image, instance = _image(study, number, modality, tags), study.uid("image", number, 0)
    image.InstanceNumber = 1
    save(folder / f"S{number:02d}I000", image, stored, instance)
    return instance


def _image(study: Study, number: int, modality: str, tags: Tags) -> Dataset:
    """All of an image but its place and its pixels."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.ImplementationClassUID = UID("2.25.1")
    one.file_meta.ImplementationVersionName = "ICH DEMO"
    one.SpecificCharacterSet = "ISO_IR 100"
    one.SOPClassUID = _CLASSES[modality]
    one.StudyInstanceUID, one.SeriesInstanceUID = study.uid("study"), study.uid("series", number)
    one.PatientID, one.PatientName = study.patient, f"Demo^{study.patient}"
    one.AccessionNumber, one.StudyDate, one.Modality = study.accession, study.day, modality
    one.SeriesNumber = number
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    for tag, value in {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], **tags}.items():
        if tag == "b":  # GE's b-value: a private element, the first of four numbers
            one.add_new((0x0043, 0x0010), "LO", "GEMS_PARM_01")
            one.add_new((0x0043, 0x1039), "IS", [value, 8, 0, 0])
        else:
            setattr(one, tag, value)
    return one


def save(path: Path, image: Dataset, stored: NDArray[Any], instance: str) -> None:
    """One file of these pixels (H, W), 16 bits each, not compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.SOPInstanceUID = instance
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    image.Rows, image.Columns = stored.shape
    image.PixelData = stored.astype("<u2" if stored.dtype.kind == "u" else "<i2").tobytes()
    image["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, image, enforce_file_format=True)


def _decimal(value: float) -> float:
    """A number that fits the 16 characters of a decimal string, and no minus before zero."""
    return round(float(value), 6) + 0.0


def damaged(path: Path) -> None:
    """Cut a file off where its pixels begin, as a transfer that broke off leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: content.index(_PIXELS)])


def scout(shape: tuple[int, int], rng: np.random.Generator) -> tuple[NDArray[Any], Tags]:
    """A side view that the scanner takes to plan the slices, and its tags: nothing that a study can use."""
    high, wide = shape
    row, column = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
    head = np.clip(1.2 - row**2 - column**2, 0, 1) * 900 + rng.normal(0, 8, shape)
    tags: Tags = {
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "SeriesDescription": "Topogram",
        "ImagePositionPatient": [0, -120, 120],
        "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
        "PixelSpacing": [2, 2],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    return np.clip(head, 0, 4095).astype(np.uint16), tags
