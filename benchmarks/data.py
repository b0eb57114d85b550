"""What is measured on: the International Stroke Trial's hospitals, or made-up tables of the same shapes."""

import csv
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from ich_deploy.source import Source

EXAMPLE: Final = Path(__file__).resolve().parent.parent / "examples" / "ist"

SIZES: Final = (
    *(
        524,
        305,
        296,
        295,
        292,
        280,
        263,
        247,
        234,
        226,
        225,
        213,
        209,
        198,
        176,
        175,
        174,
        161,
        154,
        154,
        153,
        137,
        137,
    ),
    *(131, 129, 126, 124, 123, 121, 121, 119, 118, 116, 115, 114, 113, 111, 111, 110, 108, 108, 108, 105, 104, 104),
    *(103, 103, 103, 102),
)
"""Patients per hospital of the trial with 100 or more."""

LARGEST: Final = {16: 175, 49: 100}
"""Hospitals -> the fewest patients of a hospital among them."""

STAGE: Final = {"name": "train", "epochs": 5, "batch": 32, "optimizer": {"name": "sgd", "lr": 0.05}}


@dataclass(frozen=True)
class Case:
    """Where the tables are, and whether they are the trial's."""

    data: Path
    folder: Path
    real: bool

    def study(self, name: str, hospitals: int, changes: Mapping[str, Any]) -> Source:
        """A study of the largest hospitals: the example's federation with some sections replaced, written to a folder."""
        federation = yaml.safe_load((EXAMPLE / "death_or_dependency.yaml").read_text("utf-8"))
        federation |= {"name": name, **changes}
        folder = self.folder / name
        shutil.copytree(EXAMPLE / "dictionary", folder / "dictionary", dirs_exist_ok=True)
        _write(folder / "federation.yaml", yaml.safe_dump(federation, sort_keys=False))
        mapping = (EXAMPLE / "hospitals" / "ist.yaml").read_text("utf-8")
        _write(
            folder / "hospitals" / "ist.yaml",
            mapping.replace("min_patients: 100", f"min_patients: {LARGEST[hospitals]}"),
        )
        return Source(folder / "federation.yaml", folder / "hospitals", self.data)


def find(data: Path, folder: Path) -> Case:
    """The trial's table below `data`, or else made-up patients for hospitals of its sizes, written to `folder`."""
    if (data / "ist" / "IST.csv").is_file():
        return Case(data / "ist", folder, real=True)
    _make_up(folder / "made-up")
    return Case(folder / "made-up", folder, real=False)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _make_up(folder: Path) -> None:
    """Patients with random values; an outcome that depends on age."""
    generator = np.random.default_rng(0)
    hospital = np.repeat(np.arange(1, len(SIZES) + 1), SIZES)
    federation = yaml.safe_load((EXAMPLE / "death_or_dependency.yaml").read_text("utf-8"))
    text = (EXAMPLE / "hospitals" / "ist.yaml").read_text("utf-8")
    mapping = yaml.load(text, yaml.BaseLoader)["table"]["columns"]  # noqa: S506 - makes nothing but texts
    age = generator.integers(40, 95, len(hospital))
    poor = generator.random(len(hospital)) < 1 / (1 + np.exp(-(age - 68) / 8))
    columns: dict[str, Any] = dict.fromkeys(mapping, np.full(len(age), ""))
    columns |= {"HOSPNUM": hospital, "OCCODE": np.where(poor, 2, 3), "AGE": age}
    columns |= {"RSBP": generator.integers(90, 230, len(age)), "RDELAY": generator.integers(1, 48, len(age))}
    for name in federation["modalities"]["table"]["predictors"]:
        if name not in ("AGE", "RSBP", "RDELAY"):
            codes = list(mapping[name]["codes"])
            codes += ["PACS", "LACS", "TACS", "POCS"] if name == "STYPE" else []  # these mean themselves
            columns[name] = generator.choice(codes, len(age))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "IST.csv").open("w", newline="", encoding="latin-1") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
