"""`ich-simulate` as its user runs it: the same bytes for the same seed, on either engine, and after any kill."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Context, RecordDict

from ich_client.app import app as client_app
from ich_client.site import Site
from ich_deploy import simulate as simulation
from ich_deploy import source
from ich_deploy.grid import InProcessGrid
from ich_server.app import app as server_app

ROUNDS = 4
COMMAND = Path(sys.executable).with_name("ich-simulate")

FEDERATION: dict[str, Any] = {
    "name": "three-hospitals",
    "task": {
        "timeline": ["admission", "90 days"],
        "predict_at": "admission",
        "outcome": {"variable": "mrs", "scale": "mRS", "at": "90 days", "poor": ">= 3"},
    },
    "modalities": {
        "table": {
            "variables": {
                "age": {"type": "number", "unit": "years", "range": [18, 110], "known_at": "admission"},
                "gcs": {"type": "integer", "range": [3, 15], "known_at": "admission"},
                "side": {"type": "category", "levels": ["left", "right"], "known_at": "admission", "missing": "level"},
                "mrs": {"type": "integer", "range": [0, 6], "known_at": "90 days"},
            },
            "predictors": ["age", "gcs", "side"],
            "missing_indicators": True,
        }
    },
    "network": {"name": "logistic"},
    "training": {
        "strategy": {"name": "fedavg"},
        "stages": [{"rounds": ROUNDS, "epochs": 2, "batch": 16, "optimizer": {"name": "sgd", "lr": 0.1}}],
        "seeds": [1, 2],
    },
    "evaluation": {
        "folds": 3,
        "small_cells": 0,
        "comparisons": {
            "local": {"epochs": 3, "batch": 16, "optimizer": {"name": "adam", "lr": 0.01}},
            "pooled": {"epochs": 3, "batch": 16, "optimizer": {"name": "adam", "lr": 0.01}},
        },
    },
}


def write_study(folder: Path, settings: Mapping[str, Any] = FEDERATION) -> Path:
    """A federation file, three hospital files and their tables; the path of the federation file."""
    (folder / "hospitals").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "federation.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    for number, name in enumerate(("east", "north", "south")):
        generator = np.random.default_rng(number)
        rows = []
        for patient in range(60 + 10 * number):
            gcs, age = int(generator.integers(3, 16)), float(np.clip(generator.normal(68, 12), 18, 110).round(1))
            poor = generator.random() < 1 / (1 + np.exp(-((age - 68) / 12 - (gcs - 10) / 2)))
            mrs = int(generator.integers(3, 7) if poor else generator.integers(0, 3))
            rows.append(
                (patient, "" if generator.random() < 0.1 else age, gcs, ("left", "right", "")[patient % 3], mrs)
            )
        with (folder / "data" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("id", "age", "gcs", "side", "mrs"), *rows])
        columns = {column: {} for column in ("age", "gcs", "side", "mrs")}
        table = {"file": f"{name}.csv", "patient": "id", "columns": columns}
        (folder / "hospitals" / f"{name}.yaml").write_text(yaml.safe_dump({"hospital": name, "table": table}))
    return folder / "federation.yaml"


def command(federation: Path, out: Path, *options: str) -> list[str]:
    """The command line for a study that `write_study` wrote."""
    return [str(COMMAND), str(federation), "--data", str(federation.parent / "data"), "--out", str(out), *options]


def simulate(federation: Path, out: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    environment = {name: value for name, value in os.environ.items() if name != "ICH_SERIALISE"}
    done = subprocess.run(
        command(federation, out, *options), capture_output=True, text=True, timeout=280, check=False, env=environment
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def numbers(out: Path) -> dict[str, bytes]:
    """Every file that must be the same for the same seed: results, report and final weights."""
    names = [
        "results.json",
        "results.csv",
        "report.html",
        *sorted(str(p.relative_to(out)) for p in out.rglob("study.*")),
    ]
    assert len(names) == 5
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's files."""
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def finished(study: Path) -> Path:
    """The study, run without disturbance."""
    out = study.parent / "finished"
    simulate(study, out)
    return out


