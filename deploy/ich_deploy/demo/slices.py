"""Patients after a fall or with a sudden headache: none, one or several of five kinds of bleeding, labelled slice by slice."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ich_deploy.demo.anatomy import BLOOD, PLACES, Lesion
from ich_deploy.demo.bleeding import SHARES
from ich_deploy.demo.case import AGE, HOSPITALS, Case, admitted, forgetful
from ich_deploy.demo.rows import Row

PATIENTS: Final = {"north": 50, "east": 60, "south": 40}
CHANCES: Final = (0.45, 0.35, 0.30, 0.30, 0.25)
"""Of each kind of BLOOD."""
AMOUNTS: Final = ((5, 60), (3, 20), (6, 25), (25, 90), (12, 60))
"""mL, least and most."""
HEALTHY: Final = 0.15
"""Share of patients without any bleeding, whatever CHANCES say."""
VISIBLE: Final = 60.0
"""mm2 of a slice: less is not labelled."""
UNLABELLED: Final = {"north": 0.0, "east": 0.0, "south": 0.15}
"""Share of slices that nobody has looked at."""
WITHOUT_IMAGES: Final = 2


def draw(seed: int, hospital: str, number: int) -> Case:
    """One patient with each kind of bleeding by its own chance."""
    seeds = (seed, 2, HOSPITALS.index(hospital), number)
    rng = np.random.default_rng(seeds)
    age = int(np.clip(round(rng.normal(AGE[hospital] - 8, 16)), 18, 96))
    has = (rng.random(5) < CHANCES) & (rng.random() >= HEALTHY)
    amounts = [float(rng.uniform(*between)) for between in AMOUNTS]
    place, side = str(rng.choice(list(PLACES), p=SHARES)), int(rng.choice((-1, 1)))
    if place in ("cerebellum", "brainstem"):
        amounts[0] = min(amounts[0], 15.0)
    fell = bool(rng.random() < (0.75 if has[3] or has[4] else 0.3))
    lesions = tuple(
        Lesion(kind, amount, place if kind == BLOOD[0] else "", side, 0.5 if kind == BLOOD[0] else 0.0)
        for kind, amount, there in zip(BLOOD, amounts, has, strict=True)
        if there
    )
    values = {
        "age": age,
        "sex": "female" if rng.random() < 0.42 else "male",
        "fall": "yes" if fell else "no",
        "bleeding": "yes" if has.any() else "no",
    }
    truth = {kind: float(there) for kind, there in zip(BLOOD, has, strict=True)}
    report = _report(tuple(lesion.kind for lesion in lesions), place, side, fell)
    truth["blood_hu"] = float(rng.normal(0, 3))
    case = Case(
        hospital, number, seeds, admitted(rng), values, truth, lesions, report, scanned=number != WITHOUT_IMAGES
    )
    return forgetful(case, {"fall": 0.05})


def _report(kinds: tuple[str, ...], place: str, side: int, fell: bool) -> str:
    words = [f"{kind} ({place})" if kind == BLOOD[0] else kind for kind in kinds]
    found = f"Haemorrhage: {', '.join(words)}." if words else "No haemorrhage."
    where = f" More on the {'right' if side > 0 else 'left'}." if kinds and place != "brainstem" else ""
    return f"CT head without contrast{' after a fall' if fell else ''}. {found}{where}"


def north(case: Case) -> Row:
    """English names, 1 and 0."""
    v: Mapping[str, Any] = case.values
    fall = None if v["fall"] is None else int(v["fall"] == "yes")
    return {
        "study_id": case.patient,
        "age_years": v["age"],
        "gender": {"female": "F", "male": "M"}[v["sex"]],
        "fall": fall,
        "any_ich": int(v["bleeding"] == "yes"),
    }


def east(case: Case) -> Row:
    """German names, J and N."""
    v: Mapping[str, Any] = case.values
    return {
        "Fallnummer": int(case.patient),
        "Auftragsnummer": case.accession,
        "Alter": v["age"],
        "Geschlecht": {"female": "w", "male": "m"}[v["sex"]],
        "Sturz": {"yes": "J", "no": "N", None: "k.A."}[v["fall"]],
        "Blutung": "J" if v["bleeding"] == "yes" else "N",
    }


def south(case: Case) -> Row:
    """Italian names and words."""
    v: Mapping[str, Any] = case.values
    return {
        "id_paziente": case.patient,
        "eta": v["age"],
        "sesso": "f" if v["sex"] == "female" else "m",
        "caduta": {"yes": "sì", "no": "no", None: ""}[v["fall"]],
        "emorragia": "sì" if v["bleeding"] == "yes" else "no",
    }


ROWS: Final = {"north": north, "east": east, "south": south}
