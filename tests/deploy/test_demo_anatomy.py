"""The demo's heads: volumes exact to half a voxel, each lesion in its room, one truth whatever grid it is looked at on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_deploy.demo import anatomy, appearance, scanner
from ich_deploy.demo.anatomy import BLOOD, Lesion, Person, Tissue
from ich_models.networks.slices import TYPES

PERSON = Person(70, (3, 1, 4))
GRID = np.array([[0, 0, 3.0, -94.5], [0, 3.0, 0, -94.5], [4.0, 0, 0, -78.0], [0, 0, 0, 1]])  # index d, h, w to RAS mm
SHAPE = (40, 64, 64)
VOXEL = 3 * 3 * 4 / 1000


def head(*lesions: Lesion, person: Person = PERSON) -> anatomy.Anatomy:
    return anatomy.head(person, lesions, GRID, SHAPE)


def points(mask: np.ndarray) -> np.ndarray:
    """(n, 3) RAS mm of the voxels of a mask on GRID, in the scanner."""
    return np.argwhere(mask) @ GRID[:3, :3].T + GRID[:3, 3]


def within(person: Person, where: np.ndarray) -> np.ndarray:
    """The same points in the head's own coordinates."""
    return where @ person.pose[:3, :3].T + person.pose[:3, 3]


# --- volumes ----------------------------------------------------------------------------------------------------------


def test_kinds_of_bleeding_are_the_networks_own() -> None:
    assert BLOOD == TYPES


