"""Maps in the patient's own space: places by an independent reader, pictures as a radiologist sees them, digits that can be read."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_hospital import VOLUME, load_one, make
from matplotlib import image as pictures
from phantom import HEAD, PROBE, SLOPES, hounsfield

from ich_client import overlay
from ich_client.check_page import png
from ich_client.explanation import Look
from ich_client.overlay import ACROSS, SIZE, Space, as_seen, frames, painted, sheet, write_nifti
from ich_models import preprocess
from ich_models.image_spec import CtVolume
from ich_models.volume import Volume

TURN = np.radians(12)
AFFINE = np.array(
    [  # D up and a little forward, H forward and a little down, W to the right; 7 x 2.5 x 3 mm
        [0, 0, 3.0, -92],
        [7 * np.sin(TURN), 2.5 * np.cos(TURN), 0, -112],
        [7 * np.cos(TURN), -2.5 * np.sin(TURN), 0, 10],
        [0, 0, 0, 1],
    ]
)
SPEC = CtVolume(kind="ct", size=(18, 40, 44), spacing=(6, 4, 4), windows=[(1500, 2400)], brain="none")


@pytest.fixture(scope="module")
def scan() -> Volume:
    """The phantom, whose value tells the place, on a grid that lies askew."""
    shape = (20, 84, 62)
    empty = Volume(np.zeros(shape, np.int16), AFFINE, "HU")
    ras = empty.world(np.moveaxis(np.indices(shape), 0, -1))
    return Volume(np.rint(hounsfield(ras * [-1, -1, 1])).astype(np.int16), AFFINE, "HU")


def test_the_array_knows_where_it_lies(scan: Volume) -> None:
    """In the phantom's box HU = 1500 + slopes . (place - middle): the array's own values say where each voxel is."""
    made = preprocess.ct_volume(scan, None, SPEC)
    grid = Volume(made.values[0], made.affine, "intensity")
    lps = grid.world(np.moveaxis(np.indices(SPEC.size), 0, -1)) * [-1, -1, 1]
    inside = ((lps > PROBE[0] + 12) & (lps < PROBE[1] - 12)).all(-1)
    assert inside.sum() > 100
    told = made.values[0][inside].astype(np.float64) * 2400 + 300
    expected = 1500 + (lps[inside] - PROBE.mean(0)) @ SLOPES
    assert np.abs(told - expected).max() < 2.5  # half of a mm: float16, and HU are whole


@pytest.mark.parametrize("place", [(4, 9, 30), (9, 20, 12), (13, 31, 25)])
def test_a_map_comes_back_to_its_place(scan: Volume, place: tuple[int, int, int], tmp_path: Path) -> None:
    """One bright voxel of the network's array: ITK finds it in the file where the array's affine says it is (LPS)."""
    affine = preprocess.ct_volume(scan, None, SPEC).affine
    values = np.zeros(SPEC.size, np.float32)
    values[place] = 1
    write_nifti(tmp_path / "map.nii", Space(scan, affine).back(values))
    read = sitk.ReadImage(str(tmp_path / "map.nii"))
    weights = sitk.GetArrayFromImage(read)
    assert weights.shape == scan.values.shape, "the patient's own voxels"
    indices = np.argwhere(weights > 0)
    points = np.array([read.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]) for index in indices])
    middle = np.average(points, axis=0, weights=weights[tuple(indices.T)])
    expected = (affine @ [*place, 1])[:3] * [-1, -1, 1]
    assert np.abs(middle - expected).max() < 1.5, "less than half of the smallest voxel"


def test_the_image_beside_it_is_the_patients(scan: Volume, tmp_path: Path) -> None:
    """Its value at the head's middle and at an off-centre place, read by ITK."""
    write_nifti(tmp_path / "image.nii", scan)
    read = sitk.ReadImage(str(tmp_path / "image.nii"))
    for lps in (HEAD, PROBE.mean(0) + np.array([9, -14, 20])):
        index = read.TransformPhysicalPointToIndex([float(mm) for mm in lps])
        own = np.array(read.TransformIndexToPhysicalPoint(index))
        assert read[index] == pytest.approx(float(hounsfield(own)), abs=1)


