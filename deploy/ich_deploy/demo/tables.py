"""Generates the demo's patients from a known risk, and writes them as the tables of three registries that agree on nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from ich_deploy.demo.rows import Row, comma, csv_bytes, otherwise, workbook
from ich_models.errors import ConfigurationError, Problem
from ich_models.files import write_atomic

SEED: Final = 42
STUDY: Final = ("federation.yaml", "hospitals/north.yaml", "hospitals/east.yaml", "hospitals/south.yaml")
"""The configuration files of the demo, as they lie in this package and in the generated folder."""


# --- who the patients are ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """How one hospital's patients differ from the next one's."""

    patients: int
    shift: float
    """Added to every patient's log-odds of a poor outcome: care, transport and referral, which no column records."""
    age: float
    """Mean age in years."""
    unknown: Mapping[str, float]
    """Share of patients whose value was not recorded, per field of Patient."""


POPULATIONS: Final = {
    "north": Population(240, 0.0, 67, {"gcs": 0.04, "glucose": 0.08, "onset_minutes": 0.12, "mrs": 0.03}),
    "east": Population(
        300, 0.5, 70, {"gcs": 0.10, "glucose": 0.15, "systolic": 0.03, "anticoagulant": 0.05, "mrs": 0.06}
    ),
    "south": Population(180, -0.4, 64, {"gcs": 0.05, "volume": 0.06, "onset_minutes": 0.08, "mrs": 0.04}),
}


@dataclass(frozen=True)
class Patient:
    """One patient with an intracerebral haemorrhage; None is a value that the hospital does not know."""

    age: int
    female: bool
    location: str
    """lobar, deep, cerebellar or brainstem."""
    volume: float | None
    """Of the haematoma, in mL."""
    ivh: bool
    """Whether blood has reached the ventricles."""
    gcs: int | None
    systolic: int | None
    """In mmHg."""
    glucose: int | None
    """In mg/dL."""
    anticoagulant: str | None
    """none, vka or doac."""
    admitted: datetime
    onset_minutes: int | None
    """From the first symptoms to the CT."""
    mrs: int | None
    """Modified Rankin scale at 90 days: 0 no symptoms, 6 dead."""
    stay: int
    """Days in hospital."""
    logit: float
    """The true log-odds of a poor outcome (mRS 3-6). It is written to no table."""


def generate(seed: int = SEED) -> dict[str, list[Patient]]:
    """Every hospital's patients; a hospital's own depend on the seed and its name's place alone."""
    cohorts = {}
    for index, (name, population) in enumerate(POPULATIONS.items()):
        rng = np.random.default_rng([seed, index])
        whole = [_patient(rng, population) for _ in range(population.patients)]
        cohorts[name] = [_recorded(rng, patient, population.unknown) for patient in whole]
    return cohorts


def _patient(rng: np.random.Generator, population: Population) -> Patient:
    """Draw one patient, causes before effects: place and size of the bleeding, then the patient's state, then the outcome."""
    age = int(np.clip(rng.normal(population.age, 12), 20, 98))
    location = str(rng.choice(["lobar", "deep", "cerebellar", "brainstem"], p=[0.34, 0.50, 0.09, 0.07]))
    below = location in ("cerebellar", "brainstem")  # infratentorial: little blood does much harm
    log_volume = rng.normal(math.log(9), 0.5) if below else rng.normal(math.log(22), 0.8)
    size = (log_volume - math.log(22)) / 0.8
    ivh = bool(rng.random() < _sigmoid(-0.7 + 0.4 * size + 0.8 * (location == "deep")))
    gcs = int(np.clip(round(13 - 0.8 * size - 0.8 * ivh - 0.6 * below + rng.normal(0, 2.3)), 3, 15))
    anticoagulated = rng.random() < _sigmoid(-1.6 + 0.5 * (age - 67) / 12)
    glucose = int(np.clip(math.exp(rng.normal(math.log(140), 0.28)), 60, 480))
    logit = population.shift + 0.7 + 1.6 * (size + 0.9 * below) + 0.6 * (age - 67) / 12 - 0.6 * (gcs - 11) / 3
    logit += 0.5 * (ivh - 0.4) + 0.4 * (below - 0.16) + 0.5 * (anticoagulated - 0.18) + 0.2 * (glucose - 145) / 40
    # Logistic noise on the logit and a cut at 0 make P(mRS >= 3) exactly sigmoid(logit); more cuts give the other grades.
    severity = logit + rng.logistic()
    mrs = int(np.searchsorted([-3.0, -1.4, 0.0, 0.6, 1.3, 1.9], severity))
    stay = rng.exponential(5) if mrs == 6 else rng.lognormal(math.log(5 + 3.5 * mrs), 0.4)
    return Patient(
        age=age,
        female=bool(rng.random() < 0.45),
        location=location,
        volume=round(float(np.clip(math.exp(log_volume), 0.5, 180)), 1),
        ivh=ivh,
        gcs=gcs,
        systolic=int(np.clip(rng.normal(172, 28), 80, 280)),
        glucose=glucose,
        anticoagulant=str(rng.choice(["vka", "doac"])) if anticoagulated else "none",
        admitted=datetime(2023, 1, 1) + timedelta(minutes=int(rng.integers(2 * 365 * 24 * 60))),  # noqa: DTZ001 - local time
        onset_minutes=int(np.clip(math.exp(rng.normal(math.log(180), 0.8)), 20, 47 * 60)),
        mrs=mrs,
        stay=max(1, round(stay)),
        logit=logit,
    )