@given(
    st.lists(st.floats(0.004, 0.05), min_size=3, max_size=3),
    st.floats(0, 2),
    st.integers(0, 2**32),
)
def test_fill_is_exact_to_half_a_voxel_and_takes_the_lowest(thick: list[float], wanted: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    level = rng.standard_normal((3, 6, 7)).astype(np.float32)
    free = rng.random(level.shape) < 0.8
    voxel = np.array(thick, np.float32)
    found = anatomy.fill(level, free, wanted, voxel)
    volume = float(found.sum(axis=(1, 2)) @ voxel.astype(np.float64))
    whole = float(free.sum(axis=(1, 2)) @ voxel.astype(np.float64))
    assert not (found & ~free).any()
    assert abs(volume - min(wanted, whole)) <= max(thick) / 2 + 1e-6 or volume == pytest.approx(whole)
    if found.any() and (free & ~found).any():
        assert level[found].max() <= level[free & ~found].min()


def test_fill_counts_voxels_of_one_size() -> None:
    level = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    found = anatomy.fill(level, np.ones(level.shape, bool), 1.23, np.full(10, 0.01, np.float32))
    assert np.flatnonzero(found).tolist() == list(range(123))


@pytest.mark.parametrize("hospital", scanner.CT)
def test_every_kind_has_its_volume_on_every_scanner(hospital: str) -> None:
    slices = scanner.CT[hospital].slices
    wanted = dict(zip(BLOOD, (31.0, 6.5, 7.0, 33.0, 21.0), strict=True))
    lesions = [Lesion(kind, amount, "frontal lobe", -1, 0.4 * (kind == BLOOD[0])) for kind, amount in wanted.items()]
    found = anatomy.at(PERSON, lesions, slices.points(), slices.voxel)
    for kind, amount in {**wanted, "oedema": 0.4 * 31.0}.items():
        volume = float(found.lesion(kind).sum(axis=(1, 2)) @ slices.voxel.astype(np.float64))
        assert abs(volume - amount) <= slices.voxel.max(), kind


# --- where things are -------------------------------------------------------------------------------------------------


def test_a_brain_of_usual_size() -> None:
    volumes = [head(person=Person(60, (seed,))).cavity.sum() * VOXEL for seed in range(12)]
    assert 1200 < min(volumes) < max(volumes) < 1750
    assert np.mean(volumes) == pytest.approx(4 / 3 * np.pi * 6.5 * 8.2 * 6.6, rel=0.08)  # the ellipsoid's, in mL


def test_every_lesion_lies_in_its_room() -> None:
    healthy = head()
    within_skull = healthy.cavity
    for kind, amount in zip(BLOOD, (25, 8, 8, 40, 30), strict=True):
        found = head(Lesion(kind, amount, "parietal lobe", 1)).lesion(kind)
        assert found.any()
        assert not (found & ~within_skull).any()
        # What a lesion pushes aside moves: compared with a healthy head only where nothing is pushed.
        if kind in ("intraventricular", "subarachnoid"):
            assert (healthy.tissue[found] == Tissue.FLUID).all()
        if kind in ("subdural", "epidural"):
            assert np.median(healthy.edge[found]) > 0.8
            assert within(PERSON, points(found))[:, 0].mean() > 25


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("place", anatomy.PLACES)
def test_a_haematoma_is_where_its_place_is(place: str, side: int) -> None:
    found = head(Lesion("intraparenchymal", 8, place, side)).lesion("intraparenchymal")
    middle = within(PERSON, points(found)).mean(axis=0)
    x, y, z = anatomy.PLACES[place]
    # Each patient's own is some mm off (standard deviation 3), and brain and ventricles may cut it off.
    assert np.linalg.norm(middle - [side * x, y, z]) < 15
    if place != "brainstem":
        assert np.sign(middle[0]) == side


def test_mass_pushes_the_midline_away() -> None:
    def falx(lesions: tuple[Lesion, ...]) -> float:
        return float(within(PERSON, points(head(*lesions).tissue == Tissue.FALX))[:, 0].mean())

    at_rest = falx(())
    right, left = (falx((Lesion("intraparenchymal", 80, "basal ganglia", side, 0.5),)) for side in (1, -1))
    assert right < at_rest - 0.8
    assert left > at_rest + 0.8
    below = falx((Lesion("intraparenchymal", 15, "cerebellum", 1, 0.5),))
    assert below == pytest.approx(at_rest, abs=0.2)


def test_the_same_point_is_the_same_tissue_on_any_grid() -> None:
    fine = head()
    coarse = GRID @ np.diag([2, 2, 2, 1.0])
    again = anatomy.head(PERSON, (), coarse, (20, 32, 32))
    assert np.array_equal(again.tissue, fine.tissue[::2, ::2, ::2])
    assert np.allclose(again.texture, fine.texture[::2, ::2, ::2])


def test_people_differ_and_one_stays_the_same() -> None:
    assert np.array_equal(head().tissue, head().tissue)
    assert (head().tissue != head(person=Person(70, (3, 1, 5))).tissue).mean() > 0.05
    fluid = [(head(person=Person(age, (8,))).tissue == Tissue.FLUID).sum() for age in (30, 60, 90)]
    assert fluid == sorted(fluid)


# --- what it looks like -----------------------------------------------------------------------------------------------


def test_hounsfield_units_of_what_is_there() -> None:
    found = head(Lesion("intraparenchymal", 30, "basal ganglia", 1, 0.6), Lesion("intraventricular", 6))
    hu = appearance.hounsfield(found, blood=2.0)
    expected = {Tissue.AIR: -1000, Tissue.SKULL: 900, Tissue.WHITE: 29, Tissue.OEDEMA: 19, Tissue.BLOOD: 66}
    for tissue, value in expected.items():
        assert hu[found.tissue == tissue].mean() == pytest.approx(value, abs=1.0), tissue.name
    assert hu[found.lesion("intraventricular")].mean() == pytest.approx(62, abs=1.5)


def test_a_fresh_infarct_is_bright_in_diffusion_and_dark_in_its_map() -> None:
    found = head(Lesion("infarct", 30, "middle cerebral artery", -1))
    core, brain = found.lesion("infarct"), found.tissue == Tissue.WHITE
    means = {
        name: (appearance.intensity(found, name)[core].mean(), appearance.intensity(found, name)[brain].mean())
        for name in appearance.MR
    }
    assert means["DWI"][0] > 2 * means["DWI"][1]
    assert means["ADC"][0] < 620 < means["ADC"][1]  # 1e-6 mm2/s: below 620 is what is called core
    assert means["FLAIR"][0] > 1.3 * means["FLAIR"][1]


def test_noise_and_blur_are_the_kernels_own() -> None:
    flat = np.full((20, 64, 64), 30, np.float32)
    noisy = scanner.reconstruct(flat, scanner.Kernel(0.5, 0.0, 4.0), np.zeros_like(flat), np.random.default_rng(0))
    assert noisy.mean() == pytest.approx(30, abs=0.2)
    assert noisy.std() == pytest.approx(4.0 * 1.15, rel=0.03)
    grains = np.corrcoef(noisy[:, :, :-1].ravel(), noisy[:, :, 1:].ravel())[0, 1]
    assert grains == pytest.approx(0.5, abs=0.03)  # neighbours share half of what they are the mean of


@pytest.mark.parametrize("hospital", sorted(scanner.CT))
def test_no_brain_kernel_draws_a_dark_rim_inside_the_skull(hospital: str) -> None:
    """There lies a subdural haematoma, a few pixels thick: brain beside bone must not become darker than fluid."""
    edge = np.full((5, 64, 64), 37, np.float32)
    edge[..., 32:] = 900
    kernel = replace(scanner.CT[hospital].soft, noise=0.0)
    inside = scanner.reconstruct(edge, kernel, np.zeros_like(edge), np.random.default_rng(0))[2, 32, 16:32]
    assert inside.min() > 0
    sharp = replace(scanner.CT[hospital].sharp, noise=0.0)
    assert scanner.reconstruct(edge, sharp, np.zeros_like(edge), np.random.default_rng(0))[2, 32, 16:32].min() < -100
