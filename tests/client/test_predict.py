"""New patients under a finished model: the numbers of the study's own evaluation, who cannot be predicted and why, files and refusals."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_model import call, finished, of_slices
from image_hospital import SLICES, VOLUME, files, load_one, make

from ich_client import newcomers, prediction
from ich_client.hospital import HospitalConfig
from ich_client.images import Ask
from ich_client.tables import load_hospitals
from ich_client.work import predict
from ich_models.errors import ConfigurationError, DataError
from ich_models.federation import load_federation
from ich_models.image_spec import HAEMORRHAGES as TYPES
from ich_models.protocol import CONSTANTS, WEIGHTS, Rows
from ich_models.yaml_config import load
from ich_strategies import models
from ich_strategies.models import Model
from ich_strategies.plan import Plan

STUDY = """\
name: small
task: {timeline: [admission, 90 days], predict_at: admission, outcome: {variable: mrs, at: 90 days, poor: ">= 3"}}
modalities:
  table:
    variables:
      size: {type: number, range: [0, 1.1], known_at: admission, unit: m}
      ivh: {type: yes_no, known_at: admission}
      mrs: {type: integer, range: [0, 6], known_at: 90 days}
    predictors: [size, ivh]
network: {name: logistic}
training: {stages: [{rounds: 1, epochs: 1, batch: 4, optimizer: {name: sgd, lr: 0.01}}]}
evaluation: {small_cells: 0}
"""
MAPPING = "hospital: north\ntable: {file: table.csv, patient: ID, columns: {size: SIZE, ivh: IVH, mrs: MRS}}\n"
HEADER = "ID,SIZE,IVH,MRS\n"
ROWS = ("a,0.7,yes,5", "b,0.04,no,0", "c,,yes,4", "d,0.81,,1", "e,0.6,no,6", "f,0.02,no,0")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A study on a table, without its model."""
    (tmp_path / "federation.yaml").write_text(STUDY)
    (tmp_path / "hospital.yaml").write_text(MAPPING)
    (tmp_path / "table.csv").write_text(HEADER + "".join(f"{row}\n" for row in ROWS))
    return tmp_path


def asked(folder: Path, model: Model, ask: Ask | None = None) -> list[prediction.Prediction]:
    document = load(folder / "hospital.yaml", HospitalConfig)
    given = newcomers.load(document, folder, model.federation, folder / "cache", ask or Ask())
    return prediction.predict_all(model, given)


def in_the_study(folder: Path, rows: Rows, plan: Plan) -> dict[str, float]:
    """What the study's own evaluation makes of the same patients, their outcomes known."""
    federation = load_federation(folder / "federation.yaml")
    (north,) = load_hospitals([load(folder / "hospital.yaml", HospitalConfig)], folder, federation, folder / "cache")
    return dict(zip(north.patients.ids, predict(plan, rows, north.patients)[0].tolist(), strict=True))


def without_outcome(folder: Path) -> None:
    """The outcome's column goes, from the table and from the mapping."""
    lines = [line.rsplit(",", 1)[0] for line in (folder / "table.csv").read_text().splitlines()]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    mapping = (folder / "hospital.yaml").read_text()
    (folder / "hospital.yaml").write_text(mapping.replace(", mrs: MRS", ""))


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_study(table: Path) -> None:
    model = finished(table)
    expected = in_the_study(table, model.rows, model.plan)
    without_outcome(table)
    found = asked(table, model)
    assert {one.patient: one.probabilities["poor"] for one in found} == expected
    assert {one.patient: one.positive for one in found} == {
        name: ("poor",) if chance >= 0.4 else () for name, chance in expected.items()
    }
    assert {one.patient: one.imputed for one in found if one.imputed} == {"c": ("size",), "d": ("ivh",)}


def test_an_empty_outcome_is_as_good_as_none(table: Path) -> None:
    model = finished(table)
    expected = in_the_study(table, model.rows, model.plan)
    (table / "table.csv").write_text(HEADER + "".join(row.rsplit(",", 1)[0] + ",\n" for row in ROWS))
    assert {one.patient: one.probabilities["poor"] for one in asked(table, model)} == expected


