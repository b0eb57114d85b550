"""One patient's images: from what is to be seen to the files that the hospital's archive would hand out."""

from pathlib import Path
from typing import Final

import numpy as np

from ich_deploy.demo import anatomy, appearance, dicom, infarct, joint, scanner, slices
from ich_deploy.demo.case import Case, Seen

SECOND_RECONSTRUCTION: Final = 6
"""The sixth of every twenty patients' heads is also there for bone, and a reader must choose."""
BROKEN: Final = 5
"""The fifth patient's second reconstruction broke off on its way."""
SCOUTED: Final = 10
"""Every tenth patient's study has its scout with it, as has the first patient's."""
TWICE: Final = 7
"""The seventh patient of south: one slice was sent twice."""


def study(case: Case) -> dicom.Study:
    """The patient's visit to radiology."""
    return dicom.Study(case.seed, case.image_patient, case.accession, f"{case.admitted:%Y%m%d}")


def place(case: Case, images: Path) -> Path:
    """The folder of one patient's files. Its name is the archive's, not the patient's."""
    return images / f"{case.admitted:%Y%m}" / case.accession


def head_ct(case: Case, images: Path) -> Seen:
    """A head CT, with what else lies in such a study; every slice is labelled by the area of each kind of bleeding in it."""
    own, visit, folder = scanner.CT[case.hospital], study(case), place(case, images)
    person = anatomy.Person(float(case.values["age"] or 0), case.seed)
    found = anatomy.at(person, case.lesions, own.slices.points(), own.slices.voxel)
    truth = appearance.hounsfield(found, float(case.truth["blood_hu"]))

    def taken(kernel: scanner.Kernel, purpose: int) -> scanner.Floats:
        rng = case.rng(purpose)
        return scanner.reconstruct(truth, kernel, found.edge, rng) + np.float32(
            rng.normal(0, 0.2)
        )  # calibration drifts

    pixels, tags = scanner.stored_ct(taken(own.soft, 21), own.signed)
    names = dicom.series(folder, visit, 2, "CT", pixels, own.slices, {**own.tags, **tags}, own.descending)
    if case.number % SCOUTED == 1:
        dicom.single(folder, visit, 1, "CT", *dicom.scout((96, 80), case.rng(22)))
    if case.number == BROKEN or case.number % 20 == SECOND_RECONSTRUCTION:
        pixels, tags = scanner.stored_ct(taken(own.sharp, 23), own.signed)
        dicom.series(folder, visit, 3, "CT", pixels, own.slices, {**own.sharp_tags, **tags}, own.descending)
    if case.number == BROKEN:
        dicom.damaged(sorted(folder.glob("S03*"))[4])
    if case.hospital == "south" and case.number == TWICE:
        first = sorted(folder.glob("S02*"))[0]
        first.with_name("copy").write_bytes(first.read_bytes())
    area = own.slices.pixel**2
    each = np.stack([found.lesion(kind).sum(axis=(1, 2)) * area >= slices.VISIBLE for kind in anatomy.BLOOD], axis=1)
    labels = {name: tuple(map(int, row)) for name, row in zip(names, each, strict=True)}
    return Seen(_measured(found, own.slices, ("oedema", *anatomy.BLOOD)), labels)


def head_mr(case: Case, images: Path) -> Seen:
    """A stroke protocol: DWI, ADC and FLAIR; some patients of one hospital have no ADC."""
    visit, folder = study(case), place(case, images)
    person = anatomy.Person(float(case.values["age"] or 0), case.seed)
    measured: dict[str, float] = {}
    for number, one in enumerate(scanner.MR[case.hospital], start=2):
        every = infarct.WITHOUT_ADC.get(case.hospital)
        if one.sequence == "ADC" and every and case.number % every == 0:
            continue
        found = anatomy.at(person, case.lesions, one.slices.points(), one.slices.voxel)
        image = scanner.reconstruct(
            appearance.intensity(found, one.sequence), one.kernel, found.edge, case.rng(20 + number)
        )
        image[found.edge > 1.17] = 0  # as scanners do with what lies outside of the head
        pixels, tags = scanner.stored_mr(image, one.slope)
        dicom.series(folder, visit, number, "MR", pixels, one.slices, {**one.tags, **tags})
        measured = measured or _measured(found, one.slices, ("infarct",))
    return Seen(measured)


def joint_views(case: Case, images: Path) -> Seen:
    """Two radiographs of a joint."""
    machine, visit, folder = joint.DETECTORS[case.hospital], study(case), place(case, images)
    part, side = str(case.values["joint"]), str(case.values["side"])
    for number, view in enumerate(joint.VIEWS, start=1):
        image = joint.radiograph(
            machine,
            part,
            side,
            view,
            float(case.truth["lysis"]),
            float(case.truth["effusion"]),
            (*case.seed, 20 + number),
        )
        dicom.single(folder, visit, number, "DX", *joint.stored(image, machine, part, view))
    return Seen()


def _measured(found: anatomy.Anatomy, where: scanner.Slices, kinds: tuple[str, ...]) -> dict[str, float]:
    """mL of each kind as it is in the voxels, and the middle of the first one in the scanner's coordinates (RAS mm)."""
    truth: dict[str, float] = {}
    points = [np.broadcast_to(axis, found.tissue.shape) for axis in where.points()]
    shift = np.array([-where.origin[0], -where.origin[1], where.origin[2]])
    for kind in kinds:
        mask = found.lesion(kind)
        weight = mask.sum(axis=(1, 2)) * where.voxel.astype(np.float64)
        truth[f"{kind}_ml"] = float(weight.sum())
        if mask.any() and kind in (anatomy.BLOOD[0], "infarct"):
            each = np.broadcast_to(where.voxel[:, None, None], mask.shape)[mask]
            middle = np.array([np.average(axis[mask], weights=each) for axis in points]) + shift
            truth |= {f"middle_{axis}": float(mm) for axis, mm in zip("xyz", middle, strict=True)}
    return truth
