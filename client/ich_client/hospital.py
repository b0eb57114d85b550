"""`hospital.yaml`: where a hospital's table, reports and images are, how columns map to the study's, and its limits."""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path, PurePath
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    model_validator,
)

from ich_client.cells import as_text, meaning
from ich_client.image_mapping import Images
from ich_client.report_endpoint import EndpointOptions
from ich_client.sheet_file import Encoding, SheetFile, Title
from ich_models.errors import ConfigurationError, Problem
from ich_models.federation import Bytes
from ich_models.networks.options import PINNED
from ich_models.strict import Name, Strict
from ich_models.yaml_config import Document, load


def _text(value: object) -> object:
    """YAML's 99, 1.0 and empty value are texts here, as they stand in the table."""
    return value if isinstance(value, list | dict) else as_text(value)


Text = Annotated[str, BeforeValidator(_text)]
"""A value as it stands in the table."""

Texts = Annotated[list[Text], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
"""One value or a list of values."""


class Column(Strict):
    """A variable that stands in one column of the table."""

    source: Annotated[Title | None, Field(alias="from")] = None
    """The column's name; the variable's own name if it is left out."""
    unit: str | None = None
    """The hospital's unit of a number; the study's unit if it is left out."""
    missing: Texts = []
    """Values of this column that mean missing; an empty cell always does, unless `codes` names it."""
    codes: dict[Text, Text] = {}
    """The hospital's code -> the study's level (or number)."""
    ignore_case: bool = False
    """Whether 'y' is the same code as 'Y'."""
    out_of_range: Literal["refuse", "missing"] = "refuse"
    """What becomes of a number outside the study's range."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: dict[object, str] = {}
        for code in (*self.codes, *self.missing):
            same = meaning(code, self.ignore_case)
            if same in seen:
                raise ValueError(f"'{seen[same]}' and '{code}' are the same code, named twice | keep one of them")
            seen[same] = code
        return self

    def sources(self, variable: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The columns of the table that are read, each with the key that names it."""
        yield ("from",), self.source or variable


class Interval(Strict):
    """A variable that is the time between two dates; the dates themselves stay in the table."""

    until: Annotated[Title, Field(alias="date")]
    """Column of the later date."""
    since: Title
    """Column of the earlier date, or one ISO date for all patients."""
    format: str | None = None
    """How both columns write dates ('%d.%m.%Y'); ISO 8601 if it is left out."""
    months: dict[Title, Annotated[int, Field(ge=1, le=12)]] = {}
    """The names that %b or %B stands for, where they are not English."""
    missing: Texts = []
    """Values of either column that mean missing; an empty cell always does."""
    out_of_range: Literal["refuse", "missing"] = "refuse"
    """What becomes of an interval outside the study's range."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.months and "%b" not in (self.format or "").lower():
            raise ValueError("months are named, and format has no place for a name | write it with %b: '%d-%b-%y'")
        if self.format is not None:
            moment = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
            try:
                datetime.strptime(moment.strftime(self.format), self.format)  # noqa: DTZ007
            except (ValueError, re.error) as error:
                raise ValueError(f"format '{self.format}' cannot be read: {error} | write it like '%d.%m.%Y'") from None
        if self.fixed:
            try:
                date.fromisoformat(self.since)
            except ValueError as error:
                raise ValueError(f"since: {self.since} is no day: {error}") from None
        return self

    @property
    def fixed(self) -> bool:
        """Whether `since` is a date and not a column."""
        parts = self.since.split("-")
        return [len(part) for part in parts] == [4, 2, 2] and all(part.isdecimal() for part in parts)

    def sources(self, variable: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The columns of the table that are read, each with the key that names it."""
        yield ("date",), self.until
        if not self.fixed:
            yield ("since",), self.since


class Condition(Strict):
    """What one column must hold: one of the codes, or none of them."""

    any_of: Annotated[Texts, Field(alias="in")] = []
    none_of: Annotated[Texts, Field(alias="not")] = []

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("write one condition | a code, a list of codes, or {not: code}")
        return self


def _condition(value: object) -> object:
    return value if isinstance(value, dict) else {"in": value}


class Case(Strict):
    """A value, and what the row's columns must hold for it."""

    value: Text
    where: Annotated[dict[Text, Annotated[Condition, BeforeValidator(_condition)]], Field(min_length=1)]


class Cases(Strict):
    """A variable that follows from several columns. A row that fits no case is missing; one that fits two is an error."""

    cases: Annotated[list[Case], Field(min_length=1)]
    ignore_case: bool = False

    def sources(self, variable: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The columns of the table that are read, each with the key that names it."""
        for index, case in enumerate(self.cases):
            for column in case.where:
                yield ("cases", index, "where", column), column


def _kind(value: object) -> str:
    keys = value if isinstance(value, dict) else {}
    return "an interval" if "date" in keys else "a list of cases" if "cases" in keys else "a column"


def _shorthand(value: object) -> object:
    """`X: COL` is `X: {from: COL}`, and `X:` is `X: {}`."""
    return {} if value is None else {"from": value} if isinstance(value, str) else value


ColumnMapping = Annotated[
    Annotated[Column, Tag("a column")]
    | Annotated[Interval, Tag("an interval")]
    | Annotated[Cases, Tag("a list of cases")],
    Discriminator(_kind),
    BeforeValidator(_shorthand),
]


class TableFile(SheetFile):
    """A table of patients, one row each, and what its columns mean."""

    patient: Title | None = None
    """Column that identifies the patient; the number of the row if it is left out."""
    split_by: Title | None = None
    """Column whose every value is a hospital of its own, named hospital-value."""
    min_patients: PositiveInt | None = None
    """Hospitals of `split_by` with fewer rows are left out."""
    missing: Texts = []
    """Values that mean missing in every column."""
    columns: dict[Title, ColumnMapping]
    """The study's variable -> where the table holds it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_patients is not None and self.split_by is None:
            raise ValueError(
                "min_patients chooses among the hospitals of split_by | add split_by: COLUMN, or leave it out"
            )
        return self


PATIENT = "{patient}"
"""What stands for the patient's identifier in the name of a file."""


class LocalOptions(Strict):
    """A vision-language model in a folder of this machine."""

    kind: Literal["folder"]
    folder: Title
    """Relative to the data folder; in the layout of transformers."""


Writer = Annotated[EndpointOptions | LocalOptions, Field(discriminator="kind")]


class ReportText(Strict):
    """Where a patient's report text is: in a column of the table, or in a file of its own; and who else may write it."""

    column: Title | None = None
    """Column of the table."""
    folder: Title | None = None
    """Folder of text files, relative to the data folder."""
    pattern: Title = f"{PATIENT}.txt"
    """Name of a patient's file in `folder`."""
    encoding: Encoding = "utf-8"
    """Of the files."""
    writer: Writer | None = None
    """A language model inside the hospital, for studies that allow it to write the text from the image; off if left out."""

    @property
    def has_reports(self) -> bool:
        """Whether the hospital has reports of its own."""
        return self.column is not None or self.folder is not None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.column is not None and self.folder is not None:
            raise ValueError("write one of column and folder | reports stand in the table, or in files")
        if not self.has_reports and self.writer is None:
            raise ValueError("write one of column and folder, or a writer | reports stand in the table, or in files")
        if not self.has_reports and self.model_fields_set & {"pattern", "encoding"}:
            raise ValueError("pattern and encoding are of files | leave them out, or name the folder")
        if self.column is not None and self.model_fields_set & {"pattern", "encoding"}:
            raise ValueError("pattern and encoding are of files | leave them out, or write folder in place of column")
        parts = PurePath(self.pattern)
        if PATIENT not in self.pattern or parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"'{self.pattern}' is no name of a patient's file | write it like '{PATIENT}.txt'")
        return self


_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"


class Limits(Strict):
    """What the hospital allows; it may tighten what the federation asks for."""

    small_cells: Annotated[int, Field(ge=0)] = 10
    """Counts below this do not leave the hospital, nor figures that tell them; the study may ask for more."""
    threads: PositiveInt = 1
    """Processor cores for training."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    """Where networks compute: cpu, cuda, cuda:1; auto takes the first CUDA device, if there is one."""
    micro_batch: PositiveInt | None = None
    """Patients at once on the device: a batch's gradient is added up over as many pieces as that takes. Where a loss
    compares patients, or layers look at the batch, it cannot be, and the batch stays whole."""
    hours: Annotated[str, Field(pattern=rf"^{_HOUR}-{_HOUR}$")] | None = None
    """When this hospital trains, in local time, as in '19:00-06:00'; always, if it is left out."""
    studies: list[Name] | None = None
    """Names of the studies that it takes part in; every one that is approved, if it is left out."""
    approval: Literal["required", "all"] = "required"
    """`required`: a study must be approved by people (ich-client approve); `all`: every study of the kit's server is."""
    privacy: Literal["optional", "required"] = "optional"
    """`required`: no study without differential privacy, and none that asks for exact figures unless none are sent."""
    epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """What all studies together may tell of a patient; without it, what each study that is approved promises."""
    send_metrics: bool = True
    """Whether figures of an evaluation may leave."""
    hospitals: Annotated[int, Field(ge=2, le=10_000)] = 100
    """How many hospitals a study may have: each is one more model of which this hospital tells figures."""
    answers: Annotated[int, Field(ge=1, le=1000)] = 5
    """How often the same is answered: a round after a resume; an evaluation. More would let a server probe."""


class PrivacySettings(Strict):
    """Where it is written down what private studies have taken from this hospital's patients."""

    ledger: Title | None = None
    """The folder of the ledger, of another hospital folder whose studies ask the same patients: both then add up. Relative
    to the folder of this file; by default a ledger of its own, privacy/ beside it."""


class CacheSettings(Strict):
    """Where what is made of images is kept, so that it is made once."""

    folder: Title | None = None
    """Relative to the data folder; by default beside the hospital's other records, or in the user's cache folder."""
    limit: Bytes = 50e9
    """Beyond this what was not used for longest is removed."""


class HospitalConfig(Strict):
    """`hospital.yaml`, validated. The server never sees it."""

    hospital: Name
    """The hospital's name; a prefix of the names where the table is split into several hospitals."""
    table: TableFile
    text: ReportText | None = None
    """Where report text is, for studies that read it."""
    weights: dict[Annotated[str, Field(pattern=PINNED)], Title] = {}
    """Files that a study asks every hospital to have (vocabularies, published weights): name -> path, relative to the
    data folder."""
    images: Images | None = None
    limits: Limits = Limits()
    privacy: PrivacySettings = PrivacySettings()
    cache: CacheSettings = CacheSettings()


def load_mappings(folder: Path) -> list[Document[HospitalConfig]]:
    """Every *.yaml of a folder, by file name. Raises one ConfigurationError with the problems of all of them."""
    if folder.is_dir():
        next(folder.iterdir(), None)  # a folder that may not be read is said to be so: glob would find nothing in it
    paths = sorted(path for path in folder.glob("*.yaml") if path.is_file())
    if not paths:
        message = "no hospital mapping (*.yaml) in this folder" if folder.is_dir() else "there is no such folder"
        raise ConfigurationError(message, where=str(folder), hint="write one hospital.yaml per table and put it here")
    documents: list[Document[HospitalConfig]] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            documents.append(load(path, HospitalConfig))
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return documents
