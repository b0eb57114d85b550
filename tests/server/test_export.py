"""Exports: the same predictions in a fresh process without our package, and a card with the run's own numbers."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_model import finished
from safetensors.numpy import load_file

from ich_models.batch import Patients
from ich_models.errors import ConfigurationError, RunError
from ich_models.federation import load_federation
from ich_models.tokens import built_in
from ich_server import results
from ich_server.export import network, onnx
from ich_server.export.write import SUMS, export
from ich_server.results import Results
from ich_server.summary import estimate, hospitals_of, metric, pooled
from ich_strategies import models
from ich_strategies.models import Model, load_stack

MakeResults = Callable[..., Results]

STUDY = """\
name: small
task: {{timeline: [admission, 90 days], predict_at: admission, outcome: {{variable: mrs, at: 90 days, poor: ">= 3"}}}}
modalities:
  table:
    variables:
      size: {{type: number, range: [0, 1.1], known_at: admission, unit: m}}
      ivh: {{type: yes_no, known_at: admission}}
      site: {{type: category, levels: [lobar, deep, brainstem], known_at: admission, missing: level}}
      mrs: {{type: integer, range: [0, 6], known_at: 90 days}}
    predictors: [size, ivh, site]
{more}
network: {network}
training: {{stages: [{{rounds: 1, epochs: 1, batch: 4, optimizer: {{name: sgd, lr: 0.01}}}}]}}
evaluation: {{small_cells: 0}}
"""
IMAGE = "  image: {kind: ct, size: [16, 32, 32], spacing: [10, 6, 6]}"
TEXT = "  text: {tokens: 32}"
NETWORKS = {
    "logistic": ("{name: logistic}", ""),
    "mlp": ("{name: mlp, hidden: [5, 3], normalisation: batch}", ""),
    "image_only": ("{name: image_only, size: tiny}", IMAGE),
    "concat": ("{name: concat, size: tiny}", f"{IMAGE}\n{TEXT}"),
    "ichpro": ("{name: ichpro, size: tiny}", f"{IMAGE}\n{TEXT}"),
    "vdafm": ("{name: vdafm, size: tiny}", f"{IMAGE}\n{TEXT}"),
    "mednvc": ("{name: mednvc, size: tiny}", "  image: {kind: radiograph, size: [64, 64], most: 2}"),
    "dlmi": (
        "{name: dlmi, size: tiny}",
        "  image: {kind: ct_slices, size: [32, 32], windows: [[40, 80], [80, 200], [40, 380]]}",
    ),
    "ich_score": ("{name: ich_score, gcs: size, age: size, volume: size, ivh: ivh, infratentorial: ivh}", ""),
}
ON_SLICES = ("dlmi", "hohoho")
OURS = ("ich_models", "ich_strategies", "ich_client", "ich_server", "ich_deploy")

WITHOUT = f"""\
import runpy, sys
for name in {(*OURS, "torch")!r}[: 6 if "--torch" not in sys.argv else 5]:
    sys.modules[name] = None  # importing it fails, installed or not
"""


def run_of(folder: Path, name: str, build: MakeResults) -> tuple[Path, Model, Results]:
    """A run's folder: a model with random weights, and results that tell of it."""
    settings, more = NETWORKS[name]
    text = STUDY.replace("task: {{", "task: {{kind: slices, ") if name in ON_SLICES else STUDY
    (folder / "federation.yaml").write_text(text.format(network=settings, more=more))
    model = finished(folder, seed=42)
    found = build(arms=["loho", "federated"])
    study = found.study.model_copy(update={"federation": model.plan.hash})
    found = found.model_copy(update={"study": study, "models": {"42": "0" * 64}})
    results.write(found, folder)
    return folder, model, found


def fresh(*arguments: str | Path, code: str) -> str:
    """What a new interpreter says that cannot import this package, whatever its environment."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT + code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def own_answers(model: Model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What a hospital's own prediction makes of the same arrays: `Patients` through the stack, as `ich-client predict`."""
    count = len(next(iter(arrays.values())))
    patients = Patients(
        tuple(map(str, range(count))),
        arrays.get("table", np.zeros((count, len(model.plan.columns)))).astype(np.float64),
        np.zeros(count, np.int64),
        image=arrays.get("image"),
        text=arrays.get("text"),
    )
    logits = load_stack(model.plan, model.rows).logits(patients.batch(model.plan.dtype))
    return torch.sigmoid(logits.double())[0].numpy()


