"""`ich-simulate` on images: it says where it keeps them, and writes nothing beside the data."""

from pathlib import Path

import pytest
from image_hospital import files, make
from typer.testing import CliRunner

from ich_deploy.cli import app


def test_a_simulation_on_images_writes_nothing_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (tmp_path / "study" / "hospitals").mkdir(parents=True)
    for name in ("north", "east"):
        data = make(tmp_path / "data" / name, 4)
        study, mapping = files(data, network="{name: concat, size: tiny, modalities: [image, table]}")
        text = (
            mapping.read_text()
            .replace("hospital: north", f"hospital: {name}")
            .replace("table.csv", f"{name}/table.csv")
        )
        lines = [line for line in text.splitlines() if not line.startswith("cache:")]
        text = "\n".join(lines).replace("folder: pacs", f"folder: {name}/pacs") + "\n"
        (tmp_path / "study" / "hospitals" / f"{name}.yaml").write_text(text)
        study.replace(tmp_path / "study" / "federation.yaml")
        mapping.unlink()
    table = tmp_path / "data" / "east" / "table.csv"
    table.write_text(table.read_text().replace(",5", ",6"))
    before = sorted((tmp_path / "data").rglob("*"))
    arguments = [tmp_path / "study" / "federation.yaml", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"images     8 of 8 patients, kept in {tmp_path / 'user' / 'ich-federation'}" in done.stdout
    assert (tmp_path / "out" / "results.json").is_file()
    assert sorted((tmp_path / "data").rglob("*")) == before
