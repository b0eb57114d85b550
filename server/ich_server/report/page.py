"""`report.html`: a study's results on one self-contained page, without scripts and without a single request."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ich_models import dossier
from ich_models.files import write_atomic
from ich_models.metrics import METRICS, MIN_PER_CLASS, TYPE_METRICS
from ich_server.report import checklists, evaluation, facts, flow, plots, table_one, traffic
from ich_server.report.parts import Cell, Picture, Row, Table
from ich_server.report.photos import Photo, kept
from ich_server.results import LEVELS, Arm, Figures, Group, Level, PrivacyPromise, Results, macro
from ich_server.summary import (
    FEW,
    FEW_HOSPITALS,
    LABELS,
    MEAN,
    NOTHING,
    POOLED_METRICS,
    SHOWN_BY_TYPE,
    WITHHELD,
    Pooled,
    arm_label,
    by_type,
    compared,
    count,
    difference,
    estimate,
    hospitals_of,
    in_order,
    interval,
    main_arm,
    many,
    metric,
    natural,
    needs_four,
    number,
    pooled,
    same_patient_groups,
    some,
    spread,
    total,
    type_medians,
    values,
    with_few,
)

ENVIRONMENT: Final = Environment(
    loader=PackageLoader("ich_server", "report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Card:
    """One number of the headline, its intervals, and what it rests on."""

    title: str
    value: str
    intervals: tuple[str, ...]
    note: str


def write_report(results: Results, run: Path) -> None:
    """Write report.html into a run's folder, which holds `results` as results.json; the same bytes for the same folder."""
    write_atomic(run / dossier.REPORT, page_of(results, run))


def page_of(results: Results, run: Path) -> bytes:
    """The report of a run's folder, with its pictures, and the hash of the results.json that it is made of."""
    return render(results, kept(run), dossier.digest((run / dossier.RESULTS).read_bytes())).encode()


def render(results: Results, pictures: Sequence[Photo] = (), made_of: str = "") -> str:
    """The page. `pictures`: of generated patients alone; a study of real ones has none. `made_of`: SHA-256 of results.json."""
    main = main_arm(results)
    arm = results.arms[main] if main else None
    if arm and by_type(arm):
        return _render_types(results, arm, made_of)
    found = pooled(arm, "auroc") if arm else None
    return ENVIRONMENT.get_template("page.html.j2").render(
        study=results.study,
        sentence=_sentence(results),
        headline=_headline_title(main),
        description=_description(results, main) if main else "",
        cards=_cards(arm, found) if arm and found else [],
        warnings=_warnings(results, arm, found) if arm and found else ["No hospital was evaluated."],
        across=_across(arm) if arm else None,
        across_title="Every metric across hospitals",
        hospitals=_hospitals(results),
        forest=_forest(arm, found) if arm and found else None,
        arms=_arms(results),
        arm_metrics=_arm_metrics(results),
        arms_plot=_arms_plot(results),
        descriptions=[(arm_label(name), _description(results, name)) for name in in_order(results)],
        details=[table for name in in_order(results) for table in _details(name, results.arms[name])],
        evaluation=evaluation.sections(results, main) if main else [],
        training=_training(results),
        photos=pictures,
        quarantined=_quarantined(results),
        threshold=_threshold(results),
        intervals=results.intervals,
        seeds=_seeds(results.seeds),
        **_run(results, made_of),
    )


def _run(results: Results, made_of: str) -> dict[str, Any]:
    """What the page tells of the run itself, whatever is predicted: who took part, what went over the line, with what."""
    return {
        "flow": flow.flow(results),
        "tables_one": table_one.tables(results),
        "traffic": traffic.table(results),
        "privacy": facts.privacy(results),
        "promise": _promise(results),
        "limits": facts.limits(results),
        "software": facts.software(results, made_of),
        "made_of": Markup(dossier.mark(made_of)) if made_of else "",
        "checklists": checklists.tables(results),
    }