def test_results_have_the_promised_form(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["schema"] == 1
    assert results["seeds"] == [1, 2]
    assert list(results["arms"]) == ["loho", "federated", "local", "pooled", "pooled_within"]
    for arm in results["arms"].values():
        assert list(arm["hospitals"]) == ["east", "north", "south"]
        assert [h["n"] for h in arm["hospitals"].values()] == [60, 70, 80]
        assert arm["pooled"]["n"] == 210
        for figures in (*arm["hospitals"].values(), arm["pooled"]):
            assert figures["auroc"]["value"] == pytest.approx(sum(figures["auroc"]["per_seed"]) / 2)
            assert figures["auroc"]["low"] < figures["auroc"]["value"] < figures["auroc"]["high"]
    assert results["arms"]["loho"]["pooled"]["auroc"]["value"] > 0.8  # the outcome depends on age and GCS
    facts = json.loads((finished / "run.json").read_text())
    assert facts["seconds"] > 0
    assert facts["versions"]["flwr"] == "1.41.0"


def test_no_time_and_no_path_is_in_the_results(finished: Path) -> None:
    text = (finished / "results.json").read_text()
    assert str(finished.parent) not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)


def test_two_runs_with_one_seed_are_the_same_to_the_byte(study: Path, finished: Path, tmp_path: Path) -> None:
    simulate(study, tmp_path / "again", "--serialise")
    assert numbers(tmp_path / "again") == numbers(finished)


def test_another_seed_is_another_result(study: Path, finished: Path, tmp_path: Path) -> None:
    simulate(study, tmp_path, "--seed", "7")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seeds"] == [7]
    before = json.loads((finished / "results.json").read_text())
    assert results["arms"]["loho"]["pooled"]["brier"] != before["arms"]["loho"]["pooled"]["brier"]


