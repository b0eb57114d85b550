"""The dossier of a run's folder by the commands: written, verified on both sides, refused where something does not fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from typer.testing import CliRunner

from ich_client.cli import app as client
from ich_models import dossier
from ich_models.dossier import AuditHead
from ich_models.errors import ConfigurationError, DataError
from ich_server import pki, results, results_file
from ich_server.cli import app as server
from ich_server.report import photos
from ich_server.report.page import write_report
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
    write_report(results_file.read(tmp_path / "results.json"), tmp_path)
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
    for app, lines in ((server, 2), (client, 1)):
        said = call(app, "verify", run / "demo.dossier.zip")
        assert said.startswith("verified")
        assert said.count("\n") == lines
        assert "by an unknown CA (it says: a CA made for a simulation)" in said
        assert f"nobody has compared its fingerprint {own_fingerprint(run)}" in said


def test_it_holds_what_the_run_and_the_hospitals_left_and_no_weights(run: Path) -> None:
    whole = {"hospital": "north", "replies": [{}] * 3, "approvals": [], "heads": {"replies": "aa", "approvals": "bb"}}
    (run / "north.json").write_text(json.dumps(whole))
    (run / "run.json").write_text('{"seconds": 1}')
    photos.keep([photos.Photo("One", "data:image/png;base64,aaaa", "A head.", "Generated.")], run)
    write_report(results_file.read(run / "results.json"), run)
    call(server, "dossier", run, "--audit", run / "north.json")
    assert "made again from the results: the same to the byte" in call(server, "verify", run / "demo.dossier.zip")
    made = dossier.verify(run / "demo.dossier.zip")
    assert made.manifest.audits == {"north": AuditHead(replies="aa", approvals="bb", lines=3)}
    assert made.manifest.models == {"42": "ab" * 32}
    assert made.files.keys() == {
        *("ca.pem", "federation.json", "models/seed-42.json"),
        *("results.json", "results.csv", "report.html", "pictures.json", "run.json"),
    }
    assert all(made.files[name] == (run / name).read_bytes() for name in ("pictures.json", "run.json", "report.html"))


def own_fingerprint(run: Path) -> str:
    """As openssl prints it: SHA-256 of the certificate's DER."""
    certificate = x509.load_pem_x509_certificate((run / "pki/ca.pem").read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def test_a_strangers_ca_does_not_read_as_the_federations(run: Path) -> None:
    """Whoever makes a CA of his own may write into the manifest that it is the federation's."""
    call(server, "dossier", run)
    made = dossier.verify(run / "demo.dossier.zip")
    stranger = pki.authority(run / "stranger", "demo")
    claim = made.manifest.model_copy(update={"signer": "federation"})
    files = {name: content for name, content in made.files.items() if name != dossier.AUTHORITY}
    forged = run / "forged.zip"
    forged.write_bytes(dossier.pack(claim, files, *stranger))
    for app in (server, client):
        said = call(app, "verify", forged)
        assert "by an unknown CA" in said
        assert dossier.verify(forged).authority in said
    with pytest.raises(DataError, match="another CA") as caught:
        dossier.verify(forged, (run / "pki/ca.pem").read_bytes())
    assert caught.value.exit_code == 3
    known = dossier.said(dossier.verify(forged, (run / "stranger/ca.pem").read_bytes()), True)
    assert "by the federation's CA, which is this folder's own" in known


@pytest.mark.parametrize("name", ["report.html", "results.csv"])
def test_a_page_or_table_that_says_something_else_is_not_put_into_a_dossier(run: Path, name: str) -> None:
    there = (run / name).read_text()
    (run / name).write_text(there.replace("0.", "0.9", 1))
    with pytest.raises(ConfigurationError, match=f"{name} does not say what results.json says"):
        call(server, "dossier", run)
    call(server, "report", run)
    assert (run / name).read_text() == there
    call(server, "dossier", run)


def test_a_page_that_somebody_changed_and_signed_is_noticed(run: Path) -> None:
    """Its maker kept the line that names the results; made again from them, the page is another."""
    call(server, "dossier", run)
    assert "made again from the results: the same to the byte" in call(server, "verify", run / "demo.dossier.zip")
    made = dossier.verify(run / "demo.dossier.zip")
    files = {name: content for name, content in made.files.items() if name != dossier.AUTHORITY}
    better = files["report.html"].replace(b'class="value">0.', b'class="value">0.9', 1)
    assert better != files["report.html"]
    forged = run / "forged.zip"
    authority = pki.authority(run / "pki", "demo")
    forged.write_bytes(dossier.pack(made.manifest, {**files, "report.html": better}, *authority))
    assert "it differs: another version wrote it, or somebody by hand" in call(server, "verify", forged)


def test_a_dossier_whose_page_is_of_other_results_is_refused(run: Path) -> None:
    """Signed by its own maker, every hash right: the page of one run, the results of another."""
    call(server, "dossier", run)
    made = dossier.verify(run / "demo.dossier.zip")
    files = {name: content for name, content in made.files.items() if name != dossier.AUTHORITY}
    better = files["results.json"].replace(b'"value": 0.', b'"value": 0.9', 1)
    forged = run / "forged.zip"
    forged.write_bytes(
        dossier.pack(made.manifest, {**files, "results.json": better}, *pki.authority(run / "pki", "demo"))
    )
    for app in (server, client):
        with pytest.raises(DataError, match=r"report\.html was not made of this results\.json") as caught:
            call(app, "verify", forged)
        assert caught.value.exit_code == 3


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
        said.append(call(server, "verify", run / name).split("by an unknown CA")[1])
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
