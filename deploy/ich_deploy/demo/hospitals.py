"""Writes whole hospitals: images, table, reports, slice labels, the files of the study, and apart from them the truth."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from ich_deploy.demo import bleeding, infarct, infection, scans, slices
from ich_deploy.demo.anatomy import BLOOD
from ich_deploy.demo.case import HOSPITALS, Case, Seen
from ich_deploy.demo.rows import Row, csv_bytes, workbook
from ich_models.errors import ConfigurationError
from ich_models.files import write_atomic

DONE: Final = "demo.json"
"""Written last: what this folder holds. A folder without it was not finished."""


@dataclass(frozen=True)
class Kind:
    """One demo. `draw`: (seed, hospital, number) to a patient; `scan`: writes a patient's images below a folder."""

    patients: Mapping[str, int]
    draw: Callable[[int, str, int], Case]
    scan: Callable[[Case, Path], Seen]
    rows: Mapping[str, Callable[[Case], Row]]
    studies: tuple[str, ...]
    """Federation files; the first is the one to begin with."""
    reports: bool = False
    """Whether reports are written beside the table. East has them in its table."""
    labels: bool = False
    """Whether slices are labelled."""


KINDS: Final = {
    "ct": Kind(
        bleeding.PATIENTS,
        bleeding.draw,
        scans.head_ct,
        bleeding.ROWS,
        ("ichpro.yaml", "image_only.yaml", "concat.yaml", "logistic.yaml"),
        reports=True,
    ),
    "slices": Kind(slices.PATIENTS, slices.draw, scans.head_ct, slices.ROWS, ("hohoho.yaml", "dlmi.yaml"), labels=True),
    "mr": Kind(infarct.PATIENTS, infarct.draw, scans.head_mr, infarct.ROWS, ("vdafm.yaml",), reports=True),
    "xray": Kind(infection.PATIENTS, infection.draw, scans.joint_views, infection.ROWS, ("mednvc.yaml",)),
}

_TABLES: Final[Mapping[str, tuple[str, Callable[[Sequence[Row]], bytes]]]] = {
    "north": ("patients.csv", csv_bytes),
    "east": ("register.xlsx", workbook),
    "south": ("pazienti.csv", lambda rows: csv_bytes(rows, ";", "latin-1")),
}
"""Per hospital: the name of its table and how it is encoded."""

_REPORTS: Final = {"north": "reports", "south": "referti"}
"""Folder of a text file per patient. East's reports stand in its table."""

_SHORT: Final = ("IPH", "IVH", "SAH", "SDH", "EDH")


def generate(kind: str, seed: int, patients: int | None = None) -> dict[str, list[Case]]:
    """Every hospital's patients. `patients`: so many of each hospital; they are the first of the whole demo's."""
    return {
        name: [KINDS[kind].draw(seed, name, number) for number in range(1, (patients or count) + 1)]
        for name, count in KINDS[kind].patients.items()
    }


def write(
    folder: Path, kind: str, seed: int, patients: int | None = None, processes: int | None = None
) -> dict[str, list[Case]]:
    """Write a demo to `folder`, the same bytes for the same seed, and return who is in it.

    `patients`: so many of each hospital, for a quick look. `processes`: one per processor core by default.
    Raises ConfigurationError, before anything is written, if something else is there already.
    """
    cohorts = generate(kind, seed, patients)
    what = {"kind": kind, "seed": seed, "patients": {name: len(cases) for name, cases in cohorts.items()}}
    marker = folder / DONE
    if marker.is_file() and json.loads(marker.read_text()) == what:
        return cohorts
    if folder.is_dir() and any(folder.iterdir()):
        hint = "name another folder, or delete this one"
        raise ConfigurationError("is there already, and holds something else", where=str(folder), hint=hint)
    for name, content in study_files(kind).items():
        write_atomic(folder / name, content)
    everyone = [case for cases in cohorts.values() for case in cases]
    seen = iter(_scan_all(everyone, folder / "data", kind, processes))
    for name, cases in cohorts.items():
        for path, content in papers_of(kind, name, cases, list(islice(seen, len(cases)))).items():
            write_atomic(folder / path, content)
    write_atomic(marker, (json.dumps(what, indent=2) + "\n").encode())
    return cohorts


def study_files(kind: str) -> dict[str, bytes]:
    """The configuration files of a demo, as they lie in this package and in the generated folder."""
    home = files(__package__).joinpath("studies", kind)
    names = [*KINDS[kind].studies, "dictionary.yaml", *(f"hospitals/{name}.yaml" for name in HOSPITALS)]
    return {name: home.joinpath(name).read_bytes() for name in names}


def _scan_all(cases: Sequence[Case], data: Path, kind: str, processes: int | None) -> list[Seen]:
    """Write everyone's images, in several processes, and return what was seen, in the order of the cases."""
    workers = min(processes or os.cpu_count() or 1, max(1, len(cases) // 8))
    task = partial(_scan_one, data=data, kind=kind)
    # A fresh process each, whatever the platform: forks of a program with threads may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else nullcontext()
    with pool as executor:
        return list(map(task, cases) if executor is None else executor.map(task, cases, chunksize=8))


def _scan_one(case: Case, data: Path, kind: str) -> Seen:
    return KINDS[kind].scan(case, data / case.hospital / "images") if case.scanned else Seen()


def papers_of(kind: str, name: str, cases: Sequence[Case], seen: Sequence[Seen]) -> dict[str, bytes]:
    """All of one hospital's files that are no images, by their path in the demo's folder."""
    demo, data = KINDS[kind], f"data/{name}"
    table, encode = _TABLES[name]
    papers = {f"{data}/{table}": encode([demo.rows[name](case) for case in cases])}
    if name == "south":
        keys: list[Row] = [{"codice": case.image_patient, "paziente": case.patient} for case in cases]
        papers[f"{data}/chiave.csv"] = csv_bytes(keys, ";")
    if demo.reports and name in _REPORTS:
        papers |= {f"{data}/{_REPORTS[name]}/{case.patient}.txt": f"{case.report}\n".encode() for case in cases}
    if demo.labels:
        papers[f"{data}/labels.csv"] = _labels(name, cases, seen)
    truths = [_truth(case, one) for case, one in zip(cases, seen, strict=True)]
    titles = dict.fromkeys(title for truth in truths for title in truth)  # a patient without images has fewer
    papers[f"truth/{name}.csv"] = csv_bytes([{title: truth.get(title) for title in titles} for truth in truths])
    return papers


def _truth(case: Case, seen: Seen) -> Row:
    """What the generator knows, and no file below data/ holds."""
    drawn: Row = {name: round(v, 6) if isinstance(v, float) else v for name, v in case.truth.items()}
    measured: Row = {name: round(value, 4) for name, value in seen.truth.items()}
    return {"patient": case.patient, **drawn, **measured}


def _labels(name: str, cases: Sequence[Case], seen: Sequence[Seen]) -> bytes:
    """Slice labels as each hospital keeps them: one row per slice (north, south), or per slice and kind (east)."""
    rows: list[Row] = []
    for case, one in zip(cases, seen, strict=True):
        rng = case.rng(30)
        for instance, kinds in one.labels.items():
            if rng.random() < slices.UNLABELLED[name]:
                continue
            if name == "east":
                rows += (
                    {"SOP": instance, "Typ": short, "Label": flag} for short, flag in zip(_SHORT, kinds, strict=True)
                )
            else:
                titles = BLOOD if name == "north" else _SHORT
                rows.append({"SOPInstanceUID": instance, **dict(zip(titles, kinds, strict=True))})
    return csv_bytes(rows, ";" if name == "south" else ",")
