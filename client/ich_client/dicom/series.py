"""Images to series: what belongs together by identity, geometry and kind, and which kinds are not read."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from ich_client.dicom.header import RADIOGRAPHS, SECONDARY_CAPTURE, VOLUMES, Header, is_image
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import Scan

_REFORMATTED: Final = ("MPR", "REFORMAT", "MIP", "MINIP", "PROJECTION", "VOLUME RENDER", "VRT", "CURVED")


@dataclass(frozen=True)
class Series:
    """Images that make one stack, in no order yet; a SeriesInstanceUID may hold several of them (echoes, kernels)."""

    headers: tuple[Header, ...]

    @property
    def first(self) -> Header:
        """The image that speaks for all in what they have in common."""
        return self.headers[0]

    @property
    def place(self) -> str:
        """The series as the hospital can find it: folder, number, description."""
        first = self.first
        return f"{first.path.parent}: series {first.series_number} ({first.description or 'no description'})"


@dataclass(frozen=True)
class Refused:
    """A series, or a file without one, that is set aside."""

    refusal: Refusal
    study: str
    series: str
    patient: str
    images: int


class NoneUsable(Refusal):
    """No series of a study can be used. `aside`: why, series by series."""

    def __init__(self, detail: str, aside: Sequence[Refused]) -> None:
        self.aside = tuple(aside)
        super().__init__(Reason.NO_SERIES, detail)

    def __reduce__(self) -> tuple[type["NoneUsable"], tuple[str, Sequence[Refused]]]:  # type: ignore[override]
        return type(self), (self.detail, self.aside)


def group(scan: Scan) -> tuple[list[Series], list[Refused]]:
    """The series of a scan, and the bad ones: a file whose header is damaged fails the series that it belongs to."""
    refused = [Refused(bad.refusal, bad.study, bad.series, bad.patient, 1) for bad in scan.bad]
    failed = {(bad.study, bad.series): bad.refusal for bad in reversed(scan.bad) if bad.series}
    stacks: list[Series] = []
    for (study, series), headers in _by(scan.headers, lambda header: (header.study, header.series)).items():
        if refusal := failed.get((study, series)):
            refused.append(Refused(refusal, study, series, headers[0].patient, len(headers)))
        else:
            stacks += (Series(tuple(part)) for part in _parts(headers))
    return stacks, refused


def _by(headers: Iterable[Header], key: Callable[[Header], Any]) -> dict[Any, list[Header]]:
    groups: dict[Any, list[Header]] = defaultdict(list)
    for header in headers:
        groups[key(header)].append(header)
    return groups


def _kind(header: Header) -> tuple[object, ...]:
    """What all images of a stack share exactly. Not exposure: it is modulated from slice to slice."""
    b_value = None if header.b_value is None else round(header.b_value)
    image = (header.sop_class, header.rows, header.columns, header.samples, header.image_type[:2])
    return (
        *image,
        "LOCALIZER" in header.image_type,
        header.contrast,
        header.echo,
        header.echo_time,
        b_value,
        header.isotropic,
    )


def _parts(headers: Sequence[Header]) -> Iterable[list[Header]]:
    """The stacks of one SeriesInstanceUID."""
    for alike in _by(headers, _kind).values():
        for part in _cluster(alike):
            pieces = list(_by(part, lambda header: (header.kernel, header.image_type)).values())
            for piece in pieces if _entangled(pieces) else [part]:
                yield from _without_collisions(piece)


def _without_collisions(part: list[Header]) -> list[list[Header]]:
    """Acquisition and time point change from slice to slice on some scanners: they part only what collides."""
    if _collide(part):
        for key in (lambda header: header.acquisition, lambda header: header.time_point):
            pieces = list(_by(part, key).values())
            if len(pieces) > 1 and max(map(len, pieces)) >= 3 and not any(_collide(piece) for piece in pieces):
                return pieces
    return [part]


def _entangled(pieces: Sequence[list[Header]]) -> bool:
    """Whether pieces lie among each other. Zones of a head (base, vertex) follow each other and may differ in kind."""
    first = pieces[0][0]
    if first.orientation is None:
        return True
    through = np.cross(*first.orientation)
    spans = []
    for piece in pieces:
        depths = [float(np.dot(through, header.position)) for header in piece if header.position is not None]
        if not depths:
            return True
        spans.append((min(depths), max(depths)))
    spans.sort()
    return any(after[0] <= before[1] + 0.01 for before, after in pairwise(spans))


def _cluster(headers: Sequence[Header]) -> list[list[Header]]:
    """Images with one orientation (to 0.001) and one pixel spacing (to 0.1 %)."""
    clusters: list[tuple[np.ndarray[Any, Any] | None, list[Header]]] = []
    for header in headers:
        shape = None
        if header.orientation is not None and header.spacing is not None:
            shape = np.array([*header.orientation[0], *header.orientation[1], *np.log(header.spacing)])
        for known, members in clusters:
            same = shape is known if shape is None or known is None else bool((np.abs(shape - known) < 1e-3).all())
            if same:
                members.append(header)
                break
        else:
            clusters.append((shape, [header]))
    return [members for _, members in clusters]


def _collide(headers: Sequence[Header]) -> bool:
    """Whether two images have the same position (to 0.01 mm)."""
    positions = [tuple(np.round(header.position, 2)) for header in headers if header.position is not None]
    return len(set(positions)) < len(positions)


def check_kind(series: Series, named: bool = False) -> None:
    """Refuse what is no original series of images. `named`: the hospital asks for it by a pattern, derived or not."""
    first, where = series.first, series.place
    kind = " ".join(first.image_type)
    if first.sop_class.startswith(SECONDARY_CAPTURE):
        raise Refusal(Reason.SECONDARY_CAPTURE, "secondary capture", where)
    if not is_image(first):
        if first.rows == 0 or first.modality in ("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "DOC"):
            raise Refusal(Reason.NOT_AN_IMAGE, f"{first.modality or 'no modality'} object", where)
        raise Refusal(Reason.MODALITY, f"modality {first.modality or 'not stated'}", where)
    if VOLUMES.get(first.sop_class, first.modality) != first.modality:
        raise Refusal(Reason.HEADER, "Modality is not that of the SOPClassUID", where)
    if any(header.burned_in for header in series.headers):
        raise Refusal(Reason.BURNED_IN, "BurnedInAnnotation is YES", where)
    if first.samples != 1 or first.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refusal(Reason.COLOUR, f"{first.photometric or 'no PhotometricInterpretation'}", where)
    if "LOCALIZER" in first.image_type or "SCOUT" in first.image_type:
        raise Refusal(Reason.LOCALIZER, "ImageType has LOCALIZER", where)
    if "MOSAIC" in first.image_type:
        raise Refusal(Reason.MOSAIC, "ImageType has MOSAIC", where)
    if first.sop_class in RADIOGRAPHS or named:
        return
    if first.modality == "CT" and "SCREEN SAVE" in kind:
        raise Refusal(Reason.SECONDARY_CAPTURE, "ImageType has SCREEN SAVE", where)
    derived = first.image_type[:1] == ("DERIVED",)
    # Of MR, maps are derived too (ADC, trace): only reformats are refused. Of CT, everything derived is a reformat.
    if derived and (first.modality != "MR" or any(word in kind for word in _REFORMATTED)):
        raise Refusal(Reason.DERIVED, f"ImageType is {kind}", where)
