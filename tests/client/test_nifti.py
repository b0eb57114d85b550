"""NIfTI: orientation, range and kind are checked as of DICOM; BIDS-like folders; a real stroke MRI."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from phantom import ct, hounsfield, write

from ich_client import nifti
from ich_client.dicom.choose import choose
from ich_client.dicom.mr import adc
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import scan
from ich_client.dicom.series import group
from ich_models.volume import onto
from ich_models.windows import z_scores

AFFINE = np.array([[-3.0, 0, 0, 90], [0, 3.0, 0, -100], [0, 0, 5.0, 0], [0, 0, 0, 1]])


def head() -> NDArray[np.int16]:
    """The phantom's head on a NIfTI grid of 62 x 70 x 24."""
    index = np.stack(np.meshgrid(np.arange(62), np.arange(70), np.arange(24), indexing="ij"), -1)
    return hounsfield((index @ AFFINE[:3, :3].T + AFFINE[:3, 3]) * [-1, -1, 1]).astype(np.int16)


def save(
    path: Path, values: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE, codes: tuple[int, int] = (1, 1)
) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine if codes[0] else None, codes[0])
    image.set_sform(affine if codes[1] else None, codes[1])
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz"])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2)])
def test_a_ct_is_read_in_ras(name: str, codes: tuple[int, int], tmp_path: Path) -> None:
    volume = nifti.read(save(tmp_path / name, head(), codes=codes), "HU")
    assert volume.values.dtype == np.int16
    assert volume.values.shape == (24, 70, 62)
    np.testing.assert_array_equal(volume.values, head()[::-1].transpose(2, 1, 0))
    index = np.stack(np.meshgrid(*map(np.arange, volume.values.shape), indexing="ij"), -1)
    np.testing.assert_allclose(volume.values, hounsfield(volume.world(index) * [-1, -1, 1]), atol=1)


def test_the_same_head_as_dicom_and_as_nifti_is_one_volume(tmp_path: Path) -> None:
    stacks, _ = group(scan(write(tmp_path / "dicom", ct(np.arange(24) * 5.0))))
    volume = choose(stacks).stack.volume()
    moved = volume.values.transpose(2, 1, 0)[::-1, :, ::-1]  # any other order of axes
    affine = volume.affine[:, [2, 1, 0, 3]] @ np.diag([-1, 1, -1, 1.0])
    affine[:3, 3] = volume.world([23, 0, 63])
    again = nifti.read(save(tmp_path / "x.nii.gz", moved, affine), "HU")
    np.testing.assert_array_equal(again.values, volume.values)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)


def refusal(path: Path, unit: str = "HU") -> Reason:
    with pytest.raises(Refusal) as caught:
        nifti.read(path, unit)  # type: ignore[arg-type]
    assert caught.value.where == str(path)
    return caught.value.reason


def test_what_cannot_be_trusted_is_refused_by_name(tmp_path: Path) -> None:
    path, good = tmp_path / "x.nii", head()
    assert refusal(save(path, good, codes=(0, 0))) == Reason.NIFTI
    shear = AFFINE.copy()
    shear[2, 1] = 1.2
    assert refusal(save(path, good, shear, codes=(0, 1))) == Reason.NIFTI
    assert refusal(save(path, np.stack([good, good], -1))) == Reason.FOUR_D
    assert refusal(save(path, good[..., :2])) == Reason.FEW_SLICES
    assert refusal(save(path, np.zeros_like(good))) == Reason.BLANK
    assert refusal(save(path, good + np.int16(1000))) == Reason.HU_RANGE
    broken = good.astype(np.float32)
    broken[5, 5, 5] = np.nan
    assert refusal(save(path, broken)) == Reason.NIFTI
    colour = np.zeros((9, 9, 9), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refusal(save(path, colour)) == Reason.COLOUR
    path.write_bytes(b"no image at all")
    assert refusal(path) == Reason.NIFTI
    assert refusal(tmp_path / "absent.nii") == Reason.UNREADABLE


def test_two_scanner_geometries_that_disagree_are_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(head(), AFFINE)
    other = AFFINE.copy()
    other[0, 3] += 5
    image.set_qform(other, 1)
    image.set_sform(AFFINE, 1)
    nibabel.save(image, tmp_path / "x.nii")
    assert refusal(tmp_path / "x.nii") == Reason.NIFTI


def test_of_the_scanners_geometry_and_a_later_one_the_later_holds(tmp_path: Path) -> None:
    """A sform of another code was found afterwards, by somebody who moved the head: it need not be the qform."""
    image = nibabel.Nifti1Image(head(), AFFINE)
    other = AFFINE.copy()
    other[0, 3] += 5
    image.set_qform(other, 1)
    image.set_sform(AFFINE, 2)
    nibabel.save(image, tmp_path / "x.nii")
    again = nifti.read(save(tmp_path / "y.nii", head(), AFFINE), "HU")
    np.testing.assert_array_equal(nifti.read(tmp_path / "x.nii", "HU").affine, again.affine)


@pytest.mark.parametrize(("scale", "fits"), [(1e-3, False), (1.0, True), (50.0, False)])
def test_metres_and_such_are_no_millimetres(scale: float, fits: bool, tmp_path: Path) -> None:
    affine = np.diag([scale, scale, scale, 1.0]) @ AFFINE
    path = save(tmp_path / "x.nii", head(), affine, codes=(0, 1))
    if fits:
        assert nifti.read(path, "HU").spacing == pytest.approx([5, 3, 3])
    else:
        assert refusal(path) == Reason.NIFTI


def test_a_header_that_asks_for_too_much_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1024, 1024, 513))
    header.set_data_dtype(np.int16)
    header.set_sform(AFFINE, 1)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), AFFINE, header), tmp_path / "small.nii")
    content = bytearray((tmp_path / "small.nii").read_bytes())
    content[40:48] = np.array([3, 1024, 1024, 513], "<i2").tobytes()  # dim, at its place in the header
    (tmp_path / "x.nii").write_bytes(content)
    assert refusal(tmp_path / "x.nii") == Reason.TOO_LARGE


