"""A hospital's texts as token ids: the template's sentences, its own reports, or a language model's; what is noticed in them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ich_client import identifiers
from ich_client.cells import meaning
from ich_client.hospital import PATIENT, HospitalConfig, LocalOptions, ReportText
from ich_client.report_endpoint import Endpoint, EndpointOptions
from ich_client.report_writer import Model, ReportWriter, Slices
from ich_client.sheets import Sheet, likely
from ich_models import report_text, tokens
from ich_models.batch import Patients
from ich_models.clinical import Value
from ich_models.errors import ConfigurationError, DataError, Problem
from ich_models.federation import Federation
from ich_models.text_spec import TextSpec
from ich_models.tokens import Tokens, Vocabulary
from ich_models.variables import Table
from ich_models.yaml_config import Document

MOST_UNKNOWN: Final = 0.1
"""A larger share of unknown words is a warning: another language, or the wrong vocabulary."""

LARGEST_REPORT: Final = 1_000_000
"""Bytes; what is larger is no report."""


@dataclass(frozen=True)
class TextSummary:
    """What a hospital's texts are like; local, in full.

    `tokens`: mean per text, [CLS] and [SEP] included, before anything is cut off. `cut`: share of the texts that do not
    fit. `unknown`: share of all words and pieces. `identifiers`: texts that hold what may identify somebody, by kind.
    `writer`: the language model that was asked, empty if none was; `by_model`: patients whose text is its answer;
    `by_template`: why the template stands in for the others.
    """

    patients: int
    tokens: float
    cut: float
    unknown: float
    identifiers: Mapping[str, int]
    writer: str = ""
    by_model: int = 0
    by_template: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where the texts of one hospital file come from, all of it checked."""

    spec: TextSpec
    table: Table
    vocabulary: Vocabulary
    document: Document[HospitalConfig]
    root: Path

    @property
    def report(self) -> ReportText | None:
        """Where the hospital's own reports are; None for the template, and where the hospital has none."""
        given = self.document.value.text
        return given if self.spec.source == "report" and given is not None and given.has_reports else None

    @property
    def writer(self) -> EndpointOptions | LocalOptions | None:
        """The hospital's language model, where the study allows it to write; None where either does not want it."""
        given = self.document.value.text
        return given.writer if self.spec.writer == "allowed" and given is not None else None


def source(
    document: Document[HospitalConfig], root: Path, federation: Document[Federation], sheet: Sheet
) -> tuple[Source | None, list[Problem]]:
    """What the study wants of a hospital's texts, and what is wrong with it; None without a text modality.

    `root`: the folder that the hospital's relative paths start from.
    """
    modalities = federation.value.modalities
    if modalities.text is None:
        return None, []
    try:
        vocabulary = _vocabulary(document, root, federation)
    except ConfigurationError as error:
        return None, list(error.problems)
    made = Source(modalities.text, modalities.table, vocabulary, document, root)
    problems = []
    if made.report and made.report.column and made.report.column not in sheet.header:
        message = f"no column '{made.report.column}' in {sheet.name}"
        problems.append(Problem(message, document.where("text", "column"), sheet.known(made.report.column)))
    if made.report and made.report.folder and not (root / made.report.folder).is_dir():
        message = f"there is no folder {root / made.report.folder}"
        problems.append(Problem(message, document.where("text", "folder"), "correct it; it is relative to the data"))
    return (None if problems else made), problems


def _vocabulary(document: Document[HospitalConfig], root: Path, federation: Document[Federation]) -> Vocabulary:
    """The study's vocabulary. Raises ConfigurationError for a copy that is not the study's, and for a network that it
    does not fit: of a pinned vocabulary this is seen here first, where the file is.
    """
    modalities = federation.value.modalities
    assert modalities.text is not None
    pinned = modalities.text.vocabulary
    if pinned is None:
        return tokens.built_in(modalities.text, modalities.table)
    files = document.value.weights
    if pinned.name not in files:
        hint = f"add {pinned.name}: PATH; its SHA-256 begins {pinned.sha256[:12]}"
        if files:
            hint += f" ({likely(pinned.name, list(files), 'named here')})"
        message = f"the study needs the vocabulary '{pinned.name}', and no file is given for it"
        raise ConfigurationError(message, where=document.where("weights"), hint=hint)
    vocabulary = tokens.read(root / files[pinned.name], pinned, modalities.text.lower_case)
    problems = [
        Problem(message, federation.where(*place), hint)
        for place, message, hint in tokens.contradictions(vocabulary, federation.value.network)
    ]
    if problems:
        raise ConfigurationError(problems)
    return vocabulary


