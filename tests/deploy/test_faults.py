"""Faults on real processes: at most the round in progress is lost, and the final bytes are those of an undisturbed run."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import STUDY, Federation, call, command, federation, free_port, write_study
from proxy import Proxy, proxy

from ich_server.cli import app as program

pytestmark = pytest.mark.slow

ROUNDS = 6
HOSPITALS = ("east", "north", "south")
TRAINING = {
    **STUDY["training"],
    "stages": [{"rounds": ROUNDS, "epochs": 40, "batch": 8, "optimizer": {"name": "sgd", "lr": 0.02}}],
}
"""Long enough a round (about a second) to be struck in the middle."""


def study(folder: Path, **quorum: Any) -> Path:
    return write_study(folder, {**STUDY, "training": TRAINING, "quorum": {"deadline": "90s", **quorum}}, HOSPITALS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the study ends with when nothing happens: by simulation, which gives a federation's bytes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = study(folder / "study")
    command("ich-simulate", path, "--data", path.parent / "data", "--out", folder / "out")
    (file,) = folder.glob("out/seeds/seed-*/study.safetensors")
    return file.read_bytes()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Federation]:
    """A server and three hospitals at work."""
    with federation(tmp_path, study(tmp_path / "study")) as made:
        made.serve()
        for name in HOSPITALS:
            made.join(name)
        yield made


def finish(made: Federation, seconds: float = 240) -> None:
    assert made.processes[0].wait(seconds) == 0, made.log("server")


def rounds_trained(made: Federation, name: str) -> list[int]:
    """Rounds that a hospital has answered, in their order."""
    return trained_in(made.log(name))


def trained_in(log: str) -> list[int]:
    """The same of a part of its log."""
    return [int(number) for number in re.findall(r"round (\d+), train:", log)]


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Raises AssertionError if it does not come true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- a hospital -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.8])
def test_a_hospital_that_is_killed_and_started_again_loses_nothing(
    running: Federation, undisturbed: bytes, moment: float
) -> None:
    """Killed before, during and after its work on a round: the round waits for it, within the deadline."""
    running.wait_for_round(2)
    time.sleep(moment)
    north = running.processes[2]
    north.kill()
    north.wait()
    began = time.monotonic()
    running.join("north")
    finish(running)
    log = running.log("north")
    assert "the server does not let this key in (yet)" in log, "its own earlier connection counts as alive for 30 s"
    assert time.monotonic() - began < 120
    if "set aside" not in running.log("server"):
        assert running.final_bytes() == undisturbed


def test_a_hospital_that_is_frozen_past_the_deadline_is_passed_over(tmp_path: Path) -> None:
    with federation(tmp_path, study(tmp_path / "study", deadline="20s")) as made:
        made.serve()
        for name in HOSPITALS:
            made.join(name)
        made.wait_for_round(2)
        made.processes[2].send_signal(signal.SIGSTOP)
        made.wait_for_round(4)
        made.processes[2].send_signal(signal.SIGCONT)
        finish(made)
        assert re.search(r"north set aside: (no reply before the deadline|it went away)", made.log("server"))
        status = command("ich-server", "status", "--home", made.home)
        assert re.search(r"phase +finished", status)
        assert re.search(r"north: (no reply before the deadline|it went away)", status)


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.0, 0.5])
def test_a_server_that_is_killed_goes_on_where_it_was(running: Federation, undisturbed: bytes, moment: float) -> None:
    """Killed between two rounds, and in the middle of one: the hospitals wait, and come back by themselves."""
    running.wait_for_round(3)
    time.sleep(moment)
    server = running.processes[0]
    server.kill()
    server.wait()
    status = command("ich-server", "status", "--home", running.home)
    time.sleep(1)
    running.processes[0] = running.serve("--resume")
    finish(running)
    assert running.final_bytes() == undisturbed
    assert "phase" in status
    for name in HOSPITALS:
        assert "does not answer" in running.log(name)
        trained = rounds_trained(running, name)
        assert sorted(set(trained)) == list(range(1, ROUNDS + 1))
        assert len(trained) <= ROUNDS + 1, "one round was asked for again"


def test_a_server_that_is_asked_to_stop_keeps_its_round(running: Federation, undisturbed: bytes) -> None:
    running.wait_for_round(2)
    call(program, "stop", "--home", running.home)
    assert running.processes[0].wait(60) == 4
    assert "stopped as asked" in running.log("server")
    assert re.search(r"phase +stopped", command("ich-server", "status", "--home", running.home))
    running.processes[0] = running.serve("--resume")
    finish(running)
    assert running.final_bytes() == undisturbed


def test_a_pause_is_a_pause(running: Federation, undisturbed: bytes) -> None:
    running.wait_for_round(1)
    call(program, "pause", "--home", running.home)
    end = time.monotonic() + 60
    while not re.search(r"phase +paused", command("ich-server", "status", "--home", running.home)):
        assert time.monotonic() < end
    time.sleep(3)
    assert re.search(r"phase +paused", command("ich-server", "status", "--home", running.home))
    call(program, "pause", "--off", "--home", running.home)
    finish(running)
    assert running.final_bytes() == undisturbed


def test_everything_is_killed_and_started_again(running: Federation, undisturbed: bytes) -> None:
    running.wait_for_round(3)
    for process in running.processes:
        process.kill()
        process.wait()
    running.processes.clear()
    running.serve("--resume")
    for name in HOSPITALS:
        running.join(name)
    finish(running)
    assert running.final_bytes() == undisturbed


def test_a_revoked_hospital_is_out_within_seconds_and_the_study_goes_on(tmp_path: Path) -> None:
    with federation(tmp_path, study(tmp_path / "study", hospitals=2)) as made:
        made.serve()
        for name in HOSPITALS:
            made.join(name)
        made.wait_for_round(2)
        call(program, "revoke", "south", "--home", made.home)
        finish(made)
        assert len(rounds_trained(made, "south")) < ROUNDS
        text = command("ich-server", "status", "--home", made.home)
        assert re.search(r"set aside +seed 7, round \d: south", text)
        assert "south is not admitted any more" in (made.home / "state" / "server.log").read_text()
        assert not list((made.folder / "south" / "model").rglob("*.safetensors"))


def test_a_study_goes_on_without_a_hospital_that_is_away(tmp_path: Path) -> None:
    """With a quorum, a killed server does not need those who had left before it died."""
    with federation(tmp_path, study(tmp_path / "study", hospitals=2, deadline="40s")) as made:
        made.serve()
        clients = {name: made.join(name) for name in HOSPITALS}
        made.wait_for_round(2)
        clients["south"].send_signal(signal.SIGINT)
        clients["south"].wait(30)
        made.processes[0].kill()
        made.processes[0].wait()
        made.processes[0] = made.serve("--resume")
        finish(made)
        assert "west" not in made.log("server")
        text = command("ich-server", "status", "--home", made.home)
        assert re.search(r"set aside +seed 7, round \d: south", text)


def test_a_hospital_that_has_lost_its_key_goes_on_with_another(tmp_path: Path) -> None:
    """Its machine dies, it is revoked, a new key is admitted while the study runs: it takes part again without a resume."""
    with federation(tmp_path, study(tmp_path / "study", hospitals=2)) as made:
        made.serve()
        clients = {name: made.join(name) for name in HOSPITALS}
        made.wait_for_round(1)
        clients["south"].kill()
        for name in ("east", "north"):
            clients[name].send_signal(signal.SIGSTOP)  # the round under way waits until south is back
        clients["south"].wait()
        call(program, "revoke", "south", "--home", made.home)
        for file in (made.folder / "south").glob("south.*"):
            file.unlink()
        made.enrol("south")
        made.join("south")
        wait_until(lambda: "connected to" in made.log("south").rpartition("hospital   south")[2])
        for name in ("east", "north"):
            clients[name].send_signal(signal.SIGCONT)
        finish(made)
        before, _, after = made.log("south").rpartition("hospital   south")
        assert ROUNDS in trained_in(after)
        assert len(trained_in(before)) + len(trained_in(after)) < ROUNDS
        text = command("ich-server", "status", "--home", made.home)
        assert re.search(
            r"set aside +seed 7, round \d: south: (not admitted any more|no reply before the deadline)", text
        )


def test_a_second_server_on_the_folder_harms_nothing(running: Federation, undisturbed: bytes) -> None:
    running.wait_for_round(1)
    second = running.start("second", "ich-server", "run", "--home", running.home, "--resume")
    assert second.wait(60) == 4
    assert "runs on this folder already" in running.log("second")
    finish(running)
    assert running.final_bytes() == undisturbed


# --- the link ---------------------------------------------------------------------------------------------------------


def cut_upload(bad: Proxy) -> None:
    bad.cut_upload = bad.up + 2000


def lose_response(bad: Proxy) -> None:
    bad.lose_response = bad.up + 2000


def stall(bad: Proxy) -> None:
    bad.stall, bad.seconds = bad.up + 2000, 8.0


def closed_for_a_while(bad: Proxy) -> None:
    bad.closed, bad.cut_upload = True, bad.up + 1
    time.sleep(5)
    bad.closed = False
    bad.acted.append("closed")


@pytest.mark.parametrize("fault", [cut_upload, lose_response, stall, closed_for_a_while], ids=lambda f: f.__name__)
def test_a_bad_link_costs_time_and_nothing_else(
    tmp_path: Path, undisturbed: bytes, fault: Callable[[Proxy], None]
) -> None:
    port = free_port()
    with proxy(port) as bad, federation(tmp_path, study(tmp_path / "study"), address_port=bad.port) as made:
        settings = made.home / "server.yaml"
        settings.write_text(re.sub(r"listen: .*", f"listen: 127.0.0.1:{port}", settings.read_text()))
        made.serve()
        for name in HOSPITALS:
            made.join(name)
        for number in (1, 2, 3):
            made.wait_for_round(number)
            fault(bad)
        finish(made)
        assert bad.acted, "the fault has struck"
        assert "set aside" not in made.log("server")
        assert made.final_bytes() == undisturbed