def kill_after(study: Path, out: Path, seed: int, round_number: int) -> None:
    """Start the command and SIGKILL it as soon as that round's checkpoint is there."""
    checkpoint = out / "seeds" / f"seed-{seed}" / f"round-{round_number:06d}.safetensors"
    process = subprocess.Popen(command(study, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(60_000):
            if checkpoint.exists() or process.poll() is not None:
                break
            time.sleep(0.001)
        assert checkpoint.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(("seed", "round_number"), [(1, 2), (2, ROUNDS)])
def test_killed_and_resumed_gives_the_same_bytes(
    study: Path, finished: Path, tmp_path: Path, seed: int, round_number: int
) -> None:
    kill_after(study, tmp_path / "killed", seed, round_number)
    simulate(study, tmp_path / "killed", "--resume")
    assert numbers(tmp_path / "killed") == numbers(finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("round_number", range(1, ROUNDS + 1))
def test_killed_after_any_round(study: Path, finished: Path, tmp_path: Path, seed: int, round_number: int) -> None:
    kill_after(study, tmp_path / "killed", seed, round_number)
    simulate(study, tmp_path / "killed", "--resume")
    assert numbers(tmp_path / "killed") == numbers(finished)


def test_resuming_a_finished_study_changes_nothing(study: Path, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    simulate(study, copy, "--resume")
    assert numbers(copy) == numbers(finished)


def test_a_finished_study_is_not_resumed_on_other_data(finished: Path, tmp_path: Path) -> None:
    """A patient in another's place changes no statistic; the arms, which are not trained again, would be the old ones."""
    study = write_study(tmp_path / "study")
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    table = study.parent / "data" / "north.csv"
    table.write_text(table.read_text().replace("\n7,", "\n700,"))
    done = simulate(study, copy, "--resume", code=4)
    assert "arms.json: an earlier run had another data" in done.stderr


def test_a_broken_file_of_an_earlier_run_is_said_in_words(study: Path, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "seeds" / "seed-1" / "arms.json").write_text("{")
    done = simulate(study, copy, "--resume", code=4)
    assert "arms.json: the file cannot be read" in done.stderr


def test_a_hospital_that_cannot_take_part_is_named_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quorum is two of three; north's statistics fail. Every arm is of the two that took part."""
    path = write_study(tmp_path / "study", {**FEDERATION, "quorum": {"hospitals": 2}})
    origin = source.locate(path, path.parent / "data", None)
    whole = Site.moments

    def moments(site: Site, part: int) -> Any:
        if site.hospital.name == "north":
            raise MemoryError
        return whole(site, part)

    monkeypatch.setattr(Site, "moments", moments)
    found = simulation.simulate(origin, tmp_path / "out", [1], simulation.Options(), simulation.Watch())
    assert [(each.when, each.hospital, each.reason) for each in found.quarantined] == [
        ("statistics", "north", "refused with code RESOURCES")
    ]
    assert list(found.hospitals) == ["east", "south"]
    assert set(found.arms) == {"loho", "federated", "local", "pooled", "pooled_within"}
    assert all(list(arm.hospitals) == ["east", "south"] for arm in found.arms.values())
    assert "north" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedbn"])
def test_flowers_own_engine_gives_the_same_bytes(strategy: str, tmp_path: Path) -> None:
    """Flower's simulation engine on Ray: the same ClientApp in other processes, every message serialised."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    network = {"name": "mlp", "hidden": [4], "normalisation": "layer" if strategy == "fedbn" else "none"}
    training = {**FEDERATION["training"], "strategy": {"name": strategy}, "seeds": [1, 2]}
    federation = write_study(tmp_path / "study", {**FEDERATION, "network": network, "training": training})
    simulate(federation, tmp_path / "direct")
    simulate(federation, tmp_path / "ray", "--engine", "flower")
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "direct")


def test_the_flower_apps_alone_run_the_same_study(study: Path, finished: Path, tmp_path: Path) -> None:
    """The ServerApp and ClientApp that Flower's tools would start, configured by paths: the same final weights."""
    configs: dict[int, dict[str, str | int | float | bool]] = {
        node: {
            "federation": str(study),
            "hospital": str(study.parent / "hospitals" / f"{name}.yaml"),
            "data": str(study.parent / "data"),
            "state": str(tmp_path / "state" / name),
        }
        for node, name in enumerate(("south", "east", "north"), start=5)
    }
    grid = InProcessGrid(client_app, configs, serialise=True)
    run_config = {"federation": str(study), "out": str(tmp_path / "out"), "hospitals": 3}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config))
    server_app(grid, context)
    for seed in (1, 2):
        ours = (tmp_path / "out" / f"seed-{seed}" / "study.safetensors").read_bytes()
        assert ours == (finished / "seeds" / f"seed-{seed}" / "study.safetensors").read_bytes()


def test_data_may_be_a_folder_of_data_sets(study: Path, tmp_path: Path) -> None:
    """--data PARENT works too where PARENT holds a folder named like the federation file's."""
    shutil.copytree(study.parent, tmp_path / "three", ignore=shutil.ignore_patterns("finished", "data"))
    shutil.copytree(study.parent / "data", tmp_path / "sets" / "three")
    line = command(tmp_path / "three" / "federation.yaml", tmp_path / "out", "--seed", "1")
    line[line.index("--data") + 1] = str(tmp_path / "sets")
    assert subprocess.run(line, capture_output=True, check=False, timeout=280).returncode == 0


# --- how it says no ---------------------------------------------------------------------------------------------------


def test_every_problem_of_the_federation_file_at_once_and_exit_code_2(tmp_path: Path) -> None:
    federation = write_study(tmp_path / "study")
    text = federation.read_text().replace("name: logistic", "name: logistik").replace("epochs: 2", "epochs: two")
    federation.write_text(text)
    done = simulate(federation, tmp_path / "out", code=2)
    assert "did you mean 'logistic'" in done.stderr
    assert re.search(r"federation.yaml:\d+:\d+: training.stages.0.epochs", done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_broken_table_ends_with_exit_code_3(tmp_path: Path) -> None:
    federation = write_study(tmp_path / "study")
    table = tmp_path / "study" / "data" / "north.csv"
    table.write_text(table.read_text().replace("gcs", "GCS_ADM", 1))
    done = simulate(federation, tmp_path / "out", code=3)
    assert "north.yaml" in done.stderr
    assert "no column 'gcs'" in done.stderr


def test_a_folder_that_cannot_be_written_ends_with_exit_code_4(study: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    done = simulate(study, tmp_path / "out", code=4)
    assert str(tmp_path / "out") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_command_line_ends_with_exit_code_2(study: Path, tmp_path: Path) -> None:
    for options in (("--seed", "-1"), ("--seed", "1", "--seed", "1"), ("--engine", "spark")):
        simulate(study, tmp_path / "out", *options, code=2)
