"""Hospitals' tables and images to patients: mappings and files are checked in full, and all that is wrong is said at once."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ich_client import images, sheets, texts, values
from ich_client.dicom.reasons import Reason
from ich_client.hospital import HospitalConfig, Limits
from ich_client.image_finds import Finds, Study, find, owners
from ich_client.images import EVERYBODY, Ask, Summary, user_cache
from ich_client.report_writer import Slices
from ich_client.sheets import Sheet, likely
from ich_client.splits import too_few
from ich_client.texts import TextSummary
from ich_models import clinical, subgroups
from ich_models.batch import Patients
from ich_models.clinical import Value
from ich_models.errors import DataError, Exclusion, Problem
from ich_models.federation import Federation
from ich_models.image_spec import ImageSpec
from ich_models.metrics import delong
from ich_models.strict import NAME
from ich_models.variables import Variable
from ich_models.yaml_config import Document

LEAKING_AUC = 0.95
"""A single predictor that separates the outcome better than this is a warning ..."""

LEAK_NEEDS = 10
"""... where at least so many patients are known with the outcome, and without."""


@dataclass(frozen=True)
class Hospital:
    """One hospital's patients, ready for training. `excluded`: reason -> number of rows left out.

    `images`: what became of its images, if the study looks at any. `sentences`: of the template, by patient, where a
    language model writes and the template stands in.
    """

    name: str
    patients: Patients
    limits: Limits
    excluded: Mapping[Exclusion, int]
    warnings: tuple[Problem, ...]
    text: TextSummary | None = None
    images: Summary | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    """Published weights, where they lie here."""
    sentences: tuple[str | None, ...] = ()
    instances: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """SOPInstanceUIDs of each patient's slices, in their order, where the study looks at slices. Local only."""


@dataclass(frozen=True)
class _Part:
    """The rows of a sheet that are one hospital."""

    name: str
    rows: list[int]


@dataclass(frozen=True)
class _Source:
    """Where a hospital came from: its mapping, the table, and all hospitals in it."""

    document: Document[HospitalConfig]
    sheet: Sheet
    parts: Sequence[_Part]
    text: texts.Source | None


def load_hospitals(
    mappings: Sequence[Document[HospitalConfig]],
    root: Path,
    federation: Document[Federation],
    cache: Path | None = None,
    ask: Ask = EVERYBODY,
) -> tuple[Hospital, ...]:
    """The hospitals of all mappings, by name; files are looked for in the folder `root`.

    Only what the study needs is read: predictors, outcome, what its text is made of, images. `cache`: where what is made
    of images is kept (a hospital's own cache.folder goes before; by default the user's cache folder); nothing is written
    elsewhere. `ask`: whose images are read. Raises DataError with every problem of every mapping and table, or, where
    these are sound, of every folder of images.
    """
    read: dict[tuple[object, ...], Sheet | None] = {}
    problems: list[Problem] = []
    hospitals: list[Hospital] = []
    sources: dict[str, _Source] = {}
    places: dict[str, str] = {}
    whole: dict[tuple[object, ...], str] = {}
    for document in mappings:
        table = document.value.table
        key = (root / table.file, table.sheet, table.separator, table.encoding, table.decimal, *(table.header or ()))
        if key not in read:
            try:
                read[key] = sheets.read(root / table.file, table, partial(document.where, "table"))
            except DataError as error:
                problems += error.problems
                read[key] = None
        sheet = read[key]
        if table.split_by is None:
            if key in whole:
                hint = (
                    "one table is one hospital: remove one of the two, or tell the hospitals apart with table.split_by"
                )
                message = f"the same table is hospital '{whole[key]}' already"
                problems.append(Problem(message, document.where("table", "file"), hint))
            whole.setdefault(key, document.value.hospital)
        problems += _unmapped(document, federation.value, sheet)
        if sheet is None:
            continue
        parts, found = _parts(sheet, document)
        problems += found
        for part in parts:
            where = document.where("hospital")
            if part.name in places:
                hint = "give every hospital a name of its own"
                problems.append(Problem(f"hospital '{part.name}' is also at {places[part.name]}", where, hint))
            places.setdefault(part.name, where)
        source, found = texts.source(document, root, federation, sheet)
        problems += found
        loaded, found = _hospitals(parts, sheet, document, federation.value, source)
        weights = {name: root / path for name, path in document.value.weights.items()}
        hospitals += [replace(hospital, weights=weights) for hospital in loaded]
        problems += found
        sources |= {hospital.name: _Source(document, sheet, parts, source) for hospital in loaded}
    if not mappings:
        problems.append(Problem("there are no hospitals", hint="give at least one hospital.yaml"))
    problems += _shared_patients(hospitals)
    if problems:
        raise DataError(dict.fromkeys(problems))
    if (spec := federation.value.modalities.image) is not None:
        seed = federation.value.training.seeds[0]
        hospitals = _with_images(hospitals, sources, root, spec, cache or user_cache(), ask, seed)
    return tuple(sorted(hospitals, key=lambda hospital: hospital.name))


