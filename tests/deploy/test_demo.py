"""The demo: the same bytes for the same seed, tables that read back as the patients drawn, a known truth, a study that finds it."""

import math
import re
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ich_client import sheets, values
from ich_client.hospital import HospitalConfig
from ich_deploy import source
from ich_deploy.demo import __main__, tables
from ich_deploy.demo.tables import Patient
from ich_deploy.simulate import Options, Watch, simulate
from ich_models.errors import ConfigurationError
from ich_models.federation import load_federation
from ich_models.metrics import delong
from ich_models.yaml_config import load

Cohorts = dict[str, list[Patient]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cohorts]:
    """The demo with its own seed; tests that change a file make their own."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, tables.write(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def edited(folder: Path, *changes: tuple[str, str]) -> Path:
    """The folder's federation file with texts replaced; each must be there."""
    path = folder / "federation.yaml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def known(patients: list[Patient]) -> Iterator[tuple[Patient, bool]]:
    """The patients with an outcome, and whether it is poor."""
    return ((patient, patient.mrs >= 3) for patient in patients if patient.mrs is not None)


def true_auroc(patients: list[Patient]) -> float:
    """What a model that knew the risk itself would reach on these patients."""
    labels, logits = zip(*((poor, patient.logit) for patient, poor in known(patients)), strict=True)
    return delong(np.array(labels, dtype=np.int64), np.array(logits))[0]


# --- files ------------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(made: tuple[Path, Cohorts], tmp_path: Path) -> None:
    folder, cohorts = made
    assert tables.write(tmp_path / "again") == cohorts
    first = content(folder)
    assert content(tmp_path / "again") == first
    assert sorted(first) == sorted([*tables.STUDY, "data/east.xlsx", "data/north.csv", "data/south.csv"])
    tables.write(tmp_path / "other", seed=tables.SEED + 1)
    other = content(tmp_path / "other")
    assert {name for name in first if other[name] != first[name]} == {n for n in first if n.startswith("data/")}


