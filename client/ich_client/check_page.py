"""`ich-client check --html`: the findings and a contact sheet on one self-contained page, for local eyes only."""

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ich_client import study_images
from ich_client.cache import Cache
from ich_client.check import Asked, Found, verdict
from ich_client.check_images import facts, named, reasons
from ich_client.images import Chosen, Summary
from ich_client.machine import Line
from ich_client.tables import Hospital
from ich_models.image_spec import BRAIN, ImageSpec
from ich_models.preprocess import whole_within
from ich_models.windows import window

PICTURES: Final = 24
"""Patients of a hospital whose image is shown."""
SIZE: Final = (176, 176)
"""Pixels of a picture."""
OUTLINE: Final = (255, 140, 0)
"""Colour of the edge of what the network sees."""

Grey = NDArray[np.float32]

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1b1b;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{text-align:left;padding:.2rem .9rem .2rem 0;vertical-align:top}
thead th{border-bottom:1px solid #999}.sheet{display:flex;flex-wrap:wrap;gap:.75rem}figure{margin:0;width:176px}
figure img{display:block;background:#000}figcaption{font-size:12px;line-height:1.3;overflow-wrap:anywhere}
.local{background:#fff3d6;padding:.5rem .9rem;border-left:4px solid #d98a00}pre{white-space:pre-wrap;margin:0}
"""


def page(
    asked: Asked, found: Sequence[Found], lines: Sequence[Line], spec: ImageSpec | None, hospitals: Sequence[Hospital]
) -> str:
    """The page as HTML; nothing in it is fetched from anywhere."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Check of {escape(asked.federation)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(asked.description or asked.federation)}</h1>",
        '<p class="local">This page shows patients. It is for the hospital itself and must not be sent on.</p>',
        f"<p><strong>{escape(str(verdict(found, lines)))}</strong></p>",
        _table((), [("study", asked.federation), ("hash", asked.hash), ("outcome", asked.outcome)]),
        "<h2>What the study takes</h2>",
        _table(("when", "what"), [(each.when, each.what) for each in asked.sent]),
    ]
    for one, hospital in zip(found, hospitals, strict=True):
        parts += _hospital(one, hospital, spec)
    about = [(line.name, line.told, "" if line.state == "well" else line.state, line.hint) for line in lines]
    parts += ["<h2>This machine</h2>", _table(("what", "found", "", "what to do"), about)]
    return "\n".join([*parts, "</body></html>", ""])


def _hospital(one: Found, hospital: Hospital, spec: ImageSpec | None) -> Iterator[str]:
    yield f"<h2>Hospital {escape(one.name)}</h2>"
    left_out = ", ".join(f"{reason}: {count:,}" for reason, count in one.excluded.items()) or "nobody"
    yield _table((), [("patients", f"{one.patients:,}"), ("events", f"{one.events:,}"), ("left out", left_out)])
    for title, problems in (("Will not take part", one.refused), ("Warnings", one.warnings)):
        if problems:
            each = "".join(f"<li><pre>{escape(str(problem))}</pre></li>" for problem in problems)
            yield f"<h3>{title}</h3><ul>{each}</ul>"
    if one.withheld:
        yield "<h3>Withheld</h3>" + _table((), [(what,) for what in one.withheld])
    rows = [
        (each.name, each.known_at or "", "?" if each.missing is None else f"{each.missing:,}", _values(each))
        for each in one.predictors
    ]
    yield "<h3>Predictors</h3>" + _table(("predictor", "known at", "missing", "values"), rows)
    folds = [(each.fold, f"{each.train:,}", f"{each.validation:,}", f"{each.test:,}") for each in one.folds]
    yield "<h3>Models</h3>" + _table(("model", "train", "validate", "test"), folds)
    if one.images is not None:
        yield "<h3>Images</h3>" + _table((), list(facts(one.images).items()))
        because = [(reason, f"{count:,}") for reason, count in reasons(one.images).most_common()]
        yield _table(("series are used because", "patients"), because)
        aside = [(each.patient, each.reason, each.detail, each.where, each.hint) for each in one.images.aside]
        yield "<h3>Set aside</h3>" + _table(("patient", "reason", "what", "where", "what to do"), aside)
        yield f'<h3>The middle of the first {PICTURES} images</h3><div class="sheet">'
        yield from _figures(one.images, hospital, spec)
        yield "</div>"


def _values(each: Any) -> str:
    if each.low is not None:
        return f"{each.low:g} to {each.high:g} {each.unit or ''}"
    return ", ".join(f"{level}: {count:,}" for level, count in each.levels.items())


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return "<p>nothing</p>"
    top = "<thead><tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr></thead>" if header else ""
    lines = ("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"


# --- pictures ---------------------------------------------------------------------------------------------------------


def _figures(found: Summary, hospital: Hospital, spec: ImageSpec | None) -> Iterator[str]:
    places = {name: place for place, name in enumerate(hospital.patients.ids)}
    for one in found.chosen[:PICTURES]:
        with Cache(Path(found.cache), inf) as store:
            picture = _acquired(store, one, spec)
        if picture is None:
            picture = _prepared(hospital, places[one.patient])
        data = base64.b64encode(png(picture)).decode()
        words = "; ".join([", ".join(named(series) for series in one.series), *filter(None, (one.region, *one.notes))])
        alt = f"middle of the image of patient {one.patient}"
        yield (
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{SIZE[1]}" height="{SIZE[0]}">'
            f"<figcaption>{escape(one.patient)}: {escape(words)}</figcaption></figure>"
        )


def _acquired(store: Cache, one: Chosen, spec: ImageSpec | None) -> NDArray[np.uint8] | None:
    """The middle slice of a volume as it was acquired, with the edge of the mask; None if there is no volume any more."""
    if spec is None or spec.kind not in ("ct", "mr") or (entry := store.get(one.key)) is None:
        return None
    arrays, _ = study_images.load_volume(entry)
    values = arrays["values"] if "values" in arrays else _first(arrays, spec)
    mask = arrays.get("mask")
    levels = np.flatnonzero(mask.any(axis=(1, 2))) if mask is not None and mask.any() else np.arange(len(values))
    middle = int(levels[len(levels) // 2])
    # From above, as it lies in memory, to as a radiologist sees it: the front at the top, the right side at the left.
    grey = window(values[middle], *BRAIN) if spec.kind == "ct" else _stretched(values[middle])
    inside = mask[middle] if mask is not None and mask.shape == values.shape else None
    return _picture(grey[::-1, ::-1], None if inside is None else inside[::-1, ::-1])


def _first(arrays: Mapping[str, NDArray[Any]], spec: Any) -> NDArray[Any]:
    return next(arrays[name] for name in spec.sequences if name in arrays)


def _stretched(values: NDArray[Any]) -> Grey:
    low, high = (float(end) for end in np.percentile(values, (1, 99)))
    return ((values - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)


def _prepared(hospital: Hospital, place: int) -> NDArray[np.uint8]:
    """The middle of what the network sees."""
    assert hospital.patients.image is not None, "a hospital with images"
    image = hospital.patients.image[place]
    if hospital.patients.slices is not None:
        image = image[int(hospital.patients.slices[place].sum()) // 2]
        return _picture(image[0].astype(np.float32), None)
    return _picture(_stretched(image[0, image.shape[1] // 2])[::-1, ::-1], None)


def _picture(grey: Grey, inside: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """(H, W, 3), with the outline of what is inside."""
    levels = np.rint(whole_within(np.ascontiguousarray(grey, np.float32), SIZE) * 255).astype(np.uint8)
    colours = np.repeat(levels[:, :, None], 3, axis=2)
    if inside is not None:
        shape = whole_within(np.ascontiguousarray(inside, np.float32), SIZE) > 0.5
        colours[shape & ~ndimage.binary_erosion(shape)] = OUTLINE
    return colours


def png(colours: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) as a PNG file (ISO 15948): one filterless, compressed block."""
    high, wide, _ = colours.shape
    rows = b"".join(b"\0" + row.tobytes() for row in colours)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
