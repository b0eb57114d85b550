"""The hospital's folder: a kit makes it, the kit mends it, and another federation's kit does not get in."""

import os
from pathlib import Path

import pytest
from processes import write_study

from ich_client import home as homes
from ich_models.errors import ConfigurationError, RunError
from ich_server import home as server


def kit_of(folder: Path, hospital: str = "north") -> Path:
    """A coordinator's kit for a hospital."""
    study = folder / "study" / "federation.yaml"
    if not study.exists():
        write_study(study.parent)
    made = server.create(study, "localhost:8443", folder / "server")
    return server.make_kit(made, hospital, "b" * 64)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("federation.yaml", "name: other\n"),
        ("kit.json", "{}"),
        ("kit.json", "{"),
        ("kit.json", '{"facts": {"form": 9}}'),
    ],
)
def test_a_damaged_folder_is_mended_by_its_kit(tmp_path: Path, name: str, content: str) -> None:
    kit = kit_of(tmp_path)
    made = homes.create(kit, tmp_path / "north")
    key = made.key.read_bytes()
    (made.folder / "kit" / name).write_text(content)
    with pytest.raises(ConfigurationError):
        homes.open_home(made.folder)
    again = homes.create(kit, made.folder)
    assert again.name == "north"
    assert again.key.read_bytes() == key


def test_another_federations_kit_does_not_get_in(tmp_path: Path) -> None:
    made = homes.create(kit_of(tmp_path / "one"), tmp_path / "north")
    with pytest.raises(ConfigurationError, match="belongs to another federation"):
        homes.create(kit_of(tmp_path / "two"), made.folder)
    (made.folder / "kit" / "kit.json").write_text("{")
    with pytest.raises(ConfigurationError, match="belongs to another federation"):
        homes.create(kit_of(tmp_path / "two"), made.folder)


def test_another_hospitals_kit_does_not_get_in(tmp_path: Path) -> None:
    made = homes.create(kit_of(tmp_path), tmp_path / "north")
    with pytest.raises(ConfigurationError, match="belongs to another hospital"):
        homes.create(kit_of(tmp_path, "south"), made.folder)


def test_two_clients_do_not_take_part_from_one_folder(tmp_path: Path) -> None:
    made = homes.create(kit_of(tmp_path), tmp_path / "north")
    for _ in range(2):  # the second time, too, it is told who is there now, and not who was
        with homes.locked(made):
            with pytest.raises(
                RunError, match=rf"join \(process {os.getpid()}\) runs on this folder already"
            ) as caught:
                homes.locked(made).__enter__()
            assert "end that one first" in str(caught.value)


def test_a_mapping_of_another_hospital_is_refused(tmp_path: Path) -> None:
    """Its patients would answer under this hospital's name."""
    made = homes.create(kit_of(tmp_path), tmp_path / "north")
    made.hospital.write_text((tmp_path / "study/hospitals/south.yaml").read_text())
    with pytest.raises(ConfigurationError, match="hospital 'south', and the kit is for 'north'"):
        homes.load_mapping(made)


def test_each_folder_is_another_to_a_ledger_that_they_share(tmp_path: Path) -> None:
    """Of two hospitals of one federation, and of one hospital in two; and a folder that was moved is still the same."""
    north = homes.create(kit_of(tmp_path / "one"), tmp_path / "north")
    south = homes.create(kit_of(tmp_path / "one", "south"), tmp_path / "south")
    elsewhere = homes.create(kit_of(tmp_path / "two"), tmp_path / "elsewhere")
    before = north.identity
    assert len({before, south.identity, elsewhere.identity}) == 3
    moved = north.folder.rename(tmp_path / "moved")
    assert homes.open_home(moved).identity == before
