"""A hospital's images to one array in the order of its patients, and an account of what became of every study."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf, prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ich_client import labels as label_table
from ich_client import machine, study_images, workers
from ich_client.cache import Cache
from ich_client.dicom.reasons import HINTS, Reason, Refusal
from ich_client.dicom.series import Refused
from ich_client.file_hashes import FileHashes
from ich_client.hospital import HospitalConfig
from ich_client.image_finds import RADIOGRAPH, Finds, Study, Watch, mask_of
from ich_client.image_mapping import Images
from ich_client.labels import TYPES
from ich_client.nifti import Entry
from ich_client.report_writer import Slices
from ich_client.study_images import IMAGE, NETWORK, Facts, Made, Network, Task, Wishes
from ich_models import preprocess
from ich_models.errors import DataError, Problem, RunError
from ich_models.files import write_rows
from ich_models.image_spec import BRAIN, CtSlices, CtVolume, ImageSpec, MrVolume
from ich_models.windows import window
from ich_models.yaml_config import Document

MODALITY: Final = {"ct": "CT", "ct_slices": "CT", "mr": "MR", "radiograph": RADIOGRAPH}
"""What a study must hold for each kind of image."""

HASHES: Final = "hashes.sqlite"
"""In the cache's folder: what is known of the hospital's files."""

TRIES: Final = 3
"""How often an entry is made that others' entries push out of the cache at once."""


def user_cache() -> Path:
    """Where a user's programs keep what they can make again (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ich-federation"


@dataclass(frozen=True)
class Ask:
    """Which patients' images are read (of a hospital's, in the order of its table), and who is told meanwhile."""

    limit: int | None = None
    patient: str | None = None
    watch: Watch = lambda phase, done, total: None

    @property
    def all(self) -> bool:
        """Whether everybody's are."""
        return self.limit is None and self.patient is None

    def wanted(self, ids: Sequence[str]) -> list[int]:
        """Their places among the patients."""
        places = [place for place, one in enumerate(ids) if self.patient in (None, one)]
        return places[: self.limit]


EVERYBODY: Final = Ask()


@dataclass(frozen=True)
class Aside:
    """Something that is not used: reason, what exactly, where, and how many images it has. For local eyes."""

    patient: str
    reason: Reason
    detail: str
    where: str
    images: int

    @property
    def hint(self) -> str:
        """What to do about it."""
        return HINTS[self.reason]


@dataclass(frozen=True)
class Chosen:
    """The image of one patient. `series`: uid, number, description and the reason for the choice; `key`: the acquired image
    in the cache, `prepared`: what is made of it; `studies`: how many the patient has; `kept`: of single images, which
    acquired ones are used, and `instances`: their SOPInstanceUIDs. For local eyes."""

    patient: str
    study: str
    when: str
    studies: int
    series: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    unmet: tuple[str, ...]
    absent: tuple[str, ...]
    region: str
    problem: str
    seen: float
    key: str
    prepared: str = ""
    kept: tuple[int, ...] = ()
    instances: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Summary:
    """What became of a hospital's images. Counts by reason are all of it that may ever leave.

    `asked`: patients whose images were looked for; `other_modality`: their studies without the study's modality;
    `unmatched`: studies of nobody in the table; `kept`: patients whose image was in the cache already.
    `seconds`: per phase, summed over processes.
    """

    patients: int
    asked: int
    chosen: tuple[Chosen, ...]
    aside: tuple[Aside, ...]
    without: tuple[str, ...]
    unmatched: int
    other_modality: int
    kept: int
    labelled: int
    unlabelled: int
    seconds: Mapping[str, float]
    folder: str
    cache: str

    @property
    def counts(self) -> dict[Reason, int]:
        """Studies, series and files set aside, by reason."""
        return dict(sorted(Counter(one.reason for one in self.aside).items()))


@dataclass(frozen=True)
class Prepared:
    """What a hospital's patients get: arrays as `Patients` has them, and what to say of them."""

    image: NDArray[np.float16]
    present: NDArray[np.bool_]
    slices: NDArray[np.bool_] | None
    targets: NDArray[np.float32] | None
    instances: Mapping[str, tuple[tuple[str, ...], ...]]
    """SOPInstanceUIDs of each patient's slices, in their order. For local eyes."""
    summary: Summary
    warnings: tuple[Problem, ...]


@dataclass
class _Patient:
    """One patient on the way: the studies not yet tried, and the one that gave an image."""

    name: str
    studies: list[Study]
    tried: int = 0
    task: Task | None = None
    facts: Facts = field(default_factory=dict)


