"""A head whose every voxel tells where it is, as DICOM series with one fault at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

HEAD = np.array([0.0, 10.0, 60.0])
"""Centre of the head in LPS mm."""
PROBE = np.array([[-30.0, -45.0, 12.0], [30.0, 35.0, 108.0]])
"""Corners (LPS mm) of the box in which the value is a linear function of the place."""
SLOPES = np.array([4.0, 3.0, 5.0])


def hounsfield(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """HU at LPS points (..., 3): air, a skull, a brain of 35 HU, and in it a box where HU = 1500 + slopes . (p - centre).

    Three different slopes: any swap, reversal, shift or shear of axes changes values in the box. A linear function is
    what linear interpolation returns exactly. The brain outside the box is what most of the soft tissue is.
    """
    radius = np.sqrt((((points - HEAD) / [80, 95, 85]) ** 2).sum(-1))
    values = np.select([radius < 0.9, radius < 1.0], [35.0, 1000.0], -1000.0)
    return np.where(in_probe(points), ramp(points), values)


def ramp(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1500 + (points - PROBE.mean(0)) @ SLOPES


def in_probe(points: NDArray[np.float64], margin: float = 0.0) -> NDArray[np.bool_]:
    return ((points > PROBE[0] + margin) & (points < PROBE[1] - margin)).all(-1)


def ct(
    z: Sequence[float],
    *,
    rows: int = 72,
    columns: int = 64,
    spacing: tuple[float, float] = (3.0, 3.2),
    tilt: float = 0.0,
    series: str = "1.2.3.10",
    values: Callable[[NDArray[np.float64]], NDArray[np.float64]] = hounsfield,
) -> list[Dataset]:
    """An axial CT, first pixels at (x, y, z) with the given z; `tilt` in degrees about the left-right axis.

    Rows run to the left (+x in LPS), columns towards the back; the table moves along z whatever the tilt.
    """
    angle = np.radians(tilt)
    across, down = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), -np.sin(angle)])
    corners = [np.array([-spacing[1] * (columns - 1) / 2, 10 - spacing[0] * (rows - 1) / 2, height]) for height in z]
    return acquired(corners, across, down, rows=rows, columns=columns, spacing=spacing, series=series, values=values)


def acquired(
    corners: Sequence[NDArray[np.float64]],
    across: NDArray[np.float64],
    down: NDArray[np.float64],
    *,
    rows: int,
    columns: int,
    spacing: tuple[float, float],
    series: str = "1.2.3.10",
    values: Callable[[NDArray[np.float64]], NDArray[np.float64]] = hounsfield,
) -> list[Dataset]:
    """Images in any direction: first pixels at `corners` (LPS mm), rows along `across`, columns along `down`."""
    slices = []
    for index, corner in enumerate(corners):
        points = (
            corner
            + np.arange(rows)[:, None, None] * spacing[0] * down
            + np.arange(columns)[None, :, None] * spacing[1] * across
        )
        slices.append(image(series, index, values(points), corner, (*across, *down), spacing))
    return slices


def image(
    series: str,
    index: int,
    hu: NDArray[np.float64],
    corner: NDArray[np.float64],
    orientation: Sequence[float],
    spacing: tuple[float, float],
) -> Dataset:
    """One CT image as a scanner writes it: 12 bits unsigned, intercept -1024."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID = CTImageStorage
    one.SOPInstanceUID = f"{series}.{index + 1}"
    one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.3", series
    one.PatientID, one.PatientName = "P1", "Doe^Jane"
    one.Modality, one.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.Manufacturer, one.ConvolutionKernel, one.SeriesDescription = "SIEMENS", "H31s", "Head"
    one.SeriesNumber, one.InstanceNumber, one.AcquisitionNumber = 2, index + 1, 1
    one.SliceThickness = 5.0
    one.ImagePositionPatient = [round(float(mm), 6) for mm in corner]
    one.ImageOrientationPatient = [round(float(part), 9) for part in orientation]
    one.PixelSpacing = list(spacing)
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
    one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, -1024, "HU"
    set_pixels(one, np.clip(np.rint(hu) + 1024, 0, 4095).astype(np.uint16))
    return one


def set_pixels(one: Dataset, stored: NDArray[Any]) -> None:
    """Stored values (H, W) as they are, in 8 or 16 bits."""
    one.Rows, one.Columns = stored.shape[-2:]
    one.PixelData = stored.tobytes()
    one["PixelData"].VR = "OW"


def stored(one: Dataset) -> NDArray[Any]:
    """What `set_pixels` wrote."""
    kind = np.int16 if one.PixelRepresentation else np.uint16
    return np.frombuffer(one.PixelData, kind).reshape(one.Rows, one.Columns)


def as_mr(slices: Sequence[Dataset], **tags: Any) -> list[Dataset]:
    """The same images as MR: no rescale, and what else is given."""
    for one in slices:
        one.SOPClassUID, one.Modality, one.ImageType = MRImageStorage, "MR", ["ORIGINAL", "PRIMARY", "M"]
        for tag in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ConvolutionKernel"):
            del one[tag]
        for tag, value in tags.items():
            setattr(one, tag, value)
    return list(slices)


def write(folder: Path, slices: Sequence[Dataset], seed: int = 0) -> Path:
    """Write each image to a file whose name says nothing of its order or kind."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(seed).permutation(len(slices)) + len(list(folder.iterdir()))
    for name, one in zip(names, slices, strict=True):
        one.file_meta.MediaStorageSOPClassUID = UID(one.SOPClassUID)
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.save_as(folder / f"IM{name:04d}", enforce_file_format=True)
    return folder