def test_workbook_holds_no_time_of_its_making(made: tuple[Path, Cohorts]) -> None:
    with zipfile.ZipFile(made[0] / "data" / "east.xlsx") as book:
        assert {part.date_time for part in book.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        stamps = set(re.findall(rb"\d{4}-\d\d-\d\dT[^<]*", book.read("docProps/core.xml")))
    assert stamps == {b"2025-01-01T00:00:00Z"}


def test_changed_files_are_not_replaced(tmp_path: Path) -> None:
    tables.write(tmp_path)
    tables.write(tmp_path)  # the same content is no change
    path = edited(tmp_path, ("name: demo", "name: mine"))
    with pytest.raises(ConfigurationError, match=r"federation\.yaml: is there already, with other content"):
        tables.write(tmp_path)
    assert "name: mine" in path.read_text()


def test_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(__main__.app, [str(tmp_path / "my demo")])
    assert result.exit_code == 0, result.output
    assert "240 patients" in result.stdout
    assert f"ich-simulate '{tmp_path}/my demo/federation.yaml' --data '{tmp_path}/my demo/data'" in result.stdout
    help_text = CliRunner().invoke(__main__.app, ["--help"]).stdout
    assert "Example: python -m ich_deploy.demo" in help_text


# --- what the hospitals read ------------------------------------------------------------------------------------------


def test_hospitals_load_without_a_word(made: tuple[Path, Cohorts]) -> None:
    folder, cohorts = made
    _, hospitals = source.load(source.locate(folder / "federation.yaml", folder / "data", None))
    assert [hospital.name for hospital in hospitals] == ["east", "north", "south"]
    assert [warning for hospital in hospitals for warning in hospital.warnings] == []
    for hospital in hospitals:
        labels = [poor for _, poor in known(cohorts[hospital.name])]
        assert hospital.patients.labels.tolist() == labels
        assert hospital.excluded == {"outcome unknown": len(cohorts[hospital.name]) - len(labels)}
        assert 0 < np.isnan(hospital.patients.table).mean() < 0.05  # gaps, and not too many


def meant(patient: Patient) -> dict[str, float | str | None]:
    """A patient in the study's own units and levels."""
    below = patient.location in ("cerebellar", "brainstem")
    blood_thinner = None if patient.anticoagulant is None else "no" if patient.anticoagulant == "none" else "yes"
    return {
        "age": patient.age,
        "sex": "female" if patient.female else "male",
        "gcs": patient.gcs,
        "volume": patient.volume,
        "ivh": "yes" if patient.ivh else "no",
        "location": patient.location,
        "onset_to_ct": None if patient.onset_minutes is None else patient.onset_minutes / 60,
        "systolic": patient.systolic,
        "glucose": patient.glucose,
        "anticoagulation": blood_thinner,
        "infratentorial": "yes" if below else "no",
        "hospital_stay": patient.stay,
        "mrs_90": patient.mrs,
    }


@pytest.mark.parametrize("name", tables.POPULATIONS)
def test_every_variable_reads_back_as_it_was_drawn(made: tuple[Path, Cohorts], name: str) -> None:
    folder, cohorts = made
    variables = load_federation(folder / "federation.yaml").value.modalities.table.variables
    document = load(folder / "hospitals" / f"{name}.yaml", HospitalConfig)
    where = partial(document.where, "table")
    sheet = sheets.read(folder / "data" / document.value.table.file, document.value.table, where)
    assert set(document.value.table.columns) == set(variables)
    assert len(sheet.rows) == len(cohorts[name]) == {"north": 240, "east": 300, "south": 180}[name]
    for variable, definition in variables.items():
        assert values.faults(variable, definition, sheet, document) == []
        read, problems = values.convert(variable, definition, sheet, range(len(sheet.rows)), document)
        assert problems == []
        expected = [meant(patient)[variable] for patient in cohorts[name]]
        assert read == pytest.approx(expected, abs=0.005), variable  # east rounds its hours to two decimals


# --- the truth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [tables.SEED, 1, 2])
def test_outcomes_follow_the_true_risk(seed: int) -> None:
    for name, patients in tables.generate(seed).items():
        risks = np.array([1 / (1 + math.exp(-patient.logit)) for patient, _ in known(patients)])
        poor = np.array([poor for _, poor in known(patients)])
        spread = math.sqrt((risks * (1 - risks)).sum()) / len(risks)
        assert abs(poor.mean() - risks.mean()) < 4 * spread, name
        assert 0.35 < poor.mean() < 0.75
        assert 0.78 < true_auroc(patients) < 0.92
        assert {patient.mrs for patient in patients} == {None, *range(7)}


@pytest.mark.parametrize("seed", [tables.SEED, 1])
def test_the_federated_model_comes_near_the_truth(tmp_path: Path, seed: int) -> None:
    """Near, not there: values are missing, and the risk goes with the logarithm of the volume that the model sees."""
    cohorts = tables.write(tmp_path, seed)
    begin = (tmp_path / "federation.yaml").read_text()
    comparisons = begin[begin.index("  # Trained beside") : begin.index("quorum:")]
    path = edited(tmp_path, ("rounds: 12", "rounds: 6"), (comparisons, "\n"), ("  folds: 5 ", "  # "))
    found = simulate(source.locate(path, tmp_path / "data", None), tmp_path / "out", [42], Options(), Watch())
    loho = found.arms["loho"].hospitals
    assert set(loho) == set(cohorts)
    gaps = []
    for name, patients in cohorts.items():
        measured = loho[name].auroc.value
        assert measured is not None
        gaps.append(true_auroc(patients) - measured)
    assert max(gaps) < 0.08
    assert -0.01 < sum(gaps) / len(gaps) < 0.05


def test_a_predictor_from_the_future_is_refused_by_name(tmp_path: Path) -> None:
    tables.write(tmp_path)
    path = edited(tmp_path, ("predictors: [age, ", "predictors: [age, hospital_stay, "))
    refusal = r"predictor 'hospital_stay' is known at discharge, after the prediction \(admission\)"
    with pytest.raises(ConfigurationError, match=refusal) as caught:
        load_federation(path)
    assert len(caught.value.problems) == 1
    assert re.search(r"federation\.yaml:\d+:\d+: modalities\.table\.predictors", caught.value.problems[0].where)


def test_the_readme_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """Its refusal is the one that is printed, and its LOHO table of tables has that demo's figures."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/tables")
    tables.write(folder)
    readme = " ".join((repository / "README.md").read_text().split())
    origin = source.locate(folder / "federation.yaml", folder / "data", None)
    found = simulate(origin, tmp_path / "out", [42], Options(), Watch())
    for name, figures in found.arms["loho"].hospitals.items():
        auroc, slope = figures.auroc, figures.calibration_slope
        shown = f"{auroc.value:.3f} ({auroc.low:.3f}-{auroc.high:.3f}) {slope.value:.2f}"
        assert f"{name} {figures.n} {figures.events} {shown}" in readme
    path = edited(folder, ("anticoagulation]", "anticoagulation, hospital_stay]"))
    with pytest.raises(ConfigurationError) as caught:
        load_federation(path)
    assert " ".join(str(caught.value).split()) in readme
