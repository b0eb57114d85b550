"""The demo's studies of slices, shortened: the federation learns to see blood, and says so by type and hospital."""

import json
from pathlib import Path
from statistics import mean, median

import pytest
from typer.testing import CliRunner

from ich_deploy.cli import app
from ich_deploy.demo import hospitals


def areas(folder: Path, name: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """By type the median of the hospitals' AUROC over slices, of 30 % of their patients, set apart.

    All stages of the demo's study, the first with fewer `rounds`, without leaving hospitals out; counts of few patients
    are told.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    hospitals.write(folder, "slices", 7)
    text = (folder / f"{name}.yaml").read_text().replace("rounds: 15", f"rounds: {rounds}")
    text = text.replace("leave_one_hospital_out: true", "leave_one_hospital_out: false, test: 0.3")
    for path in (folder / "hospitals").glob("*.yaml"):
        path.write_text(path.read_text() + "limits: {small_cells: 0}\n")
    (folder / "study.yaml").write_text(text.replace("small_cells: 10", "small_cells: 0"))
    arguments = [folder / "study.yaml", "--hospitals", folder / "hospitals", "--data", folder / "data"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--out", str(folder / "out")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((folder / "out" / "results.json").read_text())["arms"]["federated"]["hospitals"]
    return {
        kind: median(one["types"][kind]["slices"]["auroc"]["value"] for one in found.values())
        for kind in found["north"]["types"]
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "rounds", "least"), [("hohoho", 10, 0.9), ("dlmi", 6, 0.88)])
def test_learns_to_see_blood(
    name: str, rounds: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured, in the order of the types: hohoho (encoder, then sequence) .94 .81 .83 .84 .93, dlmi .94 .84 .79 .85 .93."""
    found = areas(tmp_path, name, rounds, monkeypatch)
    assert found["intraparenchymal"] > least
    assert mean(found.values()) > 0.8
