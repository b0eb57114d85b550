"""`ich-client check` on images: the terminal, JSON, the page; and that nothing of them leaves in a study."""

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import html5lib
import numpy as np
import pytest
import small
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from image_hospital import Z, files, load_one, make, scan_of
from phantom import write
from PIL import Image
from typer.testing import CliRunner

from ich_client.check_page import png
from ich_client.cli import app
from ich_deploy.grid import InProcessGrid
from ich_models.federation import load_federation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients of whom one has a study that lacks slices and one has none; a scan of nobody's."""
    made = make(tmp_path_factory.mktemp("check"), 4, order=(0, 1, 2, 3, 4))
    write(made / "pacs" / "gap", scan_of(3, study=0, z=[*Z[:9], *Z[10:]], day="20200101"))
    write(made / "pacs" / "nobody", scan_of(8))
    return made


def check(folder: Path, *options: str | Path, code: int = 10, **settings: str) -> str:
    files(folder, **settings)
    arguments = ["check", folder / "federation.yaml", folder / "hospital.yaml", "--data", folder, *options]
    found = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})
    assert found.exit_code == code, (found.output, found.exception)
    return found.stdout if code in (0, 10, 11) else found.output


def test_the_terminal_shows_counts_choices_and_reasons(folder: Path) -> None:
    said = re.sub(r" +", " ", check(folder))
    for line in (
        "patients with an image 4 of 5",
        "studies of nobody in the table 1",
        "seen: brain 4",
        "the earliest usable of several studies 1",
        "MISSING_SLICES 1 1 missing between 25",
        "send the series again",
        "NO_SERIES 1",
    ):
        assert line in said, said
    one = re.sub(r" +", " ", check(folder, "--patient", "P3"))
    assert "patients with an image 1 of 1 (of 5; the others were not looked at)" in one
    assert "P3 2 (Head)" in one
    assert "study 1.2.9.3.1 of 20240301 101500" in one
    assert "patients with an image 2 of 2 (of 5" in re.sub(r" +", " ", check(folder, "--limit", "2"))


def test_a_patient_who_is_not_there_is_said_to_be(folder: Path) -> None:
    files(folder)
    arguments = ["check", "federation.yaml", "hospital.yaml", "--data", ".", "--patient", "P77"]
    arguments[1:3] = [str(folder / name) for name in arguments[1:3]]
    arguments[4] = str(folder)
    found = CliRunner().invoke(app, arguments)
    assert "no patient 'P77' takes part" in str(found.exception)


def test_json_has_all_of_it(folder: Path) -> None:
    (north,) = json.loads(check(folder, "--json"))["hospitals"]
    found = north["images"]
    assert found["counts"] == {"MISSING_SLICES": 1, "NO_SERIES": 1}
    assert [one["patient"] for one in found["chosen"]] == ["P0", "P1", "P2", "P3"]
    assert {one["hint"] for one in found["aside"]} > {
        "send the series again; where single slices are lost for good, images.missing_slices: interpolate"
    }
    assert found["without"] == ["P4"]
    assert set(found["seconds"]) >= {"scan", "compare", "assemble"}


@pytest.mark.parametrize(
    "image", ["{kind: ct, size: [12, 32, 32], spacing: [10, 6, 6]}", "{kind: ct_slices, size: [32, 32], most: 8}"]
)
def test_the_page_is_one_file_with_a_picture_of_each(image: str, folder: Path, tmp_path: Path) -> None:
    check(folder, "--html", tmp_path / "check.html", image=image)
    text = (tmp_path / "check.html").read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(?!data:)[a-z/.]""", text), "nothing is fetched"
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in re.findall(r"base64,([^\"]+)", text)
    ]
    assert [one.shape for one in pictures] == [(176, 176, 3)] * 4
    orange = [(one == (255, 140, 0)).all(-1).sum() for one in pictures]
    assert all(orange) if "ct," in image else not any(orange)
    levels = [int(np.median(one[80:96, 80:96, 0])) for one in pictures]
    assert levels == pytest.approx([(15 + 8 * n) / 80 * 255 for n in range(4)], abs=1)
    assert "MISSING_SLICES" in text


def test_a_picture_is_what_another_program_reads() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(colours)))), colours)


# --- nothing leaves ---------------------------------------------------------------------------------------------------


def canaries(folder: Path) -> Iterator[int]:
    """A hospital with a name in every text of its images' headers, in folders and in files."""
    rows = ["ID,AGE,MRS"]
    for number in range(4):
        slices = scan_of(number)
        for one in slices:
            one.PatientID = f"CANARY{number}"
            for keyword in (
                "PatientName",
                "PatientComments",
                "InstitutionName",
                "ReferringPhysicianName",
                "StudyDescription",
                "SeriesDescription",
                "ProtocolName",
                "ImageComments",
                "OperatorsName",
            ):
                setattr(one, keyword, f"Canary^{keyword}")
        place = write(folder / "canary-pacs" / f"CANARY-{number}", slices)
        for path in sorted(place.iterdir()):
            path.rename(path.with_name(f"Canary_{path.name}.dcm"))
        rows.append(f"CANARY{number},{50 + number},{number % 2 * 5}")
        yield number
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def test_no_name_in_headers_files_or_folders_crosses_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of a whole study on images, in both directions, and every line of every error."""
    crossed: list[bytes] = []
    real = InProcessGrid._through_the_wire

    def captured(grid: InProcessGrid, message: Message) -> Message:
        with no_object_id_recompute():
            crossed.extend(part.deflate() for part in get_all_nested_objects(message).values())
        return real(grid, message)

    monkeypatch.setattr(InProcessGrid, "_through_the_wire", captured)
    assert len(list(canaries(tmp_path))) == 4
    network = "{name: concat, size: tiny, modalities: [image, table]}"
    north = load_one(tmp_path, images="{folder: canary-pacs}", network=network)
    assert north.patients.present["image"].all()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").glob("entries/*/*/*"))
    assert b"Canary" in kept, "what is looked for is in the hospital's own records"
    study = load_federation(tmp_path / "federation.yaml").value
    east = replace(north, name="east")
    small.study(study, [east, north], tmp_path / "run", serialise=True)
    everything = b"".join(crossed)
    assert len(everything) > 20_000
    assert b"without:east" in everything, "it is the study's bytes that were looked at"
    assert b"canary" not in everything.lower()
    assert b"1.2.9." not in everything