# --- images -----------------------------------------------------------------------------------------------------------


def _with_images(
    hospitals: Sequence[Hospital],
    sources: Mapping[str, _Source],
    root: Path,
    spec: ImageSpec,
    cache: Path,
    ask: Ask,
    seed: int,
) -> list[Hospital]:
    """The same hospitals, their patients with images; each folder is searched once, however many hospitals it holds.

    Where a language model writes from the images, texts come with them. `seed`: chooses its prompts.
    """
    problems: list[Problem] = []
    whole: list[Hospital] = []
    searched: dict[Path, tuple[Finds | None, Callable[[Study], str | None]]] = {}
    for hospital in hospitals:
        source = sources[hospital.name]
        config = source.document.value
        own_cache = cache if config.cache.folder is None else root / config.cache.folder
        try:
            finds, owner = searched.get(source.document.path) or _search(source, root, ask)
            searched[source.document.path] = finds, owner
            ids = hospital.patients.ids
            made = images.prepare(source.document, root, spec, ids, finds, owner, own_cache, ask)
        except DataError as error:
            problems += error.problems
            continue
        patients = replace(
            hospital.patients,
            image=made.image,
            slices=made.slices,
            targets=made.targets,
            present={**hospital.patients.present, "image": made.present},
        )
        warnings = (*hospital.warnings, *made.warnings)
        whole.append(
            replace(hospital, patients=patients, warnings=warnings, images=made.summary, instances=made.instances)
        )
    problems += _without_any(whole, sources) if ask.all else []
    if problems:
        raise DataError(dict.fromkeys(problems))
    return [_written(hospital, sources[hospital.name].text, spec, ask, seed) for hospital in whole]


def _written(hospital: Hospital, source: texts.Source | None, spec: ImageSpec, ask: Ask, seed: int) -> Hospital:
    """The hospital with the texts of its language model, if it has one and the study allows it."""
    if source is None or source.writer is None:
        return hospital
    assert hospital.images is not None, "a study in which a model writes looks at images"
    summary = hospital.images
    chosen = {one.patient: one for one in summary.chosen}

    def shown(place: int) -> Slices | str:
        one = chosen.get(hospital.patients.ids[place])
        return images.slices_of(one, spec, summary.cache) if one else "no image"

    kept = Path(summary.cache) / "reports"
    patients, text, noticed = texts.write(
        source, hospital.name, hospital.patients, hospital.sentences, shown, kept, seed, ask.watch
    )
    return replace(hospital, patients=patients, text=text, warnings=(*hospital.warnings, *noticed), sentences=())


def _without_any(hospitals: Sequence[Hospital], sources: Mapping[str, _Source]) -> Iterator[Problem]:
    """Folders of images of which nobody in the table has one: the mapping is wrong."""
    for document in {id(one.document): one.document for one in sources.values()}.values():
        found = [one.images for one in hospitals if one.images and sources[one.name].document is document]
        if document.value.images is not None and found and not any(one.chosen for one in found):
            counts = sum((Counter(one.counts) for one in found), Counter[Reason]())
            told = [f"{reason}: {count}" for reason, count in counts.items()]
            if unmatched := max(one.unmatched for one in found):
                told.append(f"{unmatched} studies belong to nobody in the table")
            reasons = ", ".join(told) or "no study is theirs"
            message = f"no patient of hospital '{document.value.hospital}' has a usable image ({reasons})"
            hint = "check images.folder and images.link; ich-client check --patient ID says what became of one"
            yield Problem(message, document.where("images"), hint)


