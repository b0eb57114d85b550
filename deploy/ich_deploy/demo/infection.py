"""Patients with a painful hip or knee replacement: is it infected? Laboratory values tell some of it, two radiographs more."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ich_deploy.demo.case import HOSPITALS, SHIFT, Case, admitted, forgetful, sigmoid
from ich_deploy.demo.rows import Row, comma, otherwise

PATIENTS: Final = {"north": 150, "east": 180, "south": 120}
CONDITIONS: Final[Mapping[str, tuple[float, float]]] = {
    "hypertension": (0.55, 0.0),
    "diabetes": (0.22, 0.5),
    "rheumatoid_arthritis": (0.08, 0.5),
    "anaemia": (0.20, 0.3),
    "osteoporosis": (0.20, 0.0),
    "stroke": (0.08, 0.0),
    "low_albumin": (0.15, 0.6),
    "hypothyroidism": (0.07, 0.0),
    "liver_disease": (0.06, 0.3),
}
"""Variable -> share of patients who have it, and what it adds to the log-odds of an infection."""
UNKNOWN: Final[Mapping[str, Mapping[str, float]]] = {
    "north": {"esr": 0.08, "infection": 0.01},
    "east": {"esr": 0.12, "low_albumin": 0.10},
    "south": {"crp": 0.03, "esr": 0.05},
}
WITHOUT_IMAGES: Final = 2


def draw(seed: int, hospital: str, number: int) -> Case:
    """One patient: what is around the implant, the laboratory, then whether the operation finds an infection."""
    seeds = (seed, 4, HOSPITALS.index(hospital), number)
    rng = np.random.default_rng(seeds)
    lysis, effusion = float(rng.normal()), float(rng.normal())  # only the radiographs show them
    crp_z, esr_z = rng.normal(0, 1, 2)
    has = {name: bool(rng.random() < share) for name, (share, _) in CONDITIONS.items()}
    logit = SHIFT[hospital] - 0.1 + 1.0 * crp_z + 0.6 * esr_z + 1.0 * lysis + 1.8 * effusion
    logit += sum(weight * (has[name] - share) for name, (share, weight) in CONDITIONS.items())
    values = {
        "crp": round(math.exp(math.log(14) + 1.1 * crp_z), 1),
        "esr": int(np.clip(math.exp(math.log(30) + 0.7 * esr_z), 1, 140)),
        "joint": "hip" if rng.random() < 0.55 else "knee",
        "side": "left" if rng.random() < 0.5 else "right",
        "sex": "female" if rng.random() < 0.56 else "male",
        "age": int(np.clip(round(rng.normal(68, 10)), 35, 95)),
        **{name: "yes" if there else "no" for name, there in has.items()},
        "infection": "yes" if rng.random() < sigmoid(logit) else "no",
    }
    values["crp"] = float(np.clip(values["crp"], 0.1, 400))
    truth = {"logit": logit, "lysis": lysis, "effusion": effusion}
    case = Case(
        hospital, number, seeds, admitted(rng), values, truth, (), _report(values), scanned=number != WITHOUT_IMAGES
    )
    return forgetful(case, UNKNOWN[hospital])


def _report(values: Mapping[str, object]) -> str:
    return f"{values['side']} {values['joint']} replacement, two views. Please compare with earlier films.".capitalize()


def north(case: Case) -> Row:
    """English names, 1 and 0, mg/L."""
    v: Mapping[str, Any] = case.values
    flags = {name: _flag(v[name]) for name in CONDITIONS}
    return {
        "study_id": case.patient,
        "age_years": v["age"],
        "gender": {"female": "F", "male": "M"}[v["sex"]],
        "crp_mgl": v["crp"],
        "esr": v["esr"],
        "joint": v["joint"],
        "side": {"left": "L", "right": "R"}[v["side"]],
        **flags,
        "pji": _flag(v["infection"]),
    }


_GERMAN: Final = (
    "Hypertonie",
    "Diabetes",
    "RA",
    "Anaemie",
    "Osteoporose",
    "Schlaganfall",
    "Hypalbuminaemie",
    "Hypothyreose",
    "Leberkrankheit",
)


def east(case: Case) -> Row:
    """German names, J and N, mg/dL."""
    v: Mapping[str, Any] = case.values
    words = {"yes": "J", "no": "N", None: "k.A."}
    return {
        "Fallnummer": int(case.patient),
        "Auftragsnummer": case.accession,
        "Alter": v["age"],
        "Geschlecht": {"female": "w", "male": "m"}[v["sex"]],
        "CRP_mgdl": round(v["crp"] / 10, 2),
        "BSG": otherwise(v["esr"], "k.A."),
        "Gelenk": {"hip": "Hüfte", "knee": "Knie"}[v["joint"]],
        "Seite": {"left": "li", "right": "re"}[v["side"]],
        **{title: words[v[name]] for title, name in zip(_GERMAN, CONDITIONS, strict=True)},
        "Infekt": words[v["infection"]],
    }


_ITALIAN: Final = (
    "ipertensione",
    "diabete",
    "artrite",
    "anemia",
    "osteoporosi",
    "ictus",
    "ipoalbuminemia",
    "ipotiroidismo",
    "epatopatia",
)


def south(case: Case) -> Row:
    """Italian names, decimal commas."""
    v: Mapping[str, Any] = case.values
    words = {"yes": "sì", "no": "no", None: ""}
    return {
        "id_paziente": case.patient,
        "eta": v["age"],
        "sesso": "f" if v["sex"] == "female" else "m",
        "pcr": None if v["crp"] is None else comma(v["crp"]),
        "ves": v["esr"],
        "articolazione": {"hip": "anca", "knee": "ginocchio"}[v["joint"]],
        "lato": {"left": "sinistra", "right": "destra"}[v["side"]],
        **{title: words[v[name]] for title, name in zip(_ITALIAN, CONDITIONS, strict=True)},
        "infezione": words[v["infection"]],
    }


def _flag(value: str | None) -> int | None:
    return None if value is None else int(value == "yes")


ROWS: Final = {"north": north, "east": east, "south": south}
