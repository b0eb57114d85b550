"""Patients that a finished model is asked about: the same table, reports and images as in training, the outcome not known."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ich_client import images, sheets, texts, values
from ich_client.hospital import HospitalConfig
from ich_client.image_finds import Finds, Study, find, owners
from ich_client.images import EVERYBODY, Ask, Summary
from ich_client.report_writer import Slices
from ich_client.sheets import Sheet
from ich_models import clinical
from ich_models.batch import Patients
from ich_models.clinical import Value
from ich_models.errors import DataError, Problem
from ich_models.federation import Federation
from ich_models.variables import Variable
from ich_models.yaml_config import Document


@dataclass(frozen=True)
class Newcomers:
    """Patients with everything that the study's network looks at. `patients`: their labels are 0 and mean nothing.

    `values`: of each patient, by variable, in the study's units. `refused`: (patient, reason) of those who cannot be
    predicted. `images`: what became of their images; `source`: where their texts come from. For local eyes.
    """

    patients: Patients
    values: tuple[Mapping[str, Value], ...]
    refused: tuple[tuple[str, str], ...]
    warnings: tuple[Problem, ...]
    threads: int
    images: Summary | None = None
    source: texts.Source | None = None


def load(
    document: Document[HospitalConfig],
    root: Path,
    federation: Document[Federation],
    cache: Path,
    ask: Ask = EVERYBODY,
) -> Newcomers:
    """The patients of one mapping; files are looked for in the folder `root`, what is made of images is kept in `cache`.

    One who cannot be predicted (a value outside its range, no image for a network that sees nothing else) is named with
    the reason and fails alone. Raises DataError with every problem that concerns everybody.
    """
    sheet = sheets.read(root / document.value.table.file, document.value.table, partial(document.where, "table"))
    needed = {name: one for name, one in federation.value.needed.items() if name in _inputs(federation.value)}
    source, problems = texts.source(document, root, federation, sheet)
    problems += _faults(needed, sheet, document)
    if problems:
        raise DataError(dict.fromkeys(problems))
    ids, refused = _identified(sheet, document)
    if ask.patient is not None and ask.patient not in ids.values():
        known = Counter(ids.values())
        hint = sheets.likely(ask.patient, list(known), "patients")
        raise DataError(f"no patient '{ask.patient}' in {sheet.name}", where=document.where("table"), hint=hint)
    columns, spoilt = _columns(needed, sheet, sorted(ids), document)
    if federation.value.modalities.table.complete_cases:
        for row in ids:
            lacking = [name for name in federation.value.predictors if columns[name][row] is None]
            if lacking:
                spoilt.setdefault(row, f"the study leaves out who lacks a predictor: {', '.join(lacking)}")
    kept = [row for row in ids if row not in spoilt and ask.patient in (None, ids[row])]
    refused += [(ids[row], reason) for row, reason in spoilt.items() if ask.patient in (None, ids[row])]
    chosen = {name: [columns[name][row] for row in kept] for name in needed}
    encoded = clinical.encode(chosen, federation.value.modalities.table)
    patients = Patients(tuple(ids[row] for row in kept), encoded, np.zeros(len(kept), np.int64))
    warnings: list[Problem] = []
    if source is not None and source.writer is None and kept:
        name = document.value.hospital
        patients, _, warnings = texts.add(source, name, patients, kept, columns, sheet)
    made = Newcomers(
        patients,
        tuple({name: cells[place] for name, cells in chosen.items()} for place in range(len(kept))),
        tuple(refused),
        tuple(warnings),
        document.value.limits.threads,
        source=source,
    )
    if federation.value.modalities.image is not None and kept:
        made = _with_images(made, document, root, federation.value, sheet, ids, cache, ask)
        if source is not None and source.writer is not None:
            made = _written(made, source, document, federation.value, texts.templates(source, kept, columns), ask)
    return _seen_by(federation.value, made)


def outcomes(
    document: Document[HospitalConfig], root: Path, federation: Federation, ids: Sequence[str]
) -> tuple[bool | None, ...]:
    """Whether each of these patients has the positive outcome; None where it is not mapped, not recorded or not readable.

    For local eyes: nothing is predicted from it.
    """
    outcome, table = federation.task.outcome, document.value.table
    sheet = sheets.read(root / table.file, table, partial(document.where, "table"))
    variable = federation.modalities.table.variables[outcome.variable]
    if outcome.variable not in table.columns or values.faults(outcome.variable, variable, sheet, document):
        return (None,) * len(ids)
    rows, _ = _identified(sheet, document)
    columns, _ = _columns({outcome.variable: variable}, sheet, sorted(rows), document)
    recorded = {rows[row]: value for row, value in columns[outcome.variable].items()}
    known = (recorded.get(name) for name in ids)
    return tuple(None if value is None else outcome.is_positive(value) for value in known)


# --- the table --------------------------------------------------------------------------------------------------------


def _inputs(federation: Federation) -> set[str]:
    """The variables that a prediction needs: the outcome's column may be there or not."""
    return {*federation.predictors, *federation.spoken}


def _faults(needed: Mapping[str, Variable], sheet: Sheet, document: Document[HospitalConfig]) -> list[Problem]:
    """What is wrong with the mapping, for every patient alike."""
    table, problems = document.value.table, []
    if table.patient is not None and table.patient not in sheet.header:
        message, where = f"no column '{table.patient}' in {sheet.name}", document.where("table", "patient")
        problems.append(Problem(message, where, sheet.known(table.patient)))
    for name, variable in needed.items():
        if name not in table.columns:
            where = document.where("table", "columns")
            problems.append(Problem(f"the model needs '{name}', and it is not mapped", where, f"add {name}: COLUMN"))
        else:
            problems += values.faults(name, variable, sheet, document)
    return problems


