"""What the page says of the run in a few lines: privacy, limits, software and hashes."""

from typing import Any, Final

from ich_server.report.parts import Cell, Row, Table
from ich_server.results import Arm, Results
from ich_server.summary import FEW_HOSPITALS, REFERENCES, by_type, estimate, main_arm, many, natural, pooled, with_few

NOT_KEPT: Final = "not kept by the version that ran the study"


def privacy(results: Results) -> list[str]:
    """What is told of the hospitals' patients, as far as the federation file says."""
    settings = results.study.settings
    said = [
        "What a hospital tells goes through one gate with a closed list of fields (docs/egress.md): no patient, image or text is"
        " among them. In a deployment each hospital keeps a record of every reply (ich-client audit)."
    ]
    if simulated(results):
        said.append(
            "This was a simulation: all patients were on one machine. What is marked as simulation only was computed of them in one"
            " place, and is told under the same rule of small cells."
        )
    if not settings:
        return [*said, f"Small cells and differential privacy: {NOT_KEPT}."]
    terms: dict[str, Any] = settings.get("privacy") or {}
    said += _small_cells(
        settings.get("evaluation", {}).get("small_cells", 0),
        exact=terms.get("metrics", "exact") == "exact",
        together=simulated(results),
    )
    named = ", ".join(f"{name} {value}" for name, value in terms.items() if isinstance(value, int | float | str))
    said.append(f"Differential privacy: {named}." if named else "No differential privacy.")
    return said


def _small_cells(k: int, *, exact: bool, together: bool) -> list[str]:
    """`exact`: whether figures leave without noise; `together`: whether there are figures of all test patients."""
    if k <= 1:
        return ["Small cells were not withheld (k = 0): for simulations on public data alone."]
    said = [
        f"Counts from 1 to {k - 1} were not told, nor what they could be computed from; a hospital may ask for a larger k."
    ]
    if exact:
        said.append(
            "One thing is told however few it is of: how many the model’s one threshold calls rightly and wrongly. Accuracy, recall,"
            " precision, specificity, NPV, F1 and F2 are exact, and with the numbers of patients and events give these four counts."
        )
    if together:
        said.append(
            "Figures of all test patients together are of the hospitals that tell theirs: nothing withheld is left of a sum."
        )
    return said


def simulated(results: Results) -> bool:
    """Whether the figures show that all patients were in one place, which no deployment's can be."""
    return any(arm.pooled is not None or name not in REFERENCES for name, arm in results.arms.items())


def limits(results: Results) -> list[str]:
    """What nobody should overlook, as far as the run itself knows it."""
    said = [
        "Nobody has tested the model on patients of other times, countries or scanners than those of the study.",
        "What the hospitals’ tables and images mean was checked by rules; the study’s makers did not look at them.",
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


def miscalibration(arm: Arm) -> list[str]:
    """That predictions are wrong in one direction, where the interval of the mean O/E ratio or calibration slope leaves out 1."""
    said = []
    for name, below, above in (
        ("observed_expected", "fewer have the event than predicted", "more have the event than predicted"),
        ("calibration_slope", "predictions are too extreme", "predictions lie too near to the mean"),
    ):
        found = pooled(arm, name).summary
        if found is not None and not found.low <= 1 <= found.high:
            mean = estimate(name, found.estimate, found.low, found.high)
            said.append(
                f"Miscalibrated: the mean {'O/E ratio' if name == 'observed_expected' else 'calibration slope'} over hospitals is"
                f" {mean}, and 1 would be right: {below if found.estimate < 1 else above}."
            )
    return said


def software(results: Results, made_of: str) -> Table:
    """Versions, and the hashes by which study, models and the results that the page is made of can be told."""
    rows = [Row(name, (Cell(said),)) for name, said in results.software.items()]
    rows.append(Row("Federation file, SHA-256", (Cell(results.study.federation),)))
    rows += [
        Row(f"Model of all hospitals, seed {seed}, SHA-256", (Cell(said),)) for seed, said in results.models.items()
    ]
    if made_of:
        rows.append(Row("results.json, SHA-256", (Cell(made_of),)))
    if not results.software:
        rows.insert(0, Row("Versions", (Cell(NOT_KEPT),)))
    return Table("Software and hashes", ("What", "Version or hash"), tuple(rows))