def shape(spec: ImageSpec) -> tuple[int, ...]:
    """Of one patient's array."""
    return (
        (spec.channels, *spec.size) if isinstance(spec, CtVolume | MrVolume) else (spec.most, spec.channels, *spec.size)
    )


def prepare(
    document: Document[HospitalConfig],
    data: Path,
    spec: ImageSpec,
    ids: Sequence[str],
    finds: Finds | None,
    owner: Callable[[Study], str | None],
    cache: Path,
    ask: Ask = EVERYBODY,
) -> Prepared:
    """The images of these patients, in their order; who has no usable image stays in, marked as not present.

    `finds`: the hospital's folder, searched; None: it has no images. `owner`: from a study to its patient.
    Raises DataError for an unusable table of labels, RunError if the cache is too small, full or not to be written to,
    OSError for anything else about its disk.
    """
    try:
        with Cache(cache, document.value.cache.limit) as store:
            return _prepare(document, data, spec, ids, finds, owner, store, ask)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise _of_the_disk(error, cache, document, spec, len(ask.wanted(ids))) from error


_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
"""Numbers of errors that people can do something about."""


def _of_the_disk(
    error: OSError, cache: Path, document: Document[HospitalConfig], spec: ImageSpec, patients: int
) -> RunError:
    """A full disk, or a folder that cannot be written to, with what to do."""
    where = document.where("cache", "folder")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = machine.existing(cache)
        room = f"{machine.gigabytes(shutil.disk_usage(there).free)} free; "
        need = machine.gigabytes(bytes_of(spec) * patients)
        hint = f"{room}the images of {patients:,} patients take about {need}: make room, or name a larger disk as cache.folder"
        return RunError(f"no space left for what is made of images, in {cache}", where=where, hint=hint)
    what = f"the cache {cache} cannot be written to: {error.strerror or error}"
    return RunError(what, where=where, hint=machine.unwritable(cache, "cache.folder"))


ACQUIRED: Final = {"ct": 20e6, "ct_slices": 20e6, "mr": 7e6, "radiograph": 40e6}
"""Bytes of a patient's images as they are kept (of MR: for each sequence), where none has been read yet: 36 slices of a
CT with 512 x 512 pixels and a mask, 24 slices of 256 x 256 pixels, two radiographs."""


def bytes_of(spec: ImageSpec, acquired: float | None = None) -> float:
    """In the cache, of one patient: as acquired (estimated, unless it is given), and twice as prepared."""
    sequences = len(spec.sequences) if isinstance(spec, MrVolume) else 1
    own = ACQUIRED[spec.kind] * sequences if acquired is None else acquired
    return own + 2 * 2 * prod(shape(spec))


def _prepare(
    document: Document[HospitalConfig],
    data: Path,
    spec: ImageSpec,
    ids: Sequence[str],
    finds: Finds | None,
    owner: Callable[[Study], str | None],
    store: Cache,
    ask: Ask,
) -> Prepared:
    seconds: dict[str, float] = {}
    images = document.value.images
    patients = [_Patient(name, []) for name in ids]
    by_name = {one.name: one for one in patients}
    other, unmatched = 0, 0
    aside: list[Aside] = []
    asked = ask.wanted(ids)
    looked = {ids[place] for place in asked}
    for study in finds.studies if finds else ():
        name = owner(study)
        if name is None:
            unmatched += 1
        elif name in looked:
            aside += [_aside(name, one) for one in study.aside]
            if MODALITY[spec.kind] in study.kinds():
                by_name[name].studies.append(study)
            elif study.images:
                other += 1
    if finds is not None and images is not None:
        seconds["scan"] = finds.seconds
        aside += [_aside("", one) for one in finds.aside]
        found_labels = _labels(document, images, data, spec)
        network = _network(document, images, data, spec)
        with FileHashes(store.folder / HASHES) as hashes:
            made = _make_all(
                patients,
                images,
                finds,
                data,
                spec,
                found_labels,
                store,
                document.value.limits.threads,
                ask,
                seconds,
                network,
                hashes,
            )
    else:
        found_labels, made = {}, 0
    for one in patients:
        aside += _set_aside(one, finds)
    with _timed(seconds, "assemble"):
        image = _assemble(patients, spec, store)
    present = np.array([one.task is not None for one in patients], np.bool_)
    slices = targets = None
    labelled = unlabelled = torn = 0
    if not isinstance(spec, CtVolume | MrVolume):
        slices = np.zeros((len(ids), spec.most), np.bool_)
        for place, one in enumerate(patients):
            if one.task is not None:
                slices[place, : len(one.facts["kept"])] = True
    if isinstance(spec, CtSlices):
        targets, torn = _targets(patients, found_labels, spec)
        known = ~np.isnan(targets).all(axis=2)
        labelled, unlabelled = int(known.sum()), int((slices & ~known).sum()) if slices is not None else 0
    chosen = tuple(_chosen(one) for one in patients if one.task is not None)
    summary = Summary(
        patients=len(ids),
        asked=len(asked),
        chosen=chosen,
        aside=tuple(aside),
        without=tuple(ids[place] for place in asked if not present[place]),
        unmatched=unmatched,
        other_modality=other,
        kept=len(chosen) - made,
        labelled=labelled,
        unlabelled=unlabelled,
        seconds={phase: round(value, 3) for phase, value in seconds.items()},
        folder=str(finds.root) if finds else "",
        cache=str(store.folder),
    )
    instances = {
        one.name: tuple(map(tuple, one.facts.get("instances", ()))) for one in patients if one.task is not None
    }
    return Prepared(
        image, present, slices, targets, instances, summary, tuple(_warnings(document, summary, spec, torn))
    )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - began