# --- one hospital -----------------------------------------------------------------------------------------------------


def add(
    given: Source,
    name: str,
    patients: Patients,
    rows: Sequence[int],
    columns: Mapping[str, Mapping[int, Value]],
    sheet: Sheet,
) -> tuple[Patients, TextSummary, list[Problem]]:
    """The patients of hospital `name` with their texts, what these are like, and warnings. A patient without a text
    stays in, marked.

    `rows`: each patient's row of the sheet; `columns`: variable -> row -> value. Raises DataError for files that cannot
    be read as text.
    """
    texts: list[str | None]
    warnings: list[Problem] = []
    found: Mapping[str, int] = {}
    if given.spec.source == "template":
        texts = templates(given, rows, columns)
        warnings += _unused_writer(given)
    else:
        texts, places = _reports(given, patients, rows, sheet)
        found, warnings = _identifiers(given, name, patients, texts, places)
    patients, summary, noticed = _encoded(given, name, patients, texts)
    return patients, replace(summary, identifiers=found), [*warnings, *noticed]


def templates(given: Source, rows: Sequence[int], columns: Mapping[str, Mapping[int, Value]]) -> list[str | None]:
    """The template's sentences on each row; None where nothing is known."""
    spoken = given.spec.spoken(given.table)
    return [
        report_text.write({one: columns[one][row] for one in spoken}, given.spec, given.table) or None for row in rows
    ]


def _encoded(
    given: Source, name: str, patients: Patients, texts: Sequence[str | None]
) -> tuple[Patients, TextSummary, list[Problem]]:
    """The patients with these texts, what these are like, and what is noticed."""
    encoded = tokens.encode(texts, given.vocabulary, given.spec.tokens)
    pieces, present = int(encoded.pieces.sum()), int(encoded.present.sum())
    summary = TextSummary(
        patients=present,
        tokens=pieces / present + 2 if present else 0.0,
        cut=int(encoded.cut.sum()) / present if present else 0.0,
        unknown=int(encoded.unknown.sum()) / pieces if pieces else 0.0,
        identifiers={},
    )
    marked = {**patients.present, "text": encoded.present}
    return replace(patients, text=encoded.ids, present=marked), summary, list(_noticed(given, name, encoded))


def _unused_writer(given: Source) -> Iterator[Problem]:
    """A language model that the study does not ask for: the template writes, at every hospital alike, and that is said."""
    config = given.document.value.text
    if config is not None and config.writer is not None and given.writer is None:
        hint = "nothing to do; only a study with modalities.text.writer: allowed has texts written by a model"
        where = given.document.where("text", "writer")
        yield Problem("the study does not allow a language model to write; its template does", where, hint)


# --- written by a language model --------------------------------------------------------------------------------------


def write(
    given: Source,
    name: str,
    patients: Patients,
    sentences: Sequence[str | None],
    shown: Callable[[int], Slices | str],
    kept: Path,
    seed: int,
    watch: Callable[[str, int, int | None], None],
) -> tuple[Patients, TextSummary, list[Problem]]:
    """The patients of hospital `name` with texts of its language model, or of the template where an answer is not taken.

    `sentences`: of the template, by patient; `shown`: a patient's brain-masked slices, or why there are none;
    `kept`: folder of the answers. Raises IchError if the model cannot be asked: training must not wait for it, nor learn
    from another mixture of texts than the next start would.
    """
    options = given.writer
    assert options is not None, "a hospital with a language model"
    writer = ReportWriter(_model(given, options), kept, seed)
    texts: list[str | None] = []
    reasons: Counter[str] = Counter()
    for place, (identifier, template) in enumerate(zip(patients.ids, sentences, strict=True)):
        slices = shown(place)
        if isinstance(slices, str):
            reasons[slices] += 1
            texts.append(template)
        else:
            written = writer.write(identifier, slices, template or "")
            reasons[written.refused] += 1
            texts.append(written.text or None)
        watch("reports", place + 1, len(patients.ids))
    by_model = reasons.pop("", 0)
    patients, summary, warnings = _encoded(given, name, patients, texts)
    if by_model < len(patients) / 2:
        message = f"the language model wrote {by_model} of {len(patients)} texts of hospital '{name}'"
        most = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
        hint = f"the template wrote the others ({most})"
        warnings.append(Problem(message, given.document.where("text", "writer"), hint))
    said = options.model if isinstance(options, EndpointOptions) else options.folder
    return patients, replace(summary, writer=said, by_model=by_model, by_template=dict(reasons.most_common())), warnings


