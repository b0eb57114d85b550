"""A hospital's own network for the brain: used where what it finds may be a brain, and our method where it may not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_hospital import files, load_one, make
from torch import nn
from typer.testing import CliRunner

from ich_client import brain_weights, study_images
from ich_client.cli import app
from ich_client.tables import Hospital
from ich_models import brain
from ich_models.errors import DataError
from ich_models.volume import Volume


class Between(nn.Module):
    """Certain of all voxels between two HU."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return ((values > self.low) & (values < self.high)).float()


class Rotten(nn.Module):
    """Answers in a way of its own."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = way

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.way == 0:
            return values[:, :, 1:]
        if self.way == 1:
            return values
        return values.reshape(7, 7)


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(network), path)
    return path


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("brains"), 2)


def found(folder: Path, spacing: str = "[5, 2, 2]") -> Hospital:
    return load_one(folder, images=f"{{folder: pacs, brain_weights: {{file: brain.pt, spacing: {spacing}}}}}")


def masks(hospital: Hospital) -> list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    assert hospital.images is not None
    whole = []
    for one in hospital.images.chosen:
        entry = Path(hospital.images.cache) / "entries" / one.key[:2] / one.key
        whole.append(study_images.load_volume(entry)[0]["mask"])
    return whole


def test_a_brain_that_may_be_one_is_used(hospital: Path) -> None:
    own = masks(load_one(hospital))
    saved(Between(0, 200), hospital / "brain.pt")
    north = found(hospital)
    assert north.images is not None
    assert [(one.region, one.problem) for one in north.images.chosen] == [("the hospital's network", "")] * 2
    assert north.warnings == ()
    for ours, theirs in zip(own, masks(north), strict=True):
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert 0.95 < dice < 1, "the same brain, found in another way"
    saved(Between(0, 150), hospital / "brain.pt")
    again = found(hospital)
    assert again.images is not None
    assert again.images.kept == 0, "another network is another mask"


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Between(500, 2000), "mL where a brain has 1000 to 1800"),
        (Between(5000, 6000), "nothing was found"),
        (Rotten(0), "its answer is of another shape ((1, 1, 25, 102, 102) for (1, 1, 26, 102, 102))"),
        (Rotten(1), "its answer is not between 0 and 1"),
        (Rotten(2), "it failed (RuntimeError)"),
    ],
)
def test_anything_else_gives_way_to_our_own_method(network: nn.Module, why: str, hospital: Path) -> None:
    own = masks(load_one(hospital))
    saved(network, hospital / "brain.pt")
    north = found(hospital)
    assert north.images is not None
    assert {one.region for one in north.images.chosen} == {"brain"}
    assert all(why in one.problem for one in north.images.chosen), north.images.chosen[0].problem
    assert "did not find the brain in 2 of 2 images" in str(north.warnings[0])
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(own, masks(north), strict=True))


def test_a_file_that_is_no_network_is_refused_before_an_image_is_read(hospital: Path) -> None:
    for content, message in ((b"weights", "is no TorchScript file"), (None, "cannot be read: No such file")):
        (hospital / "brain.pt").unlink(missing_ok=True)
        if content:
            (hospital / "brain.pt").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            found(hospital)
        assert "images.brain_weights.file" in caught.value.problems[0].where


def test_check_says_who_found_the_brain(hospital: Path) -> None:
    saved(Between(0, 200), hospital / "brain.pt")
    files(hospital, images="{folder: pacs, brain_weights: {file: brain.pt, spacing: [5, 2, 2]}}")
    done = CliRunner().invoke(
        app, ["check", str(hospital / "federation.yaml"), str(hospital / "hospital.yaml"), "--data", str(hospital)]
    )
    assert "seen: the hospital's network 2" in " ".join(done.output.split())


def test_a_mask_lies_where_the_network_saw_it(tmp_path: Path) -> None:
    """A bright corner on a fine, shifted grid comes back to its place."""
    values = np.zeros((20, 40, 40), np.int16)
    values[12:, 20:, :10] = 100
    affine = np.diag([0, 0, 0, 1.0])
    affine[:3, :3] = np.array([[0, 0, 1.5], [0, 1.5, 0], [3, 0, 0]])
    affine[:3, 3] = 7, -20, 11
    path = saved(Between(50, 200), tmp_path / "n.pt")
    mask = brain_weights.find(path, "", Volume(values, affine, "HU"), (3.0, 1.5, 1.5))
    np.testing.assert_array_equal(mask, values > 0)
    coarse = brain_weights.find(path, "", Volume(values, affine, "HU"), (6.0, 3.0, 3.0))
    assert 2 * (coarse & mask).sum() / (coarse.sum() + mask.sum()) > 0.85
    assert brain.judged(mask, Volume(values, affine, "HU")).problem
