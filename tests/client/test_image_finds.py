"""What is found in a hospital's folder: which study is the first, and which file is a patient's own mask."""

from pathlib import Path

import pytest
from phantom import as_mr, ct, write

from ich_client.image_finds import Study, find, mask_of
from ich_client.image_mapping import Images


def test_studies_go_by_their_date_and_those_without_one_come_last() -> None:
    """Their UIDs say nothing of the order, but decide between two of one date."""
    found = [
        Study("P1", uid, "", when, ())
        for uid, when in (
            ("1.1", ""),
            ("1.2", "20240301 101500"),
            ("1.4", "20240301 090000"),
            ("1.3", "20240301 090000"),
        )
    ]
    assert [one.uid for one in sorted(found, key=lambda one: one.rank)] == ["1.3", "1.4", "1.2", "1.1"]


def test_a_study_is_what_any_of_its_images_says(tmp_path: Path) -> None:
    """Not all name the request, and each has the time at which it was made: the study began with the earliest."""
    slices = ct([0.0, 5.0, 10.0, 15.0], rows=2, columns=2)
    for one, accession, time in zip(slices, ("", "A7", "A7", ""), ("1015", "0900", "1100", ""), strict=True):
        one.AccessionNumber, one.StudyDate, one.StudyTime = accession, "20240301" if time else "", time
    other = ct([0.0, 5.0, 10.0], rows=2, columns=2, series="1.2.4.1")
    for one in other:
        one.PatientID = "P2"  # the same study number: another patient's all the same
    write(tmp_path, slices + other)
    found = find(tmp_path, Images.model_validate({"folder": "."}), "", lambda *_: None)
    assert [(one.patient, one.accession, one.when, len(one.files("CT"))) for one in found.studies] == [
        ("P1", "A7", "20240301 0900", 4),
        ("P2", "", "", 3),
    ]


def test_of_a_study_with_ct_and_mr_each_is_asked_for_by_itself(tmp_path: Path) -> None:
    """A file of the other modality is no reason to read the image anew."""
    z = [0.0, 5.0, 10.0]
    write(tmp_path, ct([*z, 15.0], rows=2, columns=2) + as_mr(ct(z, rows=2, columns=2, series="1.2.4.1")))
    (study,) = find(tmp_path, Images.model_validate({"folder": "."}), "", lambda *_: None).studies
    assert study.kinds() == {"CT", "MR"}
    assert (len(study.files("CT")), len(study.files("MR"))) == (4, 3)
    assert [one.first.modality for one in study.only("CT")] == ["CT"]


@pytest.mark.parametrize("patient", ["../other", "a/b", "/etc/x", ".hidden", "..", ""])
def test_a_patients_name_leads_to_no_other_folder(patient: str, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    for path in (tmp_path / "other.nii", folder / "a" / "b.nii", folder / ".hidden.nii", folder / ".nii"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert mask_of(folder, patient) is None


def test_a_mask_is_the_patients_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "P1.nii.gz").touch()
    assert mask_of(tmp_path, "P1") == tmp_path / "P1.nii.gz"
    assert mask_of(tmp_path, "P2") is None
    assert mask_of(None, "P1") is None