def test_values_between_two_units_go_to_the_nearer(tmp_path: Path) -> None:
    volume = nifti.read(save(tmp_path / "x.nii", head().astype(np.float32) - np.float32(0.7)), "HU")
    np.testing.assert_array_equal(volume.values, head()[::-1].transpose(2, 1, 0) - 1)


def test_a_mask_of_probabilities_begins_at_a_half(tmp_path: Path) -> None:
    values = np.zeros((3, 3, 3), np.float32)
    values[0, 0] = 0.4, 0.5, 0.6
    volume = nifti.read(save(tmp_path / "x.nii", values, np.eye(4)), "intensity", mask=True)
    assert volume.values[:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_file_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, head())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path) == Reason.PIXELS


def test_a_single_time_point_is_a_volume(tmp_path: Path) -> None:
    assert nifti.read(save(tmp_path / "x.nii", head()[..., None]), "HU").values.shape == (24, 70, 62)


def test_scaled_integers_are_scaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "x.nii")
    raw = nibabel.load(tmp_path / "x.nii")
    volume = nifti.read(tmp_path / "x.nii", "intensity")
    np.testing.assert_allclose(volume.values, raw.get_fdata().transpose(2, 1, 0))
    assert volume.values.dtype == np.float32
    assert volume.values.max() == 16


def test_bids_names(tmp_path: Path) -> None:
    names = [
        "rawdata/sub-01/ses-2/anat/sub-01_ses-2_acq-ax_FLAIR.nii.gz",
        "sub-02/sub-02_dwi.nii",
        "sub-02/sub-02_dwi.json",
        "sub-03/odd name.nii",
        "sub-04/sub-04_odd_dwi.nii",
        "ct.nii.gz",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [(one.subject, one.session, one.suffix) for one in nifti.entries(tmp_path)]
    assert found == [("01", "2", "FLAIR"), ("02", "", "dwi")]


def test_a_stroke_mri_comes_onto_one_grid(shared_data: Path) -> None:
    found = {one.suffix: one for one in nifti.entries(shared_data / "isles22")}
    assert found.keys() == {"dwi", "adc", "flair", "msk"}
    assert {one.subject for one in found.values()} == {"strokecase0009"}
    dwi, flair = (nifti.read(found[name].path, "intensity") for name in ("dwi", "flair"))
    mask = nifti.read(found["msk"].path, "intensity", mask=True)
    assert mask.values.sum() * mask.millilitres == pytest.approx(4.18, abs=0.005)
    assert set(np.unique(mask.values)) == {0, 1}
    diffusion = adc(nifti.read(found["adc"].path, "intensity"))
    # the lesion: bright in DWI, dark in ADC (below 620e-6 mm2/s is the usual cut for dead tissue)
    inside = onto(mask, dwi, nearest=True).values == 1
    assert np.median(dwi.values[inside]) > 1.5 * np.median(dwi.values[dwi.values > 50])
    assert np.median(diffusion.values[inside]) < 700
    assert 700 < np.median(diffusion.values[(diffusion.values > 300) & ~inside]) < 1100
    # FLAIR (0.45 x 0.45 x 5 mm) on the grid of DWI (2 mm): the head is at the same place
    moved = onto(flair, dwi)
    assert moved.values.shape == dwi.values.shape
    brain, head_ = dwi.values > 50, moved.values > 0.15 * np.percentile(moved.values, 99)
    assert (brain & head_).sum() / brain.sum() > 0.95
    # and its values are those of nibabel's own resampling
    from nibabel.processing import resample_from_to

    image = resample_from_to(nibabel.load(found["flair"].path), nibabel.load(found["dwi"].path), order=1)
    theirs = nibabel.as_closest_canonical(image).get_fdata().transpose(2, 1, 0)
    ours = onto(flair, dwi).values
    assert np.corrcoef(theirs[brain], ours[brain])[0, 1] > 0.97  # ours is smoothed for the coarser grid
    scores = z_scores(moved.values, brain)
    assert scores[brain].mean() == pytest.approx(0, abs=1e-4)
    assert scores[brain].std() == pytest.approx(1, abs=1e-3)