def arrays_of(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, arrays.pop("probability")


@pytest.mark.parametrize(
    "name", ["logistic", *(pytest.param(each, marks=pytest.mark.slow) for each in list(NETWORKS)[1:])]
)
def test_onnx_gives_the_models_predictions_without_us(name: str, tmp_path: Path, build: MakeResults) -> None:
    run, model, found = run_of(tmp_path, name, build)
    export(run, found, tmp_path / "to", as_onnx=True)
    arrays, answers = arrays_of(tmp_path / "to/onnx/sample.npz")
    assert np.ptp(answers) > 1e-3, "patients differ"
    np.testing.assert_allclose(answers, own_answers(model, arrays), atol=1e-6)
    code = "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    assert "largest difference" in fresh(tmp_path / "to/onnx/check.py", code=code)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_bundle_gives_the_models_predictions_with_monai_alone(
    name: str, tmp_path: Path, build: MakeResults
) -> None:
    run, model, found = run_of(tmp_path, name, build)
    export(run, found, tmp_path / "to", as_monai=True)
    bundle = tmp_path / "to/monai"
    code = """
import numpy
from monai.bundle import ConfigParser
parser = ConfigParser()
parser.read_config(sys.argv[1] + "/configs/inference.json")
parser.read_meta(sys.argv[1] + "/configs/metadata.json")
parser["bundle_root"] = sys.argv[1]
parser.parse()
said = parser.get_parsed_content("predictions")
print(" ".join(map(repr, said.astype(float).ravel().tolist())))
"""
    said = np.array([float(word) for word in fresh(bundle, "--torch", code=code).split()])
    arrays, answers = arrays_of(bundle / "docs/sample.npz")
    np.testing.assert_allclose(said.reshape(answers.shape), own_answers(model, arrays), atol=1e-4)
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert list(metadata["network_data_format"]["inputs"]) == list(arrays)
    assert metadata["intended_use"].startswith("Research use only")


def test_a_copy_that_differs_is_refused(tmp_path: Path, build: MakeResults) -> None:
    run, _, found = run_of(tmp_path, "logistic", build)
    export(run, found, tmp_path / "to", as_onnx=True)
    folder = tmp_path / "to/onnx"
    arrays, answers = arrays_of(folder / "sample.npz")
    (folder / "sample.npz").write_bytes(onnx.npz({**arrays, "probability": answers + np.float32(2e-4)}))
    with pytest.raises(RunError, match=r"not the model: largest difference 2\.\d+e-04, allowed 1e-04"):
        onnx.check(folder)


def test_the_weights_by_name_are_the_models(tmp_path: Path, build: MakeResults) -> None:
    """A logistic prediction by hand from weights.safetensors and preprocessing.json alone."""
    run, model, found = run_of(tmp_path, "logistic", build)
    export(run, found, tmp_path / "to")
    tensors = load_file(tmp_path / "to/weights.safetensors")
    assert set(tensors) == {"input.fill", "input.centre", "input.scale", "output.weight", "output.bias"}
    columns = json.loads((tmp_path / "to/preprocessing.json").read_text())["inputs"]["table"]["columns"]
    assert [each["column"] for each in columns] == list(model.plan.columns)
    assert columns[0] == {
        "column": "size", "variable": "size", "unit": "m", "range": [0.0, 1.1], "known_at": "admission", "missing": "impute"
    }  # fmt: skip
    assert {
        "column": "site=missing",
        "variable": "site",
        "is": "1 where it is missing, else 0",
        "known_at": "admission",
    } in columns
    rows = np.array([[0.7, 1, 0, 0, 0], [np.nan, 0, 1, 0, 0]], np.float32)
    filled = np.where(np.isnan(rows), tensors["input.fill"], rows)
    scaled = (filled - tensors["input.centre"]) * tensors["input.scale"]
    by_hand = 1 / (1 + np.exp(-(scaled @ tensors["output.weight"][0] + tensors["output.bias"][0])))
    np.testing.assert_allclose(own_answers(model, {"table": rows}), by_hand, atol=1e-6)