def _identified(sheet: Sheet, document: Document[HospitalConfig]) -> tuple[dict[int, str], list[tuple[str, str]]]:
    """The patient of each row that has one of its own, and the others with the reason."""
    column = document.value.table.patient
    if column is None:
        return {row: str(row + 1) for row in range(len(sheet.rows))}, []
    cells = sheet.column(column)
    counts = Counter(cells)
    ids = {row: cell for row, cell in enumerate(cells) if cell and counts[cell] == 1}
    refused = [
        ("", f"no patient identifier in '{column}' ({sheet.place([row])})") for row, c in enumerate(cells) if not c
    ]
    for cell, count in counts.items():
        if cell and count > 1:
            rows = [row for row, other in enumerate(cells) if other == cell]
            refused.append((cell, f"the identifier has {count} rows ({sheet.place(rows, 3)})"))
    return ids, refused


def _columns(
    needed: Mapping[str, Variable], sheet: Sheet, rows: Sequence[int], document: Document[HospitalConfig]
) -> tuple[dict[str, dict[int, Value]], dict[int, str]]:
    """Variable -> row -> value, and why a row's values cannot be used; a bad cell spoils its own row alone."""
    columns: dict[str, dict[int, Value]] = {}
    spoilt: dict[int, str] = {}
    for name, variable in needed.items():
        cells, problems = values.convert(name, variable, sheet, rows, document)
        columns[name] = dict(zip(rows, cells, strict=True))
        for row in rows if problems else ():
            _, own = values.convert(name, variable, sheet, [row], document)
            if own:
                spoilt.setdefault(row, f"{own[0].message} ({own[0].where})")
    return columns, spoilt


# --- images -----------------------------------------------------------------------------------------------------------


def _with_images(
    made: Newcomers,
    document: Document[HospitalConfig],
    root: Path,
    federation: Federation,
    sheet: Sheet,
    ids: Mapping[int, str],
    cache: Path,
    ask: Ask,
) -> Newcomers:
    spec = federation.modalities.image
    assert spec is not None, "a study with images"
    config = _unlabelled(document)
    finds: Finds | None = None
    owner: Callable[[Study], str | None] = lambda study: None  # noqa: E731
    if config.value.images is not None:
        folder, where = root / config.value.images.folder, config.where("images", "folder")
        finds = find(folder, config.value.images, where, ask.watch)
        owner = owners(config, sheet, ids, root)
    own_cache = cache if config.value.cache.folder is None else root / config.value.cache.folder
    ready = images.prepare(config, root, spec, made.patients.ids, finds, owner, own_cache, ask)
    marked = {**made.patients.present, "image": ready.present}
    patients = replace(made.patients, image=ready.image, slices=ready.slices, present=marked)
    return replace(made, patients=patients, images=ready.summary, warnings=(*made.warnings, *ready.warnings))


def _written(
    made: Newcomers,
    source: texts.Source,
    document: Document[HospitalConfig],
    federation: Federation,
    sentences: Sequence[str | None],
    ask: Ask,
) -> Newcomers:
    """With the texts of the hospital's language model, as in the study."""
    summary, spec = made.images, federation.modalities.image
    assert summary is not None, "a study in which a model writes looks at images"
    assert spec is not None, "a study in which a model writes looks at images"
    chosen = {one.patient: one for one in summary.chosen}

    def shown(place: int) -> Slices | str:
        one = chosen.get(made.patients.ids[place])
        return images.slices_of(one, spec, summary.cache) if one else "no image"

    kept, seed, name = Path(summary.cache) / "reports", federation.training.seeds[0], document.value.hospital
    patients, _, noticed = texts.write(source, name, made.patients, sentences, shown, kept, seed, ask.watch)
    return replace(made, patients=patients, warnings=(*made.warnings, *noticed))


def _unlabelled(document: Document[HospitalConfig]) -> Document[HospitalConfig]:
    """The mapping without labels of slices: nobody has labelled these patients."""
    config = document.value
    if config.images is None or config.images.labels is None:
        return document
    return document.replace(config.model_copy(update={"images": config.images.model_copy(update={"labels": None})}))


def _seen_by(federation: Federation, made: Newcomers) -> Newcomers:
    """Those of whom the network sees anything; of the others it would only repeat what it says of everybody."""
    seen = np.any([made.patients.holding(name) for name in federation.network.uses], axis=0)
    if seen.all():
        return made
    refused = [(made.patients.ids[place], _unseen(federation, made, int(place))) for place in np.flatnonzero(~seen)]
    rows = np.flatnonzero(seen)
    return replace(
        made,
        patients=made.patients.take(rows),
        values=tuple(made.values[row] for row in rows),
        refused=(*made.refused, *refused),
    )


def _unseen(federation: Federation, made: Newcomers, place: int) -> str:
    """Why a patient has nothing that the network looks at."""
    name = made.patients.ids[place]
    because = [
        f"{one.reason}: {one.detail}" for one in (made.images.aside if made.images else ()) if one.patient == name
    ]
    words = " and no ".join({"image": "usable image"}.get(modality, modality) for modality in federation.network.uses)
    return f"no {words}" + (f" ({'; '.join(because)})" if because else "")
