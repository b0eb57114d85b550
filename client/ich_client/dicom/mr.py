"""MR: which sequence a series is, the series of each sequence that a study names, and the scale of diffusion maps."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ich_client.dicom.choose import AXIAL, refused
from ich_client.dicom.geometry import layout
from ich_client.dicom.header import Header
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.series import Refused, Series, check_kind
from ich_client.dicom.stack import Missing, Stack, read
from ich_models.volume import Volume

DIFFUSION: Final = 500.0
"""s/mm2: an image with at least this b-value is diffusion-weighted; with less, it is its reference (B0)."""

_NAMES: Final = {
    "ADC": re.compile(r"\b(e?adc|apparent diffusion)\b"),
    "DWI": re.compile(r"\b(dwi|trace|trace ?w|b[ =_]?(?:[5-9]\d\d|[1-3]\d\d\d))\b"),
    "FLAIR": re.compile(r"flair|dark[ -]?fluid"),
    "SWI": re.compile(r"\b(swi|swan|swip|t2 ?(?:\*|star)|gre|hemo|haemo|venobold)"),
    "T2": re.compile(r"\bt2"),
    "T1": re.compile(r"\bt1|mp-?rage|bravo"),
}
"""What descriptions call a sequence, in the order in which they are asked (T2 FLAIR is no T2)."""

SEQUENCES: Final = ("DWI", "B0", *(name for name in _NAMES if name != "DWI"))
"""The names that a study may use."""


@dataclass(frozen=True)
class Sequences:
    """The sequences of one study. `reasons`: why each was chosen; `absent`: named ones that the study has not."""

    stacks: Mapping[str, Stack]
    reasons: Mapping[str, str]
    absent: tuple[str, ...]
    refused: tuple[Refused, ...]


def sequence(header: Header) -> tuple[str, str] | None:
    """The sequence of an image and what tells it: its type, then b-value, then times, then its name; or None.

    Times (ms): FLAIR inverts at 1500 to 3500 and echoes late; T2 echoes at 60 or later after 2000 or more; T1 echoes before
    30 after less than 1000, at one echo.
    """
    words = " ".join(re.split(r"[\s_./\\-]+", header.description.lower()))
    if any(part.startswith(("ADC", "EADC")) for part in header.image_type):
        return "ADC", "image type"
    if header.b_value is not None and (header.b_value > 0 or "DIFFUSION" in header.image_type):
        if _NAMES["ADC"].search(words):
            return "ADC", "name"
        return ("DWI" if header.b_value >= DIFFUSION else "B0"), f"b = {header.b_value:g}"
    if any(part.startswith("TRACE") for part in header.image_type):
        return "DWI", "image type"
    echo, repetition, inversion = header.echo_time, header.repetition_time, header.inversion_time
    if echo and inversion and 1500 <= inversion <= 3500 and echo > 60:
        return "FLAIR", "inversion and echo time"
    for name, pattern in _NAMES.items():
        if pattern.search(words):
            return name, "name"
    if echo and repetition and not inversion:
        if echo >= 60 and repetition >= 2000:
            return "T2", "echo and repetition time"
        if echo < 30 and repetition < 1000:
            return "T1", "echo and repetition time"
    return None


def choose(
    stacks: Sequence[Series],
    wanted: Sequence[str],
    patterns: Mapping[str, re.Pattern[str]] | None = None,
    missing: Missing = "refuse",
) -> Sequences:
    """One series of a study for each wanted sequence, read. `patterns`: how the hospital names some of them.

    Of several: the hospital's pattern, then trace images, axial ones, the larger b-value up to 1500, more slices, the
    lower number. A sequence that is not there, or of which no series can be read, is absent; the rest goes on.
    """
    patterns = patterns or {}
    aside: list[Refused] = []
    found: dict[str, list[tuple[tuple[object, ...], Series, str]]] = {name: [] for name in wanted}
    for series in stacks:
        first = series.first
        by_pattern = [name for name in wanted if name in patterns and patterns[name].search(first.description)]
        told = sequence(first)
        named = dict.fromkeys(by_pattern, "the hospital's pattern")
        if told is not None and told[0] in found and told[0] not in patterns:
            named.setdefault(told[0], told[1])
        try:
            if first.modality != "MR":
                check_kind(series)
                raise Refusal(Reason.MODALITY, f"modality {first.modality}", series.place)
            check_kind(series, named=bool(by_pattern))
            place = layout(series.headers, missing)
        except Refusal as refusal:
            aside.append(refused(series, refusal if refusal.where else refusal.at(series.place)))
            continue
        trace = first.isotropic is True or any(part.startswith("TRACE") for part in first.image_type)
        axial = abs(place.frame.through[2]) >= AXIAL
        b_value = min(first.b_value or 0.0, 1500.0)
        for name, why in named.items():
            rank = (
                trace,
                axial,
                b_value if name == "DWI" else 0.0,
                len(place.order),
                -first.series_number,
                first.series,
            )
            found[name].append((rank, series, why))
    chosen: dict[str, Stack] = {}
    reasons: dict[str, str] = {}
    for name, candidates in found.items():
        for _, series, why in sorted(candidates, key=lambda one: one[0], reverse=True):
            try:
                stack = read(series, missing)
                if name == "ADC":
                    adc_factor(stack.values)
            except Refusal as refusal:
                aside.append(refused(series, refusal if refusal.where else refusal.at(series.place)))
                continue
            chosen[name] = stack
            reasons[name] = f"{why}; one of {len(candidates)} series" if len(candidates) > 1 else why
            break
    absent = tuple(name for name in wanted if name not in chosen)
    return Sequences(chosen, reasons, absent, tuple(aside))


def adc_factor(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    """What an ADC map is multiplied with to be in 1e-6 mm2/s. Raises Refusal(ADC_SCALE) if no usual unit fits.

    The middle of what is above a tenth of the largest values lies between 400 and 2500 in a head (white matter 700 to
    900, fluid 3000). Maps come in 1e-6, 1e-5 (some Philips) and 1e-3 mm2/s, and in mm2/s.
    """
    top = float(np.percentile(values, 99.5))
    inside = values[values > 0.1 * top]
    middle = float(np.median(inside)) if top > 0 and inside.size else 0.0
    for factor in (1.0, 10.0, 1e3, 1e6):
        if 400 <= middle * factor <= 2500:
            return factor
    raise Refusal(Reason.ADC_SCALE, f"the middle of the map is {middle:g}")


def adc(volume: Volume) -> Volume:
    """An ADC map in 1e-6 mm2/s, negative values (noise of the fit) at 0. Raises Refusal(ADC_SCALE)."""
    factor = np.float32(adc_factor(volume.values))
    return Volume(np.maximum(volume.values * factor, 0), volume.affine, volume.unit)
