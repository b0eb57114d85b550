"""A federation of real processes on loopback, for tests: a server and its hospitals, from empty folders to the last figure."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml
from typer import Typer
from typer.testing import CliRunner

from ich_client.cli import app as client
from ich_server.cli import app as server

BIN = Path(sys.executable).parent
HOSPITALS = ("east", "north", "south", "west")

STUDY: dict[str, Any] = {
    "name": "four-hospitals",
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
                "mrs": {"type": "integer", "range": [0, 6], "known_at": "90 days"},
            },
            "predictors": ["age", "gcs"],
        }
    },
    "network": {"name": "mlp", "hidden": [8]},
    "training": {
        "strategy": {"name": "scaffold"},
        "stages": [{"rounds": 4, "epochs": 2, "batch": 16, "optimizer": {"name": "sgd", "lr": 0.05}}],
        "seeds": [7],
    },
    "evaluation": {"test": 0.3, "small_cells": 5},
    "quorum": {"deadline": "60s"},
}


def write_study(folder: Path, settings: Mapping[str, Any] = STUDY, hospitals: Sequence[str] = HOSPITALS) -> Path:
    """The federation file, a hospital file and a table for each hospital; every patient is called PATIENT-..."""
    (folder / "hospitals").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "federation.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    for number, name in enumerate(hospitals):
        generator = np.random.default_rng(number)
        rows = []
        for patient in range(90 + 10 * number):
            gcs, age = int(generator.integers(3, 16)), round(float(np.clip(generator.normal(68, 12), 18, 110)), 1)
            poor = generator.random() < 1 / (1 + np.exp(-((age - 68) / 12 - (gcs - 10) / 2)))
            mrs = int(generator.integers(3, 7) if poor else generator.integers(0, 3))
            rows.append((f"PATIENT-{name}-{patient}", age, gcs, mrs))
        with (folder / "data" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("id", "age", "gcs", "mrs"), *rows])
        table = {"file": f"{name}.csv", "patient": "id", "columns": {column: {} for column in ("age", "gcs", "mrs")}}
        mapping = {"hospital": name, "table": table, "limits": {"small_cells": 5}}
        (folder / "hospitals" / f"{name}.yaml").write_text(yaml.safe_dump(mapping))
    return folder / "federation.yaml"


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(*arguments: object) -> str:
    """Run one of our programs to its end; what it printed."""
    program, *rest = map(str, arguments)
    done = subprocess.run([BIN / program, *rest], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def call(app: Typer, *arguments: object) -> str:
    """The same in this process, which has imported everything already; what it printed."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


class Federation:
    """The folders of a federation, set up by the programs themselves, and the processes that were started."""

    def __init__(
        self,
        folder: Path,
        study: Path,
        *,
        address_port: int | None = None,
        host: str = "127.0.0.1",
        within: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """`address_port`: where hospitals connect, if something stands between them and the server. `host`: the server's.

        `within`: what stands before a program on the command line, by the program's name.
        """
        self.folder, self.study, self.port, self.within = folder, study, free_port(), within
        self.home = folder / "federation"
        self.processes: list[subprocess.Popen[bytes]] = []
        address = f"{host}:{address_port or self.port}"
        call(server, "init", study, "--address", address, "--home", self.home)
        with (self.home / "server.yaml").open("a") as file:
            file.write(f"listen: {host}:{self.port}\n")
        self.hospitals = sorted(path.stem for path in (study.parent / "hospitals").glob("*.yaml"))
        for name in self.hospitals:
            self.enrol(name)

    def enrol(self, name: str) -> None:
        """Kit, key, mapping, admission, approval."""
        call(server, "kit", name, "--home", self.home)
        call(client, "init", self.home / "kits" / f"{name}-kit.zip", "--home", self.folder / name)
        mapping = (self.study.parent / "hospitals" / f"{name}.yaml").read_text()
        (self.folder / name / "hospital.yaml").write_text(mapping)
        call(server, "admit", self.folder / name / f"{name}.pub", "--home", self.home)
        call(client, "approve", "--home", self.folder / name, "--yes")

    def start(self, log: str, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        """A program in the background, what it says in FOLDER/LOG.log."""
        program, *rest = map(str, arguments)
        with (self.folder / f"{log}.log").open("ab") as output:
            process = subprocess.Popen(
                [*self.within.get(program, ()), str(BIN / program), *rest],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
        self.processes.append(process)
        return process

    def serve(self, *options: str) -> subprocess.Popen[bytes]:
        """The server."""
        return self.start("server", "ich-server", "run", "--home", self.home, *options)

    def join(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """A hospital."""
        data = self.study.parent / "data"
        return self.start(name, "ich-client", "join", "--home", self.folder / name, "--data", data, **environment)

    def log(self, name: str) -> str:
        """What a process has said."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def checkpoint(self, round_number: int) -> Path:
        """The file that the server writes after a round."""
        seed = yaml.safe_load(self.study.read_text())["training"]["seeds"][0]
        return self.home / "seeds" / f"seed-{seed}" / f"round-{round_number:06d}.safetensors"

    def wait_for_round(self, round_number: int, seconds: float = 120) -> None:
        """Until the server has finished that round, or has ended."""
        end = time.monotonic() + seconds
        while not self.checkpoint(round_number).exists():
            assert time.monotonic() < end, self.log("server")
            time.sleep(0.01)

    def end(self) -> None:
        """Stop what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def final_bytes(self) -> bytes:
        """Every number that the study ends with."""
        (path,) = self.home.glob("seeds/seed-*/study.safetensors")
        return path.read_bytes()


@contextlib.contextmanager
def federation(folder: Path, study: Path, **options: Any) -> Iterator[Federation]:
    """A federation whose processes do not outlive the test."""
    made = Federation(folder, study, **options)
    try:
        yield made
    finally:
        made.end()
