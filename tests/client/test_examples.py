"""The shipped examples on the real data: hospitals, patients, columns and outcomes, counted another way."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ich_client.hospital import HospitalConfig, load_mappings
from ich_client.tables import Hospital, load_hospitals
from ich_models import clinical
from ich_models.federation import load_federation
from ich_models.yaml_config import load


def example(repository: Path, shared_data: Path, folder: str, study: str) -> tuple[Hospital, ...]:
    mappings = load_mappings(repository / "examples" / folder / "hospitals")
    return load_hospitals(mappings, shared_data / folder, load_federation(repository / "examples" / folder / study))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("study", "patients", "events", "unknown"),
    [
        ("death_or_dependency.yaml", 8149, 5323, 29),
        ("fedprox.yaml", 8149, 5323, 29),
        ("death_14_days.yaml", 8178, 779, 0),
        ("haemorrhagic.yaml", 7481, 283, 697),
    ],
)
def test_ist(repository: Path, shared_data: Path, study: str, patients: int, events: int, unknown: int) -> None:
    loaded = example(repository, shared_data, "ist", study)
    assert len(loaded) == 49
    assert [one.name for one in loaded] == sorted(one.name for one in loaded)
    assert sum(len(one.patients) for one in loaded) == patients
    assert sum(int(one.patients.labels.sum()) for one in loaded) == events
    assert sum(one.excluded.get("outcome unknown", 0) for one in loaded) == unknown == 8178 - patients
    assert {one.patients.table.shape[1] for one in loaded} == {35}
    assert not any(np.isnan(one.patients.table).any() for one in loaded)
    without_event = [one for one in loaded if not one.patients.labels.any()]
    assert len(without_event) == (11 if study == "haemorrhagic.yaml" else 0)
    assert sum(len(one.warnings) for one in loaded) == len(without_event)


@pytest.mark.realdata
def test_ist_equals_pandas_one_hot(repository: Path, shared_data: Path) -> None:
    pandas = pytest.importorskip("pandas")
    document = load_federation(repository / "examples/ist/death_or_dependency.yaml")
    table = document.value.modalities.table
    raw = pandas.read_csv(shared_data / "ist/IST.csv", encoding="latin-1", dtype=str, keep_default_na=False)
    raw = raw[(raw.HOSPNUM == "134") & raw.OCCODE.isin(list("1234"))]
    codes = {"alert": "F", "drowsy": "D", "unconscious": "U", "female": "F", "other": "OTH", "missing": ""}
    codes |= {"yes": "Y", "cannot_assess": "C"}
    (hospital,) = [
        one for one in example(repository, shared_data, "ist", "death_or_dependency.yaml") if one.name == "ist-134"
    ]
    assert len(hospital.patients) == len(raw) == 524
    for at, name in enumerate(clinical.columns(table)):
        variable, _, level = name.partition("=")
        expected = (raw[variable] == codes.get(level, level)) if level else raw[variable]
        np.testing.assert_array_equal(hospital.patients.table[:, at], expected.astype(float), name)
    np.testing.assert_array_equal(hospital.patients.labels, raw.OCCODE.isin(["1", "2"]).astype(int))


@pytest.mark.realdata
def test_every_column_of_ist_is_defined_mapped_and_readable(repository: Path, shared_data: Path) -> None:
    from ich_client import sheets, values
    from ich_models.variables import Dictionary

    variables = load(repository / "examples/ist/dictionary/ist.yaml", Dictionary).value.variables
    document = load(repository / "examples/ist/hospitals/ist.yaml", HospitalConfig)
    sheet = sheets.read(shared_data / "ist/IST.csv", document.value.table, partial(document.where, "table"))
    assert len(sheet.header) == 112
    assert set(variables) == set(document.value.table.columns) == {*sheet.header, "FINAL_DIAGNOSIS"}
    assert all(variable.known_at for variable in variables.values())
    problems = []
    for name, variable in variables.items():
        problems += values.faults(name, variable, sheet, document)
        problems += values.convert(name, variable, sheet, range(len(sheet.rows)), document)[1]
    assert problems == []


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("study", "counts"),
    [
        (f"{name}.yaml", (303, 261, 46, 130))
        for name in ("fedavg", "fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad")
    ]
    + [("loho.yaml", (303, 294, 123, 200))],
)
def test_heart_disease(repository: Path, shared_data: Path, study: str, counts: tuple[int, ...]) -> None:
    loaded = example(repository, shared_data, "heart_disease", study)
    assert [one.name for one in loaded] == ["cleveland", "hungary", "switzerland", "va"]
    assert tuple(len(one.patients) for one in loaded) == counts
    assert {one.patients.table.shape[1] for one in loaded} == {13}
    complete = study != "loho.yaml"
    assert sum(sum(one.excluded.values()) for one in loaded) == (920 - 740 if complete else 0)
    assert sum(int(one.patients.labels.sum()) for one in loaded) == (383 if complete else 509)
    chol = {one.name: int(np.isnan(one.patients.table[:, 6]).sum()) for one in loaded}
    assert chol == dict.fromkeys(chol, 0) if complete else {"cleveland": 0, "hungary": 23, "switzerland": 123, "va": 56}
    warned = [str(warning) for one in loaded for warning in one.warnings]
    assert [("'chol' is missing for all 123 patients" in warning) for warning in warned] == ([] if complete else [True])