def test_what_the_network_did_not_see_has_no_map(scan: Volume) -> None:
    affine = preprocess.ct_volume(scan, None, SPEC).affine
    seen = np.zeros(scan.values.shape, bool)
    seen[8:12, 30:50, 20:40] = True
    back = Space(scan, affine, seen).back(np.ones(SPEC.size, np.float32)).values
    assert np.array_equal(back > 0, seen)


def test_the_space_is_that_of_the_cached_scan(tmp_path: Path) -> None:
    """The network's array of a hospital's patient, made again from the cache: the same numbers, and the brain as mask."""
    north = load_one(make(tmp_path, 2))
    assert north.images is not None
    assert north.patients.image is not None
    spec = CtVolume(kind="ct", size=(12, 32, 32), spacing=(10, 6, 6), windows=[(40, 80)])
    assert "[12, 32, 32], spacing: [10, 6, 6]" in VOLUME
    where = overlay.space(north.images, north.images.chosen[1], spec)
    assert where.seen is not None
    again = preprocess.ct_volume(where.volume, where.seen, spec)
    assert np.array_equal(again.values, north.patients.image[1])
    assert np.array_equal(again.affine, where.affine)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_front_is_at_the_top_and_right_at_the_left() -> None:
    volume = Volume(np.full((3, 8, 6), -1000, np.int16), np.diag([5.0, 1, 1, 1]), "HU")
    volume.values[1, 7, 5] = 80  # the very front, the patient's right
    values = np.zeros((3, 8, 6), np.float32)
    values[1, 0, 5] = 1  # the very back, right
    grey, heat = as_seen(volume, values, 1)
    assert np.argwhere(grey == 1).tolist() == [[0, 0]]
    assert np.argwhere(heat).tolist() == [[7, 0]]


def test_a_picture_is_grey_where_the_map_is_0_and_yellow_where_it_is_1(tmp_path: Path) -> None:
    values = np.zeros(SIZE, np.float32)
    values[100:120, 50:70] = 1
    outline = np.zeros(SIZE, bool)
    outline[10:20, 150:180] = True
    picture = painted(np.full(SIZE, 0.5, np.float32), values, outline)
    (tmp_path / "one.png").write_bytes(png(picture))
    read = np.rint(pictures.imread(tmp_path / "one.png")[:, :, :3] * 255).astype(int)
    assert np.array_equal(read, picture)
    assert read[200, 200].tolist() == [128, 128, 128]
    assert read[110, 60].tolist() == [210, 210, 45]  # 0.35 of 127.5, 0.65 of yellow
    assert read[10, 160].tolist() == [0, 220, 90]
    assert read[15, 160].tolist() == [128, 128, 128], "an outline, not an area"


def test_numbers_can_be_read() -> None:
    """Dot by dot, as a seven-segment clock writes 25."""
    picture = painted(np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32), label=25)
    dots = picture[5 : 5 + 15 : 3, 5 : 5 + 21 : 3, 0] > 0
    lines = ["".join("#" if dot else "." for dot in row) for row in dots]
    assert lines == ["###.###", "..#.#..", "###.###", "#.....#", "###.###"]


def test_a_sheet_holds_every_map_side_by_side() -> None:
    spec = CtVolume(kind="ct", size=(8, 8, 8), spacing=(5, 5, 5), brain="none")
    volume = Volume(np.zeros((7, 8, 8), np.int16), np.diag([5.0, 5, 5, 1]), "HU")
    look = Look("poor", "Grad-CAM", 0.5, np.ones((8, 8, 8), np.float32))
    own = frames(look, np.zeros((1, 8, 8, 8), np.float16), spec, Space(volume, volume.affine))
    assert [frame.number for frame in own] == list(range(7))
    assert own[3].name == "poor-slice-003"
    both = sheet([own, own[:3]])
    assert both.shape == (2 * SIZE[0], (ACROSS + 3) * SIZE[1] + 8, 3)
    assert (both[:, ACROSS * SIZE[1] : ACROSS * SIZE[1] + 8] == 255).all()
