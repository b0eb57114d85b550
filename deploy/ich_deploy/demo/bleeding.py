"""Patients with an intracerebral haemorrhage: how large it is decides most, and stands in the CT alone."""

import math
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Final

import numpy as np

from ich_deploy.demo.anatomy import INFRATENTORIAL, PLACES, Lesion
from ich_deploy.demo.case import AGE, HOSPITALS, MRS_CUTS, SHIFT, Case, admitted, forgetful, sigmoid
from ich_deploy.demo.rows import Row, otherwise

PATIENTS: Final = {"north": 150, "east": 170, "south": 130}
ALERT: Final = {"north": 11.5, "east": 10.5, "south": 12.0}
"""Mean Glasgow Coma Scale of a usual haemorrhage."""
SHARES: Final = (0.34, 0.18, 0.10, 0.12, 0.09, 0.05, 0.08, 0.04)
"""Of PLACES."""
LOCATIONS: Final[Mapping[str, str]] = {
    "basal ganglia": "deep",
    "thalamus": "deep",
    "frontal lobe": "lobar",
    "parietal lobe": "lobar",
    "temporal lobe": "lobar",
    "occipital lobe": "lobar",
    "cerebellum": "cerebellar",
    "brainstem": "brainstem",
}
UNKNOWN: Final[Mapping[str, Mapping[str, float]]] = {
    "north": {"gcs": 0.04, "onset_to_ct": 0.10, "mrs_90": 0.02},
    "east": {"gcs": 0.06, "onset_to_ct": 0.05, "mrs_90": 0.03},
    "south": {"gcs": 0.05, "onset_to_ct": 0.08, "mrs_90": 0.02},
}
WITHOUT_IMAGES: Final = 2
"""The second patient of each hospital was scanned elsewhere."""


def draw(seed: int, hospital: str, number: int) -> Case:
    """One patient, causes before effects: place and size of the bleeding, then the patient's state, then the outcome."""
    seeds = (seed, 1, HOSPITALS.index(hospital), number)
    rng = np.random.default_rng(seeds)
    age = int(np.clip(round(rng.normal(AGE[hospital], 12)), 25, 96))
    place, side = str(rng.choice(list(PLACES), p=SHARES)), int(rng.choice((-1, 1)))
    below = place in INFRATENTORIAL  # little blood does much harm
    usual, spread, most = (9, 0.5, 25) if below else (22, 0.8, 110)
    volume = float(np.clip(math.exp(rng.normal(math.log(usual), spread)), 1.5, most))
    oedema = float(np.clip(math.exp(rng.normal(math.log(0.6), 0.5)), 0.1, 2.0))
    size, swelling = math.log(volume / 20) / 0.8, math.log(oedema / 0.6) / 0.5
    ivh = bool(rng.random() < sigmoid(-0.7 + 0.4 * size + 0.8 * (place == "thalamus")))
    gcs = round(ALERT[hospital] - 0.8 * size - 0.8 * ivh - 0.6 * below + rng.normal(0, 2.3))
    gcs = int(np.clip(gcs, 3, 15))
    logit = SHIFT[hospital] + 2.6 * (size + 0.9 * below) + 0.8 * swelling + 0.6 * (age - 67) / 12
    logit += -0.4 * (gcs - 11) / 3 + 0.4 * (ivh - 0.4) + 0.4 * (below - 0.12)
    mrs = int(np.searchsorted(MRS_CUTS, logit + rng.logistic(), side="right"))
    minutes = int(np.clip(math.exp(rng.normal(math.log(180), 0.8)), 20, 47 * 60))
    values = {
        "age": age,
        "sex": "female" if rng.random() < 0.42 else "male",
        "gcs": gcs,
        "ivh": "yes" if ivh else "no",
        "location": LOCATIONS[place],
        "infratentorial": "yes" if below else "no",
        "onset_to_ct": minutes / 60,
        "mrs_90": mrs,
    }
    lesions = [Lesion("intraparenchymal", volume, place, side, oedema)]
    if ivh:
        lesions.append(Lesion("intraventricular", float(rng.uniform(2, 12)), side=side))
    truth: dict[str, float | str] = {
        "logit": logit,
        "place": place,
        "side": "right" if side > 0 else "left",
        "volume_ml": volume,
    }
    case = Case(
        hospital,
        number,
        seeds,
        admitted(rng),
        values,
        {**truth, "oedema_ratio": oedema, "blood_hu": float(rng.normal(0, 3))},
        tuple(lesions),
        _report(hospital, place, side, ivh, minutes),
        scanned=number != WITHOUT_IMAGES,
    )
    return forgetful(case, UNKNOWN[hospital])