def _render_types(results: Results, arm: Arm, made_of: str) -> str:
    """The page of a study of slices: a table for each level of each arm in place of all that there is of one outcome."""
    names = in_order(results)
    tables = [_types(name, results.arms[name], level) for name in names for level in LEVELS]
    few = [
        f"{hospital}, {kind}: "
        + ("withheld, too few patients have it or do not" if one.patients.events is None else "one class only")
        for hospital, figures in hospitals_of(arm).items()
        for kind, one in figures.types.items()
        if one.slices.auroc.value is None
    ]
    silent = sorted(results.hospitals.keys() - arm.hospitals.keys(), key=natural)
    warnings = [f"AUROC not given: {'; '.join(few)}."] if few else []
    warnings += [f"Without figures, because no evaluation came back: {some(silent)}."] if silent else []
    return ENVIRONMENT.get_template("page.html.j2").render(
        study=results.study,
        sentence=_sentence(results),
        headline="Types of haemorrhage: slices and patients that the model did not learn from",
        description="",
        cards=[],
        warnings=warnings,
        across=_type_medians(arm),
        across_title="Median over hospitals",
        hospitals=_hospitals(results),
        forest=None,
        arms=None,
        arm_metrics=None,
        arms_plot=None,
        descriptions=[],
        details=tables,
        evaluation=[],
        training=_training(results),
        photos=(),
        quarantined=_quarantined(results),
        threshold=_threshold(results),
        intervals=results.intervals,
        seeds=_seeds(results.seeds),
        **_run(results, made_of),
    )


def _types(name: str, arm: Arm, level: Level) -> Table:
    columns = ("Hospital", "Type", level.title(), "With the type", *(LABELS[each] for each in TYPE_METRICS))
    rows: list[Row] = []
    for hospital, figures in hospitals_of(arm).items():
        for kind, one in figures.types.items():
            group: Group = getattr(one, level)
            found = [getattr(group, each) for each in TYPE_METRICS]
            cells = [
                Cell(number(each, f.value), interval(each, f.low, f.high))
                for each, f in zip(TYPE_METRICS, found, strict=True)
            ]
            rows.append(Row(hospital, (Cell(kind), Cell(f"{group.n:,}"), Cell(count(group.events)), *cells)))
        means = [Cell(number(each, macro(figures, level, each)[0])) for each in TYPE_METRICS]
        rows.append(Row(hospital, (Cell(MEAN), Cell(""), Cell(""), *means), total=True))
    note = "A patient has a type if a labelled slice has it, and is judged by the most suspicious of these slices."
    return Table(f"{arm_label(name)}, by {level.removesuffix('s')}", columns, tuple(rows), note)


def _type_medians(arm: Arm) -> Table:
    heads = [f"{LABELS[name]} of {level}" for level, name in SHOWN_BY_TYPE]
    rows = [
        Row(kind, tuple(Cell(number(name, value)) for (_, name), value in type_medians(arm, kind).items()))
        for kind in next(iter(arm.hospitals.values())).types
    ]
    note = "The mean of the types, in the tables below, is over the types that have an AUROC at the hospital."
    return Table("Median over hospitals", ("Type", *heads), tuple(rows), note)


# --- in words ---------------------------------------------------------------------------------------------------------


def _description(results: Results, arm: str) -> str:
    """What the arm is, without its own name in front."""
    text = results.arms[arm].description.removeprefix(f"{arm_label(arm)}: ")
    return text[:1].upper() + text[1:]


def _sentence(results: Results) -> str:
    study = results.study
    patients = sum(found.n for found in results.hospitals.values())
    events = _share([found.events for found in results.hospitals.values()], patients)
    return (
        f"Predicts {_typeset(study.outcome)} with the network {study.network}, trained by {study.strategy} in"
        f" {many(study.rounds, 'round')} at {many(len(results.hospitals), 'hospital')} with"
        f" {many(patients, 'patient')}, of whom {events} had the event; {_seeds(results.seeds)}."
    )


def _typeset(text: str) -> str:
    return text.replace(">=", "≥").replace("<=", "≤")