def test_the_sums_are_of_every_file_and_the_folder_is_a_model(tmp_path: Path, build: MakeResults) -> None:
    run, model, found = run_of(tmp_path, "logistic", build)
    lines = export(run, found, tmp_path / "to")
    files = {path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*") if path.is_file()}
    named = dict(reversed(line.split("  ")) for line in lines)
    assert files == {*named, SUMS}
    for name, digest in named.items():
        assert hashlib.sha256((tmp_path / "to" / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path / "to", check=True)
    again = models.read(models.find(tmp_path / "to"))
    assert again.plan.hash == model.plan.hash
    assert again.rows["weights"].tobytes() == model.rows["weights"].tobytes()


def test_the_cards_numbers_are_the_runs(tmp_path: Path, build: MakeResults) -> None:
    run, _, found = run_of(tmp_path, "logistic", build)
    export(run, found, tmp_path / "to")
    card = json.loads((tmp_path / "to/model_card.json").read_text())
    written = json.loads((run / "results.json").read_text())
    assert card["evaluation"] == {"arm": "loho", **written["arms"]["loho"]}
    assert {name: each["n"] for name, each in card["training"]["hospitals"].items()} == {
        name: each["n"] for name, each in written["hospitals"].items()
    }
    text = (tmp_path / "to/MODEL_CARD.md").read_text()
    for name, figures in hospitals_of(found.arms["loho"]).items():
        shown = [(each, metric(figures, each)) for each in ("auroc", "observed_expected", "calibration_slope")]
        cells = [estimate(each, figure.value, figure.low, figure.high) for each, figure in shown]
        assert f"| {name} | {figures.n} | {figures.events} | {' | '.join(cells)} |" in text
    summary = pooled(found.arms["loho"], "auroc").summary
    assert summary is not None
    assert estimate("auroc", summary.estimate, summary.low, summary.high) in text
    for said in ("Research use only", "## Intended use", "## Training data", "## Evaluation", "## Limits"):
        assert said in text
    assert "Under 100 events or non-events" in text
    assert "- threshold, chosen on the training hospitals: " in text
    for threshold, said in (("f2", "chosen on the training hospitals"), (0.5, "fixed in the federation file")):
        other = found.model_copy(update={"study": found.study.model_copy(update={"threshold": threshold})})
        export(run, other, tmp_path / "to")
        assert f"- threshold, {said}: " in (tmp_path / "to/MODEL_CARD.md").read_text()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, build: MakeResults) -> None:
    run, _, found = run_of(tmp_path, "logistic", build)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/thesis.doc").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds other files"):
        export(run, found, tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["thesis.doc"]
    export(run, found, tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("mine")
    export(run, found, tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine", (
        "an export over an earlier one takes only its own away"
    )


def test_results_of_another_study_are_refused(tmp_path: Path, build: MakeResults) -> None:
    run, _, found = run_of(tmp_path, "logistic", build)
    with pytest.raises(ConfigurationError, match="not the one that results"):
        export(run, found.model_copy(update={"models": {"42": "1" * 64}}), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_hohoho_is_refused_by_name(tmp_path: Path, build: MakeResults) -> None:
    text = STUDY.replace("task: {{", "task: {{kind: slices, ").replace("[{{rounds", "[{{name: sequence, rounds")
    more = "  image: {kind: ct_slices, size: [32, 32], neighbours: true}"
    (tmp_path / "federation.yaml").write_text(text.format(network="{name: hohoho, size: tiny}", more=more))
    model = finished(tmp_path, seed=42)
    found = build(arms=["loho"])
    study = found.study.model_copy(update={"federation": model.plan.hash})
    found = found.model_copy(update={"study": study, "models": {}})
    with pytest.raises(ConfigurationError, match="hohoho cannot be exported as ONNX or as a MONAI bundle: its LSTM"):
        export(tmp_path, found, tmp_path / "to", as_onnx=True)
    assert not (tmp_path / "to").exists()
    export(tmp_path, found, tmp_path / "to")
    assert (tmp_path / "to/weights.safetensors").exists()


def test_the_vocabulary_of_a_text_is_in_the_preparation(tmp_path: Path, build: MakeResults) -> None:
    run, model, found = run_of(tmp_path, "ichpro", build)
    export(run, found, tmp_path / "to")
    told = json.loads((tmp_path / "to/preprocessing.json").read_text())["inputs"]
    federation = load_federation(run / "federation.yaml").value
    assert federation.modalities.text is not None
    words = built_in(federation.modalities.text, federation.modalities.table).words
    assert told["text"]["vocabulary"] == list(words)
    assert told["image"]["specification"]["windows"] == [[40.0, 80.0]]
    assert told["image"]["shape"] == ["N", 1, 16, 32, 32] == ["N", *network.shapes(model.plan)["image"]]