def _search(source: _Source, root: Path, ask: Ask) -> tuple[Finds | None, Callable[[Study], str | None]]:
    """What a document's folder of images holds, and whose each study is."""
    config = source.document.value.images
    if config is None:
        return None, lambda study: None
    ids: dict[int, str] = {}
    for part in source.parts:
        ids |= _identifiers(part, source.sheet, source.document)[0]
    owner = owners(source.document, source.sheet, ids, root)
    return find(root / config.folder, config, source.document.where("images", "folder"), ask.watch), owner


def _shared_patients(hospitals: Sequence[Hospital]) -> list[Problem]:
    """Hospitals that bring the same patients: none of them could be held out."""
    where: dict[tuple[str, bytes, int], list[int]] = {}
    for index, hospital in enumerate(hospitals):
        patients = hospital.patients
        for identifier, row, label in zip(patients.ids, patients.table, patients.labels, strict=True):
            where.setdefault((identifier, row.tobytes(), int(label)), []).append(index)
    shared = Counter(pair for found in where.values() if len(found) > 1 for pair in combinations(sorted(set(found)), 2))
    problems = []
    for (one, other), count in shared.items():
        first, second = hospitals[one], hospitals[other]
        if 2 * count > min(len(first.patients), len(second.patients)):
            message = (
                f"hospitals '{first.name}' and '{second.name}' have {count} patients with the same number and data"
            )
            hint = "one table was taken for two hospitals: nobody would be held out of the other's training"
            problems.append(Problem(message, hint=hint))
    return problems


def _unmapped(document: Document[HospitalConfig], federation: Federation, sheet: Sheet | None) -> list[Problem]:
    mapped = document.value.table.columns
    missing = [name for name in federation.needed if name not in mapped]
    problems = []
    for name in missing:
        use = "its subgroups" if name in federation.grouped else "the outcome"
        use = "its text's template" if name in federation.spoken else use
        use = "a predictor" if name in federation.predictors else use
        same = [column for column in (sheet.header if sheet else ()) if column.casefold() == name.casefold()]
        hint = f"add {name}: {{from: {same[0] if same else 'COLUMN'}}}"
        problems.append(
            Problem(f"the study needs '{name}' ({use}), and it is not mapped", document.where("table", "columns"), hint)
        )
    return problems


# --- rows to hospitals ------------------------------------------------------------------------------------------------


def _parts(sheet: Sheet, document: Document[HospitalConfig]) -> tuple[list[_Part], list[Problem]]:
    """The hospitals of a sheet: one, or one for each value of `split_by` with enough rows."""
    table, name = document.value.table, document.value.hospital
    if table.split_by is None:
        return [_Part(name, list(range(len(sheet.rows))))], []
    where = document.where("table", "split_by")
    if table.split_by not in sheet.header:
        return [], [Problem(f"no column '{table.split_by}' in {sheet.name}", where, sheet.known(table.split_by))]
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(sheet.column(table.split_by)):
        groups.setdefault(value, []).append(row)
    problems: list[Problem] = []
    if nowhere := groups.pop("", []):
        hint = "fill it in, or delete these rows"
        problems.append(Problem(f"no hospital: '{table.split_by}' is empty", sheet.place(nowhere), hint))
    least = table.min_patients or 1
    parts = []
    for value, rows in groups.items():
        hospital = f"{name}-{_slug(value)}"
        if len(rows) >= least and not re.fullmatch(NAME, hospital):
            message = (
                f"'{table.split_by}' {value[:40]!r} gives the hospital's name '{hospital[:80]}', which is too long"
            )
            problems.append(Problem(message, sheet.place(rows), "names have 64 characters at most: shorten it"))
        elif len(rows) >= least:
            parts.append(_Part(hospital, rows))
    most = max(map(len, groups.values()), default=least)
    if most < least:
        message = f"none of the {len(groups)} hospitals of {sheet.name} has {least} patients"
        problems.append(
            Problem(message, document.where("table", "min_patients"), f"the largest has {most}: lower min_patients")
        )
    return parts, problems


