"""The report's figures as inline SVG: forest plot, arms side by side, training loss; the same bytes for the same results."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ich_server.report.drawing import BLUE, COLOURS, INK, MARKERS, MUTED, RULE, STRONG, box, canvas, short, svg
from ich_server.results import Arm, Results
from ich_server.summary import (
    Pooled,
    arm_label,
    count,
    estimate,
    hospitals_of,
    interval,
    many,
    natural,
    needs_four,
    number,
    spread,
    values,
)

# --- forest plot ------------------------------------------------------------------------------------------------------

_WIDTH: Final = 760  # every length here is in SVG user units, 72 to matplotlib's inch
_COUNTS_END: Final = 268
_PLOT: Final = (288, 592)
_TEXT_START: Final = 610


def forest(arm: Arm, pooled: Pooled, title: str) -> Markup:
    """AUROC of every hospital with its interval, the random-effects mean as a diamond, and the prediction interval."""
    hospitals = hospitals_of(arm)
    row = 22 if len(hospitals) <= 20 else 18
    rows = len(hospitals) + (2.6 if pooled.summary else 0.4)
    top, bottom = 34, 48
    height = top + row * rows + bottom
    with canvas(_WIDTH, height) as figure:
        axes = figure.add_axes(box(_PLOT[0], bottom, _PLOT[1] - _PLOT[0], row * rows, _WIDTH, height))
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xlim(*_limits(_reach(arm, pooled)))
        _forest_header(figure, height - top / 2)
        for place, (name, figures) in enumerate(hospitals.items()):
            found = figures.auroc
            _forest_texts(axes, place, name, f"{count(figures.events)} / {figures.n:,}", _forest_text(found))
            if found.value is not None:
                _forest_marker(axes, place, found.value, found.low, found.high, pooled.weights.get(name), pooled)
        if pooled.summary:
            _forest_summary(axes, len(hospitals) + 0.5, pooled)
        _forest_axis(axes)
        return svg(figure, "forest", title)


def _reach(arm: Arm, pooled: Pooled) -> list[float]:
    """Every number that the axis must show."""
    found = [end for figures in arm.hospitals.values() for end in (figures.auroc.value, figures.auroc.low)]
    if pooled.summary:
        found += [pooled.summary.low, pooled.summary.prediction_low]
    return [0.5, *(end for end in found if end is not None)]


def _limits(reach: Sequence[float]) -> tuple[float, float]:
    """From the tenth below the smallest number to 1, with a little air."""
    lowest = max(0.0, math.floor(min(reach) * 10 + 1e-9) / 10)
    return lowest - 0.015, 1.015


def _forest_header(figure: Figure, y: float) -> None:
    width, height = figure.get_size_inches() * 72
    for x, text, side in (
        (0, "Hospital", "left"),
        (_COUNTS_END, "Events / patients", "right"),
        (_TEXT_START, "AUROC (95 % CI)", "left"),
    ):
        figure.text(x / width, y / height, text, ha=side, va="center", weight="bold")
    figure.add_artist(Line2D([0, 1], [(y - 13) / height] * 2, color=RULE, linewidth=1))


def _forest_text(found: Any) -> str:
    return "not estimable" if found.value is None else estimate("auroc", found.value, found.low, found.high)


def _forest_texts(axes: Axes, y: float, name: str, counts: str, text: str, **style: Any) -> None:
    """The three texts of a row: x in user units of the figure, y in rows."""
    start, width = _PLOT[0], _PLOT[1] - _PLOT[0]
    across = axes.get_yaxis_transform()
    for x, content, side in (
        (0, short(name, 26), "left"),
        (_COUNTS_END, counts, "right"),
        (_TEXT_START, text, "left"),
    ):
        axes.text((x - start) / width, y, content, ha=side, va="center", transform=across, **style)


def _forest_marker(
    axes: Axes, y: float, value: float, low: float | None, high: float | None, weight: float | None, pooled: Pooled
) -> None:
    """A square as large as the hospital's weight; hollow where the hospital does not enter the summary."""
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=BLUE, linewidth=1.4, solid_capstyle="butt", zorder=2)
    largest = max(pooled.weights.values(), default=1.0)
    size = 3.5 + 5 * math.sqrt((weight or 0) / largest)
    hollow = weight is None
    axes.plot(
        [value],
        [y],
        "o" if hollow else "s",
        markersize=5 if hollow else size,
        markerfacecolor="white" if hollow else BLUE,
        markeredgecolor=BLUE,
        zorder=3,
        clip_on=False,
    )


