"""A hospital's images to one array in the order of its patients, and an account of what became of every study."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ich_client import labels as label_table
from ich_client import study_images, workers
from ich_client.cache import Cache
from ich_client.dicom.reasons import HINTS, Reason, Refusal
from ich_client.dicom.series import Refused
from ich_client.hospital import HospitalConfig
from ich_client.image_finds import RADIOGRAPH, Finds, Study, Watch, mask_of
from ich_client.image_mapping import Images
from ich_client.labels import TYPES
from ich_client.nifti import Entry
from ich_client.study_images import IMAGE, Facts, Made, Task, Wishes
from ich_models import preprocess
from ich_models.errors import Problem, RunError
from ich_models.image_spec import CtSlices, CtVolume, ImageSpec, MrVolume
from ich_models.yaml_config import Document

MODALITY: Final = {"ct": "CT", "ct_slices": "CT", "mr": "MR", "radiograph": RADIOGRAPH}
"""What a study must hold for each kind of image."""

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
    Raises DataError for an unusable table of labels, RunError if the cache is too small, OSError for its disk.
    """
    with Cache(cache, document.value.cache.limit) as store:
        return _prepare(document, data, spec, ids, finds, owner, store, ask)


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
        made = _make_all(
            patients, images, finds, data, spec, found_labels, store, document.value.limits.threads, ask, seconds
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
    return Prepared(image, present, slices, targets, summary, tuple(_warnings(document, summary, spec, torn)))


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
) -> int:
    """Give every patient the first study that makes an image; how many patients' were not in the cache."""
    wishes = Wishes(spec, images.series, tuple(sorted(images.sequences.items())), images.missing_slices)
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
        files = _digest([*study.files(MODALITY[spec.kind]), *([mask] if mask else [])], study)
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


def _digest(paths: Sequence[Path], study: Study) -> str:
    """SHA-256 of all files of a study that may be read, and of what is known of those that may not."""
    parts: list[object] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                parts.append(hashlib.file_digest(file, "sha256").hexdigest())
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
        # Patients without an image, and places without a slice, are holes in the file: zeros that take no space.
        array = np.lib.format.open_memmap(folder / IMAGE, "w+", np.float16, whole)
        for place, one in enumerate(patients):
            if one.task is not None:
                own = _image(one.task, store)
                if isinstance(spec, CtVolume | MrVolume):
                    array[place] = own
                else:
                    array[place, : len(own)] = own
        array.flush()

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