def _slug(value: str) -> str:
    """A value of `split_by` as it may stand in a hospital's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", value.lower()).strip("-")


def _identifiers(part: _Part, sheet: Sheet, document: Document[HospitalConfig]) -> tuple[dict[int, str], list[Problem]]:
    """The patient of each row; the number of the row where the mapping names no column."""
    column = document.value.table.patient
    if column is None:
        return {row: str(row + 1) for row in part.rows}, []
    cells = sheet.column(column)
    problems = []
    if nameless := [row for row in part.rows if not cells[row]]:
        hint = "fill it in, or leave table.patient out if every row is a patient"
        problems.append(Problem(f"no patient identifier in '{column}'", sheet.place(nameless, 3), hint))
    counts = Counter(cells[row] for row in part.rows if cells[row])
    first = next((cell for cell, count in counts.items() if count > 1), None)
    if first is not None:
        rows = [row for row in part.rows if cells[row] == first]
        others = sum(count > 1 for count in counts.values()) - 1
        more = f"; so do {others} more" if others else ""
        hint = "keep one row per patient: delete the copy, or merge the rows"
        problems.append(
            Problem(f"one patient identifier ('{column}') has {len(rows)} rows{more}", sheet.place(rows, 5), hint)
        )
    return {row: cells[row] for row in part.rows}, problems


# --- rows to patients -------------------------------------------------------------------------------------------------


def _hospitals(
    parts: Sequence[_Part],
    sheet: Sheet,
    document: Document[HospitalConfig],
    federation: Federation,
    source: texts.Source | None,
) -> tuple[list[Hospital], list[Problem]]:
    """The hospitals of one sheet. A problem anywhere in it leaves them out, and every one is returned."""
    table, outcome = document.value.table, federation.task.outcome
    problems: list[Problem] = []
    identified = table.patient is None or table.patient in sheet.header
    if table.patient is not None and not identified:
        message, where = f"no column '{table.patient}' in {sheet.name}", document.where("table", "patient")
        problems.append(Problem(message, where, sheet.known(table.patient)))
    rows = sorted(row for part in parts for row in part.rows)
    columns: dict[str, dict[int, Value]] = {}
    for name, variable in federation.needed.items():
        if name not in table.columns:
            continue
        found = values.faults(name, variable, sheet, document)
        if not found and rows:
            cells, found = values.convert(name, variable, sheet, rows, document)
            if not found:
                columns[name] = dict(zip(rows, cells, strict=True))
        problems += found
    hospitals = []
    for part in parts:
        ids: dict[int, str] = {}
        if identified:
            ids, found = _identifiers(part, sheet, document)
            problems += found
        if outcome.variable not in columns:
            continue
        kept, excluded = _kept(part, columns, federation)
        labels = np.array([_label(columns[outcome.variable][row], federation) for row in kept], dtype=np.int64)
        unusable, warnings = _outcome_problems(part, labels, excluded, document, federation)
        problems += unusable
        if problems or not federation.needed.keys() <= columns.keys():  # an unmapped one is said by the caller
            continue
        chosen = {name: [columns[name][row] for row in kept] for name in {**federation.predictors, **federation.spoken}}
        encoded = clinical.encode(chosen, federation.modalities.table)
        groups = {
            each.variable: subgroups.members(
                each, federation.grouped[each.variable], [columns[each.variable][row] for row in kept]
            )
            for each in federation.evaluation.subgroups
        }
        patients = Patients(tuple(ids[row] for row in kept), encoded, labels, groups=groups)
        warnings += _predictor_warnings(part.name, chosen, patients, document, federation)
        warnings += _unknown_mappings(document, federation)
        if federation.privacy is not None and table.patient is None:
            message = (
                f"patients of hospital '{part.name}' are told apart by their row: the ledger cannot know them again"
            )
            hint = "name the column of the identifier (table.patient); a patient with two rows would count as two"
            warnings.append(Problem(message, document.where("table", "file"), hint))
        summary = None
        sentences: tuple[str | None, ...] = ()
        if source is not None and source.writer is not None:  # the images come later, and with them the texts
            sentences = tuple(texts.templates(source, kept, columns))
        elif source is not None:
            try:
                patients, summary, noticed = texts.add(source, part.name, patients, kept, columns, sheet)
            except DataError as error:
                problems += error.problems
                continue
            warnings += noticed
        limits = document.value.limits
        hospitals.append(Hospital(part.name, patients, limits, excluded, tuple(warnings), summary, sentences=sentences))
    return hospitals, problems


def _kept(
    part: _Part, columns: Mapping[str, Mapping[int, Value]], federation: Federation
) -> tuple[list[int], dict[Exclusion, int]]:
    """The rows that make patients, and how many do not, by reason."""
    table, outcome = federation.modalities.table, columns[federation.task.outcome.variable]
    imputed = [name for name, variable in table.chosen.items() if variable.missing == "impute" and name in columns]
    known = [row for row in part.rows if outcome[row] is not None]
    complete = [row for row in known if all(columns[name][row] is not None for name in imputed)]
    kept = complete if table.complete_cases else known
    counts = {Exclusion.OUTCOME: len(part.rows) - len(known), Exclusion.PREDICTOR: len(known) - len(kept)}
    return kept, {reason: count for reason, count in counts.items() if count}


def _label(value: Value, federation: Federation) -> bool:
    assert value is not None, "rows with an unknown outcome were left out"
    return federation.task.outcome.is_positive(value)


def _outcome_problems(
    part: _Part,
    labels: NDArray[np.int64],
    excluded: Mapping[Exclusion, int],
    document: Document[HospitalConfig],
    federation: Federation,
) -> tuple[list[Problem], list[Problem]]:
    """What makes a hospital's outcome unusable, and what is only worth a warning."""
    variable = federation.task.outcome.variable
    where = document.where("table", "columns", variable)
    if not len(labels):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in excluded.items())
        hint = f"check the codes and missing values of '{variable}'"
        return [Problem(f"hospital '{part.name}' has no usable patient ({reasons})", where, hint)], []
    if settings := too_few(labels, federation.evaluation):
        message = f"hospital '{part.name}' has too few patients ({len(labels)}) to be split by {settings}"
        hint = "leave this hospital out, or ask the coordinator for fewer parts or other shares"
        return [Problem(message, document.where("hospital"), hint)], []
    if 0 < labels.sum() < len(labels):
        return [], []
    which = "every" if labels[0] else "no"
    message = f"{which} patient of hospital '{part.name}' has the positive outcome ({len(labels)} patients)"
    if federation.task.one_class_hospitals == "keep":
        return [], [Problem(message, where, f"if that cannot be, check the codes of '{variable}'")]
    hint = f"check the codes of '{variable}'; if the outcome is rare, the study may say task.one_class_hospitals: keep"
    return [Problem(message, where, hint)], []


