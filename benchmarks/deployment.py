"""Real processes on loopback: seconds per round and memory of our server and clients beside Flower's own programs."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the same folders and processes that tests start
from processes import BIN, STUDY, federation, free_port, write_study

from ich_models import console
from ich_models.files import write_json

EXAMPLE = "Example: python benchmarks/deployment.py --megabytes 100 --rounds 6"
FEWEST = 3

app = console.application("")


@dataclass(frozen=True)
class Found:
    """One way of running the task. Seconds of every round but the first; memory in MB, whole trees of processes.

    `computing`: seconds of processor time per counted round, all processes: the steadier figure on a busy machine.
    """

    rounds: Sequence[float]
    computing: float
    server: float
    clients: float

    @property
    def seconds(self) -> float:
        """Of a middling round."""
        return median(self.rounds)


# --- memory -----------------------------------------------------------------------------------------------------------


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it has ended
                continue
    return found


def _megabytes(process: int) -> float:
    """Its share of the memory (PSS): what several processes have in common is counted once in their sum."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def _computed(process: int) -> float:
    """Seconds of processor time so far, with those of children that have ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """The largest memory, at any one moment, of trees of processes, and what they have computed."""

    def __init__(self, trees: Mapping[str, Sequence[int]]) -> None:
        self.peaks = dict.fromkeys(trees, 0.0)
        self._trees = trees
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            for name in self._trees:
                self.peaks[name] = max(self.peaks[name], sum(map(_megabytes, self._members(name))))

    def _members(self, name: str) -> set[int]:
        parents, members = _parents(), set(self._trees[name])
        while more := {child for child, parent in parents.items() if parent in members} - members:
            members |= more
        return members

    def computed(self) -> float:
        """Seconds of processor time of all trees so far."""
        return sum(_computed(process) for name in self._trees for process in self._members(name))

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(folder: Path, width: int, rounds: int) -> Found:
    """ich-server and four ich-client over TLS, one model, one full-batch step per round."""
    stage = {"rounds": rounds, "epochs": 1, "batch": "all", "optimizer": {"name": "sgd", "lr": 0.01}}
    settings: dict[str, Any] = {
        **STUDY,
        "network": {"name": "mlp", "hidden": [width, width]},
        "training": {"strategy": {"name": "fedavg"}, "stages": [stage], "seeds": [7], "message_limit": "1GB"},
        "evaluation": {"test": 0.3, "leave_one_hospital_out": False, "small_cells": 5},
        "quorum": {"deadline": "10min"},
    }
    study = write_study(folder / "study", settings)
    with federation(folder, study) as made:
        server = made.serve()
        clients = [made.join(name) for name in made.hospitals]
        with Watch({"server": [server.pid], "clients": [one.pid for one in clients]}) as watch:
            ends, computed = [], []
            for number in range(1, rounds + 1):
                made.wait_for_round(number, 600)
                ends.append(time.time())
                computed.append(watch.computed())
            server.wait(600)
    return Found(_between(ends), _mean(computed), watch.peaks["server"], watch.peaks["clients"])


# --- Flower's ---------------------------------------------------------------------------------------------------------


@contextmanager
def _programs(folder: Path) -> Iterator[Any]:
    environment = {**os.environ, "FLWR_HOME": str(folder / "flower"), "PATH": f"{BIN}:{os.environ['PATH']}"}
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        program, *rest = map(str, arguments)
        with (folder / "flower.log").open("ab") as log:
            process = subprocess.Popen(
                [BIN / program, *rest], stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
            )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def flowers(folder: Path, width: int, rounds: int, hospitals: int = 4) -> Found:
    """flower-superlink, four flower-supernode and flwr run with stock FedAvg; without TLS, which is to its advantage."""
    link, times = free_port(), folder / "times"
    (folder / "flower").mkdir(parents=True)
    (folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    with _programs(folder) as start:
        server = start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", link)
        time.sleep(5)
        clients = [
            start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", free_port())
            for _ in range(hospitals)
        ]
        time.sleep(5)
        settings = f'width={width} rounds={rounds} hospitals={hospitals} times="{times}"'
        with Watch({"server": [server.pid], "clients": [one.pid for one in clients]}) as watch:
            stock = Path(__file__).parent / "stock"
            start("flwr", "run", stock, "here", "--run-config", settings).wait(120)
            computed: list[float] = []
            while (lines := times.read_text().split("\n") if times.exists() else []) == [] or "end" not in lines:
                if server.poll() is not None:
                    raise SystemExit((folder / "flower.log").read_text()[-3000:])
                if len(lines) - 2 > len(computed):  # the first line is written before round 1
                    computed.append(watch.computed())
                time.sleep(0.1)
    ends = [float(line) for line in lines[1:] if line not in ("", "end")]
    return Found(_between(ends), _mean(computed), watch.peaks["server"], watch.peaks["clients"])


def _between(ends: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(ends)]


def _mean(computed: Sequence[float]) -> float:
    return (computed[-1] - computed[0]) / (len(computed) - 1)


@app.command(epilog=EXAMPLE)
def main(
    megabytes: Annotated[int, typer.Option(min=1, help="exchanged weights of the model")] = 100,
    rounds: Annotated[int, typer.Option(min=FEWEST, help="of each; the first is not counted")] = 6,
    out: Annotated[Path, typer.Option(help="folder for deployment.json")] = Path("runs/benchmarks"),
) -> None:
    """Four hospitals, a model of so many MB: our programs and Flower's own, one after the other, in one run."""
    width = round((megabytes * 1e6 / 4) ** 0.5)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=out) as folder:
        found = {
            name: way(Path(folder).resolve() / str(index), width, rounds)
            for index, (name, way) in enumerate((("ours", ours), ("Flower's own", flowers)))
        }
    table = Table("", "s per round", "computing s", "server MB", "clients MB", box=None, pad_edge=False)
    for name, one in found.items():
        spread = f"{one.seconds:.1f} ({min(one.rounds):.1f}-{max(one.rounds):.1f})"
        table.add_row(name, spread, f"{one.computing:.1f}", f"{one.server:.0f}", f"{one.clients:.0f}")
    mine, other = found["ours"], found["Flower's own"]
    ratios = {
        "seconds": mine.seconds / other.seconds,
        "computing": mine.computing / other.computing,
        "server memory": mine.server / other.server,
        "clients memory": mine.clients / other.clients,
    }
    table.add_row("ours / Flower's", *(f"{ratio:.2f}" for ratio in ratios.values()))
    Console().print(table)
    figures = {**{name: asdict(one) for name, one in found.items()}, "ours over Flower's": ratios}
    write_json(out / "deployment.json", json.loads(json.dumps({"megabytes": megabytes, **figures})))


if __name__ == "__main__":
    console.run(app)
