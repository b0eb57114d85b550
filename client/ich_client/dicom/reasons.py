"""Why a file, a series or an image is not used: the closed list of reasons, each with what to do about it."""

from enum import StrEnum
from typing import Final

from ich_models.errors import DataError, Problem


class Reason(StrEnum):
    """A reason says nothing about the patient: reasons may be counted and named where paths and identifiers may not."""

    UNREADABLE = "UNREADABLE"
    NO_PREAMBLE = "NO_PREAMBLE"
    HEADER = "HEADER"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    MODALITY = "MODALITY"
    SECONDARY_CAPTURE = "SECONDARY_CAPTURE"
    LOCALIZER = "LOCALIZER"
    DERIVED = "DERIVED"
    MOSAIC = "MOSAIC"
    COLOUR = "COLOUR"
    BURNED_IN = "BURNED_IN"
    FEW_SLICES = "FEW_SLICES"
    ORIENTATION = "ORIENTATION"
    POSITIONS = "POSITIONS"
    MISSING_SLICES = "MISSING_SLICES"
    SPACING = "SPACING"
    DUPLICATES = "DUPLICATES"
    FOUR_D = "FOUR_D"
    DECODER = "DECODER"
    PIXELS = "PIXELS"
    TOO_LARGE = "TOO_LARGE"
    RESCALE = "RESCALE"
    UNIT = "UNIT"
    BLANK = "BLANK"
    HU_RANGE = "HU_RANGE"
    ADC_SCALE = "ADC_SCALE"
    NIFTI = "NIFTI"
    NO_SERIES = "NO_SERIES"


HINTS: Final[dict[Reason, str]] = {
    Reason.UNREADABLE: "send the file again from the PACS; it is damaged or not complete",
    Reason.NO_PREAMBLE: "export it again as a DICOM Part 10 file; it begins without the DICM mark",
    Reason.HEADER: "export the series again; an anonymiser may have removed or altered the value that is named",
    Reason.NOT_AN_IMAGE: "nothing to do: reports, annotations, segmentations and dose records are not read",
    Reason.MODALITY: "nothing to do: only CT, MR, CR and DX are read",
    Reason.SECONDARY_CAPTURE: "export the original series; screen captures have no geometry and no scale",
    Reason.LOCALIZER: "nothing to do: scouts are not read",
    Reason.DERIVED: "export the original axial series, or name this one by a pattern if it is meant",
    Reason.MOSAIC: "export the series as single slices or enhanced multi-frame, or convert it to NIfTI",
    Reason.COLOUR: "export the original series; colour images have no scale",
    Reason.BURNED_IN: "have the series cleaned: it says that text about the patient is part of the picture",
    Reason.FEW_SLICES: "export the whole series; a volume needs three slices",
    Reason.ORIENTATION: "export the series again; the directions of its rows and columns are no right angle",
    Reason.POSITIONS: "export the acquisitions apart; the slices do not lie behind each other",
    Reason.MISSING_SLICES: "send the series again; where single slices are lost for good, images.missing_slices: interpolate",
    Reason.SPACING: "export the acquisitions apart; the slices lie at distances that make no regular zones",
    Reason.DUPLICATES: "export the acquisitions apart; two different images lie at one place",
    Reason.FOUR_D: "name one of the acquisitions or time points; the series holds several of each slice",
    Reason.DECODER: "have the PACS send it uncompressed; no decoder here reads this transfer syntax",
    Reason.PIXELS: "send the file again from the PACS; its pixel data are damaged or not complete",
    Reason.TOO_LARGE: "check the file: the size that its header states is beyond what a study holds",
    Reason.RESCALE: "export the series again; the slope and intercept that give its values a scale are missing or wrong",
    Reason.UNIT: "export the conventional series; this one does not hold Hounsfield units",
    Reason.BLANK: "check the series in the PACS; every pixel has the same value",
    Reason.HU_RANGE: "check the series in the PACS; air and brain do not have the Hounsfield units that they should",
    Reason.ADC_SCALE: "check the map in the PACS; its values fit no usual unit of diffusion",
    Reason.NIFTI: "convert the image again, with its orientation, from the original DICOM series",
    Reason.NO_SERIES: "look at the reasons of the study's series; or name the series to use by a pattern (images.series)",
}


class Refusal(DataError):
    """A file, series or image that is set aside. `detail` names tags, sizes and distances, never values of identity."""

    def __init__(self, reason: Reason, detail: str, where: str = "") -> None:
        self.reason, self.detail, self.where = reason, detail, where
        super().__init__(Problem(f"{reason}: {detail}", where, HINTS[reason]))

    def __reduce__(self) -> tuple[type["Refusal"], tuple[Reason, str, str]]:  # type: ignore[override]
        return type(self), (self.reason, self.detail, self.where)

    def at(self, where: str) -> "Refusal":
        """The same, with its place."""
        return Refusal(self.reason, self.detail, where)
