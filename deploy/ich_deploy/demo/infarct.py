"""Patients with an ischaemic stroke: MR of three sequences, a table and a report; the size of the core decides most."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ich_deploy.demo.anatomy import TERRITORIES, Lesion, midline_shift
from ich_deploy.demo.case import AGE, HOSPITALS, SHIFT, Case, admitted, forgetful
from ich_deploy.demo.rows import Row, comma, otherwise

PATIENTS: Final = {"north": 110, "east": 130, "south": 90}
SHARES: Final = (0.62, 0.10, 0.15, 0.13)
"""Of TERRITORIES."""
UNKNOWN: Final[Mapping[str, Mapping[str, float]]] = {
    "north": {"glucose": 0.06, "nihss": 0.02},
    "east": {"systolic": 0.05, "nihss": 0.03},
    "south": {"glucose": 0.10, "onset_to_mr": 0.06},
}
WITHOUT_IMAGES: Final = 2
WITHOUT_ADC: Final = {"south": 9}
"""Every ninth patient of south has no ADC map."""


def draw(seed: int, hospital: str, number: int) -> Case:
    """One patient: the core, then what the table knows, then the NIHSS at discharge."""
    seeds = (seed, 3, HOSPITALS.index(hospital), number)
    rng = np.random.default_rng(seeds)
    age = int(np.clip(round(rng.normal(AGE[hospital] + 2, 12)), 25, 96))
    territory, side = str(rng.choice(list(TERRITORIES), p=SHARES)), int(rng.choice((-1, 1)))
    usual, most = (30, 160) if territory.startswith("middle") else (12, 45)
    core = float(np.clip(math.exp(rng.normal(math.log(usual), 0.9)), 1.0, most))
    size = math.log(core / 20) / 0.9
    glucose = int(np.clip(math.exp(rng.normal(math.log(130), 0.3)), 60, 450))
    fibrillation = bool(rng.random() < 0.25 + 0.1 * (age > 75))
    systolic = int(np.clip(rng.normal(158, 25), 85, 260))
    hours = float(np.clip(math.exp(rng.normal(math.log(5), 0.7)), 0.5, 47))
    logit = SHIFT[hospital] + 0.9 + 1.8 * size + 0.6 * (age - 69) / 12 + 0.4 * (glucose - 136) / 40
    logit += 0.4 * (fibrillation - 0.3) + 0.3 * (systolic - 158) / 25
    # Poor is an NIHSS of 7 and more: logistic noise and a cut at 0 make its probability exactly the risk.
    severity = logit + rng.logistic()
    nihss = int(np.clip(7 + math.floor((2.4 if severity >= 0 else 1.6) * severity), 0, 42))
    values = {
        "age": age,
        "sex": "female" if rng.random() < 0.44 else "male",
        "systolic": systolic,
        "glucose": glucose,
        "fibrillation": "yes" if fibrillation else "no",
        "onset_to_mr": hours,
        "nihss": nihss,
    }
    swelling = float(rng.uniform(0.1, 0.5))
    lesion = Lesion("infarct", core, territory, side, swelling)
    truth: dict[str, float | str] = {
        "logit": logit,
        "place": territory,
        "side": "right" if side > 0 else "left",
        "volume_ml": core,
    }
    case = Case(
        hospital,
        number,
        seeds,
        admitted(rng),
        values,
        {**truth, "oedema_ratio": swelling},
        (lesion,),
        _report(hospital, lesion, rng),
        scanned=number != WITHOUT_IMAGES,
    )
    return forgetful(case, UNKNOWN[hospital])


_REGIONS: Final = dict(
    zip(TERRITORIES, ("middle cerebral territory", "medial frontal lobe", "occipital lobe", "cerebellum"), strict=True)
)
"""What reports call them."""


def _report(hospital: str, lesion: Lesion, rng: np.random.Generator) -> str:
    """Half in sections, as radiologists dictate, and in each hospital's manner. Sizes are words, and people differ in them."""
    words = ("small", "moderate", "large", "very large")
    size = words[int(np.searchsorted((12, 40, 90), lesion.millilitres * math.exp(rng.normal(0, 0.35))))]
    shift = midline_shift((lesion,))
    mass = "absent" if shift < 3 else "mild" if shift < 7 else "severe"
    where = f"{'right' if lesion.side > 0 else 'left'} {_REGIONS[lesion.place]}"
    forms = {
        "north": f"Acute infarct of the {where}. Infarct core: {size}. Mass effect: {mass}.",
        "east": f"Restricted diffusion, {where}. Size: {size}. Midline shift: {mass}.",
        "south": f"{where}: {size} acute infarct, mass effect {mass}.",
    }
    return forms[hospital]


def north(case: Case) -> Row:
    """English names, 1 and 0, mg/dL."""
    v: Mapping[str, Any] = case.values
    return {
        "study_id": case.patient,
        "age_years": v["age"],
        "gender": {"female": "F", "male": "M"}[v["sex"]],
        "sbp": v["systolic"],
        "glucose_mgdl": v["glucose"],
        "afib": int(v["fibrillation"] == "yes"),
        "onset_mri_min": None if v["onset_to_mr"] is None else round(v["onset_to_mr"] * 60),
        "nihss_discharge": v["nihss"],
    }


def east(case: Case) -> Row:
    """German names, J and N; the report stands in the table."""
    v: Mapping[str, Any] = case.values
    return {
        "Fallnummer": int(case.patient),
        "Auftragsnummer": case.accession,
        "Alter": v["age"],
        "Geschlecht": {"female": "w", "male": "m"}[v["sex"]],
        "RR_syst": otherwise(v["systolic"], 0),
        "BZ": otherwise(v["glucose"], "k.A."),
        "VHF": "J" if v["fibrillation"] == "yes" else "N",
        "Beginn_bis_MR_h": None if v["onset_to_mr"] is None else round(v["onset_to_mr"], 2),
        "NIHSS_Entl": otherwise(v["nihss"], 99),
        "Befund": case.report,
    }


def south(case: Case) -> Row:
    """Italian names, decimal commas, g/L."""
    v: Mapping[str, Any] = case.values
    return {
        "id_paziente": case.patient,
        "eta": v["age"],
        "sesso": "f" if v["sex"] == "female" else "m",
        "pas": v["systolic"],
        "glicemia": None if v["glucose"] is None else comma(v["glucose"] / 100),
        "fa": "sì" if v["fibrillation"] == "yes" else "no",
        "ore_rm": None if v["onset_to_mr"] is None else comma(round(v["onset_to_mr"], 2)),
        "nihss_dim": v["nihss"],
    }


ROWS: Final = {"north": north, "east": east, "south": south}
