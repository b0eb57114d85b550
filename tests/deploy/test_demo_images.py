"""The demo's hospitals with images: the reader finds what was drawn where it was drawn, tables say what was meant, truth is known."""

import csv
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from ich_client.dicom import choose, mr, radiograph, scan
from ich_client.dicom.reasons import Reason
from ich_client.dicom.series import Refused, Series, group
from ich_client.hospital import HospitalConfig
from ich_deploy import source
from ich_deploy.demo import __main__, hospitals, joint, scanner, scans
from ich_deploy.demo.anatomy import BLOOD
from ich_deploy.demo.case import Case, Seen
from ich_models import clinical
from ich_models.brain import brain
from ich_models.errors import ConfigurationError
from ich_models.federation import Federation, load_federation
from ich_models.metrics import delong
from ich_models.text_spec import TextSpec
from ich_models.volume import Volume
from ich_models.yaml_config import load

Cohorts = dict[str, list[Case]]
SEED = 42
FEW = 7
OUTCOMES = {"ct": "mrs_90", "slices": "bleeding", "mr": "nihss", "xray": "infection"}


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cohorts]:
    folder = tmp_path_factory.mktemp("ct")
    return folder, hospitals.write(folder, "ct", SEED, FEW, processes=1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cohorts]:
    folder = tmp_path_factory.mktemp("slices")
    return folder, hospitals.write(folder, "slices", SEED, 4, processes=1)