def _model(given: Source, options: EndpointOptions | LocalOptions) -> Model:
    try:
        if isinstance(options, EndpointOptions):
            return Endpoint(options)
        from ich_client.report_local import LocalModel  # torch and transformers

        return LocalModel(given.root / options.folder)
    except ConfigurationError as error:
        place = given.document.where("text", "writer")
        raise ConfigurationError(replace(one, where=one.where or place) for one in error.problems) from error


def _noticed(given: Source, name: str, encoded: Tokens) -> Iterator[Problem]:
    where = given.document.where("text")
    if given.spec.source == "report" and given.report is None:
        hint = (
            "add text: {column: COLUMN} or text: {folder: FOLDER}; without reports its patients take part all the same"
        )
        yield Problem(f"the study reads reports, and hospital '{name}' names none", where, hint)
    elif not encoded.present.any():
        hint = "check the mapping"
        if given.report and given.report.folder:
            hint = f"looked for files {given.report.pattern} in {given.root / given.report.folder}"
        yield Problem(f"hospital '{name}' has no text of any patient", where, hint)
    elif (share := encoded.unknown.sum() / encoded.pieces.sum()) > MOST_UNKNOWN:
        hint = "is the text of another language, or in another encoding, than the vocabulary?"
        yield Problem(f"{share:.0%} of the words of hospital '{name}' are unknown".replace("%", " %"), where, hint)


# --- the hospital's own reports ---------------------------------------------------------------------------------------


def _reports(
    given: Source, patients: Patients, rows: Sequence[int], sheet: Sheet
) -> tuple[list[str | None], list[str]]:
    """Each patient's report, None where there is none, and the place that it stands at."""
    report = given.report
    if report is None:
        return [None] * len(rows), [""] * len(rows)
    if report.column is not None:
        cells = sheet.column(report.column)
        missing = {meaning(code) for code in ("", *given.document.value.table.missing)}
        texts = [None if meaning(cells[row]) in missing else cells[row] for row in rows]
        return texts, [sheet.place([row]) for row in rows]
    assert report.folder is not None
    texts, places = [], []
    problems: list[Problem] = []
    for identifier, row in zip(patients.ids, rows, strict=True):
        path = given.root / report.folder / report.pattern.replace(PATIENT, identifier)
        places.append(str(path))
        texts.append(None)
        try:
            if set(identifier) & set("/\\\0") or identifier in (".", ".."):
                hint = "reports in files need identifiers that a file can be named by"
                raise DataError(
                    "the patient's identifier cannot be part of a file's name", where=sheet.place([row]), hint=hint
                )
            texts[-1] = _text_of(path, report)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return texts, places


def _text_of(path: Path, report: ReportText) -> str | None:
    """A file's text; None if there is no such file. Raises DataError if it cannot be read as text."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_REPORT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise DataError(message, where=str(path), hint="make it readable for the user who runs this") from None
    if len(content) > LARGEST_REPORT:
        hint = "name the folder and the pattern of the reports alone"
        raise DataError(f"larger than a report can be ({LARGEST_REPORT:,} bytes)", where=str(path), hint=hint)
    try:
        return content.decode(report.encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        message = f"the byte 0x{content[error.start]:02x} is not {report.encoding}"
        hint = "set text.encoding to what the file was saved in (latin-1, cp1252, ...)"
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(message, where=f"{path}: line {line}", hint=hint) from None


def _identifiers(
    given: Source, name: str, patients: Patients, texts: Sequence[str | None], places: Sequence[str]
) -> tuple[dict[str, int], list[Problem]]:
    """How many texts hold what may identify somebody, by kind, and a warning for each kind with its first places."""
    identified = given.document.value.table.patient is not None  # else the identifiers are the numbers of the rows
    first: dict[identifiers.Kind, str] = {}
    counts: Counter[identifiers.Kind] = Counter()
    for identifier, text, place in zip(patients.ids, texts, places, strict=True):
        here = {found.kind: found for found in reversed(identifiers.find(text or "", identifier if identified else ""))}
        counts.update(here.keys())
        for kind, found in here.items():
            line = f", line {found.line} of the text" if found.line > 1 else ""
            first.setdefault(kind, f"{place}{line}, character {found.character}")
    warnings, written = [], sum(text is not None for text in texts)
    for kind in identifiers.Kind:
        if counts[kind]:
            more = f" (and in {counts[kind] - 1} more)" if counts[kind] > 1 else ""
            message = f"{counts[kind]} of {written} reports of hospital '{name}' hold what looks like {kind}"
            hint = "reports stay here, but a model learns from every word of them: take it out of the texts"
            warnings.append(Problem(message, first[kind] + more, hint))
    return {str(kind): counts[kind] for kind in identifiers.Kind if counts[kind]}, warnings
