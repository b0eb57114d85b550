"""A study's results on the terminal: one short table of the headline arm, and one that compares the arms."""

import json
from collections.abc import Callable
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ich_server.comparison import Comparison
from ich_server.results import Arm, Figure, Results, macro
from ich_server.summary import (
    LABELS,
    MEAN,
    NOTHING,
    POOLED_METRICS,
    SHOWN_BY_TYPE,
    Paired,
    Spread,
    arm_label,
    between,
    by_type,
    compared,
    count,
    difference,
    estimate,
    hospitals_of,
    in_order,
    interval,
    main_arm,
    metric,
    needs_four,
    number,
    pooled,
    signed,
    spread,
    total,
    type_medians,
    values,
)

MOST_ROWS: Final = 15
"""Hospitals up to which each has a line; beyond that they are described together."""

MOST_BY_TYPE: Final = 4
"""The same, where a hospital takes a line for each type."""

_SUMMARISED: Final = ("auroc", "calibration_slope", "brier")


def summary_table(results: Results) -> Group:
    """The headline arm, per hospital or (many hospitals) in quantiles, and the arms side by side if there are several."""
    main = main_arm(results)
    if main is None:
        return Group(Text("no hospital was evaluated"))
    arm = results.arms[main]
    if by_type(arm):
        return Group(*(_types(name, results.arms[name]) for name in in_order(results)))
    first = _per_hospital(main, arm) if len(arm.hospitals) <= MOST_ROWS else _over_hospitals(main, arm)
    return Group(first, Text(), _arms(results)) if len(in_order(results)) > 1 else Group(first)