def content(folder: Path) -> dict[str, str]:
    """Every file and the hash of its bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def study_of(folder: Path, case: Case) -> tuple[list[Series], list[Refused]]:
    return group(scan.scan(scans.place(case, folder / "data" / case.hospital / "images")))


def truth_of(folder: Path, hospital: str) -> dict[str, dict[str, str]]:
    with (folder / "truth" / f"{hospital}.csv").open() as file:
        return {row["patient"]: row for row in csv.DictReader(file)}


def middle_of(volume: Volume, bright: NDArray[np.bool_]) -> NDArray[np.float64]:
    """RAS mm: the middle of the largest piece."""
    labels, count = ndimage.label(bright)
    assert count
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(volume.world(np.argwhere(labels == sizes.argmax())).mean(axis=0), np.float64)


def stated(row: Mapping[str, str]) -> NDArray[np.float64]:
    return np.array([float(row[f"middle_{axis}"]) for axis in "xyz"])


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", hospitals.KINDS)
def test_same_seed_same_bytes(kind: str, tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("two", 7), ("other", 8)):
        hospitals.write(tmp_path / name, kind, seed, 1, processes=1)
    one, two, other = (content(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    data = [name for name in one if name.startswith("data/") and "images" not in name and "chiave" not in name]
    assert all(one[name] != other[name] for name in [*data, "truth/north.csv"])
    images = {name for name in one if "/images/" in name}
    assert len(images) >= 6
    assert not {one[name] for name in images} & {other[name] for name in other if "/images/" in name}


def test_processes_change_nothing(tmp_path: Path) -> None:
    hospitals.write(tmp_path / "one", "xray", SEED, 6, processes=1)
    hospitals.write(tmp_path / "two", "xray", SEED, 6, processes=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_few_patients_are_the_first_of_all() -> None:
    for kind in hospitals.KINDS:
        few, all_of_them = (hospitals.generate(kind, SEED, number) for number in (3, None))
        assert all(all_of_them[name][:3] == cases for name, cases in few.items())


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = hospitals.write(folder, "xray", SEED, 1, processes=1)
    before = content(folder)
    assert hospitals.write(folder, "xray", SEED, 1, processes=1) == first  # the same demo: nothing to do
    for kind, seed in (("xray", 1), ("ct", SEED)):
        with pytest.raises(ConfigurationError, match="is there already"):
            hospitals.write(folder, kind, seed, 1, processes=1)
    (folder / hospitals.DONE).unlink()  # interrupted before its end
    with pytest.raises(ConfigurationError, match="delete this one"):
        hospitals.write(folder, "xray", SEED, 1, processes=1)
    assert {**content(folder), hospitals.DONE: before[hospitals.DONE]} == before


def test_identifiers_are_nobodys_and_nobody_has_two(ct: tuple[Path, Cohorts]) -> None:
    for kind in hospitals.KINDS:
        cases = [case for cohort in hospitals.generate(kind, SEED).values() for case in cohort]
        for names in ([case.patient for case in cases], [case.image_patient for case in cases]):
            assert len(set(names)) == len(cases)
        assert len({case.accession for case in cases}) == len(cases)
    folder, _ = ct
    headers = scan.scan(folder / "data").headers
    assert len({header.instance for header in headers}) == len(headers) - 1  # south sent one slice twice
    assert all(re.fullmatch(r"2\.25\.\d{1,39}", header.instance) for header in headers)


# --- what the reader makes of the CT ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hospital", scanner.CT)
def test_the_reader_finds_geometry_and_haematoma(ct: tuple[Path, Cohorts], hospital: str) -> None:
    folder, cohorts = ct
    own, truth = scanner.CT[hospital].slices, truth_of(folder, hospital)
    gone = []
    for case in cohorts[hospital]:
        if not case.scanned or case.values["ivh"] == "yes":  # blood in the ventricles may touch the haematoma
            continue
        stack = choose.choose(study_of(folder, case)[0]).stack
        assert stack.layout.tilt == pytest.approx(abs(own.tilt), abs=0.01)
        gaps = np.diff(own.heights)[:: own.across]  # rows to the right: read from the crown down
        assert np.diff(stack.layout.depths) == pytest.approx(gaps * np.cos(np.radians(own.tilt)), abs=1e-3)
        volume = stack.volume()
        assert volume.spacing[1:] == pytest.approx([own.pixel] * 2, rel=1e-6)
        smooth = ndimage.gaussian_filter(volume.values.astype(np.float32), (0.4, 0.8, 0.8))
        inside = ndimage.binary_erosion(brain(volume).mask, iterations=2)
        found = middle_of(volume, (smooth > 48) & (smooth < 95) & inside)
        gone.append(float(np.linalg.norm(found - stated(truth[case.patient]))))
    assert gone
    assert max(gone) < 2, gone


def test_haematoma_alone_is_found_to_a_millimetre(tmp_path: Path) -> None:
    """Without blood elsewhere, at each hospital, on its own grid: middle and volume."""
    cohorts = hospitals.generate("ct", SEED)
    for hospital, cases in cohorts.items():
        alone = [case for case in cases if case.values["ivh"] == "no" and 25 < float(case.truth["volume_ml"]) < 60]
        case = next(case for case in alone if case.values["location"] in ("deep", "lobar") and case.scanned)
        seen = scans.head_ct(case, tmp_path / hospital)
        stacks, _ = group(scan.scan(tmp_path / hospital))
        volume = choose.choose(stacks).stack.volume()
        smooth = ndimage.gaussian_filter(volume.values.astype(np.float32), (0.4, 0.8, 0.8))
        inside = ndimage.binary_erosion(brain(volume).mask, iterations=2)
        labels, _ = ndimage.label((smooth > 46) & (smooth < 95) & inside)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        bright = labels == sizes.argmax()
        middle = volume.world(np.argwhere(bright)).mean(axis=0)
        expected = [seen.truth[f"middle_{axis}"] for axis in "xyz"]
        assert np.linalg.norm(middle - expected) < 2, hospital
        assert bright.sum() * volume.millilitres == pytest.approx(seen.truth["intraparenchymal_ml"], rel=0.15)


def test_the_brain_is_found_in_every_head(ct: tuple[Path, Cohorts]) -> None:
    folder, cohorts = ct
    for cases in cohorts.values():
        found = brain(choose.choose(study_of(folder, cases[0])[0]).stack.volume())
        assert (found.region, found.problem) == ("brain", "")


def test_what_must_be_set_aside_is_set_aside(ct: tuple[Path, Cohorts]) -> None:
    folder, cohorts = ct
    for name, cases in cohorts.items():
        scouted, without, broken, double = (
            cases[number - 1] for number in (1, 2, scans.BROKEN, scans.SECOND_RECONSTRUCTION)
        )
        choice = choose.choose(study_of(folder, scouted)[0])
        assert [one.refusal.reason for one in choice.refused] == [Reason.LOCALIZER]
        assert not scans.place(without, folder / "data" / name / "images").exists()
        stacks, refused = study_of(folder, broken)
        rest = len(scanner.CT[name].slices.heights) - 1
        assert [(one.refusal.reason, one.images) for one in refused] == [(Reason.PIXELS, 1), (Reason.PIXELS, rest)]
        assert [series.first.series_number for series in stacks] == [2]  # one bad file fails its series alone
        choice = choose.choose(study_of(folder, double)[0])
        assert choice.series.first.series_number == 2
        assert [series.first.series_number for series in choice.passed_over] == [3]
    twice = choose.choose(study_of(folder, cohorts["south"][scans.TWICE - 1])[0])
    assert "1 duplicate dropped" in twice.stack.notes


def test_truth_measures_what_was_drawn(ct: tuple[Path, Cohorts]) -> None:
    folder, cohorts = ct
    for name, cases in cohorts.items():
        voxel = float(scanner.CT[name].slices.voxel.max())
        for patient, row in truth_of(folder, name).items():
            case = next(case for case in cases if case.patient == patient)
            assert float(row["logit"]) == pytest.approx(float(case.truth["logit"]), abs=1e-6)
            if not case.scanned:
                assert row["intraparenchymal_ml"] == ""
                continue
            drawn = {lesion.kind: lesion for lesion in case.lesions}
            volume = float(row["intraparenchymal_ml"])
            assert abs(volume - drawn["intraparenchymal"].millilitres) <= voxel
            assert abs(float(row["oedema_ml"]) - volume * drawn["intraparenchymal"].oedema) <= voxel
            assert (float(row["intraventricular_ml"]) > 0) == (case.values["ivh"] == "yes")


@pytest.mark.slow
def test_intensity_within_the_brain_tells_the_volume(tmp_path: Path) -> None:
    """Without the rim of the skull: 4 mm less on every side, and nothing as bright as bone or calcium."""
    means, volumes = [], []
    for cases in hospitals.write(tmp_path, "ct", SEED, 50).values():
        for case in cases:
            if case.scanned:
                volume = choose.choose(study_of(tmp_path, case)[0]).stack.volume()
                deep = ndimage.distance_transform_edt(brain(volume).mask, sampling=volume.spacing) > 4
                means.append(volume.values[deep & (volume.values < 95)].clip(0, 80).mean())
                volumes.append(float(case.truth["volume_ml"]))
    assert np.corrcoef(means, volumes)[0, 1] > 0.7


# --- slices -----------------------------------------------------------------------------------------------------------


def read_labels(folder: Path, hospital: str) -> dict[str, list[int]]:
    """Instance -> five flags, from each hospital's own form."""
    short = ("IPH", "IVH", "SAH", "SDH", "EDH")
    with (folder / "data" / hospital / "labels.csv").open() as file:
        rows = list(csv.DictReader(file, delimiter=";" if hospital == "south" else ","))
    if hospital == "east":
        found: dict[str, list[int]] = {}
        for row in rows:
            found.setdefault(row["SOP"], [-1] * 5)[short.index(row["Typ"])] = int(row["Label"])
        return found
    return {row["SOPInstanceUID"]: [int(flag) for flag in list(row.values())[1:]] for row in rows}


