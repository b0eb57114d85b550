"""`compare.html`: two runs on one page, with a figure per arm."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.lines import Line2D

from ich_models.files import write_atomic
from ich_models.metrics import METRICS
from ich_server.comparison import LEAST, Comparison, Pair, warnings
from ich_server.report import drawing
from ich_server.report.page import ENVIRONMENT
from ich_server.report.parts import Cell, Picture, Row, Table
from ich_server.results import Results
from ich_server.summary import LABELS, NOTHING, arm_label, between, many, natural, number, signed

_WIDTH: Final = 760
_PLOT: Final = (200, 560)
_ROW: Final = 18


@dataclass(frozen=True)
class _Part:
    """One arm's section."""

    title: str
    means: Table
    each: Table
    picture: Picture | None


def write_page(found: Comparison, path: Path) -> None:
    """Write the page to `path`; the same bytes for the same two runs."""
    write_atomic(path, render(found).encode())


def render(found: Comparison) -> str:
    """The page."""
    first, second = names(found)
    known = all(run.study.settings for run in (found.first, found.second))
    settings = [Row(each.path, (Cell(_said(each.first)), Cell(_said(each.second)))) for each in found.settings]
    return ENVIRONMENT.get_template("compare.html.j2").render(
        first=first,
        second=second,
        runs=_runs(found),
        warnings=warnings(found),
        settings=Table("What was set otherwise", ("Setting", first, second), tuple(settings)) if settings else None,
        same="Nothing: both runs are of the same study." if known else "Not known: an older version kept no settings.",
        arms=[_part(found, arm) for arm in found.pairs],
    )


def names(found: Comparison) -> tuple[str, str]:
    """What the two are called: their studies, told apart where these have one name."""
    first, second = found.first.study.name, found.second.study.name
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _runs(found: Comparison) -> Table:
    first, second = names(found)

    def row(head: str, texts: Sequence[str]) -> Row:
        return Row(head, tuple(map(Cell, texts)))

    both: tuple[Results, Results] = (found.first, found.second)
    rows = (
        row("Study", [run.study.name for run in both]),
        row("Federation file", [run.study.federation[:16] for run in both]),
        row("Predicts", [run.study.outcome for run in both]),
        row("Network, strategy", [f"{run.study.network}, {run.study.strategy}" for run in both]),
        row("Hospitals, patients", [_patients(run) for run in both]),
        row("Seeds", [", ".join(map(str, run.seeds)) for run in both]),
        row(
            "Software",
            [", ".join(f"{name} {said}" for name, said in run.software.items()) or "not kept" for run in both],
        ),
    )
    return Table("The runs", ("", first, second), rows)


def _patients(run: Results) -> str:
    patients = sum(one.n for one in run.hospitals.values())
    return f"{many(len(run.hospitals), 'hospital')}, {many(patients, 'patient')}"


def _said(value: Any) -> str:
    text = NOTHING if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _part(found: Comparison, arm: str) -> _Part:
    columns = ("Metric", "Mean difference (95 % CI)", "Least", "Greatest", "Hospitals")
    rows = []
    for name in METRICS:
        mean, pairs = found.mean(arm, name), found.pairs[arm].get(name, {})
        if mean is None:
            rows.append(Row(LABELS[name], (Cell(NOTHING), Cell(""), Cell(""), Cell("0"))))
            continue
        ends = [pick(pair.difference for pair in pairs.values()) for pick in (min, max)]
        cells = (
            Cell(signed(name, mean.mean), between(name, mean.low, mean.high)),
            *(Cell(signed(name, end)) for end in ends),
        )
        rows.append(Row(LABELS[name], (*cells, Cell(str(mean.k)))))
    note = (
        "Second minus first within each hospital with the same patients, as far as counts and column means tell; each hospital"
        f" counts once. Paired t interval over hospitals, from {LEAST} on."
    )
    means = Table(f"{arm_label(arm)}: mean differences", columns, tuple(rows), note)
    return _Part(arm_label(arm), means, _each(found, arm), _picture(found, arm))


def _each(found: Comparison, arm: str) -> Table:
    hospitals = sorted({hospital for pairs in found.pairs[arm].values() for hospital in pairs}, key=natural)
    rows = [
        Row(hospital, tuple(_cell(name, found.pairs[arm][name].get(hospital)) for name in METRICS))
        for hospital in hospitals
    ]
    return Table(f"{arm_label(arm)}: every hospital", ("Hospital", *(LABELS[name] for name in METRICS)), tuple(rows))


def _cell(name: str, pair: Pair | None) -> Cell:
    if pair is None:
        return Cell(NOTHING)
    return Cell(signed(name, pair.difference), f"{number(name, pair.first)} → {number(name, pair.second)}")


def _picture(found: Comparison, arm: str) -> Picture | None:
    """Differences of the AUROC, a line per hospital, and their mean with its interval."""
    pairs, mean = found.pairs[arm].get("auroc", {}), found.mean(arm, "auroc")
    if mean is None:
        return None
    hospitals = sorted(pairs, key=natural)
    top, bottom = 8, 48
    height = top + bottom + _ROW * (len(hospitals) + 1.6)
    title = f"Difference of the AUROC at {many(len(hospitals), 'hospital')}, mean {signed('auroc', mean.mean)}"
    with drawing.canvas(_WIDTH, height) as figure:
        place = drawing.box(_PLOT[0], bottom, _PLOT[1] - _PLOT[0], height - top - bottom, _WIDTH, height)
        axes = figure.add_axes(place)
        axes.set_ylim(len(hospitals) + 1.1, -0.5)
        axes.axvline(0, color=drawing.MUTED, linewidth=0.8, linestyle=":")
        for row, hospital in enumerate(hospitals):
            value = pairs[hospital].difference
            axes.plot([0, value], [row, row], color=drawing.RULE, linewidth=2)
            axes.plot([value], [row], "o", color=drawing.BLUE, markersize=6)
        below = len(hospitals) + 0.5
        if mean.low is not None and mean.high is not None:
            axes.add_line(Line2D([mean.low, mean.high], [below, below], color=drawing.STRONG, linewidth=2))
        axes.plot([mean.mean], [below], "D", color=drawing.STRONG, markersize=8)
        rows = [*range(len(hospitals)), below]
        axes.set_yticks(rows, [*(drawing.short(name, 24) for name in hospitals), "Mean"], color=drawing.INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Difference of the AUROC, second minus first")
        for at, hospital in zip(rows, hospitals, strict=False):
            axes.text(
                1.03, at, signed("auroc", pairs[hospital].difference), transform=axes.get_yaxis_transform(), va="center"
            )
        text = f"{signed('auroc', mean.mean)}" + (
            f" ({between('auroc', mean.low, mean.high)})" if mean.low is not None else ""
        )
        axes.text(1.03, below, text, transform=axes.get_yaxis_transform(), va="center", weight="bold")
        caption = "A line per hospital, by name; diamond: their mean with its 95 % interval."
        return Picture(drawing.svg(figure, f"compare-{arm}", title), caption)
