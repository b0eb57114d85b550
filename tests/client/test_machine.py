"""The machine as `ich-client check` sees it: what is right, what is worth a warning, and what stands in the way."""

import hashlib
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from image_hospital import files, make
from processes import write_study
from typer.testing import CliRunner

from ich_client import home as homes
from ich_client import images, machine, needs
from ich_client.check import Verdict, verdict
from ich_client.cli import app as client
from ich_client.dicom.pixels import KNOWN
from ich_client.hospital import HospitalConfig
from ich_client.images import Ask
from ich_client.machine import Line, Needs, Room, Weights
from ich_client.tables import load_hospitals
from ich_models.errors import ConfigurationError, RunError
from ich_models.federation import load_federation
from ich_models.yaml_config import load
from ich_server import home as server
from ich_strategies.plan import Plan

MODEST = Needs(threads=1, model=4e6, images=True, dicom=True, networks=False)


def lines(wanted: Needs) -> dict[str, Line]:
    return {line.name: line for line in machine.examine(wanted)}


def test_this_machine_can_read_every_encoding_and_says_what_it_has() -> None:
    found = lines(MODEST)
    assert found["DICOM decoders"].state == "well"
    assert found["DICOM decoders"].values["readable"] == dict.fromkeys(KNOWN, True)
    assert found["versions"].values["torch"] == torch.__version__
    assert (found["GPU"].values["name"] is not None) == torch.cuda.is_available()
    total = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1])
    assert found["memory"].values["bytes"] <= total * 1024 * 1.001
    assert found["memory"].values["needed"] == 0.8e9 + 6 * 4e6 + 0.7e9
    assert 1 <= found["processor cores"].values["cores"] <= (os.cpu_count() or 1)
    json.dumps([dict(line.values) for line in found.values()], allow_nan=False)


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has the GPU that is not to be there")
def test_a_gpu_that_is_asked_for_and_is_not_there_is_an_obstacle() -> None:
    found = lines(replace(MODEST, devices=("cuda:7",)))["GPU"]
    assert found.state == "not ready"
    assert re.fullmatch(r"limits.device is cuda:7, and torch finds [0-7] CUDA devices", found.told)
    assert found.hint.startswith("write device: cpu")
    assert lines(replace(MODEST, devices=("cpu",)))["GPU"].state == "well"


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has the GPU that is not to be there")
def test_a_gpu_that_is_not_there_stops_check_and_join_before_any_contact(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", hospitals=["north"])
    kit = server.make_kit(server.create(study, "localhost:1", tmp_path / "server"), "north", "b" * 64)
    home = tmp_path / "north"
    command("init", kit, "--home", home)
    mapping = (study.parent / "hospitals" / "north.yaml").read_text()
    (home / "hospital.yaml").write_text(mapping.replace("limits:\n", "limits:\n  device: cuda:7\n"))
    command("approve", "--home", home, "--yes")
    assert "limits.device is cuda:7" in command("check", "--home", home, "--data", study.parent / "data", code=11)
    joined = CliRunner().invoke(client, ["join", "--home", str(home), "--data", str(study.parent / "data")])
    assert isinstance(joined.exception, ConfigurationError)
    assert "limits.device is cuda:7" in str(joined.exception)


def command(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(client, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.output


def test_more_threads_than_cores_are_a_warning_and_too_little_memory_is_an_obstacle() -> None:
    found = lines(Needs(threads=100_000, model=1e14, images=False, dicom=False, networks=False))
    assert found["processor cores"].state == "warning"
    assert found["processor cores"].hint.startswith(f"write limits.threads: {int(machine.cores())}")
    assert found["memory"].state == "not ready"
    assert "at least 600,000.8 GB" in found["memory"].told
    assert "DICOM decoders" not in found


def test_limits_of_a_container_count(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"cpu.max": "150000 100000", "memory.max": "1000000000", "memory.current": "400000000"}
    monkeypatch.setattr(machine, "_control", lambda name: told[name])
    assert machine.cores() == min(1.5, len(os.sched_getaffinity(0)))
    assert machine.memory() == (1_000_000_000, 600_000_000)
    assert lines(MODEST)["memory"].state == "not ready", "1.5 GB are needed"
    told |= {"cpu.max": "max 100000", "memory.max": "max"}
    assert machine.cores() == len(os.sched_getaffinity(0))
    assert machine.memory()[0] > 1_000_000_000


# --- disk -------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_yet_is_judged_by_the_disk_it_will_lie_on(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    for bytes_, state in ((0.0, "well"), (1e6, "well"), (0.8 * free, "warning"), (2.0 * free, "not ready")):
        (room,) = [
            one
            for one in machine.examine(
                Needs(1, 0, False, False, False, rooms=(Room("room", "cache.folder", tmp_path / "a" / "b", bytes_),))
            )
            if one.name == "room"
        ]
        assert room.state == state
        assert room.values["free"] == pytest.approx(free, rel=0.2)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_cannot_be_written_to_is_said_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    room = Room("room", "cache.folder", tmp_path / "file" / "cache", 0.0)
    line = lines(Needs(1, 0, False, False, False, rooms=(room,)))["room"]
    assert line.state == "not ready"
    assert "cannot be written to" in line.told
    assert "another (cache.folder)" in line.hint


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A disk of 2 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder  # type: ignore[misc]
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_with_what_the_images_need(tmp_path: Path, small_disk: Path) -> None:
    folder = make(tmp_path / "hospital", 12)
    study, mapping = files(
        folder, cache=small_disk / "cache", image="{kind: ct, size: [64, 224, 224], spacing: [2, 1, 1]}"
    )
    with pytest.raises(RunError, match="no space left for what is made of images") as caught:
        load_hospitals([load(mapping, HospitalConfig)], folder, load_federation(study))
    (problem,) = caught.value.problems
    assert problem.where.endswith("cache.folder")
    # 20 MB as acquired and 2 x 2 x 64 x 224 x 224 as prepared, of 12 patients
    assert "the images of 12 patients take about 0.4 GB" in problem.hint


def test_a_cache_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    folder = make(tmp_path, 2)
    (folder / "file").touch()
    study, mapping = files(folder, cache=folder / "file" / "cache")
    with pytest.raises(RunError, match="cannot be written to: Not a directory") as caught:
        load_hospitals([load(mapping, HospitalConfig)], folder, load_federation(study))
    assert "cache.folder" in caught.value.problems[0].hint


def test_what_is_still_to_come_follows_from_what_was_read(tmp_path: Path) -> None:
    folder = make(tmp_path, 4)
    study, mapping = files(folder)
    federation, document = load_federation(study), load(mapping, HospitalConfig)
    plan = Plan(federation.value, 42)
    hospitals = load_hospitals([document], folder, federation, ask=Ask(limit=1))
    (room,) = needs.of(plan, hospitals, [document], folder).rooms
    assert room.folder == folder / "cache"
    (entry,) = [path.parent for path in (folder / "cache").rglob(images.study_images.ACQUIRED)]
    own = sum(path.stat().st_size for path in entry.iterdir())
    prepared = np.zeros((1, 12, 32, 32), np.float16).nbytes
    assert room.bytes == pytest.approx(3 * (own + 2 * prepared))
    hospitals = load_hospitals([document], folder, federation)
    assert needs.of(plan, hospitals, [document], folder).rooms[0].bytes == 0


# --- packages and files -----------------------------------------------------------------------------------------------


def test_packages_are_held_to_what_was_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [
        "flwr==0.0.1",
        "numpy>=2",
        'nibabel<1; extra == "client"',
        'not-there>=2; extra == "networks"',
        'ray; extra == "ray"',
    ]
    monkeypatch.setattr(machine, "requires", lambda name: declared)
    found = [
        (line.values["package"], line.state, line.hint) for line in machine._versions(True) if line.name == "package"
    ]
    assert found == [
        ("flwr", "not ready", "pip install 'flwr==0.0.1'"),
        ("nibabel", "warning", "pip install 'nibabel<1'"),
        ("not-there", "not ready", "pip install 'not-there>=2'"),
    ]
    assert "not-there" not in str(list(machine._versions(False)))


def test_pinned_files_are_there_and_the_studys(tmp_path: Path) -> None:
    (tmp_path / "right").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    for path, sha, state, said in (
        (tmp_path / "right", right, "well", "is the study's"),
        (tmp_path / "right", "0" * 64, "not ready", f"has another SHA-256 ({right[:12]}"),
        (tmp_path / "none", right, "not ready", "No such file"),
        (None, right, "not ready", "no file is given"),
    ):
        line = lines(Needs(1, 0, False, False, False, weights=(Weights("w", sha, path, "hospital.yaml:9:1"),)))[
            "weights"
        ]
        assert (line.state, said in line.told) == (state, True)


def test_every_pinned_file_of_a_study_is_found() -> None:
    network = {"name": "concat", "size": "tiny", "modalities": ["image", "table"]}
    network["image"] = {"name": "resnet", "weights": {"name": "medical", "sha256": "a" * 64}}
    plain = small.federation()
    assert list(needs.pinned_of(plain)) == []
    pinned = {"name": "medical", "sha256": "b" * 64}
    nested = plain.model_copy(update={"description": {"a": [network]}})
    assert list(needs.pinned_of(nested)) == [], "words are no pins"
    from ich_models.networks.options import Pinned

    whole = plain.model_copy(update={"description": {"a": [Pinned.model_validate(pinned)]}})
    assert [one.sha256 for one in needs.pinned_of(whole)] == ["b" * 64]


# --- clock, verdict ---------------------------------------------------------------------------------------------------


def test_the_clock_is_compared_with_what_was_measured_when_joining(tmp_path: Path) -> None:
    home = homes.Home(tmp_path, None, None)  # type: ignore[arg-type]
    assert home.clock is None
    home.keep_clock(-2.04)
    ahead, when = home.clock or (0.0, "")
    line = lines(Needs(1, 0, False, False, False, clock=home.clock))["clock"]
    assert (ahead, line.told.endswith(f"2.0 s behind the server's on {when}")) == (-2.0, True)
    (tmp_path / homes.CLOCK).write_text("{")
    assert home.clock is None


def test_the_worst_decides() -> None:
    well, warned, against = (Line("a", "b", state) for state in ("well", "warning", "not ready"))  # type: ignore[arg-type]
    assert verdict([], [well]) is Verdict.READY
    assert verdict([], [well, warned]) is Verdict.WARNINGS
    assert verdict([], [warned, against]) is Verdict.NOT_READY
    assert [(int(one), str(one)) for one in Verdict] == [(0, "ready"), (10, "ready, with warnings"), (11, "not ready")]