def _forest_summary(axes: Axes, y: float, pooled: Pooled) -> None:
    found = pooled.summary
    assert found is not None
    axes.axvline(found.estimate, color=STRONG, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.fill(
        [found.low, found.estimate, found.high, found.estimate], [y, y - 0.36, y, y + 0.36], color=STRONG, zorder=3
    )
    text = estimate("auroc", found.estimate, found.low, found.high)
    _forest_texts(axes, y, "Random-effects mean", many(found.k, "hospital"), text, weight="bold")
    low, high = found.prediction_low, found.prediction_high
    if low is not None and high is not None:
        axes.plot([low, high], [y + 1] * 2, color=STRONG, linewidth=1.4, zorder=2)
        axes.plot([low, high], [y + 1] * 2, "|", color=STRONG, markersize=8, markeredgewidth=1.4, zorder=2)
    _forest_texts(axes, y + 1, "95 % prediction interval", "", interval("auroc", low, high) or needs_four(found))


def _forest_axis(axes: Axes) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    low = axes.get_xlim()[0] + 0.015
    axes.set_xticks([tenth / 10 for tenth in range(round(low * 10), 11)])
    axes.set_xlabel("AUROC (0.5: no discrimination)")


# --- arms side by side ------------------------------------------------------------------------------------------------

_LABELLED: Final = 8  # hospitals up to which lines carry names


def arms(results: Results, groups: Sequence[Sequence[str]], title: str) -> Markup:
    """AUROC per hospital in every arm: one panel per group of arms with the same patients, a line per hospital."""
    everything = [value for group in groups for arm in group for value in values(results.arms[arm], "auroc").values()]
    column, room, left, gap = 118, 104, 52, 26
    named = (
        len({hospital for group in groups for arm in group for hospital in results.arms[arm].hospitals}) <= _LABELLED
    )
    widths = [column * len(group) + (room if named else 0) for group in groups]
    width, height, bottom, top = left + sum(widths) + gap * (len(groups) - 1) + 4, 400, 62, 34
    with canvas(width, height) as figure:
        x = float(left)
        for index, (group, across) in enumerate(zip(groups, widths, strict=True)):
            axes = figure.add_axes(box(x, bottom, across, height - bottom - top, width, height))
            axes.set_ylim(*_limits([0.5, *everything]))
            axes.set_xlim(-0.5, across / column - 0.5)
            _arms_panel(axes, results, group, named=named)
            _arms_axis(axes, results, group, first=index == 0)
            x += across + gap
        return svg(figure, "arms", title)


def _arms_panel(axes: Axes, results: Results, group: Sequence[str], *, named: bool) -> None:
    found = [values(results.arms[arm], "auroc") for arm in group]
    hospitals = sorted({hospital for column in found for hospital in column}, key=natural)
    for hospital in hospitals:
        line = [column.get(hospital, math.nan) for column in found]
        axes.plot(range(len(group)), line, color=MUTED, linewidth=1.1 if named else 0.7, alpha=0.75, zorder=1)
    for place, (arm, column) in enumerate(zip(group, found, strict=True)):
        axes.plot(
            [place] * len(column),
            list(column.values()),
            MARKERS.get(arm, "o"),
            color=COLOURS.get(arm, BLUE),
            markersize=6 if named else 4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=2,
        )
        middle = spread(list(column.values()))
        if middle:
            axes.plot([place - 0.22, place + 0.22], [middle.median] * 2, color=INK, linewidth=2.6, zorder=1.5)
    if named:
        _line_ends(axes, {h: found[-1][h] for h in hospitals if h in found[-1]}, len(group) - 1)


def _line_ends(axes: Axes, ends: Mapping[str, float], x: float) -> None:
    """Names at the ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    step = 15 * (high - low) / axes.bbox.height
    places: list[float] = []
    for value in sorted(ends.values()):
        places.append(max(value, places[-1] + step) if places else value)
    overflow = max(0.0, places[-1] - (high - step / 2)) if places else 0.0
    for place, (hospital, value) in zip(places, sorted(ends.items(), key=lambda item: item[1]), strict=True):
        axes.plot([x + 0.07, x + 0.28], [value, place - overflow], color=RULE, linewidth=0.8, zorder=0)
        axes.text(x + 0.31, place - overflow, short(hospital, 14), va="center", color=INK, fontsize=10.5)


def _arms_axis(axes: Axes, results: Results, group: Sequence[str], *, first: bool) -> None:
    lines = []
    for arm in group:
        middle = spread(list(values(results.arms[arm], "auroc").values()))
        lines.append(f"{_two_lines(arm_label(arm))}\nmedian {number('auroc', middle.median if middle else None)}")
    axes.set_xticks(range(len(group)), lines, color=INK)
    axes.tick_params(axis="x", length=0)
    ticks = [tenth / 10 for tenth in range(round((axes.get_ylim()[0] + 0.015) * 10), 11)]
    axes.set_yticks(ticks, [f"{tick:.1f}" if first else "" for tick in ticks])
    axes.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set_visible(False)
    if first:
        axes.set_ylabel("AUROC")
    else:
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)


def _two_lines(label: str) -> str:
    """Broken once, near the middle, so that neighbours do not meet."""
    if len(label) <= 13:
        return f"{label}\n"
    breaks = [place + 1 for place, letter in enumerate(label) if letter in " -"]
    if not breaks:
        return f"{short(label, 16)}\n"
    middle = min(breaks, key=lambda place: abs(place - len(label) / 2))
    return f"{label[:middle].strip()}\n{label[middle:]}"


# --- training ---------------------------------------------------------------------------------------------------------


def training(results: Results, title: str) -> Markup:
    """Training loss after each round, mean over seeds: the model of all hospitals bold, every other fold thin."""
    curves = _mean_curves(results)
    width, height, left, bottom, right, top = 620, 300, 58, 46, 12, 14
    with canvas(width, height) as figure:
        axes = figure.add_axes(box(left, bottom, width - left - right, height - bottom - top, width, height))
        others = [losses for fold, losses in curves.items() if fold != "all"]
        alpha = 0.8 if len(others) <= 10 else 0.4
        for index, losses in enumerate(others):
            label = f"{len(others)} further {'model' if len(others) == 1 else 'models'}" if index == 0 else None
            axes.plot(range(1, len(losses) + 1), losses, color=MUTED, linewidth=0.8, alpha=alpha, label=label)
        if "all" in curves:
            losses = curves["all"]
            mark = "o" if len(losses) == 1 else None
            axes.plot(
                range(1, len(losses) + 1),
                losses,
                color=BLUE,
                linewidth=2.4,
                label="model of all hospitals",
                marker=mark,
            )
        axes.set_xlabel("Round")
        axes.set_ylabel("Training loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.7)
        if curves:
            axes.legend(frameon=False, loc="upper right", reverse=True)
        return svg(figure, "training", title)


def _mean_curves(results: Results) -> dict[str, list[float]]:
    """Per fold its loss in every round, the mean of the seeds that have one."""
    per_fold: dict[str, list[Sequence[float | None]]] = {}
    for found in results.training.values():
        for fold, losses in found.losses.items():
            per_fold.setdefault(fold, []).append(losses)
    return {fold: [_mean(seeds, place) for place in range(max(map(len, seeds)))] for fold, seeds in per_fold.items()}


def _mean(seeds: Sequence[Sequence[float | None]], place: int) -> float:
    found = [loss for losses in seeds if place < len(losses) and (loss := losses[place]) is not None]
    return math.fsum(found) / len(found) if found else math.nan
