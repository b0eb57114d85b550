"""The report's sections on what the model is worth: calibration, decisions, subgroups, other hospitals' models, drift.

Each has its figure and, beside it, a table of the same numbers. A section without numbers is left out.
"""

from collections.abc import Iterator

from ich_server import group_summaries
from ich_server.group_summaries import LARGE_MATRIX, LEAST_BINS, AcrossSubgroup, Benefit
from ich_server.meta_analysis import Summary
from ich_server.report import evaluation_plots as plots
from ich_server.report.parts import Cell, Picture, Row, Section, Table
from ich_server.results import Arm, Drift, Results
from ich_server.summary import (
    FEW_HOSPITALS,
    NOTHING,
    arm_label,
    estimate,
    in_order,
    interval,
    many,
    natural,
    needs_four,
    number,
    pooled,
    signed,
    some,
    spread,
)


def sections(results: Results, main: str) -> list[Section]:
    """The sections that these results have numbers for; `main`: the arm of the headline."""
    arm = results.arms[main]
    found = (
        _calibration(arm, int(results.study.settings.get("evaluation", {}).get("small_cells", 0))),
        _decisions(results, main),
        _subgroups(arm),
        _differences(results),
        _cross_site(results),
        _recalibration(results),
        _drift(results),
    )
    return [section for each in found for section in each]


# --- calibration ------------------------------------------------------------------------------------------------------


def _calibration(arm: Arm, k: int) -> Iterator[Section]:
    told = sum(bool(found.bins) for found in arm.hospitals.values())
    if not told:
        return
    found = group_summaries.calibration(arm)
    caption = (
        "Circles: groups of a hospital’s patients with about the same predicted probability, larger for more patients. On the dashed"
        " line as many have the event as predicted."
    )
    if found.groups:
        caption += (
            f" Squares: the groups of {many(len(found.joined), 'hospital')} joined, with Wilson’s interval, which knows nothing of"
            " differences between hospitals; they are not joined by a line, since no two are of the same patients of each hospital."
        )
    left_out = (
        f"Not in the joined groups, because under {LEAST_BINS} groups of patients could be told: {some(found.too_few)}."
        if found.too_few
        else ""
    )
    rows = tuple(
        Row(
            number("auroc", one.mean),
            (
                Cell(number("auroc", one.observed), interval("auroc", one.low, one.high)),
                Cell(signed("auroc_difference", one.observed - one.mean)),
                Cell(f"{one.patients:,.0f}"),
            ),
        )
        for one in found.groups
    )
    table = Table(
        f"Calibration of the patients of {many(len(found.joined), 'hospital')}, in groups",
        ("Mean predicted probability", "Share with the event (95 % CI)", "Observed minus predicted", "Patients"),
        rows,
        f"A hospital tells groups of at least {k} patients with the event and {k} without, or none of either."
        if k > 1
        else "",
    )
    title = f"Calibration plot of {many(told, 'hospital')}: share with the event by predicted probability"
    text = f"How far a predicted probability is what happens, in {many(told, 'hospital')}. {_in_words(arm)} {left_out}"
    picture = Picture(plots.calibration(arm, found.groups, title), caption)
    yield Section("calibration", "Calibration", text.strip(), (picture,), (table,) if rows else ())


def _in_words(arm: Arm) -> str:
    said = []
    for name, what in (
        ("observed_expected", "O/E"),
        ("calibration_slope", "slope"),
        ("calibration_intercept", "intercept (in the large)"),
    ):
        summary = pooled(arm, name).summary
        if summary:
            said.append(f"{what} {estimate(name, summary.estimate, summary.low, summary.high)}")
    return f"Random-effects means: {', '.join(said)}." if said else ""


# --- decisions --------------------------------------------------------------------------------------------------------