def _report(hospital: str, place: str, side: int, ivh: bool, minutes: int) -> str:
    """The radiologist's words, in each hospital's manner. They say where the blood is, not how much of it there is."""
    where = place if place == "brainstem" else f"{'right' if side > 0 else 'left'} {place}"
    early = "early" if minutes < 180 else "late" if minutes > 540 else "later the same day"
    forms = {
        "north": (
            f"CT head without contrast, {early} after the first symptoms. Acute intracerebral haemorrhage in the {where}."
            f" {'Blood in the ventricles.' if ivh else 'No blood in the ventricles.'}"
        ),
        "east": (
            f"Findings: hyperdense intraparenchymal bleeding, {where}, with surrounding oedema."
            f" Ventricular blood: {'present' if ivh else 'absent'}. Scan {early}."
        ),
        "south": (
            f"Unenhanced scan of the brain. Haematoma of the {where}."
            f" {'It has broken into the ventricular system.' if ivh else 'Ventricles are free of blood.'}"
        ),
    }
    return forms[hospital]


# --- how each registry writes them down -------------------------------------------------------------------------------


def north(case: Case) -> Row:
    """English names, 1 and 0, places by number, minutes; what is unknown is left empty."""
    v: Mapping[str, Any] = case.values
    return {
        "study_id": case.patient,
        "age_years": v["age"],
        "gender": {"female": "F", "male": "M"}[v["sex"]],
        "gcs_total": v["gcs"],
        "ivh": int(v["ivh"] == "yes"),
        "ich_site": 1 + ("lobar", "deep", "cerebellar", "brainstem").index(v["location"]),
        "onset_ct_min": None if v["onset_to_ct"] is None else round(v["onset_to_ct"] * 60),
        "mrs_3m": v["mrs_90"],
    }


def east(case: Case) -> Row:
    """German names and words, J and N, hours; 99 and 9 are unknown. The images are found by their accession number."""
    v: Mapping[str, Any] = case.values
    site = {"lobar": "Lobär", "deep": "Stammganglien", "cerebellar": "Kleinhirn", "brainstem": "Hirnstamm"}
    return {
        "Fallnummer": int(case.patient),
        "Auftragsnummer": case.accession,
        "Aufnahme": case.admitted,
        "Alter": v["age"],
        "Geschlecht": {"female": "w", "male": "m"}[v["sex"]],
        "GCS_Aufn": otherwise(v["gcs"], 99),
        "IVB": "J" if v["ivh"] == "yes" else "N",
        "Lokalisation": site[v["location"]],
        "Beginn_bis_CT_h": None if v["onset_to_ct"] is None else round(v["onset_to_ct"], 2),
        "mRS_90": otherwise(v["mrs_90"], 9),
        "Befund": case.report,
    }


def south(case: Case) -> Row:
    """Italian names, small letters, dates in place of age and delay."""
    v: Mapping[str, Any] = case.values
    day = case.admitted
    birthday = date(day.year - v["age"], day.month, min(day.day, 28))  # the last one, or a few days before it
    onset = None if v["onset_to_ct"] is None else day - timedelta(minutes=round(v["onset_to_ct"] * 60))
    site = {"lobar": "lobare", "deep": "profonda", "cerebellar": "cerebellare", "brainstem": "tronco"}
    return {
        "id_paziente": case.patient,
        "nascita": f"{birthday - timedelta(days=case.number * 37 % 330):%d.%m.%Y}",
        "ricovero": f"{day:%d.%m.%Y}",
        "esordio": "non noto" if onset is None else f"{onset:%d.%m.%Y %H:%M}",
        "ora_tc": f"{day:%d.%m.%Y %H:%M}",
        "sesso": "f" if v["sex"] == "female" else "m",
        "gcs": otherwise(v["gcs"], "t"),
        "ventricoli": "sì" if v["ivh"] == "yes" else "no",
        "sede": site[v["location"]],
        "rankin_90": otherwise(v["mrs_90"], "perso"),
    }


ROWS: Final = {"north": north, "east": east, "south": south}
