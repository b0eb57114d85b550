"""A generated patient: what the hospital knows, what only the generator knows, and what there is to be seen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from ich_deploy.demo.anatomy import Lesion

HOSPITALS: Final = ("north", "east", "south")
SHIFT: Final = {"north": 0.0, "east": 0.5, "south": -0.4}
"""Added to the log-odds of a poor outcome: care, transport and referral, which no column records."""
AGE: Final = {"north": 67.0, "east": 70.0, "south": 64.0}
"""Mean age in years."""

MRS_CUTS: Final = (-3.0, -1.4, 0.0, 0.6, 1.3, 1.9)
"""Where a modified Rankin scale of 1, 2, ... 6 begins. P(mRS >= 3) is exactly the risk: a poor outcome begins at 0."""

Value = float | str | None


@dataclass(frozen=True)
class Case:
    """One patient. `seed`: all randomness of this patient follows from it."""

    hospital: str
    number: int
    """From 1, within the hospital."""
    seed: tuple[int, ...]
    admitted: datetime
    values: Mapping[str, Value]
    """The study's variables, in its units and levels; None is a value that the hospital does not know."""
    truth: Mapping[str, float | str]
    """What no hospital's table holds: the true log-odds, and what the picture is made of."""
    lesions: tuple[Lesion, ...] = ()
    report: str = ""
    scanned: bool = True
    """Whether the hospital has images of the patient."""

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose."""
        return np.random.default_rng([*self.seed, purpose])

    @property
    def patient(self) -> str:
        """The patient's identifier in the hospital's table."""
        forms = {"north": f"N{self.number:04d}", "east": f"{700_000 + self.number}", "south": f"s-{self.number:03d}"}
        return forms[self.hospital]

    @property
    def image_patient(self) -> str:
        """PatientID of the images. Only north's is that of the table."""
        mixed = self.number * 7919 % 100_000  # 7919 and 100,000 share no factor: no number comes twice
        forms = {"north": self.patient, "east": f"PAC{mixed:05d}", "south": f"IMG{mixed:05d}"}
        return forms[self.hospital]

    @property
    def accession(self) -> str:
        """AccessionNumber of the images."""
        return f"{self.hospital[0].upper()}{self.admitted:%y}{self.number:06d}"


@dataclass(frozen=True)
class Seen:
    """What a patient's images turned out to hold. `labels`: SOPInstanceUID -> the five kinds of bleeding, by slice."""

    truth: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def admitted(rng: np.random.Generator) -> datetime:
    """Some minute of 2023 or 2024, local time."""
    return datetime(2023, 1, 1) + timedelta(minutes=int(rng.integers(2 * 365 * 24 * 60)))  # noqa: DTZ001


def forgetful(case: Case, unknown: Mapping[str, float]) -> Case:
    """The case with some values not recorded. `unknown`: share of patients, per variable."""
    rng = case.rng(90)
    lost = {name: None for name, share in unknown.items() if rng.random() < share}
    return replace(case, values={**case.values, **lost})


def spoken(word: str) -> str:
    """A sentence that begins with a large letter."""
    return word[:1].upper() + word[1:]
