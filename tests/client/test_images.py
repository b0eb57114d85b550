"""A hospital's folder of images to its patients' arrays: whose is whose, what is set aside, labels, MR, radiographs, NIfTI."""

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from image_hospital import SLICES, VOLUME, Z, brain_of, brains, head, load_all, load_one, make, mr, scan_of, views_of
from phantom import as_mr, write
from pydantic import TypeAdapter

from ich_client import study_images
from ich_client.cache import Cache
from ich_client.dicom.reasons import HINTS, Reason
from ich_client.dicom.scan import scan
from ich_client.images import Ask, Chosen, slices_of
from ich_client.labels import TYPES
from ich_models.errors import ConfigurationError, DataError
from ich_models.files import write_arrays
from ich_models.image_spec import ImageSpec
from ich_models.networks import slices

ORDER = (2, 0, 3, 1)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, their table in another order than their folders, with further columns; to be read only."""
    folder = tmp_path_factory.mktemp("four")
    rows = {-1: ",UID,ACC,SITE"} | {n: f",1.2.9.{n}.1,ACC{n}-1,{'ab'[n // 2]}" for n in range(4)}
    return make(folder, 4, order=ORDER, rows=rows)


# --- whose image it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    ["patient", "{study: UID}", "{accession: ACC}", "{key_map: keys.csv, image: PSEUDONYM, patient: MRN}"],
)
def test_an_image_comes_to_its_patient_by_every_link(link: str, four: Path) -> None:
    keys = [*(f"P{n},P{n}" for n in (3, 2, 1, 0)), "P2,", "P3,", ",P8"]  # half a row belongs to nobody
    (four / "keys.csv").write_text("\n".join(["MRN,PSEUDONYM", *keys]) + "\n")
    north = load_one(four, images=f"{{folder: pacs, link: {link}}}")
    assert north.patients.ids == tuple(f"P{n}" for n in ORDER)
    assert brains(north) == pytest.approx([brain_of(n) for n in ORDER], abs=0.1)
    assert north.patients.image is not None
    assert (north.patients.image.shape, north.patients.image.dtype) == ((4, 1, 12, 32, 32), np.float16)
    assert north.patients.present["image"].all()
    assert [one.region for one in north.images.chosen] == ["brain"] * 4
    assert north.warnings == ()


def test_the_key_map_may_turn_all_patients_round(four: Path) -> None:
    (four / "turned.csv").write_text("image;patient\n" + "".join(f"P{n};P{3 - n}\n" for n in range(4)))
    link = '{key_map: turned.csv, separator: ";", image: image, patient: patient}'
    north = load_one(four, images=f"{{folder: pacs, link: {link}}}")
    assert brains(north) == pytest.approx([brain_of(3 - n) for n in ORDER], abs=0.1)


def test_hospitals_of_one_table_share_the_folder(four: Path) -> None:
    a, b = load_all(four, table=", split_by: SITE")
    assert (a.name, a.patients.ids, b.patients.ids) == ("north-a", ("P0", "P1"), ("P2", "P3"))
    assert brains(a) + brains(b) == pytest.approx([brain_of(n) for n in range(4)], abs=0.1)
    assert a.images.unmatched == b.images.unmatched == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{folder: nowhere}", "hospital.yaml:3:18: images.folder: there is no folder"),
        (
            "{folder: pacs, link: {study: UIDS}}",
            "images.link.study: no column 'UIDS' in table.csv\n    did you mean 'UID'",
        ),
        (
            "{folder: pacs, link: {accession: SITE}}",
            "table.csv: lines 4, 5: one value of 'SITE' belongs to two patients",
        ),
        (
            "{folder: pacs, link: {key_map: no.csv, image: a, patient: b}}",
            "images.link.key_map: .*no.csv does not exist",
        ),
        ("{folder: pacs, link: {key_map: table.csv, image: a, patient: ID}}", "images.link.image: no column 'a'"),
        ("{folder: pacs, link: {study: SITE}, format: nifti}", "NIfTI files have no StudyInstanceUID"),
        ("{folder: pacs, labels: {file: x, instance: a}}", "labels stand in one row per slice"),
        ("{folder: pacs, series: '('}", "'\\(' is no regular expression"),
        ("{folder: pacs, link: patients}", "'patients' is not one of the permitted values"),
        ("{folder: table.csv}", "there is no folder"),
        ("{folder: pacs, format: nifti}", "no NIfTI image named in the form of BIDS"),
        (
            "{folder: pacs, link: {study: ACC}}",
            r"no patient of hospital 'north' has a usable image \(4 studies belong to nobody in the table\)",
        ),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(images: str, message: str, four: Path) -> None:
    with pytest.raises((DataError, ConfigurationError)) as caught:
        load_one(four, images=images)
    assert re.search(message, str(caught.value)), caught.value


def test_images_need_a_column_that_identifies_patients(four: Path, tmp_path: Path) -> None:
    study = four / "hospital.yaml"
    load_one(four)
    text = study.read_text().replace("patient: ID, ", "")
    (tmp_path / "h.yaml").write_text(text)
    from ich_client.check import read

    with pytest.raises(DataError, match="no column identifies the table's patients"):
        read(four / "federation.yaml", [tmp_path / "h.yaml"], None, four)


# --- what is missing, and what is set aside ---------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """0: an early study that lacks slices, and a whole one; 1: no scan; 2: a scout and a broken file beside the scan; 3: MR
    alone; a scan of somebody who is not in the table."""
    folder = make(tmp_path, 1, order=(0, 1, 2, 3))
    gaps = [height for index, height in enumerate(Z) if index not in (7, 12)]
    write(folder / "pacs" / "early", scan_of(0, study=2, z=gaps, day="20230101"))
    write(folder / "pacs" / "late", scan_of(0, study=3, day="20250101"))
    whole = scan_of(2)
    scout = scan_of(2, study=1, z=Z[:3], SeriesInstanceUID="1.2.9.99", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(folder / "pacs" / "two", whole)
    write(folder / "pacs" / "scout", scout)
    damaged = scan_of(2, SeriesInstanceUID="1.2.9.98")
    broken = write(folder / "pacs" / "broken", damaged) / "IM0000"
    broken.write_bytes(broken.read_bytes()[:-5000])
    write(folder / "pacs" / "mr", as_mr(scan_of(3)))
    write(folder / "pacs" / "stranger", scan_of(9))
    (folder / "pacs" / "notes.txt").write_text("no image")
    return folder


def test_everything_that_is_not_used_is_counted_and_placed(odd: Path) -> None:
    north = load_one(odd)
    found = north.images
    assert north.patients.present["image"].tolist() == [True, False, True, False]
    assert brains(north) == pytest.approx([brain_of(0), 0, brain_of(2), 0], abs=0.1)
    assert not north.patients.image[1].any()
    assert found.counts == {Reason.LOCALIZER: 1, Reason.MISSING_SLICES: 1, Reason.NO_SERIES: 1, Reason.PIXELS: 1}
    by = {one.reason: one for one in found.aside}
    assert by[Reason.MISSING_SLICES].patient == "P0"
    assert by[Reason.MISSING_SLICES].where == f"{odd / 'pacs' / 'early'}: series 2 (Head)"
    assert by[Reason.NO_SERIES].where == "study 1.2.9.0.2 of 20230101 101500"
    assert by[Reason.PIXELS].where == str(odd / "pacs" / "broken" / "IM0000")
    assert all(one.hint == HINTS[one.reason] for one in found.aside)
    first, second = found.chosen
    assert (first.study, first.when, first.studies) == ("1.2.9.0.1", "20240301 101500", 3)
    assert second.series[0]["images"] == 26
    assert (found.unmatched, found.other_modality, found.without) == (1, 1, ("P1", "P3"))
    words = "\n".join(map(str, north.warnings))
    assert "2 of 4 patients have no usable image" in words
    assert "1 studies in" in words
    assert "belong to nobody in the table" in words

    again = load_one(odd)
    assert (found.kept, again.images.kept) == (0, 2)
    assert "read" not in again.images.seconds
    assert (again.images.aside, again.images.chosen) == (found.aside, found.chosen)
    np.testing.assert_array_equal(again.patients.image, north.patients.image)
    interpolated = load_one(odd, images="{folder: pacs, missing_slices: interpolate}").images.chosen[0]
    assert (interpolated.study, interpolated.notes) == ("1.2.9.0.2", ("2 missing slices interpolated",))


def test_the_hospitals_pattern_names_the_series(tmp_path: Path) -> None:
    folder = make(tmp_path, 2)
    other = scan_of(
        0, SeriesInstanceUID="1.2.9.55", SeriesNumber=9, SeriesDescription="bone 5mm", ConvolutionKernel="H70s"
    )
    write(folder / "pacs" / "more", other)
    by_score = load_one(folder)
    named = load_one(folder, images="{folder: pacs, series: 'BONE'}")
    assert [one.images.chosen[0].series[0]["number"] for one in (by_score, named)] == [2, 9]
    assert named.images.chosen[0].series[0]["reason"] == "the hospital's pattern"
    assert named.images.chosen[1].series[0]["number"] == 2, "where no series has the name, score decides"


def test_a_hospital_without_images_takes_part_without(four: Path) -> None:
    north = load_one(four, images="")
    assert not north.patients.present["image"].any()
    assert north.patients.image.shape == (4, 1, 12, 32, 32)
    assert "this hospital brings none" in str(north.warnings[0])


def test_limit_and_patient_choose_whose_images_are_read(four: Path) -> None:
    few = load_one(four, Ask(limit=2))
    assert (few.images.asked, few.patients.present["image"].tolist()) == (2, [True, True, False, False])
    one = load_one(four, Ask(patient="P3"))
    assert (one.images.asked, one.patients.present["image"].tolist()) == (1, [False, False, True, False])
    assert len(one.patients) == 4


def test_progress_is_told(four: Path) -> None:
    said: list[tuple[str, int, int | None]] = []
    load_one(four, Ask(watch=lambda *step: said.append(step)))
    assert said == [("scan", 100, None), ("scan", 104, 104), *(("images", n, 4) for n in (1, 2, 3, 4))]


# --- labels of slices -------------------------------------------------------------------------------------------------


def label_tables(folder: Path) -> None:
    """Slices 1 to 20 of patients 0 and 2 have labels that tell their height: number mod 2, mod 3, mod 5; the last types none."""
    known = [(n, z) for n in (0, 2) for z in range(1, 21)]
    np.random.default_rng(5).shuffle(known)
    said = {TYPES[0]: 2, TYPES[1]: 3, TYPES[3]: 5}
    wide = ["SOP,ipa,ivh,sdh"]
    wide += [",".join([f"1.2.9.{n}.1.7.{z}", *(str(int(z % by == 0)) for by in said.values())]) for n, z in known]
    long = [f"1.2.9.{n}.1.7.{z},{kind},{'yes' if z % by == 0 else 'no'}" for n, z in known for kind, by in said.items()]
    long += [f"1.2.9.0.1.7.{z},any,yes" for z in range(1, 21)]
    np.random.default_rng(6).shuffle(long)
    (folder / "wide.csv").write_text("\n".join([*wide, "1.2.9.0.1.7.26,,,"]) + "\n")
    (folder / "long.csv").write_text(
        "\n".join(["SOP,kind,there", *(line.replace(TYPES[3], "SDH") for line in long)]) + "\n"
    )


WIDE = f"{{file: wide.csv, instance: SOP, columns: {{{TYPES[0]}: ipa, {TYPES[1]}: ivh, {TYPES[3]}: sdh}}}}"
LONG = f"{{file: long.csv, instance: SOP, type: kind, label: there, types: {{SDH: {TYPES[3]}}}}}"


@pytest.mark.parametrize("labels", [WIDE, LONG], ids=["wide", "long"])
def test_labels_reach_their_slices_whatever_the_order(labels: str, four: Path) -> None:
    label_tables(four)
    spec = SLICES.replace("most: 8", "most: 30")
    north = load_one(four, image=spec, images=f"{{folder: pacs, labels: {labels}}}")
    assert (north.patients.image.shape, north.patients.targets.shape) == ((4, 30, 1, 32, 32), (4, 30, 5))
    assert north.patients.slices.sum(1).tolist() == [26] * 4
    expected = np.full((4, 30, 5), np.nan)
    z = np.arange(1, 21)
    for place, number in enumerate(ORDER):
        if number in (0, 2):
            for column, by in ((0, 2), (1, 3), (3, 5)):
                expected[place, :20, column] = z % by == 0
    np.testing.assert_array_equal(north.patients.targets, expected)
    assert (north.images.labelled, north.images.unlabelled) == (40, 4 * 26 - 40)
    assert brains(north) == pytest.approx([brain_of(n) for n in ORDER], abs=0.1)


def test_of_a_longer_series_the_labelled_slices_go_first(four: Path) -> None:
    (four / "three.csv").write_text("SOP,e\n" + "".join(f"1.2.9.1.1.7.{z},{int(z == 14)}\n" for z in (3, 14, 25)))
    labels = "{file: three.csv, instance: SOP, columns: {epidural: e}}"
    north = load_one(four, image=SLICES, images=f"{{folder: pacs, labels: {labels}}}")
    targets, row = north.patients.targets, ORDER.index(1)
    assert north.patients.slices.all()
    assert (~np.isnan(targets[row, :, 4])).sum() == 3
    assert targets[row][~np.isnan(targets[row, :, 4]), 4].tolist() == [0, 1, 0]
    assert np.isnan(targets[[n for n in range(4) if n != row]]).all()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("SOP,ipa,ivh,sdh\n1.2,2,0,0\n", "wide.csv: line 2: '2' says neither yes nor no"),
        ("SOP,ipa,ivh,sdh\n1.2,1,0,0\n1.2,0,,\n", "wide.csv: line 3: one slice has two labels that differ"),
        ("SOP,ipa,ivh,sdh\n,1,0,0\n", "wide.csv: line 2: a label without a slice"),
        ("SOP,ipa,ivh\n1.2,1,0\n", "images.labels.columns: no column 'sdh' in wide.csv"),
        ("UID,ipa,ivh,sdh\n1.2,1,0,0\n", "images.labels.instance: no column 'SOP' in wide.csv"),
    ],
)
def test_a_table_of_labels_that_cannot_be_meant_is_refused(table: str, message: str, four: Path) -> None:
    (four / "wide.csv").write_text(table)
    with pytest.raises(DataError) as caught:
        load_one(four, image=SLICES, images=f"{{folder: pacs, labels: {WIDE}}}")
    assert message in str(caught.value)


def test_labels_of_other_slices_are_said_to_be(four: Path) -> None:
    (four / "wide.csv").write_text("SOP,ipa,ivh,sdh\n9.9.9,1,0,0\n")
    north = load_one(four, image=SLICES, images=f"{{folder: pacs, labels: {WIDE}}}")
    assert "no label names a slice that is used" in str(north.warnings[0])


def test_the_types_have_one_order() -> None:
    assert TYPES == slices.TYPES


# --- other kinds ------------------------------------------------------------------------------------------------------


def test_an_mr_study_lacks_a_sequence_and_stays(tmp_path: Path) -> None:
    folder = make(tmp_path, 0, order=(0, 1))
    write(folder / "pacs" / "a", [*mr(0, "FLAIR tra", 1, 300), *mr(0, "my own name", 2, 500)])
    write(folder / "pacs" / "b", mr(1, "FLAIR tra", 1, 300))
    spec = "{kind: mr, size: [14, 24, 24], spacing: [10, 8, 8], sequences: [FLAIR, T2]}"
    north = load_one(folder, image=spec, images="{folder: pacs, sequences: {T2: 'own.*'}}")
    values = north.patients.image
    assert values.shape == (2, 2, 14, 24, 24)
    assert north.patients.present["image"].all()
    assert [one.absent for one in north.images.chosen] == [(), ("T2",)]
    assert not values[1, 1].any()
    for one in (values[0, 0], values[0, 1], values[1, 0]):
        inside = one[one != 0].astype(float)
        assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    # A ramp towards the crown has one z-score per height, whatever its start.
    np.testing.assert_allclose(values[0, 0].astype(float), values[0, 1].astype(float), atol=0.05)
    assert values[0, 0, 9, 12, 12] > values[0, 0, 3, 12, 12]


def test_views_of_a_radiograph_stay_whole(tmp_path: Path) -> None:
    folder = make(tmp_path, 0, order=(0, 1))
    write(folder / "pacs", views_of(0))
    north = load_one(folder, image="{kind: radiograph, size: [32, 32], most: 4, repeat: 3}")
    assert north.patients.image.shape == (2, 4, 3, 32, 32)
    assert north.patients.slices.tolist() == [[True, True, False, False], [False] * 4]
    assert north.patients.targets is None
    assert [series["description"] for series in north.images.chosen[0].series] == ["LL", "PA"]
    seen = north.patients.image[0, 0]
    assert (seen[0] == seen[2]).all()
    assert not seen[:, :8].any()
    assert not seen[:, 24:].any(), "twice as wide as high: black above and below"
    assert (np.diff(seen[0, 16].astype(float)) > 0).all()


def test_nifti_comes_by_its_subject_with_a_mask_of_the_hospital(tmp_path: Path) -> None:
    folder = make(tmp_path, 0, order=(1, 0))
    affine = np.array([[3.2, 0, 0, -100], [0, 3.2, 0, -110], [0, 0, 5, 0], [0, 0, 0, 1.0]])
    index = np.stack(np.meshgrid(np.arange(64), np.arange(64), np.arange(26), indexing="ij"), -1)
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    lps = ras * [-1, -1, 1]
    for number in (0, 1):
        made = nibabel.Nifti1Image(head(number)(lps).astype(np.int16), affine)
        made.set_sform(affine, 1)
        path = folder / "bids" / f"sub-P{number}" / f"sub-P{number}_ct.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.save(made, path)
    half = ((ras[..., 0] > 0) & (head(0)(lps) > 0)).astype(np.uint8)
    mask = nibabel.Nifti1Image(half, affine)
    mask.set_sform(affine, 1)
    (folder / "masks").mkdir()
    nibabel.save(mask, folder / "masks" / "P1.nii.gz")
    images = "{folder: bids, format: nifti, masks: masks}"
    spec = "{kind: ct, size: [26, 64, 64], spacing: [5, 3.2, 3.2]}"
    north = load_one(folder, image=spec, images=images)
    assert [one.region for one in north.images.chosen] == ["the hospital's mask", "brain"]
    counts = (north.patients.image > 0).reshape(2, -1).sum(1)
    brain_half = ((ras[..., 0] > 0) & (head(1)(lps) > 0)).sum()
    assert counts[0] == brain_half
    assert float(north.patients.image[0].max()) == 1.0, "bone within the hospital's mask is kept"
    middle = north.patients.image[1, 0, 13, 32, 32]
    assert float(middle) * 80 == pytest.approx(brain_of(0), abs=0.1)
    single = load_one(folder, image=SLICES, images=images)
    assert brains(single) == pytest.approx([brain_of(1), brain_of(0)], abs=0.1)
    (folder / "masks" / "P1.nii.gz").unlink()
    without = load_one(folder, image=spec, images=images)
    assert [one.region for one in without.images.chosen] == ["brain", "brain"], (
        "what was made with the mask is not used"
    )
    assert without.images.kept == 1


def test_the_volume_is_as_the_spec_says(four: Path) -> None:
    spec = VOLUME.replace("[[40, 80]]", "[[40, 80], [40, 380]], brain: none")
    north = load_one(four, image=spec)
    assert north.patients.image.shape == (4, 2, 12, 32, 32)
    centre = north.patients.image[:, :, 6, 16, 16].astype(float)
    wide = [(brain_of(n) + 150) / 380 for n in ORDER]
    np.testing.assert_allclose(centre[:, 1], wide, atol=1e-3)
    assert [one.region for one in north.images.chosen] == ["everything"] * 4


# --- a real head ------------------------------------------------------------------------------------------------------


def test_a_real_tilted_head_becomes_what_the_network_sees(shared_data: Path, tmp_path: Path) -> None:
    """A CT of GE with gantry tilt and two zones: the brain in the middle of the array, the front in front."""
    (tmp_path / "pacs").symlink_to(shared_data / "head_ct_ge")
    header = scan(shared_data / "head_ct_ge").headers[0]
    (tmp_path / "table.csv").write_text(f"ID,AGE,MRS,UID\nx,60,5,{header.study}\ny,61,0,\n")
    north = load_one(tmp_path, image="{kind: ct}", images="{folder: pacs, link: {study: UID}}")
    (one,) = north.images.chosen
    assert north.patients.present["image"].tolist() == [True, False]
    assert one.region == "brain"
    assert one.seen > 0.97
    brain = north.patients.image[0, 0].astype(float)
    inside = brain > 0.2
    millilitres = inside.sum() * 5 * 0.9 * 0.9 / 1000
    assert 900 < millilitres < 1800
    middle = np.array(
        [np.mean(np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]]) for axis in range(3)]
    )
    assert np.abs(middle - (np.array(brain.shape) - 1) / 2).max() < 8
    assert brain[inside].mean() * 80 == pytest.approx(33, abs=8)


def test_a_real_mr_study_in_nifti_by_its_names(shared_data: Path, tmp_path: Path) -> None:
    """ISLES 2022: three sequences on three grids, on that of the first; where the map is low, the weighted image is bright."""
    (tmp_path / "bids").symlink_to(shared_data / "isles22" / "rawdata")
    (tmp_path / "table.csv").write_text("ID,AGE,MRS\nstrokecase0009,60,5\nother,61,0\n")
    spec = "{kind: mr, size: [32, 112, 112], spacing: [5, 2, 2], sequences: [DWI, ADC, FLAIR, T1]}"
    north = load_one(tmp_path, image=spec, images="{folder: bids, format: nifti}")
    (one,) = north.images.chosen
    assert (one.study, one.absent) == ("0001", ("T1",))
    image = north.patients.image[0].astype(float)
    assert not image[3].any()
    for channel in image[:3]:
        inside = channel[channel != 0]
        assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=0.05), pytest.approx(1, abs=0.05))
    bright = image[0] > 3
    assert image[1][bright].mean() < 0


# --- what a language model is shown -----------------------------------------------------------------------------------


def shown(folder: Path, spec: str, mask: np.ndarray, **arrays: np.ndarray) -> list[np.ndarray]:
    """The pictures of a patient whose acquired image, by sequence, is this; in order (z, y, x) towards head, front, right."""
    facts = {"region": "brain", "shape": list(mask.shape)}
    with Cache(folder, 1e9) as cache:
        content = {**arrays, "mask": np.packbits(mask)}
        cache.put("ab", lambda entry: write_arrays(entry / study_images.ACQUIRED, content, facts))
    one = Chosen("P1", "", "", 1, (), (), (), (), "brain", "", 1.0, "ab")
    found = slices_of(one, TypeAdapter(ImageSpec).validate_python(yaml.safe_load(spec)), str(folder))
    assert not isinstance(found, str)
    return found


def test_a_slice_is_shown_as_a_radiologist_sees_it(tmp_path: Path) -> None:
    """The front at the top, the patient's right on the left; the brain's box alone, black around the brain."""
    mask = np.zeros((3, 6, 7), bool)
    mask[1, 1:4, 2:6] = True
    mask[1, 1, 2] = False
    values = np.where(mask, 0, 1000).astype(np.int16)
    values[1, 3, 5], values[1, 3, 2], values[1, 1, 5] = 80, 40, 20  # front right, front left, back right
    (picture,) = shown(tmp_path, VOLUME, mask, values=values)
    assert picture.tolist() == [[255, 0, 0, 128], [0, 0, 0, 0], [64, 0, 0, 0]]


def test_an_mr_is_shown_between_the_extremes_of_the_brain(tmp_path: Path) -> None:
    """And not of what lies around it: fat is brighter than anything within."""
    mask = np.zeros((1, 4, 101), bool)
    mask[0, 1:3] = True
    values = np.where(mask, np.arange(101), 9e5).astype(np.float32)
    spec = "{kind: mr, size: [14, 24, 24], spacing: [10, 8, 8], sequences: [FLAIR, T2]}"
    (picture,) = shown(tmp_path, spec, mask, FLAIR=values, T2=np.zeros_like(values))
    expected = np.rint(((np.arange(101) - 1) / 98).clip(0, 1) * 255)[::-1]  # 1 and 99 are the percentiles
    np.testing.assert_array_equal(picture, np.stack([expected, expected]))