def test_a_logistic_prediction_by_hand(table: Path) -> None:
    """sigmoid(w . (x - centre) * scale + b), a missing value at its fill, in plain numpy."""
    model = finished(table)
    names = list(model.plan.weights.shapes)
    assert [name.rsplit(".", 1)[-1] for name in names] == ["weight", "bias"]
    w = model.rows[WEIGHTS][0].astype(np.float64)
    fill, centre, scale = model.rows[CONSTANTS][0].reshape(3, 2).astype(np.float64)
    x = np.array([[0.7, 1], [0.04, 0], [fill[0], 1], [0.81, fill[1]], [0.6, 0], [0.02, 0]])
    by_hand = 1 / (1 + np.exp(-(((x - centre) * scale) @ w[:2] + w[2])))
    order = list(model.plan.constants.shapes)
    assert [name.rsplit(".", 1)[-1] for name in order] == ["fill", "centre", "scale"]
    assert [one.probabilities["poor"] for one in asked(table, model)] == pytest.approx(by_hand.tolist(), abs=1e-6)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients with head CTs, one of whom has none."""
    folder = make(tmp_path_factory.mktemp("scanned"), 3)
    (folder / "table.csv").write_text((folder / "table.csv").read_text() + "P7,71,3\n")
    return folder


def test_images_give_the_numbers_of_the_study(scanned: Path) -> None:
    files(scanned, image=VOLUME, network="{name: image_only, size: tiny}")
    model = finished(scanned)
    expected = in_the_study(scanned, model.rows, model.plan)
    found = {one.patient: one for one in asked(scanned, model)}
    for name in ("P0", "P1", "P2"):
        assert found[name].probabilities["poor"] == pytest.approx(expected[name], abs=1e-6)
        assert found[name].modalities == ("image",)
    assert found["P7"].reason == "no usable image"
    assert not found["P7"].probabilities


def test_slices_are_predicted_each_and_the_patient_by_the_highest(scanned: Path) -> None:
    windows = SLICES.replace("}", ", windows: [[40, 80], [80, 200], [40, 380]]}")
    north = load_one(scanned, image=windows, network="{name: image_only, size: tiny, channels: 3, dimensions: 2}")
    files(scanned, image=windows, network="{name: dlmi, size: tiny}")
    of_slices(scanned, "train")
    model = finished(scanned)
    numbers = predict(model.plan, model.rows, north.patients)[0]
    found = {one.patient: one for one in asked(scanned, model)}
    for place, name in enumerate(("P0", "P1", "P2")):
        one, own = found[name], numbers[place]
        np.testing.assert_allclose([list(each.probabilities.values()) for each in one.slices], own, atol=1e-6)
        # 26 slices, 8 of them at equal steps: the middles of eight parts
        assert [each.number for each in one.slices] == [1, 4, 8, 11, 14, 17, 21, 24]
        assert one.slices[0].instances == (f"1.2.9.{place}.1.7.2",)
        assert list(one.probabilities.values())[:5] == pytest.approx(own.max(0).tolist(), abs=1e-6)
        assert one.probabilities["any"] == pytest.approx(own.max(), abs=1e-6)
        above = own.max(0) >= [0.3, 0.4, 0.5, 0.6, 0.7]
        assert one.positive == (*np.array(TYPES)[above], *(["any"] if above.any() else []))
    lines = list(csv.DictReader(io.StringIO(prediction.as_csv(model, list(found.values())))))
    assert [line["slice"] for line in lines[:3]] == ["all", "1", "4"]
    assert [line["patient"] for line in lines].count("P1") == 9
    assert [round(float(limit), 6) for limit in lines[1]["threshold"].split()] == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert lines[-1]["reason"] == "no usable image"
    assert json.loads(prediction.as_json(model, list(found.values())))["model"]["thresholds"][
        "epidural"
    ] == pytest.approx(0.7)


# --- who cannot be predicted ------------------------------------------------------------------------------------------


def test_a_bad_cell_fails_alone_and_is_named(table: Path) -> None:
    model = finished(table)
    rows = ("a,0.7,yes,", "b,4.4,no,", "c,0.5,perhaps,", ",0.5,no,", "e,0.6,no,", "e,0.6,no,", "g,0.5,no,")
    (table / "table.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    found = asked(table, model)
    assert [one.patient for one in found if not one.reason] == ["a", "g"]
    said = {one.patient: one.reason for one in found if one.reason}
    assert list(said) == ["", "e", "b", "c"]
    assert said["b"].startswith("size 4.4 outside 0-1.1 m (table.csv: line 3)")
    assert "'perhaps'" in said["c"]
    assert said["e"] == "the identifier has 2 rows (table.csv: lines 6, 7)"
    assert said[""] == "no patient identifier in 'ID' (table.csv: line 5)"


def test_complete_cases_are_asked_of_new_patients_too(table: Path) -> None:
    (table / "federation.yaml").write_text(
        STUDY.replace("predictors: [size, ivh]", "predictors: [size, ivh]\n    complete_cases: true")
    )
    found = asked(table, finished(table))
    assert {one.patient: one.reason for one in found if one.reason} == {
        "c": "the study leaves out who lacks a predictor: size",
        "d": "the study leaves out who lacks a predictor: ivh",
    }


def test_what_concerns_everybody_is_an_error(table: Path) -> None:
    model = finished(table)
    (table / "hospital.yaml").write_text(MAPPING.replace("ivh: IVH, ", "").replace("size: SIZE", "size: YEARS"))
    with pytest.raises(DataError) as caught:
        asked(table, model)
    assert [problem.message for problem in caught.value.problems] == [
        "no column 'YEARS' in table.csv",
        "the model needs 'ivh', and it is not mapped",
    ]
    (table / "hospital.yaml").write_text(MAPPING)
    with pytest.raises(DataError, match="no patient 'z'"):
        asked(table, model, Ask(patient="z"))


# --- the model's folder -----------------------------------------------------------------------------------------------


def test_a_model_of_another_study_or_a_damaged_one_is_refused(table: Path) -> None:
    model = finished(table)
    folder = models.find(table / "model")
    (table / "federation.yaml").write_text(STUDY.replace("name: small", "name: other"))
    with pytest.raises(ConfigurationError, match="of another study"):
        models.read(folder, load_federation(table / "federation.yaml"))
    tensors = {name: block[0] for name, block in model.rows.items()}
    for wrong in ({**tensors, WEIGHTS: tensors[WEIGHTS][:-1]}, {**tensors, WEIGHTS: tensors[WEIGHTS] * np.nan}):
        models.write(folder, model.plan, wrong, 0.4, "0" * 64)
        with pytest.raises(ConfigurationError, match="'weights' has"):
            models.read(folder)
    for threshold in (1.4, -0.1):
        models.write(folder, model.plan, tensors, threshold, "0" * 64)
        with pytest.raises(ConfigurationError, match="not a model that a study ended with"):
            models.read(folder)
    models.write(folder, model.plan, {WEIGHTS: tensors[WEIGHTS]}, 0.4, "0" * 64)
    with pytest.raises(ConfigurationError, match="by its own patients"):
        models.read(folder)
    (folder / models.TENSORS).write_bytes(b"no model")
    with pytest.raises(ConfigurationError, match="not a model that a study ended with"):
        models.read(folder)


def test_of_several_models_one_must_be_named(table: Path) -> None:
    finished(table)
    with pytest.raises(ConfigurationError, match="2 models here"):
        finished(table, seed=4)
    assert models.find(table / "model", seeds=(9, 4, 3)).name == "seed-4"
    with pytest.raises(ConfigurationError, match="no model here"):
        models.find(table / "nowhere")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_csv_and_json_and_never_among_the_data(table: Path, tmp_path_factory: Any) -> None:
    model = finished(table)
    expected = in_the_study(table, model.rows, model.plan)
    words = ("predict", table / "hospital.yaml", "--model", table / "model", "--data", table)
    lines = list(csv.DictReader(io.StringIO(call(*words))))
    assert {line["patient"]: float(line["probability"]) for line in lines} == expected
    assert {line["class"] for line in lines} == {"poor", "good"}
    assert {line["modalities"] for line in lines} == {"table"}
    whole = json.loads(call(*words, "--json"))
    assert {one["patient"]: one["probabilities"]["poor"] for one in whole["patients"]} == expected
    assert whole["model"]["federation"] == model.plan.hash
    out = tmp_path_factory.mktemp("elsewhere")
    call(*words, "--out", out / "found.json")
    assert json.loads((out / "found.json").read_text()) == whole
    assert "of no kind that is written" in call(*words, "--out", out / "found.txt", code=1)
    for place in (table / "x.csv", table / "deep" / "x.csv"):
        assert "into the hospital's data" in call(*words, "--out", place, code=1)
        assert not place.exists()