def _decisions(results: Results, main: str) -> Iterator[Section]:
    own = group_summaries.decisions(results.arms[main])
    if not own:
        return
    curves = {main: own}
    for name in in_order(results):  # only in simulation: the same patients
        if results.arms[name].reference == main and (curve := _of_the_same(results.arms[name], own)):
            curves[name] = curve
    columns = ("Threshold", "Hospitals", "Patients", "Treat everybody", *map(arm_label, curves))
    same = len({one.hospitals for one in own}) == 1
    whose = (
        "Of the same patients at every threshold."
        if same
        else "At each threshold of the hospitals that may tell it, since between it and the next ones k patients with the event must"
        " lie, or none, and the same without. They are others at another threshold: compare within a line, not along the curve."
        f" {NOTHING} : not told by the same hospitals."
    )
    at = {name: {one.threshold: one for one in curve} for name, curve in curves.items()}
    rows = tuple(
        Row(
            f"{one.threshold:g}",
            (
                Cell(str(len(one.hospitals))),
                Cell(f"{one.patients:,}"),
                Cell(number("auroc_difference", one.everybody)),
                *(
                    Cell(number("auroc_difference", there.model if (there := at[name].get(one.threshold)) else None))
                    for name in curves
                ),
            ),
        )
        for one in own
    )
    table = Table(
        "Net benefit by threshold",
        columns,
        rows,
        "Net benefit: true positives less false positives times threshold / (1 − threshold), per patient (Vickers & Elkin 2006);"
        f" treating nobody has 0. {whose}",
    )
    text = (
        "Whether acting on the model does more good than treating everybody or nobody, for somebody to whom missing an event is"
        " as bad as (1 − threshold) / threshold needless treatments."
    )
    whom = "all hospitals together" if same else "at each threshold of the hospitals that tell it"
    title = f"Decision curve of {', '.join(arm_label(name).lower() for name in curves)}, {whom}"
    caption = "A model is worth its height above treating everybody and nobody, at the thresholds that somebody would decide by."
    if not same:
        caption += " Points are not joined, since they are of different hospitals."
    drawn = plots.decisions(curves, title, joined=same)
    yield Section("decisions", "Decision curve", text, (Picture(drawn, caption),), (table,))


def _of_the_same(arm: Arm, own: list[Benefit]) -> list[Benefit]:
    """An arm's curve at the thresholds at which it is told by the same hospitals as the headline's."""
    there = {one.threshold: one.hospitals for one in own}
    return [one for one in group_summaries.decisions(arm) if there.get(one.threshold) == one.hospitals]


# --- subgroups --------------------------------------------------------------------------------------------------------


def _subgroups(arm: Arm) -> Iterator[Section]:
    found = group_summaries.subgroups(arm)
    if not found:
        return
    rows = tuple(_subgroup_row(one) for one in found)
    table = Table(
        "Subgroups across hospitals",
        (
            "Subgroup",
            "Patients",
            "Events",
            "Told by",
            "Withheld by",
            "AUROC (95 % CI)",
            "AUROC, prediction interval",
            "O/E (95 % CI)",
        ),
        rows,
        "Random-effects means over the hospitals with 10 events and 10 non-events in the subgroup. A hospital withholds a subgroup"
        " of fewer than k patients, events or non-events, and another one where the first would follow by subtraction. No"
        " correction for looking at many subgroups.",
    )
    overall = pooled(arm, "auroc").summary
    title = f"AUROC of {many(len(found), 'subgroup')}"
    caption = "Random-effects mean of each subgroup with its 95 % interval, over the hospitals that tell it."
    drawn = plots.subgroups(found, overall.estimate if overall else None, title)
    text = "Whether the model works as well for some patients as for others."
    yield Section("subgroups", "Subgroups", text, (Picture(drawn, caption),), (table,))


def _subgroup_row(one: AcrossSubgroup) -> Row:
    auroc, ratio = one.auroc, one.observed_expected
    return Row(
        f"{one.variable}: {one.level}",
        (
            Cell(f"{one.patients:,}"),
            Cell(f"{one.events:,}"),
            Cell(str(one.hospitals)),
            Cell(str(one.withheld)),
            _mean("auroc", auroc),
            Cell(_prediction("auroc", auroc)),
            _mean("observed_expected", ratio),
        ),
    )


def _mean(name: str, summary: Summary | None) -> Cell:
    if summary is None:
        return Cell(NOTHING)
    return Cell(number(name, summary.estimate), interval(name, summary.low, summary.high))


def _prediction(name: str, summary: Summary | None) -> str:
    if summary is None:
        return NOTHING
    return interval(name, summary.prediction_low, summary.prediction_high) or needs_four(summary)


# --- differences ------------------------------------------------------------------------------------------------------


def _differences(results: Results) -> Iterator[Section]:
    rows = []
    few = False
    for name in in_order(results):
        arm = results.arms[name]
        summary = group_summaries.differences(arm)
        if summary is None or arm.reference is None:
            continue
        few |= summary.k < FEW_HOSPITALS
        rows.append(
            Row(
                arm_label(name),
                (
                    Cell(arm_label(arm.reference)),
                    Cell(str(summary.k)),
                    _mean("auroc_difference", summary),
                    Cell(_prediction("auroc_difference", summary)),
                    Cell(NOTHING if summary.tau is None else f"{summary.tau:.3f}"),
                    Cell(NOTHING if summary.i2 is None else f"{100 * summary.i2:.0f} %"),
                ),
            )
        )
    if not rows:
        return
    warning = f" Under {FEW_HOSPITALS} hospitals the intervals are a rough guess." if few else ""
    table = Table(
        "Differences in AUROC, patient by patient",
        ("Arm", "Minus", "Hospitals", "Mean difference (95 % CI)", "95 % prediction interval", "τ", "I²"),
        tuple(rows),
        "Within each hospital both models score the same patients; DeLong’s variance of the difference knows that their errors go"
        " together. The differences are then pooled by random effects (REML, Hartung–Knapp)." + warning,
    )
    text = "What another way to train, or the table or the ICH score alone, would have said of the very same patients."
    yield Section("differences", "Differences on the same patients", text, (), (table,))