def _share(parts: Sequence[int | None], whole: int) -> str:
    """Their sum, and as a share of the whole where all are known."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not whole:
        return total(parts) if known else WITHHELD
    return f"{sum(known):,} ({sum(known) / whole:.1%})".replace("%", " %")


def _seeds(seeds: list[int]) -> str:
    run = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    listed = f"{seeds[0]}–{seeds[-1]}" if run else ", ".join(map(str, seeds))
    return f"{many(len(seeds), 'seed')} ({listed})"


def _headline_title(main: str | None) -> str:
    titles = {
        "loho": "AUROC at hospitals that the model has never seen",
        "federated": "AUROC of the federated model on patients that it did not learn from",
    }
    return titles.get(main or "", f"AUROC: {arm_label(main or 'no arm')}")


def _cards(arm: Arm, found: Pooled) -> list[Card]:
    return [_summary_card(arm, found), _median_card(arm), *_together_card(arm)]


def _summary_card(arm: Arm, found: Pooled) -> Card:
    title, summary = "Random-effects mean over hospitals", found.summary
    if summary is None:
        note = f"No hospital has an interval: that takes {MIN_PER_CLASS} events and {MIN_PER_CLASS} non-events."
        return Card(title, NOTHING, (), note)
    prediction = interval("auroc", summary.prediction_low, summary.prediction_high)
    return Card(
        title,
        number("auroc", summary.estimate),
        (
            f"95 % CI {interval('auroc', summary.low, summary.high)}",
            f"Prediction interval{f' {prediction}' if prediction else f': {needs_four(summary)}'}",
        ),
        f"Over {_of(summary.k, arm)}. The prediction interval is for a hospital that did not take part.",
    )


def _of(count: int, arm: Arm) -> str:
    return f"{count} of {many(len(arm.hospitals), 'hospital')}"


def _median_card(arm: Arm) -> Card:
    title, found = "Median over hospitals", spread(list(values(arm, "auroc").values()))
    if found is None:
        return Card(title, NOTHING, (), "The AUROC cannot be estimated at any hospital.")
    quartiles = interval("auroc", found.lower_quartile, found.upper_quartile)
    ends = interval("auroc", found.minimum, found.maximum)
    return Card(
        title, number("auroc", found.median), (f"IQR {quartiles}", f"Range {ends}"), f"Over {_of(found.k, arm)}."
    )


def _together_card(arm: Arm) -> list[Card]:
    if arm.pooled is None:
        return []
    found = arm.pooled.auroc
    around = interval("auroc", found.low, found.high)
    return [
        Card(
            "All test patients together",
            number("auroc", found.value),
            (f"95 % CI {around}",) if around else (),
            f"Simulation only: {many(arm.pooled.n, 'patient')} of {_of(len(_telling(arm)), arm)} in one ranking.",
        )
    ]


def _telling(arm: Arm) -> list[str]:
    """The hospitals that tell their figures: of their patients those of all together are made."""
    return [name for name, found in arm.hospitals.items() if found.events is not None]


def _warnings(results: Results, arm: Arm, found: Pooled) -> list[str]:
    return [*facts.miscalibration(arm), *_few_warnings(arm, found), *_missing_warnings(results, arm, found)]


def _few_warnings(arm: Arm, found: Pooled) -> list[str]:
    said = []
    entered = found.summary.k if found.summary else 0
    if entered < FEW_HOSPITALS:
        said.append(
            f"The random-effects summary rests on {many(entered, 'hospital')}: under {FEW_HOSPITALS}, the variation"
            " between hospitals, and with it every interval of the summary, is a rough guess."
        )
    few = with_few(arm)
    if few:
        said.append(
            f"{_of(len(few), arm)} {'has' if len(few) == 1 else 'have'} under {FEW} events or under {FEW} non-events,"
            f" so that their own figures, calibration above all, are uncertain: {some(few)}."
        )
    return said


def _missing_warnings(results: Results, arm: Arm, found: Pooled) -> list[str]:
    said = []
    if found.without_interval:
        said.append(
            "Shown, but not part of the random-effects mean, for want of an interval, which takes"
            f" {MIN_PER_CLASS} events and {MIN_PER_CLASS} non-events: {some(found.without_interval)}."
        )
    if found.not_estimable:
        said.append(f"AUROC not estimable (a single class, or not in every seed): {some(found.not_estimable)}.")
    silent = sorted(results.hospitals.keys() - arm.hospitals.keys(), key=natural)
    if silent:
        said.append(f"Without figures, because no evaluation came back: {some(silent)}.")
    if results.quarantined:
        count = len(results.quarantined)
        said.append(f"{count:,} {'reply was' if count == 1 else 'replies were'} set aside; the reasons are below.")
    return said


LARGEST: Final = {"youden": "Youden index (recall + specificity − 1)", "f2": "F2 (recall counts four times)"}


def _threshold(results: Results) -> str:
    if not isinstance(results.study.threshold, str):
        return f"Fixed at {results.study.threshold} in the federation file."
    chosen = [value for seed in results.training.values() for value in seed.thresholds.values()]
    rule = (
        f"Chosen on the training hospitals alone: each sends the threshold with its largest {LARGEST[results.study.threshold]},"
        " and the mean, weighted by patients, is used at the hospital that is tested."
    )
    if not chosen:
        return rule
    return f"{rule} Over {many(len(chosen), 'model')} it lies between {min(chosen):.3f} and {max(chosen):.3f}."


# --- tables -----------------------------------------------------------------------------------------------------------


def _across(arm: Arm) -> Table:
    columns: tuple[str, ...] = (
        "Metric",
        "Random-effects mean",
        "95 % prediction interval",
        "τ",
        "I²",
        "Median (IQR)",
        "Hospitals with a value",
    )
    rows = tuple(_across_row(arm, name) for name in METRICS)
    together = arm.pooled
    if together is not None:
        columns = (*columns, "All test patients (simulation only)")
        rows = tuple(
            Row(row.head, (*row.cells, _cell(together, name))) for row, name in zip(rows, METRICS, strict=True)
        )
    return Table(
        "Every metric across hospitals",
        columns,
        rows,
        "Random effects: REML with Hartung–Knapp intervals over the hospitals with at least"
        f" {MIN_PER_CLASS} events and {MIN_PER_CLASS} non-events, k in number; τ (standard deviation between hospitals) and I² are"
        " on the scale of the analysis: of the AUROC its logit, of O/E its logarithm. I² = τ² / (τ² + s²) with s² the typical"
        " variance within hospitals (Higgins & Thompson 2002). Prediction interval: t with k − 2 degrees of freedom, from 4"
        " hospitals on. Perfect calibration: O/E 1, slope 1, intercept 0.",
    )


def _across_row(arm: Arm, name: str) -> Row:
    found = spread(list(values(arm, name).values()))
    middle = Cell(NOTHING)
    if found:
        middle = Cell(number(name, found.median), interval(name, found.lower_quartile, found.upper_quartile))
    summary = pooled(arm, name).summary if name in POOLED_METRICS else None
    cells = (Cell(""), Cell(""), Cell(""), Cell(""))
    if summary is not None:
        cells = (
            Cell(number(name, summary.estimate), interval(name, summary.low, summary.high)),
            Cell(interval(name, summary.prediction_low, summary.prediction_high) or needs_four(summary)),
            Cell(NOTHING if summary.tau is None else f"{summary.tau:.3f}"),
            Cell(NOTHING if summary.i2 is None else f"{100 * summary.i2:.0f} %"),
        )
    return Row(LABELS[name], (*cells, middle, Cell(str(found.k if found else 0))))


def _cell(figures: Figures, name: str) -> Cell:
    found = metric(figures, name)
    return Cell(number(name, found.value), interval(name, found.low, found.high))


def _hospitals(results: Results) -> Table:
    rows = []
    for name in sorted(results.hospitals, key=natural):
        found = results.hospitals[name]
        reasons = "; ".join(f"{reason}: {count(some)}" for reason, some in sorted(found.excluded.items()) if some != 0)
        counts = (f"{found.n:,}", _share([found.events], found.n), _left_out(found.excluded.values()), reasons)
        rows.append(Row(name, tuple(map(Cell, counts))))
    patients = sum(found.n for found in results.hospitals.values())
    events = _share([found.events for found in results.hospitals.values()], patients)
    excluded = _left_out([some for found in results.hospitals.values() for some in found.excluded.values()])
    rows.append(Row("All hospitals", tuple(map(Cell, (f"{patients:,}", events, excluded, ""))), total=True))
    return Table("Patients of each hospital", ("Hospital", "Patients", "Events", "Left out", "Why"), tuple(rows))


AT_THRESHOLD: Final = ("accuracy", "f1", "f2", "recall", "precision", "specificity", "npv")
"""The metrics that depend on the threshold; they have a table of their own, as one of all would be too wide to print."""


def _left_out(numbers: Collection[int | None]) -> str:
    """Their sum, or that they are few where nothing else is known."""
    return "few" if None in numbers and not any(numbers) else total(numbers)


def _details(name: str, arm: Arm) -> Iterator[Table]:
    others = tuple(each for each in METRICS if each not in AT_THRESHOLD)
    for caption, metrics in ((arm_label(name), others), (f"{arm_label(name)}, at the threshold", AT_THRESHOLD)):
        columns = ("Hospital", "Patients", "Events", *(LABELS[each] for each in metrics))
        rows = [_details_row(hospital, figures, metrics) for hospital, figures in hospitals_of(arm).items()]
        if arm.pooled is not None:
            rows.append(_details_row("All test patients (simulation only)", arm.pooled, metrics, total=True))
        yield Table(caption, columns, tuple(rows), arm.description)


def _details_row(head: str, figures: Figures, metrics: Sequence[str], *, total: bool = False) -> Row:
    counts = (Cell(f"{figures.n:,}"), Cell(count(figures.events)))
    return Row(head, (*counts, *(_cell(figures, name) for name in metrics)), total)


def _arms(results: Results) -> Table | None:
    names = in_order(results)
    if len(names) < 2:
        return None
    columns = (
        "Arm",
        "Hospitals",
        "Random-effects mean (95 % CI)",
        "Median (IQR)",
        "All test patients (simulation only)",
        "Mean paired difference (95 % CI)",
        "Compared with",
    )
    return Table(
        "AUROC of each arm",
        columns,
        tuple(_arms_row(results, name) for name in names),
        "Paired difference: this arm minus the one named, within each hospital, each hospital counting once; paired t"
        " interval over hospitals, from 3 on. Each arm is compared with a federated model tested on the same patients where"
        " there is one; with “other patients” of the same hospitals, more of the difference is chance. All test patients are ranked"
        " together: where hospitals differ in their share of events, models that know the hospital (local only) rank higher by that"
        " alone.",
    )


def _arms_row(results: Results, name: str) -> Row:
    arm, against = results.arms[name], compared(results, name)
    found = spread(list(values(arm, "auroc").values()))
    summary = pooled(arm, "auroc").summary
    cells = (
        Cell(str(found.k if found else 0)),
        Cell(number("auroc", summary.estimate), interval("auroc", summary.low, summary.high))
        if summary
        else Cell(NOTHING),
        Cell(number("auroc", found.median), interval("auroc", found.lower_quartile, found.upper_quartile))
        if found
        else Cell(NOTHING),
        _cell(arm.pooled, "auroc") if arm.pooled else Cell(NOTHING),
    )
    if against is None:
        return Row(arm_label(name), (*cells, Cell(""), Cell("")))
    value, _, around = difference(against).partition(" (")
    where = f"{many(len(against.differences), 'hospital')}{'' if against.same_patients else ', other patients'}"
    return Row(arm_label(name), (*cells, Cell(value, around.rstrip(")")), Cell(arm_label(against.reference), where)))


def _arm_metrics(results: Results) -> Table | None:
    names = in_order(results)
    if len(names) < 2:
        return None
    rows = []
    for each in METRICS:
        found = [spread(list(values(results.arms[name], each).values())) for name in names]
        rows.append(Row(LABELS[each], tuple(Cell(number(each, one.median if one else None)) for one in found)))
    return Table("Median over hospitals of every metric", ("Metric", *map(arm_label, names)), tuple(rows))


@dataclass(frozen=True)
class Protection:
    """What a private study promised: sentences, what each hospital's patients may have borne, and what it rests on."""

    sentences: tuple[str, ...]
    hospitals: Table
    assumptions: tuple[str, ...]