@pytest.mark.parametrize("hospital", scanner.CT)
def test_labels_say_what_each_slice_shows(labelled: tuple[Path, Cohorts], hospital: str) -> None:
    """Of every kind that a patient has there is a run of slices, and none of one that the patient has not."""
    folder, cohorts = labelled
    labels = read_labels(folder, hospital)
    seen = 0
    for case in cohorts[hospital]:
        if not case.scanned:
            continue
        stack = choose.choose(study_of(folder, case)[0]).stack
        found, torn = stack.labelled(labels)
        assert torn == []
        known = np.array([row for row in found if row is not None])
        assert len(known) > 0.6 * len(found)
        has = [case.truth[kind] == 1 for kind in BLOOD]
        assert known.max(axis=0).tolist() == [int(there) for there in has]
        inside = brain(stack.volume()).region == "brain"
        assert inside
        for index, row in enumerate(found):
            if row is None:
                continue
            smooth = ndimage.gaussian_filter(stack.values[index].astype(np.float32), 1.0)
            bright = (smooth > 50) & (smooth < 90)
            # Blood in the middle of the head, away from the skull: what only its three inner kinds can be.
            deep = ndimage.distance_transform_edt(stack.values[index] < 150) * stack.spacing[0] > 12
            amount = ndimage.binary_opening(bright & deep, iterations=2).sum() * stack.spacing[0] ** 2
            seen += amount > 300
            assert amount <= 300 or any(row), "a slice full of blood without a label"
    assert seen > 0


