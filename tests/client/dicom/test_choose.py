"""The series of a study: chosen by score or pattern, the reason on record; and slice labels that land on their slices."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom import ct, write
from pydicom.dataset import Dataset

from ich_client.dicom.choose import Choice, choose, kernel_is_soft, studies
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import scan
from ich_client.dicom.series import group

Z = np.arange(24) * 5.0


def series(number: int, z: Sequence[float] = tuple(Z), tilt: float = 0.0, **tags: Any) -> list[Dataset]:
    slices = ct(z, series=f"1.2.3.{number}", tilt=tilt, rows=40, columns=36, spacing=(5.4, 5.7))
    for one in slices:
        one.SeriesNumber = number
        for tag, value in tags.items():
            setattr(one, tag, value)
    return slices


def chosen(tmp_path: Path, *images: list[Dataset], pattern: str | None = None) -> Choice:
    stacks, refused = group(scan(write(tmp_path, [one for part in images for one in part])))
    assert refused == []
    return choose(stacks, re.compile(pattern) if pattern else None)


GOOD = 1
OTHERS = {
    "axial": {"tilt": 40},
    "no contrast agent": {"ContrastBolusAgent": "Iopamidol"},
    "not sharp": {"ConvolutionKernel": "H60s"},
    "soft kernel": {"ConvolutionKernel": "unheard of"},
    "covers the head": {"z": Z[:15]},
    "2.5 to 5 mm apart": {"z": np.arange(120) * 1.0},
}


@pytest.mark.parametrize("criterion", OTHERS)
def test_one_unmet_criterion_decides(criterion: str, tmp_path: Path) -> None:
    choice = chosen(tmp_path, series(GOOD), series(7, **OTHERS[criterion]))
    assert choice.series.first.series_number == GOOD
    assert choice.reason == f"{criterion}, unlike the next of 2 usable series"
    assert choice.unmet == ()
    assert [one.first.series_number for one in choice.passed_over] == [7]


@pytest.mark.parametrize(
    ("steps", "step", "tilt", "unmet"),
    [
        (20, 5.0, 0, ()),
        (20, 4.99, 0, ("covers the head",)),  # 99.8 mm
        (42, 2.46, 0, ()),
        (42, 2.44, 0, ("2.5 to 5 mm apart",)),
        (20, 5.04, 0, ()),
        (20, 5.06, 0, ("2.5 to 5 mm apart",)),
        (28, 5.0, 36, ()),  # the cosine is 0.81, as of a gantry that is tilted very far
        (28, 5.0, -38, ("axial",)),  # 0.79
    ],
)
def test_criteria_on_both_sides_of_their_bounds(
    steps: int, step: float, tilt: float, unmet: tuple[str, ...], tmp_path: Path
) -> None:
    assert chosen(tmp_path, series(GOOD, z=step * np.arange(steps + 1), tilt=tilt)).unmet == unmet


def test_of_equals_the_one_with_more_slices_is_used(tmp_path: Path) -> None:
    assert chosen(tmp_path, series(3), series(8, z=5.0 * np.arange(25))).series.first.series_number == 8


def test_what_weighs_more_goes_first(tmp_path: Path) -> None:
    thin = series(2, z=np.arange(120) * 1.0, ConvolutionKernel="unheard of")
    choice = chosen(tmp_path, series(3, ConvolutionKernel="H60s"), thin)
    assert choice.series.first.series_number == 2
    assert choice.unmet == ("soft kernel", "2.5 to 5 mm apart")


def test_equals_are_decided_by_their_number(tmp_path: Path) -> None:
    choice = chosen(tmp_path, series(5), series(3), series(4))
    assert choice.series.first.series_number == 3
    assert choice.reason.startswith("as good as the next of 3")


def test_the_hospitals_pattern_overrides_the_score_and_derived(tmp_path: Path) -> None:
    derived = series(9, SeriesDescription="Head 5mm recon", ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])
    choice = chosen(tmp_path / "a", series(1), derived, pattern="5mm recon$")
    assert choice.series.first.series_number == 9
    assert choice.reason == "the hospital's pattern"
    choice = chosen(tmp_path / "b", series(1), derived)
    assert choice.series.first.series_number == 1
    assert [one.refusal.reason for one in choice.refused] == [Reason.DERIVED]


def test_the_next_series_is_used_when_the_best_cannot_be_read(tmp_path: Path) -> None:
    broken = series(1)
    broken[4].PixelData = broken[4].PixelData[:100]
    choice = chosen(tmp_path, broken, series(2, ConvolutionKernel="H60s"))
    assert choice.series.first.series_number == 2
    assert [one.refusal.reason for one in choice.refused] == [Reason.PIXELS]


def test_a_study_without_a_usable_series_says_every_reason(tmp_path: Path) -> None:
    scout = series(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(Refusal, match=re.escape("none of 2 series can be used (LOCALIZER, MISSING_SLICES)")):
        chosen(tmp_path, scout, series(2, z=np.delete(Z, 4)))


def test_patients_and_studies_are_kept_apart(tmp_path: Path) -> None:
    images = series(1) + series(2, StudyInstanceUID="1.2.4") + series(3, PatientID="P2")
    stacks, _ = group(scan(write(tmp_path, images)))
    assert studies(stacks).keys() == {("P1", "1.2.3"), ("P1", "1.2.4"), ("P2", "1.2.3")}


@pytest.mark.parametrize(
    ("kernel", "soft"),
    [
        ("H31s", True), ("J40s\\2", True), ("Hr38f", True), ("Hr68h", False), ("STANDARD", True), ("SOFT", True), ("UB", True), ("FC26", True),
        ("H60s", False), ("H70h", False), ("BONE", False), ("BONEPLUS", False), ("EDGE", False), ("FC30", False), ("FC81", False),
        ("YB", False), ("", None), ("SOMETHING", None),
    ],
)  # fmt: skip
def test_kernels_by_name(kernel: str, soft: bool | None) -> None:
    assert kernel_is_soft(kernel) is soft


def test_every_label_lands_on_its_slice(tmp_path: Path) -> None:
    """Shuffled files, tilt, a duplicate, a missing slice (interpolated in the volume, not among the slices)."""
    slices = series(1, z=np.delete(Z, 7), tilt=15)
    labels = {one.SOPInstanceUID: round(float(one.ImagePositionPatient[2])) for one in slices[:-2]}
    twin = copy.deepcopy(slices[3])
    twin.SOPInstanceUID = "1.2.3.77"
    labels["1.2.3.77"] = labels[slices[3].SOPInstanceUID]
    stacks, _ = group(scan(write(tmp_path, [*slices, twin])))
    stack = choose(stacks, missing="interpolate").stack
    found, torn = stack.labelled(labels)
    heights = [round(float(mm)) for mm in np.delete(Z, 7)]
    assert found == [*heights[:-2], None, None]
    assert torn == []
    assert len(stack.values) == 23
    assert len(stack.volume().values) == 24
    labels["1.2.3.77"] = -1
    _, torn = stack.labelled(labels)
    assert len(torn) == 1