def _promise(results: Results) -> Protection | None:
    promise = results.privacy
    if promise is None:
        return None
    what = "the whole study" if promise.per == "study" else "each model of each seed"
    rows = tuple(Row(name, (Cell(f"{epsilon:.2f}"),)) for name, epsilon in promise.hospitals.items())
    return Protection(
        (
            f"Promised of each patient: epsilon {promise.epsilon:g} with delta {promise.delta:g} for {what}.",
            f"Planned for {promise.steps:,} steps on a hospital's patients ({promise.models} models of each seed): noise of"
            f" {promise.noise:g} times the clip of {promise.clip:g} in each, a patient in a step with chance"
            f" {promise.rate:g}. One model of one seed alone: epsilon {promise.epsilon_model:.2f}.",
            *_cost_of_privacy(results),
            *_audited(promise),
        ),
        Table("Privacy by hospital", ("Hospital", "Epsilon of the study, at the most"), rows),
        tuple(promise.assumptions),
    )


def _cost_of_privacy(results: Results) -> Iterator[str]:
    """The headline arm beside the same study without privacy, on the same patients."""
    main, twin = main_arm(results), results.arms.get("without_privacy")
    mine = results.arms[main].pooled if main else None
    other = twin.pooled if twin else None
    if mine is None or other is None or mine.auroc.value is None or other.auroc.value is None or mine.n != other.n:
        return  # noise may let a hospital tell, or withhold, what it would not without
    yield (
        f"AUROC of all test patients together: {number('auroc', mine.auroc.value)} with privacy,"
        f" {number('auroc', other.auroc.value)} without."
    )


