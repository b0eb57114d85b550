"""Pictures for the report of a simulation on demo hospitals: what each fold's model looked at in two of its test patients.

Of generated patients alone: a folder without the generator's mark gives no picture, so a report on real ones never has any.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ich_client import overlay
from ich_client.check_page import png
from ich_client.site import Site
from ich_client.work import load_stack, personal, predict
from ich_deploy.demo import anatomy, hospitals, scanner
from ich_deploy.demo.case import Case
from ich_models.explain import grad_cam, image_layers
from ich_models.image_spec import CtVolume
from ich_models.volume import Volume
from ich_server.report.photos import Photo
from ich_server.study import StudyResult

BLOOD: Final = "intraparenchymal"

Mask = NDArray[np.bool_]


def pictures(sites: Sequence[Site], study: StudyResult, federation: Path) -> list[Photo]:
    """For each fold that held a hospital out, one of its patients with the outcome and one without, the first by table.

    `federation`: the study's file; the generator's mark lies beside it. Nothing without the mark, of a study without
    head CT volumes, and of patients without an image.
    """
    cases = _cases(federation.parent / hospitals.DONE)
    if not cases or not sites:
        return []
    settings = sites[0].plan.federation
    spec = settings.modalities.image
    if not isinstance(spec, CtVolume) or "image" not in settings.network.uses:
        return []
    generated = [site for site in sites if _generated(site, federation.parent / "data", cases)]
    held_out = [(site, fold) for site in generated if (fold := f"without:{site.hospital.name}") in study.folds]
    return [_picture(site, fold, study, place, spec, cases) for site, fold in held_out for place in _two(site)]


def _generated(site: Site, data: Path, cases: Mapping[tuple[str, str], Case]) -> bool:
    """Whether a hospital's images are those that lie beside the mark: a demo's study may be run on other data."""
    images, name = site.hospital.images, site.hospital.name
    if images is None or not images.folder or not Path(images.folder).resolve().is_relative_to(data.resolve()):
        return False
    return all((name, patient) in cases for patient in site.hospital.patients.ids)


def _cases(mark: Path) -> Mapping[tuple[str, str], Case]:
    """The generated patients by hospital and identifier; nobody where the data were not generated as head CTs."""
    if not mark.is_file():
        return {}
    what = json.loads(mark.read_text())
    if what.get("kind") != "ct":
        return {}
    drawn = hospitals.generate("ct", what["seed"])
    return {(name, case.patient): case for name, cases in drawn.items() for case in cases[: what["patients"][name]]}


def _two(site: Site) -> Iterator[int]:
    """Places of the first patient with the outcome and of the first without who have an image."""
    patients = site.hospital.patients
    for label in (1, 0):
        rows = np.flatnonzero((patients.labels == label) & patients.holding("image"))
        if len(rows):
            yield int(rows[0])


def _picture(
    site: Site,
    fold: str,
    study: StudyResult,
    place: int,
    spec: CtVolume,
    cases: Mapping[tuple[str, str], Case],
) -> Photo:
    plan, hospital = site.plan, site.hospital
    assert hospital.images is not None, "a patient with an image"
    name = hospital.patients.ids[place]
    rows = next(personal(site, [fold], study.of([fold])))
    alone = hospital.patients.take(np.array([place]))
    chance = float(predict(plan, rows, alone)[0, 0])
    network = load_stack(plan, rows).network
    batch = alone.batch(plan.dtype)
    batch = batch.to(plan.dtype, batch.label.device)
    values = grad_cam(network, batch, image_layers(network)[0])[0].float().numpy()
    (chosen,) = (one for one in hospital.images.chosen if one.patient == name)
    where = overlay.space(hospital.images, chosen, spec)
    back = where.back(values).values
    truth = truth_on(cases[hospital.name, name], where.volume)
    level = int((truth.sum(axis=(1, 2)) if truth.any() else back.sum(axis=(1, 2))).argmax())
    grey, heat = overlay.as_seen(where.volume, back, level)
    outline = np.ascontiguousarray(truth[level][::-1, ::-1])
    plain, mapped = overlay.painted(grey, np.zeros_like(heat)), overlay.painted(grey, heat, outline)
    side = "poor" if hospital.patients.labels[place] == (plan.federation.task.outcome.positive == "poor") else "good"
    title = plan.federation.task.outcome.positive
    return Photo(
        f"{hospital.name} held out, patient {name}",
        "data:image/png;base64," + b64encode(png(np.concatenate([plain, mapped], axis=1))).decode(),
        f"Two pictures of slice {level} of a generated head CT: plain, and with the map and the outline of the blood",
        f"Outcome {side}; probability of a {title} outcome {chance:.2f}. Slice {level}; right: Grad-CAM from red to yellow,"
        " the generated haematoma outlined in green.",
    )


def truth_on(case: Case, volume: Volume, kind: str = BLOOD) -> Mask:
    """Where a generated patient's lesion is, on the voxels of a volume (D, H, W) of one of the demo's CT scanners."""
    person = anatomy.Person(float(case.values["age"] or 0), case.seed)
    x, y, z = scanner.CT[case.hospital].slices.origin
    affine = volume.affine.copy()
    affine[:3, 3] -= np.array([-x, -y, z])  # LPS, from the middle of the head
    return anatomy.head(person, case.lesions, affine, volume.values.shape).lesion(kind)