def test_unlabelled_slices_are_souths_alone(labelled: tuple[Path, Cohorts]) -> None:
    folder, cohorts = labelled
    for name, cases in cohorts.items():
        slices = sum(len(scanner.CT[name].slices.heights) for case in cases if case.scanned)
        share = len(read_labels(folder, name)) / slices
        assert share == 1 if name != "south" else 0.7 < share < 0.97


# --- MR and radiographs -----------------------------------------------------------------------------------------------


def test_the_reader_tells_the_sequences_and_finds_the_core(tmp_path: Path) -> None:
    cohorts = hospitals.write(tmp_path, "mr", SEED, 1, processes=1)
    for name, cases in cohorts.items():
        (case,) = cases
        found = mr.choose(study_of(tmp_path, case)[0], ["DWI", "ADC", "FLAIR"])
        assert found.absent == found.refused == ()
        expected = stated(truth_of(tmp_path, name)[case.patient])
        diffusion = found.stacks["DWI"].volume()
        assert np.linalg.norm(middle_of(diffusion, diffusion.values > 165) - expected) < 2, name
        chart = mr.adc(found.stacks["ADC"].volume())
        at = tuple(np.rint(chart.indices(expected)).astype(int))
        assert 350 < chart.values[at] < 620  # 1e-6 mm2/s, whatever the hospital stores
        flair = found.stacks["FLAIR"].volume()
        smooth = ndimage.gaussian_filter(flair.values, (0.3, 1, 1))
        assert np.linalg.norm(middle_of(flair, smooth > 150) - expected) < 4, name  # with the oedema around it


def test_some_patients_have_no_map(tmp_path: Path) -> None:
    case = hospitals.generate("mr", SEED)["south"][8]
    scans.head_mr(case, tmp_path)
    assert mr.choose(group(scan.scan(tmp_path))[0], ["DWI", "ADC", "FLAIR"]).absent == ("ADC",)


def test_radiographs_are_bright_where_metal_is_at_every_hospital(tmp_path: Path) -> None:
    cohorts = hospitals.write(tmp_path, "xray", SEED, 1, processes=1)
    for name, cases in cohorts.items():
        images, aside = radiograph.views(study_of(tmp_path, cases[0])[0])
        assert ([image.view for image in images], aside) == (["AP", "LL"], [])
        for image in images:
            assert image.spacing is not None
            assert image.values[:3, :3].mean() < 0.15, name  # air in the corner
            assert 0.01 < (image.values > 0.75).mean() < 0.12, name  # metal
            assert image.values[(image.values > 0.75)].mean() > 0.8


def test_infection_is_to_be_seen() -> None:
    machine = joint.DETECTORS["north"]
    for part in ("hip", "knee"):
        for view in joint.VIEWS:
            dull, lost, swollen = (
                joint.radiograph(machine, part, "left", view, lysis, effusion, (5, 6))
                for lysis, effusion in ((-2, -2), (2, -2), (-2, 2))
            )
            assert (lost - dull).min() < -0.08
            assert (lost - dull).sum() < -5
            assert (swollen - dull).max() > 0.1
            assert (swollen - dull).sum() > 5


# --- what the hospitals' tables say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", hospitals.KINDS)
def test_studies_are_valid(kind: str, tmp_path: Path) -> None:
    if kind == "mr" and "known_at" not in TextSpec.model_fields:
        pytest.skip("modalities.text has no known_at yet")
    hospitals.write(tmp_path, kind, SEED, 1, processes=1)
    for name in hospitals.KINDS[kind].studies:
        federation = load_federation(tmp_path / name).value
        assert OUTCOMES[kind] == federation.task.outcome.variable
    sections = {"images", *(("text",) if kind == "mr" else ())}
    if sections <= HospitalConfig.model_fields.keys():
        for name in hospitals.HOSPITALS:
            load(tmp_path / "hospitals" / f"{name}.yaml", HospitalConfig)


