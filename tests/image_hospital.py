"""A hospital of phantom heads as DICOM, its table and its mapping: whose image it is can be read from the pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phantom import HEAD, ct, write
from pydicom.dataset import Dataset

from ich_client.hospital import HospitalConfig
from ich_client.images import EVERYBODY, Ask
from ich_client.tables import Hospital, load_hospitals
from ich_models.federation import load_federation
from ich_models.files import write_atomic
from ich_models.yaml_config import load

Z = tuple(np.arange(26) * 5.0)
VOLUME = "{kind: ct, size: [12, 32, 32], spacing: [10, 6, 6], windows: [[40, 80]]}"
SLICES = "{kind: ct_slices, size: [32, 32], most: 8}"

STUDY = """\
name: small
task: {{timeline: [admission, 90 days], predict_at: admission, outcome: {{variable: mrs, at: 90 days, poor: ">= 3"}}}}
modalities:
  table:
    variables:
      age: {{type: number, known_at: admission}}
      mrs: {{type: integer, range: [0, 6], known_at: 90 days}}
    predictors: [age]
  image: {image}
network: {network}
training: {{stages: [{{rounds: 1, epochs: 1, batch: 4, optimizer: {{name: sgd, lr: 0.01}}}}]}}
evaluation: {{small_cells: 0}}
"""
MAPPING = """\
hospital: north
table: {{file: table.csv, patient: ID, columns: {{age: AGE, mrs: MRS}}{table}}}
images: {images}
limits: {{small_cells: 0, threads: {threads}}}
cache: {{folder: {cache}, limit: {limit}}}
"""


def brain_of(number: int) -> float:
    """HU of a patient's brain."""
    return 15.0 + 8 * number


def head(number: int) -> Any:
    """A head whose brain has the patient's HU; smaller than the phantom's, as a brain has at most 1800 mL."""

    def values(points: NDArray[np.float64]) -> NDArray[np.float64]:
        radius = np.sqrt((((points - HEAD) / [73, 88, 78]) ** 2).sum(-1))
        return np.select([radius < 0.9, radius < 1.0], [brain_of(number), 1000.0], -1000.0)

    return values


def scan_of(
    number: int, *, z: Sequence[float] = Z, study: int = 1, day: str = "20240301", **tags: Any
) -> list[Dataset]:
    """One patient's head CT. Its UIDs hold the patient's and the study's number, its slices' end in 1, 2, ... from below."""
    uid = f"1.2.9.{number}.{study}"
    slices = ct(z, rows=64, columns=64, spacing=(3.2, 3.2), series=f"{uid}.7", values=head(number))
    for one in slices:
        one.PatientID, one.StudyInstanceUID, one.AccessionNumber = f"P{number}", uid, f"ACC{number}-{study}"
        one.StudyDate, one.StudyTime = day, "101500"
        for tag, value in tags.items():
            setattr(one, tag, value)
    return slices


def make(folder: Path, patients: int, *, order: Sequence[int] = (), rows: Mapping[int, str] | None = None) -> Path:
    """A folder with table.csv (patients in `order`; `rows`: more cells, with the header under -1) and their scans in pacs/."""
    for number in range(patients):
        write(folder / "pacs" / f"f{(number * 7) % 10}-{number}", scan_of(number), seed=number)
    more = rows or {}
    lines = [f"ID,AGE,MRS{more.get(-1, '')}"]
    lines += [f"P{number},{50 + number},{number % 2 * 5}{more.get(number, '')}" for number in order or range(patients)]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def files(
    folder: Path,
    *,
    image: str = VOLUME,
    images: str = "{folder: pacs}",
    table: str = "",
    cache: Path | str = "cache",
    limit: str = "1GB",
    threads: int = 1,
    network: str = "{name: logistic}",
) -> tuple[Path, Path]:
    """Write federation.yaml and hospital.yaml; whole or not at all, since several processes may do so at once."""
    study, mapping = folder / "federation.yaml", folder / "hospital.yaml"
    write_atomic(study, STUDY.format(image=image, network=network).encode())
    text = MAPPING.format(images=images, table=table, cache=cache, limit=limit, threads=threads)
    write_atomic(mapping, ("\n".join(line for line in text.splitlines() if line != "images: ") + "\n").encode())
    return study, mapping


def load_all(folder: Path, ask: Ask = EVERYBODY, **settings: Any) -> tuple[Hospital, ...]:
    """Every hospital of the folder's mapping."""
    study, mapping = files(folder, **settings)
    return load_hospitals([load(mapping, HospitalConfig)], folder, load_federation(study), ask=ask)


def load_one(folder: Path, ask: Ask = EVERYBODY, **settings: Any) -> Hospital:
    """The only one."""
    (one,) = load_all(folder, ask, **settings)
    return one


def brains(hospital: Hospital) -> list[float]:
    """HU in the middle of each patient's array of one window 40/80, rounded; 0 without an image."""
    image = hospital.patients.image
    assert image is not None
    if hospital.patients.slices is not None:
        counts = hospital.patients.slices.sum(1)
        middles = [one[count // 2, 0] if count else one[0, 0] for one, count in zip(image, counts, strict=True)]
    else:
        middles = [one[0, one.shape[1] // 2] for one in image]
    return [round(float(one[one.shape[0] // 2, one.shape[1] // 2]) * 80, 1) for one in middles]
