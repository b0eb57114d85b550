"""The dossier of a run's folder by the commands: written, verified on both sides, refused where something does not fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ich_client.cli import app as client
from ich_models.errors import DataError
from ich_server import results
from ich_server.cli import app as server
from ich_server.results import Results

MakeResults = Callable[..., Results]


@pytest.fixture
def run(build: MakeResults, tmp_path: Path) -> Path:
    """A simulation's folder, as far as a dossier looks at it."""
    settings = {"name": "demo", "evaluation": {"small_cells": 10}}
    hashed = hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    found = build({"north": 80, "south": 70}, arms=["loho"])
    study = found.study.model_copy(update={"settings": settings, "federation": hashed})
    results.write(found.model_copy(update={"study": study, "models": {"42": "ab" * 32}}), tmp_path)
    (tmp_path / "report.html").write_text("<p>report</p>")
    (tmp_path / "model/seed-42").mkdir(parents=True)
    (tmp_path / "model/seed-42/card.json").write_text(json.dumps({"sha256": "ab" * 32}))
    (tmp_path / "model/seed-42/model.safetensors").write_bytes(b"weights")
    return tmp_path


def call(app: object, *words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))  # type: ignore[arg-type]
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_written_and_verified_on_both_sides(run: Path) -> None:
    call(server, "dossier", run)
    for app in (server, client):
        said = call(app, "verify", run / "demo.dossier.zip")
        assert said.startswith("verified")
        assert said.count("\n") == 1
        assert "by a CA made for a simulation" in said
        assert "compare its fingerprint" in said


def test_the_command_finds_a_changed_number(run: Path) -> None:
    call(server, "dossier", run, "--to", run / "file.zip")
    content = (run / "file.zip").read_bytes()
    place = content.index(b'"value": 0.') + len(b'"value": 0.')
    (run / "file.zip").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for app in (server, client):
        with pytest.raises(DataError, match="bytes of it were changed") as caught:
            call(app, "verify", run / "file.zip")
        assert caught.value.exit_code == 3


def test_the_same_ca_signs_again(run: Path) -> None:
    """A simulation keeps the CA that was made for it: its fingerprint stays."""
    said = []
    for name in ("one.zip", "two.zip"):
        call(server, "dossier", run, "--to", run / name)
        said.append(call(server, "verify", run / name).split("by a CA")[1])
    assert said[0] == said[1]


def test_a_stranger_to_the_run_has_no_audit_in_it(run: Path) -> None:
    whole = {"hospital": "west", "replies": [], "approvals": [], "heads": {"replies": "a", "approvals": "b"}}
    (run / "west.json").write_text(json.dumps(whole))
    with pytest.raises(Exception, match="west took no part"):
        call(server, "dossier", run, "--audit", run / "west.json")


def test_another_model_than_the_results_tell_of_is_refused(run: Path) -> None:
    (run / "model/seed-42/card.json").write_text(json.dumps({"sha256": "cd" * 32}))
    with pytest.raises(Exception, match="the model of seed 42 is not the one"):
        call(server, "dossier", run)


def test_results_of_an_older_version_have_no_dossier(run: Path) -> None:
    found = json.loads((run / "results.json").read_text())
    del found["study"]["settings"]
    (run / "results.json").write_text(json.dumps(found))
    with pytest.raises(Exception, match="older version"):
        call(server, "dossier", run)
