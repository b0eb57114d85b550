"""Multi-frame files: the same head as single files, its frames in any order."""

import copy
from pathlib import Path

import numpy as np
import pytest
from phantom import as_mr, ct, stored, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, JPEG2000Lossless

from ich_client.dicom.choose import choose
from ich_client.dicom.mr import choose as choose_sequences
from ich_client.dicom.reasons import Reason, Refusal
from ich_client.dicom.scan import Bad, read_file, scan
from ich_client.dicom.series import group


def item(**values: object) -> Dataset:
    one = Dataset()
    for keyword, value in values.items():
        setattr(one, keyword, value)
    return one


def enhanced(slices: list[Dataset], shuffle: int = 0, frames: list[dict[str, Dataset]] | None = None) -> Dataset:
    """One multi-frame object of single images. `frames`: more functional groups for each frame."""
    order = np.random.default_rng(shuffle).permutation(len(slices))
    one = copy.deepcopy(slices[0])
    mr = one.Modality == "MR"
    one.SOPClassUID = EnhancedMRImageStorage if mr else EnhancedCTImageStorage
    one.NumberOfFrames = len(slices)
    one.PixelData = b"".join(slices[index].PixelData for index in order)
    shared, each = Dataset(), []
    shared.PixelMeasuresSequence = Sequence([item(PixelSpacing=one.PixelSpacing, SliceThickness=5.0)])
    shared.PlaneOrientationSequence = Sequence([item(ImageOrientationPatient=one.ImageOrientationPatient)])
    if not mr:
        scale = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
        shared.PixelValueTransformationSequence = Sequence([scale])
        shared.CTReconstructionSequence = Sequence([item(ConvolutionKernel="H31s")])
    for index in order:
        group_ = Dataset()
        group_.PlanePositionSequence = Sequence([item(ImagePositionPatient=slices[index].ImagePositionPatient)])
        for keyword, value in (frames[index] if frames else {}).items():
            setattr(group_, keyword, Sequence([value]))
        each.append(group_)
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    one.PerFrameFunctionalGroupsSequence = Sequence(each)
    for tag in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "ConvolutionKernel",
    ):
        if tag in one:
            del one[tag]
    return one


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_in_any_order_are_the_same_head(compressed: bool, tmp_path: Path) -> None:
    slices = ct(np.arange(24) * 5.0, tilt=10)
    one = enhanced(slices)
    if compressed:
        one.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    both = []
    for folder in (write(tmp_path / "single", slices), write(tmp_path / "multi", [one])):
        stacks, refused = group(scan(folder))
        assert refused == []
        both.append(choose(stacks).stack)
    np.testing.assert_array_equal(both[0].values, both[1].values)
    np.testing.assert_allclose(both[0].volume().affine, both[1].volume().affine)


def test_b_values_of_one_file_are_several_series(tmp_path: Path) -> None:
    z = np.arange(12) * 5.0
    reference, weighted = as_mr(ct(z)), as_mr(ct(z, values=lambda points: points[..., 0] * 0 + 80 + points[..., 2]))
    frames = [{"MRDiffusionSequence": item(DiffusionBValue=value)} for value in (0.0, 1000.0) for _ in z]
    one = enhanced(reference + weighted, frames=frames)
    one.ImageType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"]
    stacks, _ = group(scan(write(tmp_path, [one])))
    assert sorted(len(series.headers) for series in stacks) == [12, 12]
    found = choose_sequences(stacks, ["DWI", "B0"])
    np.testing.assert_array_equal(found.stacks["DWI"].values, np.stack([stored(image) for image in weighted]))
    np.testing.assert_array_equal(found.stacks["B0"].values, np.stack([stored(image) for image in reference]))


@pytest.mark.parametrize("fault", ["count", "none", "truncated"])
def test_a_faulty_multi_frame_file_is_refused(fault: str, tmp_path: Path) -> None:
    one = enhanced(ct(np.arange(6) * 5.0))
    if fault == "count":
        one.NumberOfFrames = 7
    elif fault == "none":
        del one.PerFrameFunctionalGroupsSequence
    else:
        one.PixelData = one.PixelData[:-1000]
    path = write(tmp_path, [one]) / "IM0000"
    read = read_file(path)
    if fault == "truncated":
        stacks, _ = group(scan(tmp_path))
        with pytest.raises(Refusal, match="PIXELS"):
            choose(stacks)
    else:
        assert isinstance(read, Bad)
        assert read.refusal.reason == Reason.HEADER
        assert read.series == "1.2.3.10"