def _table(title: str, *columns: str) -> Table:
    """No box: lines can be copied into a mail. On a narrow terminal the names to the left wrap, never the numbers."""
    table = Table(title=_plain(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return table


def _add(table: Table, *cells: str, style: str = "") -> None:
    table.add_row(*(Text(_plain(cell)) for cell in cells), style=style)


def _plain(text: str) -> str:
    """Dashes that every terminal has."""
    return text.replace("–", "-").replace("−", "-").replace("≥", ">=")


# --- types of haemorrhage ---------------------------------------------------------------------------------------------


def _types(name: str, arm: Arm) -> Table:
    """One line per hospital and type, or (many hospitals) per type, and the means over the types."""
    hospital = "held out" if name == "loho" else "hospital"
    table = _table(arm_label(name), hospital, "type", "with it", "AUROC: slices (95 % CI)", "patients", "F2")
    if len(arm.hospitals) <= MOST_BY_TYPE:
        for each, found in hospitals_of(arm).items():
            for index, (kind, one) in enumerate(found.types.items()):
                auroc, others = _text("auroc", one.slices.auroc), (one.patients.auroc, one.slices.f2)
                having = count(one.patients.events)
                _add(table, each if index == 0 else "", kind, having, auroc, *(_three(other) for other in others))
            means = (number(metric, macro(found, level, metric)[0]) for level, metric in SHOWN_BY_TYPE)
            _add(table, "", MEAN, "", *means, style="bold")
    for kind in next(iter(arm.hospitals.values())).types:
        medians = type_medians(arm, kind)
        _add(table, "median", kind, "", *(number(name, value) for (_, name), value in medians.items()))
    return table


def _three(found: Figure) -> str:
    return number("auroc", found.value)


# --- the headline arm -------------------------------------------------------------------------------------------------


def _per_hospital(name: str, arm: Arm) -> Table:
    hospital = "held out" if name == "loho" else "hospital"
    table = _table(arm_label(name), hospital, "n", "events", "AUROC (95 % CI)", "calibration slope")
    for each, found in hospitals_of(arm).items():
        _add(
            table,
            each,
            f"{found.n:,}",
            count(found.events),
            _text("auroc", found.auroc),
            _slope(found.calibration_slope),
        )
    patients = sum(found.n for found in arm.hospitals.values())
    events = total(found.events for found in arm.hospitals.values())
    mean, prediction = _random_effects(arm, "auroc")
    slope, _ = _random_effects(arm, "calibration_slope")
    _add(table, "summary", f"{patients:,}", events, mean, slope.partition(" (")[0], style="bold")
    _add(table, "prediction interval", "", "", prediction, "")
    return table


def _text(name: str, found: Figure) -> str:
    return estimate(name, found.value, found.low, found.high)


def _slope(found: Figure) -> str:
    return number("calibration_slope", found.value)


def _over_hospitals(name: str, arm: Arm) -> Table:
    headings = ("AUROC", "calibration slope", "Brier")
    table = _table(f"{arm_label(name)}, {len(arm.hospitals)} hospitals", "", *headings)
    pooled_columns = [_random_effects(arm, each) if each in POOLED_METRICS else ("", "") for each in _SUMMARISED]
    _add(table, "summary (95 % CI)", *(mean for mean, _ in pooled_columns), style="bold")
    _add(table, "prediction interval", *(prediction for _, prediction in pooled_columns))
    spreads = [(each, spread(list(values(arm, each).values()))) for each in _SUMMARISED]
    rows: dict[str, Callable[[str, Spread], str]] = {
        "median": lambda each, found: number(each, found.median),
        "quartiles": lambda each, found: interval(each, found.lower_quartile, found.upper_quartile),
        "least": lambda each, found: number(each, found.minimum),
        "greatest": lambda each, found: number(each, found.maximum),
        "hospitals": lambda each, found: str(found.k),
    }
    for label, show in rows.items():
        _add(table, label, *(show(each, found) if found else "" for each, found in spreads))
    if arm.pooled is not None:
        auroc, *others = (_text(each, metric(arm.pooled, each)) for each in _SUMMARISED)
        _add(table, "all (simulation only)", auroc, *(other.partition(" (")[0] for other in others))
    return table


def _random_effects(arm: Arm, name: str) -> tuple[str, str]:
    """The mean with its interval, and the prediction interval."""
    found = pooled(arm, name).summary
    if found is None:
        return number(name, None), ""
    prediction = interval(name, found.prediction_low, found.prediction_high)
    return estimate(name, found.estimate, found.low, found.high), f"({prediction})" if prediction else needs_four(found)


# --- the arms ---------------------------------------------------------------------------------------------------------


def _arms(results: Results) -> Table:
    table = _table("AUROC by arm", "arm", "hospitals", "summary", "median", "paired difference", "against")
    for name in in_order(results):
        arm = results.arms[name]
        found, against = spread(list(values(arm, "auroc").values())), compared(results, name)
        _add(
            table,
            name,
            str(found.k if found else 0),
            _random_effects(arm, "auroc")[0].partition(" (")[0],
            number("auroc", found.median if found else None),
            difference(against) if against else "",
            _against(against) if against else "",
        )
    if any("*" in str(cell) for cell in table.columns[-1].cells):
        table.caption, table.caption_justify = "* other patients of the same hospitals", "left"
    return table


def _against(found: Paired) -> str:
    return found.reference if found.same_patients else f"{found.reference}*"


# --- two runs ---------------------------------------------------------------------------------------------------------


def comparison_table(found: Comparison) -> Group:
    """What was set otherwise, and per arm the mean differences of the second run against the first."""
    settings = _table("Set otherwise", "setting", "first", "second")
    for each in found.settings[:MOST_ROWS]:
        _add(settings, each.path, _one_line(each.first), _one_line(each.second))
    if len(found.settings) > MOST_ROWS:
        _add(settings, f"and {len(found.settings) - MOST_ROWS} more", "", "")
    means = _table("Second run minus first", "arm", "metric", "hospitals", "mean difference (95 % CI)")
    for arm in found.pairs:
        for index, name in enumerate(_SUMMARISED):
            mean = found.mean(arm, name)
            text = NOTHING if mean is None else signed(name, mean.mean)
            if mean is not None and (interval := between(name, mean.low, mean.high)):
                text = f"{text} ({interval})"
            _add(means, arm if index == 0 else "", LABELS[name], str(mean.k if mean else 0), text)
    return Group(settings, Text(), means) if found.settings else Group(means)


def _one_line(value: object) -> str:
    text = NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