# --- studies to entries of the cache ----------------------------------------------------------------------------------


def _labels(document: Document[HospitalConfig], images: Images, data: Path, spec: ImageSpec) -> dict[str, Any]:
    if images.labels is None or not isinstance(spec, CtSlices):
        return {}

    def where(key: str) -> str:
        return document.where("images", "labels", key)

    return label_table.read(data / images.labels.file, images.labels, where)


def _network(document: Document[HospitalConfig], images: Images, data: Path, spec: ImageSpec) -> Network | None:
    """The hospital's own network for the brain, if it has one and the study wants brains. Raises DataError if it is none."""
    given = images.brain_weights
    if given is None or not isinstance(spec, CtVolume) or spec.brain != "mask":
        return None
    from ich_client import brain_weights

    path, where = data / given.file, document.where("images", "brain_weights", "file")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        brain_weights.load(path, digest)
    except OSError as error:
        hint = "correct it; it is relative to the data"
        raise DataError(f"{path} cannot be read: {error.strerror or error}", where=where, hint=hint) from None
    except DataError as error:
        raise DataError(replace(one, where=where) for one in error.problems) from None
    return Network(path, digest, given.spacing)


def _make_all(
    patients: Sequence[_Patient],
    images: Images,
    finds: Finds,
    data: Path,
    spec: ImageSpec,
    labels: Mapping[str, Any],
    store: Cache,
    processes: int,
    ask: Ask,
    seconds: dict[str, float],
    network: Network | None,
    hashes: FileHashes,
) -> int:
    """Give every patient the first study that makes an image; how many patients' were not in the cache."""
    sequences = tuple(sorted(images.sequences.items()))
    wishes = Wishes(spec, images.series, sequences, images.missing_slices, network)
    masks = None if images.masks is None else data / images.masks
    total = sum(bool(one.studies) for one in patients)
    done = fresh = 0

    def settle(one: _Patient, task: Task, facts: Facts, *, new: bool) -> None:
        nonlocal done, fresh
        one.tried += 1
        study_done = "refused" not in facts
        one.facts.setdefault("tried", []).append({**facts, "study": one.studies[one.tried - 1].uid})
        if study_done:
            one.task, one.facts = task, {**facts, "tried": one.facts["tried"]}
            fresh += new
        if study_done or one.tried == len(one.studies):
            done += 1
            ask.watch("images", done, total)

    def task_of(one: _Patient) -> Task:
        study, mask = one.studies[one.tried], mask_of(masks, one.name)
        files = _digest([*study.files(MODALITY[spec.kind]), *([mask] if mask else [])], study, hashes)
        labelled = frozenset(study.instances() & labels.keys())
        own = study.only(MODALITY[spec.kind])
        return Task(own, finds.root, wishes, files, store.folder, store.limit, mask, labelled)

    while waiting := [one for one in patients if one.task is None and one.tried < len(one.studies)]:
        tasks: list[tuple[_Patient, Task]] = []
        with _timed(seconds, "compare"), ThreadPoolExecutor(processes) as pool:
            for one, task in zip(waiting, pool.map(task_of, waiting), strict=True):
                entry = store.get(task.prepared)
                if entry is None:
                    tasks.append((one, task))
                else:
                    settle(one, task, study_images.load(entry)[1], new=False)
        whose = {task.prepared: one for one, task in tasks}
        by_key = {task.prepared: task for _, task in tasks}
        twins = [(one, task) for one, task in tasks if whose[task.prepared] is not one]
        for task, made in workers.each(study_images.make, list(by_key.values()), min(processes, len(by_key) or 1)):
            result = made or Made(_died())
            for phase, value in result.seconds.items():
                seconds[phase] = seconds.get(phase, 0.0) + value
            settle(whose[task.prepared], task, result.facts, new=True)
            for one, own in twins:
                if own.prepared == task.prepared:
                    settle(one, own, result.facts, new=False)
    return fresh


