"""Which series of a study is used: by score, or by the hospital's pattern; with the reason on record."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ich_client.dicom import geometry
from ich_client.dicom.geometry import Layout
from ich_client.dicom.header import RADIOGRAPHS
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.series import NoneUsable, Refused, Series, check_kind
from ich_client.dicom.stack import Missing, Stack, read

COVERAGE: Final = 100.0
"""mm from the first slice to the last that a head takes at the least."""
STEP: Final = (2.5, 5.0)
"""mm between slices that head CT is read at."""
AXIAL: Final = 0.8
"""Least cosine between the normal of the slices and the long axis of the patient (37 degrees: gantry tilt is within)."""

# Kernels for soft tissue and for bone or lung, by vendor; unknown ones count as neither.
_SOFT: Final = re.compile(r"(?:[HBIJ][RFCV]?[1-4]\d[A-Z]?|STANDARD|STND|STD\+?|SOFT|DETAIL|U?[ABC]|FC[01246]\d|CB)")
_SHARP: Final = re.compile(r"(?:[HBIJ][RFCV]?[5-9]\d[A-Z]?|BONE(?:PLUS)?|EDGE|LUNG|FC[358]\d|[DEL]|Y[ABCD])")


@dataclass(frozen=True)
class Candidate:
    """A series that may be used: which criteria it meets, in the order of their weight, and its layout."""

    series: Series
    layout: Layout
    met: tuple[str, ...]
    unmet: tuple[str, ...]
    named: bool

    @property
    def rank(self) -> tuple[object, ...]:
        """Larger is better: the pattern first, then the criteria by weight, then size; names decide between equals."""
        first = self.series.first
        criteria = [name in self.met for name in CRITERIA]
        return self.named, criteria, len(self.layout.order), -first.series_number, first.series


CRITERIA: Final = ("axial", "no contrast agent", "covers the head", "not sharp", "soft kernel", "2.5 to 5 mm apart")
"""Of a head CT, by weight: one that weighs more outdoes all after it."""


@dataclass(frozen=True)
class Choice:
    """What was chosen of a study, why, and what became of the other series."""

    stack: Stack
    series: Series
    reason: str
    unmet: tuple[str, ...]
    refused: tuple[Refused, ...]
    passed_over: tuple[Series, ...]


def kernel_is_soft(kernel: str) -> bool | None:
    """Whether a kernel's name stands for soft tissue; None if it stands for neither."""
    name = kernel.split("\\")[0].strip().upper()
    if _SHARP.fullmatch(name):
        return False
    return True if _SOFT.fullmatch(name) else None


def candidate(series: Series, named: bool = False, missing: Missing = "refuse") -> Candidate:
    """A CT series with its score, from headers alone. Raises Refusal for what can be refused without its pixels."""
    check_kind(series, named)
    try:
        layout = geometry.layout(series.headers, missing)
    except Refusal as refusal:
        raise refusal if refusal.where else refusal.at(series.place) from None
    first, soft = series.first, kernel_is_soft(series.first.kernel)
    facts = {
        "axial": abs(layout.frame.through[2]) >= AXIAL,
        "no contrast agent": not first.contrast,
        "covers the head": layout.depths[-1] >= COVERAGE,
        "not sharp": soft is not False,
        "soft kernel": soft is True,
        "2.5 to 5 mm apart": STEP[0] - 0.05 <= layout.step <= STEP[1] + 0.05,
    }
    met = tuple(name for name in CRITERIA if facts[name])
    return Candidate(series, layout, met, tuple(name for name in CRITERIA if not facts[name]), named)


def refused(series: Series, refusal: Refusal) -> Refused:
    """A refusal with the identity of its series."""
    first = series.first
    return Refused(refusal, first.study, first.series, first.patient, len(series.headers))


def choose(
    stacks: Sequence[Series],
    pattern: re.Pattern[str] | None = None,
    missing: Missing = "refuse",
) -> Choice:
    """The series of one study's CT that is used, read. `pattern`: what the hospital calls it (found in its description).

    The best one by rank is read; if its pixels make it unusable, the next. Raises Refusal(NO_SERIES) naming every
    series' own reason.
    """
    aside: list[Refused] = []
    candidates: list[Candidate] = []
    for series in stacks:
        named = pattern is not None and pattern.search(series.first.description) is not None
        try:
            if series.first.modality != "CT" or series.first.sop_class in RADIOGRAPHS:
                check_kind(series)
                raise Refusal(Reason.MODALITY, f"modality {series.first.modality}", series.place)
            candidates.append(candidate(series, named, missing))
        except Refusal as refusal:
            aside.append(refused(series, refusal))
    candidates.sort(key=lambda one: one.rank, reverse=True)
    for index, best in enumerate(candidates):
        try:
            stack = read(best.series, missing)
        except Refusal as refusal:
            aside.append(refused(best.series, refusal))
            continue
        rest = tuple(other.series for other in candidates[index + 1 :])
        return Choice(stack, best.series, _why(best, candidates[index + 1 :]), best.unmet, tuple(aside), rest)
    reasons = ", ".join(sorted({str(one.refusal.reason) for one in aside})) or "no CT"
    raise NoneUsable(f"none of {len(stacks)} series can be used ({reasons})", aside)


def _why(best: Candidate, others: Sequence[Candidate]) -> str:
    """Why this one, in words: what it has that the next has not."""
    if best.named:
        return "the hospital's pattern"
    if not others:
        return f"the only usable series ({', '.join(best.met) or 'no criterion met'})"
    gains = [name for name in CRITERIA if name in best.met and name not in others[0].met]
    if gains:
        return f"{gains[0]}, unlike the next of {len(others) + 1} usable series"
    return f"as good as the next of {len(others) + 1} usable series; more slices, or the lower number"


def studies(stacks: Sequence[Series]) -> dict[tuple[str, str], list[Series]]:
    """The series of each patient's study, by (PatientID, StudyInstanceUID)."""
    found: dict[tuple[str, str], list[Series]] = {}
    for series in stacks:
        found.setdefault((series.first.patient, series.first.study), []).append(series)
    return found
