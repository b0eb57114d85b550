"""Slices whose label the model confidently contradicts, in a file that stays at the hospital: labels worth a second look."""

import csv
import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ich_client.tables import Hospital
from ich_models.files import write_atomic
from ich_models.image_spec import HAEMORRHAGES

SURE: Final = 0.9
"""Probability of the other answer from which on the model is confident."""


def write(hospital: Hospital, rows: NDArray[np.int64], probabilities: NDArray[np.floating], path: Path) -> int:
    """Write patient, slice (SOPInstanceUIDs, and its place from 1), type, label and probability; the surest first.

    `rows`: the patients' numbers, `probabilities` (N, S, 5) of models that have not learnt from them. How many were found.
    """
    patients = hospital.patients.take(rows)
    assert patients.targets is not None, "a study of slices"
    wrong = np.where(patients.targets == 1, 1 - probabilities, np.where(patients.targets == 0, probabilities, 0))
    found = np.argwhere(wrong >= SURE)
    order = np.argsort(-wrong[tuple(found.T)], kind="stable")
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("patient", "instance", "slice", "type", "label", "probability"))
    for place, index, kind in found[order].tolist():
        patient = patients.ids[place]
        names = hospital.instances.get(patient, ())
        instance = " ".join(names[index]) if index < len(names) else ""
        label, probability = int(patients.targets[place, index, kind]), f"{probabilities[place, index, kind]:.3f}"
        table.writerow((patient, instance, index + 1, HAEMORRHAGES[kind], label, probability))
    write_atomic(path, lines.getvalue().encode())
    return len(found)
