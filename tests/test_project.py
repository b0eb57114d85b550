"""One version in one place, pins for everything that is asked for, and a test process set up as conftest promises."""

import os
import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    with (repository / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, Requirement]:
    lines = (line.split("#")[0].strip() for line in (repository / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(pin.name): pin for pin in (Requirement(line) for line in lines if line)}


def test_version_has_one_home(project: dict[str, Any], repository: Path) -> None:
    assert version("ich-federation") == project["version"]
    assigned = re.compile(r"^__version__\s*(:.*)?=\s*[\"']", re.MULTILINE)
    second_homes = [path for path in repository.glob("*/ich_*/**/*.py") if assigned.search(path.read_text("utf-8"))]
    assert not second_homes, "ask importlib.metadata.version('ich-federation') instead"


def test_console_scripts_are_installed_as_declared(project: dict[str, Any]) -> None:
    installed = distribution("ich-federation").entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in installed} == project["scripts"]


def test_every_requirement_has_a_tested_version_within_its_range(
    project: dict[str, Any], pins: dict[str, Requirement]
) -> None:
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    for wanted in map(Requirement, project["dependencies"] + extras):
        pinned = pins[canonicalize_name(wanted.name)]
        (pin,) = pinned.specifier
        assert pin.operator == "==", f"{pinned} is no pin"
        assert pin.version in wanted.specifier, f"constraints.txt has {pinned}, pyproject.toml asks for {wanted}"
        # A local version (2.13.0+cpu) exists on one index only; without it pip takes whichever build is at hand.
        assert "+" not in pin.version


def test_the_suite_calls_nobody_and_keeps_to_one_thread() -> None:
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert torch.get_num_threads() == 1
