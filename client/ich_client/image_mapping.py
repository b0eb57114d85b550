"""`images:` of hospital.yaml: where a hospital's images are, whose they are, and what is done where they leave a choice."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from ich_client.sheet_file import SheetFile, Title
from ich_models.image_spec import HaemorrhageType, Sequence, Spacing
from ich_models.strict import Strict


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"'{value}' is no regular expression: {error} | write it like 'head|brain'") from None
    return value


Pattern = Annotated[Title, AfterValidator(_pattern)]
"""A regular expression that is looked for in a description, whatever the case of its letters."""


def compiled(pattern: str) -> re.Pattern[str]:
    """As it is looked for."""
    return re.compile(pattern, re.IGNORECASE)


# --- whose an image is ------------------------------------------------------------------------------------------------


class StudyLink(Strict):
    """A column of the table holds the StudyInstanceUID."""

    study: Title


class AccessionLink(Strict):
    """A column of the table holds the AccessionNumber."""

    accession: Title


class KeyMap(SheetFile):
    """A file says which patient of the table an image's patient is."""

    file: Annotated[Title, Field(alias="key_map")]
    """CSV, XLSX or Parquet, relative to the data folder."""
    image: Title
    """Its column with the PatientID of the images (BIDS subject)."""
    patient: Title
    """Its column with the patient of the table."""


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return next((key for key in ("study", "accession", "key_map") if key in value), "")
    if isinstance(value, StudyLink | AccessionLink | KeyMap):
        return {StudyLink: "study", AccessionLink: "accession", KeyMap: "key_map"}[type(value)]
    return "patient"


Link = Annotated[
    Annotated[Literal["patient"], Tag("patient")]
    | Annotated[StudyLink, Tag("study")]
    | Annotated[AccessionLink, Tag("accession")]
    | Annotated[KeyMap, Tag("key_map")],
    Discriminator(_kind),
]


# --- labels of slices -------------------------------------------------------------------------------------------------


class Labels(SheetFile):
    """A table of slice labels: one row per slice and one column per type, or one row per slice and type."""

    instance: Title
    """Column with the SOPInstanceUID of the slice."""
    columns: dict[HaemorrhageType, Title] = {}
    """One row per slice: the type -> its column. A type that is left out is unlabelled everywhere."""
    type: Title | None = None
    """One row per slice and type: the column that names the type ..."""
    label: Title | None = None
    """... and the column that says whether it is there."""
    types: dict[Title, HaemorrhageType] = {}
    """One row per slice and type: the hospital's name of a type -> the type; its own name needs none."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        long = self.type is not None and self.label is not None
        if bool(self.columns) == long or (self.columns and (self.type or self.label or self.types)):
            raise ValueError(
                "labels stand in one row per slice, or in one row per slice and type | "
                "write columns: {subdural: COLUMN, ...}, or type: COLUMN and label: COLUMN"
            )
        return self


# --- where the brain is -----------------------------------------------------------------------------------------------


class BrainWeights(Strict):
    """A network of the hospital's own that finds the brain in CT, as TorchScript: HU (1, 1, D, H, W) to probabilities."""

    file: Title
    """Relative to the data folder."""
    spacing: Spacing = (5.0, 1.0, 1.0)
    """mm of the grid that it wants: neck to crown, back to front, left to right."""


# --- all of it --------------------------------------------------------------------------------------------------------


class Images(Strict):
    """Where a hospital's images are, and how they are taken."""

    folder: Title
    """The folder that is searched with all folders below it, relative to the data folder."""
    format: Literal["dicom", "nifti"] = "dicom"
    """`nifti`: .nii and .nii.gz files with names in the form of BIDS."""
    link: Link = "patient"
    """Whose an image is: its PatientID (BIDS subject) is the table's patient, or a column or a file says so."""
    series: Pattern | None = None
    """Which series of a CT study is used, by its description (NIfTI: file name); by score if it is left out."""
    sequences: dict[Sequence, Pattern] = {}
    """Which series of an MR study is which sequence, by its description (NIfTI: file name), where headers do not tell."""
    missing_slices: Literal["refuse", "interpolate"] = "refuse"
    """What becomes of a series that lacks single slices."""
    masks: Title | None = None
    """Folder of brain masks (NIfTI, named as the table's patient: ID.nii.gz), in place of our own."""
    brain_weights: BrainWeights | None = None
    """A network that finds the brain in CT in place of our own method, which stands in where its result is implausible."""
    labels: Labels | None = None
    """What is seen on each slice, for networks that learn it."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.format == "nifti" and isinstance(self.link, StudyLink | AccessionLink):
            raise ValueError(
                "NIfTI files have no StudyInstanceUID and no AccessionNumber | link: patient, or a key_map"
            )
        if self.format == "nifti" and self.labels is not None:
            raise ValueError("NIfTI slices have no SOPInstanceUID that a label could name | labels need format: dicom")
        return self
