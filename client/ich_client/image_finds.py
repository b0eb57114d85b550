"""What a hospital's folder of images holds: its studies, earliest first, whose they are, and what is set aside unread."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ich_client import nifti, sheets
from ich_client.dicom.header import RADIOGRAPHS, Header
from ich_client.dicom.scan import scan
from ich_client.dicom.series import Refused, Series, group
from ich_client.hospital import HospitalConfig
from ich_client.image_mapping import AccessionLink, Images, KeyMap, StudyLink
from ich_client.nifti import Entry
from ich_client.sheets import Sheet
from ich_models.errors import DataError, Problem
from ich_models.yaml_config import Document

Watch = Callable[[str, int, int | None], None]
"""Told while images are read: what is done, how many are, of how many (None: not known)."""

RADIOGRAPH: Final = "radiograph"


@dataclass(frozen=True)
class Study:
    """One study of one patient. `aside`: files and series of it that cannot be read, as far as headers tell."""

    patient: str
    uid: str
    accession: str
    when: str
    images: tuple[Series, ...] | tuple[Entry, ...]
    aside: tuple[Refused, ...] = ()

    @property
    def rank(self) -> tuple[object, ...]:
        """Earlier is smaller; a study without a date comes after those with one."""
        return not self.when, self.when, self.uid

    def kinds(self) -> set[str]:
        """The modalities of its images; NIfTI files do not tell, and may be either."""
        dicom = {_modality(one.first) for one in self.images if isinstance(one, Series)}
        return dicom or ({"CT", "MR"} if self.images else set())

    def only(self, modality: str) -> tuple[Series, ...] | tuple[Entry, ...]:
        """Its images of one modality."""
        series = tuple(one for one in self.images if isinstance(one, Series) and _modality(one.first) == modality)
        return series or tuple(one for one in self.images if isinstance(one, Entry))

    def files(self, modality: str) -> list[Path]:
        """Every file that `only` may read, in the order of their names."""
        paths = set[Path]()
        for one in self.only(modality):
            paths |= {one.path} if isinstance(one, Entry) else {header.path for header in one.headers}
        return sorted(paths)

    def instances(self) -> set[str]:
        """SOPInstanceUIDs of its images."""
        return {header.instance for one in self.images if isinstance(one, Series) for header in one.headers}


@dataclass(frozen=True)
class Finds:
    """A folder's studies, and what belongs to none of them. `others`: files that are no images."""

    root: Path
    studies: tuple[Study, ...]
    aside: tuple[Refused, ...]
    others: int
    seconds: float


def _modality(header: Header) -> str:
    return RADIOGRAPH if header.sop_class in RADIOGRAPHS else header.modality