def _audited(promise: PrivacyPromise) -> Iterator[str]:
    audit = promise.audit
    if audit is not None:
        yield (
            f"Audit: {audit.right} of {audit.guesses} guesses about {audit.canaries} planted patients were right in a run"
            f" with epsilon {audit.promised:.2f}; that shows epsilon {audit.epsilon:.2f} or more (95 % confidence)."
        )


def _quarantined(results: Results) -> Table | None:
    if not results.quarantined:
        return None
    rows = [
        Row(each.hospital, (Cell(str(each.seed)), Cell(each.when), Cell(each.reason))) for each in results.quarantined
    ]
    return Table("Replies set aside", ("Hospital", "Seed", "When", "Why"), tuple(rows))


# --- figures ----------------------------------------------------------------------------------------------------------


def _forest(arm: Arm, found: Pooled) -> Picture:
    summary = found.summary
    title = f"Forest plot of the AUROC at {many(len(arm.hospitals), 'hospital')}"
    if summary:
        mean = estimate("auroc", summary.estimate, summary.low, summary.high)
        title = f"{title}; random-effects mean {mean}"
    caption = (
        "AUROC per hospital with its 95 % interval, hospitals by name. Squares grow with the hospital's weight in the"
        " summary; a hollow circle takes no part in it. Diamond: random-effects mean with its 95 % interval."
    )
    if summary and summary.prediction_low is not None:
        caption += " Bar below: where the AUROC of a further hospital is expected with 95 % probability."
    return Picture(plots.forest(arm, found, title), caption)


def _arms_plot(results: Results) -> Picture | None:
    names = [name for name in in_order(results) if values(results.arms[name], "auroc")]
    if len(names) < 2:
        return None
    groups = [[name for name in group if name in names] for group in same_patient_groups(results)]
    groups = [group for group in groups if group]
    caption = "AUROC of every hospital; a line joins the same hospital, a bar and the number below are the median."
    if len(groups) > 1:
        caption += " Arms in separate panels were tested on different patients, and are not joined."
    return Picture(plots.arms(results, groups, f"AUROC per hospital: {', '.join(map(arm_label, names))}"), caption)


def _training(results: Results) -> Picture | None:
    if not any(losses for seed in results.training.values() for losses in seed.losses.values()):
        return None
    caption = "Training loss after each round" + (", mean over the seeds." if len(results.seeds) > 1 else ".")
    return Picture(plots.training(results, "Training loss by round"), caption)
