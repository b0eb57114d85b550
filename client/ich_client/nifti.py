"""NIfTI images to volumes, with the checks that DICOM gets; and BIDS-like folders of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel
import numpy as np

from ich_client.dicom.pixels import MOST_VOXELS
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import files
from ich_client.dicom.stack import check_hounsfield
from ich_models.volume import AIR, Unit, Volume, oriented

ENDINGS: Final = (".nii", ".nii.gz")

_ENTITY: Final = re.compile(r"(?P<key>[a-zA-Z0-9]+)-(?P<value>[a-zA-Z0-9]+)")


@dataclass(frozen=True)
class Entry:
    """One image of a BIDS-like folder: sub-P1_ses-2_acq-x_dwi.nii.gz has the subject P1, session 2, suffix dwi."""

    path: Path
    subject: str
    session: str
    suffix: str


def entries(root: Path) -> Iterator[Entry]:
    """The images below a folder whose names are in the form of BIDS, in the order of their names.

    The subject is asked of the name alone: rawdata/, derivatives/ and anat/ above it may be there or not.
    """
    for path in files(root):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None:
            continue
        *parts, suffix = path.name.removesuffix(ending).split("_")
        found = {match["key"]: match["value"] for part in parts if (match := _ENTITY.fullmatch(part))}
        if "sub" in found and len(found) == len(parts):
            yield Entry(path, found["sub"], found.get("ses", ""), suffix)


def read(path: Path, unit: Unit, mask: bool = False) -> Volume:
    """A NIfTI image in RAS. CT becomes int16 HU (outside at -1024), all else float32; a mask int16 of 0 and 1, unit intensity.

    Raises Refusal: UNREADABLE, NIFTI (no orientation, no right angles, not finite), FOUR_D, COLOUR, TOO_LARGE, FEW_SLICES,
    BLANK, HU_RANGE.
    """
    where = str(path)
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):  # Nifti2 is one, too
            raise Refusal(Reason.NIFTI, f"a {type(image).__name__}", where)
        shape, dtype = image.shape, image.get_data_dtype()
    except OSError as error:
        raise Refusal(Reason.UNREADABLE, error.strerror or type(error).__name__, where) from None
    except Refusal:
        raise
    except Exception as error:  # nibabel raises whatever a damaged header leads to
        raise Refusal(Reason.NIFTI, f"no NIfTI image ({type(error).__name__})", where) from None
    if dtype.kind not in "iuf":
        raise Refusal(Reason.COLOUR, f"voxels of type {dtype}", where)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise Refusal(Reason.FOUR_D, f"{' x '.join(map(str, shape))} voxels", where)
    if len(shape) < 3 or min(shape) < 3:
        raise Refusal(Reason.FEW_SLICES, f"{' x '.join(map(str, shape))} voxels", where)
    if np.prod(shape, dtype=np.int64) > MOST_VOXELS:
        raise Refusal(Reason.TOO_LARGE, f"{' x '.join(map(str, shape))} voxels", where)
    affine = _affine(image, where)
    try:
        values = np.asanyarray(image.dataobj).reshape(shape)
    except Exception as error:  # cut short, or damaged compression
        raise Refusal(Reason.PIXELS, f"its voxels cannot be read ({type(error).__name__})", where) from None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Refusal(Reason.NIFTI, "some voxels are not finite", where)
    if mask:
        return oriented((values > 0.5).astype(np.int16), affine, "intensity")
    if values.min() == values.max():
        raise Refusal(Reason.BLANK, f"every voxel is {values.min():g}", where)
    if unit == "HU":
        whole = np.clip(np.rint(values), AIR, np.iinfo(np.int16).max).astype(np.int16)
        volume = oriented(whole, affine, unit)
        try:
            check_hounsfield(volume.values)
        except Refusal as refusal:
            raise refusal.at(where) from None
        return volume
    return oriented(values.astype(np.float32), affine, unit)


def _affine(image: nibabel.Nifti1Pair, where: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The way from voxels to mm; refused if the file does not say it, says it in two ways, or it has no right angles."""
    quaternion, code_q = image.get_qform(coded=True)
    matrix, code_s = image.get_sform(coded=True)
    if not code_q and not code_s:
        raise Refusal(Reason.NIFTI, "neither qform nor sform says where the patient's left is", where)
    affine = np.asarray(matrix if code_s else quaternion, np.float64)
    size = np.linalg.norm(affine[:3, :3], axis=0) if np.isfinite(affine).all() else np.zeros(3)
    if not ((size > 0.01) & (size < 100)).all():
        raise Refusal(Reason.NIFTI, "its spacing is no distance", where)
    cosines = affine[:3, :3] / size
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > 0.01:
        raise Refusal(Reason.NIFTI, "its axes are not at right angles (an uncorrected gantry tilt?)", where)
    if code_q == code_s == 1 and np.abs(quaternion - matrix).max() > 0.1:
        raise Refusal(Reason.NIFTI, "qform and sform place it differently", where)
    return affine