def _recorded(rng: np.random.Generator, patient: Patient, unknown: Mapping[str, float]) -> Patient:
    """The patient as the hospital knows them."""
    lost = [field for field, share in unknown.items() if rng.random() < share]
    nothing: dict[str, Any] = dict.fromkeys(lost)
    return replace(patient, **nothing)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- how each registry writes them down -------------------------------------------------------------------------------


def _north(number: int, patient: Patient) -> Row:
    """English names, 1 and 0, places by number, minutes; what is unknown is left empty."""
    return {
        "study_id": f"N{number:04d}",
        "age_years": patient.age,
        "gender": "F" if patient.female else "M",
        "gcs_total": patient.gcs,
        "ich_vol_ml": patient.volume,
        "ivh": int(patient.ivh),
        "ich_site": 1 + ("lobar", "deep", "cerebellar", "brainstem").index(patient.location),
        "onset_ct_min": patient.onset_minutes,
        "sbp": patient.systolic,
        "glucose_mgdl": patient.glucose,
        "on_anticoagulant": int(patient.anticoagulant != "none"),
        "los_days": patient.stay,
        "mrs_3m": patient.mrs,
    }


def _east(number: int, patient: Patient) -> Row:
    """German names and words, J and N, cm3, hours; what is unknown is 99, 9, 0 or 'k.A.' (keine Angabe)."""
    nucleus = "Thalamus" if number % 3 == 0 else "Stammganglien"
    site = {"lobar": "Lobär", "deep": nucleus, "cerebellar": "Kleinhirn", "brainstem": "Hirnstamm"}[patient.location]
    return {
        "Fallnummer": 700_000 + number,
        "Aufnahme": patient.admitted,
        "Alter": patient.age,
        "Geschlecht": "w" if patient.female else "m",
        "GCS_Aufn": otherwise(patient.gcs, 99),
        "Vol_cm3": patient.volume,
        "IVB": "J" if patient.ivh else "N",
        "Lokalisation": site,
        "Beginn_bis_CT_h": None if patient.onset_minutes is None else round(patient.onset_minutes / 60, 2),
        "RR_syst": otherwise(patient.systolic, 0),
        "BZ": otherwise(patient.glucose, "k.A."),
        "Antikoagulation": {None: "k.A.", "none": "N"}.get(patient.anticoagulant, "J"),
        "Liegedauer_d": patient.stay,
        "mRS_90": otherwise(patient.mrs, 9),
    }


def _south(number: int, patient: Patient) -> Row:
    """Italian names, small letters, decimal commas, dates in place of age and delay, g/L, one column per drug."""
    day = patient.admitted
    birthday = date(day.year - patient.age, day.month, min(day.day, 28))  # the last one, or a few days before it
    onset = None if patient.onset_minutes is None else day - timedelta(minutes=patient.onset_minutes)
    site = {"lobar": "lobare", "deep": "profonda", "cerebellar": "cerebellare", "brainstem": "tronco"}
    return {
        "id_paziente": f"s-{number:03d}",
        "nascita": f"{birthday - timedelta(days=number * 37 % 330):%d.%m.%Y}",
        "ricovero": f"{day:%d.%m.%Y}",
        "esordio": "non noto" if onset is None else f"{onset:%d.%m.%Y %H:%M}",
        "ora_tc": f"{day:%d.%m.%Y %H:%M}",
        "sesso": "f" if patient.female else "m",
        "gcs": otherwise(patient.gcs, "t"),
        "volume": None if patient.volume is None else comma(patient.volume),
        "ventricoli": "sì" if patient.ivh else "no",
        "sede": site[patient.location],
        "pas": patient.systolic,
        "glicemia": None if patient.glucose is None else comma(patient.glucose / 100),
        "vka": "sì" if patient.anticoagulant == "vka" else "no",
        "doac": "sì" if patient.anticoagulant == "doac" else "no",
        "degenza": patient.stay,
        "rankin_90": otherwise(patient.mrs, "perso"),
    }


TABLES: Final[Mapping[str, tuple[str, Callable[[int, Patient], Row], Callable[[Sequence[Row]], bytes]]]] = {
    "north": ("north.csv", _north, csv_bytes),
    "east": ("east.xlsx", _east, workbook),
    "south": ("south.csv", _south, lambda rows: csv_bytes(rows, ";", "latin-1")),
}
"""Per hospital: the name of its table, a patient's row in it, and the bytes of the rows."""


def write(folder: Path, seed: int = SEED) -> dict[str, list[Patient]]:
    """Write the study and its tables to `folder`, the same bytes for the same seed, and return who is in them.

    Raises ConfigurationError, before anything is written, if a file is there already with other content.
    """
    cohorts = generate(seed)
    content = {folder / name: files(__package__).joinpath("study", name).read_bytes() for name in STUDY}
    for name, (table, row, encode) in TABLES.items():
        content[folder / "data" / table] = encode(
            [row(at, patient) for at, patient in enumerate(cohorts[name], start=1)]
        )
    other = [path for path, data in content.items() if path.exists() and path.read_bytes() != data]
    if other:
        hint = "name another folder, or delete this file"
        raise ConfigurationError(Problem("is there already, with other content", str(path), hint) for path in other)
    for path, data in content.items():
        write_atomic(path, data)
    return cohorts