# --- warnings ---------------------------------------------------------------------------------------------------------


def _predictor_warnings(
    hospital: str,
    chosen: Mapping[str, Sequence[Value]],
    patients: Patients,
    document: Document[HospitalConfig],
    federation: Federation,
) -> list[Problem]:
    """What the network sees, in the table or in sentences: missing for everyone, or telling the outcome alone."""
    warnings = []
    for name, cells in chosen.items():
        if all(cell is None for cell in cells):
            message = f"'{name}' is missing for all {len(cells)} patients of hospital '{hospital}'"
            instead = "the other hospitals' values stand in" if name in federation.predictors else "it has no sentence"
            hint = f"check the mapping; if it was never measured, {instead}"
            warnings.append(Problem(message, document.where("table", "columns", name), hint))
        area = max(_separation(feature, patients.labels) for feature in _features(cells, federation.needed[name]))
        if area > LEAKING_AUC:
            message = f"'{name}' alone tells the outcome at hospital '{hospital}' (AUC {area:.3f})"
            hint = "make sure that it is recorded before the outcome, and not because of it"
            warnings.append(Problem(message, document.where("table", "columns", name), hint))
    return warnings


def _features(cells: Sequence[Value], variable: Variable) -> list[NDArray[np.float64]]:
    """A number as it is, a category as one yes or no per level; NaN where missing."""
    if not variable.codes:
        return [np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)]
    missing = np.array([cell is None for cell in cells])
    levels = [np.array([cell == level for cell in cells], dtype=np.float64) for level in variable.codes]
    return [missing.astype(np.float64), *(np.where(missing, np.nan, level) for level in levels)]


def _separation(feature: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """How well one feature tells the classes apart, in either direction; 0.5 where too few patients can say."""
    known = ~np.isnan(feature)
    if np.bincount(labels[known], minlength=2).min() < LEAK_NEEDS:
        return 0.5
    area, _ = delong(labels[known], feature[known])
    return max(area, 1 - area)


def _unknown_mappings(document: Document[HospitalConfig], federation: Federation) -> list[Problem]:
    variables = federation.modalities.table.variables
    return [
        Problem(
            f"the study has no variable '{name}'",
            document.where("table", "columns", name),
            likely(name, list(variables), "variables"),
        )
        for name in document.value.table.columns
        if name not in variables
    ]
