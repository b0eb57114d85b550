"""Figures of the report's evaluation: calibration, decision curve, subgroups, cross-site matrix, drift between hospitals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ich_server.group_summaries import AcrossSubgroup, Benefit, Observed
from ich_server.report.drawing import BLUE, COLOURS, INK, MARKERS, MUTED, RULE, STRONG, box, canvas, short, svg
from ich_server.results import Arm, Drift, Figure
from ich_server.summary import arm_label, estimate, many

_GRID: Final[Mapping[str, Any]] = {"color": RULE, "linewidth": 0.6, "alpha": 0.7}


def calibration(arm: Arm, joined: Sequence[Observed], title: str) -> Markup:
    """Share with the event by predicted probability: every hospital's bins, all together, and the line of a perfect model."""
    width, height, left, bottom = 520, 500, 60, 52
    with canvas(width, height) as figure:
        axes = figure.add_axes(box(left, bottom, width - left - 14, height - bottom - 14, width, height))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
        bins = [one for found in arm.hospitals.values() for seed in found.bins for one in seed]
        largest = max((one.patients for one in bins), default=1)
        for place, one in enumerate(bins):
            axes.plot(
                [one.mean],
                [one.events / one.patients],
                "o",
                markersize=3 + 6 * math.sqrt(one.patients / largest),
                markerfacecolor="none",
                markeredgecolor=MUTED,
                markeredgewidth=0.8,
                alpha=0.8 if len(bins) < 100 else 0.45,
                label="a hospital’s bin" if place == 0 else None,
            )
        for group in joined:
            axes.plot([group.mean] * 2, [group.low, group.high], color=BLUE, linewidth=1.6, solid_capstyle="butt")
        if joined:
            axes.plot(
                [one.mean for one in joined],
                [one.observed for one in joined],
                "s",
                color=BLUE,
                markersize=6,
                label="hospitals joined (95 % CI)",
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_xlabel("Predicted probability")
        axes.set_ylabel("Share with the event")
        axes.grid(**_GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="upper left")
        return svg(figure, "calibration", title)


def decisions(curves: Mapping[str, Sequence[Benefit]], title: str, *, joined: bool) -> Markup:
    """Net benefit by threshold: the arms (the first is the headline's), treating everybody, and treating nobody.

    `joined`: whether all thresholds are of the same patients, and lines may lie between them.
    """
    width, height, left, bottom = 620, 340, 62, 52
    with canvas(width, height) as figure:
        axes = figure.add_axes(box(left, bottom, width - left - 14, height - bottom - 14, width, height))
        first = next(iter(curves.values()))
        axes.axhline(0, color=MUTED, linewidth=1.2, label="treat nobody")
        axes.plot(
            [one.threshold for one in first],
            [one.everybody for one in first],
            color=MUTED,
            linewidth=1.2,
            linestyle=(0, (4, 3)) if joined else "",
            marker="" if joined else "_",
            markersize=14,
            markeredgewidth=1.6,
            label="treat everybody",
        )
        for place, (arm, curve) in enumerate(curves.items()):
            axes.plot(
                [one.threshold for one in curve],
                [one.model for one in curve],
                color=COLOURS.get(arm, BLUE),
                marker=MARKERS.get(arm, "o"),
                markersize=5,
                linestyle="-" if joined else "",
                linewidth=2.2 if place == 0 else 1.3,
                label=arm_label(arm),
                zorder=3 - place * 0.1,
            )
        best = max(
            [one.model for curve in curves.values() for one in curve] + [one.everybody for one in first] + [0.02]
        )
        axes.set_ylim(-0.3 * best, 1.08 * best)
        axes.set_xlabel("Threshold: probability from which on a patient would be treated")
        axes.set_ylabel("Net benefit")
        axes.grid(axis="y", **_GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="upper right")
        return svg(figure, "decisions", title)


# --- subgroups --------------------------------------------------------------------------------------------------------

_WIDTH, _PLOT, _COUNTS_END, _TEXT_START = 760, (330, 590), 310, 608


def subgroups(found: Sequence[AcrossSubgroup], overall: float | None, title: str) -> Markup:
    """Random-effects AUROC of each subgroup with its interval, by variable; the dashed line is that of all patients."""
    rows = _rows(found)
    row, top, bottom = 22, 34, 46
    height = top + row * len(rows) + bottom
    with canvas(_WIDTH, height) as figure:
        start, width = _PLOT[0], _PLOT[1] - _PLOT[0]
        axes = figure.add_axes(box(start, bottom, width, row * len(rows), _WIDTH, height))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        lowest = min([0.5, *(one.auroc.low for one in found if one.auroc)])
        axes.set_xlim(max(0.0, math.floor(lowest * 10) / 10) - 0.015, 1.015)
        for x, text, side in (
            (0, "Subgroup", "left"),
            (_COUNTS_END, "Events / patients", "right"),
            (_TEXT_START, "AUROC (95 % CI)", "left"),
        ):
            figure.text(x / _WIDTH, 1 - top / 2 / height, text, ha=side, va="center", weight="bold")
        if overall is not None:
            axes.axvline(overall, color=STRONG, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for y, one in enumerate(rows):
            _subgroup_row(axes, y, one)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("AUROC (dashed: all patients)")
        axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        return svg(figure, "subgroups", title)


def _rows(found: Sequence[AcrossSubgroup]) -> list[str | AcrossSubgroup]:
    """A heading before each variable's subgroups."""
    rows: list[str | AcrossSubgroup] = []
    for place, one in enumerate(found):
        if place == 0 or found[place - 1].variable != one.variable:
            rows.append(one.variable)
        rows.append(one)
    return rows


def _subgroup_row(axes: Axes, y: int, one: str | AcrossSubgroup) -> None:
    start, width = _PLOT[0], _PLOT[1] - _PLOT[0]
    across = axes.get_yaxis_transform()

    def write(x: float, text: str, side: str, weight: str = "normal") -> None:
        axes.text((x - start) / width, y, text, ha=side, va="center", transform=across, weight=weight)

    if isinstance(one, str):
        write(0, short(one, 30), "left", "bold")
        return
    write(14, short(one.level, 24), "left")
    write(_COUNTS_END, f"{one.events:,} / {one.patients:,}" if one.hospitals else "withheld", "right")
    if one.auroc is None:
        write(_TEXT_START, "not estimable", "left")
        return
    axes.plot([one.auroc.low, one.auroc.high], [y, y], color=BLUE, linewidth=1.5, solid_capstyle="butt")
    axes.plot([one.auroc.estimate], [y], "s", color=BLUE, markersize=6)
    write(_TEXT_START, estimate("auroc", one.auroc.estimate, one.auroc.low, one.auroc.high), "left")


# --- cross-site matrix ------------------------------------------------------------------------------------------------


def matrix(found: Mapping[str, Mapping[str, Figure]], names: Sequence[str], title: str) -> Markup:
    """AUROC of each hospital's own model (row) at every hospital (column), as colours."""
    cell = 13 if len(names) > 24 else 20
    longest = max(len(short(name, 22)) for name in names)
    left, bottom, right, top = 40 + 5.5 * longest, 20, 96, 44 + 5.5 * longest
    side = cell * len(names)
    width, height = left + side + right, top + side + bottom
    with canvas(width, height) as figure:
        axes = figure.add_axes(box(left, bottom, side, side, width, height))
        numbers = [[_or_nan(found[row][column].value) for column in names] for row in names]
        drawn = axes.imshow(numbers, cmap="cividis", vmin=0.4, vmax=1.0, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(names)), [short(name, 20) for name in names], rotation=90, fontsize=9)
        axes.set_yticks(range(len(names)), [short(name, 22) for name in names], fontsize=9)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_ylabel("Trained at")
        axes.set_title("Tested at", fontsize=11, pad=6)
        for edge in axes.spines.values():
            edge.set_visible(False)
        scale = figure.add_axes(box(left + side + 20, bottom, 14, min(side, 220), width, height))
        figure.colorbar(drawn, cax=scale, label="AUROC")
        return svg(figure, "matrix", title)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


# --- drift ------------------------------------------------------------------------------------------------------------


def drift(rounds: Sequence[Drift], title: str) -> Markup:
    """Per round how far each hospital moved the model, how far the model moved, and how far the hospitals agreed."""
    width, height, left, bottom, gap = 760, 300, 58, 48, 74
    each = (width - left - gap - 14) / 2
    hospitals = sorted({name for one in rounds for name in one.updates})
    numbers = range(1, len(rounds) + 1)
    mark = "o" if len(rounds) == 1 else None
    with canvas(width, height) as figure:
        axes = figure.add_axes(box(left, bottom, each, height - bottom - 14, width, height))
        for place, name in enumerate(hospitals):
            line = [_or_nan(one.updates.get(name)) for one in rounds]
            label = many(len(hospitals), "hospital") if place == 0 else None
            axes.plot(numbers, line, color=MUTED, linewidth=0.9, alpha=0.7, marker=mark, label=label)
        axes.plot(numbers, [one.step for one in rounds], color=BLUE, linewidth=2.4, marker=mark, label="the model")
        axes.set_ylabel("Distance moved (L2 norm)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper right", reverse=True)
        second = figure.add_axes(box(left + each + gap, bottom, each, height - bottom - 14, width, height))
        agreed = [_or_nan(one.agreement) for one in rounds]
        second.plot(numbers, agreed, color=INK, linewidth=2, marker=mark)
        second.set_ylim(0, max([1.05, *(1.05 * value for value in agreed if not math.isnan(value))]))
        second.set_ylabel("Agreement of the updates")
        for panel in (axes, second):
            panel.set_xlabel("Round")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.grid(axis="y", **_GRID)
            panel.set_axisbelow(True)
        return svg(figure, "drift", title)


def shade(value: float | None) -> str:
    """The style of a table's cell that holds an AUROC: darker blue the further over 0.5, with text that stands out."""
    if value is None:
        return ""
    depth = min(1.0, max(0.0, (value - 0.5) / 0.5))
    red, green, blue = (round(255 + depth * (end - 255)) for end in (0x1F, 0x5F, 0x99))
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{'#fff' if depth > 0.55 else INK}"
