"""One study in a process of its own: its files to a volume, the volume to what the network sees, both kept in the cache."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ich_client import nifti
from ich_client.cache import Cache
from ich_client.dicom import choose, mr, radiograph
from ich_client.dicom.geometry import Frame
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.series import NoneUsable, Refused, Series
from ich_client.dicom.stack import Missing, Stack
from ich_client.nifti import Entry
from ich_models import brain, preprocess
from ich_models.files import read_arrays, write_arrays, write_json, write_rows
from ich_models.image_spec import CtSlices, CtVolume, ImageSpec, MrVolume, Views
from ich_models.volume import Volume, onto

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Changes with any change of what is read from the same files."""

ACQUIRED: Final = "acquired.safetensors"
IMAGE: Final = "image.npy"
FACTS: Final = "facts.json"

PASSING: Final = frozenset({Reason.DECODER, Reason.UNREADABLE, Reason.TOO_LARGE})
"""Reasons that may be gone tomorrow though the files are the same: such a refusal is not remembered."""

Arrays = dict[str, NDArray[Any]]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """The hospital's own way to find the brain: a TorchScript file, its SHA-256, and the grid that it wants (mm)."""

    file: Path
    sha256: str
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Wishes:
    """How a study is read: what the federation asks for, and how the hospital decides where there is a choice."""

    spec: ImageSpec
    series: str | None = None
    sequences: tuple[tuple[str, str], ...] = ()
    missing: Missing = "refuse"
    network: "Network | None" = None

    @property
    def of_volume(self) -> object:
        """What the acquired image depends on, beside its files."""
        network = [] if self.network is None else [[self.network.sha256, self.network.spacing]]
        return (
            *network,
            self.spec.kind,
            self.spec.brain if isinstance(self.spec, CtVolume) else None,
            list(self.spec.sequences) if isinstance(self.spec, MrVolume) else None,
            self.series,
            self.sequences,
            self.missing,
        )


@dataclass(frozen=True)
class Task:
    """One study to be read. `files`: the SHA-256 of everything that is read; `labelled`: SOPInstanceUIDs with a label."""

    images: tuple[Series, ...] | tuple[Entry, ...]
    root: Path
    wishes: Wishes
    files: str
    cache: Path
    limit: float
    mask: Path | None = None
    labelled: frozenset[str] = frozenset()

    @property
    def acquired(self) -> str:
        """The key of the image as it was acquired."""
        return _hash("acquired", VERSION, self.files, self.wishes.of_volume)

    @property
    def prepared(self) -> str:
        """The key of what the network sees."""
        spec = self.wishes.spec.model_dump(mode="json")
        return _hash("prepared", preprocess.VERSION, self.acquired, spec, sorted(self.labelled))


@dataclass
class Made:
    """What became of a task: its facts are in the cache under `task.prepared`, unless they are not to be remembered."""

    facts: Facts
    seconds: dict[str, float] = field(default_factory=dict)


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make(task: Task) -> Made:
    """Read and prepare one study, as far as the cache does not hold it. Its refusal is a fact like others."""
    with Cache(task.cache, task.limit) as cache:
        return _make(task, cache)


def _make(task: Task, cache: Cache) -> Made:
    seconds: dict[str, float] = {}
    try:
        arrays, facts = _acquired(task, cache, seconds)
        with _timed(seconds, "prepare"):
            image, more = _prepared(arrays, facts, task)
    except Refusal as refusal:
        facts = {"refused": _told(refusal, task.root)}
        if isinstance(refusal, NoneUsable):
            facts["aside"] = [_set_aside(one, task.root) for one in refusal.aside]
        reasons = {refusal.reason, *(Reason(one["reason"]) for one in facts.get("aside", ()))}
        if not reasons & PASSING:
            cache.put(task.prepared, lambda folder: write_json(folder / FACTS, facts))
        return Made(facts, seconds)
    except MemoryError:
        return Made({"refused": _told(Refusal(Reason.TOO_LARGE, "this machine's memory is too small"), task.root)})
    except OSError:
        raise  # the cache's disk: of the study's files it would be a Refusal
    except Exception as error:  # a defect of ours, or of a library, with this study alone
        log.exception("a study could not be read")
        detail = f"an unforeseen error ({type(error).__name__})"
        return Made({"refused": _told(Refusal(Reason.PIXELS, detail), task.root)}, seconds)
    facts |= more

    def write(folder: Path) -> None:
        write_rows(folder / IMAGE, image.shape, image.dtype, enumerate(image))
        write_json(folder / FACTS, facts)

    cache.put(task.prepared, write)
    return Made(facts, seconds)


