"""The whole way with real processes: init, kit, admit, join, run; and the simulation's numbers at its end."""

import csv
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import BIN, HOSPITALS, Federation, command, federation, write_study

from ich_models.files import read_arrays
from ich_models.protocol import PACKAGE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A server and four hospitals over TLS, the study run to its end."""
    folder = tmp_path_factory.mktemp("federation")
    study = write_study(folder / "study")
    with federation(folder, study) as made:
        server = made.serve()
        for name in HOSPITALS:
            made.join(name)
        assert server.wait(240) == 0, made.log("server")
    return made


@pytest.fixture(scope="module")
def simulated(run: Federation) -> Path:
    """The same study, simulated."""
    out = run.folder / "simulated"
    command("ich-simulate", run.study, "--data", run.study.parent / "data", "--out", out)
    return out


def test_the_federation_gives_the_bytes_of_the_simulation(run: Federation, simulated: Path) -> None:
    """Final weights and constants of every fold, thresholds, answers, history: one file, byte for byte."""
    (expected,) = simulated.glob("seeds/seed-*/study.safetensors")
    assert run.final_bytes() == expected.read_bytes()


def test_the_results_are_the_simulations_without_what_nobody_can_see(run: Federation, simulated: Path) -> None:
    ours = json.loads((run.home / "results.json").read_text())
    theirs = json.loads((simulated / "results.json").read_text())
    assert list(ours["arms"]) == ["loho", "federated"]
    for name, arm in ours["arms"].items():
        assert arm["hospitals"] == theirs["arms"][name]["hospitals"]
        assert arm["pooled"] is None
    assert ours["hospitals"] == theirs["hospitals"]
    assert ours["training"] == theirs["training"]
    assert ours["traffic"] == theirs["traffic"], "the bytes of every round, to and from every hospital"
    assert ours["models"] == theirs["models"]
    assert ours["study"] == theirs["study"]
    assert ours["quarantined"] == []
    page = (run.home / "report.html").read_text()
    assert all(name in page for name in HOSPITALS)


def test_every_hospital_gets_the_model_of_all_hospitals(run: Federation) -> None:
    rows, facts = read_arrays(next(run.home.glob("seeds/seed-*/study.safetensors")))
    for name in HOSPITALS:
        (path,) = (run.folder / name / "model").glob("*/seed-7/model.safetensors")
        tensors, card = read_arrays(path)
        assert tensors["weights"].tobytes() == rows["weights"][facts["folds"].index("all")].tobytes()
        assert tensors["constants"].tobytes() == rows["constants"][facts["folds"].index("all")].tobytes()
        assert card["threshold"] == facts["thresholds"]["all"]
        assert json.loads((path.parent / "card.json").read_text()) == card


def test_a_hospital_predicts_with_its_model_as_the_simulation_does(run: Federation, simulated: Path) -> None:
    """The kept model with everything from the hospital's folder, and the simulation's with its own copy of the study."""
    data = run.study.parent / "data"
    for name in HOSPITALS[:2]:
        home = run.folder / name
        kept = command("ich-client", "predict", "--home", home, "--data", data)
        words = (home / "hospital.yaml", "--model", simulated / "model", "--data", data)
        assert command("ich-client", "predict", *words) == kept
        rows = list(csv.DictReader(io.StringIO(kept)))
        assert len(rows) > 10
        assert all(0 < float(row["probability"]) < 1 for row in rows if not row["reason"])


def test_nothing_of_a_patient_is_at_the_server(run: Federation) -> None:
    """Identifiers stand in every table; none stands in any file of the server, its log and its database included."""
    for path in (path for path in run.home.rglob("*") if path.is_file()):
        assert b"PATIENT-" not in path.read_bytes(), path
    assert "PATIENT-" not in run.log("server")


def test_private_keys_are_private_and_stay(run: Federation) -> None:
    for name in HOSPITALS:
        key = run.folder / name / f"{name}.key"
        assert key.stat().st_mode & 0o777 == 0o600
        secret = key.read_bytes().splitlines()[3]
        assert all(secret not in path.read_bytes() for path in run.home.rglob("*") if path.is_file())
    assert all((run.home / "pki" / name).stat().st_mode & 0o777 == 0o600 for name in ("ca.key", "server.key"))


def test_status_tells_of_the_end(run: Federation) -> None:
    text = command("ich-server", "status", "--home", run.home)
    assert re.search(r"phase +finished", text)
    assert "seed 7, round 4 of 4" in text
    assert all(re.search(rf"{name}: away, last seen .*, version {re.escape(PACKAGE)}", text) for name in HOSPITALS)


def test_a_hospital_verifies_the_dossier_and_finds_its_own_record_in_it(run: Federation) -> None:
    two = HOSPITALS[:2]
    exports = [run.folder / f"audit-{name}.json" for name in two]
    for name, path in zip(two, exports, strict=True):
        command("ich-client", "audit", "--home", run.folder / name, "--export", path)
    file = run.folder / "run.dossier.zip"
    command("ich-server", "dossier", run.home, "--to", file, *(word for path in exports for word in ("--audit", path)))
    said = command("ich-server", "verify", file, "--home", run.home)
    assert re.search(r"verified +four-hospitals \(.{16}\): \d+ files, signed .* by the federation's CA", said)
    for name in two:
        said = command("ich-client", "verify", file, "--home", run.folder / name)
        assert f"the audit log of {name} has the head that the dossier names" in said
    with zipfile.ZipFile(file) as archive:
        assert archive.read("results.json") == (run.home / "results.json").read_bytes()
        assert archive.read("report.html") == (run.home / "report.html").read_bytes()
        assert not [name for name in archive.namelist() if name.endswith((".safetensors", ".key"))]


def test_the_servers_model_can_be_exported(run: Federation, simulated: Path) -> None:
    """From the federation folder and from the simulation the same weights, to the byte."""
    for name, source in (("ours", run.home), ("theirs", simulated)):
        command("ich-server", "export", source, "--to", run.folder / name)
    ours, theirs = ((run.folder / name / "weights.safetensors").read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs


def test_a_study_is_not_begun_over_another(run: Federation) -> None:
    done = subprocess.run(
        [BIN / "ich-server", "run", "--home", run.home],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "a study was begun here" in done.stderr
    assert "--resume" in done.stderr


def test_the_logs_say_what_was_done(run: Federation) -> None:
    log = run.log("north")
    assert "connected to 127.0.0.1" in log
    assert re.search(r"round 4, train: \d+\.\d s, [\d,]+ bytes sent", log)
    assert "hand-over" in log


# --- between machines -------------------------------------------------------------------------------------------------


@pytest.fixture
def apart() -> Iterator[dict[str, list[str]]]:
    """Two network namespaces, joined by one cable: the server's machine, and that of the hospitals."""
    names = {"ich-server": "ich-test-server", "ich-client": "ich-test-client"}
    commands = [
        *(f"ip netns add {name}" for name in names.values()),
        "ip link add ich-s netns ich-test-server type veth peer name ich-c netns ich-test-client",
        "ip -n ich-test-server address add 10.77.0.1/24 dev ich-s",
        "ip -n ich-test-client address add 10.77.0.2/24 dev ich-c",
        *("ip -n ich-test-server link set ich-s up", "ip -n ich-test-client link set ich-c up"),
    ]
    try:
        for each in commands:
            done = subprocess.run(each.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield {program: ["ip", "netns", "exec", name] for program, name in names.items()}
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ip") is None, reason="no ip command on this machine")
def test_machines_that_see_nothing_of_each_other_but_one_port(
    apart: dict[str, list[str]], run: Federation, tmp_path: Path
) -> None:
    """The hospitals' machine has no loopback and no way to anywhere but to the server; the bytes are the same."""
    study = write_study(tmp_path / "study")
    with federation(tmp_path, study, host="10.77.0.1", within=apart) as made:
        server = made.serve()
        for name in HOSPITALS:
            made.join(name)
        assert server.wait(240) == 0, made.log("server")
        assert made.final_bytes() == run.final_bytes()
