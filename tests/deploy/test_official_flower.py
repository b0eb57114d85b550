"""The two apps under Flower's own programs: flower-superlink, flower-supernode and flwr run, as anybody may use them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import BIN, STUDY, command, free_port, write_study

from ich_models.files import read_arrays

pytestmark = pytest.mark.slow

APP = """[project]
name = "ich-federation-study"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "ich-federation"
[tool.flwr.app.components]
serverapp = "ich_server.app:app"
clientapp = "ich_client.app:app"
[tool.flwr.app.config]
federation = ""
out = ""
hospitals = 2
resume = false
"""
HOSPITALS = ("east", "north")


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What is started here ends with the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def test_flowers_own_programs_give_the_simulations_numbers(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    settings: dict[str, Any] = {**STUDY, "training": {**STUDY["training"], "strategy": {"name": "fedavg"}}}
    settings["training"]["stages"] = [{**STUDY["training"]["stages"][0], "rounds": 2}]
    study = write_study(tmp_path / "study", settings, HOSPITALS)
    link, home = free_port(), tmp_path / "flower"
    environment = {**os.environ, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )

    def start(name: str, *arguments: object) -> None:
        with (tmp_path / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [BIN / str(arguments[0]), *map(str, arguments[1:])],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=tmp_path,
                )
            )

    start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", link)
    for name in HOSPITALS:
        config = {
            "federation": study,
            "hospital": study.parent / "hospitals" / f"{name}.yaml",
            "data": study.parent / "data",
            "state": tmp_path / "state" / name,
        }
        text = " ".join(f'{key}="{value}"' for key, value in config.items())
        options = ("--superlink", f"127.0.0.1:{link}", "--port", free_port(), "--node-config", text)
        start(name, "flower-supernode", "--insecure", *options)
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP)
    run = f'federation="{study}" out="{tmp_path / "out"}"'
    end = time.monotonic() + 600
    done = None
    while time.monotonic() < end:  # until the superlink is up
        done = subprocess.run(
            [BIN / "flwr", "run", app, "here", "--run-config", run],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
        if done.returncode == 0:
            break
        time.sleep(2)
    assert done is not None
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "superlink.log").read_text()
    result = tmp_path / "out" / "seed-7" / "study.safetensors"
    while not result.exists():
        logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in tmp_path.glob("*.log"))
        assert time.monotonic() < end, logs
        time.sleep(0.5)
    command("ich-simulate", study, "--data", study.parent / "data", "--out", tmp_path / "simulated")
    expected = tmp_path / "simulated" / "seeds" / "seed-7" / "study.safetensors"
    assert result.read_bytes() == expected.read_bytes()
    assert read_arrays(result)[1]["quarantined"] == []
    assert (
        yaml.safe_load(study.read_text())["name"]
        == json.loads((tmp_path / "simulated" / "results.json").read_text())["study"]["name"]
    )