def tables_alone(folder: Path, study: str) -> Path:
    """A study of the same tables that reads no image and no text, and its hospitals, in a folder `plain`."""
    described = yaml.safe_load((folder / study).read_text())
    modalities = {"table": described["modalities"]["table"]}
    stage = {"name": "train", "rounds": 1, "epochs": 1, "batch": 16, "optimizer": {"name": "sgd", "lr": 0.1}}
    described["task"].pop("kind", None)
    described |= {"modalities": modalities, "network": {"name": "logistic"}, "training": {"stages": [stage]}}
    plain = folder / "plain"
    (plain / "hospitals").mkdir(parents=True)
    (plain / "dictionary.yaml").write_bytes((folder / "dictionary.yaml").read_bytes())
    (plain / "federation.yaml").write_text(yaml.safe_dump(described).replace("- true", "- yes"))
    for path in (folder / "hospitals").glob("*.yaml"):
        (plain / "hospitals" / path.name).write_text(path.read_text().split("\nimages:")[0] + "\n")
    return plain / "federation.yaml"


@pytest.mark.parametrize("kind", hospitals.KINDS)
def test_tables_read_back_as_they_were_drawn(kind: str, tmp_path: Path) -> None:
    cohorts = hospitals.generate(kind, SEED, 40)
    for name, data in hospitals.study_files(kind).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for name, cases in cohorts.items():
        for path, data in hospitals.papers_of(kind, name, cases, [Seen({}, {"2.25.1": (0,) * 5})] * len(cases)).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
    path = tables_alone(tmp_path, hospitals.KINDS[kind].studies[0])
    document, loaded = source.load(source.locate(path, tmp_path / "data", None))
    federation: Federation = document.value
    assert [hospital.name for hospital in loaded] == ["east", "north", "south"]
    for hospital in loaded:
        outcome = federation.task.outcome
        cases = [case for case in cohorts[hospital.name] if case.values[outcome.variable] is not None]
        assert hospital.warnings == ()
        assert hospital.patients.ids == tuple(case.patient for case in cases)
        labels = [outcome.is_positive(case.values[outcome.variable] or 0) for case in cases]
        assert hospital.patients.labels.tolist() == labels
        meant = {name: [case.values[name] for case in cases] for name in federation.predictors}
        encoded = clinical.encode(meant, federation.modalities.table)
        assert np.allclose(hospital.patients.table, encoded, atol=0.01, equal_nan=True)  # some round their hours
        assert np.isnan(hospital.patients.table).mean() < 0.1


def test_links_lead_from_table_to_images(ct: tuple[Path, Cohorts]) -> None:
    folder, cohorts = ct
    with (folder / "data/south/chiave.csv").open() as file:
        keys = {row["codice"]: row["paziente"] for row in csv.DictReader(file, delimiter=";")}
    for name, cases in cohorts.items():
        for case in cases:
            if case.scanned:
                (header, *_) = study_of(folder, case)[0][0].headers
                assert header.patient == case.image_patient
                linked = {"north": header.patient, "south": keys.get(header.patient)}
                assert linked.get(name, case.patient) == case.patient


# --- the truth --------------------------------------------------------------------------------------------------------


def known(kind: str, seed: int) -> list[tuple[Case, bool]]:
    """The patients of all hospitals whose outcome is known, and whether it is bad."""
    bad = {"ct": lambda value: value >= 3, "mr": lambda value: value >= 7, "xray": lambda value: value == "yes"}[kind]
    cases = [case for cohort in hospitals.generate(kind, seed).values() for case in cohort]
    return [(case, bool(bad(case.values[OUTCOMES[kind]]))) for case in cases if case.values[OUTCOMES[kind]] is not None]