def load(entry: Path) -> tuple[NDArray[np.float16] | None, Facts]:
    """What `make` kept under `task.prepared`; no image if the study was refused."""
    facts: Facts = json.loads((entry / FACTS).read_text())
    return (None if "refused" in facts else np.load(entry / IMAGE, mmap_mode="r")), facts


def load_volume(entry: Path) -> tuple[Arrays, Facts]:
    """What was kept under `task.acquired`."""
    arrays, facts = read_arrays(entry / ACQUIRED)
    if "mask" in arrays:
        shape = facts["shape"]
        arrays["mask"] = np.unpackbits(arrays["mask"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    return arrays, facts


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - began


def _told(refusal: Refusal, root: Path) -> Facts:
    """A refusal with its place below the folder of images: the folder may move."""
    where = refusal.where.removeprefix(f"{root}{os.sep}")
    return {"reason": str(refusal.reason), "detail": refusal.detail, "where": where}


def _set_aside(one: Refused, root: Path) -> Facts:
    return {**_told(one.refusal, root), "images": one.images}


# --- files to an image as it was acquired -----------------------------------------------------------------------------


def _acquired(task: Task, cache: Cache, seconds: dict[str, float]) -> tuple[Arrays, Facts]:
    if (entry := cache.get(task.acquired)) is not None:
        try:
            return load_volume(entry)
        except OSError:
            pass  # removed by another process just now
    with _timed(seconds, "read"):
        arrays, facts = _read(task)
    if task.wishes.spec.kind in ("ct", "mr"):
        with _timed(seconds, "brain"):
            mask, about = _mask(task, arrays)
        facts |= about
        if mask is not None:
            facts["shape"] = list(mask.shape)
            arrays["mask"] = mask
    packed = {name: np.packbits(array) if name == "mask" else array for name, array in arrays.items()}
    cache.put(task.acquired, lambda folder: write_arrays(folder / ACQUIRED, packed, facts))
    return arrays, facts


def _read(task: Task) -> tuple[Arrays, Facts]:
    """Arrays by name, and what there is to say of them. Raises Refusal."""
    spec, images = task.wishes.spec, task.images
    if images and isinstance(images[0], Entry):
        return _read_nifti(task, [one for one in images if isinstance(one, Entry)])
    series = [one for one in images if isinstance(one, Series)]
    match spec:
        case MrVolume():
            return _read_mr(task, series)
        case Views():
            return _read_views(task, series)
    pattern = None if task.wishes.series is None else re.compile(task.wishes.series, re.IGNORECASE)
    choice = choose.choose(series, pattern, task.wishes.missing)
    stack, first = choice.stack, choice.series.first
    facts: Facts = {
        "series": [_named(choice.series, choice.reason)],
        "unmet": list(choice.unmet),
        "notes": list(stack.notes),
        "aside": [_set_aside(one, task.root) for one in choice.refused],
        "passed_over": len(choice.passed_over),
        "study": first.study,
    }
    if isinstance(spec, CtSlices):
        values, order = _as_seen(stack.values, stack.layout.frame)
        names = [list(stack.instances[index]) for index in order]
        # Frames of one file have one UID: a label could not say which of them it means.
        told_apart = len({own[0] for own in names}) == len(names)
        facts["instances"] = names if told_apart else [[] for _ in names]
        facts["spacing"] = [stack.layout.step, *stack.spacing]
        return {"values": values}, facts
    volume = stack.volume()
    facts["spacing"] = [round(float(mm), 4) for mm in volume.spacing]
    return {"values": volume.values, "affine": volume.affine}, facts


def _named(series: Series, reason: str) -> Facts:
    first = series.first
    about = {"uid": first.series, "number": first.series_number, "description": first.description}
    return {**about, "images": len(series.headers), "reason": reason}


def _as_seen(values: NDArray[Any], frame: Frame) -> tuple[NDArray[Any], list[int]]:
    """Acquired slices from neck to crown, each as a radiologist sees it, and their order; by turning round, not by moving.

    Rows from front to back, columns from the patient's right to the left. Slices that are not axial stay as they are.
    """
    order = list(range(len(values)))
    if abs(frame.through[2]) < choose.AXIAL:
        return values, order
    across, down = frame.across, frame.down
    if abs(across[1]) > abs(across[0]):
        values, across, down = values.swapaxes(1, 2), down, across
    if across[0] < 0:
        values = values[:, :, ::-1]
    if down[1] < 0:
        values = values[:, ::-1]
    if frame.through[2] < 0:
        values, order = values[::-1], order[::-1]
    return np.ascontiguousarray(values), order


def _read_mr(task: Task, series: Sequence[Series]) -> tuple[Arrays, Facts]:
    assert isinstance(task.wishes.spec, MrVolume)
    patterns = {name: re.compile(text, re.IGNORECASE) for name, text in task.wishes.sequences}
    found = mr.choose(series, task.wishes.spec.sequences, patterns, task.wishes.missing)
    if not found.stacks:
        raise NoneUsable(f"none of {len(series)} series is {' or '.join(found.absent)}", found.refused)
    arrays: Arrays = {}
    notes = []
    for name, stack in found.stacks.items():
        volume = _in_its_unit(name, stack)
        arrays |= {name: volume.values, f"{name}.affine": volume.affine}
        notes += [f"{name}: {note}" for note in stack.notes]
    facts = {
        "series": [{"description": name, "reason": reason} for name, reason in found.reasons.items()],
        "absent": list(found.absent),
        "notes": notes,
        "aside": [_set_aside(one, task.root) for one in found.refused],
        "study": series[0].first.study,
    }
    return arrays, facts


def _in_its_unit(name: str, stack: Stack) -> Volume:
    volume = stack.volume()
    return mr.adc(volume) if name == "ADC" else volume


def _read_views(task: Task, series: Sequence[Series]) -> tuple[Arrays, Facts]:
    images, aside = radiograph.views(series)
    if not images:
        raise NoneUsable(f"none of {len(series)} series holds a radiograph that can be used", aside)
    facts = {
        "series": [{"description": one.view or "no view stated", "reason": "a radiograph"} for one in images],
        "aside": [_set_aside(one, task.root) for one in aside],
        "study": series[0].first.study,
    }
    return {f"{index:03d}": one.values for index, one in enumerate(images)}, facts


# --- NIfTI ------------------------------------------------------------------------------------------------------------

_SUFFIXES: Final = {"FLAIR": "flair", "T2": "t2w", "T1": "t1w", "DWI": "dwi", "ADC": "adc", "SWI": "swi", "B0": "b0"}
"""BIDS suffix of each sequence, in lower case."""


def _read_nifti(task: Task, entries: Sequence[Entry]) -> tuple[Arrays, Facts]:
    spec = task.wishes.spec
    facts: Facts = {"series": [], "notes": [], "study": entries[0].session}
    aside: list[Refused] = []
    arrays: Arrays = {}
    if isinstance(spec, MrVolume):
        patterns = dict(task.wishes.sequences)
        for name in spec.sequences:
            volume = _first_that_reads(_candidates(entries, patterns.get(name), _SUFFIXES[name]), name, facts, aside)
            if volume is not None:
                arrays |= {name: volume.values, f"{name}.affine": volume.affine}
        facts["absent"] = [name for name in spec.sequences if name not in arrays]
        facts["aside"] = [_set_aside(one, task.root) for one in aside]
        if not arrays:
            raise NoneUsable(f"none of {len(entries)} images is {' or '.join(facts['absent'])}", aside)
        return arrays, facts
    volume = _first_that_reads(_candidates(entries, task.wishes.series, "ct"), "CT", facts, aside)
    if volume is None:
        reasons = ", ".join(sorted({one.refusal.reason for one in aside})) or "no CT"
        raise NoneUsable(f"none of {len(entries)} images can be used ({reasons})", aside)
    facts["aside"] = [_set_aside(one, task.root) for one in aside]
    facts["spacing"] = [round(float(mm), 4) for mm in volume.spacing]
    if isinstance(spec, CtSlices):  # as a radiologist sees them: front to back, right to left
        facts["instances"] = [[] for _ in volume.values]
        return {"values": np.ascontiguousarray(volume.values[:, ::-1, ::-1])}, facts
    return {"values": volume.values, "affine": volume.affine}, facts


def _candidates(entries: Sequence[Entry], pattern: str | None, suffix: str) -> list[tuple[Entry, str]]:
    """Images by name, each with why: the hospital's pattern, else the suffix."""
    if pattern is not None:
        found = re.compile(pattern, re.IGNORECASE)
        return [(one, "the hospital's pattern") for one in entries if found.search(one.path.name)]
    return [(one, "its suffix") for one in entries if one.suffix.lower() == suffix]


def _first_that_reads(
    candidates: Sequence[tuple[Entry, str]], name: str, facts: Facts, aside: list[Refused]
) -> Volume | None:
    for entry, why in candidates:
        try:
            volume = nifti.read(entry.path, "HU" if name == "CT" else "intensity")
            if name == "ADC":
                volume = mr.adc(volume)
        except Refusal as refusal:
            placed = refusal if refusal.where else refusal.at(str(entry.path))
            aside.append(Refused(placed, entry.session, "", entry.subject, 1))
            continue
        more = f"; the first of {len(candidates)} by name" if len(candidates) > 1 else ""
        facts["series"].append({"description": entry.suffix, "reason": f"{why}{more}"})
        return volume
    return None


# --- where the brain is -----------------------------------------------------------------------------------------------


def _mask(task: Task, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.bool_] | None, Facts]:
    """The hospital's mask, else what Hounsfield units tell; None: everything (CT), what is not 0 (MR)."""
    spec, volume = task.wishes.spec, _first_volume(arrays)
    wanted = not isinstance(spec, CtVolume) or spec.brain == "mask"
    problem = ""
    if task.mask is not None and wanted:
        given = onto(nifti.read(task.mask, "intensity", mask=True), volume, nearest=True).values > 0
        if given.any():
            return given, {"region": "the hospital's mask", "problem": ""}
        problem = "the hospital's mask does not reach the image; "
    if not isinstance(spec, CtVolume) or spec.brain == "none":
        return None, {"region": "everything", "problem": problem.removesuffix("; ")}
    if spec.brain == "mask" and task.wishes.network is not None:
        mask, about = _by_network(task.wishes.network, volume)
        if mask is not None:
            return mask, {**about, "problem": problem.removesuffix("; ")}
        problem += f"{NETWORK}: {about['problem']}; "
    found = brain.brain(volume) if spec.brain == "mask" else brain.head(volume)
    about = {
        "region": found.region,
        "problem": (problem + found.problem).removesuffix("; "),
        "millilitres": round(found.millilitres, 1),
    }
    return found.mask, about


NETWORK: Final = "the hospital's network"
"""Who found the brain, or failed to."""


def _by_network(network: Network, volume: Volume) -> tuple[NDArray[np.bool_] | None, Facts]:
    """What the hospital's network found, where that may be a brain; else what speaks against it."""
    from ich_client import brain_weights  # torch, which no other study needs here

    try:
        mask = brain_weights.find(network.file, network.sha256, volume, network.spacing)
    except brain_weights.UnusableError as error:
        return None, {"problem": str(error)}
    found = brain.judged(mask, volume)
    if found.problem:
        return None, {"problem": found.problem}
    return mask, {"region": NETWORK, "millilitres": round(found.millilitres, 1)}


def _first_volume(arrays: Mapping[str, NDArray[Any]]) -> Volume:
    if "values" in arrays:
        return Volume(arrays["values"], arrays["affine"], "HU")
    name = next(name for name in arrays if f"{name}.affine" in arrays)
    return Volume(arrays[name], arrays[f"{name}.affine"], "intensity")


# --- an acquired image to what the network sees -----------------------------------------------------------------------


def _prepared(arrays: Arrays, facts: Facts, task: Task) -> tuple[NDArray[np.float16], Facts]:
    match task.wishes.spec:
        case CtVolume() as spec:
            one = preprocess.ct_volume(_first_volume(arrays), arrays.get("mask"), spec)
            return one.values, {"seen": round(one.seen, 4)}
        case MrVolume() as spec:
            volumes: dict[str, Volume] = {
                name: Volume(arrays[name], arrays[f"{name}.affine"], "intensity")
                for name in spec.sequences
                if name in arrays
            }
            one = preprocess.mr_volume(volumes, arrays.get("mask"), spec)
            return one.values, {"seen": round(one.seen, 4)}
        case CtSlices() as spec:
            labelled = np.array([bool(task.labelled & set(names)) for names in facts["instances"]])
            few = preprocess.ct_slices(arrays["values"], labelled, spec)
            return few.values, {"instances": [facts["instances"][index] for index in few.kept], "kept": list(few.kept)}
        case Views() as spec:
            seen = preprocess.views([arrays[name] for name in sorted(arrays)], spec)
            return seen.values, {"series": facts["series"][: len(seen.kept)], "kept": list(seen.kept)}


def moved(refusal: Refusal, root: Path) -> Refusal:
    """A refusal as it was kept, with its place where the folder is now."""
    return refusal.at(str(root / refusal.where)) if refusal.where else refusal
