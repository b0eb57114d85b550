"""A hospital's patients as points: what is spread out, its colours, the command's files and refusals."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_model import call, finished, of_slices
from image_hospital import SLICES, files
from numpy.typing import NDArray
from PIL import Image

from ich_client import spread
from ich_models.batch import Batch
from ich_models.errors import ConfigurationError

STUDY = """\
name: small
task: {timeline: [admission, 90 days], predict_at: admission, outcome: {variable: mrs, at: 90 days, poor: ">= 3"}}
modalities:
  table:
    variables:
      size: {type: number, range: [0, 10], known_at: admission}
      mrs: {type: integer, range: [0, 6], known_at: 90 days}
    predictors: [size]
network: NETWORK
training: {stages: [{rounds: 1, epochs: 1, batch: 4, optimizer: {name: sgd, lr: 0.01}}]}
"""
MAPPING = "hospital: north\ntable: {file: table.csv, patient: ID, columns: {size: SIZE, mrs: MRS}}\n"
OUTCOMES = ["poor"] * 12 + ["good"] * 10 + [""] * 2
ORANGE, BLUE, GREY = (213, 94, 0), (0, 114, 178), (170, 170, 170)


def hospital(folder: Path, network: str = "{name: mlp, hidden: [16]}") -> Path:
    """Twelve patients near 9 with a poor outcome, and twelve near 1: ten good, one not recorded, one not readable."""
    (folder / "federation.yaml").write_text(STUDY.replace("NETWORK", network))
    (folder / "hospital.yaml").write_text(MAPPING)
    cells = ["5"] * 12 + ["0"] * 10 + ["", "dead"]
    rows = [f"p{n},{(9 if n < 12 else 1) + n / 100},{cell}\n" for n, cell in enumerate(cells)]
    (folder / "table.csv").write_text("ID,SIZE,MRS\n" + "".join(rows))
    return folder


def words(folder: Path, out: Path) -> tuple[str | Path, ...]:
    given = (folder / "hospital.yaml", "--model", folder / "model", "--data", folder)
    return ("explain", *given, "--out", out, "--method", "t-sne")


def pixels(out: Path) -> NDArray[np.uint8]:
    with Image.open(out / "t-sne.png") as picture:
        return np.asarray(picture)


def test_patients_that_the_network_finds_alike_lie_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, out = hospital(tmp_path), tmp_path_factory.mktemp("out")
    monkeypatch.setenv("XDG_CACHE_HOME", str(out / "xdg"))
    finished(folder)
    said = call(*words(folder, out))
    assert "12 poor (orange), 10 good (blue), 2 not known (grey)" in said
    with (out / "t-sne.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == [f"p{n}" for n in range(24)]
    assert [row["outcome"] for row in rows] == OUTCOMES
    places = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    centres = np.stack([places[:12].mean(0), places[12:].mean(0)])
    nearest = ((places[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert nearest.tolist() == [0] * 12 + [1] * 12
    seen = {tuple(colour) for colour in pixels(out).reshape(-1, 3).tolist()}
    assert seen <= {(255, 255, 255), ORANGE, BLUE, GREY}
    assert seen > {ORANGE, BLUE}
    first = (out / "t-sne.csv").read_bytes()
    call(*words(folder, out))
    assert (out / "t-sne.csv").read_bytes() == first


def test_outcomes_that_nobody_mapped_are_grey_and_move_no_point(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, out = hospital(tmp_path), tmp_path_factory.mktemp("out")
    finished(folder)
    call(*words(folder, out))
    known = (out / "t-sne.csv").read_text().splitlines()
    (folder / "hospital.yaml").write_text(MAPPING.replace(", mrs: MRS", ""))
    call(*words(folder, out))
    assert (out / "t-sne.csv").read_text().splitlines()[1:] == [row.rsplit(",", 1)[0] + "," for row in known[1:]]
    assert {tuple(colour) for colour in pixels(out).reshape(-1, 3).tolist()} == {(255, 255, 255), GREY}


def test_a_point_is_drawn_where_it_lies() -> None:
    """Three patients: the middle of the upper edge, the left one, and the lower right corner."""
    places = np.array([[0, 1], [-1, 0], [1, -1]], np.float32)
    found = spread.picture(spread.Points(("a", "b", "c"), places, (True, False, None)))
    assert found.shape == (600, 600, 3)
    assert [tuple(found[row, column]) for row, column in ((22, 300), (300, 22), (577, 577))] == [ORANGE, BLUE, GREY]
    assert tuple(found[300, 300]) == (255, 255, 255)


def test_slices_are_what_both_encoders_say_on_average(tmp_path: Path) -> None:
    windows = SLICES.replace("}", ", windows: [[40, 80], [80, 200], [40, 380]]}")
    files(tmp_path, image=windows, network="{name: dlmi, size: tiny}")
    of_slices(tmp_path, "train")
    model = finished(tmp_path)
    torch.manual_seed(0)
    real = torch.tensor([[True, True, True], [True, False, False]])
    images = torch.rand(2, 3, 3, 32, 32)
    batch = Batch(torch.zeros(2, 1), torch.zeros(2, 3, 5), image=images, slices=real)
    found = spread.embeddings(model, batch)
    members = model.plan.network.eval().members
    with torch.no_grad():
        each = torch.cat([members[name](images.flatten(0, 1)) for name in members], 1).unflatten(0, (2, 3))
    want = torch.stack([each[0].mean(0), each[1, 0]])
    np.testing.assert_allclose(found, want.double().numpy(), atol=1e-5)


def test_what_cannot_be_spread_out_is_refused(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, out = hospital(tmp_path), tmp_path_factory.mktemp("out")
    finished(folder)
    assert "leave --patient out" in call(*words(folder, out), "--patient", "p1", code=1)
    assert "name one with --patient" in call(*words(folder, out)[:-2], code=1)
    assert "into the hospital's data" in call(*words(folder, folder / "maps"), code=1)
    (folder / "table.csv").write_text("ID,SIZE,MRS\n" + "".join(f"p{n},{n},1\n" for n in range(3)))
    assert "t-SNE of 3 patients, and it needs at least 4" in call(*words(folder, out), code=1)
    assert not (out / "t-sne.png").exists()


def test_a_score_has_nothing_to_spread_out(tmp_path: Path) -> None:
    names = "gcs: size, age: size, volume: size, ivh: size, infratentorial: size"
    model = finished(hospital(tmp_path, f"{{name: ich_score, {names}}}"))
    with pytest.raises(ConfigurationError, match="no embedding"):
        spread.spread(model, None, ())  # type: ignore[arg-type]