def find(root: Path, images: Images, where: str, watch: Watch) -> Finds:
    """Search the folder once. Raises DataError if there is none, or nothing in it is an image."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", where=where, hint="correct images.folder, or give another --data")
    began = time.perf_counter()
    studies, aside, others = _dicom(root, watch) if images.format == "dicom" else (_nifti(root), (), 0)
    if not studies and not aside:
        kind = "NIfTI image named in the form of BIDS" if images.format == "nifti" else "DICOM image"
        hint = "correct images.folder or images.format"
        raise DataError(f"no {kind} below {root} ({others} other files)", where=where, hint=hint)
    return Finds(
        root, tuple(sorted(studies, key=lambda one: one.rank)), tuple(aside), others, time.perf_counter() - began
    )


def _dicom(root: Path, watch: Watch) -> tuple[list[Study], tuple[Refused, ...], int]:
    count = 0

    def seen(_path: Path) -> None:
        nonlocal count
        count += 1
        if count % 100 == 0:
            watch("scan", count, None)

    found = scan(root, seen)
    watch("scan", count, count)
    series, refused = group(found)
    held: dict[tuple[str, str], tuple[list[Series], list[Refused]]] = {}
    for stack in series:
        held.setdefault((stack.first.patient, stack.first.study), ([], []))[0].append(stack)
    nobodys = []
    for one in refused:
        if one.patient or one.study:
            held.setdefault((one.patient, one.study), ([], []))[1].append(one)
        else:
            nobodys.append(one)
    studies = []
    for (patient, uid), (own, aside) in held.items():
        headers = [header for stack in own for header in stack.headers]
        accession = next((header.accession for header in headers if header.accession), "")
        when = min((header.when for header in headers if header.when), default="")
        studies.append(Study(patient, uid, accession, when, tuple(own), tuple(aside)))
    return studies, tuple(nobodys), found.others


def _nifti(root: Path) -> list[Study]:
    held: dict[tuple[str, str], list[Entry]] = {}
    for entry in nifti.entries(root):
        held.setdefault((entry.subject, entry.session), []).append(entry)
    # Sessions have no date: their names say the order.
    return [Study(subject, session, "", session, tuple(own)) for (subject, session), own in held.items()]


# --- whose a study is -------------------------------------------------------------------------------------------------


def owners(
    document: Document[HospitalConfig], sheet: Sheet, ids: Mapping[int, str], root: Path
) -> Callable[[Study], str | None]:
    """From a study to the patient of the table, or None. `ids`: row of the sheet -> patient.

    Raises DataError for a column that is not there, a key that names two patients, or a key map that cannot be read.
    """
    images = document.value.images
    assert images is not None, "a hospital with images"
    link = images.link
    if isinstance(link, StudyLink | AccessionLink):
        key = "study" if isinstance(link, StudyLink) else "accession"
        column = link.study if isinstance(link, StudyLink) else link.accession
        where = document.where("images", "link", key)
        if column not in sheet.header:
            raise DataError(f"no column '{column}' in {sheet.name}", where=where, hint=sheet.known(column))
        cells = sheet.column(column)
        table = _one_each([(cells[row], ids[row], row) for row in ids], sheet, column)
        return lambda study: table.get(study.uid if key == "study" else study.accession)
    if isinstance(link, KeyMap):
        table = _key_map(document, link, root)
        return lambda study: table.get(study.patient)
    if document.value.table.patient is None:
        hint = "name the column as table.patient, or link images by a study, an accession number or a key map"
        raise DataError("no column identifies the table's patients", where=document.where("images", "link"), hint=hint)
    known = set(ids.values())
    return lambda study: study.patient if study.patient in known else None


def _key_map(document: Document[HospitalConfig], link: KeyMap, root: Path) -> dict[str, str]:
    def where(key: str) -> str:
        return document.where("images", "link", "key_map" if key == "file" else key)

    keys = sheets.read(root / link.file, link, where)
    missing = [
        (key, name) for key, name in (("image", link.image), ("patient", link.patient)) if name not in keys.header
    ]
    if missing:
        raise DataError(
            [Problem(f"no column '{name}' in {keys.name}", where(key), keys.known(name)) for key, name in missing]
        )
    pairs = zip(keys.column(link.image), keys.column(link.patient), strict=True)
    return _one_each([(image, patient, row) for row, (image, patient) in enumerate(pairs)], keys, link.image)


def _one_each(pairs: Sequence[tuple[str, str, int]], sheet: Sheet, column: str) -> dict[str, str]:
    """Key -> patient; a key of two patients would give one the other's image."""
    found: dict[str, str] = {}
    torn = []
    for key, patient, row in pairs:
        if key and patient and found.setdefault(key, patient) != patient:
            torn.append(row)
    if torn:
        hint = "each image belongs to one patient: correct the table"
        raise DataError(f"one value of '{column}' belongs to two patients", where=sheet.place(torn, 3), hint=hint)
    return found


def mask_of(folder: Path | None, patient: str) -> Path | None:
    """The hospital's own mask of a patient, if there is one."""
    if folder is None or not patient or os.sep in patient or patient.startswith("."):
        return None
    return next((path for ending in nifti.ENDINGS if (path := folder / f"{patient}{ending}").is_file()), None)