@pytest.mark.parametrize("seed", [SEED, 1, 2])
@pytest.mark.parametrize("kind", ["ct", "mr", "xray"])
def test_outcomes_follow_the_true_risk(kind: str, seed: int) -> None:
    patients = known(kind, seed)
    logits = np.array([float(case.truth["logit"]) for case, _ in patients])
    bad = np.array([value for _, value in patients])
    risks = 1 / (1 + np.exp(-logits))
    assert abs(bad.mean() - risks.mean()) < 4 * np.sqrt((risks * (1 - risks)).sum()) / len(risks)
    assert 0.3 < bad.mean() < 0.75
    assert 0.86 < delong(bad.astype(np.int64), logits)[0] < 0.95


def columns(cases: Sequence[Case], names: Sequence[str]) -> NDArray[np.float64]:
    """Numbers as they are with gaps at their mean, words as one column each."""
    parts: list[Any] = []
    for name in names:
        values = [case.values[name] for case in cases]
        words = sorted({value for value in values if isinstance(value, str)})
        if words:
            parts += [[value == word for value in values] for word in words[1:]]
        else:
            numbers = np.array(values, np.float64)
            parts.append(np.where(np.isnan(numbers), np.nanmean(numbers), numbers))
    table = np.array(parts, np.float64).T
    return np.asarray((table - table.mean(0)) / table.std(0), np.float64)


@pytest.mark.parametrize("kind", ["ct", "mr", "xray"])
def test_the_table_alone_is_weaker(kind: str) -> None:
    """Each hospital in turn is predicted from the others' tables; the image holds what is missing."""
    pairs = known(kind, SEED)
    cases, bad = [case for case, _ in pairs], np.array([value for _, value in pairs])
    table = columns(cases, [name for name in cases[0].values if name != OUTCOMES[kind]])
    where = np.array([case.hospital for case in cases])
    gaps = []
    for hospital in hospitals.HOSPITALS:
        rest, own = where != hospital, where == hospital
        scores = LogisticRegression().fit(table[rest], bad[rest]).decision_function(table[own])
        truth = np.array([float(case.truth["logit"]) for case, there in zip(cases, own, strict=True) if there])
        labels = bad[own].astype(np.int64)
        gaps.append(delong(labels, truth)[0] - delong(labels, scores)[0])
    assert min(gaps) > 0.05
    assert np.mean(gaps) > 0.12


@pytest.mark.parametrize("kind", ["ct", "mr", "xray"])
def test_reports_never_say_the_outcome(kind: str) -> None:
    telling = r"\d|mrs|rankin|nihss|poor|good|outcome|dead|died|infect|recover|prognos"
    for cases in hospitals.generate(kind, SEED).values():
        for case in cases:
            assert case.report
            assert not re.search(telling, case.report.lower()), case.report
    if kind == "ct":  # nor how large the haematoma is
        words = {word for case in cases for word in re.findall(r"[a-z]+", case.report.lower())}
        assert not words & {"small", "large", "massive", "extensive", "shift", "ml", "tiny", "huge"}


def test_reports_agree_with_the_images() -> None:
    for name, cases in hospitals.generate("ct", SEED).items():
        for case in cases:
            assert str(case.truth["place"]) in case.report
            if case.truth["place"] != "brainstem":
                assert str(case.truth["side"]) in case.report
            blood = {"north": "Blood in the", "east": "blood: present", "south": "broken into"}[name]
            assert (blood in case.report) == (case.values["ivh"] == "yes")


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_names_the_kinds_and_refuses_what_is_there(tmp_path: Path) -> None:
    assert "--kind [table|ct|slices|mr|xray]" in " ".join(CliRunner().invoke(__main__.app, ["--help"]).stdout.split())
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(__main__.app, [str(tmp_path), "--kind", "ct"])
    assert isinstance(result.exception, ConfigurationError)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_command_writes_a_whole_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ich_deploy.demo", str(tmp_path / "demo"), "--kind", "xray"]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "150 patients, 149 with images" in result.stdout
    assert f"ich-simulate {tmp_path}/demo/mednvc.yaml --data {tmp_path}/demo/data" in result.stdout
    assert len(scan.scan(tmp_path / "demo" / "data").headers) == 2 * (149 + 179 + 119)