# --- cross-site matrix ------------------------------------------------------------------------------------------------


def _cross_site(results: Results) -> Iterator[Section]:
    found = results.cross_site
    if not found:
        return
    names = sorted(found, key=natural)
    text = (
        "Each hospital’s own model, trained on its patients alone, tested at every other hospital on all its patients, and at its"
        " own on those that it did not learn from: how far one hospital’s patients stand for another’s. Simulation only."
    )
    away = {
        name: [v for other in names if other != name and (v := found[name][other].value) is not None] for name in names
    }
    middles = tuple(
        Row(
            name,
            (
                Cell(number("auroc", found[name][name].value)),
                *(
                    tuple(Cell(number("auroc", v)) for v in (s.median, s.minimum, s.maximum))
                    if (s := spread(away[name]))
                    else (Cell(NOTHING),) * 3
                ),
            ),
        )
        for name in names
    )
    summary = Table(
        "AUROC of each hospital’s own model",
        ("Trained at", "At home", "Elsewhere: median", "Least", "Greatest"),
        middles,
    )
    if len(names) > LARGE_MATRIX:
        title = f"Cross-site matrix: AUROC of {len(names)} local models at {len(names)} hospitals"
        caption = "Row: where the model was trained. Column: where it was tested. The diagonal is at home."
        picture = Picture(plots.matrix(found, names, title), caption)
        yield Section("cross-site", "Cross-site matrix", text, (picture,), (summary,))
        return
    rows = tuple(Row(name, tuple(_auroc(found[name][other].value) for other in names)) for name in names)
    table = Table("AUROC: trained at (row), tested at (column)", ("Trained at", *names), rows, "Darker is higher.")
    yield Section("cross-site", "Cross-site matrix", text, (), (table, summary))


def _auroc(value: float | None) -> Cell:
    return Cell(number("auroc", value), style=plots.shade(value))


# --- training ---------------------------------------------------------------------------------------------------------


def _recalibration(results: Results) -> Iterator[Section]:
    lines = {seed: found.recalibration for seed, found in results.training.items() if found.recalibration}
    if not lines:
        return
    several = len(results.seeds) > 1
    rows = tuple(
        Row(
            f"{fold} (seed {seed})" if several else fold,
            tuple(Cell(number("calibration", value)) for value in line),
        )
        for seed, folds in lines.items()
        for fold, line in folds.items()
    )
    text = (
        "After training each model’s log-odds were given the line that its training hospitals found on their own patients, a mean"
        " weighted by patients; the hospital that a model holds out had no part in it. All figures are of the models after this."
    )
    table = Table("Recalibration of each model", ("Model", "Intercept", "Slope"), rows)
    yield Section("recalibration", "Recalibration", text, (), (table,))


def _drift(results: Results) -> Iterator[Section]:
    rounds: list[Drift] = next((found.drift for found in results.training.values() if found.drift), [])
    if not rounds:
        return
    rows = []
    for place, one in enumerate(rounds, 1):
        found = spread(list(one.updates.values()))
        ends = (found.minimum, found.median, found.maximum) if found else (None,) * 3
        cells = (
            *(Cell(_length(value)) for value in ends),
            Cell(_length(one.step)),
            Cell(number("auroc", one.agreement)),
        )
        rows.append(Row(str(place), cells))
    seed = f", seed {results.seeds[0]}" if len(results.seeds) > 1 else ""
    table = Table(
        "Drift between hospitals by round",
        ("Round", "Updates: least", "Median", "Greatest", "Step of the model", "Agreement"),
        tuple(rows),
        "Agreement: the model’s step over the patient-weighted root mean square of the updates. Under plain averaging 1 means that"
        " all hospitals pull the same way, near 0 that they pull against each other.",
    )
    text = f"The model of all hospitals{seed}: how far each hospital moved it in a round, how far it moved, and how far they agreed."
    title = f"Distance that hospitals and model moved, and agreement of the updates, over {many(len(rounds), 'round')}"
    picture = Picture(
        plots.drift(rounds, title), "When the model stops moving while the hospitals still pull, they pull apart."
    )
    yield Section("drift", "Convergence and drift", text, (picture,), (table,))


def _length(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"
