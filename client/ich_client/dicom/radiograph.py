"""Radiographs (CR, DX): single images in shades of grey, as a radiologist would see them; several views per patient."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from ich_client.dicom.choose import refused
from ich_client.dicom.header import RADIOGRAPHS, Header
from ich_client.dicom.pixels import own_bits, stored
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.series import Refused, Series, check_kind

PERCENTILES: Final = (0.5, 99.5)
"""Of the pixels, between which grey is scaled where the file names no window."""


@dataclass(frozen=True)
class Radiograph:
    """One view. `values`: (H, W) float32, 0 black to 1 white, air dark and bone bright; `spacing`: mm between rows and
    columns, at the detector, None if not stated; `view`: PA, AP, LL ... as stated, or empty."""

    values: NDArray[np.float32]
    spacing: tuple[float, float] | None
    view: str
    instance: str


def views(stacks: Sequence[Series]) -> tuple[list[Radiograph], list[Refused]]:
    """The radiographs of one study, by view, and what is set aside. One bad image leaves the others."""
    images: list[Radiograph] = []
    aside: list[Refused] = []
    for series in stacks:
        try:
            check_kind(series)
            if series.first.sop_class not in RADIOGRAPHS:
                raise Refusal(Reason.MODALITY, f"modality {series.first.modality}", series.place)
        except Refusal as refusal:
            aside.append(refused(series, refusal))
            continue
        for header in series.headers:
            try:
                images.append(read(header))
            except Refusal as refusal:
                aside.append(refused(Series((header,)), refusal))
    return sorted(images, key=lambda image: (image.view, image.instance)), aside


def read(header: Header) -> Radiograph:
    """One radiograph. Raises Refusal: PIXELS, DECODER, BLANK, HEADER or UNREADABLE."""
    (pixels,) = stored([header])
    nothing = None
    if header.padding is not None:
        nothing = (pixels >= header.padding[0]) & (pixels <= header.padding[1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(header.path, stop_before_pixels=True)
            grey = _grey(apply_modality_lut(own_bits(pixels, header), dataset), dataset, nothing)
    except Refusal as refusal:
        raise refusal.at(header.place) from None
    except Exception as error:  # pydicom raises whatever a damaged table or window leads to
        raise Refusal(Reason.HEADER, f"its grey scale cannot be used ({type(error).__name__})", header.place) from None
    if not np.isfinite(grey).all() or grey.min() == grey.max():
        raise Refusal(Reason.BLANK, "nothing to see between black and white", header.place)
    if header.photometric == "MONOCHROME1":
        grey = 1 - grey
    if nothing is not None:
        grey[nothing] = 0
    return Radiograph(grey, header.spacing, header.view, header.instance)


def _grey(values: NDArray[Any], dataset: Dataset, nothing: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """The file's table or first window (PS3.3 section C.11.2), else percentiles; to 0..1."""
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        low, high = 0.0, float(2**bits - 1)
        shown = apply_voi_lut(values, dataset).astype(np.float64)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # What lies far outside of a window is shown as black and white: that is the scale.
        ends = np.array([-1e9, 1e9])
        low, high = (float(end) for end in apply_voi_lut(ends, dataset))
        shown = apply_voi_lut(values.astype(np.float64), dataset)
    else:
        low, high = (float(end) for end in np.percentile(values if nothing is None else values[~nothing], PERCENTILES))
        shown = values.astype(np.float64)
    if not high > low:
        raise Refusal(Reason.BLANK, "black and white are the same value")
    return np.clip((shown - low) / (high - low), 0, 1).astype(np.float32)