def _digest(paths: Sequence[Path], study: Study, hashes: FileHashes) -> str:
    """SHA-256 of all files of a study that may be read, and of what is known of those that may not."""
    parts: list[object] = []
    for path in paths:
        try:
            parts.append(hashes.of(path))
        except OSError as error:  # told again, and in full, when it is read
            parts.append(type(error).__name__)
    names = [entry.path.name for entry in study.images if isinstance(entry, Entry)]
    bad = sorted((one.refusal.reason, one.refusal.detail, one.series) for one in study.aside)
    return hashlib.sha256(json.dumps([parts, names, bad]).encode()).hexdigest()


def _died() -> Facts:
    refusal = Refusal(Reason.PIXELS, "the process that read it was ended, by its decoder or for want of memory")
    return {"refused": {"reason": str(refusal.reason), "detail": refusal.detail, "where": ""}}


# --- entries to arrays ------------------------------------------------------------------------------------------------


def _assemble(patients: Sequence[_Patient], spec: ImageSpec, store: Cache) -> NDArray[np.float16]:
    """(N, ...) float16, mapped from the cache: pages are read when they are used, and changes to them stay in memory."""
    whole = (len(patients), *shape(spec))
    keys = [one.task.prepared if one.task else None for one in patients]
    key = hashlib.sha256(json.dumps(["hospital", preprocess.VERSION, whole, keys]).encode()).hexdigest()

    def write(folder: Path) -> None:
        # Patients without an image, and places without a slice, are holes in the file.
        tasks = ((place, one.task) for place, one in enumerate(patients))
        own = ((place, _image(task, store)) for place, task in tasks if task is not None)
        write_rows(folder / IMAGE, whole, np.float16, own)

    for _ in range(TRIES):
        entry = store.get(key) or store.put(key, write)
        try:
            mapped: NDArray[np.float16] = np.load(entry / IMAGE, mmap_mode="c")
            return mapped
        except FileNotFoundError:
            continue  # another process has just pushed it out
    raise _too_small(store)


def _image(task: Task, store: Cache) -> NDArray[np.float16]:
    """One patient's array; made anew if it was pushed out meanwhile."""
    for _ in range(TRIES):
        entry = store.get(task.prepared)
        try:
            if entry is not None and (image := study_images.load(entry)[0]) is not None:
                return image
        except FileNotFoundError:
            pass
        study_images.make(task)
    raise _too_small(store)


def _too_small(store: Cache) -> RunError:
    hint = "raise cache.limit in hospital.yaml"
    return RunError(f"the cache ({store.limit / 1e9:g} GB) does not keep one entry", where=str(store.folder), hint=hint)


def _targets(
    patients: Sequence[_Patient], labels: Mapping[str, NDArray[np.float32]], spec: CtSlices
) -> tuple[NDArray[np.float32], int]:
    """(N, S, 5), NaN where unlabelled, and how many slices have copies with labels that differ."""
    out = np.full((len(patients), spec.most, len(TYPES)), np.nan, np.float32)
    torn = 0
    for place, one in enumerate(patients):
        if one.task is None:
            continue
        for slot, names in enumerate(one.facts["instances"]):
            own = [labels[name] for name in names if name in labels]
            if own:
                out[place, slot] = own[0]
                torn += any(not np.array_equal(own[0], other, equal_nan=True) for other in own[1:])
    return out, torn


# --- what a language model is shown ------------------------------------------------------------------------------------


def slices_of(one: Chosen, spec: ImageSpec, cache: str) -> Slices | str:
    """The brain of a patient's image slice by slice as uint8, as a radiologist sees it, black around; or why there is none.

    CT in the window of the brain, MR by its first sequence. Where only the head was found nothing is shown: a face is no
    brain. Raises RunError if the cache has lost the image: another text would be learnt from than at the next start.
    """
    with Cache(Path(cache), inf) as store:
        entry = store.get(one.key)
        if entry is None:
            raise RunError(
                "an image is not in the cache any more", where=cache, hint="raise cache.limit in hospital.yaml"
            )
        arrays, facts = study_images.load_volume(entry)
    mask = arrays.get("mask")
    if mask is None or facts.get("region") == "head" or not mask.any():
        return "the brain was not found"
    if isinstance(spec, MrVolume):
        values = next(arrays[name] for name in spec.sequences if name in arrays)
        low, high = (float(end) for end in np.percentile(values[mask], (1, 99)))
        grey = ((values - low) / max(high - low, 1e-6)).clip(0, 1)
    else:
        grey = window(arrays["values"], *BRAIN)
    levels = np.flatnonzero(mask.any(axis=(1, 2)))
    rows, columns = np.flatnonzero(mask.any(axis=(0, 2))), np.flatnonzero(mask.any(axis=(0, 1)))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = np.where(mask[levels], np.rint(grey[levels] * 255), 0).astype(np.uint8)
    return [np.ascontiguousarray(picture[box][::-1, ::-1]) for picture in inside]


