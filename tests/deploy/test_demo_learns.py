"""The demo's studies of slices and of radiographs, shortened: the federation learns to see what is there to be seen."""

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from typer.testing import CliRunner

from ich_deploy.cli import app
from ich_deploy.demo import hospitals

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def learnt(folder: Path, kind: str, name: str, changes: dict[str, str], patients: int | None = None) -> dict[str, Any]:
    """What the federated model's results say of 30 % of each hospital's patients, set apart; by hospital.

    All stages of the demo's study with `changes` of its text, without leaving hospitals out; counts of few patients are told.
    `patients`: so many of each hospital, for the demo's own numbers.
    """
    hospitals.write(folder, kind, 7, patients)
    text = (folder / f"{name}.yaml").read_text()
    apart = {
        "leave_one_hospital_out: true": "leave_one_hospital_out: false, test: 0.3",
        "small_cells: 10": "small_cells: 0",
    }
    for old, new in (changes | apart).items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    for path in (folder / "hospitals").glob("*.yaml"):
        path.write_text(path.read_text() + "limits: {small_cells: 0}\n")
    (folder / "study.yaml").write_text(text)
    arguments = [folder / "study.yaml", "--hospitals", folder / "hospitals", "--data", folder / "data"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--out", str(folder / "out")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())["arms"]["federated"]["hospitals"]
    return found


def by_type(told: dict[str, Any]) -> dict[str, float]:
    """The AUROC of slices, median over the hospitals."""
    return {
        kind: median(one["types"][kind]["slices"]["auroc"]["value"] for one in told.values())
        for kind in told["north"]["types"]
    }


def test_hohoho_sees_blood(folder: Path) -> None:
    """Of twice the demo's patients. Measured, in the order of the types: .96 .92 .73 .94 .90."""
    found = by_type(learnt(folder, "slices", "hohoho", {}, patients=100))
    least = {"intraparenchymal": 0.9, "intraventricular": 0.82, "subdural": 0.84, "epidural": 0.8}
    assert all(found[kind] > bound for kind, bound in least.items()), found
    assert mean(found.values()) > 0.82, found


def test_dlmi_sees_blood(folder: Path) -> None:
    """Measured, in the order of the types: .93 .84 .81 .90 .93."""
    found = by_type(learnt(folder, "slices", "dlmi", {"rounds: 15": "rounds: 6"}))
    assert found["intraparenchymal"] > 0.88, found
    assert mean(found.values()) > 0.8, found


def test_sees_an_infected_joint(folder: Path) -> None:
    """The table alone tells .6 to .7 (docs/demo.md)."""
    told = learnt(folder, "xray", "mednvc", {})
    found = {name: one["auroc"] for name, one in told.items()}
    assert median(one["value"] for one in found.values()) > 0.75, found
    assert all(one["low"] > 0.5 for one in found.values()), found
