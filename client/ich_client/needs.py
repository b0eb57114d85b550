"""What a study will need of the machine: memory, disk, packages and pinned files, reckoned from what was found."""

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from ich_client import images
from ich_client.cache import Cache
from ich_client.hospital import HospitalConfig
from ich_client.images import Summary
from ich_client.machine import Needs, Room, Weights
from ich_client.tables import Hospital
from ich_models.folds import folds_of
from ich_models.image_spec import ImageSpec
from ich_models.networks.options import Pinned
from ich_models.yaml_config import Document
from ich_strategies.plan import Plan

KEPT: Final = 4
"""Times that a model's weights are on the disk: what stays between two rounds, twice, the model at the end, a draft."""

RECORDS: Final = 20e6
"""Bytes of the audit log and other records of a study."""


def of(
    plan: Plan,
    hospitals: Sequence[Hospital],
    documents: Sequence[Document[HospitalConfig]],
    data: Path,
    cache: Path | None = None,
    home: Path | None = None,
    clock: tuple[float, str] | None = None,
) -> Needs:
    """What these hospitals' part in a study needs. `cache`: as in `load_hospitals`; `home`: the hospital's folder."""
    modalities = plan.federation.modalities
    model = _model(plan, hospitals)
    rooms = [] if modalities.image is None else list(_caches(modalities.image, hospitals, documents, data, cache))
    if home is not None:
        rooms.append(Room("disk for records", "--home", home, KEPT * model + RECORDS))
    return Needs(
        threads=max(one.value.limits.threads for one in documents),
        model=model,
        images=modalities.image is not None,
        dicom=any(one.value.images is not None and one.value.images.format == "dicom" for one in documents)
        and modalities.image is not None,
        private=plan.federation.privacy is not None,
        networks=bool(set(plan.federation.network.uses) - {"table"}) or modalities.text is not None,
        devices=tuple(dict.fromkeys(one.value.limits.device for one in documents)),
        rooms=tuple(rooms),
        weights=tuple(dict.fromkeys(_weights(plan, documents, data))),
        clock=clock,
    )


def _model(plan: Plan, hospitals: Sequence[Hospital]) -> float:
    """Bytes of all weights of the models that one message brings."""
    own = sum(tensor.numel() * tensor.element_size() for tensor in plan.outline.state_dict().values())
    folds = max(
        (
            sum(fold.trains_at(one.name) for fold in folds_of(plan.federation.evaluation, (one.name,)))
            for one in hospitals
        ),
        default=1,
    )
    travelling = plan.weights.size * plan.number.itemsize
    return float(own * max(1, min(folds, int(plan.federation.training.message_limit // max(1, travelling)))))


def _caches(
    spec: ImageSpec,
    hospitals: Sequence[Hospital],
    documents: Sequence[Document[HospitalConfig]],
    data: Path,
    cache: Path | None,
) -> Iterator[Room]:
    """The folder that each hospital's images are kept in, and what will still come to it."""
    coming: dict[Path, float] = {}
    for one in documents:
        own = one.value.cache.folder
        coming.setdefault(data / own if own is not None else cache or images.user_cache(), 0.0)
    for hospital in hospitals:
        if (found := hospital.images) is not None and found.folder:
            folder = Path(found.cache)
            coming[folder] = coming.get(folder, 0.0) + per_patient(spec, found) * (found.patients - found.asked)
    for folder, size in coming.items():
        yield Room("disk for images", "cache.folder", folder, size)


def per_patient(spec: ImageSpec, found: Summary) -> float:
    """Bytes in the cache for one patient, measured where some were read."""
    with Cache(Path(found.cache), inf) as store:
        sizes = [size for one in found.chosen if (size := store.size(one.key))]
    return images.bytes_of(spec, sum(sizes) / len(sizes) if sizes else None)


def _weights(plan: Plan, documents: Sequence[Document[HospitalConfig]], data: Path) -> Iterator[Weights]:
    for pinned in pinned_of(plan.federation):
        for one in documents:
            own = one.value.weights.get(pinned.name)
            path = None if own is None else data / own
            yield Weights(pinned.name, pinned.sha256, path, one.where("weights", *([pinned.name] if own else [])))


def pinned_of(value: object) -> Iterator[Pinned]:
    """Every file that a study pins, wherever it says so."""
    if isinstance(value, Pinned):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from pinned_of(getattr(value, name))
    elif isinstance(value, dict):
        for each in value.values():
            yield from pinned_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from pinned_of(each)
