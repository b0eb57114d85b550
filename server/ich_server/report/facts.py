"""What the page says of the run in a few lines: privacy, limits, software and hashes."""

from typing import Any, Final

from ich_server.report.parts import Cell, Row, Table
from ich_server.results import Results
from ich_server.summary import FEW_HOSPITALS, by_type, main_arm, many, natural, with_few

NOT_KEPT: Final = "not kept by the version that ran the study"


def privacy(results: Results) -> list[str]:
    """What left the hospitals, as far as the federation file says."""
    settings = results.study.settings
    said = [
        "Patients, images and texts stayed at the hospitals; what left them went through one gate with a closed list of fields"
        " (docs/egress.md), and in a deployment each hospital keeps a record of every reply (ich-client audit)."
    ]
    if not settings:
        return [*said, f"Small cells and differential privacy: {NOT_KEPT}."]
    k = settings.get("evaluation", {}).get("small_cells", 0)
    said.append(
        f"Counts from 1 to {k - 1} did not leave, nor what they could be computed from; a hospital may ask for a larger k."
        if k
        else "Small cells were not withheld (k = 0): for simulations on public data alone."
    )
    terms: dict[str, Any] = settings.get("privacy") or {}
    named = ", ".join(f"{name} {value}" for name, value in terms.items() if isinstance(value, int | float | str))
    said.append(f"Differential privacy: {named}." if named else "No differential privacy.")
    return said


def limits(results: Results) -> list[str]:
    """What nobody should overlook, as far as the run itself knows it."""
    said = [
        "Nobody has tested the model on patients of other times, countries or scanners than those of the study.",
        "The hospitals’ data stayed where they are: what their tables and images mean was checked by rules, not looked at.",
    ]
    main = main_arm(results)
    if main is None:
        return [*said, "No hospital was evaluated: nothing is known of how good the model is."]
    arm = results.arms[main]
    if main == "loho":
        said.append(
            "Leave-one-hospital-out figures are of models that each lacked one hospital; the model of all hospitals learnt from"
            " every one of them, and these figures stand in for its own at a further hospital."
        )
    if len(arm.hospitals) < FEW_HOSPITALS:
        said.append(f"{many(len(arm.hospitals), 'hospital')} say little about the next one.")
    if not by_type(arm) and (few := with_few(arm)):
        said.append(f"{many(len(few), 'hospital')} with so few events or non-events that calibration there is a guess.")
    if len(results.seeds) == 1:
        said.append("One seed: how much the figures vary with chance in training is not known.")
    silent = sorted(results.hospitals.keys() - arm.hospitals.keys(), key=natural)
    if silent:
        said.append(f"Without figures, because no evaluation came back: {', '.join(silent)}.")
    return said


def software(results: Results) -> Table:
    """Versions, and the hashes by which study and models can be told."""
    rows = [Row(name, (Cell(said),)) for name, said in results.software.items()]
    rows.append(Row("Federation file, SHA-256", (Cell(results.study.federation),)))
    rows += [
        Row(f"Model of all hospitals, seed {seed}, SHA-256", (Cell(said),)) for seed, said in results.models.items()
    ]
    if not results.software:
        rows.insert(0, Row("Versions", (Cell(NOT_KEPT),)))
    return Table("Software and hashes", ("What", "Version or hash"), tuple(rows))
