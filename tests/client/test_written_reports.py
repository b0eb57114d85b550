"""A hospital's language model from hospital.yaml to token ids: asked over HTTP with masked slices, where the study allows it."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_hospital import MAPPING, STUDY, VOLUME, brain_of, make, scan_of
from phantom import write
from PIL import Image
from typer.testing import CliRunner

from ich_client.cli import app
from ich_client.hospital import HospitalConfig
from ich_client.tables import Hospital, load_hospitals
from ich_models import tokens
from ich_models.errors import ConfigurationError, RunError
from ich_models.federation import load_federation
from ich_models.yaml_config import load

TAKEN = "Left frontal lesion of moderate size with midline shift in the ASPECTS region M1."
"""Holds a term of every prompt."""


class Server(ThreadingHTTPServer):
    """OpenAI-compatible; says by the brightness of what it is shown what it was told to, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[list[np.ndarray[Any, Any]]] = []
        self.answers: dict[int, str] = {}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]
        server.asked.append(pictures)
        middle = pictures[len(pictures) // 2]
        level = int(np.median(middle[middle > 0]))
        said = next((text for bright, text in server.answers.items() if abs(level - bright) <= 1), TAKEN)
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, of whom the last has no scan."""
    return make(tmp_path_factory.mktemp("written"), 3, order=(0, 1, 2, 3))


def written(folder: Path, writer: str, text: str = "{writer: allowed, tokens: 64}", image: str = VOLUME) -> None:
    study = STUDY.format(image=image, network="{name: logistic}")
    (folder / "federation.yaml").write_text(study.replace("  image: ", f"  text: {text}\n  image: "))
    mapping = MAPPING.format(images="{folder: pacs}", table="", cache="cache", limit="1GB", threads=1)
    (folder / "hospital.yaml").write_text(mapping + f"text: {{writer: {writer}}}\n")


def loaded(folder: Path) -> Hospital:
    document = load(folder / "hospital.yaml", HospitalConfig)
    (one,) = load_hospitals([document], folder, load_federation(folder / "federation.yaml"))
    return one


def endpoint(server: Server) -> str:
    return f"{{kind: endpoint, url: 'http://127.0.0.1:{server.server_port}/v1', model: seer}}"


def bright(number: int) -> int:
    """Of a patient's brain in the window 40/80."""
    return round(brain_of(number) / 80 * 255)


def test_answers_become_tokens_and_the_template_stands_in(hospital: Path, server: Server) -> None:
    server.answers = {bright(1): "The patient will die."}
    written(hospital, endpoint(server))
    found = loaded(hospital)
    federation = load_federation(hospital / "federation.yaml").value
    assert federation.modalities.text is not None
    vocabulary = tokens.built_in(federation.modalities.text, federation.modalities.table)
    said = [TAKEN, "age 51.", TAKEN, "age 53."]
    np.testing.assert_array_equal(found.patients.text, tokens.encode(said, vocabulary, 64).ids)
    assert found.patients.present["text"].all()
    text = found.text
    assert text is not None
    assert (text.writer, text.by_model) == ("seer", 2)
    assert text.by_template == {"says 'die'": 1, "no image": 1}
    assert text.unknown == 0, "the built-in vocabulary holds the words of reports where a model may write them"

    assert len(server.asked) == 3
    for number, pictures in enumerate(sorted(server.asked, key=lambda one: one[0].max())):
        assert 20 < len(pictures) <= 26, "5 mm slices through a brain of some 140 mm"
        for one in pictures:
            assert one.dtype == np.uint8
            # Brain is of one value; bone would be 255, air within the head 0. The mask's edge takes in no bone.
            assert {int(level) for level in np.unique(one)} <= {
                0,
                bright(number) - 1,
                bright(number),
                bright(number) + 1,
            }
        assert (pictures[len(pictures) // 2][[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all(), "black outside the mask"

    again = loaded(hospital)
    assert len(server.asked) == 3, "what was answered is kept, refused answers, too"
    np.testing.assert_array_equal(again.patients.text, found.patients.text)


def test_check_counts_who_wrote(hospital: Path, server: Server) -> None:
    written(hospital, endpoint(server))
    arguments = ["check", "federation.yaml", "hospital.yaml", "--data", "."]
    arguments = [str(hospital / one) if "." in one else one for one in arguments]
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert told.exit_code == 10, (told.output, told.exception)
    found = json.loads(told.stdout)
    assert found["verdict"] == "ready, with warnings", "one patient has no scan"
    assert "a language model inside the hospital" in found["study"]["text"]
    assert found["hospitals"][0]["text"]["by_model"] == 3
    said = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert "written by seer: 3; template, no image: 1" in said.output
    assert TAKEN not in told.stdout + said.output


def test_without_the_studys_leave_the_template_writes_and_it_is_said(hospital: Path, server: Server) -> None:
    written(hospital, endpoint(server), text="{tokens: 32}")
    found = loaded(hospital)
    assert server.asked == []
    assert found.text is not None
    assert (found.text.writer, found.text.patients) == ("", 4)
    assert "the study does not allow a language model to write; its template does" in str(found.warnings)
    (hospital / "hospital.yaml").write_text((hospital / "hospital.yaml").read_text().partition("text:")[0])
    plain = loaded(hospital)
    np.testing.assert_array_equal(plain.patients.text, found.patients.text)


def test_a_model_that_cannot_be_asked_ends_the_command(hospital: Path, server: Server, tmp_path: Path) -> None:
    port = server.server_port
    written(hospital, "{kind: endpoint, url: 'http://127.0.0.1:1/v1', model: gone}")
    with pytest.raises(RunError, match="it cannot be asked"):
        loaded(hospital)
    assert port
    for writer, message in (
        ("{kind: endpoint, url: 'http://8.8.8.8/v1', model: far}", "leads outside the hospital"),
        ("{kind: folder, folder: nowhere}", "no model in this folder"),
    ):
        written(hospital, writer)
        with pytest.raises(ConfigurationError, match=message) as caught:
            loaded(hospital)
        assert caught.value.problems[0].where


@pytest.mark.parametrize(
    ("text", "image", "message"),
    [
        ("{writer: allowed}", "{kind: ct, size: [12, 32, 32], brain: head}", "brain-masked slices"),
        ("{writer: allowed}", "{kind: ct_slices, size: [32, 32]}", "brain-masked slices"),
        ("{writer: allowed, source: report, known_at: admission}", VOLUME, "in place of the template"),
        ("{writer: asked}", VOLUME, "writer"),
    ],
)
def test_studies_that_could_not_show_a_brain_are_refused(
    text: str, image: str, message: str, hospital: Path, server: Server
) -> None:
    written(hospital, endpoint(server), text, image)
    with pytest.raises(ConfigurationError, match=message):
        load_federation(hospital / "federation.yaml")


def test_a_head_without_a_brain_is_not_shown(tmp_path: Path, server: Server) -> None:
    """Where the brain was not told from the head, the whole head is what the network sees, but no model is shown it."""
    make(tmp_path, 0, order=(0, 1))
    for number in range(2):
        write(tmp_path / "pacs" / f"{number}", scan_of(number, z=tuple(np.arange(13) * 5.0)), seed=number)
    written(tmp_path, endpoint(server))
    found = loaded(tmp_path)
    assert found.images is not None
    heads = [one.region for one in found.images.chosen].count("head")
    assert heads == 2, "half a head is no whole brain"
    assert server.asked == []
    assert found.text is not None
    assert found.text.by_template == {"the brain was not found": 2}