# --- the account ------------------------------------------------------------------------------------------------------


def _aside(patient: str, one: Refused) -> Aside:
    return Aside(patient, one.refusal.reason, one.refusal.detail, one.refusal.where, one.images)


def _set_aside(one: _Patient, finds: Finds | None) -> Iterator[Aside]:
    """What was refused of the studies that were tried."""
    assert finds is not None or not one.facts
    for study, facts in zip(one.studies, one.facts.get("tried", ()), strict=False):
        told = list(facts.get("aside", ()))
        if "refused" in facts:
            whole = {**facts["refused"], "images": 0}
            whole["where"] = whole["where"] or f"study {study.uid}" + (f" of {study.when}" if study.when else "")
            told.append(whole)
        for each in told:
            place = each["where"]
            known = finds is not None and place and not place.startswith(("study ", os.sep))
            where = str(finds.root / place) if known and finds is not None else place
            yield Aside(one.name, Reason(each["reason"]), each["detail"], where, each["images"])


def _chosen(one: _Patient) -> Chosen:
    assert one.task is not None, "a patient with an image"
    facts, study = one.facts, one.studies[one.tried - 1]
    return Chosen(
        patient=one.name,
        study=study.uid,
        when=study.when,
        studies=len(one.studies),
        series=tuple(facts["series"]),
        notes=tuple(facts.get("notes", ())),
        unmet=tuple(facts.get("unmet", ())),
        absent=tuple(facts.get("absent", ())),
        region=facts.get("region", ""),
        problem=facts.get("problem", ""),
        seen=facts.get("seen", 1.0),
        key=one.task.acquired,
        prepared=one.task.prepared,
        kept=tuple(facts.get("kept", ())),
        instances=tuple(map(tuple, facts.get("instances", ()))),
    )


def _warnings(document: Document[HospitalConfig], summary: Summary, spec: ImageSpec, torn: int) -> Iterator[Problem]:
    where, found = document.where("images"), len(summary.chosen)
    if not summary.folder:
        hint = "add images: {folder: ...} if it has them; until then its patients take part without"
        yield Problem("the study looks at images, and this hospital brings none", where, hint)
        return
    if found < summary.asked:
        hint = "ich-client check shows every study that was set aside, and what to do"
        yield Problem(f"{summary.asked - found} of {summary.asked} patients have no usable image", where, hint)
    if summary.unmatched:
        message = f"{summary.unmatched} studies in {summary.folder} belong to nobody in the table"
        hint = "that may be so; if not, check images.link (leading zeros, blanks, another identifier)"
        yield Problem(message, document.where("images", "link"), hint)
    if heads := [one for one in summary.chosen if one.region == "head" and one.problem]:
        message = f"the brain was not told from the rest in {len(heads)} images; the whole head is used"
        yield Problem(message, where, f"the first: {heads[0].problem}; images.masks may bring masks of your own")
    if failed := [one for one in summary.chosen if one.problem.startswith(NETWORK)]:
        message = f"the network of images.brain_weights did not find the brain in {len(failed)} of {found} images"
        hint = f"our own method was used; the first: {failed[0].problem.partition('; ')[0]}"
        yield Problem(message, document.where("images", "brain_weights"), hint)
    if isinstance(spec, CtVolume) and (cut := [one for one in summary.chosen if one.seen < spec.least_seen]):
        message = f"{len(cut)} images have less than {spec.least_seen:.0%} of the brain within the array"
        yield Problem(message, where, f"the least: {min(one.seen for one in cut):.0%}; tell the coordinator")
    if isinstance(spec, CtSlices) and document.value.images is not None and document.value.images.labels:
        place = document.where("images", "labels")
        if not summary.labelled and found:
            hint = "check images.labels.instance: it must hold SOPInstanceUIDs as the files have them"
            yield Problem("no label names a slice that is used", place, hint)
        if torn:
            yield Problem(f"{torn} slices have copies with other labels", place, "the first copy's labels are used")
